"""TPM 2.0: a quote by an attestation key, and a resettable PCR that holds what runs."""
