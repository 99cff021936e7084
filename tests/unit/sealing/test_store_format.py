"""The vault writes what docs/spec/sealed-store.md says: a reader made from that page reads it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from avow.errors import DamagedError, MalformedError, WrongKeyError
from avow.sealing import library
from avow.sealing.store import Store
from avow.testing.simulated_disk import SimulatedDisk
from avow.testing.store_reader import FANOUT, SLOT_BYTES, StoreReader, root_records
from avow.testing.store_simulation import KEY, Simulation, snapshot

OTHER_KEY = b"\x01" * 32


def made(disk: SimulatedDisk, seed: int = 0) -> Store:
    rng = random.Random(seed)
    times = iter(range(1, 1 << 40))
    return Store.create_on(disk, [KEY], entropy=rng.randbytes, clock_ns=lambda: next(times))


@pytest.mark.parametrize(
    "size",
    [0, 1, 15, 4095, 4096, 4097, 12288, FANOUT * SLOT_BYTES, FANOUT * SLOT_BYTES + 1, 500_001],
)
def test_files_of_every_height_are_read(size: int) -> None:
    disk = SimulatedDisk()
    content = random.Random(size).randbytes(size)
    with made(disk) as store:
        store.make_file("/files/a")
        store.write("/files/a", content)
    reader = StoreReader(disk.image, KEY)
    inode = reader.lookup("/files/a")
    assert (inode.kind, inode.links, inode.size) == ("file", 1, size)
    assert reader.content(inode.number) == content


@pytest.mark.parametrize(
    ("offset", "height"),
    [
        (SLOT_BYTES - 1, 2),
        (FANOUT * SLOT_BYTES, 3),
        (FANOUT**2 * SLOT_BYTES + 5, 4),
        (FANOUT**3 * SLOT_BYTES - 7, 5),
        (FANOUT**5 * SLOT_BYTES + 1, 7),
    ],
)
def test_holes_cost_nothing_and_read_as_zeros(offset: int, height: int) -> None:
    disk = SimulatedDisk()
    with made(disk) as store:
        store.make_file("/files/sparse")
        store.write("/files/sparse", b"0123456789", offset)
    reader = StoreReader(disk.image, KEY)
    inode = reader.lookup("/files/sparse")
    assert (inode.size, inode.height) == (offset + 10, height)
    pieces = dict(reader.pieces(inode.number))
    first, within = divmod(offset, SLOT_BYTES)
    assert set(pieces) == {first, (offset + 9) // SLOT_BYTES}
    joined = b"".join(pieces[index] for index in sorted(pieces))
    assert joined[within : within + 10] == b"0123456789"
    assert not any(joined[:within])
    assert not any(joined[within + 10 :])
    # Two data blocks at most, the pointers above them, the directories and the table of inodes.
    assert len(reader.used) < 32


def test_made_shorter_and_longer_again_is_zero_between() -> None:
    disk = SimulatedDisk()
    with made(disk) as store:
        store.make_file("/files/a")
        store.write("/files/a", b"x" * 400_000)
        store.truncate("/files/a", 5000)
        store.commit()
        assert StoreReader(disk.image, KEY).lookup("/files/a").height == 2
        store.truncate("/files/a", 20_000)
    reader = StoreReader(disk.image, KEY)
    expected = b"x" * 5000 + bytes(15_000)
    assert reader.content(reader.lookup("/files/a").number) == expected


def test_directories_of_thousands_of_names() -> None:
    disk = SimulatedDisk()
    names = [f"{'n' * (number % 200)}{number}é" for number in range(3000)]
    with made(disk) as store:
        store.make_directory("/files/many")
        for name in names:
            store.make_file(f"/files/many/{name}")
        for name in names[::3]:
            store.remove(f"/files/many/{name}")
        for name in names[1::3]:
            store.rename(f"/files/many/{name}", f"/files/many/{name}+")
        listed = sorted(entry.name for entry in store.listdir("/files/many"))
    reader = StoreReader(disk.image, KEY)
    left = [f"{name}+" for name in names[1::3]] + names[2::3]
    assert sorted(left) == listed
    assert sorted(reader.directories[reader.lookup("/files/many").number]) == sorted(left)


@pytest.mark.parametrize("seed", range(12))
def test_random_work_is_read_alike(seed: int) -> None:
    simulation = Simulation(seed, "none")
    simulation.run(sessions=3, operations=60)
    with Store.open_on(simulation.honest, KEY, read_only=True) as store:
        found = snapshot(store)
        root = store.root
        stats = {path: store.stat(path) for path in found}
    reader = StoreReader(simulation.honest.image, KEY)
    assert reader.tree() == found == simulation.committed
    assert (root.sequence, root.digest) == (reader.root.sequence, reader.root.digest)
    assert (root.store_id, root.key_ids) == (reader.root.store_id, reader.root.key_ids)
    assert (root.anchor, root.damaged_copies) == (0, 0)
    assert root.slots == reader.root.slots
    # What is not reached is free: the opening found it so without being told.
    assert root.free_slots == root.slots - 4 - len(reader.used)
    for path, inode in reader.paths():
        stat = stats[path]
        assert (stat.inode, stat.kind, stat.links, stat.size_bytes) == (
            inode.number,
            inode.kind,
            inode.links,
            inode.size,
        )
        assert (stat.accessed_ns, stat.modified_ns, stat.changed_ns) == (
            inode.accessed_ns,
            inode.modified_ns,
            inode.changed_ns,
        )


@pytest.fixture(params=[True, False], ids=["wide", "narrow"])
def cipher(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways in which the vault encrypts, as far as the processor has both."""
    use_wide = library.load().avow_vault_use_wide
    use_wide(request.param)
    yield
    use_wide(True)


@pytest.mark.usefixtures("cipher")
@pytest.mark.parametrize("written_wide", [True, False])
def test_either_cipher_reads_what_the_other_wrote(written_wide: bool) -> None:
    disk = SimulatedDisk()
    content = random.Random(1).randbytes(300_000)
    use_wide = library.load().avow_vault_use_wide
    use_wide(written_wide)
    with made(disk) as store:
        store.make_file("/files/a")
        store.write("/files/a", content)
    reader = StoreReader(disk.image, KEY)
    assert reader.tree()["/files/a"] == content
    use_wide(not written_wide)
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert store.read("/files/a") == content
        assert not list(store.check())


def call(store: Store, name: str, *arguments: object) -> int:
    """What the sandbox does and Python has no name for."""
    code: int = getattr(library.load(), f"avow_store_{name}")(store.handle, *arguments)
    assert code >= 0, name
    return code


def test_links_are_read() -> None:
    disk = SimulatedDisk()
    target = "somewhere/else/é".encode()
    with made(disk) as store:
        store.make_file("/files/a")
        store.write("/files/a", b"content")
        files, number = store.stat("/files").inode, store.stat("/files/a").inode
        call(store, "link", number, store.stat("/journal").inode, b"second", 6, 7)
        soft = call(store, "make", files, b"soft", 4, 3, 8)
        call(store, "write", soft, 0, target, len(target), 9)
        store.remove("/files/a")
        call(store, "link", number, files, b"third", 5, 10)
    reader = StoreReader(disk.image, KEY)
    assert reader.lookup("/journal/second") == reader.lookup("/files/third")
    assert reader.lookup("/files/third").links == 2
    assert reader.content(number) == b"content"
    assert (reader.lookup("/files/soft").kind, reader.content(soft)) == ("link", target)


def test_a_file_that_is_in_use_lives_without_a_name_until_the_next_opening() -> None:
    disk = SimulatedDisk()
    content = b"in use" * 5000
    store = made(disk)
    store.make_file("/files/a")
    store.write("/files/a", content)
    number = store.stat("/files/a").inode
    call(store, "retain", number)
    store.remove("/files/a")
    used = len(StoreReader(disk.image, KEY).used)
    store.commit()
    reader = StoreReader(disk.image, KEY)
    assert reader.inodes[number].links == 0
    assert reader.content(number) == content
    assert len(reader.used) > used
    store.abandon()
    Store.open_on(disk, KEY).close()
    reader = StoreReader(disk.image, KEY)
    assert number not in reader.inodes
    assert len(reader.used) == used


def test_root_records_are_written_twice_and_chained() -> None:
    disk = SimulatedDisk()
    before = b""
    with made(disk) as store:
        for number in range(4):
            store.write("/files/a", bytes([number])) if number else store.make_file("/files/a")
            root = store.commit(anchor=number + 10)
            records = root_records(disk.image, KEY)
            newest = [record for record in records if record.sequence == root.sequence]
            assert [record.copy for record in newest] == [root.sequence % 2, root.sequence % 2 + 2]
            assert newest[0].digest == newest[1].digest == root.digest
            assert newest[0].anchor == number + 10 == root.anchor
            assert not before or newest[0].before == before
            at = root.sequence % 2 * SLOT_BYTES
            raw = bytes(disk.image[at : at + SLOT_BYTES])
            assert hashlib.sha256(raw).digest() == root.digest
            before = root.digest


def test_a_block_that_a_root_reaches_is_not_written_again() -> None:
    disk = SimulatedDisk()
    rng = random.Random(5)
    with made(disk) as store:
        for number in range(30):
            path = f"/files/{number % 5}"
            if not store.exists(path):
                store.make_file(path)
            store.write(path, rng.randbytes(rng.randrange(1, 20_000)), rng.randrange(10_000))
            used = StoreReader(disk.image, KEY).used
            start = len(disk.log)
            store.commit()
            for event in disk.log[start:]:
                offset = getattr(event, "offset", None)
                if offset is not None and offset >= 4 * SLOT_BYTES:
                    data = getattr(event, "data", b"")
                    first, last = offset // SLOT_BYTES, (offset + len(data) - 1) // SLOT_BYTES
                    assert not used.keys() & set(range(first, last + 1))


def test_reader_refuses_what_is_not_so() -> None:
    disk = SimulatedDisk()
    with made(disk) as store:
        store.make_file("/files/a")
        store.write("/files/a", b"abc" * 5000)
    with pytest.raises(WrongKeyError):
        StoreReader(disk.image, OTHER_KEY)
    reader = StoreReader(disk.image, KEY)
    for slot in reader.used:
        image = bytearray(disk.image)
        image[slot * SLOT_BYTES + 100] ^= 1
        with pytest.raises((DamagedError, MalformedError)):
            StoreReader(image, KEY).tree()
    image = bytearray(disk.image)
    for copy in range(4):
        image[copy * SLOT_BYTES + 3000] ^= 1
    with pytest.raises(DamagedError):
        StoreReader(image, KEY)
