"""What provisioning checks, PR1 to PR6; the numbers are those of the specification."""

from __future__ import annotations

from typing import Final

from avow.errors import Check

_SPEC: Final = "docs/spec/provisioning.md"

MESSAGE: Final = Check("PR1", "the provisioning message is well-formed", _SPEC)
OWNER: Final = Check("PR2", "secrets come from the owner that the configuration names", _SPEC)
KEYS: Final = Check("PR3", "the keys of stores stay as they were first provisioned", _SPEC)
IN_TIME: Final = Check("PR4", "the provisioning message comes in time", _SPEC)
USED: Final = Check("PR5", "the node can use what it was given", _SPEC)
COMPLETE: Final = Check("PR6", "the node has taken what it was given", _SPEC)

CHECKS: Final = (MESSAGE, OWNER, KEYS, IN_TIME, USED, COMPLETE)
