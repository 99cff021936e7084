"""MQTT 5.0, sections 3.8 and 3.9: SUBSCRIBE and SUBACK."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Access, Rule, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import TERSE, connected
from avow.testing.mqtt import (
    Disconnect,
    Filter,
    Properties,
    Property,
    Publish,
    Suback,
    Subscribe,
    frame,
    props,
)
from avow.testing.mqtt_properties import encode_string

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


@clause("MQTT-3.8.1-1")
@pytest.mark.parametrize("flags", [0, 1, 3, 4, 6, 8, 10, 15])
def test_other_flags_of_subscribe_are_malformed(core: CoreDriver, flags: int) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("t")], header_flags=flags))
    client.expect_close(0x81)


@clause("MQTT-3.8.3-1")
def test_a_filter_that_is_not_utf8_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("fine"), Filter(b"a/\xff")]))
    client.expect_close(0x81)
    assert core.counters()["subscriptions"] == 0


@clause("MQTT-3.8.3-2")
def test_a_subscribe_without_a_filter_is_a_protocol_error(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, []))
    client.expect_close(0x82)


def test_a_filter_without_its_options_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(frame(8, 2, b"\x00\x01\x00" + encode_string("t")))
    client.expect_close(0x81)


@clause("MQTT-3.8.3-3")
def test_no_local_keeps_own_messages_away(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe(Filter("t", 2, no_local=True))
    other = connected(core, "o")
    other.subscribe(Filter("t", 2, no_local=True))
    for qos in range(3):
        client.publish("t", b"own", qos)
        client.expect_nothing()
        other.expect_publish("t", b"own", qos)
        other.publish("t", b"others", qos)
        client.expect_publish("t", b"others", qos)
        other.expect_nothing()


@clause("MQTT-3.8.3-3")
def test_no_local_is_about_the_client_identifier_not_the_connection(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe(Filter("t", no_local=True))
    client.reconnect(properties=LONG)
    client.publish("t", b"own")
    client.expect_nothing()


@clause("MQTT-3.8.3-3")
def test_no_local_of_one_subscription_does_not_silence_another(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe(Filter("t", no_local=True), Filter("#", 0))
    client.publish("t", b"own")
    client.expect_publish("t", b"own")
    client.expect_nothing()


@clause("MQTT-3.8.3-4")
def test_no_local_on_a_shared_subscription_is_a_protocol_error(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("$share/g/t", no_local=True)]))
    client.expect_close(0x82)


@clause("MQTT-3.8.3-5")
@pytest.mark.parametrize("reserved", [1, 2, 3])
def test_reserved_bits_of_the_options_are_malformed(core: CoreDriver, reserved: int) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("t", reserved=reserved)]))
    client.expect_close(0x81)


def test_qos_3_and_retain_handling_3_are_protocol_errors(core: CoreDriver) -> None:
    """3.8.3.1."""
    for wanted in (Filter("t", 3), Filter("t", retain_handling=3)):
        client = connected(core, "c")
        client.send(Subscribe(1, [wanted]))
        client.expect_close({0x81, 0x82})


@clause("MQTT-3.8.4-1", "MQTT-3.8.4-2")
def test_subscribe_is_answered_by_suback_with_its_identifier(core: CoreDriver) -> None:
    client = connected(core, "c")
    for packet_id in (1, 2, 65535):
        client.send(Subscribe(packet_id, [Filter("t")]))
        assert client.expect(Suback).packet_id == packet_id
        client.expect_nothing()


@clause("MQTT-3.8.4-3")
def test_the_same_filter_replaces_the_subscription(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe(Filter("t", 0), properties=props(subscription_identifier=1))
    client.subscribe(
        Filter("t", 2, retain_as_published=True), properties=props(subscription_identifier=2)
    )
    assert core.counters()["subscriptions"] == 1
    connected(core, "p").publish("t", b"x", 2, retain=True)
    packet = client.expect_publish("t", b"x", 2, retain=True)
    assert packet.props.all(Property.SUBSCRIPTION_IDENTIFIER) == [2]
    client.expect_nothing()
    client.subscribe(Filter("t", 1, retain_handling=2))
    connected(core, "p").publish("t", b"y", 2, retain=True)
    packet = client.expect_publish("t", b"y", 1, retain=False)
    assert Property.SUBSCRIPTION_IDENTIFIER not in packet.props


@clause("MQTT-3.8.4-4")
def test_replacing_sends_retained_messages_again_and_loses_nothing(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    publisher.publish("t", b"retained", 1, retain=True)
    client = connected(core, "c", properties=props(receive_maximum=1, session_expiry_interval=9))
    client.subscribe("t", qos=1)
    client.expect_publish("t", b"retained", 1)
    for number in range(3):
        publisher.publish("t", b"%d" % number, 1)
    client.subscribe("t", qos=2)
    for number in range(3):
        client.expect_publish("t", b"%d" % number, 1)
    client.expect_publish("t", b"retained", 1, retain=True)
    client.expect_nothing()


@clause("MQTT-3.8.4-5")
def test_many_filters_are_handled_like_many_subscribes(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    publisher.publish("a", b"x", retain=True)
    client = connected(core, "c")
    suback = client.subscribe(
        Filter("a", 0), Filter("b", 1), Filter("c", 2), Filter("b", 2), Filter("a", 1)
    )
    assert len(suback.codes) == 5
    assert core.counters()["subscriptions"] == 3
    assert [p.payload for p in client.received()] == [b"x", b"x"]
    publisher.publish("b", b"y", 2)
    client.expect_publish("b", b"y", 2)
    client.expect_nothing()


@clause("MQTT-3.8.4-6", "MQTT-3.9.3-1")
def test_there_is_a_code_for_each_filter_in_their_order(core: CoreDriver) -> None:
    core.acl([Rule(False, "deny/#"), Rule(True, "#")])
    client = connected(core, "c")
    client.subscribe(
        Filter("a", 2),
        Filter("deny/x", 1),
        Filter("b", 0),
        Filter("deny/y", 0),
        Filter("c", 1),
        codes=[2, 0x87, 0, 0x87, 1],
    )


@clause("MQTT-3.8.4-7")
def test_the_code_shows_the_granted_qos_or_the_failure(core: CoreDriver) -> None:
    core.settings({Setting.MAXIMUM_QOS: 1})
    core.acl([Rule(False, "deny"), Rule(True, "#")])
    client = connected(core, "c")
    client.subscribe(Filter("a", 2), Filter("deny", 2), codes=[1, 0x87])
    publisher = connected(core, "p")
    publisher.publish("a", b"x", 1)
    client.expect_publish("a", b"x", 1)
    publisher.publish("deny", b"x", 1, code=0x87)
    client.expect_nothing()


@clause("MQTT-3.8.4-8")
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
def test_the_qos_is_the_lower_of_the_two(core: CoreDriver, granted: int, published: int) -> None:
    client = connected(core, "c")
    client.subscribe("t", qos=granted)
    connected(core, "p").publish("t", b"x", published)
    client.expect_publish("t", b"x", min(granted, published))


@clause("MQTT-3.9.2-1", "MQTT-3.9.2-2")
@pytest.mark.parametrize("limit", [6, 7, 10, 30])
def test_a_suback_stays_within_the_maximum_packet_size(core: CoreDriver, limit: int) -> None:
    """A SUBACK with one code and nothing else has six bytes."""
    core.acl([Rule(True, "ok", Access.BOTH)])
    core.settings(TERSE)
    client = connected(core, "c", properties=props(maximum_packet_size=limit))
    client.subscribe("denied", codes=[0x87])
    assert client.sizes[-1] <= limit


@clause("MQTT-3.9.3-2")
def test_the_codes_of_suback_are_those_of_the_table(core: CoreDriver) -> None:
    """The strict decoder refuses others; here are all that this broker can be brought to use."""
    core.acl([Rule(False, "deny/#"), Rule(True, "#")])
    core.settings({Setting.SUBSCRIPTIONS_MAX: 3})
    client = connected(core, "c")
    client.subscribe(
        Filter("a", 0), Filter("b", 1), Filter("deny/a", 0), Filter("c", 2), codes=[0, 1, 0x87, 2]
    )
    client.subscribe("d", codes=[0x97])
    client.subscribe("a", qos=1)  # replacing is not one more
    client.unsubscribe("a")
    client.subscribe("d")


def test_a_subscription_identifier_of_0_is_a_protocol_error(core: CoreDriver) -> None:
    """3.8.2.1.2."""
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("t")], props(subscription_identifier=0)))
    client.expect_close(0x82)


def test_a_subscription_identifier_may_occur_only_once(core: CoreDriver) -> None:
    """3.8.2.1.2."""
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("t")], props(subscription_identifier=[1, 2])))
    client.expect_close(0x82)


@pytest.mark.parametrize("identifier", [1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455])
def test_subscription_identifiers_of_every_size_come_back(
    core: CoreDriver, identifier: int
) -> None:
    client = connected(core, "c")
    client.subscribe("t", properties=props(subscription_identifier=identifier))
    client.publish("t", b"x")
    packet = client.expect_publish("t", b"x")
    assert packet.props.all(Property.SUBSCRIPTION_IDENTIFIER) == [identifier]


@pytest.mark.parametrize(
    "properties", [props(topic_alias=1), props(reason_string="x"), props(content_type="x")]
)
def test_a_property_that_is_not_of_subscribe_is_malformed(
    core: CoreDriver, properties: Properties
) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("t")], properties))
    client.expect_close(0x81)


def test_user_properties_of_subscribe_are_accepted(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t", properties=props(user_property=[("a", "1"), ("a", "2")]))


def test_a_subscription_survives_a_reconnect_with_its_options(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe(
        Filter("t", 1, no_local=True, retain_as_published=True),
        properties=props(subscription_identifier=77),
    )
    client.reconnect(properties=LONG)
    client.publish("t", b"own", 1)
    client.expect_nothing()
    connected(core, "p").publish("t", b"x", 2, retain=True)
    packet = client.expect_publish("t", b"x", 1, retain=True)
    assert packet.props.all(Property.SUBSCRIPTION_IDENTIFIER) == [77]


def test_one_subscribe_with_very_many_filters(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe(*(f"t/{n}" for n in range(2000)))
    assert core.counters()["subscriptions"] == 2000
    connected(core, "p").publish("t/1999", b"x")
    client.expect_publish("t/1999", b"x")


def test_an_invalid_filter_among_valid_ones_never_creates_its_subscription(
    core: CoreDriver,
) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("a"), Filter("b/#/c"), Filter("d")]))
    packet = client.receive()
    if isinstance(packet, Suback):
        assert packet.codes == [0, 0x8F, 0]
    else:
        assert isinstance(packet, Disconnect)
        assert packet.code in (0x81, 0x82, 0x8F)


def test_retained_messages_follow_every_new_subscription(core: CoreDriver) -> None:
    """Many retained messages, more than fit into one turn."""
    publisher = connected(core, "p")
    publisher.send(*(Publish(f"r/{n}", b"%d" % n, retain=True) for n in range(3000)))
    client = connected(core, "c")
    client.subscribe("r/#")
    assert {p.text for p in client.received()} == {f"r/{n}" for n in range(3000)}
