"""Where a broker listens or a client connects: `mqtt://`, `mqtts://`, `ws://` and `wss://` URLs.

The schemes `mqtt` and `mqtts` with ports 1883 and 8883 are those that IANA registered for MQTT
and that clients use; `ws` and `wss` with 80 and 443 are RFC 6455, section 3.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

from avow.errors import MalformedError, UnavailableError


class Scheme(enum.StrEnum):
    """How MQTT travels."""

    MQTT = "mqtt"
    MQTTS = "mqtts"
    WS = "ws"
    WSS = "wss"

    @property
    def encrypted(self) -> bool:
        """True when TLS comes first."""
        return self in (Scheme.MQTTS, Scheme.WSS)

    @property
    def websocket(self) -> bool:
        """True when MQTT is framed in WebSocket messages."""
        return self in (Scheme.WS, Scheme.WSS)

    @property
    def default_port(self) -> int:
        """The port that a URL without one means."""
        return _DEFAULT_PORTS[self]


_DEFAULT_PORTS = {Scheme.MQTT: 1883, Scheme.MQTTS: 8883, Scheme.WS: 80, Scheme.WSS: 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL. `host` has no brackets; `path` is "" unless the scheme is a WebSocket's."""

    scheme: Scheme
    host: str
    port: int
    path: str = ""
    user: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{host_and_port(self.host, self.port)}{self.path}"

    def at_port(self, port: int) -> Address:
        """The same address with another port, such as the one that the system chose for port 0."""
        return replace(self, port=port)


def host_and_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_listen_address(url: str) -> Address:
    """The address of a listener. Port 0 means: any free one. Raises `MalformedError`."""
    parts = _split(url)
    if parts.path or parts.username is not None:
        raise MalformedError(
            f"expected only scheme, host and port in the listener {url!r}, got more; "
            f"write it like mqtt://127.0.0.1:1883"
        )
    return _address(url, parts, lowest_port=0)


def parse_server_address(url: str) -> Address:
    """The address of a broker to connect to. Raises `MalformedError`.

    A user name may stand before the host; a password may not, because every user of the machine
    can read a program's arguments.
    """
    parts = _split(url)
    if parts.password is not None:
        raise MalformedError(
            "expected no password in the URL, got one; remove it (other users can see it) and "
            "use --password-stdin or the environment variable AVOW_PASSWORD"
        )
    address = _address(url, parts, lowest_port=1)
    if parts.path not in ("", "/") and not address.scheme.websocket:
        raise MalformedError(
            f"expected no path in {url!r}, got {parts.path!r}; name the topic with --topic, "
            "as only ws:// and wss:// have paths"
        )
    path = parts.path if address.scheme.websocket else ""
    return replace(address, path=path, user=parts.username)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _malformed(url, str(error)) from error
    if parts.query or parts.fragment:
        raise _malformed(url, "a query or a fragment")
    return parts


def _address(url: str, parts: SplitResult, *, lowest_port: int) -> Address:
    try:
        scheme = Scheme(parts.scheme)
    except ValueError as error:
        raise _malformed(url, f"the scheme {parts.scheme!r}" if parts.scheme else "none") from error
    if not parts.hostname:
        raise _malformed(url, "no host")
    try:
        port = parts.port
    except ValueError as error:
        raise _malformed(url, "a port that is not a number from 0 to 65535") from error
    if port is None:
        port = scheme.default_port
    if port < lowest_port:
        raise _malformed(url, f"port {port}")
    return Address(scheme, parts.hostname, port)


def _malformed(url: str, what: str) -> MalformedError:
    return MalformedError(
        f"expected a URL with mqtt://, mqtts://, ws:// or wss:// and a host, got {what} in "
        f"{url!r}; write it like mqtt://127.0.0.1:1883 or mqtts://[::1]:8883"
    )


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """One address to bind, as `getaddrinfo` gives it."""

    family: int
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach it."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback


def resolve(address: Address) -> list[SocketAddress]:
    """All addresses that the host's name stands for. Raises `UnavailableError`."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid name"
        raise UnavailableError(
            f"expected the name or address of this machine in the listener {address}, got "
            f"{address.host!r} ({reason}); use an address such as 127.0.0.1 or 0.0.0.0"
        ) from error
    unique: dict[SocketAddress, None] = {}
    for family, _, _, _, target in found:
        unique[SocketAddress(family, str(target[0]), address.port)] = None
    return list(unique)


def source_of(peer: str) -> str:
    """Who a peer (`host:port`, as `host_and_port` writes it) counts as, where quantities are
    shared out: an IPv4 address, or the /64 of an IPv6 address, which is what one site has."""
    host = peer.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False))
