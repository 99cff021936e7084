"""Programs for the sandbox: from registries, unmodified, and small ones of the project."""
