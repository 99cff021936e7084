"""The sealed store: its files and directories against a model, its keys, its commits, its disk.

Cuts at every byte, flips, swaps and lying disks are in tests/adversary.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avow.errors import (
    DamagedError,
    InUseError,
    MalformedError,
    StorageError,
    UnavailableError,
    WrongKeyError,
)
from avow.sealing import library
from avow.sealing.store import CONTAINER, ROOT_INODE, Damage, Store
from avow.testing.store_reader import StoreReader

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
SLOT = 4096
RECORDS = 4 * SLOT


class MemoryDisk:
    """A container in memory; `failing` names the calls that fail with an error number."""

    def __init__(self, image: bytes = b"") -> None:
        self.image = bytearray(image)
        self.failing: dict[str, int] = {}
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise OSError(self.failing[name], "as the test wants it")

    def read(self, offset: int, length: int) -> bytes:
        self._called("read")
        return bytes(self.image[offset : offset + length])

    def write(self, offset: int, data: bytes) -> int:
        self._called("write")
        if len(self.image) < offset + len(data):
            self.image.extend(bytes(offset + len(data) - len(self.image)))
        self.image[offset : offset + len(data)] = data
        return len(data)

    def sync(self) -> None:
        self._called("sync")

    def size(self) -> int:
        return len(self.image)

    def resize(self, size: int) -> None:
        self._called("resize")
        del self.image[size:]
        self.image.extend(bytes(size - len(self.image)))


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def store(disk: MemoryDisk) -> Iterator[Store]:
    made = Store.create_on(disk, [KEY])
    yield made
    made.abandon()


def native_seal(key: bytes, nonce: bytes, plain: bytes, ad: bytes) -> bytes:
    sealed = ctypes.create_string_buffer(len(plain) + 16)
    library.load().avow_vault_xaes_seal(
        key, nonce, plain, ctypes.c_size_t(len(plain)), ad, ctypes.c_size_t(len(ad)), sealed
    )
    return sealed.raw


def test_xaes_is_the_published_one() -> None:
    """The two vectors of c2sp.org/XAES-256-GCM, with either value of the top bit of CMAC's L."""
    nonce, plain = b"ABCDEFGHIJKLMNOPQRSTUVWX", b"XAES-256-GCM"
    assert (
        native_seal(b"\x01" * 32, nonce, plain, b"").hex()
        == "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
    )
    assert (
        native_seal(b"\x03" * 32, nonce, plain, b"c2sp.org/XAES-256-GCM").hex()
        == "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"
    )


def test_xaes_accumulated() -> None:
    """The accumulated vector of the same document: 10,000 inputs from SHAKE128, one hash of all."""
    count = 10_000
    drawn = hashlib.shake_128(b"").digest(count * (32 + 24 + 2 + 512))
    outputs, at = hashlib.shake_128(), 0

    def draw(length: int) -> bytes:
        nonlocal at
        at += length
        return drawn[at - length : at]

    for _ in range(count):
        key, nonce = draw(32), draw(24)
        plain = draw(draw(1)[0])
        ad = draw(draw(1)[0])
        outputs.update(native_seal(key, nonce, plain, ad))
    assert (
        outputs.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
    )


@dataclass
class Model:
    """What a store should hold: contents of files by path, and directories."""

    files: dict[str, bytearray] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)

    def copy(self) -> Model:
        return Model({path: bytearray(c) for path, c in self.files.items()}, set(self.directories))

    def names(self) -> set[str]:
        return set(self.files) | self.directories


def assert_same(store: Store, model: Model) -> None:
    found: dict[str, str] = {}

    def walk(path: str) -> None:
        for entry in store.listdir(path or "/"):
            found[f"{path}/{entry.name}"] = entry.stat.kind
            if entry.stat.kind == "directory":
                walk(f"{path}/{entry.name}")

    walk("/files")
    assert {path for path, kind in found.items() if kind == "file"} == set(model.files)
    assert {path for path, kind in found.items() if kind == "directory"} == model.directories
    for path, content in model.files.items():
        assert store.stat(path).size_bytes == len(content)
        assert store.read(path) == content


NAMES = ["/files/" + name for name in ("a", "b", "ü" * 100, "d", "d/x", "d/y", "d/z", "d/z/q")]
PATHS = st.sampled_from(NAMES)
# Offsets around the edges of blocks, of a block of pointers, and of two levels of them.
EDGES = st.sampled_from([0, SLOT, 2 * SLOT, 85 * SLOT, 85 * 85 * SLOT])
OFFSETS = st.builds(lambda edge, by: max(0, edge + by), EDGES, st.integers(-9, 9))
SMALL = st.integers(0, 3 * SLOT)
STEPS = st.one_of(
    st.tuples(st.just("make_file"), PATHS),
    st.tuples(st.just("make_directory"), PATHS),
    st.tuples(st.just("write"), PATHS, SMALL, st.integers(0, 9000)),
    st.tuples(st.just("write"), PATHS, OFFSETS, st.integers(1, 40)),
    st.tuples(st.just("truncate"), PATHS, st.one_of(SMALL, OFFSETS)),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("commit")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("abandon")),
    st.tuples(st.just("compact"), st.booleans()),
    st.tuples(st.just("rotate")),
)


def apply(model: Model, step: tuple[Any, ...], number: int) -> bool:
    """Does one step on the model; False when it has to be refused."""
    name, *arguments = step
    path = arguments[0] if arguments else ""
    above = path.rpartition("/")[0]
    if name in ("make_file", "make_directory"):
        if path in model.names() or (above != "/files" and above not in model.directories):
            return False
        if name == "make_file":
            model.files[path] = bytearray()
        else:
            model.directories.add(path)
    elif name == "write":
        if path not in model.files:
            return False
        offset, length = arguments[1:]
        content = model.files[path]
        if length > 0:
            content.extend(bytes(max(0, offset + length - len(content))))
            content[offset : offset + length] = bytes([number % 255 + 1]) * length
    elif name == "truncate":
        if path not in model.files:
            return False
        content = model.files[path]
        del content[arguments[1] :]
        content.extend(bytes(arguments[1] - len(content)))
    elif name == "remove":
        if path not in model.names() or any(n.startswith(path + "/") for n in model.names()):
            return False
        model.files.pop(path, None)
        model.directories.discard(path)
    elif name == "rename":
        return rename(model, path, arguments[1])
    return True


def rename(model: Model, old: str, new: str) -> bool:
    above = new.rpartition("/")[0]
    if old not in model.names() or (above != "/files" and above not in model.directories):
        return False
    if old == new:
        # POSIX: nothing happens, to a directory neither.
        return True
    if old in model.directories and (new + "/").startswith(old + "/"):
        return False
    if new in model.names():
        if (old in model.directories) != (new in model.directories):
            return False
        if any(name.startswith(new + "/") for name in model.names()):
            return False
        model.files.pop(new, None)
        model.directories.discard(new)
    for name in sorted(model.names()):
        if name == old or name.startswith(old + "/"):
            moved = new + name[len(old) :]
            if name in model.files:
                model.files[moved] = model.files.pop(name)
            else:
                model.directories.discard(name)
                model.directories.add(moved)
    return True


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEPS, max_size=40))
def test_model(steps: list[tuple[Any, ...]]) -> None:
    """Whatever is done, refused, committed, abandoned and opened again: the store is the model."""
    disk = MemoryDisk()
    model, key = Model(), KEY
    committed = model.copy()
    store = Store.create_on(disk, [key])
    for number, step in enumerate(steps):
        name, *arguments = step
        if name == "commit":
            store.commit()
            committed = model.copy()
        elif name in ("reopen", "abandon"):
            (store.close if name == "reopen" else store.abandon)()
            model = model.copy() if name == "reopen" else committed.copy()
            committed = model.copy()
            store = Store.open_on(disk, key, cache_bytes=0)
            assert store.root.damaged_copies == 0
        elif name == "compact":
            store.compact(rewrite=arguments[0])
            committed = model.copy()
        elif name == "rotate":
            key = bytes([number]) * 32
            store.rotate([key])
            committed = model.copy()
        else:
            tried = model.copy()
            accepted = apply(tried, step, number)
            if name == "write":
                path, offset, length = arguments
                arguments = [path, bytes([number % 255 + 1]) * length, offset]
            if accepted:
                getattr(store, name)(*arguments)
                model = tried
            else:
                with pytest.raises((UnavailableError, MalformedError)):
                    getattr(store, name)(*arguments)
    assert_same(store, model)
    assert list(store.check()) == []
    store.close()
    with Store.open_on(disk, key, read_only=True) as again:
        assert_same(again, model)
        assert list(again.check()) == []
    # And the document says so too.
    assert {path for path, _ in StoreReader(disk.image, key).paths()} >= model.names()


def test_a_new_store_is_committed_and_has_its_directories(disk: MemoryDisk) -> None:
    Store.create_on(disk, [KEY]).abandon()
    with Store.open_on(disk, KEY) as store:
        assert [entry.name for entry in store.listdir("/")] == ["cache", "files", "journal"]
        root = store.root
    assert (root.anchor, len(root.digest), len(root.key_ids)) == (0, 32, 1)


def test_nothing_readable_is_in_the_container(disk: MemoryDisk) -> None:
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a-telling-name")
        store.write("/files/a-telling-name", b"a telling content " * 1000)
    for telling in (b"telling", b"files", b"journal", KEY):
        assert telling not in disk.image


def test_a_commit_without_changes_writes_nothing(store: Store, disk: MemoryDisk) -> None:
    before = store.commit()
    del disk.calls[:]
    assert store.commit() == before
    assert disk.calls == []


def test_a_commit_syncs_before_and_after_the_root(store: Store, disk: MemoryDisk) -> None:
    store.commit()
    store.make_file("/files/a")
    del disk.calls[:]
    store.commit()
    order = [call for call, _ in itertools.groupby(disk.calls) if call != "resize"]
    assert order == ["write", "sync", "write", "sync"]
    assert disk.calls[-3:] == ["write", "write", "sync"]


def test_the_root_names_the_one_before_and_the_anchor(store: Store, disk: MemoryDisk) -> None:
    first = store.commit(anchor=7)
    second = store.commit(anchor=8)
    assert (first.anchor, second.anchor) == (7, 8)
    assert second.sequence == first.sequence + 1
    record = bytes(disk.image[second.sequence % 2 * SLOT :][:SLOT])
    assert hashlib.sha256(record).digest() == second.digest
    store.abandon()
    with Store.open_on(disk, KEY) as again:
        assert again.root == second


def test_nonces_do_not_repeat_after_a_crash_or_on_a_copied_disk(disk: MemoryDisk) -> None:
    """Two openings of the same bytes that do the same seal it differently."""
    Store.create_on(disk, [KEY]).close()
    records = []
    for _ in range(2):
        copy = MemoryDisk(bytes(disk.image))
        with Store.open_on(copy, KEY, clock_ns=lambda: 1) as store:
            store.make_file("/files/a")
            sequence = store.commit().sequence
        records.append(bytes(copy.image[sequence % 2 * SLOT :][:SLOT]))
    body_nonces = [record[1752:1776] for record in records]
    assert body_nonces[0][:16] != body_nonces[1][:16]
    assert body_nonces[0][16:] == body_nonces[1][16:]


def test_entropy_and_time_are_arguments() -> None:
    """The same calls with the same entropy and clock make the same container."""
    images = []
    for _ in range(2):
        disk = MemoryDisk()
        made = Store.create_on(disk, [KEY], entropy=lambda n: bytes(n), clock_ns=lambda: 5)
        with made as store:
            store.make_file("/files/a")
            assert store.stat("/files/a").modified_ns == 5
        images.append(bytes(disk.image))
    assert images[0] == images[1]


def test_one_good_copy_of_the_root_is_enough(store: Store, disk: MemoryDisk) -> None:
    sequence = store.commit(anchor=3).sequence
    store.abandon()
    disk.image[sequence % 2 * SLOT + 2000] ^= 1
    with Store.open_on(disk, KEY) as again:
        assert (again.root.sequence, again.root.damaged_copies) == (sequence, 1)
        again.commit(anchor=4)
        again.commit(anchor=5)
    with Store.open_on(disk, KEY) as mended:
        assert mended.root.damaged_copies == 0


def test_without_the_newest_root_the_store_is_older(store: Store, disk: MemoryDisk) -> None:
    store.make_file("/files/a")
    store.commit()
    sequence = store.commit(anchor=1).sequence
    store.abandon()
    for slot in (sequence % 2, 2 + sequence % 2):
        disk.image[slot * SLOT + 2000] ^= 1
    with Store.open_on(disk, KEY) as older:
        assert older.root.sequence == sequence - 1
        assert older.root.damaged_copies == 2


@pytest.mark.parametrize("byte", range(RECORDS, RECORDS + 8 * SLOT, 1000))
def test_a_flipped_bit_is_damage_and_never_data(byte: int) -> None:
    disk = MemoryDisk()
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a")
        store.write("/files/a", bytes(range(256)) * 64)
    used = StoreReader(disk.image, KEY).used
    disk.image[byte] ^= 1
    if byte // SLOT in used:
        with pytest.raises(DamagedError, match="block"):
            check_and_read(disk)
    else:
        assert check_and_read(disk) == ([], bytes(range(256)) * 64)


def check_and_read(disk: MemoryDisk) -> tuple[list[Damage], bytes]:
    """Fails with DamagedError where `check` finds nothing, too."""
    with Store.open_on(disk, KEY, read_only=True) as store:
        return list(store.check()), store.read("/files/a")


def test_check_names_the_file_and_the_block(disk: MemoryDisk) -> None:
    with Store.create_on(disk, [KEY]) as store:
        store.make_directory("/files/d")
        store.make_file("/files/d/db")
        store.commit()
        before = bytes(disk.image)
        store.write("/files/d/db", b"1" * 3 * SLOT)
    # The first slot that the commit wrote holds the first block of the file.
    changed = next(
        slot
        for slot in range(4, len(disk.image) // SLOT)
        if before[slot * SLOT : (slot + 1) * SLOT] != disk.image[slot * SLOT : (slot + 1) * SLOT]
    )
    disk.image[changed * SLOT + 9] ^= 1
    with Store.open_on(disk, KEY) as store:
        assert [str(damage) for damage in store.check()] == ["/files/d/db: block 0 (level 0)"]
        with pytest.raises(DamagedError, match=r"/files/d/db: block 0 \(level 0\)"):
            store.read("/files/d/db")
        assert store.read("/files/d/db", SLOT) == b"1" * 2 * SLOT


def test_another_key_is_not_damage(store: Store, disk: MemoryDisk) -> None:
    store.abandon()
    with pytest.raises(WrongKeyError):
        Store.open_on(disk, OTHER_KEY)


@pytest.mark.parametrize("image", [b"", b"x", bytes(RECORDS), os.urandom(RECORDS)])
def test_not_a_store(image: bytes) -> None:
    with pytest.raises(MalformedError, match="not a sealed store"):
        Store.open_on(MemoryDisk(image), KEY)


def test_a_container_that_was_cut_off_is_damaged(store: Store, disk: MemoryDisk) -> None:
    slots = store.commit().slots
    store.abandon()
    del disk.image[(slots - 1) * SLOT :]
    with pytest.raises(DamagedError):
        Store.open_on(disk, KEY)


def test_keys_are_added_removed_and_rotated(store: Store, disk: MemoryDisk) -> None:
    store.make_file("/files/a")
    store.write("/files/a", b"old")
    store.add_key(OTHER_KEY)
    first = store.root.key_ids[0]
    store.close()
    with Store.open_on(disk, OTHER_KEY) as store:
        store.remove_key(first)
    with pytest.raises(WrongKeyError):
        Store.open_on(disk, KEY)
    with Store.open_on(disk, OTHER_KEY) as store:
        store.rotate([KEY])
        assert store.read("/files/a") == b"old"
        with pytest.raises(MalformedError):
            store.remove_key(store.root.key_ids[0])
    with pytest.raises(WrongKeyError):
        Store.open_on(disk, OTHER_KEY)
    with Store.open_on(disk, KEY) as store:
        assert store.read("/files/a") == b"old"


def test_32_rotations_need_a_rewrite(store: Store) -> None:
    store.make_file("/files/a")
    store.write("/files/a", b"kept" * 5000)
    for number in range(31):
        store.rotate([bytes([number]) * 32])
    with pytest.raises(UnavailableError):
        store.rotate([KEY])
    store.compact(rewrite=True)
    store.rotate([KEY])
    assert store.read("/files/a") == b"kept" * 5000
    assert list(store.check()) == []


def test_a_ninth_key_and_one_twice_are_refused(store: Store) -> None:
    for number in range(1, 8):
        store.add_key(bytes([number]) * 32)
    with pytest.raises(UnavailableError):
        store.add_key(OTHER_KEY)
    with pytest.raises(UnavailableError):
        store.add_key(KEY)
    assert len(store.root.key_ids) == 8


@pytest.mark.parametrize("call", ["write", "sync", "resize"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_after_a_failure_nothing_more_is_done(disk: MemoryDisk, call: str, number: int) -> None:
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a")
    store = Store.open_on(disk, KEY)
    store.write("/files/a", bytes(2 << 20))
    disk.failing[call] = number
    with pytest.raises(StorageError, match="full" if number == errno.ENOSPC else "failed"):
        store.commit()
    disk.failing.clear()
    for refused in (store.commit, lambda: store.read("/files/a"), lambda: list(store.check())):
        with pytest.raises(StorageError, match="has stopped, as the disk failed"):
            refused()
    store.abandon()
    with Store.open_on(disk, KEY) as again:
        assert again.read("/files/a") == b""


def test_a_failing_read_harms_nothing(disk: MemoryDisk) -> None:
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a")
        store.write("/files/a", b"kept")
    with Store.open_on(disk, KEY) as store:
        disk.failing["read"] = errno.EIO
        with pytest.raises(StorageError):
            store.read("/files/a")
        disk.failing.clear()
        assert store.read("/files/a") == b"kept"


def test_an_exception_of_the_disk_reaches_the_caller(store: Store, disk: MemoryDisk) -> None:
    class PowerCutError(Exception):
        pass

    def cut() -> None:
        raise PowerCutError

    disk.sync = cut  # type: ignore[method-assign]
    store.make_file("/files/a")
    with pytest.raises(PowerCutError):
        store.commit()
    with pytest.raises(StorageError):
        store.commit()


def test_freed_space_is_used_again_and_given_back(store: Store, disk: MemoryDisk) -> None:
    store.make_file("/files/a")
    for number in range(20):
        store.write("/files/a", bytes([number]) * (1 << 20))
        store.commit()
    assert store.root.slots < 3 * 256 + 100
    store.truncate("/files/a", 100)
    store.compact()
    assert len(disk.image) == store.root.slots * SLOT < 20 * SLOT
    assert store.root.free_slots <= 4
    assert store.read("/files/a") == bytes([19]) * 100


def test_compaction_needs_more_than_one_pass(disk: MemoryDisk) -> None:
    """Each pass of moving needs room that only the pass before has freed."""
    chance = random.Random(1)
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a")
        for _ in range(60):
            store.write("/files/a", b"x" * chance.randrange(20_000), chance.randrange(400_000))
            store.commit()
        content = store.read("/files/a")
        assert store.root.free_slots > 0
        store.compact()
        root = store.root
        assert root.free_slots == 0
        assert len(disk.image) == root.slots * SLOT
        assert list(store.check()) == []
    with Store.open_on(disk, KEY) as store:
        assert store.read("/files/a") == content


def test_large_files_pass_through_a_small_cache(disk: MemoryDisk) -> None:
    block = os.urandom(1 << 20)
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a")
        for number in range(24):
            store.write("/files/a", block, number << 20)
    with Store.open_on(disk, KEY, cache_bytes=0) as store:
        assert all(store.read("/files/a", n << 20, 1 << 20) == block for n in range(24))
        store.remove("/files/a")
        root = store.commit()
        assert root.free_slots > root.slots - 20


def test_many_names_in_one_directory(disk: MemoryDisk) -> None:
    names = {f"file-{number}-{'x' * (number % 200)}" for number in range(2000)}
    with Store.create_on(disk, [KEY]) as store:
        for name in names:
            store.make_file(f"/files/{name}")
        kept = {name for name in names if len(name) % 3}
        for name in names - kept:
            store.remove(f"/files/{name}")
        size = store.stat("/files").size_bytes
        # What was freed is used again.
        for name in sorted(names - kept)[:200]:
            store.make_file(f"/files/{name}")
            kept.add(name)
        assert store.stat("/files").size_bytes == size
    with Store.open_on(disk, KEY) as store:
        assert {entry.name for entry in store.listdir("/files")} == kept
        for name in kept:
            store.remove(f"/files/{name}")
        assert store.stat("/files").size_bytes == 0


def entry_at(store: Store, directory: int, cookie: int) -> tuple[str, int] | None:
    native = library.NativeEntry()
    found = library.load().avow_store_entry(store.handle, directory, cookie, ctypes.byref(native))
    assert found >= 0
    return (bytes(native.name[: native.name_bytes]).decode(), native.next) if found else None


def test_cookies_stay_valid(store: Store) -> None:
    for name in "abcdef":
        store.make_file(f"/files/{name}")
    directory = store.stat("/files").inode
    seen, cookie = [], 0
    while (found := entry_at(store, directory, cookie)) is not None:
        name, cookie = found
        seen.append(name)
        if name == "b":
            store.remove("/files/a")
            store.remove("/files/c")
            store.make_file("/files/later")
    assert [name for name in seen if name != "later"] == ["a", "b", "d", "e", "f"]


def test_a_removed_file_lives_while_it_is_used(disk: MemoryDisk) -> None:
    native = library.load()
    with Store.create_on(disk, [KEY]) as store:
        store.make_file("/files/a")
        store.write("/files/a", b"in use" * 1000)
        inode = store.stat("/files/a").inode
        assert native.avow_store_retain(store.handle, inode) == 0
        store.remove("/files/a")
        into = ctypes.create_string_buffer(6)
        assert native.avow_store_read(store.handle, inode, 0, into, 6) == 6
        assert into.raw == b"in use"
        used = store.commit()
        store.abandon()
    with Store.open_on(disk, KEY) as again:
        # The orphan went when the store was opened, with its blocks.
        assert again.root.sequence == used.sequence + 1
        assert native.avow_store_stat(
            again.handle, inode, ctypes.byref(library.NativeStat())
        ) == int(library.Result.NOT_FOUND)
        assert native.avow_store_release(again.handle, inode, 0) == library.Result.NOT_FOUND


def test_links_are_names_of_one_file(store: Store) -> None:
    native = library.load()
    store.make_file("/files/a")
    inode, directory = store.stat("/files/a").inode, store.stat("/files").inode
    assert native.avow_store_link(store.handle, inode, directory, b"b", 1, 0) == 0
    store.write("/files/a", b"shared")
    store.remove("/files/a")
    assert (store.read("/files/b"), store.stat("/files/b").links) == (b"shared", 1)
    refused = native.avow_store_link(store.handle, directory, directory, b"c", 1, 0)
    assert refused == library.Result.IS_DIRECTORY


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"\xff", b"x" * 256])
def test_names_that_are_refused(store: Store, name: bytes) -> None:
    code = library.load().avow_store_make(store.handle, ROOT_INODE, name, len(name), 1, 0)
    assert code == library.Result.NAME_INVALID


def test_sizes_beyond_the_format_are_refused(store: Store) -> None:
    store.make_file("/files/a")
    largest = 85**7 * SLOT
    store.truncate("/files/a", largest)
    assert store.read("/files/a", largest - 3) == bytes(3)
    store.write("/files/a", b"end", largest - 3)
    with pytest.raises(UnavailableError):
        store.write("/files/a", b"x", largest)
    with pytest.raises(UnavailableError):
        store.truncate("/files/a", largest + 1)
    store.commit()
    assert list(store.check()) == []
    store.truncate("/files/a", 0)
    store.commit()


def test_reading_only_changes_nothing(store: Store, disk: MemoryDisk) -> None:
    store.make_file("/files/a")
    store.close()
    image = bytes(disk.image)
    with Store.open_on(disk, KEY, read_only=True) as reading:
        for refused in (
            lambda: reading.write("/files/a", b"x"),
            lambda: reading.make_file("/files/b"),
            lambda: reading.remove("/files/a"),
            lambda: reading.compact(),
            lambda: reading.rotate([OTHER_KEY]),
            lambda: reading.commit(anchor=9),
        ):
            with pytest.raises(UnavailableError, match="reading only"):
                refused()
    assert disk.image == image


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", [KEY]):
        with pytest.raises(InUseError):
            Store.open(tmp_path / "s", KEY)
        with pytest.raises(InUseError):
            Store.open(tmp_path / "s", KEY, read_only=True)
    Store.open(tmp_path / "s", KEY).close()


def test_the_container_is_private(tmp_path: Path) -> None:
    Store.create(tmp_path / "s", [KEY]).close()
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "s" / CONTAINER).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("read_only", [True, False])
def test_a_pipe_in_place_of_the_container_is_not_waited_for(
    tmp_path: Path, read_only: bool
) -> None:
    os.mkfifo(tmp_path / CONTAINER)
    with pytest.raises(StorageError, match="to be a file, got something else"):
        Store.open(tmp_path, KEY, read_only=read_only)


def test_the_folders_of_a_new_store_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each folder that was made, in the one above it, and then the container's name."""
    synced: list[Path] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    Store.create(tmp_path / "a" / "b" / "s", [KEY]).close()
    made = [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    assert synced == [*made, tmp_path / "a" / "b" / "s"]


def test_a_path_as_deep_as_anybody_likes(store: Store) -> None:
    deep = "/files" + "/d" * 3000
    store.make_file(deep + "/a", parents=True)
    store.write(deep + "/a", b"deep")
    store.make_directory(deep, parents=True)
    assert store.read(deep + "/a") == b"deep"
    with pytest.raises(MalformedError, match="expected a directory, got something else"):
        store.make_file(deep + "/a/b/c", parents=True)
    assert list(store.check()) == []


def test_a_path_that_is_not_utf_8_is_refused(store: Store) -> None:
    with pytest.raises(MalformedError, match="UTF-8"):
        store.read("/files/\udcff")


def test_a_creation_that_was_cut_can_be_done_again(tmp_path: Path) -> None:
    class CutError(Exception):
        pass

    def cut() -> int:
        raise CutError

    with pytest.raises(CutError):
        Store.create(tmp_path / "s", [KEY], clock_ns=cut)
    with pytest.raises(UnavailableError, match="expected a sealed store in"):
        Store.open(tmp_path / "s", KEY)
    Store.create(tmp_path / "s", [KEY]).close()
    with pytest.raises(UnavailableError, match="expected no sealed store in"):
        Store.create(tmp_path / "s", [KEY])
    Store.open(tmp_path / "s", KEY).close()


def test_no_store_is_made_over_another(store: Store, disk: MemoryDisk) -> None:
    store.close()
    with pytest.raises(UnavailableError, match="already"):
        Store.create_on(disk, [OTHER_KEY])
    Store.open_on(disk, KEY).close()


def test_a_closed_store_is_refused(store: Store) -> None:
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        store.listdir("/")
    store.close()


def test_the_processor_is_checked() -> None:
    library.require_processor("flags\t\t: fpu aes avx pclmulqdq\n")
    with pytest.raises(UnavailableError, match="aes"):
        library.require_processor("flags\t\t: fpu avx pclmulqdq\n")
    with pytest.raises(UnavailableError, match="flags"):
        library.require_processor("")
