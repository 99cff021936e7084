"""MQTT 5.0, chapter 2: format of a control packet, packet identifiers, properties."""

from __future__ import annotations

import pytest

from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    PacketType,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    frame,
    props,
)

clause = pytest.mark.clause

BODIES = {
    PacketType.PUBACK: b"\x00\x01",
    PacketType.PUBREC: b"\x00\x01",
    PacketType.PUBREL: b"\x00\x01",
    PacketType.PUBCOMP: b"\x00\x01",
    PacketType.SUBSCRIBE: b"\x00\x01\x00\x00\x01t\x00",
    PacketType.UNSUBSCRIBE: b"\x00\x01\x00\x00\x01t",
    PacketType.PINGREQ: b"",
    PacketType.DISCONNECT: b"",
}
NEEDED = {PacketType.PUBREL: 2, PacketType.SUBSCRIBE: 2, PacketType.UNSUBSCRIBE: 2}


@clause("MQTT-2.1.3-1")
@pytest.mark.parametrize("kind", list(BODIES))
def test_reserved_flags_of_a_fixed_header_are_checked(core: CoreDriver, kind: PacketType) -> None:
    for flags in range(16):
        if flags == NEEDED.get(kind, 0):
            continue
        client = connected(core, "c")
        client.send(frame(kind, flags, BODIES[kind]))
        client.expect_close(0x81)


@clause("MQTT-2.1.3-1")
@pytest.mark.parametrize("flags", range(1, 16))
def test_reserved_flags_of_connect_are_checked(core: CoreDriver, flags: int) -> None:
    client = FakeClient(core, "c")
    client.send(Connect("c", header_flags=flags))
    client.pump()
    assert client.closed, "a CONNECT with wrong fixed header flags was accepted"
    assert all(isinstance(p, Connack) and p.code == 0x81 for p in client.inbox)


@pytest.mark.parametrize("kind", [0, 2, 9, 11, 13])
def test_a_packet_that_only_a_server_sends_ends_the_connection(core: CoreDriver, kind: int) -> None:
    """2.1.2: CONNACK, SUBACK, UNSUBACK, PINGRESP and the reserved type 0."""
    client = connected(core, "c")
    client.send(frame(kind, 0, b"\x00\x01\x00\x00" if kind not in (0, 13) else b""))
    client.expect_close({0x81, 0x82})


@clause("MQTT-2.2.1-2")
def test_a_qos_0_publish_has_no_packet_identifier(core: CoreDriver) -> None:
    """Two bytes after the topic would be read as properties, or end up in the payload."""
    for version in (4, 5):
        client = connected(core, f"c{version}", version=version)
        client.subscribe("t")
        client.publish("t", b"\x00\x07")
        packet = client.expect_publish("t", b"\x00\x07", 0)
        assert packet.packet_id is None


@clause("MQTT-2.2.1-3")
@pytest.mark.parametrize(
    "packet",
    [
        Subscribe(0, [Filter("t")]),
        Unsubscribe(0, ["t"]),
        Publish("t", b"x", 1, 0),
        Publish("t", b"x", 2, 0),
    ],
)
def test_a_client_that_sends_packet_identifier_0_is_disconnected(
    core: CoreDriver, packet: Subscribe | Unsubscribe | Publish
) -> None:
    client = connected(core, "c")
    client.send(packet)
    client.expect_close({0x81, 0x82})


@pytest.mark.parametrize("kind", [Puback, Pubrec, Pubrel, Pubcomp])
def test_an_acknowledgement_of_packet_identifier_0_ends_the_connection(
    core: CoreDriver, kind: type[Puback | Pubrec | Pubrel | Pubcomp]
) -> None:
    client = connected(core, "c")
    client.send(kind(0))
    client.expect_close({0x81, 0x82})


@clause("MQTT-2.2.1-4", "MQTT-4.3.2-1", "MQTT-4.3.3-1")
def test_packet_identifiers_of_unacknowledged_messages_differ(core: CoreDriver) -> None:
    subscriber = connected(core, "s")
    subscriber.subscribe("t/#", qos=2)
    publisher = connected(core, "p")
    seen: set[int] = set()
    for number in range(300):
        publisher.publish("t/1", b"%d" % number, qos=1 + number % 2)
        packet = subscriber.expect_publish("t/1", b"%d" % number, acknowledge=False)
        assert packet.packet_id is not None
        assert packet.packet_id not in seen
        seen.add(packet.packet_id)


@clause("MQTT-2.2.1-4")
def test_a_packet_identifier_that_is_in_use_is_skipped_when_they_wrap(core: CoreDriver) -> None:
    """One message stays unacknowledged while more than 65,535 others pass."""
    subscriber = connected(core, "s")
    subscriber.subscribe("t", qos=1)
    publisher = connected(core, "p")
    publisher.publish("t", b"kept", qos=1)
    kept = subscriber.expect_publish("t", b"kept", acknowledge=False)
    burst = 500
    for _ in range(65_600 // burst):
        publisher.send(*(Publish("t", b"x", 1, 1 + i) for i in range(burst)))
        packets = subscriber.received()
        assert len(packets) == burst
        identifiers = [p.packet_id for p in packets if p.packet_id is not None]
        assert kept.packet_id not in identifiers
        assert 0 not in identifiers
        subscriber.send(*(Puback(i) for i in identifiers))
    assert len(publisher.sizes) == 65_600 // burst * burst + 2


@clause("MQTT-2.2.1-5")
def test_the_acknowledgements_carry_the_identifier_of_the_publish(core: CoreDriver) -> None:
    client = connected(core, "c")
    for packet_id in (1, 255, 256, 65535):
        client.send(Publish("t", b"x", 1, packet_id))
        assert client.expect(Puback).packet_id == packet_id
        client.send(Publish("t", b"x", 2, packet_id))
        assert client.expect(Pubrec).packet_id == packet_id
        client.send(Pubrel(packet_id))
        assert client.expect(Pubcomp).packet_id == packet_id


@clause("MQTT-2.2.1-6")
def test_suback_and_unsuback_carry_the_identifier_of_the_request(core: CoreDriver) -> None:
    client = connected(core, "c")
    for packet_id in (1, 255, 256, 65535):
        client.send(Subscribe(packet_id, [Filter("t")]))
        assert client.expect(Suback).packet_id == packet_id
        client.send(Unsubscribe(packet_id, ["t"]))
        assert client.expect(Unsuback).packet_id == packet_id


def test_both_sides_may_use_the_same_packet_identifier_at_once(core: CoreDriver) -> None:
    """2.2.1, non-normative comment."""
    client = connected(core, "c")
    client.subscribe("t", qos=1)
    client.send(Publish("t", b"x", 1, 1))
    first, second = client.receive(), client.receive()
    kinds = {type(first), type(second)}
    assert kinds == {Puback, Publish}
    client.send(Puback(1))
    client.ping()


@clause("MQTT-2.2.2-1")
def test_packets_without_properties_say_so_with_a_length_of_zero(core: CoreDriver) -> None:
    """The strict decoder needs the length; without it the fields that follow would be wrong."""
    client = connected(core, "c")
    client.subscribe("t")
    client.publish("t", b"x")
    packet = client.expect_publish("t", b"x")
    assert len(packet.props) == 0
    client.unsubscribe("t")


@clause("MQTT-2.2.2-1")
def test_a_property_length_that_is_missing_is_malformed(core: CoreDriver) -> None:
    for kind, flags, body in (
        (PacketType.PUBLISH, 0, b"\x00\x01t"),
        (PacketType.SUBSCRIBE, 2, b"\x00\x01"),
        (PacketType.UNSUBSCRIBE, 2, b"\x00\x01"),
    ):
        client = connected(core, "c")
        client.send(frame(kind, flags, body))
        client.expect_close(0x81)


def test_the_short_forms_of_acknowledgements_are_understood(core: CoreDriver) -> None:
    """3.4.2.1 and 3.4.2.2.1: no reason code, or a reason code without a property length."""
    subscriber = connected(core, "s", properties=props(receive_maximum=1))
    subscriber.subscribe("t", qos=1)
    publisher = connected(core, "p")
    for number in range(4):
        publisher.publish("t", b"%d" % number, qos=1)
    for number, tail in enumerate((b"", b"\x00", b"\x00\x00", b"\x10\x00")):
        packet = subscriber.expect_publish("t", b"%d" % number, acknowledge=False)
        assert packet.packet_id is not None
        subscriber.expect_nothing()
        subscriber.send(frame(4, 0, packet.packet_id.to_bytes(2, "big") + tail))
    subscriber.expect_nothing()


def test_a_disconnect_may_have_its_reason_code_without_a_property_length(core: CoreDriver) -> None:
    for body in (b"", b"\x00", b"\x00\x00", b"\x04", b"\x04\x00"):
        client = connected(core, "c")
        client.send(frame(14, 0, body))
        client.pump()
        assert not [p for p in client.inbox if isinstance(p, Disconnect)]
        assert client.closed


def test_pingreq_with_a_body_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(frame(12, 0, b"\x00"))
    client.expect_close(0x81)


def test_packets_may_come_in_one_piece_or_byte_by_byte(core: CoreDriver) -> None:
    stream = (
        Connect("c").encode()
        + Subscribe(1, [Filter("t")]).encode()
        + Publish("t", b"x").encode()
        + frame(12, 0, b"")
    )
    for step in (1, 2, 3, 7, len(stream)):
        client = FakeClient(core, "c")
        for at in range(0, len(stream), step):
            client.send(stream[at : at + step])
        client.expect(Connack)
        client.expect(Suback)
        client.expect_publish("t", b"x")
        client.expect(Pingresp)
        client.expect_nothing()
