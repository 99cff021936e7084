"""Whoever holds the disk changes a sealed store: it is noticed, and never returned as data."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from avow.errors import DamagedError, MalformedError, StorageError, WrongKeyError
from avow.sealing.store import Store
from avow.testing.lying_disk import LyingDisk
from avow.testing.simulated_disk import SimulatedDisk
from avow.testing.store_reader import SLOT_BYTES, Place, StoreReader
from avow.testing.store_simulation import KEY, Snapshot, snapshot
from tests.adversary.store_scene import CONTENT, NAME, REFUSED, contents, small_store

ROOT = Path(__file__).resolve().parents[2]


def test_each_byte_flipped_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.adversary.store_flips"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.fullmatch(r"(\d+) right, (\d+) refused, (\d+) copies reported\n", done.stdout)
    assert found is not None
    right, refused, reported = map(int, found.groups())
    slots = StoreReader(small_store(commits=1).image, KEY).root.slots
    assert 4 * SLOT_BYTES < right + refused <= slots * SLOT_BYTES
    # Two copies of the newest root record; those of the one before it may be reported too.
    assert reported >= 2 * SLOT_BYTES
    assert refused >= 5 * SLOT_BYTES


def test_damage_is_named_by_file_and_block() -> None:
    disk = small_store()
    reader = StoreReader(disk.image, KEY)
    number = reader.lookup(f"/files/{NAME}").number
    (slot,) = [slot for slot, place in reader.used.items() if place == Place(number, 0, 1)]
    disk.image[slot * SLOT_BYTES] ^= 1
    with Store.open_on(disk, KEY, read_only=True) as store:
        # Its first block is whole.
        assert store.read(f"/files/{NAME}", 0, SLOT_BYTES) == CONTENT[:SLOT_BYTES]
        with pytest.raises(DamagedError, match=r"block 1\b"):
            store.read(f"/files/{NAME}", SLOT_BYTES, 1)
        (damage,) = store.check()
        assert re.fullmatch(rf"/files/{NAME}: block 1 \(level 0\)", str(damage))


@pytest.mark.parametrize("lie", ["long", "failing", "failing size"])
def test_a_disk_that_answers_wrongly_is_refused_at_opening(lie: str) -> None:
    """More bytes than were asked for above all: nobody may write or read behind a buffer."""
    disk = LyingDisk(small_store(), random.Random(lie), rate=1.0, lies=[lie])
    for _ in range(20):
        with pytest.raises(StorageError):
            Store.open_on(disk, KEY)


def test_a_disk_that_is_said_to_be_of_another_size_gives_right_data_or_is_refused() -> None:
    honest = small_store()
    expected = contents(honest.image)
    disk = LyingDisk(honest, random.Random(1), rate=1.0, lies=["wrong size"])
    refused = 0
    for _ in range(40):
        try:
            store = Store.open_on(disk, KEY, read_only=True)
        except REFUSED:
            refused += 1
            continue
        assert snapshot(store) == expected
        store.abandon()
    assert 0 < refused < 40


@pytest.mark.parametrize(
    "lie", ["overlong", "negative", "refused", "broken", "half broken", "failing sync"]
)
def test_a_disk_that_answers_wrongly_is_refused_at_a_commit(lie: str) -> None:
    honest = small_store()
    expected = contents(honest.image)
    disk = LyingDisk(honest, random.Random(lie), rate=0.0, lies=[lie])
    store = Store.open_on(disk, KEY)
    store.write(f"/files/{NAME}", b"other")
    disk.rate = 1.0
    with pytest.raises(StorageError):
        store.commit()
    store.abandon()
    if lie != "overlong":
        # The disk did write all that it was told to, and said too much.
        assert contents(honest.image) == expected


def test_writes_that_are_cut_short_are_gone_on_with() -> None:
    honest = small_store()
    disk = LyingDisk(honest, random.Random(1), rate=1.0, lies=["shortened"])
    with Store.open_on(disk, KEY) as store:
        store.write(f"/files/{NAME}", b"other")
    assert contents(honest.image)[f"/files/{NAME}"] == b"other" + CONTENT[5:]
    assert len(disk.told) > 4


def test_swapped_and_copied_blocks_are_noticed() -> None:
    disk = small_store()
    expected = contents(disk.image)
    used = sorted(StoreReader(disk.image, KEY).used)
    for one in used:
        for other in used:
            if one == other:
                continue
            image = bytearray(disk.image)
            image[one * SLOT_BYTES : (one + 1) * SLOT_BYTES] = disk.image[
                other * SLOT_BYTES : (other + 1) * SLOT_BYTES
            ]
            with pytest.raises(DamagedError):
                assert contents(image) == expected


def test_blocks_of_an_older_commit_are_noticed() -> None:
    disk = SimulatedDisk()
    rng = random.Random(3)
    image = bytearray()
    with Store.create_on(disk, [KEY], entropy=rng.randbytes) as store:
        store.make_file("/files/a")
        for number in range(12):
            # The same block of the same file each time, so that its slot is used again.
            store.write("/files/a", bytes([number]) * SLOT_BYTES)
            store.commit()
            if number == 5:
                image = bytearray(disk.image)
    now = bytes(disk.image)
    expected = contents(now)
    replayed = 0
    for slot in StoreReader(now, KEY).used:
        at = slice(slot * SLOT_BYTES, (slot + 1) * SLOT_BYTES)
        if image[at] in (b"", now[at]):
            continue
        mixed = bytearray(now)
        mixed[at] = image[at]
        replayed += 1
        with pytest.raises(DamagedError):
            assert contents(mixed) == expected
    assert replayed >= 2


def test_blocks_of_another_store_with_the_same_key_are_noticed() -> None:
    disk = small_store()
    other = SimulatedDisk()
    # The same keys and nonces, as the worst case: all that is another one is the store id.
    rng = random.Random(7)
    drawn = rng.randbytes(96)
    with Store.create_on(other, [KEY], entropy=lambda _: b"\xee" * 16 + drawn[16:]) as store:
        store.make_file(f"/files/{NAME}")
        store.write(f"/files/{NAME}", CONTENT)
    changed = 0
    for slot in StoreReader(disk.image, KEY).used:
        at = slice(slot * SLOT_BYTES, (slot + 1) * SLOT_BYTES)
        image = bytearray(disk.image)
        image[at] = other.image[at]
        if image != disk.image:
            changed += 1
            with pytest.raises(DamagedError):
                contents(image)
    assert changed
    for copy in range(4):
        at = slice(copy * SLOT_BYTES, (copy + 1) * SLOT_BYTES)
        image = bytearray(disk.image)
        image[at] = other.image[at]
        found = _outcome(image)
        assert found is None or found == contents(disk.image)


def _outcome(image: bytearray) -> Snapshot | None:
    try:
        return contents(image)
    except REFUSED:
        return None


@pytest.mark.parametrize("copy", range(4))
def test_one_bad_copy_of_the_root_is_reported_and_repaired(copy: int) -> None:
    disk = small_store()
    expected = contents(disk.image)
    newest = StoreReader(disk.image, KEY).root.sequence % 2
    disk.image[copy * SLOT_BYTES + 2000] ^= 0x10
    with Store.open_on(disk, KEY) as store:
        assert snapshot(store) == expected
        if copy % 2 == newest:
            assert store.root.damaged_copies == 1
        for number in range(2):
            store.write("/journal/a", b"x", number) if number else store.make_file("/journal/a")
            store.commit()
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert store.root.damaged_copies == 0
    assert len(StoreReader(disk.image, KEY).records) == 4


def test_both_copies_of_the_newest_root_gone_is_the_state_before_or_refused() -> None:
    before = small_store(commits=2)
    disk = SimulatedDisk(bytes(before.image))
    with Store.open_on(disk, KEY) as store:
        store.make_file("/files/new")
    sequence = StoreReader(disk.image, KEY).root.sequence
    for copy in (sequence % 2, sequence % 2 + 2):
        disk.image[copy * SLOT_BYTES + 100] ^= 1
    with Store.open_on(disk, KEY, read_only=True) as store:
        # Older, not wrong; the anchor is what notices.
        assert store.root.sequence == sequence - 1
        assert "/files/new" not in snapshot(store)


@pytest.mark.parametrize("at", [100, 500, 700, 1000, 1760, 3000, 4095])
def test_no_root_record_that_opens_is_damage_and_not_another_key(at: int) -> None:
    """In the key's slot, in an empty one, in the keyring, its nonce, the body's nonce, the body."""
    disk = small_store()
    for copy in range(4):
        disk.image[copy * SLOT_BYTES + at] ^= 1
    with pytest.raises(DamagedError):
        contents(disk.image)


def test_every_shorter_container_is_refused() -> None:
    disk = small_store()
    expected = contents(disk.image)
    end = (max(StoreReader(disk.image, KEY).used) + 1) * SLOT_BYTES
    for size in [*range(0, end, 1024), end - 1]:
        # At once, not when a block that is not there is read.
        with pytest.raises(REFUSED):
            Store.open_on(SimulatedDisk(bytes(disk.image[:size])), KEY, read_only=True)
    assert contents(disk.image[:end]) == expected
    assert contents(disk.image + b"what a host appends" * 1000) == expected


@pytest.mark.parametrize(
    "image",
    [b"", b"x", bytes(4 * SLOT_BYTES), bytes(100_000), b"AVOWSTOR" * 20_000, b"\xff" * 65536],
    ids=["empty", "byte", "zeros", "more zeros", "magic", "ones"],
)
def test_other_files_are_no_stores(image: bytes) -> None:
    with pytest.raises((MalformedError, DamagedError, WrongKeyError)):
        contents(image)


def test_random_containers_are_no_stores() -> None:
    rng = random.Random(11)
    whole = small_store().image
    for _ in range(300):
        image = bytearray(whole)
        for _ in range(rng.randrange(1, 30)):
            at = rng.randrange(len(image))
            piece = rng.randbytes(rng.choice((1, 8, 512, 4096)))
            image[at : at + len(piece)] = piece
        found = _outcome(image)
        assert found is None or found == contents(whole)


def test_another_key_is_refused() -> None:
    disk = small_store()
    for other in (bytes(32), b"\xff" * 32, KEY[::-1], KEY[:-1] + b"\0"):
        with pytest.raises(WrongKeyError):
            Store.open_on(disk, other, read_only=True)


def test_names_sizes_times_and_contents_are_not_in_the_container() -> None:
    disk = SimulatedDisk()
    rng = random.Random(9)
    when_ns = 1_722_333_444_555_666_777
    size = 123_457
    words = [f"secret-name-{number}-é" for number in range(40)]
    with Store.create_on(disk, [KEY], entropy=rng.randbytes, clock_ns=lambda: when_ns) as store:
        for number, word in enumerate(words):
            store.make_directory(f"/files/{word}")
            store.make_file(f"/files/{word}/{word}")
            store.write(f"/files/{word}/{word}", word.encode() * number)
        store.make_file("/files/large")
        store.write("/files/large", b"A" * size)
        store.commit()
        store.remove("/files/large")
    written = b"".join(getattr(event, "data", b"") for event in disk.log)
    for word in [*words, "files", "journal", "cache", "large", "secret-name"]:
        assert word.encode() not in written
    assert b"A" * 8 not in written
    assert when_ns.to_bytes(8, "little") not in written
    assert size.to_bytes(8, "little") not in written
    assert KEY not in written
    # Behind the plain header of a root record nothing compresses: each byte value is as frequent.
    image = bytes(disk.image)
    used = StoreReader(image, KEY).used
    blocks = b"".join(image[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] for slot in used)
    expected = len(blocks) / 256
    chi_square = sum((blocks.count(value) - expected) ** 2 / expected for value in range(256))
    assert 150 < chi_square < 400
