"""WASI preview 2 over preview 1: what components get of files, streams, waiting and clocks.

It is defined here by calls of the vault's preview 1, so that a component has the same files, grants
and checks of the host as a module. Variables, arguments, exit and random bytes stay wasmtime's.
The types are those of https://github.com/WebAssembly/WASI, wasip2 (packages cli, clocks,
filesystem, io at 0.2; sockets are in `preview2_sockets`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from wasmtime.component import Record, ResourceHost, Variant

from avow.errors import ImportsError, LimitError, TrapError
from avow.sandbox import preview2_http
from avow.sandbox.component_functions import Failed
from avow.sandbox.preview2_sockets import Address, Socket, Sockets, resolved
from avow.sandbox.wasi_calls import Filestat, RefusedError, WasiCalls

RESOURCES: Final[Mapping[str, int]] = {
    name: number
    for number, name in enumerate(
        (
            *("error", "pollable", "input-stream", "output-stream"),
            *("descriptor", "directory-entry-stream", "terminal-input", "terminal-output"),
            *("network", "tcp-socket", "udp-socket", "incoming-datagram-stream"),
            *("outgoing-datagram-stream", "resolve-address-stream"),
            *preview2_http.RESOURCES,
        ),
        start=1,
    )
}
"""The resource types, with the numbers by which wasmtime tells them apart."""

READ_BYTES_MAX: Final = 64 << 10
WRITE_BYTES_MAX: Final = 64 << 10
HANDLES_MAX: Final = 1 << 16
"""How many things a component may have at once: each takes memory of avow's."""

_NS_PER_S: Final = 1_000_000_000
_REALTIME: Final = 0
_MONOTONIC: Final = 1
_STDIO: Final = (0, 1, 2)
_TERMINAL: Final = 2
_OVERFLOW: Final = 61
_U64_MAX: Final = (1 << 64) - 1

# Rights of preview 1 that writing and reading need (typenames.witx, `rights`).
_RIGHTS_ALL: Final = (1 << 30) - 1
_RIGHTS_WRITE: Final = 1 << 0 | 1 << 6 | 1 << 8 | 1 << 22
_RIGHTS_READ: Final = 1 << 1 | 1 << 14
_RIGHT_READ: Final = 1 << 1 | 1 << 14
_RIGHT_WRITE: Final = 1 << 6
_RIGHT_CREATE: Final = 1 << 10

# Flags of preview 1: a write returns when it is durable.
_FDFLAGS: Final = {
    "data-integrity-sync": 1 << 1,
    "requested-write-sync": 1 << 3,
    "file-integrity-sync": 1 << 4,
}
_OFLAGS: Final = {"create": 1, "directory": 2, "exclusive": 4, "truncate": 8}
_ADVICE: Final = ("normal", "sequential", "random", "will-need", "dont-need", "no-reuse")
_FILETYPES: Final = {
    1: "block-device",
    2: "character-device",
    3: "directory",
    4: "regular-file",
    5: "socket",
    6: "socket",
    7: "symbolic-link",
}
_TERMINALS: Final = (
    (0, "stdin", "terminal-input"),
    (1, "stdout", "terminal-output"),
    (2, "stderr", "terminal-output"),
)
_SET_TIME: Final = {"accessed": (1, 2), "modified": (4, 8)}
_CODES: Final = {
    2: "access",
    6: "would-block",
    7: "already",
    8: "bad-descriptor",
    10: "busy",
    16: "deadlock",
    19: "quota",
    20: "exist",
    22: "file-too-large",
    25: "illegal-byte-sequence",
    26: "in-progress",
    27: "interrupted",
    28: "invalid",
    29: "io",
    31: "is-directory",
    32: "loop",
    34: "too-many-links",
    35: "message-size",
    37: "name-too-long",
    43: "no-device",
    44: "no-entry",
    46: "no-lock",
    48: "insufficient-memory",
    51: "insufficient-space",
    52: "unsupported",
    54: "not-directory",
    55: "not-empty",
    56: "not-recoverable",
    58: "unsupported",
    59: "no-tty",
    60: "no-such-device",
    61: "overflow",
    63: "not-permitted",
    64: "pipe",
    69: "read-only",
    70: "invalid-seek",
    74: "text-file-busy",
    75: "cross-device",
    76: "access",
    33: "insufficient-memory",
    41: "insufficient-memory",
}


@dataclass(slots=True)
class _Stream:
    """A stream of a descriptor: from `offset` on, or where the descriptor stands (None)."""

    fd: int
    offset: int | None
    appends: bool = False


@dataclass(slots=True)
class _Entries:
    fd: int
    cookie: int = 0


@dataclass(frozen=True, slots=True)
class _Pollable:
    """Ready at once, at a time of the monotonic clock, or when a descriptor can be read, or
    written (True)."""

    at_ns: int | None = None
    waited: tuple[int, bool] | None = None


class Preview2:
    """The functions, by interface and name. They get handles as the numbers of their resources."""

    def __init__(
        self,
        calls: WasiCalls,
        clocks: frozenset[str],
        *,
        endpoints: Sequence[tuple[str, int]] = (),
        listeners: Sequence[tuple[str, int]] = (),
        resolve: Callable[[str], list[Address]] = resolved,
        on_denied: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._calls = calls
        self._clocks = clocks
        self._things: dict[int, Any] = {}
        self._free: list[int] = []
        # A stream may outlive the descriptor that it was made of, so descriptors are counted.
        self._uses: dict[int, int] = {}
        self._preopened = tuple(calls.preopened())
        # Those that listen follow the folders (`Wasi`).
        listening = tuple(enumerate(listeners, start=len(_STDIO) + len(self._preopened)))
        self._kept = frozenset(range(len(_STDIO) + len(self._preopened) + len(listening)))
        self._on_denied, self._http_was_denied = on_denied, False
        self._sockets = Sockets(
            *(calls, self, endpoints), listeners=listening, resolve=resolve, on_denied=on_denied
        )

    def functions(self) -> Mapping[str, Mapping[str, Callable[..., Any]]]:
        """All that are there."""
        return {
            "wasi:io/error": {"[method]error.to-debug-string": self._debug},
            "wasi:io/poll": {
                "[method]pollable.ready": lambda p: self._ready([self.thing(p)])[0],
                "[method]pollable.block": lambda p: self._wait([self.thing(p)]),
                "poll": self._poll,
            },
            "wasi:io/streams": self._of_streams(),
            "wasi:cli/stdin": {"get-stdin": lambda: self.own("input-stream", _Stream(0, None))},
            "wasi:cli/stdout": {"get-stdout": lambda: self.own("output-stream", _Stream(1, None))},
            "wasi:cli/stderr": {"get-stderr": lambda: self.own("output-stream", _Stream(2, None))},
            **{
                f"wasi:cli/terminal-{name}": {f"get-terminal-{name}": self._terminal(fd, kind)}
                for fd, name, kind in _TERMINALS
            },
            "wasi:clocks/wall-clock": {
                "now": lambda: _datetime(self._clock("clock_time_get", _REALTIME)),
                "resolution": lambda: _datetime(self._clock("clock_res_get", _REALTIME)),
            },
            "wasi:clocks/monotonic-clock": {
                "now": lambda: self._clock("clock_time_get", _MONOTONIC),
                "resolution": lambda: self._clock("clock_res_get", _MONOTONIC),
                "subscribe-instant": self._until,
                "subscribe-duration": self._after,
            },
            "wasi:filesystem/preopens": {"get-directories": self._directories},
            "wasi:filesystem/types": self._of_files(),
            **self._sockets.functions(),
            **preview2_http.functions(self.own, self._http_denied),
        }

    def _http_denied(self) -> None:
        if not self._http_was_denied:
            self._http_was_denied = True
            self._on_denied("the program tried to make an HTTP request, which no grant allows")

    def drop(self, rep: int) -> None:
        """The program has no handle of that thing any more."""
        thing = self._things.pop(rep)
        self._free.append(rep)
        fd = _descriptor_of(thing)
        if isinstance(thing, Socket):
            self._sockets.dropped(thing)
        if fd is None:
            return
        self._uses[fd] -= 1
        if self._uses[fd]:
            return
        del self._uses[fd]
        if fd not in self._kept:
            # What closing meets of damage is reported at the end; a program cannot be told here.
            with suppress(RefusedError):
                self._calls.on_descriptor("fd_close", fd)

    # Resources

    def own(self, kind: str, thing: object) -> ResourceHost:
        """A handle of the program for `thing`."""
        if len(self._things) == HANDLES_MAX:
            raise LimitError(
                f"expected a component with at most {HANDLES_MAX} open streams, descriptors "
                "and the like, got one that wants more; drop in the program what it does "
                "not need"
            )
        rep = self._free.pop() if self._free else len(self._things) + 1
        self._things[rep] = thing
        fd = _descriptor_of(thing)
        if fd is not None:
            self.hold(fd)
        return ResourceHost.own(rep, RESOURCES[kind])

    def thing(self, rep: int) -> Any:
        """What the handle with the number `rep` stands for."""
        return self._things[rep]

    def pollable(self, fd: int) -> ResourceHost:
        """What is waited for until the descriptor can be read."""
        return self.own("pollable", _Pollable(waited=(fd, False)))

    def hold(self, fd: int) -> None:
        """One more of the things that are there has this descriptor."""
        self._uses[fd] = self._uses.get(fd, 0) + 1

    def streams(self, fd: int) -> tuple[ResourceHost, ResourceHost]:
        """What is received by a connection, and what is sent."""
        return self.own("input-stream", _Stream(fd, None)), self.own(
            "output-stream", _Stream(fd, None)
        )

    def ready(self) -> ResourceHost:
        """What is waited for without waiting."""
        return self.own("pollable", _Pollable())

    def _terminal(self, fd: int, kind: str) -> Callable[[], ResourceHost | None]:
        def get() -> ResourceHost | None:
            try:
                filetype = self._calls.fdstat(fd).filetype
            except RefusedError:
                return None
            return self.own(kind, None) if filetype == _TERMINAL else None

        return get

    # Streams

    def _of_streams(self) -> dict[str, Callable[..., Any]]:
        methods: dict[str, Callable[..., Any]] = {
            "input-stream.read": self._read_ready,
            "input-stream.skip": lambda i, n: _length(self._read_ready(i, n)),
            "input-stream.blocking-read": self._read,
            "input-stream.blocking-skip": lambda i, n: _length(self._read(i, n)),
            "input-stream.subscribe": self._subscribe,
            "output-stream.check-write": self._check_write,
            "output-stream.write": self._write,
            "output-stream.blocking-write-and-flush": self._write,
            "output-stream.write-zeroes": self._write_zeroes,
            "output-stream.blocking-write-zeroes-and-flush": self._write_zeroes,
            "output-stream.flush": lambda o: None,
            "output-stream.blocking-flush": lambda o: None,
            "output-stream.splice": lambda o, i, n: self._splice(o, i, n, self._read_ready),
            "output-stream.blocking-splice": lambda o, i, n: self._splice(o, i, n, self._read),
            "output-stream.subscribe": lambda o: self._subscribe(o, writes=True),
        }
        return {f"[method]{name}": each for name, each in methods.items()}

    def _read_ready(self, rep: int, length: int) -> bytes | Failed:
        """What is there already, which may be nothing."""
        stream: _Stream = self.thing(rep)
        if stream.offset is None and not self._calls.poll([(stream.fd, False)], 0)[0]:
            return b""
        return self._read(rep, length)

    def _read(self, rep: int, length: int) -> bytes | Failed:
        stream: _Stream = self.thing(rep)
        if length == 0:
            return b""
        try:
            data = self._calls.read(stream.fd, min(length, READ_BYTES_MAX), stream.offset)
        except RefusedError as refused:
            return self._broken(refused)
        if not data:
            return Failed(None)  # closed
        if stream.offset is not None:
            stream.offset += len(data)
        return data

    def _write(self, rep: int, data: bytes) -> Failed | None:
        stream: _Stream = self.thing(rep)
        try:
            while data:
                if stream.appends:
                    stream.offset = self._calls.filestat(stream.fd).size_bytes
                count = self._calls.write(stream.fd, data, stream.offset)
                data = data[count:]
                if stream.offset is not None:
                    stream.offset += count
        except RefusedError as refused:
            return self._broken(refused)
        return None

    def _write_zeroes(self, rep: int, length: int) -> Failed | None:
        if length > WRITE_BYTES_MAX:
            # WASI: whoever writes more than `check-write` allowed is stopped.
            raise TrapError(
                f"expected a component to write at most {WRITE_BYTES_MAX} bytes at a time, "
                f"as check-write says, got {length}; this is a bug in the program: report "
                "it to its author"
            )
        return self._write(rep, bytes(length))

    def _splice(
        self, out: int, into: int, length: int, read: Callable[[int, int], bytes | Failed]
    ) -> int | Failed:
        data = read(into, length)
        if isinstance(data, Failed):
            return data
        failed = self._write(out, data)
        return len(data) if failed is None else failed

    def _broken(self, refused: RefusedError) -> Failed:
        return Failed(self.own("error", refused))

    def _debug(self, rep: int) -> str:
        return str(self.thing(rep))

    def _check_write(self, rep: int) -> int:
        stream: _Stream = self.thing(rep)
        if stream.offset is None and not self._calls.poll([(stream.fd, True)], 0)[0]:
            return 0
        return WRITE_BYTES_MAX

    def _subscribe(self, rep: int, *, writes: bool = False) -> ResourceHost:
        stream: _Stream = self.thing(rep)
        waited = (stream.fd, writes) if stream.offset is None else None
        return self.own("pollable", _Pollable(waited=waited))

    # Waiting

    def _until(self, when_ns: int) -> ResourceHost:
        self._needs("monotonic")
        return self.own("pollable", _Pollable(at_ns=when_ns))

    def _after(self, length_ns: int) -> ResourceHost:
        return self._until(self._clock("clock_time_get", _MONOTONIC) + length_ns)

    def _ready(self, pollables: list[_Pollable], timeout_ns: int | None = 0) -> list[bool]:
        """Which are ready, after waiting for `timeout_ns`, or for a descriptor of theirs."""
        waited = sorted({each.waited for each in pollables if each.waited is not None})
        polled = self._calls.poll(waited, timeout_ns)
        ready = {None, *(each for each, is_ready in zip(waited, polled, strict=True) if is_ready)}
        now_ns = 0
        if any(each.at_ns is not None for each in pollables):
            now_ns = self._clock("clock_time_get", _MONOTONIC)
        return [
            each.waited in ready if each.at_ns is None else now_ns >= each.at_ns
            for each in pollables
        ]

    def _wait(self, pollables: list[_Pollable]) -> list[bool]:
        ready = self._ready(pollables)
        while not any(ready):
            left_ns = None
            deadlines = [each.at_ns for each in pollables if each.at_ns is not None]
            if deadlines:
                left_ns = max(0, min(deadlines) - self._clock("clock_time_get", _MONOTONIC))
                left_ns = min(left_ns, _U64_MAX)
            ready = self._ready(pollables, left_ns)
        return ready

    def _poll(self, reps: list[int]) -> list[int]:
        if not reps:
            raise TrapError(
                "expected a component to wait for something, got a wait for an empty list; "
                "this is a bug in the program: report it to its author"
            )
        ready = self._wait([self.thing(each) for each in reps])
        return [number for number, each in enumerate(ready) if each]

    # Clocks

    def _needs(self, clock: str) -> None:
        if clock not in self._clocks:
            raise ImportsError(
                f"expected the program to do without the {clock} clock, which was not "
                f"granted, but it asked for it; allow it with `--grant clock:{clock}`"
            )

    def _clock(self, function: str, clock: int) -> int:
        self._needs("realtime" if clock == _REALTIME else "monotonic")
        return self._calls.clock(function, clock)

    # Files

    def _directories(self) -> list[tuple[ResourceHost, str]]:
        return [(self.own("descriptor", fd), name) for fd, name in self._preopened]

    def _of_files(self) -> dict[str, Callable[..., Any]]:
        calls = self._calls

        def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
            """Of a method: the descriptor's number in place of its handle, and errors as codes."""

            def call(rep: int, *arguments: Any) -> Any:
                try:
                    return function(self.thing(rep), *arguments)
                except RefusedError as refused:
                    return Failed(_CODES.get(refused.errno, "io"))

            return call

        methods: dict[str, Callable[..., Any]] = {
            "read-via-stream": lambda fd, at: self.own("input-stream", _Stream(fd, at)),
            "write-via-stream": lambda fd, at: self.own("output-stream", _Stream(fd, at)),
            "append-via-stream": lambda fd: self.own("output-stream", _Stream(fd, 0, True)),
            "advise": lambda fd, at, n, advice: calls.on_descriptor(
                "fd_advise", fd, at, n, _ADVICE.index(advice)
            ),
            "sync-data": lambda fd: calls.on_descriptor("fd_datasync", fd),
            "sync": lambda fd: calls.on_descriptor("fd_sync", fd),
            "set-size": lambda fd, n: calls.on_descriptor("fd_filestat_set_size", fd, n),
            "get-type": lambda fd: _filetype(calls.filestat(fd).filetype),
            "get-flags": lambda fd: self._flags(fd),
            "set-times": lambda fd, a, m: calls.set_times(fd, *_new_times(a, m)),
            "read": self._read_at,
            "write": lambda fd, data, at: calls.write(fd, data, at),
            "read-directory": self._read_directory,
            "create-directory-at": lambda fd, p: calls.on_path("path_create_directory", fd, p),
            "remove-directory-at": lambda fd, p: calls.on_path("path_remove_directory", fd, p),
            "unlink-file-at": lambda fd, p: calls.on_path("path_unlink_file", fd, p),
            "stat": lambda fd: _stat(calls.filestat(fd)),
            "stat-at": lambda fd, flags, p: _stat(calls.filestat_at(fd, p, follow=bool(flags))),
            "set-times-at": self._set_times_at,
            "link-at": lambda fd, flags, p, to, q: calls.link(
                fd, p, self.thing(to), q, follow=bool(flags)
            ),
            "open-at": self._open_at,
            "readlink-at": lambda fd, p: calls.read_link(fd, p),
            "rename-at": lambda fd, p, to, q: calls.rename(fd, p, self.thing(to), q),
            "symlink-at": lambda fd, target, p: calls.symlink(target, fd, p),
            "is-same-object": lambda fd, other: (
                _identity(calls.filestat(fd)) == _identity(calls.filestat(self.thing(other)))
            ),
            "metadata-hash": lambda fd: _hash(calls.filestat(fd)),
            "metadata-hash-at": lambda fd, flags, p: _hash(
                calls.filestat_at(fd, p, follow=bool(flags))
            ),
        }
        return {
            **{f"[method]descriptor.{name}": plainly(each) for name, each in methods.items()},
            "[method]directory-entry-stream.read-directory-entry": plainly(self._entry),
            "filesystem-error-code": self._error_code,
        }

    def _flags(self, fd: int) -> set[str]:
        found = self._calls.fdstat(fd)
        named = {"read": _RIGHT_READ, "write": _RIGHT_WRITE, "mutate-directory": _RIGHT_CREATE}
        return {name for name, right in named.items() if found.rights & right} | {
            name for name, flag in _FDFLAGS.items() if found.flags & flag
        }

    def _read_at(self, fd: int, length: int, offset: int) -> tuple[bytes, bool]:
        # Programs take a short read for the end of the file: not cut to the piece of a stream.
        data = self._calls.read(fd, length, offset)
        return data, not data and length > 0

    def _read_directory(self, fd: int) -> ResourceHost:
        self._calls.entry(fd, 0)
        return self.own("directory-entry-stream", _Entries(fd))

    def _entry(self, entries: _Entries) -> Record | None:
        while (entry := self._calls.entry(entries.fd, entries.cookie)) is not None:
            entries.cookie = entry.next_cookie
            if entry.name not in (".", ".."):
                return _record(type=_filetype(entry.filetype), name=entry.name)
        return None

    def _set_times_at(
        self, fd: int, follow: set[str], path: str, accessed: Any, modified: Any
    ) -> None:
        first, second, flags = _new_times(accessed, modified)
        self._calls.set_times_at(fd, path, (first, second), flags, follow=bool(follow))

    def _open_at(
        self, fd: int, follow: set[str], path: str, opening: set[str], flags: set[str]
    ) -> ResourceHost:
        rights = _RIGHTS_ALL
        if "write" not in flags:
            rights &= ~_RIGHTS_WRITE
        if "read" not in flags and "write" in flags:
            rights &= ~_RIGHTS_READ
        oflags = sum(_OFLAGS[each] for each in opening)
        fdflags = sum(flag for name, flag in _FDFLAGS.items() if name in flags)
        opened = self._calls.open(
            fd, path, follow=bool(follow), oflags=oflags, rights=rights, fdflags=fdflags
        )
        return self.own("descriptor", opened)

    def _error_code(self, rep: int) -> str | None:
        return _CODES.get(self.thing(rep).errno, "io")


def _descriptor_of(thing: object) -> int | None:
    if isinstance(thing, int):
        return thing
    return thing.fd if isinstance(thing, _Stream | _Entries | Socket) else None


def _record(**fields: Any) -> Record:
    record = Record()
    for name, value in fields.items():
        setattr(record, name.replace("_", "-"), value)
    return record


def _datetime(ns: int) -> Record:
    return _record(seconds=ns // _NS_PER_S, nanoseconds=ns % _NS_PER_S)


def _filetype(number: int) -> str:
    return _FILETYPES.get(number, "unknown")


def _stat(stat: Filestat) -> Record:
    return _record(
        type=_filetype(stat.filetype),
        link_count=stat.links,
        size=stat.size_bytes,
        data_access_timestamp=_datetime(stat.accessed_ns),
        data_modification_timestamp=_datetime(stat.modified_ns),
        status_change_timestamp=_datetime(stat.changed_ns),
    )


def _identity(stat: Filestat) -> tuple[int, int]:
    return stat.device, stat.inode


def _hash(stat: Filestat) -> Record:
    return _record(lower=stat.inode, upper=stat.device)


def _new_times(accessed: Variant, modified: Variant) -> tuple[int, int, int]:
    """The times in ns and the flags of `fd_filestat_set_times`, of two `new-timestamp`."""
    times: list[int] = []
    flags = 0
    for name, given in (("accessed", accessed), ("modified", modified)):
        given_at, now = _SET_TIME[name]
        tag, value = given.tag, cast(Any, given.payload)
        flags |= {"no-change": 0, "now": now, "timestamp": given_at}[tag]
        at_ns = value.seconds * _NS_PER_S + value.nanoseconds if tag == "timestamp" else 0
        if at_ns > _U64_MAX:
            raise RefusedError(_OVERFLOW)
        times.append(at_ns)
    return times[0], times[1], flags


def _length(data: bytes | Failed) -> int | Failed:
    return data if isinstance(data, Failed) else len(data)
