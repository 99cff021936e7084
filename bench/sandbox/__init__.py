"""What the sandbox and sealed files cost."""
