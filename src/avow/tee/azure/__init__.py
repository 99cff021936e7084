"""Confidential VMs of Azure: a virtual TPM whose key the hardware's report vouches for."""
