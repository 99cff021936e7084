"""Which requests may open a WebSocket: one table of cases for the core's rule and the proxy's."""

from __future__ import annotations

import pytest

from avow.channel.web_origin import WebRule, check_web_request
from avow.errors import DeniedError, MalformedError
from avow.testing.core_abi import (
    Disconnected,
    Transport,
    web_hosts_command,
    web_origins_command,
)
from avow.testing.core_driver import CoreDriver
from avow.testing.websocket import WebSocketClient

PANEL = "https://panel.example"
NAME = "broker.example"
HERE = "127.0.0.1:9001"

YES, FORBIDDEN, BAD = b"HTTP/1.1 101", b"HTTP/1.1 403", b"HTTP/1.1 400"


def request(*fields: str, target: str = "/mqtt") -> bytes:
    """An upgrade with these fields in place of its Host."""
    lines = WebSocketClient().upgrade(path=target).split(b"\r\n")
    lines = [line for line in lines if not line.lower().startswith(b"host:")]
    return b"\r\n".join([lines[0], *(field.encode("latin-1") for field in fields), *lines[1:]])


def page(host: str, origin: str) -> bytes:
    return request(f"Host: {host}", f"Origin: {origin}")


def program(host: str) -> bytes:
    return request(f"Host: {host}")


def without(name: str) -> bytes:
    lines = program(HERE).split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(name.encode()))


def answer(core: CoreDriver, content: bytes, *, name_proven: bool = False) -> bytes:
    connection = core.open(Transport.WEBSOCKET, name_proven=name_proven)
    core.send(connection, content)
    return connection.read()[:12]


def answer_of_the_proxy(content: bytes, rule: WebRule) -> bytes:
    try:
        check_web_request(content, rule)
    except DeniedError:
        return FORBIDDEN
    except MalformedError:
        return BAD
    return YES


CASES = [
    # The page of this very place; a browser writes addresses and names in one way.
    (page(HERE, "http://127.0.0.1:9001"), YES),
    (page(HERE, "https://127.0.0.1:9001"), YES),
    (page("LOCALHOST:9001", "http://localhost:9001"), YES),
    (page("localhost.:9001", "http://localhost.:9001"), YES),
    (page("app.localhost", "http://app.localhost"), YES),
    (page("192.0.2.7", "http://192.0.2.7"), YES),
    (page("[::1]:9001", "http://[::1]:9001"), YES),
    (page("[FE80::1]:9001", "HTTP://[fe80::1]:9001"), YES),
    (page(f"{NAME}:9001", f"http://{NAME}:9001"), YES),
    # Another page, another port, a page without a name.
    (page(HERE, "https://evil.example"), FORBIDDEN),
    (page(HERE, "http://127.0.0.1:3000"), FORBIDDEN),
    (page(HERE, "http://127.0.0.1"), FORBIDDEN),
    (page("localhost:9001", "http://localhost.:9001"), FORBIDDEN),
    (page(HERE, "null"), FORBIDDEN),
    (page(HERE, ""), FORBIDDEN),
    (page(HERE, "http://"), FORBIDDEN),
    (page(HERE, "http://127.0.0.1:9001.evil.example"), FORBIDDEN),
    (page(HERE, "http://127.0.0.1:9001/"), FORBIDDEN),
    (page(HERE, f"http://127.0.0.1:9001 {PANEL}"), FORBIDDEN),
    (page(HERE, "ftp://127.0.0.1:9001"), FORBIDDEN),
    (page(f"{NAME}:9001", "https://evil.example"), FORBIDDEN),
    # A page that is listed, whatever it calls this server.
    (page(HERE, PANEL), YES),
    (page("other.example:9001", "HTTPS://PANEL.example"), YES),
    (page(HERE, f"{PANEL}:8443"), FORBIDDEN),
    (page(HERE, "https://evil.panel.example"), FORBIDDEN),
    (page(HERE, "http://panel.example"), FORBIDDEN),
    (page("127.0.0.1:x", PANEL), BAD),
    # The page's own name, which resolves to us: DNS rebinding.
    (page("evil.example:9001", "http://evil.example:9001"), FORBIDDEN),
    (page("localhost.evil.example", "http://localhost.evil.example"), FORBIDDEN),
    (page("evillocalhost", "http://evillocalhost"), FORBIDDEN),
    (page(".localhost", "http://.localhost"), FORBIDDEN),
    (page("127.0.0.1.evil.example", "http://127.0.0.1.evil.example"), FORBIDDEN),
    (page("256.0.0.1", "http://256.0.0.1"), FORBIDDEN),
    (page("1.2.3.4.5", "http://1.2.3.4.5"), FORBIDDEN),
    (page("1.2.3", "http://1.2.3"), FORBIDDEN),
    (page("01.2.3.4", "http://01.2.3.4"), FORBIDDEN),
    (page("2130706433", "http://2130706433"), FORBIDDEN),
    # A program, or what asks as one does.
    (program(HERE), YES),
    (program("[::1]"), YES),
    (program("localhost"), YES),
    (program(f"{NAME}:9001"), YES),
    (program("BROKER.example."), YES),
    (program("evil.example:9001"), FORBIDDEN),
    (program(f"evil.{NAME}"), FORBIDDEN),
    (program(f"{NAME}.evil.example"), FORBIDDEN),
    (program("panel.example"), FORBIDDEN),
    (program("."), FORBIDDEN),
    (program("caf\xe9"), FORBIDDEN),
    # What is no Host (RFC 9112, section 3.2), or more than one.
    *(
        (program(host), BAD)
        for host in (
            *("", "[evil]", "[::1", "[]", "[::1]x", "127.0.0.1:", "127.0.0.1:x", ":9001"),
            *("localhost:123456", "user@localhost", "a b", "localhost/x", "::1", "[::1]."),
        )
    ),
    (request(), BAD),
    (request(f"Host: {HERE}", "Host: evil.example"), BAD),
    (request(f"Host: {HERE}", f"HOST: {HERE}"), BAD),
    (request(f"Host: {HERE}", f"Origin: {PANEL}", "origin: https://evil.example"), BAD),
    # An Origin that somebody else would read, and we would not (RFC 9112, sections 5.1 and 5.2).
    (request(f"Host: {HERE}", "Origin : https://evil.example"), BAD),
    (request(f"Host: {HERE}", " Origin: https://evil.example"), BAD),
    (request(f"Host: {HERE}\nOrigin: https://evil.example"), BAD),
    (request(f"Host: {HERE}\rOrigin: https://evil.example"), BAD),
    (request(f"Host: {HERE}\0"), BAD),
    (request(f"Host: {HERE}", "X: \x7f"), BAD),
    (request(f"Host: {HERE}", "no field"), BAD),
    (request(f"Host: {HERE}", ": nameless"), BAD),
    (request(f"Host:\t {HERE} \t", "X-Empty:", "Caf: \xe9"), YES),
    # The absolute form: Host does not count there (RFC 9112, section 3.2.2).
    (request(f"Host: {HERE}", target="http://127.0.0.1:9001/mqtt"), YES),
    (request("Host: evil.example", target=f"HTTP://{HERE}"), YES),
    (request(f"Host: {HERE}", target="http://evil.example/mqtt"), FORBIDDEN),
    (request(f"Host: {HERE}", target="http://evil.example?127.0.0.1"), FORBIDDEN),
    (request(f"Host: {HERE}", target="http://user@127.0.0.1/"), BAD),
    (request(f"Host: {HERE}", target="http:///mqtt"), BAD),
    (request(f"Host: {HERE}", target="http://"), BAD),
    (request(f"Host: {HERE}", target="ftp://127.0.0.1/"), BAD),
    (request(f"Host: {HERE}", target="127.0.0.1:9001"), BAD),
    (request(f"Host: {HERE}", target="*"), BAD),
    (request(f"Host: {HERE}", target="/a b"), BAD),
    (request(f"Host: {HERE}", target=""), BAD),
    # No page can ask for these, and without them no WebSocket begins.
    (without("upgrade"), BAD),
    (without("connection"), BAD),
    (without("sec-websocket-key"), BAD),
    (without("sec-websocket-protocol"), BAD),
    (program(HERE).replace(b"Sec-WebSocket-Protocol: mqtt", b"Sec-WebSocket-Protocol: chat"), BAD),
    (request(f"Host: {HERE}", "Sec-WebSocket-Protocol: chat, other"), YES),
    (request(f"Host: {HERE}", "Sec-WebSocket-Version: 13"), BAD),
    (program(HERE).replace(b"HTTP/1.1", b"HTTP/1.0"), BAD),
]


@pytest.mark.parametrize(("content", "wanted"), CASES)
def test_one_rule(core: CoreDriver, content: bytes, wanted: bytes) -> None:
    core.command(web_origins_command("http://127.0.0.1:3001", PANEL))
    core.command(web_hosts_command("other-name.example", NAME))
    assert answer(core, content) == wanted
    rule = WebRule.of(("other-name.example", NAME), ("http://127.0.0.1:3001", PANEL))
    assert answer_of_the_proxy(content, rule) == wanted


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (program("evil.example:9001"), YES),
        (page("evil.example", PANEL), YES),
        (page("evil.example", "https://evil.example"), FORBIDDEN),
        (page(HERE, "https://evil.example"), FORBIDDEN),
        (page(HERE, f"https://{HERE}"), YES),
        (program("127.0.0.1:x"), BAD),
    ],
)
def test_where_tls_has_proven_the_name(core: CoreDriver, content: bytes, wanted: bytes) -> None:
    """No page's name can mean this server then, and Host is not asked. The proxy has no TLS."""
    core.command(web_origins_command(PANEL))
    assert answer(core, content, name_proven=True) == wanted


def test_what_was_listed_is_replaced(core: CoreDriver) -> None:
    core.command(web_origins_command(PANEL))
    core.command(web_hosts_command(NAME))
    for content in (page(HERE, PANEL), program(NAME)):
        assert answer(core, content) == YES
    core.command(web_origins_command())
    core.command(web_hosts_command())
    for content in (page(HERE, PANEL), program(NAME)):
        assert answer(core, content) == FORBIDDEN


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (page(HERE, PANEL), PANEL),
        (page(HERE, "x" * 3000), "x" * 100),
        (page(HERE, "caf\xe9"), "origin is not printable"),
        (page(HERE, "a\tb"), "origin is not printable"),
        (program("evil.example"), "evil.example, which may be a web page's own name: name it in"),
        (program("caf\xe9"), "name is not printable"),
    ],
)
def test_the_host_is_told_who_it_was(core: CoreDriver, content: bytes, words: str) -> None:
    assert answer(core, content) == FORBIDDEN
    (event,) = [event for event in core.events if isinstance(event, Disconnected)]
    assert words in event.text
    assert (event.code, event.by, event.accepted) == (0x87, 1, False)
