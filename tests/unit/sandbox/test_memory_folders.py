"""Folders in memory: whatever a program does, the answer is that of a plain folder with the same
files."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avow.sandbox.grants import parse_grants
from avow.sandbox.memory_folders import FIRST_DESCRIPTOR, MemoryFolders
from avow.sandbox.preview2 import Preview2
from avow.sandbox.program import Surroundings
from avow.sandbox.wasi import Directory, MemoryDirectory, PlainDirectory, Wasi
from avow.sandbox.wasi_calls import WasiCalls
from tests.unit.sandbox.wasi_guest import (
    CREAT,
    DIRECTORY,
    EXCL,
    FILE_RIGHTS,
    OUT,
    READ_RIGHTS,
    TRUNC,
    Errno,
    FailedError,
    Guest,
    wait_fd,
)

PLAIN, MEMORY, OTHER = 3, 4, 5
FILES = {"tls.key": b"\0secret\xff" * 5000, "empty": b"", "a-b_c.1": b"x"}


@contextmanager
def both(tmp_path: Path) -> Iterator[Guest]:
    """The same files in a folder of the host, in memory, and a second folder in memory."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    directories: list[Directory] = [
        PlainDirectory("/plain", tmp_path),
        MemoryDirectory("/run/secrets", FILES),
        MemoryDirectory("/other", {"tls.key": b"another"}),
    ]
    with Wasi(arguments=["a"], entropy=bytes(32), directories=directories) as wasi:
        yield Guest(wasi)


Outcome = object


def outcome(do: Callable[[Guest, int], Outcome], guest: Guest, fd: int) -> Outcome:
    try:
        return do(guest, fd)
    except FailedError as failed:
        return failed.errno


def opened(path: str, oflags: int = 0, rights: int = READ_RIGHTS) -> Callable[[Guest, int], int]:
    def do(guest: Guest, fd: int) -> int:
        found = guest.open(path, oflags, fd=fd, rights=rights)
        filetype = guest.fdstat(found)[0]
        guest.close(found)
        return filetype

    return do


def stat(path: str) -> Callable[[Guest, int], Outcome]:
    def do(guest: Guest, fd: int) -> Outcome:
        found = guest.stat(path, fd=fd)
        return found.filetype, found.size if found.filetype == 4 else None

    return do


PATHS = [
    *("tls.key", "./tls.key", ".//tls.key", "empty", "absent", ".", "./", "./.", "..", "../plain"),
    *("tls.key/", "tls.key/.", "tls.key/x", "tls.key/..", "absent/", "absent/..", "absent/x"),
    *("x" * 255, "x" * 256, "TLS.KEY", "tls.key ", "/tls.key", "", "a\0b", "/"),
]


OPERATIONS: dict[str, list[Callable[[Guest, int], Outcome]]] = {
    "open": [opened(path) for path in PATHS],
    "open a directory": [opened(path, DIRECTORY) for path in PATHS],
    "stat": [stat(path) for path in PATHS],
    "create": [
        *(opened("tls.key", flags) for flags in (CREAT, TRUNC, CREAT | EXCL)),
        *(opened("new", flags) for flags in (CREAT, CREAT | EXCL)),
    ],
    "write": [opened("tls.key", 0, FILE_RIGHTS)],
    "change names": [
        lambda guest, fd: guest.unlink("tls.key", fd=fd),
        lambda guest, fd: guest.mkdir("new", fd=fd),
        lambda guest, fd: guest.rmdir("tls.key", fd=fd),
        lambda guest, fd: guest.rename("tls.key", "new", fd=fd, to=fd),
        lambda guest, fd: guest.link("tls.key", "new", fd=fd),
        lambda guest, fd: guest.symlink("tls.key", "new", fd=fd),
        lambda guest, fd: guest.readlink("tls.key", fd=fd),
    ],
    "the folder itself": [
        lambda guest, fd: guest.names(fd=fd),
        lambda guest, fd: guest.fdstat(fd),
        lambda guest, fd: guest.fstat(fd).filetype,
        lambda guest, fd: guest.read(fd, 1),
        lambda guest, fd: guest.call("fd_sync", fd),
    ],
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_is_as_a_plain_folder(tmp_path: Path, operation: str) -> None:
    with both(tmp_path) as guest:
        for number, do in enumerate(OPERATIONS[operation]):
            assert outcome(do, guest, MEMORY) == outcome(do, guest, PLAIN), number


def test_all_of_a_file_and_every_part(tmp_path: Path) -> None:
    content = FILES["tls.key"]
    with both(tmp_path) as guest:
        fd = guest.open("tls.key", fd=MEMORY, rights=READ_RIGHTS)
        assert guest.fstat(fd).size == len(content)
        read = b""
        while piece := guest.read(fd, 1000, 7):
            read += piece
        assert read == content
        for offset in (0, 1, len(content) - 3, len(content), len(content) + 9, 1 << 40):
            assert guest.pread(fd, offset, 10) == content[offset : offset + 10]
        assert guest.seek(fd, -5, 2) == len(content) - 5
        assert guest.read(fd, 100) == content[-5:]
        assert guest.errno("fd_pread", fd, *guest.vectors(1), 1 << 63, OUT) is Errno.INVAL
        # Ready at once, with what is left.
        guest.seek(fd, 3)
        assert guest.poll(wait_fd(7, fd))[0][:4] == (7, 0, 1, len(content) - 3)
        again = guest.open("tls.key", fd=MEMORY, rights=READ_RIGHTS)
        guest.close(fd)
        assert guest.read(again, 4) == content[:4]
        assert guest.errno("fd_read", fd, *guest.vectors(1), OUT) is Errno.BADF


def test_folders_and_files_are_told_apart(tmp_path: Path) -> None:
    with both(tmp_path) as guest:
        fd = guest.open("tls.key", fd=OTHER, rights=READ_RIGHTS)
        assert guest.read(fd, 100) == b"another"
        assert guest.names(fd=OTHER) == ["tls.key"]
        found = [guest.stat("tls.key", fd=each) for each in (PLAIN, MEMORY, OTHER)]
        assert len({(each.device, each.inode) for each in found}) == 3
        within = {guest.stat(name, fd=MEMORY).inode for name in (*FILES, ".")}
        assert len(within) == len(FILES) + 1


def test_nothing_of_it_is_a_descriptor_of_the_process(tmp_path: Path) -> None:
    with both(tmp_path) as guest:
        before = sorted(os.listdir("/proc/self/fd"))
        guest.open("tls.key", fd=MEMORY, rights=READ_RIGHTS)
        guest.names(fd=MEMORY)
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert b"secret" not in repr(MemoryDirectory("/a", FILES)).encode()


def test_many_names_come_in_pieces() -> None:
    """A listing is asked for until nothing comes."""
    folders = MemoryFolders()
    names = [f"{number:02}{'x' * 60}" for number in range(64)]
    fd = folders.add(dict.fromkeys(names, b""))
    assert fd == FIRST_DESCRIPTOR
    with Wasi(arguments=["a"], entropy=bytes(32)) as wasi:
        functions = folders.functions(wasi.native)
        buffer = ctypes.create_string_buffer(500)
        address = ctypes.addressof(buffer)
        assert functions["rewind"](None, fd) == 0
        listed = b""
        while count := functions["entries"](None, fd, address, 500):
            assert 0 < count <= 500
            listed += buffer.raw[:count]
        assert [name for name in names if name.encode() + b"\0" in listed] == names
        # From the beginning again, as another descriptor of the folder wants it.
        assert functions["rewind"](None, fd) == 0
        again = functions["entries"](None, fd, address, 500)
        assert buffer.raw[:again] == listed[:again]
        for offset, outcome in ((0, 0), (-1, -errno.EINVAL)):
            assert functions["read"](None, fd + 1, address, 1, offset) == outcome
        # What is no folder of these goes to the host.
        assert functions["facts"](None, -1, address) < 0


def test_a_component_reads_them_too() -> None:
    granted = parse_grants(["provisioned:/run/secrets"], folder=Path())
    with Wasi.of(Surroundings(("app",), granted, provisioned=FILES)) as wasi:
        preview2 = Preview2(WasiCalls(wasi), granted.clocks).functions()
        listed = preview2["wasi:filesystem/preopens"]["get-directories"]()
        folder = {name: handle.rep for handle, name in listed}["/run/secrets"]
        files = preview2["wasi:filesystem/types"]
        opened = files["[method]descriptor.open-at"](folder, set(), "tls.key", set(), {"read"})
        assert files["[method]descriptor.read"](opened.rep, 8, 1) == (b"secret\xff\0", False)
