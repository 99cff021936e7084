"""MQTT 5.0, section 4.13: errors end a connection with the right code and touch nobody else."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Outcome, Rule, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connect, Filter, Publish, Subscribe, frame, props

clause = pytest.mark.clause

ERRORS = {
    "remaining length of five bytes": (b"\x30\x80\x80\x80\x80\x01", {0x81}),
    "qos 3": (b"\x36\x06\x00\x01t\x00\x01\x00", {0x81}),
    "reserved packet type": (b"\x00\x00", {0x81, 0x82}),
    "flags of pingreq": (b"\xc1\x00", {0x81}),
    "flags of pubrel": (b"\x60\x02\x00\x01", {0x81}),
    "unknown property": (b"\x30\x06\x00\x01t\x02\x7f\x01", {0x81}),
    "property of another packet": (b"\x30\x07\x00\x01t\x03\x21\x00\x01", {0x81}),
    "property twice": (b"\x30\x08\x00\x01t\x04\x01\x00\x01\x00", {0x82}),
    "property cut off": (b"\x30\x06\x00\x01t\x02\x02\x00", {0x81}),
    "subscribe without filters": (b"\x82\x03\x00\x01\x00", {0x82}),
    "unsubscribe without filters": (b"\xa2\x03\x00\x01\x00", {0x82}),
    "second connect": (Connect("x").encode(), {0x82}),
    "alias 0": (Publish("t", properties=props(topic_alias=0)).encode(), {0x94}),
    "alias too large": (Publish("t", properties=props(topic_alias=999)).encode(), {0x94}),
    "unknown alias": (Publish("", properties=props(topic_alias=1)).encode(), {0x82}),
    "no topic": (Publish("").encode(), {0x82, 0x90}),
    "ill-formed utf-8": (Publish(b"\xff").encode(), {0x81}),
    "packet too large": (b"\x30\xff\xff\xff\x7f", {0x95}),
    "connack from a client": (b"\x20\x03\x00\x00\x00", {0x81, 0x82}),
    "puback too short": (b"\x40\x01\x00", {0x81}),
    "puback empty": (b"\x40\x00", {0x81}),
    "auth without a method": (b"\xf0\x02\x19\x00", {0x82}),
}


@clause("MQTT-4.13.1-1", "MQTT-4.13.2-1")
@pytest.mark.parametrize("name", list(ERRORS))
def test_an_error_ends_the_connection_with_its_code(core: CoreDriver, name: str) -> None:
    raw, codes = ERRORS[name]
    watcher = connected(core, "w")
    watcher.subscribe("#", qos=2)
    client = connected(core, "c")
    client.send(raw + b"\xc0\x00")
    client.expect_close(codes)
    watcher.ping()
    watcher.expect_nothing()
    assert core.counters()["protocol_errors"] >= 1


@clause("MQTT-4.13.1-1")
@pytest.mark.parametrize("name", list(ERRORS))
def test_an_error_that_comes_byte_by_byte_is_the_same_error(core: CoreDriver, name: str) -> None:
    raw, codes = ERRORS[name]
    client = connected(core, "c")
    for at in range(len(raw)):
        client.send(raw[at : at + 1])
    client.expect_close(codes)


@clause("MQTT-4.13.1-1")
def test_an_error_after_good_packets_keeps_what_they_did(core: CoreDriver) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("t", qos=1)
    client = connected(core, "c")
    client.send(Publish("t", b"good", 1, 1), frame(3, 6, b"\x00\x01t"), Publish("t", b"late"))
    client.receive()
    client.expect_close(0x81)
    watcher.expect_publish("t", b"good", 1)
    watcher.expect_nothing()


@clause("MQTT-4.13.2-1")
@pytest.mark.parametrize("code", [0x80, 0x83, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x97, 0x9C, 0x9D, 0x9F])
def test_a_connack_with_an_error_closes(core: CoreDriver, code: int) -> None:
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="u"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=code)
    client.expect_refused(code)


@clause("MQTT-4.13.2-1")
@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x89, 0x8B, 0x97, 0x98, 0x9C, 0x9D, 0xA0])
def test_a_disconnect_with_an_error_closes(core: CoreDriver, code: int) -> None:
    client = connected(core, "c")
    core.disconnect(client.connection, code)
    client.expect_close(code)


@clause("MQTT-4.13.2-1")
def test_a_client_of_mqtt_311_is_closed_without_a_word(core: CoreDriver) -> None:
    client = connected(core, "c", version=4)
    core.disconnect(client.connection, 0x98)
    client.expect_close()


def test_an_acknowledgement_with_an_error_does_not_close(core: CoreDriver) -> None:
    """4.13.2: there are no consequences for other packets of the session."""
    core.acl([Rule(False, "deny"), Rule(True, "#")])
    client = connected(core, "c")
    client.publish("deny", b"x", 1, code=0x87)
    client.publish("deny", b"x", 2, code=0x87)
    client.subscribe("deny", codes=[0x87])
    client.subscribe("ok")
    client.publish("ok", b"x", 2)
    client.expect_publish("ok", b"x")


def test_a_publish_of_qos_0_that_is_denied_is_dropped_silently(core: CoreDriver) -> None:
    core.acl([Rule(False, "deny"), Rule(True, "#")])
    watcher = connected(core, "w")
    watcher.subscribe("#")
    client = connected(core, "c")
    client.publish("deny", b"x")
    client.ping()
    watcher.expect_nothing()
    assert core.counters()["acl_denied"] == 1


@clause("MQTT-4.13.1-1")
def test_errors_of_many_clients_in_one_turn(core: CoreDriver) -> None:
    good = connected(core, "good")
    good.subscribe("t", qos=1)
    clients = [connected(core, f"c{n}") for n in range(len(ERRORS))]
    with core.batch():
        for client, (raw, _) in zip(clients, ERRORS.values(), strict=True):
            client.send(Publish("t", b"x", 1, 1), raw)
    assert len(good.received()) == len(ERRORS)
    for client, (_, codes) in zip(clients, ERRORS.values(), strict=True):
        client.receive()
        client.expect_close(codes)


def test_a_request_above_the_limit_of_subscriptions_is_answered_with_quota_exceeded(
    core: CoreDriver,
) -> None:
    core.settings({Setting.SUBSCRIPTIONS_MAX: 2})
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("a"), Filter("b"), Filter("c")]))
    packet = client.receive()
    assert getattr(packet, "codes", None) == [0, 0, 0x97]
    old = connected(core, "old", version=4)
    old.subscribe("a", "b", "c", codes=[0, 0, 0x80])
