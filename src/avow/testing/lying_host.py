"""A host that lies to a program's WASI: about how much was read, about time, files and readiness.

It stands between `avow.sandbox.wasi.Wasi` and the honest functions of its table. Which lie is told
when comes from a seed, so a failure can be played again; `told` has what was told. No lie changes
the bytes of streams and plain files, which are the host's own word: what is tried is that nothing
which it says about them is believed unchecked. Sealed files have `avow.testing.lying_disk`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import random
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from avow.sandbox.wasi import Wasi

_ERRORS: Final = (
    errno.EIO,
    errno.EINTR,
    errno.EAGAIN,
    errno.EBADF,
    errno.EPERM,
    errno.ENOMEM,
    errno.EXDEV,
    errno.ENOSYS,
    errno.EINVAL,
    # No errno at all.
    134,
    4096,
    1 << 40,
    1 << 63,
)
_TIME: Final = struct.Struct("<qq")
_FACTS: Final = struct.Struct("<IIQQq6q")
_WAITING: Final = struct.Struct("<ihh")
_SECOND_NS: Final = 10**9

Native = Callable[..., int]
Lie = Callable[["LyingHost", Native, tuple[Any, ...]], int]


class LyingHost:
    """Every call lies with the probability `rate`.

    `lies` are the names of the lies that may be told ("read: long"); all of them by default.
    """

    def __init__(
        self,
        wasi: Wasi,
        rng: random.Random,
        *,
        rate: float = 0.05,
        lies: Collection[str] | None = None,
    ) -> None:
        self.rng = rng
        self.rate = rate
        self.told: list[str] = []
        known = {f"{name}: {lie}" for name, each in LIES.items() for lie in each}
        self._lies = known if lies is None else known & set(lies)
        for name in LIES:
            wasi.replace(name, functools.partial(self._answer, name, wasi.native(name)))

    def _answer(self, name: str, native: Native, _: int, *arguments: Any) -> int:
        lies = sorted(lie for lie in LIES[name] if f"{name}: {lie}" in self._lies)
        if not lies or self.rng.random() >= self.rate:
            return native(*arguments)
        lie = self.rng.choice(lies)
        self.told.append(f"{name}: {lie}")
        return LIES[name][lie](self, native, arguments)


def _error(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    """An error out of the blue; nothing was done."""
    return -host.rng.choice(_ERRORS)


def _half_done(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    """Fewer bytes than asked for: no lie, but what programs forget."""
    fd, address, length, *rest = arguments
    return native(fd, address, host.rng.randrange(1, length + 1) if length else 0, *rest)


def _more_than_asked(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    """As many as asked for, and some more."""
    native(*arguments)
    return int(arguments[2]) + host.rng.choice((1, 4096, 1 << 32, (1 << 63) - 1 - (1 << 32)))


def _nothing_done(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    return 0


def _impossible(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    """Success with a number that cannot be one."""
    return host.rng.choice((1 << 31, 1 << 40, (1 << 63) - 1))


def _own_stream(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    """Success with a descriptor that is standard input or output of this process."""
    return host.rng.randrange(3)


def _put_time(into: int, now_ns: int) -> int:
    ctypes.memmove(into, _TIME.pack(*divmod(now_ns, _SECOND_NS)), _TIME.size)
    return 0


def _true_time(native: Native, arguments: tuple[Any, ...]) -> int:
    native(*arguments)
    seconds, nanoseconds = _TIME.unpack(ctypes.string_at(arguments[1], _TIME.size))
    return int(seconds) * _SECOND_NS + int(nanoseconds)


def _time_ahead(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    jump_ns = host.rng.choice((1, _SECOND_NS, 10**5 * _SECOND_NS))
    return _put_time(arguments[1], _true_time(native, arguments) + jump_ns)


def _time_back(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    jump_ns = host.rng.choice((1, _SECOND_NS, 10**5 * _SECOND_NS))
    return _put_time(arguments[1], max(0, _true_time(native, arguments) - jump_ns))


def _no_time(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    time = host.rng.choice(
        ((0, _SECOND_NS), (0, -1), (-1, 0), (1 << 62, 0), (-(1 << 63), 0), ((1 << 63) - 1, 5))
    )
    ctypes.memmove(arguments[1], _TIME.pack(*time), _TIME.size)
    return 0


def _changed_facts(place: int, *values: int) -> Lie:
    """Facts of a file with another value at `place` (host.zig, `Facts`)."""

    def lie(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
        outcome = native(*arguments)
        facts = list(_FACTS.unpack(ctypes.string_at(arguments[1], _FACTS.size)))
        facts[place] = host.rng.choice(values)
        ctypes.memmove(arguments[1], _FACTS.pack(*facts), _FACTS.size)
        return outcome

    return lie


def _dirent(name: bytes, *, length: int | None = None, end: bytes = b"\0") -> bytes:
    """A linux_dirent64 record of getdents64(2)."""
    record = struct.pack("<QqHB", 7, 0, 0, 8) + name + end
    record += bytes(-len(record) % 8)
    true = len(record) if length is None else length
    return record[:16] + struct.pack("<H", true) + record[18:]


def _malformed_entries(record: bytes) -> Lie:
    def lie(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
        # Perhaps behind an honest one.
        whole = host.rng.choice((b"", _dirent(b"."))) + record
        ctypes.memmove(arguments[1], whole, len(whole))
        return len(whole)

    return lie


def _ready(host: LyingHost, native: Native, arguments: tuple[Any, ...]) -> int:
    """All is ready, with states that nobody asked for."""
    waiting, count, _ = arguments
    # Not the last, which is the sandbox's own.
    for index in range(count - 1):
        at = waiting + index * _WAITING.size
        fd, events, _ = _WAITING.unpack(ctypes.string_at(at, _WAITING.size))
        states = events | host.rng.choice((0, 0x10, 0x7FC0))
        ctypes.memmove(at, _WAITING.pack(fd, events, states), _WAITING.size)
    return int(count)


_TRANSFER: Final[Mapping[str, Lie]] = {
    "error": _error,
    "short": _half_done,
    "long": _more_than_asked,
}

LIES: Final[Mapping[str, Mapping[str, Lie]]] = {
    "clock": {
        "error": _error,
        "ahead": _time_ahead,
        "back": _time_back,
        "malformed": _no_time,
        "impossible": _impossible,
    },
    "read": _TRANSFER,
    "write": {**_TRANSFER, "nothing": _nothing_done},
    "receive": _TRANSFER,
    "send": {**_TRANSFER, "nothing": _nothing_done},
    "open": {"error": _error, "impossible": _impossible},
    "facts": {
        "error": _error,
        "negative size": _changed_facts(4, -1, -(1 << 63)),
        "wrong size": _changed_facts(4, 0, 1, (1 << 63) - 1),
        "wrong kind": _changed_facts(0, 0, 0o020000, 0o120777, 0o140000, 0xFFFFFFFF),
        "malformed time": _changed_facts(6, -1, _SECOND_NS, (1 << 63) - 1),
        "far time": _changed_facts(7, (1 << 63) - 1, 1 << 62),
        "impossible": _impossible,
    },
    "read_link": {"error": _error, "long": _impossible},
    "entries": {
        "error": _error,
        "impossible": _impossible,
        "record of no length": _malformed_entries(_dirent(b"name", length=0)),
        "record too short": _malformed_entries(_dirent(b"name", length=8)),
        "record too long": _malformed_entries(_dirent(b"name", length=0xFFFF)),
        "name without end": _malformed_entries(_dirent(b"name\1\1\1\1\1", end=b"")[:24]),
        "name with a slash": _malformed_entries(_dirent(b"../secret")),
        "empty name": _malformed_entries(_dirent(b"")),
        "name too long": _malformed_entries(_dirent(b"n" * 300)),
        "half a record": _malformed_entries(_dirent(b"name")[:12]),
    },
    "rewind": {"error": _error, "impossible": _impossible},
    "poll": {
        "error": _error,
        "impossible": _impossible,
        "nothing": _nothing_done,
        "ready": _ready,
    },
    "accept": {"error": _error, "impossible": _impossible},
    "connect": {"error": _error, "impossible": _impossible, "stream": _own_stream},
    "shutdown": {"error": _error, "impossible": _impossible},
    "yield": {"error": _error, "impossible": _impossible},
}
