"""MQTT 5.0, section 3.3.1: DUP, QoS and RETAIN of PUBLISH; retained messages."""

from __future__ import annotations

import pytest

from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import connected
from avow.testing.mqtt import Filter, Property, Publish, frame, props

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


@clause("MQTT-3.3.1-1")
@pytest.mark.parametrize("qos", [1, 2])
def test_dup_is_set_when_a_message_is_sent_again(core: CoreDriver, qos: int) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=qos)
    connected(core, "p").publish("t", b"x", qos=qos)
    client.expect_publish("t", b"x", qos, dup=False, acknowledge=False)
    for _ in range(3):
        client.reconnect(properties=LONG)
        client.expect_publish("t", b"x", qos, dup=True, acknowledge=False)


@clause("MQTT-3.3.1-1")
def test_dup_is_not_set_for_what_was_never_sent(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    connected(core, "p").publish("t", b"x", qos=1)
    client.reconnect(properties=LONG)
    client.expect_publish("t", b"x", 1, dup=False)


@clause("MQTT-3.3.1-2")
def test_qos_0_with_dup_is_refused(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", dup=True))
    client.expect_close({0x81, 0x82})


@clause("MQTT-3.3.1-3")
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_dup_of_an_incoming_publish_is_not_passed_on(core: CoreDriver, granted: int) -> None:
    subscriber = connected(core, "s")
    subscriber.subscribe("t", qos=granted)
    publisher = connected(core, "p")
    publisher.send(Publish("t", b"x", 1, 1, dup=True))
    subscriber.expect_publish("t", b"x", min(granted, 1), dup=False)
    publisher.send(Publish("t", b"y", 2, 2, dup=True))
    subscriber.expect_publish("t", b"y", granted, dup=False)


@clause("MQTT-3.3.1-4")
@pytest.mark.parametrize("flags", [0x6, 0x7, 0xE, 0xF])
def test_qos_3_is_malformed(core: CoreDriver, flags: int) -> None:
    client = connected(core, "c")
    client.send(frame(3, flags, b"\x00\x01t\x00\x01\x00x"))
    client.expect_close(0x81)


@clause("MQTT-3.3.1-5")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_retained_message_is_stored_with_its_qos_and_replaced(core: CoreDriver, qos: int) -> None:
    publisher = connected(core, "p")
    publisher.publish("t", b"first", retain=True)
    publisher.publish("t", b"second", qos, retain=True)
    client = connected(core, "c")
    client.subscribe("t", qos=2)
    client.expect_publish("t", b"second", qos, retain=True)
    client.expect_nothing()


@clause("MQTT-3.3.1-5")
def test_a_retained_message_keeps_its_properties(core: CoreDriver) -> None:
    properties = props(
        payload_format_indicator=1,
        content_type="text/plain",
        response_topic="r",
        correlation_data=b"\x01",
        user_property=[("b", "2"), ("a", "1")],
    )
    connected(core, "p").publish("t", b"x", retain=True, properties=properties)
    client = connected(core, "c")
    client.subscribe("#")
    packet = client.expect_publish("t", b"x", retain=True)
    assert sorted(packet.props.items, key=repr) == sorted(properties.items, key=repr)
    assert packet.props.user == [("b", "2"), ("a", "1")]


@clause("MQTT-3.3.1-6", "MQTT-3.3.1-7")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_an_empty_retained_message_removes_the_retained_one(core: CoreDriver, qos: int) -> None:
    publisher = connected(core, "p")
    online = connected(core, "o")
    online.subscribe("t", qos=2)
    publisher.publish("t", b"x", retain=True)
    online.expect_publish("t", b"x", retain=False)
    assert core.counters()["retained"] == 1
    publisher.publish("t", b"", qos, retain=True)
    online.expect_publish("t", b"", qos, retain=False)  # processed normally
    assert core.counters()["retained"] == 0
    late = connected(core, "l")
    late.subscribe("t")
    late.expect_nothing()


@clause("MQTT-3.3.1-7")
def test_an_empty_retained_message_is_never_stored(core: CoreDriver) -> None:
    connected(core, "p").publish("t", b"", retain=True)
    assert core.counters()["retained"] == 0
    client = connected(core, "c")
    client.subscribe("t")
    client.expect_nothing()


@clause("MQTT-3.3.1-8")
@pytest.mark.parametrize("payload", [b"new", b""])
def test_a_message_without_retain_changes_no_retained_one(core: CoreDriver, payload: bytes) -> None:
    publisher = connected(core, "p")
    publisher.publish("other", payload)
    publisher.publish("t", b"kept", retain=True)
    publisher.publish("t", payload)
    client = connected(core, "c")
    client.subscribe("#")
    client.expect_publish("t", b"kept", retain=True)
    client.expect_nothing()


@clause("MQTT-3.3.1-9")
def test_retain_handling_0_sends_retained_messages_at_every_subscribe(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    for topic in ("t/1", "t/2", "u"):
        publisher.publish(topic, topic.encode(), retain=True)
    client = connected(core, "c")
    for _ in range(3):
        client.subscribe(Filter("t/#", retain_handling=0))
        assert sorted(p.text for p in client.received()) == ["t/1", "t/2"]


@clause("MQTT-3.3.1-10")
def test_retain_handling_1_sends_them_only_to_a_new_subscription(core: CoreDriver) -> None:
    connected(core, "p").publish("t", b"x", retain=True)
    client = connected(core, "c", properties=LONG)
    client.subscribe(Filter("t", retain_handling=1))
    client.expect_publish("t", b"x", retain=True)
    client.subscribe(Filter("t", 1, retain_handling=1))
    client.expect_nothing()
    client.reconnect(properties=LONG)
    client.subscribe(Filter("t", retain_handling=1))
    client.expect_nothing()
    client.unsubscribe("t")
    client.subscribe(Filter("t", retain_handling=1))
    client.expect_publish("t", b"x", retain=True)


@clause("MQTT-3.3.1-11")
def test_retain_handling_2_never_sends_them(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    publisher.publish("t", b"x", retain=True)
    client = connected(core, "c")
    for _ in range(2):
        client.subscribe(Filter("t", retain_handling=2))
        client.expect_nothing()
    publisher.publish("t", b"y", retain=True)
    client.expect_publish("t", b"y")


@clause("MQTT-3.3.1-12")
@pytest.mark.parametrize("retain", [False, True])
def test_without_retain_as_published_the_flag_is_0(core: CoreDriver, retain: bool) -> None:
    client = connected(core, "c")
    client.subscribe(Filter("t", retain_as_published=False))
    connected(core, "p").publish("t", b"x", retain=retain)
    client.expect_publish("t", b"x", retain=False)


@clause("MQTT-3.3.1-13")
@pytest.mark.parametrize("retain", [False, True])
def test_with_retain_as_published_the_flag_is_kept(core: CoreDriver, retain: bool) -> None:
    client = connected(core, "c")
    client.subscribe(Filter("t", 2, retain_as_published=True))
    for qos in range(3):
        connected(core, "p").publish("t", b"x", qos, retain=retain)
        client.expect_publish("t", b"x", qos, retain=retain)


@clause("MQTT-3.3.1-13")
def test_retain_as_published_holds_for_queued_messages_too(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe(Filter("a", 1, retain_as_published=True), Filter("b", 1))
    client.drop()
    publisher = connected(core, "p")
    publisher.publish("a", b"x", 1, retain=True)
    publisher.publish("b", b"x", 1, retain=True)
    client.reconnect(properties=LONG)
    client.expect_publish("a", b"x", retain=True)
    client.expect_publish("b", b"x", retain=False)


def test_a_retained_message_that_expires_is_gone(core: CoreDriver) -> None:
    """3.3.1.3: it is discarded and there will be no retained message for that topic."""
    publisher = connected(core, "p")
    publisher.publish("t", b"x", retain=True, properties=props(message_expiry_interval=10))
    early = connected(core, "e")
    core.advance(5_000)
    early.subscribe("t")
    packet = early.expect_publish("t", b"x", retain=True)
    assert packet.props.get(Property.MESSAGE_EXPIRY_INTERVAL) in (4, 5)
    core.advance(6_000)
    late = connected(core, "l")
    late.subscribe("t")
    late.expect_nothing()


def test_retained_messages_match_wildcards_as_others_do(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    topics = ["a", "a/b", "a/b/c", "a//c", "/a", "$x/a", "b"]
    for topic in topics:
        publisher.publish(topic, b"x", retain=True)
    for wanted, expected in (
        ("#", {"a", "a/b", "a/b/c", "a//c", "/a", "b"}),
        ("+", {"a", "b"}),
        ("a/#", {"a", "a/b", "a/b/c", "a//c"}),
        ("a/+", {"a/b"}),
        ("+/+", {"a/b", "/a"}),
        ("a/+/c", {"a/b/c", "a//c"}),
        ("/+", {"/a"}),
        ("$x/#", {"$x/a"}),
        ("+/a", {"/a"}),
        ("c", set()),
    ):
        client = connected(core, "c")
        client.subscribe(wanted)
        assert {p.text for p in client.received()} == expected, wanted
        client.drop()


def test_retained_messages_survive_their_publisher(core: CoreDriver) -> None:
    """4.1: they are not part of the session state."""
    publisher = connected(core, "p")
    publisher.publish("t", b"x", 1, retain=True)
    publisher.disconnect()
    client = connected(core, "c")
    client.subscribe("t", qos=1)
    client.expect_publish("t", b"x", 1, retain=True)


def test_a_retained_message_is_lowered_to_the_granted_qos(core: CoreDriver) -> None:
    connected(core, "p").publish("t", b"x", 2, retain=True)
    for qos in range(3):
        client = connected(core, "c")
        client.subscribe("t", qos=qos)
        client.expect_publish("t", b"x", qos, retain=True)
        client.drop()
