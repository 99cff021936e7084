"""Properties through the core and back: hypothesis round trips, duplicates, wrong places.

A PUBLISH passes both the parser and the writer of the core, so what a subscriber gets shows
that both are right. The strict decoder of the tests checks the form on the way out.
"""

from __future__ import annotations

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avow.testing.core_abi import Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connect,
    Disconnect,
    Filter,
    PacketType,
    Properties,
    Property,
    Puback,
    Publish,
    Subscribe,
    ToServer,
    Unsubscribe,
    Will,
    props,
)
from avow.testing.mqtt_properties import (
    ALLOWED,
    KINDS,
    Kind,
    PropertyValue,
    encode_string,
    encode_variable,
)

# The specification lets a receiver refuse control characters and non-characters; this core
# accepts them, so only what is forbidden is left out: surrogates and U+0000.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
TOPIC = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0+#$"), min_size=1, max_size=60
)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=8)


@st.composite
def message_properties(draw: st.DrawFn) -> Properties:
    """Any valid properties of a PUBLISH that are forwarded, in any order."""
    items: list[tuple[int, PropertyValue]] = []
    optional: dict[Property, st.SearchStrategy[PropertyValue]] = {
        Property.PAYLOAD_FORMAT_INDICATOR: st.integers(0, 1),
        Property.MESSAGE_EXPIRY_INTERVAL: st.integers(1, 2**32 - 1),
        Property.CONTENT_TYPE: TEXT,
        Property.RESPONSE_TOPIC: TOPIC,
        Property.CORRELATION_DATA: st.binary(max_size=300),
    }
    for identifier, values in optional.items():
        if draw(st.booleans()):
            items.append((identifier, draw(values)))
    items += [(Property.USER_PROPERTY, pair) for pair in draw(PAIRS)]
    return Properties(draw(st.permutations(items)))


def payload_for(properties: Properties, payload: bytes) -> bytes:
    """A payload that is the text that the properties say it is."""
    if properties.get(Property.PAYLOAD_FORMAT_INDICATOR) == 1:
        return payload.decode("latin-1").encode("utf-8")
    return payload


@functools.lru_cache(maxsize=1)
def pair() -> tuple[CoreDriver, FakeClient, FakeClient]:
    """A core, a publisher and a subscriber of everything, shared by all examples."""
    core = CoreDriver()
    subscriber = connected(core, "subscriber")
    subscriber.subscribe("#", qos=2)
    return core, connected(core, "publisher"), subscriber


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    topic=TOPIC,
    payload=st.binary(max_size=2000),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    properties=message_properties(),
)
def test_a_publish_comes_back_as_it_was(
    topic: str, payload: bytes, qos: int, retain: bool, properties: Properties
) -> None:
    _, publisher, subscriber = pair()
    payload = payload_for(properties, payload)
    publisher.publish(topic, payload, qos, retain=retain, properties=properties)
    packet = subscriber.expect_publish(topic, payload, qos, retain=False)
    assert sorted(packet.props.items, key=repr) == sorted(properties.items, key=repr)
    assert packet.props.user == properties.user
    if retain:
        publisher.publish(topic, b"", retain=True)
        subscriber.expect_publish(topic, b"")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    topic=TOPIC,
    payload=st.binary(max_size=500),
    qos=st.integers(0, 2),
    retain=st.booleans(),
    properties=message_properties(),
    client_id=TEXT.filter(bool),
)
def test_a_will_comes_back_as_it_was(
    topic: str, payload: bytes, qos: int, retain: bool, properties: Properties, client_id: str
) -> None:
    core, publisher, subscriber = pair()
    payload = payload_for(properties, payload)
    if client_id in ("publisher", "subscriber"):
        return
    will = Will(topic, payload, qos, retain, properties)
    client = FakeClient(core, client_id)
    client.connect(will=will)
    client.drop()
    packet = subscriber.expect_publish(topic, payload, qos)
    assert sorted(packet.props.items, key=repr) == sorted(properties.items, key=repr)
    assert packet.props.user == properties.user
    if retain:
        publisher.publish(topic, b"", retain=True)
        subscriber.expect_publish(topic, b"")


@settings(max_examples=100, deadline=None)
@given(
    topic=TOPIC,
    payload=st.binary(min_size=1, max_size=500),
    qos=st.integers(0, 2),
    properties=message_properties(),
)
def test_a_retained_message_comes_back_as_it_was(
    topic: str, payload: bytes, qos: int, properties: Properties
) -> None:
    core, publisher, subscriber = pair()
    payload = payload_for(properties, payload)
    publisher.publish(topic, payload, qos, retain=True, properties=properties)
    subscriber.expect_publish(topic, payload)
    late = connected(core, "late")
    late.subscribe(topic, qos=2)
    packet = late.expect_publish(topic, payload, qos, retain=True)
    assert sorted(packet.props.items, key=repr) == sorted(properties.items, key=repr)
    late.disconnect()
    publisher.publish(topic, b"", retain=True)
    subscriber.expect_publish(topic, b"")


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=40))
def test_user_properties_keep_order_and_repetition(pairs: list[tuple[str, str]]) -> None:
    _, publisher, subscriber = pair()
    publisher.publish("t", b"", properties=props(user_property=pairs))
    assert subscriber.expect_publish("t").props.user == pairs


def _carrier(kind: PacketType, field: bytes) -> ToServer | Connect:
    """A packet of this type that is right but for its properties."""
    if kind is PacketType.CONNECT:
        return Connect("x", properties=field)
    if kind is PacketType.WILL:
        return Connect("x", will=Will("w", properties=field))
    if kind is PacketType.PUBLISH:
        return Publish("t", b"x", properties=field)
    if kind is PacketType.SUBSCRIBE:
        return Subscribe(1, [Filter("t")], properties=field)
    if kind is PacketType.UNSUBSCRIBE:
        return Unsubscribe(1, ["t"], properties=field)
    if kind is PacketType.DISCONNECT:
        return Disconnect(0, field)
    return Puback(1, 0, field)


FROM_CLIENT = (
    PacketType.CONNECT,
    PacketType.WILL,
    PacketType.PUBLISH,
    PacketType.PUBACK,
    PacketType.SUBSCRIBE,
    PacketType.UNSUBSCRIBE,
    PacketType.DISCONNECT,
)

EXAMPLES: dict[Kind, PropertyValue] = {
    Kind.BYTE: 1,
    Kind.TWO_BYTES: 1,
    Kind.FOUR_BYTES: 1,
    Kind.VARIABLE: 1,
    Kind.STRING: "x",
    Kind.PAIR: ("a", "b"),
    Kind.BINARY: b"x",
}


def _one(identifier: Property) -> bytes:
    field = Properties([(identifier, EXAMPLES[KINDS[identifier]])]).encode()
    return field[1:]


def _with_length(body: bytes) -> bytes:
    return encode_variable(len(body)) + body


def _check(kind: PacketType, field: bytes, codes: set[int]) -> None:
    core = CoreDriver()
    if kind in (PacketType.CONNECT, PacketType.WILL):
        client = FakeClient(core)
        client.send(_carrier(kind, field))
        client.expect_refused(codes)
    else:
        client = connected(core, "c", properties=props(session_expiry_interval=10))
        client.send(_carrier(kind, field))
        client.expect_close(codes)


@pytest.mark.parametrize("kind", FROM_CLIENT)
def test_a_property_of_another_packet_is_malformed(kind: PacketType) -> None:
    """2.2.2.2: an identifier that is not valid for its packet type; 0x81."""
    for identifier in Property:
        if identifier not in ALLOWED[kind]:
            _check(kind, _with_length(_one(identifier)), {0x81})


@pytest.mark.parametrize("kind", FROM_CLIENT)
def test_an_unknown_property_is_malformed(kind: PacketType) -> None:
    for identifier in (
        0x00,
        0x04,
        0x0A,
        0x10,
        0x14,
        0x1B,
        0x20,
        0x2B,
        0x7F,
        0x80,
        0x3FFF,
        0x1FFFFF,
    ):
        body = encode_variable(identifier) + b"\x00\x01x"
        _check(kind, _with_length(body), {0x81})


@pytest.mark.parametrize("kind", FROM_CLIENT)
def test_a_property_that_occurs_twice_is_a_protocol_error(kind: PacketType) -> None:
    for identifier in ALLOWED[kind]:
        if identifier is Property.USER_PROPERTY:
            continue
        if kind is PacketType.PUBLISH and identifier is Property.SUBSCRIPTION_IDENTIFIER:
            continue  # an error already when it occurs once
        if kind is PacketType.DISCONNECT and identifier is Property.SERVER_REFERENCE:
            continue  # only a server sends it
        extra = b""
        if identifier is Property.AUTHENTICATION_DATA:
            extra = _one(Property.AUTHENTICATION_METHOD)
        _check(kind, _with_length(extra + _one(identifier) * 2), {0x82})


@pytest.mark.parametrize("kind", FROM_CLIENT)
def test_a_property_that_is_cut_off_is_malformed(kind: PacketType) -> None:
    for identifier in sorted(ALLOWED[kind]):
        if kind is PacketType.PUBLISH and identifier is Property.SUBSCRIPTION_IDENTIFIER:
            continue  # an error in itself
        whole = _one(identifier)
        for length in range(1, len(whole)):
            _check(kind, _with_length(whole[:length]), {0x81})


@pytest.mark.parametrize("kind", FROM_CLIENT)
def test_a_property_length_beyond_the_packet_is_malformed(kind: PacketType) -> None:
    if kind in (PacketType.PUBLISH, PacketType.WILL, PacketType.CONNECT):
        length = b"\xff\xff\xff\x7f"
    else:
        length = b"\x7f"
    _check(kind, length, {0x81})


@pytest.mark.parametrize("kind", FROM_CLIENT)
def test_a_property_length_of_five_bytes_is_malformed(kind: PacketType) -> None:
    _check(kind, b"\x80\x80\x80\x80\x01", {0x81})


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 129, 16382, 16383, 16384, 65535])
def test_texts_and_data_of_every_length_pass(size: int) -> None:
    """Lengths around those where a Variable Byte Integer grows, up to the largest string."""
    core = CoreDriver()
    client = connected(core, "c")
    client.subscribe("t")
    text = "x" * size
    for properties in (
        props(content_type=text),
        props(correlation_data=b"\xff" * size),
        props(user_property=[(text, ""), ("", text)]),
        props(user_property=[(text, text)]),
    ):
        client.publish("t", b"x", properties=properties)
        assert client.expect_publish("t", b"x").props.items == properties.items


def test_a_property_field_larger_than_two_megabytes_passes() -> None:
    """The property length itself has four bytes then."""
    core = CoreDriver(settings={Setting.MAXIMUM_PACKET_BYTES: 16 << 20})
    client = connected(core, "c")
    client.subscribe("t")
    pairs = [("k" * 60_000, "v" * 60_000)] * 20
    client.publish("t", b"x", properties=props(user_property=pairs))
    assert client.expect_publish("t", b"x").props.user == pairs


def test_the_order_of_different_properties_does_not_matter() -> None:
    core = CoreDriver()
    client = connected(core, "c")
    client.subscribe("t")
    items = props(
        payload_format_indicator=1,
        message_expiry_interval=9,
        content_type="c",
        response_topic="r",
        correlation_data=b"d",
        user_property=[("a", "b")],
        topic_alias=1,
    ).items
    for turn in range(len(items)):
        client.publish("t", b"x", properties=Properties(items[turn:] + items[:turn]))
        packet = client.expect_publish("t", b"x")
        assert len(packet.props) == len(items) - 1  # all but the alias


def test_raw_bytes_of_user_properties_are_not_changed() -> None:
    """The writer must not decode and encode: what is well-formed passes byte for byte."""
    core = CoreDriver()
    client = connected(core, "c")
    client.subscribe("t")
    raw = "\x01\x1f\x7f\x9f\ufdd0\uffff\U0001ffff e\u0301".encode()
    body = b"\x26" + encode_string(raw) + encode_string(raw)
    client.send(Publish("t", b"x", properties=_with_length(body)))
    client.pump()
    if client.closed:
        client.expect_close(0x81)  # 1.5.4 allows to refuse disallowed code points
    else:
        packet = client.expect_publish("t", b"x")
        assert packet.props.user == [(raw.decode(), raw.decode())]
