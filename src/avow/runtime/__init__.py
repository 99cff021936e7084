"""What runs in this process, by digest, and that nothing else does: docs/decisions/0017."""
