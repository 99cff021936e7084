"""Which peer and door a connection number belongs to."""

from __future__ import annotations

import threading
from collections.abc import Callable

from avow.broker.authentication import Origin

# Uses of one number whose ends may be waiting to be handled.
USES_MAX = 64
UNKNOWN = Origin(peer="unknown:0", allow_anonymous=False)


class Origins:
    """Filled by the acceptors, read by the thread that handles the core's events.

    A number is reused after its connection has gone, and the acceptor may learn the new use of a
    number before the event about the end of its old use has been handled. Each number therefore
    has a queue: the end removes the oldest. The core drops an event when it has no memory for it,
    so a queue may be one behind: then a peer in the log may be an old one, and anonymous is
    allowed only where all uses allow it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._origins: dict[int, list[Origin]] = {}

    def note(self, origin: Origin, add: Callable[[], int]) -> int:
        """Calls `add` for a connection number and keeps `origin` under it.

        Both happen under one lock, so that no event about the number can be looked up in between.
        """
        with self._lock:
            connection = add()
            uses = self._origins.setdefault(connection, [])
            uses.append(origin)
            if len(uses) > USES_MAX:
                del uses[0]
        return connection

    def of(self, connection: int) -> Origin:
        """The origin of the oldest use whose end has not been handled."""
        with self._lock:
            uses = self._origins.get(connection)
            if not uses:
                return UNKNOWN
            return Origin(uses[0].peer, all(use.allow_anonymous for use in uses))

    def forget(self, connection: int) -> Origin:
        """Removes and returns the oldest use."""
        with self._lock:
            uses = self._origins.get(connection)
            if not uses:
                return UNKNOWN
            origin = uses.pop(0)
            if not uses:
                del self._origins[connection]
            return origin
