"""WASI preview 1 for callers in Python: the vault's functions, without a program of one's own.

The functions work on a program's memory, so a small module lends one: it forwards each function and
exports its memory. Paths, rights, links and read-only folders are the vault's affair, once.
Source of all layouts: https://github.com/WebAssembly/WASI, preview 1, witx/typenames.witx.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from wasmtime import Engine, Func, Linker, Memory, Module, Store, Trap, WasmtimeError
from wasmtime import _ffi as ffi

from avow.errors import DeniedError, ModuleError
from avow.sandbox.engine_settings import CORE_SETTINGS, engine_for
from avow.sandbox.wasi import FUNCTIONS, MODULE, Wasi

IO_BYTES_MAX: Final = 1 << 20

# Where things lie in the lent memory: a vector, results, two paths, and what is read or written.
_VECTOR: Final = 0
_RESULT: Final = 64
_PATH: Final = 4096
_OTHER_PATH: Final = 16384
_DATA: Final = 65536
_PAGES: Final = (_DATA + IO_BYTES_MAX) // 65536
_PATH_BYTES_MAX: Final = 4096

_FILESTAT: Final = struct.Struct("<QQB7xQQQQQ")
_FDSTAT: Final = struct.Struct("<BxH4xQQ")
_DIRENT: Final = struct.Struct("<QQIB3x")
_SUBSCRIPTION: Final = struct.Struct("<QB7xI4xQQH6x")
_EVENT: Final = struct.Struct("<QHB21x")
_TYPES: Final = {"i": "i32", "I": "i64"}
_NAME_TOO_LONG: Final = 37
_BAD_DESCRIPTOR: Final = 8
_ILLEGAL_BYTES: Final = 25


class RefusedError(DeniedError):
    """A call of preview 1 that failed, with its errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(f"expected a call of WASI to succeed, got its errno {errno}")
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Filestat:
    """What is known of a file; `filetype` as in preview 1, times in ns since 1970."""

    device: int
    inode: int
    filetype: int
    links: int
    size_bytes: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Fdstat:
    """What is known of a descriptor; all numbers as in preview 1."""

    filetype: int
    flags: int
    rights: int
    inheriting: int


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """A name in a folder, and the cookie of what comes after it."""

    name: str
    filetype: int
    next_cookie: int


class WasiCalls:
    """The functions of one `Wasi`. All raise `RefusedError`."""

    def __init__(self, wasi: Wasi) -> None:
        engine = engine_for(CORE_SETTINGS)
        self._store = Store(engine)
        linker = Linker(engine)
        wasi.define(linker)
        instance = linker.instantiate(self._store, _forwarding(engine))
        exports = instance.exports(self._store)
        memory = exports["memory"]
        if not isinstance(memory, Memory):
            raise ModuleError("expected a memory to lend, got none; report this")
        # It never grows, so it stays where it is.
        self._memory = ctypes.addressof(memory.data_ptr(self._store).contents)
        wasi.attach(self._store, memory)
        self._functions = {
            name: function._func
            for name in FUNCTIONS
            if isinstance(function := exports[name], Func)
        }

    def preopened(self) -> Iterator[tuple[int, str]]:
        """The descriptors that are open from the start, with their names, in their order."""
        for fd in range(3, 1 << 16):
            try:
                self._call("fd_prestat_get", fd, _RESULT)
            except RefusedError as refused:
                if refused.errno == _BAD_DESCRIPTOR:
                    return
                raise
            length = self._u32(_RESULT + 4)
            self._call("fd_prestat_dir_name", fd, _PATH, length)
            yield fd, _decoded(self._read(_PATH, length))

    def read(self, fd: int, length: int, offset: int | None) -> bytes:
        """At most `length` bytes, at most 1 MiB; from where the descriptor stands without
        `offset`."""
        length = min(length, IO_BYTES_MAX)
        self._write(_VECTOR, struct.pack("<II", _DATA, length))
        if offset is None:
            self._call("fd_read", fd, _VECTOR, 1, _RESULT)
        else:
            self._call("fd_pread", fd, _VECTOR, 1, offset, _RESULT)
        return self._read(_DATA, self._u32(_RESULT))

    def write(self, fd: int, data: bytes, offset: int | None) -> int:
        """How many bytes of `data` were written."""
        data = data[:IO_BYTES_MAX]
        self._write(_DATA, data)
        self._write(_VECTOR, struct.pack("<II", _DATA, len(data)))
        if offset is None:
            self._call("fd_write", fd, _VECTOR, 1, _RESULT)
        else:
            self._call("fd_pwrite", fd, _VECTOR, 1, offset, _RESULT)
        return self._u32(_RESULT)

    def filestat(self, fd: int) -> Filestat:
        """Of an open file."""
        self._call("fd_filestat_get", fd, _RESULT)
        return self._filestat()

    def filestat_at(self, fd: int, path: str, *, follow: bool) -> Filestat:
        """Of what lies at a path below a folder."""
        self._call("path_filestat_get", fd, int(follow), *self._path(path), _RESULT)
        return self._filestat()

    def fdstat(self, fd: int) -> Fdstat:
        """Of an open descriptor: what may be done with it, and with those opened below it."""
        self._call("fd_fdstat_get", fd, _RESULT)
        return Fdstat(*_FDSTAT.unpack(self._read(_RESULT, _FDSTAT.size)))

    def open(
        self, fd: int, path: str, *, follow: bool, oflags: int, rights: int, fdflags: int = 0
    ) -> int:
        """A new descriptor."""
        inheriting = self.fdstat(fd).inheriting
        self._call(
            "path_open",
            *(fd, int(follow), *self._path(path), oflags),
            *(rights & inheriting, inheriting, fdflags, _RESULT),
        )
        return self._u32(_RESULT)

    def accept(self, fd: int) -> int:
        """The descriptor of a connection that was made to a listener."""
        self._call("sock_accept", fd, 0, _RESULT)
        return self._u32(_RESULT)

    def poll(self, waited: Sequence[tuple[int, bool]], timeout_ns: int | None) -> list[bool]:
        """Whether each of the descriptors can be read, or written (True), after waiting until one
        can or the time is over; without `timeout_ns` for as long as it takes."""
        given = [
            _SUBSCRIPTION.pack(number, 2 if writes else 1, fd, 0, 0, 0)
            for number, (fd, writes) in enumerate(waited)
        ]
        if timeout_ns is not None:
            given.append(_SUBSCRIPTION.pack(len(waited), 0, 1, timeout_ns, 0, 0))
        self._write(_DATA, b"".join(given))
        events = _DATA + len(given) * _SUBSCRIPTION.size
        self._call("poll_oneoff", _DATA, events, len(given), _RESULT)
        found = self._read(events, self._u32(_RESULT) * _EVENT.size)
        ready = {number for number, _, _ in _EVENT.iter_unpack(found)}
        return [number in ready for number in range(len(waited))]

    def entry(self, fd: int, cookie: int) -> DirectoryEntry | None:
        """The entry of a folder at `cookie`, None at the end."""
        self._call("fd_readdir", fd, _DATA, _PATH_BYTES_MAX, cookie, _RESULT)
        if self._u32(_RESULT) < _DIRENT.size:
            return None
        following, _, length, filetype = _DIRENT.unpack(self._read(_DATA, _DIRENT.size))
        return DirectoryEntry(
            _decoded(self._read(_DATA + _DIRENT.size, length)), filetype, following
        )

    def read_link(self, fd: int, path: str) -> str:
        """Where a symbolic link leads."""
        where, length = self._path(path)
        self._call("path_readlink", fd, where, length, _DATA, _PATH_BYTES_MAX, _RESULT)
        return _decoded(self._read(_DATA, self._u32(_RESULT)))

    def on_path(self, name: str, fd: int, path: str) -> None:
        """`path_create_directory`, `path_remove_directory` or `path_unlink_file`."""
        self._call(name, fd, *self._path(path))

    def rename(self, fd: int, path: str, new_fd: int, new_path: str) -> None:
        """See `path_rename`."""
        self._call("path_rename", fd, *self._path(path), new_fd, *self._path(new_path, _OTHER_PATH))

    def link(self, fd: int, path: str, new_fd: int, new_path: str, *, follow: bool) -> None:
        """See `path_link`."""
        new = self._path(new_path, _OTHER_PATH)
        self._call("path_link", fd, int(follow), *self._path(path), new_fd, *new)

    def symlink(self, target: str, fd: int, path: str) -> None:
        """See `path_symlink`."""
        self._call("path_symlink", *self._path(target), fd, *self._path(path, _OTHER_PATH))

    def set_times(self, fd: int, accessed_ns: int, modified_ns: int, flags: int) -> None:
        """See `fd_filestat_set_times`."""
        times = accessed_ns, modified_ns
        self._call("fd_filestat_set_times", fd, *times, flags)

    def set_times_at(
        self, fd: int, path: str, times_ns: tuple[int, int], flags: int, *, follow: bool
    ) -> None:
        """See `path_filestat_set_times`."""
        times = times_ns[0], times_ns[1]
        self._call("path_filestat_set_times", fd, int(follow), *self._path(path), *times, flags)

    def on_descriptor(self, name: str, fd: int, *arguments: int) -> None:
        """A function that takes a descriptor and numbers and has no results."""
        self._call(name, fd, *arguments)

    def clock(self, name: str, clock: int) -> int:
        """`clock_time_get` or `clock_res_get`, in ns."""
        precision = (0,) if name == "clock_time_get" else ()
        self._call(name, clock, *precision, _RESULT)
        return int.from_bytes(self._read(_RESULT, 8), "little")

    def _call(self, name: str, *arguments: int) -> None:
        # The types are those of `FUNCTIONS`; the first value is the result, an i32, afterwards.
        values = (ffi.wasmtime_val_raw_t * len(arguments))()
        for value, argument, letter in zip(values, arguments, FUNCTIONS[name], strict=True):
            if letter == "i":
                value.i32 = argument
            else:
                value.i64 = argument
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        error = ffi.wasmtime_func_call_unchecked(
            self._store._context(),
            ctypes.byref(self._functions[name]),
            values,
            len(values),
            ctypes.byref(trap),
        )
        if error:
            raise WasmtimeError._from_ptr(error)
        if trap:
            raise Trap._from_ptr(trap)
        if errno := values[0].i32:
            raise RefusedError(errno)

    def _path(self, path: str, where: int = _PATH) -> tuple[int, int]:
        encoded = path.encode()
        if len(encoded) > _PATH_BYTES_MAX:
            raise RefusedError(_NAME_TOO_LONG)
        self._write(where, encoded)
        return where, len(encoded)

    def _filestat(self) -> Filestat:
        return Filestat(*_FILESTAT.unpack(self._read(_RESULT, _FILESTAT.size)))

    def _read(self, address: int, length: int) -> bytes:
        return ctypes.string_at(self._memory + address, length)

    def _write(self, address: int, data: bytes) -> None:
        ctypes.memmove(self._memory + address, data, len(data))

    def _u32(self, address: int) -> int:
        return int.from_bytes(self._read(address, 4), "little")


def _decoded(text: bytes) -> str:
    """Raises `RefusedError` for what is not UTF-8, as links in plain folders may be."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(_ILLEGAL_BYTES) from error


def _forwarding(engine: Engine) -> Module:
    imports, forwards = [], []
    for name, letters in FUNCTIONS.items():
        kinds = " ".join(_TYPES[each] for each in letters)
        result = "" if name == "proc_exit" else "(result i32)"
        values = " ".join(f"(local.get {number})" for number in range(len(letters)))
        imports.append(f'(import "{MODULE}" "{name}" (func ${name} (param {kinds}) {result}))')
        forwards.append(
            f'(func (export "{name}") (param {kinds}) {result} (call ${name} {values}))'
        )
    text = f'(module {"".join(imports)} (memory (export "memory") {_PAGES}) {"".join(forwards)})'
    return Module(engine, text)
