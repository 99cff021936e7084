"""WASI preview 2's sockets, as far as grants go: names that were granted, and TCP to them.

A connection is opened by the vault, below `/net`, as for modules: so the vault says what is
granted. A program gets there by addresses, though: those that the host gave for a granted name
stand for that name. The types are those of https://github.com/WebAssembly/WASI, wasip2 (package
sockets at 0.2).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from wasmtime.component import ResourceHost, Variant

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

    def hold(self, fd: int) -> None:
        """One more of the things that are there has this descriptor."""


@dataclass(slots=True)
class Connection:
    """A socket; without `fd` one that is not connected yet."""

    family: str
    remote: Variant | None = None
    fd: int | None = None
    finished: bool = False


def resolved(name: str) -> list[Address]:
    """The addresses that the host gives for a name. Raises OSError and ValueError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


class Sockets:
    """The functions, by interface and name. `endpoints` are those granted, "host" and port."""

    def __init__(
        self,
        calls: WasiCalls,
        handles: Handles,
        endpoints: Sequence[tuple[str, int]],
        *,
        resolve: Callable[[str], list[Address]],
        on_denied: Callable[[str], None],
    ) -> None:
        self._calls = calls
        self._handles = handles
        self._endpoints = frozenset(endpoints)
        self._resolve, self._on_denied = resolve, on_denied
        self._denied: set[str] = set()
        self._names: dict[Address, set[str]] = {}

    def functions(self) -> Mapping[str, Mapping[str, Callable[..., Any]]]:
        """All that are there."""
        own, ready = self._handles.own, self._handles.ready
        methods: dict[str, Callable[..., Any]] = {
            "start-connect": self._connect,
            "finish-connect": self._finish,
            "remote-address": lambda s: s.remote if s.finished else Failed("invalid-state"),
            "local-address": lambda s: Failed("not-supported"),
            "is-listening": lambda s: False,
            "address-family": lambda s: s.family,
            "subscribe": lambda s: ready(),
            "shutdown": self._shut_down,
            **{name: lambda s, *_: Failed("not-supported") for name in _NOT_THERE},
        }
        lookup = "[method]resolve-address-stream"
        return {
            "wasi:sockets/instance-network": {"instance-network": lambda: own("network", None)},
            "wasi:sockets/ip-name-lookup": {
                "resolve-addresses": lambda _, name: self._look_up(name),
                f"{lookup}.resolve-next-address": lambda r: next(self._handles.thing(r), None),
                f"{lookup}.subscribe": lambda _: ready(),
            },
            "wasi:sockets/tcp-create-socket": {
                "create-tcp-socket": lambda family: own("tcp-socket", Connection(family)),
            },
            "wasi:sockets/tcp": {
                f"[method]tcp-socket.{name}": self._on_socket(each)
                for name, each in methods.items()
            },
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
            self._deny(name)
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

    def _deny(self, name: str) -> None:
        """Say so, each once, and of no more than `_DENIED_MAX`."""
        if name not in self._denied and len(self._denied) < _DENIED_MAX:
            self._denied.add(name)
            self._on_denied(
                f"the program was refused the addresses of {name[:_NAME_MAX]!a}; a grant "
                f"`tcp:HOST:PORT` with this host would allow it"
            )

    def _connect(self, connection: Connection, _network: int, remote: Variant) -> Failed | None:
        if connection.fd is not None:
            return Failed("invalid-state")
        address, port = _parsed(remote)
        if remote.tag != connection.family or port == 0:
            return Failed("invalid-argument")
        names = self._names.get(address, set())
        granted = sorted(
            host
            for host, at in self._endpoints
            if at == port and (host in names or _literal(host) == address)
        )
        host = granted[0] if granted else str(address)
        connection.fd = self._open(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self._handles.hold(connection.fd)
        connection.remote = remote
        return None

    def _finish(self, connection: Connection) -> tuple[ResourceHost, ResourceHost] | Failed:
        if connection.fd is None or connection.finished:
            return Failed("not-in-progress")
        connection.finished = True
        return self._handles.streams(connection.fd)

    def _shut_down(self, connection: Connection, how: str) -> Failed | None:
        if connection.fd is None or not connection.finished:
            return Failed("invalid-state")
        self._calls.on_descriptor("sock_shutdown", connection.fd, _SHUTDOWN[how])
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


def _literal(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


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
