"""A program that is nothing but the functions of WASI preview 1, each called by a test from Python.

Layouts are those of typenames.witx (WebAssembly/WASI, legacy/preview1).
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from wasmtime import Engine, Func, Instance, Linker, Memory, Module, Store

from avow.sandbox.wasi import FUNCTIONS, MODULE, PlainDirectory, SealedDirectory, Wasi
from avow.sealing import store as sealed

Errno = enum.IntEnum(
    "Errno",
    "SUCCESS 2BIG ACCES ADDRINUSE ADDRNOTAVAIL AFNOSUPPORT AGAIN ALREADY BADF BADMSG BUSY CANCELED "
    "CHILD CONNABORTED CONNREFUSED CONNRESET DEADLK DESTADDRREQ DOM DQUOT EXIST FAULT FBIG "
    "HOSTUNREACH IDRM ILSEQ INPROGRESS INTR INVAL IO ISCONN ISDIR LOOP MFILE MLINK MSGSIZE "
    "MULTIHOP NAMETOOLONG NETDOWN NETRESET NETUNREACH NFILE NOBUFS NODEV NOENT NOEXEC NOLCK NOLINK "
    "NOMEM NOMSG NOPROTOOPT NOSPC NOSYS NOTCONN NOTDIR NOTEMPTY NOTRECOVERABLE NOTSOCK NOTSUP "
    "NOTTY NXIO OVERFLOW OWNERDEAD PERM PIPE PROTO PROTONOSUPPORT PROTOTYPE RANGE ROFS SPIPE SRCH "
    "STALE TIMEDOUT TXTBSY XDEV NOTCAPABLE",
    start=0,
)

CREAT, DIRECTORY, EXCL, TRUNC = 1, 2, 4, 8
APPEND, DSYNC, NONBLOCK, RSYNC, SYNC = 1, 2, 4, 8, 16
FILE_RIGHTS = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7, 8, 21, 22, 23, 27))
READ_RIGHTS = FILE_RIGHTS & ~(1 << 6)
DIRECTORY_RIGHTS = sum(1 << bit for bit in (0, 3, 4, *range(9, 21), 21, 23, 24, 25, 26))
FD_READ, FD_SEEK, FD_TELL, FD_WRITE = 1 << 1, 1 << 2, 1 << 5, 1 << 6
FD_DATASYNC, FD_SYNC = 1 << 0, 1 << 4

ROOT = 3
PAGE_BYTES = 65536
PAGES = 4
END = PAGES * PAGE_BYTES
# Where the methods below put what they hand over, and what comes back.
PATH, PATH_2, OUT, TABLE, BUFFER = 1024, 8192, 16384, 16640, 32768
OLD_TIME_NS = 1_000_000_000


class FailedError(Exception):
    """A function returned an errno other than success."""

    def __init__(self, name: str, errno: int) -> None:
        super().__init__(f"{name}: {Errno(errno).name}")
        self.errno = Errno(errno)


class Filestat(NamedTuple):
    """`filestat`, in its order."""

    device: int
    inode: int
    filetype: int
    links: int
    size: int
    accessed: int
    modified: int
    changed: int


class Dirent(NamedTuple):
    """`dirent` with its name."""

    next: int
    inode: int
    filetype: int
    name: bytes


@functools.cache
def engine() -> Engine:
    """One for all tests."""
    return Engine()


@functools.cache
def module() -> Module:
    """Each function is wrapped once, so that it is called by a module with a memory."""
    kinds = {"i": "i32", "I": "i64"}
    imports, wrappers = [], []
    for name, letters in FUNCTIONS.items():
        types = " ".join(kinds[letter] for letter in letters)
        parameters = f"(param {types})" if types else ""
        result = "" if name == "proc_exit" else "(result i32)"
        imports.append(f'(import "{MODULE}" "{name}" (func ${name} {parameters} {result}))')
        loads = " ".join(f"local.get {index}" for index in range(len(letters)))
        wrappers.append(f'(func (export "{name}") {parameters} {result} {loads} call ${name})')
    text = f'(module {"".join(imports)} (memory (export "memory") {PAGES}) {"".join(wrappers)})'
    return Module(engine(), text)


class Guest:
    """One instance of it over one `Wasi`."""

    def __init__(self, wasi: Wasi, *, attach: bool = True) -> None:
        self.wasi = wasi
        self.store = Store(engine())
        linker = Linker(engine())
        wasi.define(linker)
        self._linker = linker
        instance: Instance = linker.instantiate(self.store, module())
        exports = instance.exports(self.store)
        self._functions: dict[str, Func] = {}
        for name in FUNCTIONS:
            function = exports[name]
            assert isinstance(function, Func)
            self._functions[name] = function
        memory = exports["memory"]
        assert isinstance(memory, Memory)
        self.memory = memory
        if attach:
            wasi.attach(self.store, memory)

    def errno(self, name: str, *arguments: int) -> Errno:
        """The bare call."""
        signed = [
            _signed(value, 64 if letter == "I" else 32)
            for value, letter in zip(arguments, FUNCTIONS[name], strict=True)
        ]
        result = self._functions[name](self.store, *signed)
        return Errno(0 if result is None else result)

    def call(self, name: str, *arguments: int) -> None:
        """Raises `FailedError`."""
        errno = self.errno(name, *arguments)
        if errno:
            raise FailedError(name, errno)

    def put(self, address: int, data: bytes) -> int:
        """Writes memory; returns the address."""
        self.memory.write(self.store, data, address)
        return address

    def get(self, address: int, length: int) -> bytes:
        """Reads memory."""
        return bytes(self.memory.read(self.store, address, address + length))

    def number(self, address: int = OUT, form: str = "<I") -> int:
        """A number that a function left in memory."""
        return int(struct.unpack(form, self.get(address, struct.calcsize(form)))[0])

    def path(self, path: str | bytes, address: int = PATH) -> tuple[int, int]:
        """Puts a path into memory; its address and length."""
        encoded = path.encode() if isinstance(path, str) else path
        return self.put(address, encoded), len(encoded)

    def vectors(self, *lengths: int) -> tuple[int, int]:
        """A table of buffers that lie one behind the other from BUFFER on."""
        table, at = b"", BUFFER
        for length in lengths:
            table += struct.pack("<II", at, length)
            at += length
        self.put(TABLE, table)
        return TABLE, len(lengths)

    def open(
        self,
        path: str | bytes,
        oflags: int = 0,
        *,
        fd: int = ROOT,
        rights: int = FILE_RIGHTS,
        inheriting: int = 0,
        fdflags: int = 0,
        follow: bool = True,
    ) -> int:
        """`path_open`; a directory is opened with all rights of one."""
        if oflags & DIRECTORY and rights == FILE_RIGHTS:
            rights, inheriting = DIRECTORY_RIGHTS, FILE_RIGHTS | DIRECTORY_RIGHTS
        self.call(
            "path_open",
            fd,
            int(follow),
            *self.path(path),
            oflags,
            rights,
            inheriting,
            fdflags,
            OUT,
        )
        return self.number()

    def read(self, fd: int, *lengths: int) -> bytes:
        """`fd_read`."""
        self.call("fd_read", fd, *self.vectors(*lengths), OUT)
        return self.get(BUFFER, self.number())

    def pread(self, fd: int, offset: int, *lengths: int) -> bytes:
        """`fd_pread`."""
        self.call("fd_pread", fd, *self.vectors(*lengths), offset, OUT)
        return self.get(BUFFER, self.number())

    def write(self, fd: int, *parts: bytes) -> int:
        """`fd_write`."""
        self.put(BUFFER, b"".join(parts))
        self.call("fd_write", fd, *self.vectors(*map(len, parts)), OUT)
        return self.number()

    def pwrite(self, fd: int, offset: int, *parts: bytes) -> int:
        """`fd_pwrite`."""
        self.put(BUFFER, b"".join(parts))
        self.call("fd_pwrite", fd, *self.vectors(*map(len, parts)), offset, OUT)
        return self.number()

    def seek(self, fd: int, offset: int, whence: int = 0) -> int:
        """`fd_seek`."""
        self.call("fd_seek", fd, offset, whence, OUT)
        return self.number(form="<Q")

    def stat(self, path: str, *, fd: int = ROOT, follow: bool = True) -> Filestat:
        """`path_filestat_get`."""
        self.call("path_filestat_get", fd, int(follow), *self.path(path), OUT)
        return self._filestat()

    def fstat(self, fd: int) -> Filestat:
        """`fd_filestat_get`."""
        self.call("fd_filestat_get", fd, OUT)
        return self._filestat()

    def _filestat(self) -> Filestat:
        return Filestat(*struct.unpack("<QQB7xQQQQQ", self.get(OUT, 64)))

    def fdstat(self, fd: int) -> tuple[int, int, int, int]:
        """`fd_fdstat_get`: filetype, flags, rights, inheriting rights."""
        self.call("fd_fdstat_get", fd, OUT)
        filetype, flags, base, inheriting = struct.unpack("<BxH4xQQ", self.get(OUT, 24))
        return filetype, flags, base, inheriting

    def close(self, fd: int) -> None:
        """`fd_close`."""
        self.call("fd_close", fd)

    def file(self, path: str, content: bytes = b"") -> None:
        """A file with that content."""
        fd = self.open(path, CREAT | TRUNC)
        if content:
            self.write(fd, content)
        self.close(fd)

    def content(self, path: str) -> bytes:
        """All of a file."""
        fd = self.open(path, rights=READ_RIGHTS)
        content = b""
        while part := self.read(fd, 16384):
            content += part
        self.close(fd)
        return content

    def mkdir(self, path: str, *, fd: int = ROOT) -> None:
        """`path_create_directory`."""
        self.call("path_create_directory", fd, *self.path(path))

    def unlink(self, path: str, *, fd: int = ROOT) -> None:
        """`path_unlink_file`."""
        self.call("path_unlink_file", fd, *self.path(path))

    def rmdir(self, path: str, *, fd: int = ROOT) -> None:
        """`path_remove_directory`."""
        self.call("path_remove_directory", fd, *self.path(path))

    def symlink(self, target: str, path: str, *, fd: int = ROOT) -> None:
        """`path_symlink`."""
        self.call("path_symlink", *self.path(target), fd, *self.path(path, PATH_2))

    def link(self, old: str, new: str, *, follow: bool = False, fd: int = ROOT) -> None:
        """`path_link`."""
        self.call("path_link", fd, int(follow), *self.path(old), fd, *self.path(new, PATH_2))

    def rename(self, old: str, new: str, *, fd: int = ROOT, to: int = ROOT) -> None:
        """`path_rename`."""
        self.call("path_rename", fd, *self.path(old), to, *self.path(new, PATH_2))

    def readlink(self, path: str, length: int = 4096, *, fd: int = ROOT) -> bytes:
        """`path_readlink`."""
        self.call("path_readlink", fd, *self.path(path), BUFFER, length, OUT)
        return self.get(BUFFER, self.number())

    def readdir(self, fd: int, cookie: int = 0, length: int = 4096) -> list[Dirent]:
        """One call of `fd_readdir`; an entry that was cut is left out."""
        self.call("fd_readdir", fd, BUFFER, length, cookie, OUT)
        data = self.get(BUFFER, self.number())
        found = []
        while len(data) >= 24:
            following, inode, name_bytes, filetype = struct.unpack("<QQIB", data[:21])
            if len(data) < 24 + name_bytes:
                break
            found.append(Dirent(following, inode, filetype, data[24 : 24 + name_bytes]))
            data = data[24 + name_bytes :]
        return found

    def names(self, path: str = ".", *, fd: int = ROOT) -> list[str]:
        """All names in a directory but the dots, sorted, asked for with a small buffer."""
        directory = self.open(path, DIRECTORY, fd=fd)
        names: list[str] = []
        cookie = 0
        while found := self.readdir(directory, cookie, 300):
            names += [each.name.decode() for each in found]
            cookie = found[-1].next
        self.close(directory)
        assert names[:2] == [".", ".."]
        return sorted(names[2:])

    def poll(self, *subscriptions: bytes) -> list[tuple[int, int, int, int, int]]:
        """`poll_oneoff`: userdata, error, type, bytes and flags of each event."""
        self.put(BUFFER, b"".join(subscriptions))
        self.call("poll_oneoff", BUFFER, TABLE, len(subscriptions), OUT)
        events = self.get(TABLE, 32 * self.number())
        return list(struct.iter_unpack("<QHB5xQH6x", events))

    def time(self, clock: int) -> int:
        """`clock_time_get`."""
        self.call("clock_time_get", clock, 1, OUT)
        return self.number(form="<Q")


def wait_clock(userdata: int, clock: int, timeout_ns: int, flags: int = 0) -> bytes:
    """A `subscription` to a clock."""
    return struct.pack("<QB7xI4xQQH6x", userdata, 0, clock, timeout_ns, 0, flags)


def wait_fd(userdata: int, fd: int, *, write: bool = False) -> bytes:
    """A `subscription` to a descriptor."""
    return struct.pack("<QB7xI28x", userdata, 2 if write else 1, fd)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


class MemoryDisk:
    """A disk that is bytes; `syncs` counts how often it was made durable."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.syncs = 0

    def read(self, offset: int, length: int) -> bytes:
        """As `Disk`."""
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> int:
        """As `Disk`."""
        missing = offset + len(data) - len(self.content)
        if missing > 0:
            self.content += bytes(missing)
        self.content[offset : offset + len(data)] = data
        return len(data)

    def sync(self) -> None:
        """As `Disk`."""
        self.syncs += 1

    def size(self) -> int:
        """As `Disk`."""
        return len(self.content)

    def resize(self, size: int) -> None:
        """As `Disk`."""
        del self.content[size:]
        self.content += bytes(size - len(self.content))


KEY = bytes(range(32))
_SETTINGS: dict[str, Any] = {
    "arguments": ["program"],
    "entropy": bytes(32),
    "started_ns": OLD_TIME_NS,
}


@contextmanager
def sealed_guest(
    *more: SealedDirectory | PlainDirectory,
    disk: MemoryDisk | None = None,
    attach: bool = True,
    **settings: Any,
) -> Iterator[Guest]:
    """A program with all of a new sealed store at `/`, and a time that stands still."""
    defaults: dict[str, Any] = {
        "arguments": ["program"],
        "entropy": bytes(32),
        "started_ns": OLD_TIME_NS,
    }
    store = sealed.Store.create_on(disk if disk is not None else MemoryDisk(), [KEY])
    directories = (SealedDirectory("/", "/files"), *more)
    try:
        with Wasi(directories=directories, store=store, **(defaults | settings)) as wasi:
            yield Guest(wasi, attach=attach)
    finally:
        store.close()


@contextmanager
def bare_guest(**settings: Any) -> Iterator[Guest]:
    """A program without a store."""
    defaults: dict[str, Any] = {
        "arguments": ["program"],
        "entropy": bytes(32),
        "started_ns": OLD_TIME_NS,
    }
    with Wasi(**(defaults | settings)) as wasi:
        yield Guest(wasi)
