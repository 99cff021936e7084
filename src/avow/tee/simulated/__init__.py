"""A platform that protects nothing: a software key signs. For trying out, tests and the demo."""

from typing import Final

# Stands in every line of output of whatever runs on this platform, and in its logs.
NOTHING_IS_PROTECTED: Final = "SIMULATED TEE: nothing is protected"
