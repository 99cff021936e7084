"""MQTT 5.0, sections 3.4 to 3.7: PUBACK, PUBREC, PUBREL, PUBCOMP."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Access, Rule
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import TERSE, FakeClient, connected
from avow.testing.mqtt import (
    Properties,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ToServer,
    frame,
    props,
)

clause = pytest.mark.clause

PUBACK_CODES = (0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)


def denied(core: CoreDriver, limit: int | None = None) -> FakeClient:
    """A client that may publish nothing, with a maximum packet size."""
    core.acl([Rule(True, "#", Access.SUBSCRIBE)])
    core.settings(TERSE)
    properties = props() if limit is None else props(maximum_packet_size=limit)
    return connected(core, "c", properties=properties)


@clause("MQTT-3.4.2-1")
def test_puback_uses_its_reason_codes(core: CoreDriver) -> None:
    """The strict decoder refuses others; 0x87 is the one that an ACL causes."""
    client = denied(core)
    client.send(Publish("t", b"x", 1, 1))
    assert client.expect(Puback).code == 0x87


@clause("MQTT-3.5.2-1")
def test_pubrec_uses_its_reason_codes(core: CoreDriver) -> None:
    client = denied(core)
    client.send(Publish("t", b"x", 2, 1))
    assert client.expect(Pubrec).code == 0x87


@clause("MQTT-3.6.2-1")
@pytest.mark.parametrize("packet_id", [1, 4711, 65535])
def test_pubrel_uses_its_reason_codes(core: CoreDriver, packet_id: int) -> None:
    """0x92 answers a PUBREC whose identifier is not known (3.6.2.1)."""
    client = connected(core, "c")
    client.send(Pubrec(packet_id))
    pubrel = client.expect(Pubrel)
    assert (pubrel.packet_id, pubrel.code) == (packet_id, 0x92)
    client.ping()


@clause("MQTT-3.7.2-1")
@pytest.mark.parametrize("packet_id", [1, 4711, 65535])
def test_pubcomp_uses_its_reason_codes(core: CoreDriver, packet_id: int) -> None:
    """0x92 answers a PUBREL whose identifier is not known (3.7.2.1)."""
    client = connected(core, "c")
    client.send(Pubrel(packet_id))
    pubcomp = client.expect(Pubcomp)
    assert (pubcomp.packet_id, pubcomp.code) == (packet_id, 0x92)
    client.ping()


@clause("MQTT-3.4.2-2", "MQTT-3.4.2-3", "MQTT-3.5.2-2", "MQTT-3.5.2-3")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("limit", [5, 6, 8, 20])
def test_a_refusal_of_a_publish_stays_within_the_maximum_packet_size(
    core: CoreDriver, qos: int, limit: int
) -> None:
    """PUBACK with a reason code and nothing else has five bytes."""
    client = denied(core, limit)
    client.send(Publish("t", b"x", qos, 1))
    packet = client.expect(Puback) if qos == 1 else client.expect(Pubrec)
    assert packet.code == 0x87
    assert client.sizes[-1] <= limit


@clause("MQTT-3.6.2-2", "MQTT-3.6.2-3", "MQTT-3.7.2-2", "MQTT-3.7.2-3")
@pytest.mark.parametrize("limit", [5, 6, 8, 20])
def test_answers_to_unknown_identifiers_stay_within_the_maximum_packet_size(
    core: CoreDriver, limit: int
) -> None:
    core.settings(TERSE)
    client = connected(core, "c", properties=props(maximum_packet_size=limit))
    client.send(Pubrec(1))
    assert client.expect(Pubrel).code == 0x92
    client.send(Pubrel(1))
    assert client.expect(Pubcomp).code == 0x92
    assert max(client.sizes[-2:]) <= limit


@clause("MQTT-3.6.1-1")
@pytest.mark.parametrize("flags", [0, 1, 3, 4, 6, 8, 10, 15])
def test_other_flags_of_pubrel_are_malformed(core: CoreDriver, flags: int) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", 2, 1))
    client.expect(Pubrec)
    client.send(frame(6, flags, b"\x00\x01"))
    client.expect_close(0x81)


@pytest.mark.parametrize("code", PUBACK_CODES)
def test_every_reason_code_of_puback_ends_the_exchange(core: CoreDriver, code: int) -> None:
    """4.4: the message counts as acknowledged whatever the code is."""
    client = connected(core, "c", properties=props(session_expiry_interval=100))
    client.subscribe("t", qos=1)
    connected(core, "p").publish("t", b"x", 1)
    packet = client.expect_publish("t", b"x", 1, acknowledge=False)
    assert packet.packet_id is not None
    details = props(reason_string="why", user_property=[("a", "b")])
    client.send(Puback(packet.packet_id, code, details))
    client.ping()
    client.reconnect()
    client.expect_nothing()


@pytest.mark.parametrize("kind", [Puback, Pubrec, Pubrel, Pubcomp])
def test_a_reason_string_may_occur_only_once(
    core: CoreDriver, kind: type[Puback | Pubrec | Pubrel | Pubcomp]
) -> None:
    """3.4.2.2.2 and its like."""
    client = connected(core, "c")
    client.send(kind(1, 0, props(reason_string=["a", "b"])))
    client.expect_close(0x82)


@pytest.mark.parametrize("kind", [Puback, Pubrec, Pubrel, Pubcomp])
@pytest.mark.parametrize(
    "properties", [props(topic_alias=1), props(content_type="x"), props(receive_maximum=1)]
)
def test_other_properties_in_an_acknowledgement_are_malformed(
    core: CoreDriver,
    kind: type[Puback | Pubrec | Pubrel | Pubcomp],
    properties: Properties,
) -> None:
    """2.2.2.2."""
    client = connected(core, "c")
    client.send(kind(1, 0, properties))
    client.expect_close(0x81)


@pytest.mark.parametrize("kind", [Puback, Pubrec, Pubrel, Pubcomp])
def test_a_reason_code_that_does_not_exist_is_not_accepted(
    core: CoreDriver, kind: type[Puback | Pubrec | Pubrel | Pubcomp]
) -> None:
    client = connected(core, "c")
    client.send(kind(1, 0x55))
    client.expect_close({0x81, 0x82})


@pytest.mark.parametrize("kind", [4, 5, 6, 7])
def test_an_acknowledgement_with_bytes_after_its_end_is_malformed(
    core: CoreDriver, kind: int
) -> None:
    client = connected(core, "c")
    client.send(frame(kind, 2 if kind == 6 else 0, b"\x00\x01\x00\x00\x00"))
    client.expect_close(0x81)


@pytest.mark.parametrize("packet", [Puback(7), Pubcomp(7), Puback(7, 0x80), Pubcomp(7, 0x92)])
def test_an_acknowledgement_that_nobody_waits_for_is_harmless(
    core: CoreDriver, packet: ToServer
) -> None:
    """2.2.1 gives no error for it; nothing may be lost or sent because of it."""
    client = connected(core, "c")
    client.subscribe("t", qos=2)
    client.send(packet)
    client.ping()
    client.publish("t", b"x", 2)
    client.expect_publish("t", b"x", 2)
    client.expect_nothing()


def test_an_acknowledgement_of_the_wrong_kind_does_not_end_an_exchange(core: CoreDriver) -> None:
    """A PUBACK for a QoS 2 message: ignored or an error, but the message is not lost."""
    expiry = props(session_expiry_interval=100)
    for wrong in (Puback, Pubcomp):
        client = connected(core, "c", properties=expiry)
        client.subscribe("t", qos=2)
        connected(core, "p").publish("t", b"x", 2)
        packet = client.expect_publish("t", b"x", 2, acknowledge=False)
        assert packet.packet_id is not None
        client.send(wrong(packet.packet_id))
        client.reconnect(properties=expiry)
        client.expect_publish("t", b"x", 2, dup=True)


def test_user_properties_of_an_acknowledgement_are_accepted(core: CoreDriver) -> None:
    client = connected(core, "c")
    pairs = [("a", "1"), ("a", "1")]
    client.send(Publish("t", b"x", 2, 1))
    client.expect(Pubrec)
    client.send(Pubrel(1, 0, props(user_property=pairs, reason_string="r")))
    assert client.expect(Pubcomp).code == 0


def test_a_reason_string_for_the_denied_client_is_text_or_absent(core: CoreDriver) -> None:
    client = denied(core)
    client.send(Publish("t", b"x", 1, 1))
    puback = client.expect(Puback)
    assert isinstance(puback.properties, Properties)
    assert isinstance(puback.properties.get(Property.REASON_STRING), str | None)
