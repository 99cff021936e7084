"""Freshness: a store that was put back to an older state is refused (docs/spec/freshness.md).

An *anchor* is a memory that the host cannot turn back. A store's root record holds the value of its
anchor that it goes with. To advance is to commit a root with the next value, and then to have the
anchor take that value. So after a crash the root is at the anchor's value or one ahead of it; a
store that was put back is behind, once the anchor has moved on.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from avow.errors import AvowError, MalformedError, RolledBackError, UnavailableError

# Everything that is counted here is a u64 in the store's format.
_COUNT_MAX: Final = 2**64 - 1
INTERVAL_S: Final = 10.0
GRACE_S: Final = 60.0


class Root(Protocol):
    """What an anchor has to know of a store's newest commit; `avow.sealing.store.Root` is one."""

    @property
    def sequence(self) -> int:
        """The number of the commit."""

    @property
    def digest(self) -> bytes:
        """The root hash (32 bytes)."""

    @property
    def anchor(self) -> int:
        """The anchor's value that it goes with; 0 for a store that never had an anchor."""


class AnchoredStore(Protocol):
    """What is needed of `avow.sealing.store.Store`."""

    @property
    def root(self) -> Root:
        """The newest commit."""

    def commit(self, *, anchor: int | None = None) -> Root:
        """A commit, with another anchor value unless that is None."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an anchor remembers of a store. A counter remembers no commit, only its value."""

    anchor: int
    sequence: int | None = None
    digest: bytes | None = None


class Anchor(Protocol):
    """A memory of one store that the host cannot turn back."""

    name: str

    def read(self) -> Remembered | None:
        """What is remembered now, None for nothing. Raises `UnavailableError` when the anchor
        does not answer and `UntrustedError` when somebody else does."""

    def begin(self) -> int:
        """Makes the memory where there is none, and returns the value to go on from."""

    def advance(self, to: int, root: Root) -> None:
        """Has the anchor take the value `to`, which `root` holds.

        Raises `RolledBackError` when the anchor has moved on without this store. After an
        `UnavailableError` it is not known whether it happened; the next call finds out.
        """

    def accept(self, root: Root) -> None:
        """As `advance` to `root.anchor`, also if `root` is older than what is remembered: its
        owner wants it so."""

    def close(self) -> None:
        """Lets go of what the anchor holds."""


class Counter(Protocol):
    """A number that only ever grows, such as an NV counter of a TPM."""

    def read(self) -> int | None:
        """Its value; None when it does not exist."""

    def begin(self) -> int:
        """Makes it where it does not exist, and returns its first value."""

    def increment(self) -> int:
        """Counts one, and returns the new value."""

    def close(self) -> None:
        """Lets go of it."""


class CounterAnchor:
    """An anchor that is a counter. It cannot say whose root it counted."""

    def __init__(self, counter: Counter, name: str) -> None:
        self._counter = counter
        self.name = name

    def read(self) -> Remembered | None:
        """See `Anchor`."""
        value = self._counter.read()
        return None if value is None else Remembered(value)

    def begin(self) -> int:
        """See `Anchor`."""
        value = self._counter.read()
        return self._counter.begin() if value is None else value

    def advance(self, to: int, root: Root) -> None:
        """See `Anchor`. Never twice for one value: who else has counted is a copy of the store."""
        value = self._counter.read()
        if value is not None and value == to - 1:
            value = self._counter.increment()
            if value == to:
                return
        raise RolledBackError(
            f"expected {self.name} to go from {to - 1} to {to}, got "
            f"{'no counter' if value is None else value}; another copy of this store has gone on, "
            f"or the counter was made anew: find out which copy is the right one"
        )

    def accept(self, root: Root) -> None:
        """See `Anchor`. A counter needs no leave to go forwards."""
        self.advance(root.anchor, root)

    def close(self) -> None:
        """See `Anchor`."""
        self._counter.close()


def check_fresh(root: Root, remembered: Remembered | None, name: str) -> bool:
    """True when the anchor has to be advanced to `root` first: a crash came between.

    Raises `RolledBackError` when `root` is not what the anchor `name` says is the newest.
    """
    if remembered is None:
        if root.anchor == 1:
            # A crash between the first commit and the first advance. A counter begins higher.
            return True
        raise _never_anchored(root, name) if root.anchor == 0 else _forgotten(root, name)
    if root.anchor < remembered.anchor:
        raise _rolled_back(root, remembered, name)
    if root.anchor > remembered.anchor + 1:
        raise _forgotten(root, name, remembered)
    ahead = root.anchor == remembered.anchor + 1
    if remembered.sequence is None or remembered.digest is None:
        return ahead
    if root.sequence < remembered.sequence or (ahead and root.sequence == remembered.sequence):
        raise _rolled_back(root, remembered, name)
    same = hmac.compare_digest(root.digest, remembered.digest)
    if root.sequence == remembered.sequence and not same:
        raise _rolled_back(root, remembered, name)
    return ahead


def begin_fresh(
    store: AnchoredStore,
    anchor: Anchor | None,
    *,
    interval_s: float = INTERVAL_S,
    clock: Callable[[], float] = time.monotonic,
) -> Freshness:
    """For a store that was made by this very process: its first value, then as `open_fresh`.

    Raises as `Anchor` does, and `RolledBackError` when the anchor knows this store already.
    """
    fresh = Freshness(store, anchor, interval_s=interval_s, clock=clock)
    if anchor is None:
        return fresh
    remembered = anchor.read()
    if remembered is not None or store.root.anchor != 0:
        raise RolledBackError(
            f"expected a new store and nothing about it at {anchor.name}, got the value "
            f"{store.root.anchor} in the store and {_value(remembered)} there; open the store that "
            f"belongs to it, or choose another anchor"
        )
    fresh.advance_to(anchor.begin() + 1)
    return fresh


def open_fresh(
    store: AnchoredStore,
    anchor: Anchor | None,
    *,
    accept_rollback: int | None = None,
    interval_s: float = INTERVAL_S,
    clock: Callable[[], float] = time.monotonic,
) -> Freshness:
    """Compares the store with its anchor, and advances both.

    `accept_rollback` is the sequence of the root that the owner accepts although the anchor does
    not know it as the newest; it has to be the one that is found, and to be needed. `interval_s` is
    the time between two advances while there are commits; 0 for one with every commit. None for
    `anchor` is for stores without one.

    Raises `RolledBackError` when the store is older than its anchor, beside it, or was never
    anchored, `MalformedError` for an acceptance of something else, and as `Anchor` does.
    """
    fresh = Freshness(store, anchor, interval_s=interval_s, clock=clock)
    root = store.root
    try:
        if anchor is None:
            _check_unanchored(root)
        elif check_fresh(root, anchor.read(), anchor.name):
            anchor.advance(root.anchor, root)
    except RolledBackError:
        if accept_rollback != root.sequence:
            raise
        fresh.accept()
        return fresh
    if accept_rollback is not None:
        raise MalformedError(
            f"expected --accept-rollback only where a rollback is to be accepted, got "
            f"{accept_rollback} for a store at sequence {root.sequence} that its anchor knows; "
            f"leave it out"
        )
    fresh.advance()
    return fresh


class Freshness:
    """Keeps a store and its anchor together. Calls may come from any thread."""

    def __init__(
        self,
        store: AnchoredStore,
        anchor: Anchor | None,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See `open_fresh`, which makes it."""
        self._store = store
        self._anchor = anchor
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._behind = False
        self._anchored_sequence = 0
        self._advanced_at_s = clock()

    @property
    def every_commit(self) -> bool:
        """True when each commit has to go through `commit` here."""
        return self._anchor is not None and self._interval_s == 0

    def commit(self) -> Root:
        """A commit of the store; with `every_commit`, one that the anchor knows when this returns.

        Raises what the store's commit and `Anchor.advance` raise.
        """
        if not self.every_commit:
            return self._store.commit()
        self.advance()
        return self._store.root

    def advance(self) -> None:
        """Commits with the anchor's next value, then has the anchor take it.

        When it raises `UnavailableError`, all is as after a crash at that place: to call it again
        goes on from there.
        """
        self.advance_to(None)

    def advance_to(self, value: int | None) -> None:
        """As `advance`, to a certain value. For `begin_fresh`."""
        with self._lock:
            if self._anchor is None:
                self._store.commit()
                return
            if not self._behind:
                self._commit(self._store.root.anchor + 1 if value is None else value)
            root = self._store.root
            self._anchor.advance(root.anchor, root)
            self._done(root)

    def accept(self) -> None:
        """Goes on from the store as it is, since its owner accepts it. For `open_fresh`."""
        with self._lock:
            if self._anchor is None:
                self._store.commit(anchor=0)
                return
            remembered = self._anchor.read()
            value = self._anchor.begin() if remembered is None else remembered.anchor
            self._commit(value + 1)
            root = self._store.root
            self._anchor.accept(root)
            self._done(root)

    def poll(self) -> None:
        """Advances when the interval is over and there were commits. Raises as `advance`."""
        if self._anchor is not None and self.due_in_s() <= 0:
            if self._behind or self._store.root.sequence != self._anchored_sequence:
                self.advance()
            else:
                self._advanced_at_s = self._clock()

    def due_in_s(self) -> float:
        """Seconds until `poll` has something to do, if there are commits."""
        return self._advanced_at_s + self._interval_s - self._clock()

    def close(self) -> None:
        """Advances for the last time, if there were commits, and lets go of the anchor. The store
        stays open, and whatever is committed after this is not known to the anchor."""
        if self._anchor is None:
            return
        try:
            self._store.commit()
            if self._behind or self._store.root.sequence != self._anchored_sequence:
                self.advance()
        finally:
            self._anchor.close()

    @contextmanager
    def in_background(
        self, failed: Callable[[AvowError], None], *, grace_s: float = GRACE_S
    ) -> Iterator[None]:
        """In here a thread calls `poll` at each interval.

        An anchor that cannot be reached is tried again for `grace_s`; whatever else goes wrong, and
        that too when the time is over, is handed to `failed`, once: nothing is protected any more.
        """
        if self._anchor is None:
            yield
            return
        stopped = threading.Event()
        thread = threading.Thread(
            target=self._poll_until, args=(stopped, failed, grace_s), name="anchor", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _poll_until(
        self, stopped: threading.Event, failed: Callable[[AvowError], None], grace_s: float
    ) -> None:
        period_s = self._interval_s or INTERVAL_S
        failing_since_s: float | None = None
        while not stopped.wait(max(self.due_in_s(), min(period_s, 1.0))):
            try:
                self.poll()
                failing_since_s = None
            except UnavailableError as error:
                now_s = self._clock()
                failing_since_s = now_s if failing_since_s is None else failing_since_s
                if now_s - failing_since_s >= grace_s:
                    failed(error)
                    return
            except AvowError as error:
                failed(error)
                return

    def _commit(self, value: int) -> None:
        if value > _COUNT_MAX:
            raise UnavailableError(
                f"expected an anchor below {_COUNT_MAX}, got that; choose another anchor"
            )
        self._store.commit(anchor=value)
        # The root is ahead of its anchor now, whatever happens. (A commit that failed may be so
        # too, but then the store does nothing more, and who opens it next compares again.)
        self._behind = True

    def _done(self, root: Root) -> None:
        self._behind = False
        self._anchored_sequence = root.sequence
        self._advanced_at_s = self._clock()


def _check_unanchored(root: Root) -> None:
    if root.anchor != 0:
        raise RolledBackError(
            f"expected the anchor of a store that has one (its value is {root.anchor}), got "
            f"`--anchor none`: nobody can say whether sequence {root.sequence} is the newest; "
            f"name the anchor, or give it up for good with `--accept-rollback {root.sequence}`"
        )


def _rolled_back(root: Root, remembered: Remembered, name: str) -> RolledBackError:
    return RolledBackError(
        f"expected the store as {name} remembers it ({_described(remembered)}), got an older or "
        f"another one ({_described_root(root)}): it was put back; restore the newest one, or accept"
        f" that all after it is lost with `--accept-rollback {root.sequence}`"
    )


def _forgotten(root: Root, name: str, remembered: Remembered | None = None) -> RolledBackError:
    return RolledBackError(
        f"expected {name} to remember the store ({_described_root(root)}), got "
        f"{_value(remembered)}: this is another anchor, or it was put back or cleared, and nobody "
        f"can say whether the store is the newest; name the right anchor, or accept the store as "
        f"it is with `--accept-rollback {root.sequence}`"
    )


def _never_anchored(root: Root, name: str) -> RolledBackError:
    return RolledBackError(
        f"expected a store that goes with {name}, got one at sequence {root.sequence} that never "
        f"had an anchor, and nothing remembered: it is new, or a copy from before; if it is the "
        f"right one, begin with `--accept-rollback {root.sequence}`"
    )


def _value(remembered: Remembered | None) -> str:
    return "nothing" if remembered is None else _described(remembered)


def _described(remembered: Remembered) -> str:
    if remembered.sequence is None or remembered.digest is None:
        return f"anchor {remembered.anchor}"
    return (
        f"sequence {remembered.sequence}, anchor {remembered.anchor}, root hash "
        f"{remembered.digest.hex()[:16]}"
    )


def _described_root(root: Root) -> str:
    return f"sequence {root.sequence}, anchor {root.anchor}, root hash {root.digest.hex()[:16]}"
