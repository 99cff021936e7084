"""Real programs over a host that lies: right data or a clean error, no wrong data, no trap."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from avow.errors import AvowError
from avow.sandbox.wasi import PlainDirectory, SealedDirectory, Wasi, listen
from avow.sealing.store import Store
from avow.testing.lying_disk import LyingDisk
from avow.testing.lying_host import LIES, LyingHost
from avow.testing.simulated_disk import SimulatedDisk
from tests.unit.sandbox.wasi_guest import (
    BUFFER,
    DIRECTORY,
    OUT,
    READ_RIGHTS,
    ROOT,
    Errno,
    FailedError,
    Guest,
    bare_guest,
    wait_fd,
)
from tests.unit.sandbox.wasi_programs import Ended, program, run

KEY = bytes(range(32))
CONTENT = random.Random(1).randbytes(120_000)

# Where every answer is checked: what a host can say there leads to an error, and to no other data.
IMPOSSIBLE = {
    "long",
    "impossible",
    "negative size",
    "malformed time",
    "malformed",
    "record of no length",
    "record too short",
    "record too long",
    "name without end",
    "name with a slash",
    "empty name",
    "name too long",
    "half a record",
    "stream",
}


class Run:
    """A program that ran over a lying host, with what it wrote."""

    def __init__(self, ended: Ended, output: bytes, errors: bytes, host: LyingHost) -> None:
        self.ended, self.output, self.errors, self.told = ended, output, errors, host.told


def run_lying(
    tmp_path: Path,
    rng: random.Random,
    *arguments: str,
    lies: Sequence[str] | None = None,
    **settings: Any,
) -> Run:
    (tmp_path / "stdin").write_bytes(CONTENT)
    with ExitStack() as stack:
        source = stack.enter_context((tmp_path / "stdin").open("rb"))
        # Pipes would fill up: files that are handled as streams.
        output = stack.enter_context((tmp_path / "output").open("w+b"))
        errors = stack.enter_context((tmp_path / "errors").open("w+b"))
        streams = (source.fileno(), output.fileno(), errors.fileno())
        wasi = stack.enter_context(
            Wasi(arguments=["streams", *arguments], entropy=bytes(32), stdio=streams, **settings)
        )
        host = LyingHost(wasi, rng, rate=rng.choice((0.01, 0.1, 0.4)), lies=lies)
        ended = run(wasi, program("streams"))
    written = [(tmp_path / name).read_bytes() for name in ("output", "errors")]
    return Run(ended, written[0], written[1], host)


@pytest.mark.parametrize("seed", range(40))
def test_copying(tmp_path: Path, seed: int) -> None:
    done = run_lying(tmp_path, random.Random(seed), "copy")
    assert done.ended.trap == "", done.told
    # What came out is right, up to where an error ended it.
    assert CONTENT.startswith(done.output), done.told
    if done.ended.code == 0:
        assert done.output == CONTENT, done.told
    else:
        assert done.ended.code == 1, done.told


@pytest.mark.parametrize("seed", range(20))
def test_what_a_program_need_not_notice(tmp_path: Path, seed: int) -> None:
    """Short reads and writes, and time that jumps: all goes well."""
    lies = ["read: short", "write: short", "clock: ahead", "clock: back", "poll: ready"]
    copied = run_lying(tmp_path, random.Random(seed), "copy", lies=lies)
    assert copied.output == CONTENT, copied.told
    clocks = ["monotonic"]
    timed = run_lying(tmp_path, random.Random(seed), "time", lies=lies, clocks=clocks)
    assert timed.output == b"right\n", timed.told


@pytest.mark.parametrize("seed", range(40))
def test_reading_a_tree(tmp_path: Path, seed: int) -> None:
    host = tmp_path / "host"
    (host / "deep").mkdir(parents=True)
    expected = set()
    for name in ("a", "b", "deep/c", "deep/d"):
        (host / name).write_bytes(name.encode() * 50)
        expected.add(f"/host/{name}={name * 50}".encode())
    directories = [PlainDirectory("/host", host)]
    done = run_lying(tmp_path, random.Random(seed), "tree", "/host", directories=directories)
    assert done.ended.trap == "", done.told
    *lines, rest = done.output.split(b"\n")
    assert set(lines) <= expected, done.told
    assert any(line.startswith(rest) for line in expected), done.told
    if done.ended.code == 0:
        assert set(lines) == expected, done.told


@pytest.mark.parametrize("seed", range(40))
def test_time(tmp_path: Path, seed: int) -> None:
    done = run_lying(tmp_path, random.Random(seed), "time", clocks=["monotonic"])
    assert done.ended.trap == "", done.told
    assert b"right\n".startswith(done.output), done.told
    assert done.ended.code in {0, 1}, done.told


@pytest.mark.parametrize("seed", range(30))
def test_sealed_files(tmp_path: Path, seed: int) -> None:
    """The disk below the store lies: short, stale, swapped and lost blocks."""
    rng = random.Random(seed)
    honest = SimulatedDisk()
    Store.create_on(honest, [KEY]).close()
    disk = LyingDisk(honest, rng, rate=rng.choice((0.002, 0.02, 0.2)))
    try:
        # Little is kept in memory, so that much is read back.
        store = Store.open_on(disk, KEY, cache_bytes=1 << 16)
    except AvowError:
        return
    with (tmp_path / "output").open("w+b") as output:
        streams = (output.fileno(), output.fileno(), output.fileno())
        directories = [SealedDirectory("/", "/files")]
        try:
            with Wasi(
                arguments=["files", "2"],
                entropy=bytes(32),
                stdio=streams,
                store=store,
                directories=directories,
            ) as wasi:
                ended = run(wasi, program("files"))
        except AvowError:
            ended = Ended(1)
    written = (tmp_path / "output").read_bytes()
    store.abandon()
    assert ended.trap == "", disk.told
    assert b"WRONG" not in written, disk.told
    assert ended.code in {0, 1}, disk.told
    if ended.code == 0:
        assert written == b"right\n", disk.told


@contextmanager
def lied_to(lie: str, **settings: Any) -> Iterator[Guest]:
    """A program to whose every call this lie is told."""
    with bare_guest(**settings) as guest:
        LyingHost(guest.wasi, random.Random(1), rate=1.0, lies=[lie])
        yield guest


# With `directories`, `endpoints` and `listeners`: what each has for a descriptor.
NETWORK, LISTENER = ROOT + 1, ROOT + 2
CALLS: dict[str, Callable[[Guest], object]] = {
    "clock": lambda guest: guest.time(1),
    "read": lambda guest: guest.read(0, 10),
    "write": lambda guest: guest.write(1, b"12345"),
    "open": lambda guest: guest.open("file", fd=ROOT, rights=READ_RIGHTS),
    "facts": lambda guest: guest.stat("file"),
    "read_link": lambda guest: guest.readlink("link"),
    "entries": lambda guest: guest.readdir(ROOT),
    "rewind": lambda guest: guest.readdir(ROOT),
    "poll": lambda guest: guest.poll(wait_fd(1, 0)),
    "yield": lambda guest: guest.call("sched_yield"),
    "connect": lambda guest: guest.open("tcp/x:1", fd=NETWORK),
    "accept": lambda guest: guest.call("sock_accept", LISTENER, 0, OUT),
    "receive": lambda guest: guest.call(
        "sock_recv", LISTENER + 1, *guest.vectors(4), 0, OUT, OUT + 4
    ),
    "send": lambda guest: guest.call("sock_send", LISTENER + 1, *guest.vectors(4), 0, OUT),
    "shutdown": lambda guest: guest.call("sock_shutdown", LISTENER + 1, 1),
}


@pytest.mark.parametrize(
    ("name", "lie"),
    [(name, lie) for name in CALLS for lie in LIES[name] if lie in IMPOSSIBLE],
)
def test_what_cannot_be_is_an_io_error(tmp_path: Path, name: str, lie: str) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("file")
    near, far = socket.socketpair()
    listener = listen("127.0.0.1", 0)
    with ExitStack() as stack:
        stack.enter_context(near)
        stack.enter_context(far).sendall(b"what is there")
        stack.enter_context(socket.create_connection(listener.getsockname()))
        file = stack.enter_context((tmp_path / "file").open("r+b"))
        guest = stack.enter_context(
            bare_guest(
                clocks=["monotonic"],
                stdio=(file.fileno(),) * 3,
                directories=[PlainDirectory("/", tmp_path)],
                endpoints=["x:1"],
                listeners=[listener],
                connect=lambda host, port: near.detach(),
            )
        )
        if name in {"receive", "send", "shutdown"}:
            guest.open("tcp/x:1", fd=NETWORK)
        LyingHost(guest.wasi, random.Random(1), rate=1.0, lies=[f"{name}: {lie}"])
        with pytest.raises(FailedError) as caught:
            CALLS[name](guest)
        assert caught.value.errno == Errno.IO


def test_what_was_replaced_before_can_still_be_called() -> None:
    """A host that lies now and then asks the one that was there before."""
    asked: list[int] = []

    def give_way(_: int) -> int:
        asked.append(1)
        return 0

    with bare_guest() as guest:
        guest.wasi.replace("yield", give_way)
        del give_way
        LyingHost(guest.wasi, random.Random(1), rate=0.0)
        gc.collect()
        guest.call("sched_yield")
    assert asked == [1]


def test_plain_reads_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with lied_to("read: long", directories=[PlainDirectory("/", tmp_path)]) as guest:
        fd = guest.open("file", rights=READ_RIGHTS)
        assert guest.errno("fd_pread", fd, *guest.vectors(10), 0, OUT) == Errno.IO


def test_no_length_from_the_host_reaches_behind_a_buffer(tmp_path: Path) -> None:
    """Each lie about a length, and the bytes behind the buffer are those of before."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    for lie in ("read: long", "read: short"):
        with lied_to(lie, directories=[PlainDirectory("/", tmp_path)]) as guest:
            fd = guest.open("file", rights=READ_RIGHTS)
            guest.put(BUFFER, b"before" * 10)
            guest.errno("fd_pread", fd, *guest.vectors(8), 0, OUT)
            assert guest.get(BUFFER + 8, 52) == (b"before" * 10)[8:]


def test_a_host_that_never_goes_on_is_left_in_the_end() -> None:
    with lied_to("poll: nothing") as guest:
        assert guest.errno("fd_read", 0, *guest.vectors(1), OUT) == Errno.INTR
        guest.put(BUFFER, wait_fd(1, 0))
        assert guest.errno("poll_oneoff", BUFFER, BUFFER, 1, OUT) == Errno.INTR


def test_a_host_that_writes_nothing_is_left_at_once(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        streams = (file.fileno(),) * 3
        with lied_to("write: nothing", stdio=streams) as guest:
            assert guest.errno("fd_write", 1, *guest.vectors(10), OUT) == Errno.IO


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    """No program can be given it: a string of preview 1 is UTF-8."""
    (tmp_path / "good").write_bytes(b"")
    with open(os.fsencode(tmp_path) + b"/bad\xff", "wb"):
        pass
    with bare_guest(directories=[PlainDirectory("/", tmp_path)]) as guest:
        assert guest.names() == ["good"]
        with pytest.raises(FailedError) as caught:
            guest.open(b"bad\xff", rights=READ_RIGHTS)
        assert caught.value.errno == Errno.ILSEQ


def test_an_endless_directory_ends(tmp_path: Path) -> None:
    record = struct.pack("<QqHB", 7, 0, 280, 8) + b"n" * 255 + bytes(6)
    with bare_guest(directories=[PlainDirectory("/", tmp_path)]) as guest:
        native = guest.wasi.native("entries")
        assert native(-1, 0, 0) < 0

        def entries(_: int, fd: int, into: int, length: int) -> int:
            block = record * (length // len(record))
            ctypes.memmove(into, block, len(block))
            return len(block)

        guest.wasi.replace("entries", entries)
        fd = guest.open(".", DIRECTORY)
        assert guest.errno("fd_readdir", fd, BUFFER, 100, 0, OUT) == Errno.OVERFLOW
