"""Says at once when an anchor is late, while there is time to do something, and when it is back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnchorLate:
    """The anchor was not moved on, for `reason`; after `left_s` seconds more of it all ends."""

    anchor: str
    reason: str
    left_s: float

    def __str__(self) -> str:
        return (
            f"expected {self.anchor} to be updated, got: {self.reason}; bring it back "
            f"within {self.left_s:.0f} s, or this process ends: until then, changes can be "
            "rolled back unnoticed"
        )


@dataclass(frozen=True, slots=True)
class AnchorBack:
    """The anchor was moved on again, `away_s` seconds after it was first late."""

    anchor: str
    away_s: float

    def __str__(self) -> str:
        return f"{self.anchor} is updated again, after {self.away_s:.0f} s without it"


Notice = AnchorLate | AnchorBack


class Lateness:
    """Of one anchor. `told` gets each notice; what fails again and again is one."""

    def __init__(self, anchor: str, clock: Callable[[], float]) -> None:
        self._anchor = anchor
        self._clock = clock
        self._since_s: float | None = None
        self.told: Callable[[Notice], None] = lambda notice: None

    def failed(self, error: Exception, grace_s: float) -> float:
        """It could not be moved on now. Returns for how many seconds it has been so; after
        `grace_s` all ends."""
        now_s = self._clock()
        if self._since_s is None:
            self._since_s = now_s
            self.told(AnchorLate(self._anchor, str(error), grace_s))
        return now_s - self._since_s

    def succeeded(self) -> None:
        """It was moved on now."""
        since_s, self._since_s = self._since_s, None
        if since_s is not None:
            self.told(AnchorBack(self._anchor, self._clock() - since_s))
