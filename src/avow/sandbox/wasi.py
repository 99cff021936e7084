"""The binding of the vault's WASI: what one program is granted, given to native host functions.

The native side is vault/src/wasi; `_Setup` and `HOST_FUNCTIONS` mirror `Setup` in its wasi.zig and
`Host` in its host.zig field by field. How each function behaves is docs/reference/wasi.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from wasmtime import FuncType, Linker, Memory, ValType, WasmtimeError
from wasmtime import Store as Instances
from wasmtime import _ffi as wasmtime_ffi

from avow import artefacts
from avow.errors import DamagedError, MalformedError, StorageError, UnavailableError
from avow.sandbox.anchored_calls import COMMITTING, anchored
from avow.sandbox.grants import KINDS, parse_grants
from avow.sandbox.memory_folders import MemoryFolders
from avow.sandbox.traps import printable
from avow.sealing.callback_fence import CallbackFence

if TYPE_CHECKING:
    from avow.sandbox.program import Surroundings
    from avow.sealing.store import Store

MODULE: Final = "wasi_snapshot_preview1"

FUNCTIONS: Final[Mapping[str, str]] = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_get": "ii",
    "fd_prestat_dir_name": "iii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "sched_yield": "",
    "random_get": "ii",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}
"""All functions of preview 1 with their parameters, `i` for an i32 and `I` for an i64. The result
is an i32, the errno, but for `proc_exit`, which has none."""

NETWORK: Final = "/net"
"""Where a program finds its connections: it opens `/net/tcp/HOST:PORT`."""

_CONNECT_TIMEOUT_S: Final = 30.0
_INTERRUPT_CHECK_S: Final = 0.25
_CLOCKS: Final = {"realtime": 1, "monotonic": 2}
_MEMORY_HANDLE_BYTES: Final = 24

_ENDED_EXITED: Final = 1
_ENDED_INTERRUPTED: Final = 2
_ENDED_SIGNALLED: Final = 3

_NO_DIRECTORY: Final = -2
_TOO_MANY: Final = -4

_POINTER = ctypes.c_void_p
_FD = ctypes.c_int32
_SIZE = ctypes.c_size_t


def _host_type(*parameters: Any, result: Any = ctypes.c_int64) -> Any:
    return ctypes.CFUNCTYPE(result, _POINTER, *parameters)


HOST_FUNCTIONS: Final[Mapping[str, Any]] = {
    "clock": _host_type(ctypes.c_uint32, _POINTER),
    "read": _host_type(_FD, _POINTER, _SIZE, ctypes.c_int64),
    "write": _host_type(_FD, _POINTER, _SIZE),
    "open": _host_type(_FD, ctypes.c_char_p, ctypes.c_uint32),
    "close": _host_type(_FD),
    "facts": _host_type(_FD, _POINTER),
    "read_link": _host_type(_FD, _POINTER, _SIZE),
    "entries": _host_type(_FD, _POINTER, _SIZE),
    "rewind": _host_type(_FD),
    "poll": _host_type(_POINTER, _SIZE, ctypes.c_int64),
    "receive": _host_type(_FD, _POINTER, _SIZE, ctypes.c_uint32),
    "send": _host_type(_FD, _POINTER, _SIZE),
    "accept": _host_type(_FD),
    "shutdown": _host_type(_FD, ctypes.c_int32),
    "connect": _host_type(_POINTER, _SIZE),
    "yield": _host_type(),
    "signalled": _host_type(),
    "denied": _host_type(_POINTER, _SIZE, result=None),
}
"""All that WASI asks of the host, by name, as ctypes function types. Each gets a context first; the
result is 0 or more, or a negative errno of Linux."""


class _Setup(ctypes.Structure):
    _fields_ = (
        *(
            (name, _SIZE)
            for name in (
                "caller_context",
                "caller_export_get",
                "memory_data",
                "memory_data_size",
                "trap_new",
                "trap_new_code",
                "clock_gettime",
                "store",
            )
        ),
        ("entropy", ctypes.c_uint8 * 32),
        ("started_ns", ctypes.c_uint64),
        ("clocks", ctypes.c_uint32),
    )


_WASMTIME_FUNCTIONS: Final = {
    "caller_context": "wasmtime_caller_context",
    "caller_export_get": "wasmtime_caller_export_get",
    "memory_data": "wasmtime_memory_data",
    "memory_data_size": "wasmtime_memory_data_size",
    "trap_new": "wasmtime_trap_new",
    "trap_new_code": "wasmtime_trap_new_code",
}


class _Table(ctypes.Structure):
    _fields_ = (("context", _POINTER), *((name, _SIZE) for name in HOST_FUNCTIONS))


class _Function(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("parameters", ctypes.c_char_p),
        ("has_result", ctypes.c_uint32),
        ("callback", _SIZE),
    )


@dataclass(frozen=True, slots=True)
class SealedDirectory:
    """`directory` of the store ("/files/a") is `guest` ("/a") to the program."""

    guest: str
    directory: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class PlainDirectory:
    """`host`, a directory of this machine, can be read at `guest`."""

    guest: str
    host: Path


@dataclass(frozen=True, slots=True)
class MemoryDirectory:
    """`files`, by names without a slash, can be read at `guest`; they are in memory only."""

    guest: str
    files: Mapping[str, bytes] = field(repr=False)


Directory = SealedDirectory | PlainDirectory | MemoryDirectory


class Wasi:
    """One program's WASI. Define it in a linker, attach it to the instance's memory, run, close.

    ``stdio``: descriptors of this process for 0, 1 and 2; they stay open. ``directories`` get the
    descriptors from 3 on in their order; `/net` follows when there are ``endpoints`` ("host:port"),
    then an empty `/` when nothing was granted there, then ``listeners`` (sockets that listen; they
    belong to the program from now on). ``clocks``: "realtime" and "monotonic" as granted; without
    the first, files are dated with the time of the start. ``entropy``: 32 random bytes. ``connect``
    opens a connection and returns its descriptor, or raises OSError. ``keep_up`` is called after
    each call that may have committed (`anchored_calls`). ``on_denied`` is told the text
    of a grant that was missing, each once.

    Everything runs in the thread that runs the program, but `interrupt`. Raises UnavailableError
    when the native library is absent, StorageError or DamagedError when the store fails, and
    MalformedError for a directory that is not there.
    """

    def __init__(
        self,
        *,
        arguments: Sequence[str],
        entropy: bytes,
        variables: Iterable[tuple[str, str]] = (),
        directories: Iterable[Directory] = (),
        store: Store | None = None,
        clocks: Iterable[str] = (),
        endpoints: Sequence[str] = (),
        listeners: Sequence[socket.socket] = (),
        stdio: tuple[int, int, int] = (0, 1, 2),
        started_ns: int | None = None,
        connect: Callable[[str, int], int] | None = None,
        on_denied: Callable[[str], None] = lambda grant: None,
        on_signal: Callable[[], bool] = lambda: False,
        keep_up: Callable[[], object] | None = None,
    ) -> None:
        self._handle: int | None = None
        self._interrupted = False
        # Re-entrant, because a signal handler may interrupt in the middle of `close`.
        self._ending_lock = threading.RLock()
        self._last = (0, 0)
        self._kept: list[Any] = []
        self._fence = CallbackFence()
        self._store = store
        self._memory_folders = MemoryFolders()
        self._connect = connect
        self._on_denied, self._on_signal = on_denied, on_signal
        self.last_refused = ""
        self._keep_up = keep_up
        self._library = _load_library()
        if len(entropy) != 32:
            raise MalformedError(
                f"expected 32 bytes of entropy for WASI, got {len(entropy)}; report this"
            )
        setup = _setup(entropy, store, clocks, started_ns)
        self._handle = self._library.avow_wasi_create(ctypes.byref(setup))
        if self._handle is None:
            raise UnavailableError("no memory, or no descriptor, for a program's WASI")
        try:
            self._grant(arguments, variables, directories, endpoints, listeners, stdio)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, surroundings: Surroundings) -> Self:
        """What `surroundings` grant. Errors as of the class; UnavailableError for an address that
        cannot be listened at."""
        grants = surroundings.grants
        directories: list[Directory] = [
            SealedDirectory(each.guest, f"/files/{each.folder}", each.read_only)
            for each in grants.sealed
        ]
        directories += [PlainDirectory(each.guest, each.host) for each in grants.plain]
        directories += [MemoryDirectory(at, surroundings.provisioned) for at in grants.provisioned]
        listeners: list[socket.socket] = []
        try:
            for address in grants.listen:
                listeners.append(listen(address.host, address.port))
            return cls(
                arguments=surroundings.arguments,
                entropy=os.urandom(32),
                variables=surroundings.variables,
                directories=directories,
                store=surroundings.store,
                clocks=grants.clocks,
                endpoints=[str(each) for each in grants.tcp],
                listeners=listeners,
                on_denied=lambda grant: surroundings.denied(refusal(grant)),
                keep_up=surroundings.keep_up,
            )
        finally:
            # Those that were handed over are detached: closing them is without effect.
            for each in listeners:
                each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def define(self, linker: Linker) -> None:
        """Define all functions of `wasi_snapshot_preview1`. They are called until `close`."""
        handle = self._open_handle()
        module = MODULE.encode()
        finalizer = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(0)
        for name, function in self._functions().items():
            encoded = name.encode()
            callback: Any = wasmtime_ffi.wasmtime_func_unchecked_callback_t(function.callback)
            if self._keep_up is not None and name in COMMITTING:
                callback = anchored(callback, self._keep_up, self._fence)
                self._kept.append(callback)
            kinds = [_VALUES[letter]() for letter in function.parameters.decode()]
            signature = FuncType(kinds, [ValType.i32()] if function.has_result else [])
            error = wasmtime_ffi.wasmtime_linker_define_func_unchecked(
                linker.ptr(),
                module,
                len(module),
                encoded,
                len(encoded),
                signature.ptr(),
                callback,
                ctypes.c_void_p(handle),
                finalizer,
            )
            if error:
                raise WasmtimeError._from_ptr(error)

    def attach(self, store: Instances, memory: Memory) -> None:
        """The memory that the functions work on. Without it: the caller's export `memory`."""
        raw = memory._memory
        if ctypes.sizeof(raw) != _MEMORY_HANDLE_BYTES:
            raise UnavailableError(
                f"expected wasmtime's handles of a memory to have {_MEMORY_HANDLE_BYTES} "
                f"bytes, got {ctypes.sizeof(raw)}; install the version of wasmtime that "
                "avow requires"
            )
        self._library.avow_wasi_attach(self._open_handle(), ctypes.byref(raw))

    @property
    def exit_code(self) -> int | None:
        """What the program gave `proc_exit`, 128 and the signal after `proc_raise`, else None."""
        ending, code = self._ending()
        return code if ending in {_ENDED_EXITED, _ENDED_SIGNALLED} else None

    @property
    def was_interrupted(self) -> bool:
        """Whether `interrupt` ended the program."""
        return self._ending()[0] == _ENDED_INTERRUPTED

    def interrupt(self) -> None:
        """End the program at its next call that could wait, or now if it waits. Callable from any
        thread and from a signal handler."""
        self._interrupted = True
        with self._ending_lock:
            if self._handle is not None:
                self._library.avow_wasi_interrupt(self._handle)

    def check_callbacks(self) -> None:
        """Raises what a Python function raised while the program ran, which then got EIO."""
        self._fence.check()

    def check_store(self) -> None:
        """Raises DamagedError or StorageError if it made a call of the program fail."""
        failure = self._library.avow_wasi_store_failure(self._open_handle())
        if failure == _DAMAGED:
            raise DamagedError(
                "what the program read from the store is not what was committed: run "
                "`avow store check` to see which files are damaged"
            )
        if failure != 0:
            raise StorageError(
                f"the disk below the store failed while the program ran "
                f"({_FAILURES.get(failure, 'no reason')}): free space or replace it"
            )

    def replace(self, name: str, function: Callable[..., Any]) -> None:
        """Put another host function into the table (`HOST_FUNCTIONS`): for tests."""
        callback = HOST_FUNCTIONS[name](self._fence.around(function))
        # All of them, since `native` may have given an earlier one away.
        self._kept.append(callback)
        table = self._library.avow_wasi_host(self._open_handle()).contents
        setattr(table, name, _address(callback))

    def native(self, name: str) -> Callable[..., Any]:
        """The function in the table now, callable from Python, without the context."""
        table = self._library.avow_wasi_host(self._open_handle()).contents
        function = HOST_FUNCTIONS[name](getattr(table, name))
        context = table.context
        return lambda *arguments: function(context, *arguments)

    def close(self) -> None:
        """Close every descriptor of the program. Nothing that was defined may be called after.

        To be called before the store is closed: after it there is nothing left to give back to, and
        the descriptors stay open. Raises UnavailableError then.
        """
        with self._ending_lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._last = self._ending_of(handle)
                # Raises for a store that is closed: its memory must not be touched any more.
                _ = None if self._store is None else self._store.handle
                self._library.avow_wasi_destroy(handle)

    def _ending(self) -> tuple[int, int]:
        return self._last if self._handle is None else self._ending_of(self._handle)

    def _ending_of(self, handle: int) -> tuple[int, int]:
        code = ctypes.c_uint32()
        ending = self._library.avow_wasi_ending(handle, ctypes.byref(code))
        return int(ending), code.value

    def _functions(self) -> dict[str, _Function]:
        functions: dict[str, _Function] = {}
        while pointer := self._library.avow_wasi_function(len(functions)):
            functions[pointer.contents.name.decode()] = pointer.contents
        found = {name: each.parameters.decode() for name, each in functions.items()}
        if found != FUNCTIONS:
            raise UnavailableError(
                "expected the WASI functions of this version of avow in the vault, got "
                "others; rebuild it with `make build` or `pip install .`"
            )
        return functions

    def _open_handle(self) -> int:
        if self._handle is None:
            raise UnavailableError("this program's WASI is closed: make a new one")
        return self._handle

    def _grant(
        self,
        arguments: Sequence[str],
        variables: Iterable[tuple[str, str]],
        directories: Iterable[Directory],
        endpoints: Sequence[str],
        listeners: Sequence[socket.socket],
        stdio: tuple[int, int, int],
    ) -> None:
        library, handle = self._library, self._open_handle()
        for argument in arguments:
            self._add(library.avow_wasi_add_argument, _string(argument))
        for name, value in variables:
            self._add(library.avow_wasi_add_environment, _string(f"{name}={value}"))
        for number, fd in enumerate(stdio):
            _done(library.avow_wasi_add_stdio(handle, fd, number > 0, _is_terminal(fd)))
        has_root = False
        for directory in directories:
            has_root = has_root or directory.guest == "/"
            self._preopen(directory)
        if endpoints:
            self._add(library.avow_wasi_add_network, NETWORK.encode())
        if not has_root:
            self._add(library.avow_wasi_add_nothing, b"/")
        for endpoint in endpoints:
            self._add(library.avow_wasi_add_endpoint, _string(endpoint))
        for listener in listeners:
            listener.setblocking(False)
            _done(library.avow_wasi_add_listener(handle, listener.fileno()))
            listener.detach()
        self.replace("connect", self._connected)
        self.replace("denied", self._denied)
        self.replace("signalled", self._signalled)
        for name, function in self._memory_folders.functions(self.native).items():
            self.replace(name, function)

    def _add(self, add: Callable[..., int], text: bytes) -> None:
        _done(add(self._open_handle(), text, len(text)))

    def _preopen(self, directory: Directory) -> None:
        handle, guest = self._open_handle(), _string(directory.guest)
        if isinstance(directory, MemoryDirectory):
            fd = self._memory_folders.add(directory.files)
            _done(self._library.avow_wasi_add_plain(handle, guest, len(guest), fd))
            return
        if isinstance(directory, PlainDirectory):
            try:
                fd = os.open(directory.host, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise MalformedError(
                    f"the plain directory {directory.host} for {directory.guest} cannot be "
                    f"opened ({error.strerror}): check its permissions, or grant another"
                ) from error
            try:
                _done(self._library.avow_wasi_add_plain(handle, guest, len(guest), fd))
            except BaseException:
                os.close(fd)
                raise
            return
        path = _string(directory.directory)
        outcome: int = self._library.avow_wasi_add_sealed(
            handle, guest, len(guest), path, len(path), directory.read_only
        )
        if outcome == _NO_DIRECTORY:
            raise MalformedError(
                f"{directory.directory} for {directory.guest} is not a directory in the "
                "open sealed store: make it first, or name another"
            )
        if outcome < 0:
            self.check_store()
        _done(outcome)

    def _connected(self, _: int, text: int, length: int) -> int:
        host, _colon, port = ctypes.string_at(text, length).decode().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            if self._connect is not None:
                return self._connect(host, int(port))
            return _connect(host, int(port), lambda: self._interrupted)
        except (socket.gaierror, UnicodeError):
            # The second: a name that can be none, such as one with an empty label.
            return -errno.EHOSTUNREACH
        except TimeoutError:
            return -errno.ETIMEDOUT
        except OSError as error:
            return -(error.errno or errno.EIO)

    def _denied(self, _: int, text: int, length: int) -> None:
        grant = ctypes.string_at(text, length).decode("utf-8", "backslashreplace")
        self.last_refused = printable(grant)
        # To tell it is no affair of the program's: standard error may be gone.
        with contextlib.suppress(OSError):
            self._on_denied(printable(grant))

    def _signalled(self, _: int) -> int:
        return int(self._on_signal())


def refusal(grant: str) -> str:
    """What is said of a grant that a program would have needed, in words that a shell may be given:
    the program chose what is in it."""
    try:
        if grant != KINDS["listen"]:
            parse_grants([grant], folder=Path())
    except MalformedError:
        return f"the program was refused {shlex.quote(grant)}, which no grant can allow"
    # What is granted is a folder, and what lies in `/` may have been meant as a file.
    file = " (`--grant sealed:/` if it is a file)" if grant.startswith("sealed:") else ""
    return f"the program was refused something; `--grant {shlex.quote(grant)}` would allow it{file}"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises UnavailableError when that cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family)
        # As for connections; what is accepted has it too (tcp(7)), and no program could ask for it.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server
    except OSError as error:
        raise UnavailableError(
            f"the address {host}:{port} cannot be listened on ({error.strerror or error}): "
            "free it, or grant another"
        ) from error


def _connect(host: str, port: int, interrupted: Callable[[], bool]) -> int:
    """The descriptor of a connection that does not block; all addresses are tried, and each has its
    part of the time."""
    last: OSError = TimeoutError()
    deadline_s = time.monotonic() + _CONNECT_TIMEOUT_S
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found):
        left_s = deadline_s - time.monotonic()
        until_s = time.monotonic() + left_s / (len(found) - number)
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.setblocking(False)
                _finish(connection, connection.connect_ex(address), until_s, interrupted)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection.detach()
        except OSError as error:
            # Perhaps this machine has none of this family at all.
            last = error
        if interrupted():
            break
    raise last


def _finish(
    connection: socket.socket, outcome: int, until_s: float, interrupted: Callable[[], bool]
) -> None:
    waiting = select.poll()
    waiting.register(connection, select.POLLOUT)
    while outcome == errno.EINPROGRESS:
        if interrupted() or time.monotonic() > until_s:
            raise TimeoutError
        if waiting.poll(_INTERRUPT_CHECK_S * 1000):
            outcome = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if outcome != 0:
        raise OSError(outcome, os.strerror(outcome))


_VALUES: Final[Mapping[str, Callable[[], ValType]]] = {"i": ValType.i32, "I": ValType.i64}

# vault/src/store/errors.zig
_DAMAGED: Final = -10
_FAILURES: Final = {
    -8: "it is full",
    -9: "reading or writing was refused",
    -13: "an earlier failure",
}


def _string(text: str) -> bytes:
    """As C has it. Raises MalformedError for a zero byte inside."""
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise MalformedError(
            f"{text!r} has a zero byte, which cannot be passed to a program: remove it"
        )
    return encoded


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _done(outcome: int) -> None:
    if outcome == _TOO_MANY:
        raise MalformedError("a program has at most 4096 descriptors: grant fewer directories")
    if outcome < 0:
        raise UnavailableError("no memory for a program's WASI")


def _setup(
    entropy: bytes, store: Store | None, clocks: Iterable[str], started_ns: int | None
) -> _Setup:
    setup = _Setup(
        started_ns=time.time_ns() if started_ns is None else started_ns,
        clocks=sum(_CLOCKS[name] for name in frozenset(clocks)),
        store=0 if store is None else store.handle,
    )
    setup.entropy[:] = entropy
    for slot, symbol in _WASMTIME_FUNCTIONS.items():
        setattr(setup, slot, _address(getattr(wasmtime_ffi.dll, symbol)))
    setup.clock_gettime = _address(ctypes.CDLL(None).clock_gettime)
    return setup


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _load_library() -> Any:
    path = artefacts.vault_path()
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be loaded ({error}): rebuild it") from error
    handle, text, size, fd = _POINTER, ctypes.c_char_p, _SIZE, _FD
    for name, result, parameters in (
        ("create", ctypes.c_void_p, [_POINTER]),
        ("destroy", None, [handle]),
        ("host", ctypes.POINTER(_Table), [handle]),
        ("function", ctypes.POINTER(_Function), [size]),
        ("attach", None, [handle, _POINTER]),
        ("add_argument", ctypes.c_int64, [handle, text, size]),
        ("add_environment", ctypes.c_int64, [handle, text, size]),
        ("add_endpoint", ctypes.c_int64, [handle, text, size]),
        ("add_stdio", ctypes.c_int64, [handle, fd, ctypes.c_bool, ctypes.c_bool]),
        ("add_sealed", ctypes.c_int64, [handle, text, size, text, size, ctypes.c_bool]),
        ("add_plain", ctypes.c_int64, [handle, text, size, fd]),
        ("add_network", ctypes.c_int64, [handle, text, size]),
        ("add_nothing", ctypes.c_int64, [handle, text, size]),
        ("add_listener", ctypes.c_int64, [handle, fd]),
        ("interrupt", None, [handle]),
        ("ending", ctypes.c_uint32, [handle, _POINTER]),
        ("store_failure", ctypes.c_int64, [handle]),
    ):
        function = getattr(library, f"avow_wasi_{name}")
        function.restype = result
        function.argtypes = parameters
    return library
