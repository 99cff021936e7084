"""PSA attestation tokens: Arm devices with TF-M or OP-TEE."""
