"""Which web pages may open a WebSocket here: a browser lets every page of the world try.

RFC 6455, sections 4.2.2 and 10.2: a server that is not meant for any page looks at `Origin`, which
a browser sends always and no page can change. A page can have its own name resolve to this machine
("DNS rebinding"), and is then of the same origin; so the name in `Host` (RFC 9112, section 3.2) has
to be one of ours. Programs that are no browsers send no `Origin`, and pass.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from avow.errors import AvowError, DeniedError, MalformedError

HEAD_BYTES_MAX: Final = 8192
_END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"GET [\x21-\x7e]+ HTTP/1\.1")
# RFC 9110, sections 5.1 and 5.5, without the obsolete folding of lines.
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*)")
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@]+)(:[0-9]{1,5})?")


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
    that are no GET request of HTTP/1.1. `head` is all up to the empty line."""
    lines = head.removesuffix(_END).split(b"\r\n")
    if _REQUEST_LINE.fullmatch(lines[0]) is None:
        raise _malformed("GET … HTTP/1.1", "another first line")
    host = _only(lines[1:], b"host")
    if host is None:
        raise _malformed("one Host", "none")
    _check_host(host, rule)
    origin = _only(lines[1:], b"origin")
    if origin is None or origin in rule.origins:
        return
    if origin in (f"http://{host}", f"https://{host}"):
        return
    raise DeniedError(
        f"expected a program, or a page of an allowed origin, got a page of {origin[:100]!r}; name "
        f"that origin if it shall connect (--allow-origin)"
    )


def refusal_response(error: AvowError) -> bytes:
    """What the client is told before its connection is closed."""
    status = b"403 Forbidden" if isinstance(error, DeniedError) else b"400 Bad Request"
    return b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def _check_host(host: str, rule: WebRule) -> None:
    match = _HOST.fullmatch(host)
    if match is None:
        raise _malformed("a name or an address as Host", repr(host[:100]))
    name = match[1].strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in rule.hosts:
        return
    try:
        # A page cannot have an address mean another machine.
        ipaddress.ip_address(name)
    except ValueError as error:
        raise DeniedError(
            f"expected a name of this server as Host, got {name[:100]!r}, which may be a page's "
            f"own; name it if clients use it (--allow-host)"
        ) from error


def _only(lines: list[bytes], name: bytes) -> str | None:
    """The value of a field that may be there once, in lower case."""
    found: list[bytes] = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise _malformed("lines of name and value", "another line")
        if match[1].lower() == name:
            found.append(match[2].strip(b" \t"))
    if len(found) > 1:
        raise _malformed(f"one {name.decode()}", f"{len(found)}")
    return found[0].decode("latin-1").lower() if found else None


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in the request for a WebSocket, got {actual}; connect by MQTT over "
        f"WebSocket"
    )
