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


def head(*fields: str) -> bytes:
    return "\r\n".join(["GET /mqtt HTTP/1.1", *fields, "", ""]).encode("latin-1")


UPGRADE = (
    *("Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Version: 13"),
    *("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: mqtt"),
)


def test_names_and_origins_as_a_user_writes_them() -> None:
    """The cases of the rule itself are in tests/conformance/test_web_origin.py."""
    rule = WebRule.of(("Proxy.Example.", "10.0.0.7"), ("https://Panel.example/",))
    check_web_request(head("Host: proxy.example:1884", *UPGRADE), rule)
    check_web_request(head("Host: localhost", "Origin: https://panel.example", *UPGRADE), rule)


def test_a_refusal_says_how_to_allow() -> None:
    with pytest.raises(DeniedError, match="--allow-host"):
        check_web_request(head("Host: evil.example", *UPGRADE), WebRule())
    with pytest.raises(DeniedError, match="--allow-origin"):
        check_web_request(head("Host: localhost", "Origin: null", *UPGRADE), WebRule())
    with pytest.raises(MalformedError, match="Upgrade"):
        check_web_request(head("Host: localhost"), WebRule())


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
