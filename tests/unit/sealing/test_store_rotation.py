"""Keys that come and go, and compaction: what opens, what is refused, and what becomes smaller."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import pytest

from avow.errors import AvowError, InUseError, StorageError, WrongKeyError
from avow.sealing.store import Store
from avow.testing.simulated_disk import SimulatedDisk
from avow.testing.store_reader import SLOT_BYTES, StoreReader
from avow.testing.store_simulation import KEY, snapshot

SECOND = b"\x02" * 32
THIRD = b"\x03" * 32
OLD = random.Random(1).randbytes(50_000)
NEW = random.Random(2).randbytes(20_000)


def filled(*keys: bytes) -> SimulatedDisk:
    disk = SimulatedDisk()
    with Store.create_on(disk, keys or [KEY]) as store:
        store.make_file("/files/old")
        store.write("/files/old", OLD)
    return disk


def opens(disk: SimulatedDisk, key: bytes) -> bool:
    try:
        Store.open_on(disk, key, read_only=True).abandon()
    except WrongKeyError:
        return False
    return True


def generations(disk: SimulatedDisk, key: bytes, path: str) -> set[bytes]:
    """The data keys under which a file's blocks were sealed, all levels."""
    reader = StoreReader(disk.image, key)
    number = reader.lookup(path).number
    return {use.key for use in reader.uses if use.what.startswith(f"inode {number},")}


def test_rotation_keeps_what_is_there_and_seals_anew_what_comes() -> None:
    disk = filled()
    with Store.open_on(disk, KEY) as store:
        store.rotate([SECOND])
        store.make_file("/files/new")
        store.write("/files/new", NEW)
    assert not opens(disk, KEY)
    with Store.open_on(disk, SECOND, read_only=True) as store:
        assert store.read("/files/old") == OLD
        assert store.read("/files/new") == NEW
        assert not list(store.check())
    first, second = StoreReader(disk.image, SECOND).root.data_keys
    assert generations(disk, SECOND, "/files/old") == {first}
    assert generations(disk, SECOND, "/files/new") == {second}


def test_an_old_key_is_refused_as_soon_as_the_rotation_is_committed() -> None:
    """Not even an older root record that has its slot may be left on the disk."""
    disk = filled()
    store = Store.open_on(disk, KEY)
    store.rotate([SECOND])
    store.commit()
    image = bytes(disk.image)
    store.abandon()
    assert not opens(SimulatedDisk(image), KEY)
    assert opens(SimulatedDisk(image), SECOND)


def test_what_is_abandoned_did_not_happen() -> None:
    disk = filled()
    before = bytes(disk.image)
    store = Store.open_on(disk, KEY)
    store.make_file("/files/new")
    store.write("/files/old", NEW)
    store.abandon()
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert store.read("/files/old") == OLD
        assert not store.exists("/files/new")
    # Nothing was written that had to be undone.
    assert disk.image[: 4 * SLOT_BYTES] == before[: 4 * SLOT_BYTES]


def test_keys_are_added_and_removed() -> None:
    disk = filled()
    with Store.open_on(disk, KEY) as store:
        (own,) = store.root.key_ids
        store.add_key(SECOND)
        store.add_key(THIRD)
        root = store.commit()
        assert len(set(root.key_ids)) == 3
    for key in (KEY, SECOND, THIRD):
        with Store.open_on(disk, key, read_only=True) as store:
            assert store.read("/files/old") == OLD
    with Store.open_on(disk, SECOND) as store:
        store.remove_key(own)
        store.commit()
    assert not opens(disk, KEY)
    assert opens(disk, SECOND)
    assert opens(disk, THIRD)


def test_eight_keys_and_not_more() -> None:
    disk = filled()
    with Store.open_on(disk, KEY) as store:
        for number in range(7):
            store.add_key(bytes([100 + number]) * 32)
        with pytest.raises(AvowError):
            store.add_key(THIRD)
    assert len(StoreReader(disk.image, KEY).root.key_ids) == 8
    assert opens(disk, b"\x6a" * 32)
    assert not opens(disk, THIRD)


def test_the_last_key_stays() -> None:
    disk = filled()
    with Store.open_on(disk, KEY) as store:
        with pytest.raises(AvowError):
            store.remove_key(store.root.key_ids[0])
        with pytest.raises(AvowError):
            store.remove_key(b"no-such!")
        with pytest.raises((AvowError, ValueError)):
            store.rotate([])
    assert opens(disk, KEY)


def test_two_keys_from_the_start() -> None:
    disk = filled(SECOND, THIRD)
    assert [opens(disk, key) for key in (KEY, SECOND, THIRD)] == [False, True, True]


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises((AvowError, ValueError)):
        Store.create_on(SimulatedDisk(), [key])
    with pytest.raises((AvowError, ValueError)):
        Store.open_on(filled(), key)


def test_many_rotations_reach_an_end_that_says_so() -> None:
    disk = filled()
    store = Store.open_on(disk, KEY)
    for _ in range(31):
        store.rotate([KEY])
    with pytest.raises(AvowError, match="compact"):
        store.rotate([KEY])
    store.abandon()
    assert len(StoreReader(disk.image, KEY).root.data_keys) == 32
    with Store.open_on(disk, KEY) as store:
        assert store.read("/files/old") == OLD
        store.compact(rewrite=True)
        store.rotate([KEY])
    assert len(StoreReader(disk.image, KEY).root.data_keys) <= 2
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert store.read("/files/old") == OLD


def test_compaction_makes_the_container_smaller_and_changes_nothing_else() -> None:
    disk = filled()
    rng = random.Random(4)
    with Store.open_on(disk, KEY) as store:
        for number in range(40):
            store.make_file(f"/files/{number}")
            store.write(f"/files/{number}", rng.randbytes(20_000))
        store.commit()
        for number in range(0, 40, 2):
            store.remove(f"/files/{number}")
        store.commit()
        expected = snapshot(store)
        before = disk.size()
        store.compact()
        root = store.commit()
        assert snapshot(store) == expected
    used = StoreReader(disk.image, KEY).used
    assert disk.size() < before * 0.65
    assert disk.size() <= (len(used) * 1.1 + 8) * SLOT_BYTES
    assert root.free_slots <= len(used) * 0.1 + 8
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert snapshot(store) == expected
        assert not list(store.check())


def test_rewriting_drops_the_old_data_keys() -> None:
    disk = filled()
    old_keys = StoreReader(disk.image, KEY).root.data_keys
    with Store.open_on(disk, KEY) as store:
        store.rotate([SECOND])
        store.commit()
        store.compact(rewrite=True)
    reader = StoreReader(disk.image, SECOND)
    # Nor may the root record before it have them still.
    for record in reader.records:
        assert not set(old_keys) & set(record.data_keys)
    assert {use.key for use in reader.uses} == {reader.root.data_keys[-1]}
    with Store.open_on(disk, SECOND, read_only=True) as store:
        assert store.read("/files/old") == OLD


def test_what_is_removed_is_free_again() -> None:
    """A store that is changed for ever does not grow for ever."""
    disk = filled()
    with Store.open_on(disk, KEY) as store:
        store.make_file("/files/a")
        sizes = []
        for number in range(60):
            store.write("/files/a", bytes([number]) * 40_000)
            store.commit()
            sizes.append(disk.size())
    assert sizes[-1] == sizes[10]


def _open_elsewhere(directory: str, results: multiprocessing.Queue[str]) -> None:
    try:
        Store.open(Path(directory), KEY).close()
    except InUseError:
        results.put("in use")
    else:
        results.put("opened")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = spawn.Queue()
    with Store.create(tmp_path / "data", [KEY]):
        # Not the same process either.
        with pytest.raises(InUseError):
            Store.open(tmp_path / "data", KEY)
        child = spawn.Process(target=_open_elsewhere, args=(str(tmp_path / "data"), results))
        child.start()
        assert results.get(timeout=60) == "in use"
        child.join()
    child = spawn.Process(target=_open_elsewhere, args=(str(tmp_path / "data"), results))
    child.start()
    assert results.get(timeout=60) == "opened"
    child.join()
    results.close()


def test_a_folder_and_its_container_are_closed_to_others(tmp_path: Path) -> None:
    Store.create(tmp_path / "data", [KEY]).close()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "store.avow").stat().st_mode & 0o777 == 0o600
    with pytest.raises(AvowError):
        Store.create(tmp_path / "data", [SECOND])
    Store.open(tmp_path / "data", KEY).close()


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AvowError, match="data"):
        Store.open(tmp_path / "data", KEY)
    assert not (tmp_path / "data").exists()


def test_a_full_disk_costs_the_commit_and_nothing_else() -> None:
    disk = filled()
    disk.size_max_bytes = disk.size() + 20 * SLOT_BYTES
    store = Store.open_on(disk, KEY)
    store.make_file("/files/large")
    store.write("/files/large", bytes(range(256)) * 4000)
    with pytest.raises(StorageError):
        store.commit()
    store.abandon()
    disk.size_max_bytes = None
    with Store.open_on(disk, KEY) as store:
        assert not store.exists("/files/large")
        assert store.read("/files/old") == OLD
        store.write("/files/old", NEW)
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert store.read("/files/old", 0, len(NEW)) == NEW


def test_after_a_failed_sync_nothing_more_is_done() -> None:
    class UnsyncedDisk(SimulatedDisk):
        fails = False

        def sync(self) -> None:
            if self.fails:
                raise OSError(5, "not synced")
            super().sync()

    disk = UnsyncedDisk(bytes(filled().image))
    store = Store.open_on(disk, KEY)
    store.write("/files/old", NEW)
    disk.fails = True
    with pytest.raises(StorageError):
        store.commit()
    disk.fails = False
    written = len(disk.log)
    # What a kernel forgot after a failed fdatasync it never writes; to try again would be a lie.
    with pytest.raises(StorageError):
        store.commit()
    with pytest.raises(StorageError):
        store.write("/files/old", b"more")
    store.abandon()
    assert len(disk.log) == written
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert store.read("/files/old") in (OLD, NEW + OLD[len(NEW) :])
