"""Programs that call WASI with nonsense: no call harms the host, and what it keeps stays whole.

The vault is compiled with all of Zig's checks: an index, a cast or a length that went wrong would
end this process.
"""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from avow.sandbox.wasi import FUNCTIONS, PlainDirectory, SealedDirectory, Wasi
from avow.sealing.store import Store
from tests.unit.sandbox.wasi_guest import (
    BUFFER,
    CREAT,
    END,
    KEY,
    OUT,
    PATH,
    TABLE,
    Errno,
    Guest,
    MemoryDisk,
    sealed_guest,
)

CALLS = 3000
VECTOR = struct.Struct("<II")
ENDINGS = {"proc_exit", "proc_raise"}
SMALL = (0, 1, 2, 3, 4, 5, 7, 8, 10, 16, 24, 31, 64, 100, 255, 256, 1023, 1024, 4095, 4096)
LARGE = (END - 1, END, END + 1, 65536, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 32) - 8)
HUGE = (1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)
PLACES = (PATH, OUT, TABLE, BUFFER, 0, END - 4, END - 1)
TEXTS = (
    b".",
    b"..",
    b"a",
    b"b/c",
    b"d",
    b"d/../a",
    b"../x",
    b"l",
    b"/",
    b"tcp/x:1",
    b"\xff",
    b"a\0",
)


def nonsense(rng: random.Random, letter: str) -> int:
    kinds: list[tuple[int, ...]] = [SMALL, SMALL, PLACES, PLACES, LARGE]
    if letter == "I":
        kinds += [SMALL, HUGE]
    if rng.random() < 0.1:
        return rng.getrandbits(64 if letter == "I" else 32)
    return rng.choice(rng.choice(kinds))


def prepare(guest: Guest, rng: random.Random) -> None:
    """Something that makes sense here and there."""
    guest.put(PATH, rng.choice(TEXTS))
    vectors = b"".join(
        rng.choice((BUFFER, 0, END - 8, END)).to_bytes(4, "little")
        + rng.choice((0, 1, 8, 4096, 60000, (1 << 32) - 1)).to_bytes(4, "little")
        for _ in range(8)
    )
    guest.put(TABLE, vectors)
    guest.put(BUFFER, rng.randbytes(256))


@pytest.mark.parametrize("seed", range(6))
def test_nonsense(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "d").mkdir()
    stdin, stdout = os.pipe()
    os.close(stdout)
    null = os.open(os.devnull, os.O_WRONLY)
    disk = MemoryDisk()
    with (
        Store.create_on(disk, [KEY]) as store,
        Wasi(
            arguments=["a", "b"],
            variables=[("A", "b")],
            entropy=bytes(32),
            stdio=(stdin, null, null),
            store=store,
            directories=[SealedDirectory("/", "/files"), PlainDirectory("/host", tmp_path)],
            clocks=["realtime", "monotonic"],
            endpoints=["x:1"],
            connect=lambda host, port: os.open(os.devnull, os.O_RDWR),
        ) as wasi,
    ):
        guest = Guest(wasi)
        native = wasi.native("poll")
        # Nothing is waited for, however long a program asks for.
        wasi.replace("poll", lambda _, waiting, count, timeout: native(waiting, count, 0))
        names = sorted(set(FUNCTIONS) - ENDINGS)
        seen: set[Errno] = set()
        for number in range(CALLS):
            if number % 16 == 0:
                prepare(guest, rng)
            name = rng.choice(names)
            arguments = [nonsense(rng, letter) for letter in FUNCTIONS[name]]
            seen.add(guest.errno(name, *arguments))
        assert {Errno.SUCCESS, Errno.BADF, Errno.FAULT, Errno.INVAL} <= seen
        # Whatever became of its files, the store is whole.
        assert wasi._library.avow_wasi_store_failure(wasi._open_handle()) == 0
        assert list(store.check()) == []
    os.close(stdin)
    os.close(null)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "d"]
    assert (tmp_path / "a").read_bytes() == b"content"
    with Store.open_on(disk, KEY) as store:
        assert list(store.check()) == []


def test_a_table_that_grows_while_it_is_read_moves_no_more_than_was_checked() -> None:
    """The first buffer is the table itself: the file says that all others have 5 MB, together more
    than the 32 bits of the result."""
    with sealed_guest() as guest:
        guest.memory.grow(guest.store, 100)
        count, length = 1023, 5 << 20
        guest.put(TABLE, VECTOR.pack(BUFFER, length) * count)
        fd = guest.open("file", CREAT)
        for number in range(count):
            guest.put(BUFFER + VECTOR.size * number, VECTOR.pack(END, length))
        guest.put(TABLE, VECTOR.pack(BUFFER, VECTOR.size * count))
        guest.call("fd_write", fd, TABLE, 1, OUT)
        guest.call("fd_filestat_set_size", fd, 6 << 30)
        guest.call("fd_seek", fd, 0, 0, OUT)
        own = VECTOR.size * count
        guest.put(TABLE, VECTOR.pack(TABLE + VECTOR.size, own) + VECTOR.pack(BUFFER, 0) * count)
        guest.call("fd_read", fd, TABLE, count + 1, OUT)
        assert guest.number() == own
        assert guest.errno("fd_tell", fd, OUT) == Errno.SUCCESS
        assert guest.number(form="<Q") == own
