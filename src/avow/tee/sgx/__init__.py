"""Intel SGX, through Gramine."""
