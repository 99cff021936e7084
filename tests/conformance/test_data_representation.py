"""MQTT 5.0, section 1.5: data representation."""

from __future__ import annotations

import pytest

from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connect,
    Filter,
    Publish,
    Subscribe,
    ToServer,
    Unsubscribe,
    Will,
    frame,
    props,
)
from avow.testing.mqtt_properties import encode_binary, encode_string, encode_variable

clause = pytest.mark.clause

ILL_FORMED = [
    b"\xff",
    b"\x80",
    b"a\xc3",
    b"\xc3(",
    b"\xc0\xaf",  # overlong "/"
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xc1\xbf",
    b"\xed\xa0\x80",  # U+D800
    b"\xed\xaf\xbf",
    b"\xed\xb0\x80",
    b"\xed\xbf\xbf",  # U+DFFF
    b"\xf4\x90\x80\x80",  # above U+10FFFF
    b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xe2\x82",  # cut off
    b"\xf0\x9f\x98",
]

WELL_FORMED = [
    "ä",
    "€",
    "😀",
    "A\U0002a6d4",
    "\ud7ff",
    "\ue000",
    "\U0010ffff",
    "\ufffd",
    " ",
    "a b",
]


def user_property(name: bytes, value: bytes) -> bytes:
    """A property field with one User Property made of raw bytes."""
    body = b"\x26" + encode_string(name) + encode_string(value)
    return encode_variable(len(body)) + body


@clause("MQTT-1.5.4-1")
@pytest.mark.parametrize("raw", ILL_FORMED)
def test_ill_formed_utf8_in_a_topic_is_malformed(core: CoreDriver, raw: bytes) -> None:
    client = connected(core, "c")
    client.send(Publish(b"t/" + raw, b"x"))
    client.expect_close(0x81)


@clause("MQTT-1.5.4-1", "MQTT-3.8.3-1")
@pytest.mark.parametrize("raw", ILL_FORMED)
def test_ill_formed_utf8_in_a_subscription_is_malformed(core: CoreDriver, raw: bytes) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter(b"t/" + raw)]))
    client.expect_close(0x81)


@clause("MQTT-1.5.4-1", "MQTT-3.10.3-1")
@pytest.mark.parametrize("raw", ILL_FORMED)
def test_ill_formed_utf8_in_an_unsubscribe_is_malformed(core: CoreDriver, raw: bytes) -> None:
    client = connected(core, "c")
    client.send(Unsubscribe(1, [b"t/" + raw]))
    client.expect_close(0x81)


@clause("MQTT-1.5.4-1", "MQTT-3.1.3-4")
@pytest.mark.parametrize("raw", ILL_FORMED)
def test_ill_formed_utf8_in_a_client_identifier_is_malformed(core: CoreDriver, raw: bytes) -> None:
    client = FakeClient(core)
    client.send(Connect(raw))
    client.expect_refused({0x81, 0x85})


@clause("MQTT-1.5.4-2")
def test_a_null_character_is_malformed_in_every_string_of_a_packet(core: CoreDriver) -> None:
    packets: list[ToServer] = [
        Publish(b"t\x00", b"x"),
        Publish("t", b"x", properties=props(content_type="a\0b")),
        Publish("t", b"x", properties=props(response_topic="a\0b")),
        Publish("t", b"x", properties=user_property(b"a\0", b"b")),
        Publish("t", b"x", properties=user_property(b"a", b"\0b")),
        Subscribe(1, [Filter(b"t\x00")]),
        Unsubscribe(1, [b"t\x00"]),
    ]
    for number, bad in enumerate(packets):
        client = connected(core, f"c{number}")
        client.send(bad)
        client.expect_close(0x81)


@clause("MQTT-1.5.4-2")
def test_a_null_character_in_a_connect_is_malformed(core: CoreDriver) -> None:
    for bad in (
        Connect("a\0b"),
        Connect("a", username="u\0"),
        Connect("a", will=Will("w\0")),
        Connect("a", properties=props(user_property=[("a", "\0")])),
    ):
        client = FakeClient(core)
        client.send(bad)
        client.expect_refused({0x81, 0x85})


@clause("MQTT-1.5.4-1")
@pytest.mark.parametrize("text", WELL_FORMED)
def test_every_well_formed_character_is_forwarded(core: CoreDriver, text: str) -> None:
    client = connected(core, "c")
    client.subscribe(f"t/{text}")
    client.publish(f"t/{text}", b"x", properties=props(content_type=text))
    packet = client.expect_publish(f"t/{text}", b"x")
    assert packet.props.get(0x03) == text


@clause("MQTT-1.5.4-3")
def test_a_byte_order_mark_is_a_character_like_any_other(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("\ufeffa", "a")
    client.publish("\ufeffa", b"with", properties=props(user_property=[("\ufeff", "\ufeffx")]))
    packet = client.expect_publish("\ufeffa", b"with")
    assert packet.props.user == [("\ufeff", "\ufeffx")]
    client.expect_nothing()
    client.publish("a", b"without")
    client.expect_publish("a", b"without")
    client.expect_nothing()


@clause("MQTT-1.5.5-1")
@pytest.mark.parametrize("length", [b"\x80\x00", b"\x82\x00", b"\x82\x80\x00", b"\x82\x80\x80\x00"])
def test_a_remaining_length_that_is_longer_than_needed_is_malformed(
    core: CoreDriver, length: bytes
) -> None:
    client = connected(core, "c")
    body = b"" if length[0] == 0x80 else b"\x00\x01"
    client.send(frame(12 if not body else 4, 0, body, remaining_length=length))
    client.expect_close(0x81)


@clause("MQTT-1.5.5-1")
def test_a_property_length_that_is_longer_than_needed_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=b"\x80\x00"))
    client.expect_close(0x81)


@clause("MQTT-1.5.5-1")
@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 129, 16383, 16384, 16385, 100_000])
def test_lengths_that_the_server_writes_are_as_short_as_possible(
    core: CoreDriver, size: int
) -> None:
    """The strict decoder of the tests refuses longer ones."""
    client = connected(core, "c")
    client.subscribe("t")
    client.publish("t", bytes(size))
    client.expect_publish("t", bytes(size))


@clause("MQTT-1.5.7-1")
@pytest.mark.parametrize("raw", ILL_FORMED)
def test_ill_formed_utf8_in_a_string_pair_is_malformed(core: CoreDriver, raw: bytes) -> None:
    for field in (user_property(raw, b"v"), user_property(b"n", raw)):
        client = connected(core, "c")
        client.send(Publish("t", b"x", properties=field))
        client.expect_close(0x81)


def test_a_string_that_is_longer_than_the_packet_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(frame(3, 0, b"\x00\x05abc"))
    client.expect_close(0x81)


def test_binary_data_of_the_largest_size_is_forwarded(core: CoreDriver) -> None:
    """1.5.6: up to 65,535 bytes."""
    client = connected(core, "c")
    client.subscribe("t")
    data = bytes(i & 0xFF for i in range(65535))
    client.publish("t", b"x", properties=props(correlation_data=data))
    assert client.expect_publish("t").props.get(0x09) == data


def test_a_property_may_not_reach_beyond_the_property_length(core: CoreDriver) -> None:
    client = connected(core, "c")
    inner = b"\x03" + encode_binary(b"text/plain")
    client.send(Publish("t", b"x", properties=bytes((len(inner) - 1,)) + inner))
    client.expect_close(0x81)
