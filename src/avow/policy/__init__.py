"""What is acceptable: rules over verified claims, read from TOML."""
