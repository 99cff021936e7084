"""Freshness: a store that was put back to an older state is refused (docs/spec/freshness.md).

An *anchor* is a memory that the host cannot turn back. A store's root record holds the value of its
anchor that it goes with. To advance is to commit a root with the next value, and then to have the
anchor take that value. So after a crash the root is at the anchor's value or one ahead of it; a
store that was put back is behind, once the anchor has moved on.

A value alone would not tell two copies apart that both went from one value to the next. So each
advance also draws a nonce: the *branch* is the hash of the branch before and that nonce. The store
has it in a file, the anchor remembers it, and they have to agree.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from avow.errors import (
    AvowError,
    DamagedError,
    MalformedError,
    RolledBackError,
    UnavailableError,
)
from avow.sealing.lateness import Lateness, Notice

# Everything that is counted here is a u64 in the store's format.
_COUNT_MAX: Final = 2**64 - 1
INTERVAL_S: Final = 10.0
GRACE_S: Final = 60.0
RETRY_S: Final = 1.0
BRANCH_BYTES: Final = 32
SECRET_BYTES: Final = 32
NO_BRANCH: Final = bytes(BRANCH_BYTES)
NOTE_PATH: Final = "/anchor"
# secret, value, branch before, nonce.
_NOTE: Final = struct.Struct("<32s Q 32s 32s")

Entropy = Callable[[int], bytes]


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

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def make_file(self, path: str) -> object:
        """A new, empty file."""

    def read(self, path: str) -> bytes:
        """All of a file."""

    def write(self, path: str, data: bytes) -> object:
        """From the start of a file; durable with the next commit."""


@dataclass(frozen=True, slots=True)
class Step:
    """An advance: to which value, from which branch (32 bytes), with which nonce (32 bytes)."""

    to: int
    before: bytes
    nonce: bytes

    @property
    def branch(self) -> bytes:
        """The branch (32 bytes) after it; as a TPM extends (Part 3, section 31.9)."""
        return hashlib.sha256(self.before + self.nonce).digest()


@dataclass(frozen=True, slots=True)
class Note:
    """What a store notes about its anchor, in the file `NOTE_PATH`: the secret (32 bytes) by which
    the anchor knows it, and the newest step."""

    secret: bytes
    step: Step

    def encoded(self) -> bytes:
        """The file's content."""
        return _NOTE.pack(self.secret, self.step.to, self.step.before, self.step.nonce)

    def branch_at(self, anchor: int) -> bytes:
        """The branch of a root with the value `anchor`; empty when they do not belong together."""
        if self.step.to == anchor:
            return self.step.branch
        # Noted and not yet taken: somebody committed, or the power went, in between.
        return self.step.before if self.step.to == anchor + 1 else b""


def read_note(store: AnchoredStore, entropy: Entropy = os.urandom) -> Note:
    """The store's note; a store that has none gets one, durable with the next commit.

    Raises `DamagedError`.
    """
    if not store.exists(NOTE_PATH):
        note = Note(entropy(SECRET_BYTES), Step(0, NO_BRANCH, NO_BRANCH))
        store.make_file(NOTE_PATH)
        store.write(NOTE_PATH, note.encoded())
        return note
    content = store.read(NOTE_PATH)
    if len(content) != _NOTE.size:
        raise DamagedError(
            f"expected {_NOTE.size} bytes in {NOTE_PATH} of the store, got {len(content)}; "
            "restore that file, as the store cannot use its anchor without it"
        )
    secret, to, before, nonce = _NOTE.unpack(content)
    return Note(secret, Step(to, before, nonce))


@dataclass(frozen=True, slots=True)
class Remembered:
    """What an anchor remembers of a store: its value and branch, and where it can, the commit."""

    anchor: int
    branch: bytes
    sequence: int = 0
    digest: bytes = b""


class Anchor(Protocol):
    """A memory of one store that the host cannot turn back."""

    name: str

    def read(self) -> Remembered | None:
        """What is remembered now, None for nothing. Raises `UnavailableError` when the anchor
        does not answer and `UntrustedError` when somebody else does."""

    def begin(self) -> Remembered:
        """Makes the memory where there is none, and returns what to go on from."""

    def advance(self, step: Step, root: Root) -> None:
        """Has the anchor take `step`, which `root` holds.

        Raises `RolledBackError` when the anchor has moved on without this store. After an
        `UnavailableError` it is not known whether it happened; the next call finds out.
        """

    def accept(self, step: Step, root: Root) -> None:
        """As `advance`, also if `root` is older than what is remembered: its owner wants it so."""

    def close(self) -> None:
        """Lets go of what the anchor holds."""


class Counter(Protocol):
    """A number that only ever grows with a hash that is only ever extended, as a TPM has them."""

    def read(self) -> tuple[int, bytes] | None:
        """Number and hash (32 bytes); None when they do not exist."""

    def begin(self) -> tuple[int, bytes]:
        """Makes them where they do not exist, and returns what they are then."""

    def extend(self, nonce: bytes) -> bytes:
        """The hash becomes SHA-256(hash, nonce), which is returned."""

    def increment(self) -> int:
        """Counts one, and returns the new number."""

    def close(self) -> None:
        """Lets go of it."""


class CounterAnchor:
    """An anchor that is a counter. First it extends, then it counts; both for each step."""

    def __init__(self, counter: Counter, name: str) -> None:
        self._counter = counter
        self.name = name

    def read(self) -> Remembered | None:
        """See `Anchor`."""
        found = self._counter.read()
        return None if found is None else Remembered(*found)

    def begin(self) -> Remembered:
        """See `Anchor`."""
        return self.read() or Remembered(*self._counter.begin())

    def advance(self, step: Step, root: Root) -> None:
        """See `Anchor`. Never twice for one value: who else has counted is a copy of the store."""
        found = self._counter.read()
        if found == (step.to, step.branch):
            # Done, though the answer was lost: nobody else draws this step's nonce.
            return
        if found is not None and found[0] == step.to - 1:
            # After a crash the first half may be done.
            branch = found[1]
            if branch == step.before:
                branch = self._counter.extend(step.nonce)
            if branch == step.branch and self._counter.increment() == step.to:
                return
        raise RolledBackError(
            f"expected {self.name} to go from {step.to - 1} to {step.to} on this store's "
            f"branch, got {'no counter' if found is None else found[0]}; another copy of "
            "the store was changed meanwhile, or the counter is new; find out which copy "
            "is the right one"
        )

    def accept(self, step: Step, root: Root) -> None:
        """See `Anchor`. A counter needs no leave to go forwards."""
        self.advance(step, root)

    def close(self) -> None:
        """See `Anchor`."""
        self._counter.close()


def check_fresh(root: Root, note: Note, remembered: Remembered | None, name: str) -> bool:
    """True when the anchor has to be advanced to `root` first: a crash came between.

    Raises `RolledBackError` when `root` is not what the anchor `name` says is the newest.
    """
    if remembered is None:
        raise _never_anchored(root, name) if root.anchor == 0 else _forgotten(root, name)
    if root.anchor < remembered.anchor:
        raise _rolled_back(root, remembered, name)
    if root.anchor > remembered.anchor + 1:
        raise _forgotten(root, name, remembered)
    ahead = root.anchor == remembered.anchor + 1
    branches = [note.branch_at(root.anchor)]
    if ahead:
        # A counter may have the first half of the step.
        branches.append(note.step.before if note.step.to == root.anchor else b"")
    if not any(hmac.compare_digest(each, remembered.branch) for each in branches):
        raise _rolled_back(root, remembered, name)
    if not remembered.digest:
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
    fresh.begin()
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
        else:
            note = read_note(store)
            if check_fresh(root, note, anchor.read(), anchor.name):
                anchor.advance(note.step, root)
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
        entropy: Entropy = os.urandom,
    ) -> None:
        """See `open_fresh`, which makes it."""
        self._store = store
        self._anchor = anchor
        self._interval_s = interval_s
        self._clock = clock
        self._entropy = entropy
        self._lock = threading.Lock()
        self._behind: Step | None = None
        self._lateness = Lateness("" if anchor is None else anchor.name, clock)
        self._anchored_sequence = 0
        self._advanced_at_s = clock()

    @property
    def every_commit(self) -> bool:
        """True when each commit has to go through `commit` here."""
        return self._anchor is not None and self._interval_s == 0

    def commit(self) -> Root:
        """A commit of the store; with `every_commit`, one that the anchor knows when this returns.

        An anchor that cannot be reached is tried again for `GRACE_S`. Raises what the store's
        commit and `Anchor.advance` raise.
        """
        if not self.every_commit:
            return self._store.commit()
        until_s = self._clock() + GRACE_S
        while True:
            try:
                self.advance()
            except UnavailableError as error:
                self._lateness.failed(error, GRACE_S)
                if self._clock() >= until_s:
                    raise
                threading.Event().wait(RETRY_S)
            else:
                return self._store.root

    def keep_up(self) -> None:
        """With `every_commit`: when this returns, the anchor knows all that others, such as a
        program, have committed by now. Raises as `commit`."""
        if self._is_behind():
            self.commit()

    def advance(self) -> None:
        """Commits with the anchor's next value, then has the anchor take it.

        When it raises `UnavailableError`, all is as after a crash at that place: to call it again
        goes on from there.
        """
        with self._lock:
            if self._anchor is None:
                self._store.commit()
                return
            step = self._behind
            if step is None:
                value = self._store.root.anchor
                note = read_note(self._store)
                step = self._commit(note, Remembered(value, note.branch_at(value)))
            root = self._store.root
            self._anchor.advance(step, root)
            self._done(root)

    def begin(self) -> None:
        """The first advance, for `begin_fresh`."""
        with self._lock:
            if self._anchor is not None:
                step = self._commit(read_note(self._store), self._anchor.begin())
                root = self._store.root
                self._anchor.advance(step, root)
                self._done(root)

    def accept(self) -> None:
        """Goes on from the store as it is, since its owner accepts it. For `open_fresh`."""
        with self._lock:
            if self._anchor is None:
                self._store.commit(anchor=0)
                return
            remembered = self._anchor.read() or self._anchor.begin()
            step = self._commit(read_note(self._store), remembered)
            root = self._store.root
            self._anchor.accept(step, root)
            self._done(root)

    def poll(self) -> None:
        """Advances when the interval is over and there were commits. Raises as `advance`."""
        if self._anchor is not None and self.due_in_s() <= 0:
            if self._is_behind():
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
            if self._is_behind():
                self.advance()
        finally:
            self._anchor.close()

    @contextmanager
    def in_background(
        self,
        failed: Callable[[AvowError], None],
        *,
        told: Callable[[Notice], None] = lambda notice: None,
        grace_s: float = GRACE_S,
    ) -> Iterator[None]:
        """In here a thread calls `poll` at each interval.

        An anchor that cannot be reached is tried again for `grace_s`; whatever else goes wrong, and
        that too when the time is over, is handed to `failed`, once: nothing is protected any more.
        `told` is told at once when the anchor is late, and when it is back, from any thread.
        """
        self._lateness.told = told
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
        while not stopped.wait(max(self.due_in_s(), min(period_s, RETRY_S))):
            try:
                self.poll()
            except UnavailableError as error:
                if self._lateness.failed(error, grace_s) >= grace_s:
                    failed(error)
                    return
            except AvowError as error:
                failed(error)
                return
            except BaseException as error:
                # A fault of avow's own: nothing is protected any more all the same.
                failed(
                    AvowError(
                        "expected the store's anchor to be kept up to date, got "
                        f"{error!r}; report this"
                    )
                )
                raise

    def _is_behind(self) -> bool:
        """Whether the anchor has not heard of the newest commit."""
        return self._behind is not None or self._store.root.sequence != self._anchored_sequence

    def _commit(self, note: Note, onto: Remembered) -> Step:
        """A commit that holds the next step from `onto`."""
        if onto.anchor >= _COUNT_MAX:
            raise UnavailableError(
                f"expected an anchor value below {_COUNT_MAX}, got that value; choose "
                "another anchor"
            )
        step = Step(onto.anchor + 1, onto.branch, self._entropy(BRANCH_BYTES))
        self._store.write(NOTE_PATH, Note(note.secret, step).encoded())
        self._store.commit(anchor=step.to)
        # The root is ahead of its anchor now, whatever happens. (A commit that failed may be so
        # too, but then the store does nothing more, and who opens it next compares again.)
        self._behind = step
        return step

    def _done(self, root: Root) -> None:
        self._behind = None
        self._lateness.succeeded()
        self._anchored_sequence = root.sequence
        self._advanced_at_s = self._clock()


def _check_unanchored(root: Root) -> None:
    if root.anchor != 0:
        raise RolledBackError(
            f"expected the anchor of a store that has one (its value is {root.anchor}), got "
            f"`--anchor none`, with which nobody can say whether sequence {root.sequence} "
            "is the newest; name the anchor, or give it up for good with "
            f"`--accept-rollback {root.sequence}`"
        )


def _rolled_back(root: Root, remembered: Remembered, name: str) -> RolledBackError:
    return RolledBackError(
        f"expected the store as {name} remembers it ({_described(remembered)}), got an "
        f"older or another one ({_described_root(root)}): the store was rolled back; "
        "restore its newest state, or accept the loss of everything after this one with "
        f"`--accept-rollback {root.sequence}`"
    )


def _forgotten(root: Root, name: str, remembered: Remembered | None = None) -> RolledBackError:
    return RolledBackError(
        f"expected {name} to remember the store ({_described_root(root)}), got "
        f"{_value(remembered)}: this is another anchor, or it was rolled back or cleared, "
        "so nobody can say whether the store is the newest; name the right anchor, or "
        f"accept the store as it is with `--accept-rollback {root.sequence}`"
    )


def _never_anchored(root: Root, name: str) -> RolledBackError:
    return RolledBackError(
        f"expected a store that {name} knows, got one at sequence {root.sequence} that "
        "never had an anchor: it is new to the anchor, or a copy from before it had one; "
        f"if it is the right store, start with `--accept-rollback {root.sequence}`"
    )


def _value(remembered: Remembered | None) -> str:
    return "nothing" if remembered is None else _described(remembered)


def _described(remembered: Remembered) -> str:
    if not remembered.digest:
        return f"anchor {remembered.anchor}, branch {remembered.branch.hex()[:16]}"
    return (
        f"sequence {remembered.sequence}, anchor {remembered.anchor}, root hash "
        f"{remembered.digest.hex()[:16]}, branch {remembered.branch.hex()[:16]}"
    )


def _described_root(root: Root) -> str:
    return f"sequence {root.sequence}, anchor {root.anchor}, root hash {root.digest.hex()[:16]}"
