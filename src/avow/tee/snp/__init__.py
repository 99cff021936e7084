"""AMD SEV-SNP: reports of confidential VMs, signed by a key that only the processor has."""
