"""MQTT 3.1 (IBM and Eurotech, 2010): what differs from MQTT 3.1.1 on the server's side.

Section numbers are those of MQTT 3.1. Where it leaves a choice, the answer is mosquitto's.
"""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Access, Connected, Disconnected, Outcome, Rule, Transport
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Will,
    frame,
)
from avow.testing.websocket import WebSocketClient


def device(core: CoreDriver, client_id: str = "device", *, clean: bool = True) -> FakeClient:
    """A client of MQTT 3.1 that has connected."""
    return connected(core, client_id, version=3, clean_start=clean)


def accepted(client: FakeClient) -> None:
    """The CONNECT was accepted."""
    assert client.expect(Connack).code == 0
    client.expect_nothing()


def test_to_the_byte(core: CoreDriver) -> None:
    """3.1, 3.2: the protocol's name is MQIsdp, its level 3."""
    connection = core.open()
    core.send(connection, b"\x10\x15\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x07charger")
    assert connection.read() == b"\x20\x02\x00\x00"
    (event,) = [e for e in core.take_events() if isinstance(e, Connected)]
    assert (event.version, event.client_id) == (3, "charger")


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_go_both_ways(core: CoreDriver, qos: int) -> None:
    client = device(core)
    client.subscribe("t", qos=2)
    client.publish("t", b"x", qos)
    client.expect_publish("t", b"x", qos)
    client.unsubscribe("t")
    client.ping()


def test_session_present_does_not_exist(core: CoreDriver) -> None:
    """3.2: the first byte of CONNACK is reserved; the session is there nevertheless."""
    client = device(core, clean=False)
    client.subscribe("t", qos=1)
    client.drop()
    connected(core, "p").publish("t", b"kept", 1)
    assert not client.reconnect().session_present
    client.expect_publish("t", b"kept", 1)


@pytest.mark.parametrize("clean", [True, False])
def test_an_empty_client_identifier_is_refused(core: CoreDriver, clean: bool) -> None:
    """3.1: it has 1 to 23 characters."""
    client = FakeClient(core, version=3)
    client.send(Connect("", version=3, clean_start=clean))
    client.expect_refused(2)


def test_a_client_identifier_may_be_longer_than_23_characters(core: CoreDriver) -> None:
    """As with mosquitto: devices use longer ones."""
    device(core, "c" * 24).ping()


def test_a_refused_subscription_is_acknowledged_and_gets_nothing(core: CoreDriver) -> None:
    """3.8: SUBACK has no code for it, and the client is not informed."""
    core.acl([Rule(False, "secret", Access.SUBSCRIBE), Rule(True, "#")])
    publisher = connected(core, "p")
    publisher.publish("secret", b"retained", retain=True)
    client = device(core)
    client.subscribe(Filter("secret", 1), Filter("open", 2), codes=[1, 2])
    publisher.publish("secret", b"x", 1)
    publisher.publish("open", b"y", 1)
    client.expect_publish("open", b"y", 1)
    client.expect_nothing()
    assert core.counters()["subscriptions"] == 1


@pytest.mark.parametrize("flags", [0x82, 0xC2])
def test_a_user_name_that_is_missing_at_the_end_is_none(core: CoreDriver, flags: int) -> None:
    """3.1: the remaining length takes precedence over the flags."""
    client = FakeClient(core, "device", version=3)
    client.send(Connect("device", version=3, flags=flags))
    accepted(client)


def test_a_password_that_is_missing_at_the_end_is_none(core: CoreDriver) -> None:
    client = FakeClient(core, "device", version=3)
    client.send(Connect("device", version=3, username="u", flags=0xC2))
    request = core.auth_request()
    assert (request.username, request.has_password) == ("u", False)
    core.auth_result(request, Outcome.SUCCESS, user="u")
    accepted(client)


@pytest.mark.parametrize(
    "packet",
    [
        Connect("d", version=3, flags=0x03),
        Connect("d", version=3, flags=0x22),
        Connect("d", version=3, flags=0x0A),
    ],
)
def test_bits_of_the_connect_flags_that_are_not_used(core: CoreDriver, packet: Connect) -> None:
    """3.1: bit 0, and what the will would have, were there one."""
    client = FakeClient(core, "d", version=3)
    client.send(packet)
    accepted(client)


@pytest.mark.parametrize(
    "packet",
    [
        Connect("d", version=3, flags=0x42, trailing=b"\x00\x01p"),  # a password without a user
        Connect("d", version=3, will=Will("w", b"x", 3)),
        Connect("d", version=3, will=Will("w/#", b"x")),
        Connect("d", version=3, trailing=b"x"),
        Connect(b"\xff", version=3),
    ],
)
def test_a_malformed_connect_is_closed(core: CoreDriver, packet: Connect) -> None:
    client = FakeClient(core, version=3)
    client.send(packet)
    client.expect_close()


@pytest.mark.parametrize(
    ("kind", "body"),
    [(8, b"\x00\x01\x00\x01t\x01"), (10, b"\x00\x01\x00\x01t")],
    ids=["SUBSCRIBE", "UNSUBSCRIBE"],
)
def test_a_request_may_be_repeated_with_dup(core: CoreDriver, kind: int, body: bytes) -> None:
    """3.8, 3.10: these have a QoS of 1, and so DUP when they are sent again."""
    client = device(core)
    client.send(frame(kind, 0x2, body), frame(kind, 0xA, body))
    first, second = client.receive(), client.receive()
    assert type(first) is type(second)
    client.ping()


def test_pubrel_may_be_repeated_with_dup(core: CoreDriver) -> None:
    """3.6."""
    client = device(core)
    client.send(Publish("t", b"x", 2, 1))
    client.expect(Pubrec)
    client.send(frame(6, 0xA, b"\x00\x01"))
    assert client.expect(Pubcomp).packet_id == 1


@pytest.mark.parametrize(("kind", "body"), [(12, b""), (4, b"\x00\x01"), (14, b"")])
def test_flags_that_are_not_used_are_not_looked_at(
    core: CoreDriver, kind: int, body: bytes
) -> None:
    """3.4, 3.12, 3.14: DUP, QoS and RETAIN are "not used" there."""
    client = device(core)
    client.send(frame(kind, 0x3, body))
    client.pump()
    ended = [e.by for e in core.take_events() if isinstance(e, Disconnected)]
    assert ended == ([0] if kind == 14 else [])


@pytest.mark.parametrize(
    "packet",
    [
        frame(3, 6, b"\x00\x01t\x00\x01"),
        frame(8, 0, b"\x00\x01\x00\x01t\x00"),
        frame(8, 2, b"\x00\x01\x00\x01t\x03"),
        frame(4, 0, b"\x00\x01\x00"),
        frame(15, 0, b""),
        frame(0, 0, b""),
    ],
)
def test_malformed_packets_close_without_a_packet(core: CoreDriver, packet: bytes) -> None:
    client = device(core)
    client.send(packet)
    client.expect_close()


def test_bits_beside_the_qos_of_a_subscription_are_not_used(core: CoreDriver) -> None:
    """3.8: "the upper 6 bits of this byte are not used"."""
    client = device(core)
    client.send(frame(8, 2, b"\x00\x01\x00\x01t\xfd"))
    client.receive()
    connected(core, "p").publish("t", b"x", 1)
    client.expect_publish("t", b"x", 1)


@pytest.mark.parametrize("level", [2, 4, 5, 0x84])
def test_other_levels_of_the_old_name_are_refused_with_code_1(core: CoreDriver, level: int) -> None:
    client = FakeClient(core, version=3)
    client.send(Connect("c", version=3, level=level))
    client.expect_refused(1)


def test_a_will_is_published(core: CoreDriver) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("gone", qos=1)
    client = FakeClient(core, "device", version=3)
    client.connect(will=Will("gone", b"x", 1))
    client.drop()
    watcher.expect_publish("gone", b"x", 1)


def test_the_session_passes_between_the_versions(core: CoreDriver) -> None:
    """A device that is updated keeps what waits for it."""
    client = device(core, clean=False)
    client.subscribe("t", qos=1)
    client.drop()
    connected(core, "p").publish("t", b"kept", 1)
    newer = FakeClient(core, "device", version=4)
    assert newer.connect(clean_start=False).session_present
    newer.expect_publish("t", b"kept", 1)


def test_a_second_connection_closes_the_first_without_a_packet(core: CoreDriver) -> None:
    first = device(core)
    second = device(core)
    first.expect_close()
    second.ping()


def test_a_denied_publish_is_acknowledged(core: CoreDriver) -> None:
    """3.3: there is no negative acknowledgement."""
    core.acl([Rule(False, "#", Access.PUBLISH)])
    client = device(core)
    client.send(Publish("t", b"x", 1, 7))
    assert client.expect(Puback).packet_id == 7


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("mqttv3.1", b"mqttv3.1"), ("mqttv3.1, mqtt", b"mqtt"), ("mqtt,mqttv3.1", b"mqtt")],
)
def test_the_old_subprotocol_of_websocket(core: CoreDriver, offered: str, chosen: bytes) -> None:
    """What MQTT.js offers for MQTT 3.1; `mqtt` is the name since MQTT 3.1.1."""
    connection = core.open(Transport.WEBSOCKET)
    client = WebSocketClient(protocol=chosen)
    core.send(connection, client.upgrade(protocols=offered))
    client.feed(connection.read())
    assert client.upgraded
    core.send(connection, client.binary(Connect("c", version=3).encode()))
    assert client.feed(connection.read()) == b"\x20\x02\x00\x00"
