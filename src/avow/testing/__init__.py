"""Simulators and drivers for tests; nothing that is shipped imports this room."""
