"""What has the right tags and is wrong all the same is damage: never a crash, a loop or a guess."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest

from avow.errors import AvowError, DamagedError, MalformedError
from avow.sealing.library import Damage as NativeDamage
from avow.sealing.store import Store
from avow.testing.simulated_disk import SimulatedDisk
from avow.testing.store_forger import StoreForger
from avow.testing.store_reader import Place

KEY = bytes(range(32))
SLOT = 4096
SEEDS = 150


def made() -> bytes:
    disk = SimulatedDisk()
    with Store.create_on(disk, [KEY], clock_ns=lambda: 7) as store:
        store.make_directory("/files/d")
        for number in range(40):
            store.make_file(f"/files/d/{number}")
        store.make_file("/files/tall")
        store.write("/files/tall", b"first")
        store.write("/files/tall", b"last" * 2000, 86 * SLOT)
        store.make_file("/files/small")
        store.write("/files/small", b"small" * 1000)
    return bytes(disk.image)


STORE = made()


def use(image: bytes) -> None:
    """All that anybody does with a store."""
    with Store.open_on(SimulatedDisk(image), KEY) as store:
        with contextlib.suppress(AvowError):
            list(store.check())
        for path in ("/", "/files", "/files/d", "/journal"):
            with contextlib.suppress(AvowError):
                store.listdir(path)
        for path in ("/files/tall", "/files/small", "/files/d/7"):
            with contextlib.suppress(AvowError):
                store.read(path, 0, 1 << 20)
            with contextlib.suppress(AvowError):
                store.write(path, b"more", 85 * SLOT - 2)
            with contextlib.suppress(AvowError):
                store.truncate(path, 10)
            with contextlib.suppress(AvowError):
                store.rename(path, path + "x")
        for path in ("/files/d/1", "/files/d", "/files/smallx"):
            with contextlib.suppress(AvowError):
                store.remove(path)
        with contextlib.suppress(AvowError):
            store.rename("/files/d", "/cache/d")
        with contextlib.suppress(AvowError):
            store.compact(rewrite=True)


def places() -> list[Place]:
    seen: list[Place] = []

    def note(place: Place, block: bytes) -> bytes:
        seen.append(place)
        return block

    assert StoreForger(STORE, KEY).forge(note) == STORE
    return seen


PLACES = places()


def test_the_forger_reaches_every_kind_of_block() -> None:
    assert {(min(place.inode, 6), place.level) for place in PLACES} >= {(0, 0), (0, 1), (6, 1)}
    use(STORE)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_forged_blocks(seed: int) -> None:
    """A few bytes of one block, at places where fields lie; the test is that this returns."""
    chance = random.Random(seed)
    target = chance.choice([place for place in PLACES if chance.random() < 0.5 or place.inode == 0])

    def change(place: Place, block: bytes) -> bytes:
        if place != target:
            return block
        forged = bytearray(block)
        for _ in range(chance.randrange(1, 4)):
            used = [at for at in range(len(forged)) if forged[at]] or [0]
            at = min(len(forged) - 8, chance.choice(used) & -8)
            value = chance.choice([0, 1, 2, 3, 255, 1 << 16, 1 << 40, (1 << 63) + 5, (1 << 64) - 1])
            if chance.random() < 0.5:
                forged[at + chance.randrange(8)] = value & 255
            else:
                forged[at : at + 8] = struct.pack("<Q", value)
        return bytes(forged)

    with contextlib.suppress(AvowError):
        use(StoreForger(STORE, KEY).forge(change))


@pytest.mark.parametrize("at", [0, 8, 16, 24, 25, 32, 38, 128])
@pytest.mark.parametrize("value", [0, 1, 255, 1 << 20, 1 << 47, (1 << 64) - 1])
def test_forged_bodies(at: int, value: int) -> None:
    def change(body: bytes) -> bytes:
        return body[:at] + struct.pack("<Q", value) + body[at + 8 :]

    with contextlib.suppress(AvowError):
        use(StoreForger(STORE, KEY).forge(lambda _, block: block, change))


def record(number: int, offset: int, raw: bytes) -> bytes:
    """The container with some bytes of an inode's record changed."""
    return record_in(STORE, number, offset, raw)


def record_in(image: bytes, number: int, offset: int, raw: bytes) -> bytes:

    def change(place: Place, block: bytes) -> bytes:
        if (place.inode, place.level, place.index) != (0, 0, number // 32):
            return block
        at = number % 32 * 128 + offset
        return block[:at] + raw + block[at + len(raw) :]

    return StoreForger(image, KEY).forge(change)


@pytest.mark.parametrize(
    ("offset", "raw"),
    [
        (0, b"\x04"),
        (0, b"\x00"),
        (0, b"\x01"),
        (1, b"\x00"),
        (1, b"\x05"),
        (2, b"\x01"),
        (4, struct.pack("<I", 0)),
        (4, struct.pack("<I", 2)),
        (8, struct.pack("<Q", 4097)),
        (8, struct.pack("<Q", 1 << 63)),
        (40, struct.pack("<Q", 0)),
        (48, b"\x03"),
        (48, b"\xff\xff\xff"),
        (54, b"\x09"),
        (127, b"\x01"),
    ],
)
def test_a_forged_record_is_damage(offset: int, raw: bytes) -> None:
    """Of the root directory, which is needed for everything."""
    with pytest.raises(DamagedError):
        Store.open_on(SimulatedDisk(record(1, offset, raw)), KEY).abandon()


def test_two_pointers_to_one_slot_are_damage() -> None:
    pointers: list[bytes] = []

    def change(place: Place, block: bytes) -> bytes:
        if place.level == 1 and place.inode != 0:
            pointers.append(block[:48])
            return block[:48] * 2 + block[96:]
        return block

    forged = StoreForger(STORE, KEY).forge(change)
    assert pointers
    with pytest.raises(DamagedError, match="tall"):
        Store.open_on(SimulatedDisk(forged), KEY).abandon()


def test_a_loop_of_directories_is_damage() -> None:
    """/files is made its own parent's child: renaming below it must come to an end."""
    with Store.open_on(SimulatedDisk(STORE), KEY, read_only=True) as store:
        outer, inner = store.stat("/files").inode, store.stat("/files/d").inode
    forged = record(outer, 40, struct.pack("<Q", inner))
    with Store.open_on(SimulatedDisk(forged), KEY) as store:
        with pytest.raises(DamagedError):
            store.rename("/cache", "/files/d/cache")
        assert any("/" in str(damage) for damage in store.check())


def test_no_directory_goes_below_itself() -> None:
    """Nobody would find it any more."""
    with Store.open_on(SimulatedDisk(STORE), KEY) as store:
        store.make_directory("/files/d/e")
        for below in ("/files/d/f", "/files/d/e/f", "/files/d/e"):
            with pytest.raises(MalformedError, match="a store cannot do this"):
                store.rename("/files/d", below)
        store.rename("/files/d/e", "/files/e")
        store.rename("/files/d", "/files/e/d")
        assert list(store.check()) == []


def test_directories_that_are_found_on_many_ways_come_to_an_end() -> None:
    """Every name in the root directory is made one of the root directory itself."""

    def change(place: Place, block: bytes) -> bytes:
        if place != Place(1, 0, 0):
            return block
        forged, at = bytearray(block), 0
        while at < SLOT:
            if any(forged[at : at + 8]):
                forged[at : at + 8] = struct.pack("<Q", 1)
            at += struct.unpack_from("<H", forged, at + 8)[0]
        return bytes(forged)

    forged = StoreForger(STORE, KEY).forge(change)
    with Store.open_on(SimulatedDisk(forged), KEY, read_only=True) as store:
        assert "/: block 0 (level 0)" in [str(damage) for damage in store.check()]
        with pytest.raises(DamagedError):
            store.listdir("/files")
        inner = NativeDamage(inode=2, level=0, index=0)
        assert str(store._damage(inner)) == "inode 2: block 0 (level 0)"


def test_a_directory_has_no_holes_however_large_it_says_it_is() -> None:
    """Whoever looks through all its blocks would not come to an end."""
    with Store.open_on(SimulatedDisk(STORE), KEY, read_only=True) as store:
        empty = store.stat("/journal").inode
    forged = record(empty, 8, struct.pack("<Q", 85**6 * SLOT))
    forged = record_in(forged, empty, 1, b"\x07")
    with pytest.raises(DamagedError):
        Store.open_on(SimulatedDisk(forged), KEY).abandon()


def test_a_hole_in_a_directory_is_damage() -> None:
    """Below its first block of pointers, too."""
    disk = SimulatedDisk(STORE)
    with Store.open_on(disk, KEY) as store:
        inode = store.stat("/files/d").inode
        for number in range(60):
            store.make_file(f"/files/d/{'n' * 200}{number}")

    def change(place: Place, block: bytes) -> bytes:
        if (place.inode, place.level) != (inode, 1):
            return block
        return block[:48] + bytes(48) + block[96:]

    forged = StoreForger(bytes(disk.image), KEY).forge(change)
    with pytest.raises(DamagedError, match=r"/files/d: block 0 \(level 1\)"):
        Store.open_on(SimulatedDisk(forged), KEY).abandon()


def test_the_last_sequence_there_is_is_damage() -> None:
    """The next commit would have none."""

    def forged(sequence: int) -> SimulatedDisk:
        image = bytearray(StoreForger(STORE, KEY).forge(lambda _, block: block, sequence=sequence))
        for other in ((sequence + 1) % 2, 2 + (sequence + 1) % 2):
            image[other * SLOT : (other + 1) * SLOT] = bytes(SLOT)
        return SimulatedDisk(bytes(image))

    last = (1 << 64) - 1
    with pytest.raises(DamagedError, match="root record"):
        Store.open_on(forged(last), KEY).abandon()
    store = Store.open_on(forged(last - 1), KEY, read_only=True)
    assert store.root.sequence == last - 1
    store.abandon()
