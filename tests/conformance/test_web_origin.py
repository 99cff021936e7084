"""Which web pages may open a WebSocket: the core's rule, and that of the proxy beside it."""

from __future__ import annotations

import pytest

from avow.channel.web_origin import WebRule, check_web_request
from avow.errors import AvowError
from avow.testing.core_abi import Disconnected, Transport, web_origins_command
from avow.testing.core_driver import CoreDriver
from avow.testing.websocket import WebSocketClient

PANEL = "https://panel.example"


def request(host: str, *origins: str) -> bytes:
    lines = WebSocketClient().upgrade().split(b"\r\n")
    lines = [line for line in lines if not line.lower().startswith(b"host:")]
    fields = [f"Host: {host}", *(f"Origin: {origin}" for origin in origins)]
    return b"\r\n".join([lines[0], *(field.encode("latin-1") for field in fields), *lines[1:]])


def answer(core: CoreDriver, content: bytes) -> bytes:
    connection = core.open(Transport.WEBSOCKET)
    core.send(connection, content)
    return connection.read()[:12]


def proxy_admits(content: bytes) -> bool:
    try:
        check_web_request(content, WebRule())
    except AvowError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "origin", "admitted"),
    [
        ("127.0.0.1:9001", "http://127.0.0.1:9001", True),
        ("127.0.0.1:9001", "https://127.0.0.1:9001", True),
        ("LOCALHOST:9001", "http://localhost:9001", True),
        ("app.localhost", "http://app.localhost", True),
        ("192.0.2.7", "http://192.0.2.7", True),
        ("[::1]:9001", "http://[::1]:9001", True),
        # Another page, another port, a page without a name.
        ("127.0.0.1:9001", "https://evil.example", False),
        ("127.0.0.1:9001", "http://127.0.0.1:3000", False),
        ("127.0.0.1:9001", "http://127.0.0.1", False),
        ("127.0.0.1:9001", "null", False),
        ("127.0.0.1:9001", "", False),
        ("127.0.0.1:9001", "http://127.0.0.1:9001.evil.example", False),
        ("127.0.0.1:9001", "ftp://127.0.0.1:9001", False),
        # The page's own name, which resolves to us: DNS rebinding.
        ("evil.example:9001", "http://evil.example:9001", False),
        ("localhost.evil.example", "http://localhost.evil.example", False),
        ("evillocalhost", "http://evillocalhost", False),
        ("127.0.0.1.evil.example", "http://127.0.0.1.evil.example", False),
        ("256.0.0.1", "http://256.0.0.1", False),
        ("1.2.3.4.5", "http://1.2.3.4.5", False),
        ("1.2.3", "http://1.2.3", False),
        ("[evil]", "http://[evil]", False),
        ("[::1", "http://[::1", False),
        ("127.0.0.1:", "http://127.0.0.1:", False),
        ("127.0.0.1:x", "http://127.0.0.1:x", False),
    ],
)
def test_a_page(core: CoreDriver, host: str, origin: str, admitted: bool) -> None:
    content = request(host, origin)
    assert answer(core, content) == (b"HTTP/1.1 101" if admitted else b"HTTP/1.1 403")
    assert proxy_admits(content) is admitted


def test_a_page_that_is_named_comes_in(core: CoreDriver) -> None:
    core.command(web_origins_command("http://127.0.0.1:3000", PANEL))
    for origin in (PANEL, "HTTPS://PANEL.example", "http://127.0.0.1:3000"):
        assert answer(core, request("broker.example:9001", origin)) == b"HTTP/1.1 101"
    for origin in (
        "https://panel.example:8443",
        "https://evil.panel.example",
        "http://panel.example",
    ):
        assert answer(core, request("broker.example:9001", origin)) == b"HTTP/1.1 403"
    core.command(web_origins_command())
    assert answer(core, request("broker.example:9001", PANEL)) == b"HTTP/1.1 403"


def test_a_program_is_not_asked(core: CoreDriver) -> None:
    assert answer(core, request("broker.example:9001")) == b"HTTP/1.1 101"


@pytest.mark.parametrize(
    "content",
    [
        request("127.0.0.1", PANEL, "http://127.0.0.1"),
        request("127.0.0.1").replace(b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nHost: evil"),
    ],
)
def test_what_is_there_twice_is_malformed(core: CoreDriver, content: bytes) -> None:
    assert answer(core, content) == b"HTTP/1.1 400"
    assert not proxy_admits(content)


@pytest.mark.parametrize(
    ("origin", "words"),
    [(PANEL, PANEL), ("x" * 3000, "x" * 100), ("caf\xe9", "not printable"), ("a\tb", "printable")],
)
def test_the_host_is_told_who_it_was(core: CoreDriver, origin: str, words: str) -> None:
    assert answer(core, request("127.0.0.1", origin)) == b"HTTP/1.1 403"
    (event,) = [event for event in core.events if isinstance(event, Disconnected)]
    assert words in event.text
    assert (event.code, event.by, event.accepted) == (0x87, 1, False)
