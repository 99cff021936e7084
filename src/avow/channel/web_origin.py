"""Which requests may open a WebSocket here: a browser lets every page of the world try.

RFC 6455, sections 4.2.2 and 10.2: a server that is not meant for any page looks at `Origin`, which
a browser sends always and no page can change. A page can have its own name resolve to this machine
("DNS rebinding"), and is then of the same origin; so the name in `Host` (RFC 9112, section 3.2) has
to be one of ours, an address or localhost. What is no request for a WebSocket of MQTT comes no
further either: pages can send those without an `Origin`.

The core has the same rule in `core/src/wire/web_origin.zig`; one table of cases tests both.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from avow.errors import AvowError, DeniedError, MalformedError

HEAD_BYTES_MAX: Final = 8192
_END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"GET ([\x21-\x7e]+) HTTP/1\.1")
# RFC 9112, section 3.2.2: the server's name is there, and Host does not count.
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)[\x21-\x7e]*", re.IGNORECASE)
# RFC 9110, sections 5.1 and 5.5, without the obsolete folding of lines.
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*)")
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\x00-\x20\x7f\[\]:/@]+)(:[0-9]{1,5})?")
_LOCAL: Final = ".localhost"
# Of these there may be one.
_SINGLE: Final = ("host", "origin", "sec-websocket-key", "sec-websocket-version")
_NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class WebRule:
    """`hosts` are names that clients may know this server by, besides addresses and localhost;
    `origins` are those of pages that may connect, such as "https://panel.example"."""

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, hosts: tuple[str, ...], origins: tuple[str, ...]) -> WebRule:
        """As they are compared: in lower case (RFC 6454, section 6.2; RFC 3986, section 3.2.2)."""
        return cls(
            frozenset(each.lower().rstrip(".") for each in hosts),
            frozenset(each.lower().rstrip("/") for each in origins),
        )


def head_end(content: bytes) -> int | None:
    """Where the body begins; None while the head is not there to its end. Raises `MalformedError`
    when it has more than `HEAD_BYTES_MAX` bytes."""
    end = content.find(_END, 0, HEAD_BYTES_MAX)
    if end >= 0:
        return end + len(_END)
    if len(content) >= HEAD_BYTES_MAX:
        raise _malformed(f"a head of at most {HEAD_BYTES_MAX} bytes", "more")
    return None


def check_web_request(head: bytes, rule: WebRule) -> None:
    """Raises `DeniedError` for a page or a name that is not allowed, and `MalformedError` for bytes
    that do not ask for MQTT over WebSocket. `head` is all up to the empty line."""
    lines = head.removesuffix(_END).split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(lines[0])
    if request is None:
        raise _malformed("GET … HTTP/1.1", "another first line")
    fields = _fields(lines[1:])
    if "host" not in fields:
        raise _malformed("one Host", "none")
    _check_upgrade(fields)
    host = _server_named(request[1].decode("ascii"), _lower(fields["host"]))
    name = _name_in(host)
    origin = _lower(fields["origin"]) if "origin" in fields else None
    if origin in rule.origins:
        return
    if not _is_own(name, rule):
        raise DeniedError(
            f"expected a name of this server as Host, got {name[:100]!r}, which may be a page's "
            f"own; name it if clients use it (--allow-host)"
        )
    if origin is None or origin in (f"http://{host}", f"https://{host}"):
        return
    raise DeniedError(
        "expected a program, or a page of an allowed origin, got a page of "
        f"{origin[:100]!r}; to let that page connect, name its origin with --allow-origin"
    )


def refusal_response(error: AvowError) -> bytes:
    """What the client is told before its connection is closed."""
    status = b"403 Forbidden" if isinstance(error, DeniedError) else b"400 Bad Request"
    return b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def _server_named(target: str, host: str) -> str:
    """The server that a request is for."""
    if target.startswith("/"):
        return host
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise _malformed("a path or an http URL", "another target")
    return absolute[1].lower()


def _name_in(host: str) -> str:
    """Without its port, and without the dot of a name that is complete."""
    match = _HOST.fullmatch(host)
    if match is None:
        raise _malformed("a name or an address as Host", repr(host[:100]))
    return match[1].removesuffix(".")


def _is_own(name: str, rule: WebRule) -> bool:
    if name == "localhost" or (name.endswith(_LOCAL) and name != _LOCAL) or name in rule.hosts:
        return True
    if name.startswith("["):
        # No name has a colon: what stands in brackets can be an address only (RFC 3986, 3.2.2).
        return ":" in name
    try:
        # A page cannot have an address mean another machine.
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _check_upgrade(fields: Mapping[str, bytes]) -> None:
    """RFC 6455, section 4.2.1; [MQTT-6.0.0-3]. No page can send these fields but by a WebSocket,
    which says its origin (WHATWG Fetch, "forbidden request-header")."""
    if "websocket" not in _tokens(fields, "upgrade") or "upgrade" not in _tokens(
        fields, "connection"
    ):
        raise _malformed("Upgrade: websocket and Connection: Upgrade", "another request")
    if fields.get("sec-websocket-version") != b"13":
        raise _malformed("Sec-WebSocket-Version: 13", "another version or none")
    if not {"mqtt", "mqttv3.1"} & _tokens(fields, "sec-websocket-protocol"):
        raise _malformed("Sec-WebSocket-Protocol: mqtt", "another protocol or none")
    key = fields.get("sec-websocket-key", b"")
    try:
        nonce = base64.b64decode(key, validate=True)
    except binascii.Error:
        nonce = b""
    if len(nonce) != _NONCE_BYTES or base64.b64encode(nonce) != key:
        raise _malformed(f"{_NONCE_BYTES} bytes as Sec-WebSocket-Key", "others")


def _tokens(fields: Mapping[str, bytes], name: str) -> set[str]:
    return {_lower(each.strip(b" \t")) for each in fields.get(name, b"").split(b",")}


def _lower(value: bytes) -> str:
    """In lower case where it is ASCII, and as it is elsewhere."""
    return value.lower().decode("latin-1")


def _fields(lines: list[bytes]) -> dict[str, bytes]:
    """Values by the name in lower case; lists in several lines are one (RFC 9110, section 5.3)."""
    found: dict[str, bytes] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _malformed("lines of name and value", "another line")
        name = match[1].decode("ascii").lower()
        value = match[2].strip(b" \t")
        if name in found:
            if name in _SINGLE:
                raise _malformed(f"one {name}", "more")
            value = found[name] + b"," + value
        found[name] = value
    return found


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in the request for a WebSocket, got {actual}; connect with "
        "MQTT over WebSocket"
    )
