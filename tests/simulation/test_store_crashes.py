"""A crash or a power failure anywhere in a commit leaves the state before it or after it, whole."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from avow.errors import AvowError, StorageError
from avow.sealing.store import Store
from avow.testing.simulated_disk import (
    SECTOR_BYTES,
    Event,
    Resize,
    SimulatedDisk,
    Sync,
    Write,
    cuts,
    reordered,
)
from avow.testing.store_simulation import KEY, Snapshot, snapshot

SEED = 20260101
# Whole contents are compared after every so many cuts, the root hash after each.
CONTENTS_EVERY = 17
# The share of the bytes of a commit that are cut at, besides those around the ends of sectors.
# AVOW_CUT_SHARE=1 takes all of them, which is some minutes.
CUT_SHARE = float(os.environ.get("AVOW_CUT_SHARE", "0.02"))
REORDERED_IMAGES = 400


class ImageDisk:
    """An image that is looked at and never changed."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.image = image

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.image[offset : offset + length])

    def write(self, offset: int, data: bytes) -> int:
        raise AssertionError("a read-only opening wrote")

    def sync(self) -> None:
        raise AssertionError("a read-only opening synced")

    def size(self) -> int:
        return len(self.image)

    def resize(self, size: int) -> None:
        raise AssertionError("a read-only opening resized")


@dataclass
class Committed:
    """One commit: the image before it, what it wrote, and the states on both sides."""

    base: bytes
    log: list[Event]
    before: tuple[int, bytes, Snapshot]
    after: tuple[int, bytes, Snapshot]
    in_steps: bool


@dataclass
class Recorder:
    """A small store whose commits are recorded."""

    disk: SimulatedDisk = field(default_factory=SimulatedDisk)
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))

    def commits(
        self, *changes: Callable[[Store], None], anchor: int | None = None
    ) -> list[Committed]:
        found: list[Committed] = []
        store = Store.create_on(self.disk, [KEY], entropy=self.rng.randbytes, clock_ns=lambda: 1)
        before = (store.root.sequence, store.root.digest, snapshot(store))
        for change in changes:
            base, start = bytes(self.disk.image), len(self.disk.log)
            change(store)
            root = store.commit(anchor=anchor)
            after = (root.sequence, root.digest, snapshot(store))
            log = self.disk.log[start:]
            found.append(Committed(base, log, before, after, change in IN_STEPS))
            before = after
        store.abandon()
        return found


def first(store: Store) -> None:
    store.make_file("/files/a")
    store.write("/files/a", b"first" * 30)
    store.make_file("/files/b")
    store.write("/files/b", b"kept" * 1100)


def second(store: Store) -> None:
    store.write("/files/a", b"SECOND" * 1000, 20)
    store.rename("/files/b", "/journal/b")


def third(store: Store) -> None:
    store.remove("/files/a")
    store.make_directory("/files/d")
    store.make_file("/files/d/c")
    store.truncate("/journal/b", 10)


def rotated(store: Store) -> None:
    store.write("/journal/b", b"rotated")
    store.rotate([KEY])


def full_of_holes(store: Store) -> None:
    """Blocks at the end, and room before them."""
    store.make_file("/cache/large")
    store.write("/cache/large", bytes(range(256)) * 200)
    store.make_file("/cache/last")
    store.write("/cache/last", b"last" * 3000)
    store.commit()
    store.remove("/cache/large")


def compacted(store: Store) -> None:
    store.compact()


def rewritten(store: Store) -> None:
    store.compact(rewrite=True)


CHANGES = (first, second, third, rotated, full_of_holes, compacted, rewritten)
# In the middle of this one the contents are neither those before nor those after.
IN_STEPS = (full_of_holes,)


@pytest.fixture(scope="module")
def commits() -> list[Committed]:
    return Recorder().commits(*CHANGES)


Found = tuple[int, bytes, Snapshot | None]


def identity(image: bytes | bytearray, contents: bool = True) -> Found:
    """What an image holds: sequence, root hash and, when they are asked for, all contents."""
    store = Store.open_on(ImageDisk(image), KEY, read_only=True)
    try:
        root = store.root
        return root.sequence, root.digest, snapshot(store) if contents else None
    finally:
        store.abandon()


def is_whole(found: Found, commit: Committed) -> bool:
    """The state before or after, and nothing else.

    Rotation and compaction are several commits: those in the middle have the contents of the last.
    """
    before, after = commit.before, commit.after
    sequence, digest, contents = found
    side = before if sequence == before[0] else after
    right = contents is None or contents == side[2]
    if sequence in (before[0], after[0]):
        return right and digest == side[1]
    return (right or commit.in_steps) and before[0] < sequence < after[0]


def check_cuts(commit: Committed, wanted: Callable[[Write, int], bool] | None) -> int:
    """Dies at each wanted byte; returns how many openings that were."""
    sequence = commit.before[0]
    count = 0
    for event, done, image in cuts(commit.base, commit.log, wanted=wanted):
        found = identity(image, contents=count % CONTENTS_EVERY == 0)
        where = f"cut after byte {done} of event {event}"
        assert is_whole(found, commit), where
        # What is there once stays.
        assert found[0] >= sequence, where
        sequence = found[0]
        count += 1
    assert identity(image) == commit.after
    return count


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=lambda number: CHANGES[number].__name__)
def test_the_bytes_of_a_commit_are_places_to_die(commits: list[Committed], number: int) -> None:
    """Some of all bytes, by a seed, and those around the ends of sectors."""
    rng = random.Random(f"{SEED} {number}")

    def wanted(write: Write, end: int) -> bool:
        return (write.offset + end) % SECTOR_BYTES in (0, 1, 511) or rng.random() < CUT_SHARE

    assert check_cuts(commits[number], wanted) > 300


def test_every_byte_of_a_small_commit_is_a_place_to_die() -> None:
    """Only the root records change here: two copies, each byte of both."""
    (commit,) = Recorder().commits(lambda _: None, anchor=7)
    assert check_cuts(commit, None) > 2 * 4096


@pytest.mark.parametrize("number", range(len(CHANGES)), ids=lambda number: CHANGES[number].__name__)
def test_any_order_of_writes_between_syncs(commits: list[Committed], number: int) -> None:
    commit = commits[number]
    rng = random.Random(SEED + number)
    seen = set()
    for _ in range(REORDERED_IMAGES):
        until = rng.randrange(len(commit.log) + 1)
        found = identity(reordered(commit.base, commit.log, rng, until=until))
        assert is_whole(found, commit), f"events until {until}"
        seen.add(found[0])
    assert seen >= {commit.before[0], commit.after[0]}


def test_a_commit_that_returned_is_there(commits: list[Committed]) -> None:
    """Its last event is a sync: nothing of it can be lost any more."""
    rng = random.Random(SEED)
    for commit in commits:
        last_sync = max(at for at, event in enumerate(commit.log) if isinstance(event, Sync))
        for _ in range(20):
            image = reordered(commit.base, commit.log, rng)
            assert identity(image) == commit.after
        # What comes behind the last sync may only make the container shorter.
        assert not any(isinstance(event, Write) for event in commit.log[last_sync:])


def test_compaction_moves_and_cuts_off(commits: list[Committed]) -> None:
    """What the tests of its cuts are about is there: blocks that moved, and a shorter container."""
    commit = commits[CHANGES.index(compacted)]
    assert sum(isinstance(event, Write) for event in commit.log) > 6
    assert any(isinstance(event, Resize) for event in commit.log)
    assert len(commits[CHANGES.index(rewritten)].base) < len(commit.base) / 2


class FailingDisk(SimulatedDisk):
    """One operation, by its number, fails, and all after it when the disk is gone for good."""

    operations = 0
    fails_at = -1
    stays_broken = False

    def count(self) -> None:
        self.operations += 1
        now = self.operations > self.fails_at if self.stays_broken else False
        if self.fails_at >= 0 and (now or self.operations - 1 == self.fails_at):
            raise OSError(errno.EIO, "the operation that fails")

    def read(self, offset: int, length: int) -> bytes:
        self.count()
        return super().read(offset, length)

    def write(self, offset: int, data: bytes) -> int:
        self.count()
        return super().write(offset, data)

    def sync(self) -> None:
        self.count()
        super().sync()

    def size(self) -> int:
        self.count()
        return super().size()

    def resize(self, size: int) -> None:
        self.count()
        super().resize(size)


@pytest.mark.parametrize("stays_broken", [False, True])
@pytest.mark.parametrize("number", range(len(CHANGES)), ids=lambda number: CHANGES[number].__name__)
def test_any_one_operation_may_fail(
    commits: list[Committed], number: int, stays_broken: bool
) -> None:
    commit, failures = commits[number], 0
    for fails_at in itertools.count():
        disk = FailingDisk(commit.base)
        disk.fails_at, disk.stays_broken = fails_at, stays_broken
        store: Store | None = None
        try:
            store = Store.open_on(disk, KEY)
            CHANGES[number](store)
            store.commit()
        except StorageError:
            failures += 1
        finally:
            if store is not None:
                store.abandon()
        sequence, _, contents = identity(disk.image)
        if disk.operations <= fails_at:
            # Nothing failed any more: the end of it was reached.
            assert contents == commit.after[2]
            break
        where = f"operation {fails_at}"
        assert commit.before[0] <= sequence <= commit.after[0], where
        assert commit.in_steps or contents in (commit.before[2], commit.after[2]), where
    assert failures == fails_at > 5


def test_a_write_that_fails_in_its_middle_breaks_the_store() -> None:
    """Half of it is in memory, so nothing more may be committed."""
    disk = FailingDisk()
    # More blocks of pointers than the smallest cache holds.
    span, count = 85 * 4096, 600
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a")
        for number in range(count):
            store.write("/files/a", b"old", number * span)
    store = Store.open_on(disk, KEY, cache_bytes=0)
    assert store.read("/files/a", 0, 3) == b"old"
    disk.fails_at = disk.operations
    with pytest.raises(StorageError, match="failed"):
        # The second block lies below pointers that have to be read.
        store.write("/files/a", bytes(range(256)) * 32, span - 4096)
    for refused in (store.commit, lambda: store.read("/files/a", 0, 3)):
        with pytest.raises(StorageError, match="has stopped"):
            refused()
    store.abandon()


def test_work_goes_on_after_every_crash(commits: list[Committed]) -> None:
    """The store that a crash left is one that takes the next commit, and a crash in that one."""
    rng = random.Random(SEED)
    for commit in commits:
        for _ in range(12):
            until = rng.randrange(len(commit.log) + 1)
            disk = SimulatedDisk(bytes(reordered(commit.base, commit.log, rng, until=until)))
            with Store.open_on(disk, KEY, entropy=rng.randbytes) as store:
                before = snapshot(store)
                assert commit.in_steps or before in (commit.before[2], commit.after[2])
                path = "/cache/next"
                store.make_file(path)
                store.write(path, b"next" * 2000)
            after = {**before, path: b"next" * 2000}
            found = identity(reordered(disk.base, disk.log, rng, until=rng.randrange(9)))
            assert found[2] in (before, after)
            assert identity(disk.image)[2] == after


def test_the_sync_before_the_root_is_needed(commits: list[Committed]) -> None:
    """The images are bad enough: without the sync in the middle, they find a broken commit."""
    commit = commits[1]
    middle = next(at for at, event in enumerate(commit.log) if isinstance(event, Sync))
    log = commit.log[:middle] + commit.log[middle + 1 :]
    rng = random.Random(SEED)
    outcomes = set()
    for _ in range(REORDERED_IMAGES):
        image = reordered(commit.base, log, rng, until=len(log) - 1)
        outcomes.add(_outcome(image, commit))
    assert "broken" in outcomes


def _outcome(image: bytearray, commit: Committed) -> str:
    try:
        found = identity(image)
    except AvowError:
        return "broken"
    return "whole" if is_whole(found, commit) else "wrong"
