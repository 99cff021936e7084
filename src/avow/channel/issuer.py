"""Turns waiting requests into evidence: one quote for all who wait, at the pace of the platform.

While one quote is under way, or the next one may not start yet, requests gather; the next quote
serves them all by a Merkle tree (`avow.evidence.report_data`). So a platform that gives five quotes
a second still serves as many connections as come.

`Batches` decides, without threads or clock; `Issuer` runs it. Two threads: one blocks in the
attester, the other keeps the time, so that a platform that hangs costs those who wait for it their
evidence, and nobody more. A platform that never waits for anything, as the simulation, is asked by
whoever wants its evidence: to hand a request from thread to thread costs more than its quote.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from avow.errors import AvowError, MalformedError, UnavailableError
from avow.evidence.claims import Claims
from avow.evidence.envelope import Evidence
from avow.evidence.report_data import Path, ReportData, batch
from avow.evidence.roles import Attester, answers_at_once

WAITING_MAX: Final = 4096
QUOTE_TIMEOUT_S: Final = 8.0
# A platform that is slower sets the pace itself, as it does one quote at a time.
QUOTES_PER_S: Final = 1000.0

Done = Callable[[Evidence | AvowError], None]


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the start: quotes that were asked of the platform, requests, and of those the ones that
    were served, the ones that failed and the ones that found no place."""

    quotes: int = 0
    requests: int = 0
    served: int = 0
    failures: int = 0
    busy: int = 0
    waiting: int = 0
    quote_seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One request; `since_s` is when it came, on the clock of `Batches`."""

    claims: Claims
    binder: bytes
    done: Done
    since_s: float


class Batches:
    """Who waits, and when the next quote may start. Times are seconds on any steady clock."""

    def __init__(self, *, quotes_per_s: float, waiting_max: int, quote_timeout_s: float) -> None:
        if not quotes_per_s > 0 or not 0 < waiting_max <= 65_536 or not quote_timeout_s > 0:
            raise MalformedError(
                f"expected quotes a second and a timeout above 0 and 1 to 65536 places, got "
                f"{quotes_per_s:g}, {quote_timeout_s:g} and {waiting_max}; correct them"
            )
        self._interval_s = 1 / quotes_per_s
        self._waiting_max = waiting_max
        self._quote_timeout_s = quote_timeout_s
        self._waiting: list[Waiting] = []
        self._quoted: list[Waiting] = []
        self._started_s: float | None = None
        self._next_start_s: float | None = None

    @property
    def waiting(self) -> int:
        """How many wait, those of the quote under way among them."""
        return len(self._waiting) + len(self._quoted)

    def add(self, request: Waiting) -> UnavailableError | None:
        """Gives a request a place, or says why there is none."""
        if self.hangs(request.since_s):
            return _hanging(self._quote_timeout_s)
        if self.waiting >= self._waiting_max:
            return UnavailableError(
                f"expected one of {self._waiting_max} places to wait for evidence, got none; the "
                f"platform is busy: try again later or raise waiting_max"
            )
        self._waiting.append(request)
        return None

    def start(self, now_s: float) -> list[Waiting]:
        """All who wait, if a quote may start now; it has started then. Otherwise none."""
        if self._started_s is not None or not self._waiting:
            return []
        if self._next_start_s is not None and now_s < self._next_start_s:
            return []
        self._started_s = now_s
        self._next_start_s = now_s + self._interval_s
        self._quoted, self._waiting = self._waiting, []
        return list(self._quoted)

    def end(self) -> list[Waiting]:
        """The quote under way has ended: those who still wait for it."""
        quoted, self._quoted, self._started_s = self._quoted, [], None
        return quoted

    def hangs(self, now_s: float) -> bool:
        """True while a quote has been under way for longer than its time."""
        return self._started_s is not None and now_s >= self._started_s + self._quote_timeout_s

    def give_up(self, now_s: float) -> list[Waiting]:
        """Those who have to be told that there is no evidence: all, when the quote hangs."""
        if not self.hangs(now_s):
            return []
        return self.clear()

    def clear(self) -> list[Waiting]:
        """Takes all out; the quote under way, if any, serves nobody."""
        everybody = self._quoted + self._waiting
        self._quoted, self._waiting = [], []
        return everybody

    def until_start_s(self, now_s: float) -> float | None:
        """After how long the next quote may start; None when first something else has to happen."""
        if self._started_s is not None or not self._waiting:
            return None
        return max(0.0, (self._next_start_s or now_s) - now_s)

    def until_hanging_s(self, now_s: float) -> float | None:
        """After how long the quote under way hangs; None when there is none, or it does."""
        if self._started_s is None or self.hangs(now_s):
            return None
        return self._started_s + self._quote_timeout_s - now_s


class Issuer:
    """Asks one attester for quotes, from one thread, between `start` and `stop`.

    `quotes_per_s` is how often at most, `waiting_max` (1 to 65,536) how many requests may wait, and
    `quote_timeout_s` how long a quote may take. Raises `MalformedError` for other values.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        quotes_per_s: float = QUOTES_PER_S,
        waiting_max: int = WAITING_MAX,
        quote_timeout_s: float = QUOTE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attester = attester
        self._at_once = answers_at_once(attester)
        self._quote_timeout_s = quote_timeout_s
        self._clock = clock
        self._batches = Batches(
            quotes_per_s=quotes_per_s, waiting_max=waiting_max, quote_timeout_s=quote_timeout_s
        )
        # Guards everything below and `_batches`.
        self._lock = threading.Lock()
        # Something for the quoting thread to do; something for the watching one.
        self._changed = threading.Condition(self._lock)
        self._started = threading.Condition(self._lock)
        # The watching thread looks again by itself while this is False.
        self._unwatched = True
        self._running = False
        self._stopping = False
        self._quotes = self._requests = self._served = self._failures = self._busy = 0
        self._quote_seconds = 0.0
        self._quoting = threading.Thread(target=self._quote_all, name="issuer", daemon=True)
        self._watching = threading.Thread(target=self._watch, name="issuer-clock", daemon=True)

    @property
    def platform(self) -> str:
        """The attester's platform."""
        return self._attester.platform

    @property
    def counters(self) -> Counters:
        """How it went so far."""
        with self._changed:
            return Counters(
                quotes=self._quotes,
                requests=self._requests,
                served=self._served,
                failures=self._failures,
                busy=self._busy,
                waiting=self._batches.waiting,
                quote_seconds=self._quote_seconds,
            )

    def start(self) -> None:
        """Begins to serve."""
        self._running = True
        self._quoting.start()
        self._watching.start()

    def stop(self) -> None:
        """Tells all who wait that there is no evidence, and ends the threads.

        A platform that hangs is not waited for longer than a moment.
        """
        with self._changed:
            if not self._running or self._stopping:
                return
            self._stopping = True
            left = self._batches.clear()
            self._failures += len(left)
            self._changed.notify()
            self._started.notify()
        _tell(left, _stopped())
        self._watching.join()
        self._quoting.join(min(1.0, self._quote_timeout_s))

    def request(self, claims: Claims, binder: bytes, done: Done) -> None:
        """Has `claims` quoted for a channel with this `binder` (64 bytes).

        `done` is called exactly once, with the evidence or an `UnavailableError`: from a thread of
        the issuer, or before this returns when there is no place or the platform answers at once.
        It must not block, and must not call the issuer.
        """
        refusal: AvowError | None
        at_once: list[Waiting] = []
        with self._changed:
            self._requests += 1
            if self._running and not self._stopping:
                now_s = self._clock()
                refusal = self._batches.add(Waiting(claims, binder, done, now_s))
                if self._at_once and refusal is None:
                    at_once = self._batches.start(now_s)
            else:
                refusal = _stopped()
            if refusal is not None:
                self._busy += 1
            elif not at_once:
                self._changed.notify()
        if refusal is not None:
            done(refusal)
        elif at_once:
            self._serve(at_once)

    def _quote_all(self) -> None:
        while (requests := self._next_batch()) is not None:
            self._serve(requests)

    def _serve(self, requests: list[Waiting]) -> None:
        """One quote for all of them, whose start is noted already."""
        started_s = self._clock()
        answer = self._quote(requests)
        with self._changed:
            still_waiting = self._batches.end()
            self._quotes += 1
            self._quote_seconds += self._clock() - started_s
            if isinstance(answer, AvowError):
                self._failures += len(still_waiting)
            else:
                self._served += len(still_waiting)
            if self._batches.waiting:
                # They came while this one was under way, and wait for the quoting thread.
                self._changed.notify()
        if isinstance(answer, AvowError):
            _tell(still_waiting, answer)
        elif still_waiting:
            # All of them or, after a timeout, nobody: the order is that of the batch.
            for request, evidence in zip(still_waiting, answer, strict=True):
                request.done(evidence)

    def _next_batch(self) -> list[Waiting] | None:
        """Blocks until a quote may start; None at the end."""
        with self._changed:
            while not self._stopping:
                now_s = self._clock()
                if requests := self._batches.start(now_s):
                    # Not at every quote: to wake a thread costs more than the rest.
                    if self._unwatched:
                        self._unwatched = False
                        self._started.notify()
                    return requests
                self._changed.wait(self._batches.until_start_s(now_s))
        return None

    def _quote(self, requests: list[Waiting]) -> list[Evidence] | AvowError:
        try:
            report_data, paths = batch([(each.claims, each.binder) for each in requests])
            return self._evidence(requests, report_data, paths)
        except AvowError as error:
            return error

    def _evidence(
        self, requests: list[Waiting], report_data: ReportData, paths: list[Path]
    ) -> list[Evidence]:
        report = self._attester.quote(report_data)
        return [
            Evidence(self._attester.platform, report, each.claims.encoded(), path)
            for each, path in zip(requests, paths, strict=True)
        ]

    def _watch(self) -> None:
        """Ends the waiting for a quote that hangs."""
        while True:
            with self._changed:
                if self._stopping:
                    return
                now_s = self._clock()
                left = self._batches.give_up(now_s)
                self._failures += len(left)
                if not left:
                    wait_s = self._batches.until_hanging_s(now_s)
                    self._unwatched = wait_s is None
                    self._started.wait(wait_s)
                    continue
            _tell(left, _hanging(self._quote_timeout_s))


def _tell(requests: list[Waiting], error: AvowError) -> None:
    for request in requests:
        request.done(error)


def _hanging(timeout_s: float) -> UnavailableError:
    return UnavailableError(
        f"expected evidence from the platform within {timeout_s:g} s, got none; check the device "
        f"and the kernel's log"
    )


def _stopped() -> UnavailableError:
    return UnavailableError("expected a running issuer, got one that has stopped; connect again")
