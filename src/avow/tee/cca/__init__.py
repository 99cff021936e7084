"""Arm CCA: tokens of realms, signed by the platform and by the realm management monitor."""
