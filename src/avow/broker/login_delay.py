"""Failed logins wait for their refusal, longer each time, without anybody else waiting.

Two parts: `FailureLedger` says how long, `DelayedAnswers` holds the answers meanwhile in one
thread, so that no thread that checks passwords ever sleeps.
"""

from __future__ import annotations

import hashlib
import heapq
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

# Who failed is remembered for so long after the last failure, and so many at most (the oldest are
# forgotten first), so that guessing with ever new names cannot fill the memory.
MEMORY_S = 300.0
ENTRIES_MAX = 20_000
# Answers that may wait. One more, and the one that is due first goes out at once.
WAITING_MAX = 10_000
# Refusals that one host may have waiting. Above this its logins are not even checked, which bounds
# the guesses that many connections at once can make.
WAITING_PER_HOST_MAX = 64


@dataclass(slots=True)
class _Failures:
    count: int
    last_s: float
    turned_away: int = 0


class FailureLedger:
    """Counts failures by user name and by the peer's host. Not thread-safe: its owner locks."""

    def __init__(
        self, first_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._entries: OrderedDict[bytes, _Failures] = OrderedDict()

    def set_delays(self, first_s: float, longest_s: float) -> None:
        """For failures from now on."""
        self._first_s = first_s
        self._longest_s = longest_s

    def failed(self, user: str, host: str) -> float:
        """Notes a failure and returns how many seconds its refusal shall wait."""
        count = max(self._note(_key("user", user)), self._note(_key("host", host)))
        # The exponent is bounded so that the power stays a float.
        return min(self._longest_s, self._first_s * 2.0 ** min(count - 1, 60))

    def succeeded(self, user: str) -> None:
        """The user is who they say: their own typing errors are forgotten, the host's are not."""
        self._entries.pop(_key("user", user), None)

    def turned_away(self, host: str) -> None:
        """A login of this host was not even checked. No refusal waits longer for it."""
        self._entry(_key("host", host)).turned_away += 1

    def tries(self, host: str) -> int:
        """How often this host has tried without success."""
        entry = self._entries.get(_key("host", host))
        if entry is None or self._clock() - entry.last_s > MEMORY_S:
            return 0
        return entry.count + entry.turned_away

    def _note(self, key: bytes) -> int:
        entry = self._entry(key)
        entry.count += 1
        return entry.count

    def _entry(self, key: bytes) -> _Failures:
        """The entry, with the present as its time."""
        now_s = self._clock()
        entry = self._entries.pop(key, None)
        if entry is None or now_s - entry.last_s > MEMORY_S:
            entry = _Failures(0, now_s)
        entry.last_s = now_s
        self._entries[key] = entry
        if len(self._entries) > ENTRIES_MAX:
            self._entries.popitem(last=False)
        return entry


def _key(kind: str, name: str) -> bytes:
    """A name may have 65,535 bytes; what is remembered of it has 16."""
    return hashlib.blake2b(f"{kind}:{name}".encode(), digest_size=16).digest()


@dataclass(order=True, slots=True)
class _Waiting:
    due_s: float
    number: int
    answer: bytes = field(compare=False, repr=False)
    host: str = field(compare=False)


class DelayedAnswers:
    """Sends each answer when its time has come, in one thread, from `start` to `stop`."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._heap: list[_Waiting] = []
        self._hosts: Counter[str] = Counter()
        self._number = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="login delays", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def stop(self) -> None:
        """Drops what still waits: the connections are being closed."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def put(self, answer: bytes, host: str, delay_s: float) -> None:
        """`answer` goes out in `delay_s` seconds, or earlier when too many wait."""
        early: _Waiting | None = None
        with self._changed:
            self._number += 1
            due_s = time.monotonic() + delay_s
            heapq.heappush(self._heap, _Waiting(due_s, self._number, answer, host))
            self._hosts[host] += 1
            if len(self._heap) > WAITING_MAX:
                early = self._take()
            self._changed.notify()
        if early is not None:
            self._send(early.answer)

    def crowded(self, host: str) -> bool:
        """True when this host has so many refusals waiting that it has to wait for them first."""
        with self._changed:
            return self._hosts[host] >= WAITING_PER_HOST_MAX

    def _take(self) -> _Waiting:
        waiting = heapq.heappop(self._heap)
        self._hosts[waiting.host] -= 1
        if self._hosts[waiting.host] <= 0:
            del self._hosts[waiting.host]
        return waiting

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self._due():
                    self._changed.wait(self._patience_s())
                if self._stopping:
                    return
                waiting = self._take()
            self._send(waiting.answer)

    def _due(self) -> bool:
        return bool(self._heap) and self._heap[0].due_s <= time.monotonic()

    def _patience_s(self) -> float | None:
        return max(0.0, self._heap[0].due_s - time.monotonic()) if self._heap else None
