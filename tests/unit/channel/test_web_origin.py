"""Which requests for a WebSocket are a page's, and which a program's."""

from __future__ import annotations

import pytest

from avow.channel.web_origin import (
    HEAD_BYTES_MAX,
    WebRule,
    check_web_request,
    head_end,
    refusal_response,
)
from avow.errors import DeniedError, MalformedError

RULE = WebRule.of(("Proxy.Example.", "10.0.0.7"), ("https://Panel.example/",))


def head(*fields: str, first: str = "GET /mqtt HTTP/1.1") -> bytes:
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:1884", "[::1]:1884", "[::1]", "localhost", "LocalHost:80"),
        *("a.localhost", "proxy.example", "PROXY.example:1884", "192.0.2.1", "proxy.example."),
    ],
)
def test_names_of_this_server(host: str) -> None:
    check_web_request(head(f"Host: {host}"), RULE)
    check_web_request(head(f"HOST:\t{host} ", "User-Agent: x"), RULE)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "notlocalhost", "1.2.3.4.example", "2130706433"],
)
def test_names_that_may_be_a_pages_own(host: str) -> None:
    """Its name means this machine for a moment, and then the page is of the same origin."""
    with pytest.raises(DeniedError, match="--allow-host"):
        check_web_request(head(f"Host: {host}:1884", f"Origin: http://{host}:1884"), RULE)
    with pytest.raises(DeniedError, match="--allow-host"):
        check_web_request(head(f"Host: {host}"), RULE)


@pytest.mark.parametrize(
    "origin", ["https://panel.example", "HTTPS://PANEL.example", "http://127.0.0.1:1884"]
)
def test_pages_that_may_connect(origin: str) -> None:
    check_web_request(head("Host: 127.0.0.1:1884", f"Origin: {origin}"), RULE)


@pytest.mark.parametrize(
    "origin",
    [
        *("http://panel.example", "https://panel.example.evil", "null", "", "file://"),
        *("http://127.0.0.1:3000", "http://127.0.0.1", "http://localhost:1884", "*"),
    ],
)
def test_pages_that_may_not(origin: str) -> None:
    with pytest.raises(DeniedError, match="--allow-origin"):
        check_web_request(head("Host: 127.0.0.1:1884", f"Origin: {origin}"), RULE)


@pytest.mark.parametrize(
    "content",
    [
        head(),
        head("Host: localhost", "Host: localhost"),
        head("Host: localhost", "Origin: https://panel.example", "origin: https://evil.example"),
        head("Host: localhost", " Origin: https://evil.example"),
        head("Host: localhost", "Origin : https://evil.example"),
        head("Host: localhost", "no field"),
        head("Host: user@localhost"),
        head("Host: localhost:"),
        head("Host: localhost:123456"),
        head("Host: localhost", first="POST / HTTP/1.1"),
        head("Host: localhost", first="GET / HTTP/1.0"),
        head("Host: localhost", first="GET  HTTP/1.1"),
        head("Host: localhost\nOrigin: https://evil.example"),
        head("Host: localhost\0"),
    ],
)
def test_requests_that_could_be_read_in_two_ways(content: bytes) -> None:
    with pytest.raises(MalformedError):
        check_web_request(content, RULE)


def test_the_head_is_whole_and_bounded() -> None:
    content = head("Host: localhost")
    for cut in range(len(content)):
        assert head_end(content[:cut]) is None
    assert head_end(content) == len(content)
    assert head_end(content + b"\x81\x00") == len(content)
    assert head_end(b"x" * (HEAD_BYTES_MAX - 1)) is None
    with pytest.raises(MalformedError, match="8192"):
        head_end(b"x" * HEAD_BYTES_MAX)


def test_what_the_client_is_told() -> None:
    assert refusal_response(DeniedError("no")).startswith(b"HTTP/1.1 403 ")
    assert refusal_response(MalformedError("what")).startswith(b"HTTP/1.1 400 ")
