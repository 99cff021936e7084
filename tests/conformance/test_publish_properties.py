"""MQTT 5.0, section 3.3.2: topic name and properties of PUBLISH."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import connected
from avow.testing.mqtt import Filter, Properties, Property, Puback, Publish, frame, props
from avow.testing.mqtt_properties import encode_string, encode_variable

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


@clause("MQTT-3.3.2-1")
def test_a_publish_without_a_topic_field_is_malformed(core: CoreDriver) -> None:
    for body in (b"", b"\x00", b"\x00\x02t"):
        client = connected(core, "c")
        client.send(frame(3, 0, body))
        client.expect_close(0x81)


@clause("MQTT-3.3.2-1")
def test_a_topic_that_is_not_utf8_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish(b"a/\xc3\x28", b"x"))
    client.expect_close(0x81)


@clause("MQTT-3.3.2-2", "MQTT-4.7.0-1")
@pytest.mark.parametrize("topic", ["#", "+", "a/#", "a/+", "a/+/b", "a#", "a+b", "$SYS/#"])
def test_a_wildcard_in_a_topic_name_ends_the_connection(core: CoreDriver, topic: str) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("#")
    for qos in range(3):
        client = connected(core, "c")
        client.send(Publish(topic, b"x", qos, 1 if qos else None))
        client.expect_close({0x81, 0x82, 0x90})
    watcher.expect_nothing()


@clause("MQTT-3.3.2-3")
def test_the_topic_of_a_delivery_matches_the_subscription(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("a/+/c", "b/#")
    publisher = connected(core, "p")
    for topic in ("a/x/c", "a/x/d", "b", "b/c/d", "c", "a//c", "A/x/c"):
        publisher.publish(topic, topic.encode())
    got = client.received()
    assert [p.text for p in got] == ["a/x/c", "b", "b/c/d", "a//c"]
    assert all(p.text.encode() == p.payload for p in got)


@clause("MQTT-3.3.2-4")
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_payload_format_indicator_is_unaltered(core: CoreDriver, value: int, qos: int) -> None:
    client = connected(core, "c")
    client.subscribe("t", qos=2)
    client.publish("t", b"text", qos, properties=props(payload_format_indicator=value))
    packet = client.expect_publish("t", b"text", qos)
    assert packet.props.get(Property.PAYLOAD_FORMAT_INDICATOR) == value


def test_a_payload_that_is_not_the_text_it_claims_to_be(core: CoreDriver) -> None:
    """3.3.2.3.2: the receiver may refuse it with 0x99; otherwise it is forwarded unaltered."""
    client = connected(core, "c")
    client.subscribe("t", qos=1)
    client.send(Publish("t", b"\xff", 1, 1, properties=props(payload_format_indicator=1)))
    puback = client.take(Puback)
    if puback.code:
        assert puback.code == 0x99
        client.expect_nothing()
    else:
        packet = client.expect_publish("t", b"\xff", 1)
        assert packet.props.get(Property.PAYLOAD_FORMAT_INDICATOR) == 1


def test_a_payload_format_indicator_of_2_is_a_protocol_error(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=props(payload_format_indicator=2)))
    client.expect_close({0x81, 0x82})


@clause("MQTT-3.3.2-5")
@pytest.mark.parametrize("qos", [1, 2])
def test_a_queued_message_that_expired_is_deleted(core: CoreDriver, qos: int) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=qos)
    client.drop()
    publisher = connected(core, "p")
    publisher.publish("t", b"short", qos, properties=props(message_expiry_interval=5))
    publisher.publish("t", b"long", qos, properties=props(message_expiry_interval=500))
    publisher.publish("t", b"none", qos)
    core.advance(6_000)
    client.reconnect(properties=LONG)
    client.expect_publish("t", b"long", qos)
    client.expect_publish("t", b"none", qos)
    client.expect_nothing()


@clause("MQTT-3.3.2-5")
def test_a_message_that_waits_for_the_receive_maximum_can_expire(core: CoreDriver) -> None:
    client = connected(core, "c", properties=props(receive_maximum=1))
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    publisher.publish("t", b"sent", 1, properties=props(message_expiry_interval=5))
    publisher.publish("t", b"waits", 1, properties=props(message_expiry_interval=5))
    publisher.publish("t", b"stays", 1)
    first = client.expect_publish("t", b"sent", acknowledge=False)
    core.advance(6_000)
    client.acknowledge(first)
    client.expect_publish("t", b"stays")


@clause("MQTT-3.3.2-6")
@pytest.mark.parametrize("waited", [0, 1, 7, 99])
def test_the_expiry_interval_is_reduced_by_the_time_that_passed(
    core: CoreDriver, waited: int
) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = connected(core, "p")
    publisher.publish("t", b"x", 1, properties=props(message_expiry_interval=100))
    core.advance(waited * 1000)
    client.reconnect(properties=LONG)
    packet = client.expect_publish("t", b"x", 1)
    assert packet.props.get(Property.MESSAGE_EXPIRY_INTERVAL) == 100 - waited


@clause("MQTT-3.3.2-6")
def test_the_largest_expiry_interval_is_kept(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t")
    client.publish("t", b"x", properties=props(message_expiry_interval=0xFFFFFFFF))
    packet = client.expect_publish("t", b"x")
    assert packet.props.get(Property.MESSAGE_EXPIRY_INTERVAL) == 0xFFFFFFFF


@clause("MQTT-3.3.2-7")
def test_aliases_of_the_client_end_with_the_connection(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.publish("t", b"x", properties=props(topic_alias=1))
    client.publish("", b"y", properties=props(topic_alias=1))
    client.reconnect(properties=LONG)
    client.send(Publish("", b"z", properties=props(topic_alias=1)))
    client.expect_close(0x82)


@clause("MQTT-3.3.2-7")
def test_aliases_of_the_server_end_with_the_connection(core: CoreDriver) -> None:
    """The fake client forgets its mappings at a reconnect, and an unknown alias fails the test."""
    properties = props(session_expiry_interval=1000, topic_alias_maximum=10)
    client = connected(core, "c", properties=properties)
    client.subscribe("a/long/topic", qos=1)
    publisher = connected(core, "p")
    for _ in range(2):
        for _ in range(5):
            publisher.publish("a/long/topic", b"x", 1)
            client.expect_publish("a/long/topic", b"x", 1)
        client.reconnect(properties=properties)
    publisher.publish("a/long/topic", b"x", 1)
    client.expect_publish("a/long/topic", b"x", 1, acknowledge=False)
    client.reconnect(properties=properties)
    client.expect_publish("a/long/topic", b"x", 1, dup=True)


@clause("MQTT-3.3.2-8")
def test_alias_0_is_invalid(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=props(topic_alias=0)))
    client.expect_close(0x94)


@clause("MQTT-3.3.2-8", "MQTT-3.3.2-11")
def test_the_server_uses_aliases_that_the_client_can_resolve(core: CoreDriver) -> None:
    """The strict decoder refuses alias 0; the fake client refuses one that was never set."""
    client = connected(core, "c", properties=props(topic_alias_maximum=3))
    client.subscribe("#")
    publisher = connected(core, "p")
    saved = 0
    for number in range(60):
        topic = f"some/topic/{number * number % 5}"
        publisher.publish(topic, b"%d" % number)
        packet = client.expect_publish(topic, b"%d" % number)
        saved += Property.TOPIC_ALIAS in packet.props
    assert saved, "the server never used an alias that it was allowed"


@clause("MQTT-3.3.2-12")
def test_every_alias_up_to_the_maximum_is_accepted(core: CoreDriver) -> None:
    core.settings({Setting.TOPIC_ALIAS_MAXIMUM: 500})
    watcher = connected(core, "w")
    watcher.subscribe("t/#")
    client = connected(core, "c")
    for alias in range(1, 501):
        client.publish(f"t/{alias}", b"", properties=props(topic_alias=alias))
    for alias in range(500, 0, -1):
        client.publish("", b"", properties=props(topic_alias=alias))
    topics = [p.text for p in watcher.received()]
    expected = [*range(1, 501), *range(500, 0, -1)]
    assert topics == [f"t/{alias}" for alias in expected]


def test_an_alias_can_be_changed(core: CoreDriver) -> None:
    """3.3.2.3.4: another PUBLISH with the same alias and a different topic."""
    client = connected(core, "c")
    client.subscribe("#")
    client.publish("a", b"1", properties=props(topic_alias=1))
    client.publish("b", b"2", properties=props(topic_alias=1))
    client.publish("", b"3", properties=props(topic_alias=1))
    assert [p.text for p in client.received()] == ["a", "b", "b"]


def test_an_alias_is_not_passed_on(core: CoreDriver) -> None:
    """3.3.2.3.4: the mappings of client and server are independent."""
    client = connected(core, "c")
    client.subscribe("t")
    client.publish("t", b"x", properties=props(topic_alias=5))
    assert Property.TOPIC_ALIAS not in client.expect_publish("t", b"x").props


@clause("MQTT-3.3.2-13")
@pytest.mark.parametrize("identifier", [0x08, 0x03])
@pytest.mark.parametrize("raw", [b"\xff", b"\xc0\x80", b"a\x00"])
def test_text_properties_that_are_not_utf8_are_malformed(
    core: CoreDriver, identifier: int, raw: bytes
) -> None:
    body = bytes((identifier,)) + encode_string(raw)
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=encode_variable(len(body)) + body))
    client.expect_close(0x81)


@clause("MQTT-3.3.2-14")
@pytest.mark.parametrize("topic", ["#", "a/+", "a/#"])
def test_a_response_topic_with_a_wildcard_is_refused(core: CoreDriver, topic: str) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=props(response_topic=topic)))
    client.expect_close({0x81, 0x82, 0x90})


PASSED_ON = [
    props(response_topic="answer/to/me"),
    props(correlation_data=b""),
    props(correlation_data=bytes(range(256))),
    props(content_type=""),
    props(content_type="application/json; charset=utf-8"),
    props(user_property=[("a", "b")]),
    props(user_property=[("", ""), ("k", "v"), ("k", "v"), ("k", "w"), ("a", "z")]),
    props(response_topic="r", correlation_data=b"c", content_type="t", user_property=[("x", "y")]),
]


@clause("MQTT-3.3.2-15", "MQTT-3.3.2-16", "MQTT-3.3.2-17", "MQTT-3.3.2-20")
@pytest.mark.parametrize("properties", PASSED_ON)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_properties_reach_every_subscriber_unaltered(
    core: CoreDriver, properties: Properties, qos: int
) -> None:
    online = [connected(core, f"c{n}") for n in range(2)]
    offline = connected(core, "o", properties=LONG)
    for client in (*online, offline):
        client.subscribe("t", qos=2)
    offline.drop()
    connected(core, "p").publish("t", b"x", qos, properties=properties)
    offline.reconnect(properties=LONG)
    for client in online if qos == 0 else (*online, offline):
        packet = client.expect_publish("t", b"x", qos)
        assert sorted(packet.props.items, key=repr) == sorted(properties.items, key=repr)
        assert packet.props.user == properties.user


@clause("MQTT-3.3.2-18")
def test_user_properties_keep_their_order(core: CoreDriver) -> None:
    pairs = [(str(n * 7 % 10), str(n)) for n in range(100)]
    client = connected(core, "c")
    client.subscribe("t")
    client.publish("t", b"x", properties=props(user_property=pairs))
    assert client.expect_publish("t").props.user == pairs


@clause("MQTT-3.3.2-19")
def test_a_content_type_that_is_not_utf8_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=b"\x04\x03\x00\x01\xff"))
    client.expect_close(0x81)


SINGLE: dict[str, list[int] | list[str] | list[bytes]] = {
    "payload_format_indicator": [1, 1],
    "message_expiry_interval": [1, 1],
    "topic_alias": [1, 1],
    "response_topic": ["r", "r"],
    "correlation_data": [b"c", b"c"],
    "content_type": ["t", "t"],
}


@pytest.mark.parametrize("name", list(SINGLE))
def test_a_property_of_publish_may_occur_only_once(core: CoreDriver, name: str) -> None:
    """3.3.2.3: it is a Protocol Error to include it more than once."""
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=props(**{name: SINGLE[name]})))
    client.expect_close(0x82)


def test_properties_do_not_reach_clients_of_mqtt_311(core: CoreDriver) -> None:
    old = connected(core, "old", version=4)
    old.subscribe(Filter("t"))
    properties = props(content_type="c", user_property=[("a", "b")])
    connected(core, "p").publish("t", b"x", properties=properties)
    old.expect_publish("t", b"x")


def test_messages_of_mqtt_311_have_no_properties(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t")
    connected(core, "old", version=4).publish("t", b"x", 1)
    assert client.expect_publish("t", b"x").properties == props()
