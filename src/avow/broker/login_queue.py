"""Which of the logins that wait is checked next, so that a flood keeps nobody waiting but itself.

A check costs some twenty milliseconds of a processor, and anybody can ask for one. Logins wait by
their source (`avow.channel.address.source_of`) in lanes: the more a source has tried without
success, the later its lane. Within a lane the sources take turns, one login each; only among those
that have not tried before the newest comes first: under a flood of new sources the oldest ones
have given up by the time that it is their turn. Where there is no room, the last of the worst
lane has to go.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Final, Generic, TypeVar

Login = TypeVar("Login")

# The lane of a source is the number of binary digits of its tries, so each holds twice as many.
LANES: Final = 8
# Logins of one source that may wait.
WAITING_PER_SOURCE_MAX: Final = 64


class LoginQueue(Generic[Login]):
    """Not thread-safe: its owner locks."""

    def __init__(self, waiting_max: int) -> None:
        self.waiting_max = waiting_max
        self._lanes: tuple[OrderedDict[str, deque[Login]], ...]
        self._lanes = tuple(OrderedDict() for _ in range(LANES))
        self._of_source: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, login: Login, source: str, tries: int) -> list[Login]:
        """Lets a login wait whose source has `tries` without success behind it. Returns those that
        have no place any more: perhaps this one, perhaps another."""
        waiting = self._of_source[source]
        if waiting >= WAITING_PER_SOURCE_MAX:
            return [login]
        lane = self._lanes[min(LANES - 1, (tries + waiting).bit_length())]
        lane.setdefault(source, deque()).append(login)
        self._of_source[source] += 1
        self._count += 1
        shed = []
        while self._count > self.waiting_max:
            shed.append(self._shed())
        return shed

    def take(self) -> Login | None:
        """The one whose turn it is; None when nobody waits."""
        for number, lane in enumerate(self._lanes):
            if lane:
                source = next(reversed(lane)) if number == 0 else next(iter(lane))
                login = lane[source].popleft()
                self._gone(lane, source)
                if source in lane:
                    lane.move_to_end(source)
                return login
        return None

    def _shed(self) -> Login:
        number, lane = next(
            (number, lane) for number, lane in reversed(list(enumerate(self._lanes))) if lane
        )
        source = next(iter(lane)) if number == 0 else next(reversed(lane))
        login = lane[source].pop()
        self._gone(lane, source)
        return login

    def _gone(self, lane: OrderedDict[str, deque[Login]], source: str) -> None:
        if not lane[source]:
            del lane[source]
        self._count -= 1
        self._of_source[source] -= 1
        if self._of_source[source] <= 0:
            del self._of_source[source]
