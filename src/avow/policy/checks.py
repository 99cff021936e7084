"""The checks of a policy on verified claims, numbered as in docs/reference/checks.md."""

from __future__ import annotations

from typing import Final

from avow.errors import Check

_SOURCE: Final = "docs/reference/policy.md"

PLATFORM: Final = Check("P1", "the policy names the platform", _SOURCE)
SIMULATED: Final = Check("P2", "the evidence is not simulated", _SOURCE)
PRESENT: Final = Check("P3", "the evidence has the claims that the policy asks about", _SOURCE)
VALUE: Final = Check("P4", "a claim has a value that the policy names", _SOURCE)
RANGE: Final = Check("P5", "a number is in the policy's range", _SOURCE)
MEMBERS: Final = Check("P6", "a list holds what the policy allows", _SOURCE)
GRACE: Final = Check("P7", "the grace period has not ended", _SOURCE)
EXCLUDED: Final = Check("P8", "the claims are not among those that the policy excludes", _SOURCE)
DEBUG: Final = Check("P9", "the platform's operator cannot look inside", _SOURCE)

CHECKS: Final = (PLATFORM, SIMULATED, PRESENT, VALUE, RANGE, MEMBERS, GRACE, EXCLUDED, DEBUG)
