"""WASI preview 2's sockets, as far as grants go: TCP to hosts and at addresses that were granted.

A connection is opened by the vault, below `/net`, as for modules: so the vault says what is
granted. A program gets there by addresses, though: those that the host gave for a granted name
stand for that name. What avow listens at already, a program binds. The types are those of
https://github.com/WebAssembly/WASI, wasip2 (package sockets at 0.2).
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from wasmtime.component import Record, ResourceHost, Variant

from avow.sandbox.component_functions import Failed
from avow.sandbox.wasi_calls import RefusedError, WasiCalls

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_CODES: Final = {
    2: "access-denied",
    14: "connection-refused",
    15: "connection-reset",
    23: "remote-unreachable",
    33: "new-socket-limit",
    40: "remote-unreachable",
    41: "new-socket-limit",
    73: "timeout",
    76: "access-denied",
}
_ACCESS: Final = 2
_DENIED_MAX: Final = 64
_NAME_MAX: Final = 255
_SOCKET: Final = 6
_SHUTDOWN: Final = {"receive": 1, "send": 2, "both": 3}
_NOT_THERE: Final = tuple(
    f"{way}{name}"
    for name in (
        *("keep-alive-enabled", "keep-alive-idle-time", "keep-alive-interval"),
        *("keep-alive-count", "hop-limit", "receive-buffer-size", "send-buffer-size"),
    )
    for way in ("", "set-")
)


class Handles(Protocol):
    """Where the things of a program are."""

    def own(self, kind: str, thing: object) -> ResourceHost:
        """A handle of the program for `thing`."""

    def thing(self, rep: int) -> Any:
        """What the handle with the number `rep` stands for."""

    def streams(self, fd: int) -> tuple[ResourceHost, ResourceHost]:
        """What is received by a connection, and what is sent."""

    def ready(self) -> ResourceHost:
        """What is waited for without waiting."""

    def pollable(self, fd: int) -> ResourceHost:
        """What is waited for until the descriptor can be read."""

    def hold(self, fd: int) -> None:
        """One more of the things that are there has this descriptor."""


class State(enum.Enum):
    """Of a socket; WASI has each step in two parts, of which the first does it here."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    BINDING = "binding"
    BOUND = "bound"
    LISTENING_SOON = "listening soon"
    LISTENING = "listening"


@dataclass(slots=True)
class Socket:
    """Connected, or listening, if it has a descriptor."""

    family: str
    state: State = State.NEW
    fd: int | None = None
    local: Variant | None = None
    remote: Variant | None = None


def resolved(name: str) -> list[Address]:
    """The addresses that the host gives for a name. Raises OSError and ValueError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


class Sockets:
    """The functions, by interface and name. `endpoints` are those granted, host and port, and
    `listeners` the descriptors that listen, with their addresses."""

    def __init__(
        self,
        calls: WasiCalls,
        handles: Handles,
        endpoints: Iterable[tuple[str, int]],
        *,
        listeners: Iterable[tuple[int, tuple[str, int]]],
        resolve: Callable[[str], list[Address]],
        on_denied: Callable[[str], None],
    ) -> None:
        self._calls = calls
        self._handles = handles
        self._endpoints = frozenset(endpoints)
        self._listeners = tuple(listeners)
        self._bound: set[int] = set()
        self._resolve, self._on_denied = resolve, on_denied
        self._denied: set[str] = set()
        self._names: dict[Address, set[str]] = {}

    def functions(self) -> Mapping[str, Mapping[str, Callable[..., Any]]]:
        """All that are there."""
        own, ready = self._handles.own, self._handles.ready
        lookup = "[method]resolve-address-stream"
        return {
            "wasi:sockets/instance-network": {"instance-network": lambda: own("network", None)},
            "wasi:sockets/ip-name-lookup": {
                "resolve-addresses": lambda _, name: self._look_up(name),
                f"{lookup}.resolve-next-address": lambda r: next(self._handles.thing(r), None),
                f"{lookup}.subscribe": lambda _: ready(),
            },
            "wasi:sockets/tcp-create-socket": {
                "create-tcp-socket": lambda family: own("tcp-socket", Socket(family)),
            },
            "wasi:sockets/tcp": {
                f"[method]tcp-socket.{name}": self._on_socket(each)
                for name, each in self._methods().items()
            },
        }

    def dropped(self, given: Socket) -> None:
        """The program has no handle of that socket any more: another may be bound in its place."""
        if given.local is not None and given.fd is not None:
            self._bound.discard(given.fd)

    def _methods(self) -> dict[str, Callable[..., Any]]:
        return {
            "start-connect": self._connect,
            "finish-connect": self._finish_connect,
            "start-bind": self._bind,
            "finish-bind": lambda s: _next(s, State.BINDING, State.BOUND),
            "start-listen": lambda s: _next(
                s, State.BOUND, State.LISTENING_SOON, otherwise="invalid-state"
            ),
            "finish-listen": lambda s: _next(s, State.LISTENING_SOON, State.LISTENING),
            "accept": self._accept,
            "local-address": lambda s: s.local or Failed("not-supported"),
            "remote-address": lambda s: s.remote or Failed("invalid-state"),
            "is-listening": lambda s: s.state is State.LISTENING,
            "address-family": lambda s: s.family,
            "set-listen-backlog-size": lambda s, n: None if n else Failed("invalid-argument"),
            "subscribe": self._subscribe,
            "shutdown": self._shut_down,
            **{name: lambda s, *_: Failed("not-supported") for name in _NOT_THERE},
        }

    def _on_socket(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(rep: int, *arguments: Any) -> Any:
            try:
                return method(self._handles.thing(rep), *arguments)
            except RefusedError as refused:
                return Failed(_CODES.get(refused.errno, "unknown"))

        return call

    def _look_up(self, name: str) -> ResourceHost | Failed:
        literal = _literal(name)
        if literal is not None:
            found = [literal]
        elif name not in {host for host, _ in self._endpoints}:
            self._deny(f"the addresses of {name[:_NAME_MAX]!a}", "tcp:HOST:PORT")
            return Failed("access-denied")
        else:
            try:
                found = self._resolve(name)
            except (OSError, ValueError):
                return Failed("name-unresolvable")
            for each in found:
                self._names.setdefault(each, set()).add(name)
        answers: Iterator[Variant] = map(_ip_address, dict.fromkeys(found))
        return self._handles.own("resolve-address-stream", answers)

    def _deny(self, what: str, grant: str) -> None:
        """Say so, each once, and of no more than `_DENIED_MAX`."""
        if what not in self._denied and len(self._denied) < _DENIED_MAX:
            self._denied.add(what)
            # To tell it is no affair of the program's: standard error may be gone.
            with suppress(OSError):
                self._on_denied(
                    f"the program was refused {what}; a grant `{grant}` for it would allow it"
                )

    def _connect(self, given: Socket, _network: int, remote: Variant) -> Failed | None:
        if given.state is not State.NEW:
            return Failed("invalid-state")
        address, port = _parsed(remote)
        if remote.tag != given.family or port == 0:
            return Failed("invalid-argument")
        names = self._names.get(address, set())
        granted = sorted(
            host
            for host, at in self._endpoints
            if at == port and (host in names or _literal(host) == address)
        )
        host = granted[0] if granted else str(address)
        given.fd = self._open(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self._handles.hold(given.fd)
        given.state, given.remote = State.CONNECTING, remote
        return None

    def _finish_connect(self, given: Socket) -> tuple[ResourceHost, ResourceHost] | Failed:
        failed = _next(given, State.CONNECTING, State.CONNECTED)
        if failed is not None or given.fd is None:
            return failed or Failed("not-in-progress")
        return self._handles.streams(given.fd)

    def _bind(self, given: Socket, _network: int, local: Variant) -> Failed | None:
        if given.state is not State.NEW:
            return Failed("invalid-state")
        address, port = _parsed(local)
        if local.tag != given.family:
            return Failed("invalid-argument")
        for fd, (host, at) in self._listeners:
            if at == port and self._is_at(host, address):
                if fd in self._bound:
                    return Failed("address-in-use")
                self._bound.add(fd)
                self._handles.hold(fd)
                given.state, given.fd, given.local = State.BINDING, fd, local
                return None
        self._deny(f"the address {address} with port {port}", "listen:ADDRESS:PORT")
        return Failed("access-denied")

    def _is_at(self, host: str, address: Address) -> bool:
        literal = _literal(host)
        if literal is not None:
            return literal == address
        try:
            return address in self._resolve(host)
        except (OSError, ValueError):
            return False

    def _accept(self, given: Socket) -> tuple[ResourceHost, ...] | Failed:
        if given.state is not State.LISTENING or given.fd is None:
            return Failed("invalid-state")
        if not self._calls.poll([(given.fd, False)], 0)[0]:
            return Failed("would-block")
        fd = self._calls.accept(given.fd)
        # Whose it is would only be what the host says of it; preview 1 does not tell either.
        made = Socket(given.family, State.CONNECTED, fd, remote=_unspecified(given.family))
        return self._handles.own("tcp-socket", made), *self._handles.streams(fd)

    def _subscribe(self, given: Socket) -> ResourceHost:
        if given.state is State.LISTENING and given.fd is not None:
            return self._handles.pollable(given.fd)
        return self._handles.ready()

    def _shut_down(self, given: Socket, how: str) -> Failed | None:
        if given.state is not State.CONNECTED or given.fd is None:
            return Failed("invalid-state")
        self._calls.on_descriptor("sock_shutdown", given.fd, _SHUTDOWN[how])
        return None

    def _open(self, endpoint: str) -> int:
        """Raises `RefusedError`, also for what was not granted."""
        folders = {name: fd for fd, name in self._calls.preopened()}
        network = folders.get("/net")
        at, path = (folders["/"], f"net/tcp/{endpoint}") if network is None else (network, "")
        fd = self._calls.open(
            at, path or f"tcp/{endpoint}", follow=False, oflags=0, rights=(1 << 30) - 1
        )
        if self._calls.fdstat(fd).filetype != _SOCKET:
            # A file of that name, where `/` is a folder of the program.
            self._calls.on_descriptor("fd_close", fd)
            raise RefusedError(_ACCESS)
        return fd


def _next(
    given: Socket, before: State, after: State, *, otherwise: str = "not-in-progress"
) -> Failed | None:
    if given.state is not before:
        return Failed(otherwise)
    given.state = after
    return None


def _literal(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _unspecified(family: str) -> Variant:
    """An `ip-socket-address` that says nothing."""
    record: Any = Record()
    record.port, record.address = 0, (0,) * (4 if family == "ipv4" else 8)
    if family == "ipv6":
        setattr(record, "flow-info", 0)
        setattr(record, "scope-id", 0)
    return Variant(family, record)


def _ip_address(address: Address) -> Variant:
    packed = address.packed
    if address.version == 4:
        return Variant("ipv4", tuple(packed))
    parts = (int.from_bytes(packed[at : at + 2], "big") for at in range(0, 16, 2))
    return Variant("ipv6", tuple(parts))


def _parsed(remote: Variant) -> tuple[Address, int]:
    """Of an `ip-socket-address`."""
    given: Any = remote.payload
    if remote.tag == "ipv4":
        return ipaddress.IPv4Address(bytes(given.address)), given.port
    packed = b"".join(each.to_bytes(2, "big") for each in given.address)
    return ipaddress.IPv6Address(packed), given.port
