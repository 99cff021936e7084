"""URLs of listeners and servers."""

from __future__ import annotations

import pytest

from avow.channel.address import (
    Address,
    Scheme,
    parse_listen_address,
    parse_server_address,
    resolve,
)
from avow.errors import MalformedError, UnavailableError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://127.0.0.1", Address(Scheme.MQTT, "127.0.0.1", 1883)),
        ("mqtts://host", Address(Scheme.MQTTS, "host", 8883)),
        ("ws://host", Address(Scheme.WS, "host", 80)),
        ("wss://host", Address(Scheme.WSS, "host", 443)),
        ("mqtt://[::1]:7", Address(Scheme.MQTT, "::1", 7)),
        ("MQTT://HOST:0", Address(Scheme.MQTT, "host", 0)),
    ],
)
def test_listen_address(url: str, expected: Address) -> None:
    assert parse_listen_address(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:1883",
        "http://host",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://host:x",
        "mqtt://host:65536",
        "mqtt://[::1",
        "mqtt://host/path",
        "mqtt://user@host",
        "mqtt://host?x=1",
        "mqtt://host#x",
    ],
)
def test_what_is_no_listen_address(url: str) -> None:
    with pytest.raises(MalformedError, match="expected"):
        parse_listen_address(url)


def test_text_of_an_address_is_a_url_again() -> None:
    address = parse_listen_address("mqtts://[::1]")
    assert str(address) == "mqtts://[::1]:8883"
    assert parse_listen_address(str(address)) == address
    assert str(address.at_port(5)) == "mqtts://[::1]:5"


def test_server_address_has_path_and_user() -> None:
    address = parse_server_address("ws://alice@host:8080/a/b")
    assert (address.user, address.path, address.port) == ("alice", "/a/b", 8080)
    assert parse_server_address("mqtt://host/").path == ""


@pytest.mark.parametrize("url", ["mqtt://host/topic", "mqtt://host:0", "mqtt://"])
def test_what_is_no_server_address(url: str) -> None:
    with pytest.raises(MalformedError):
        parse_server_address(url)


def test_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(MalformedError, match="--password-stdin") as caught:
        parse_server_address("mqtt://alice:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [("mqtt://127.0.0.9", True), ("mqtt://0.0.0.0", False), ("mqtt://[::1]", True)],
)
def test_loopback(url: str, loopback: bool) -> None:
    assert [target.loopback for target in resolve(parse_listen_address(url))] == [loopback]


def test_unknown_host_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid"):
        resolve(parse_listen_address("mqtt://no-such-host.invalid"))
