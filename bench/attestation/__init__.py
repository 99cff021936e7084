"""What attestation costs: connecting, a slow TEE, verifying, and the connection afterwards."""
