"""MQTT 3.1.1 (OASIS Standard, 29 October 2014): what differs from MQTT 5.0 on the server's side.

The section and statement identifiers in the docstrings are those of MQTT 3.1.1.
"""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Access, Outcome, Principal, Rule, Setting, Transport
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    ToServer,
    Unsuback,
    Unsubscribe,
    Will,
    frame,
)


def old(core: CoreDriver, client_id: str, *, clean: bool = True) -> FakeClient:
    """A client of MQTT 3.1.1 that has connected."""
    return connected(core, client_id, version=4, clean_start=clean)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_3_1_2_2_unknown_level_is_refused_with_code_1(core: CoreDriver, level: int) -> None:
    """[MQTT-3.1.2-2]; test_bridge.py has the levels with the top bit, and those above 5."""
    connection = core.open()
    core.send(connection, Connect("c", version=4, level=level).encode())
    assert connection.closed
    assert connection.read() == b"\x20\x02\x00\x01"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(0x85, 2), (0x88, 3), (0x89, 3), (0x97, 3), (0x9F, 3), (0x86, 4), (0x87, 5), (0x8A, 5)],
)
def test_3_2_2_3_refusals_have_the_codes_of_311(core: CoreDriver, code: int, expected: int) -> None:
    """Table 3.1, Connect Return code values."""
    client = FakeClient(core, "c", version=4)
    client.send(client.connect_packet(username="u", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=code, reason="no")
    client.expect_refused(expected)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("code", [0x80, 0x81, 0x83, 0x95, 0x99])
def test_3_2_2_3_a_refusal_without_a_code_has_no_connack(
    core: CoreDriver, code: int, version: int
) -> None:
    """[MQTT-3.2.2-6]."""
    client = FakeClient(core, "c", version=version)
    client.send(client.connect_packet(username="u", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=code)
    client.expect_close()


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(
    ("settings", "will"),
    [
        ({Setting.MAXIMUM_QOS: 0}, Will("w", b"x", 1)),
        ({Setting.RETAIN_AVAILABLE: 0}, Will("w", b"x", retain=True)),
    ],
)
def test_a_will_that_is_not_supported_has_no_code(
    core: CoreDriver, settings: dict[Setting, int], will: Will, version: int
) -> None:
    """[MQTT-3.2.2-6]: these reasons exist in MQTT 5 only."""
    core.settings(settings)
    client = FakeClient(core, "c", version=version)
    client.send(Connect("c", version=version, will=will))
    client.expect_close()


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("transport", list(Transport))
def test_a_login_that_takes_too_long_is_refused_in_the_client_s_form(
    core: CoreDriver, version: int, transport: Transport
) -> None:
    client = FakeClient(core, "c", version=version, transport=transport)
    client.send(client.connect_packet(username="u"))
    core.auth_request()
    core.advance(11_000)
    client.expect_refused(5)


def test_3_2_2_3_anonymous_clients_are_refused_with_4_or_5(core: CoreDriver) -> None:
    client = FakeClient(core, "c", version=4, allow_anonymous=False)
    client.send(client.connect_packet())
    client.expect_refused({4, 5})


@pytest.mark.parametrize(
    "packet",
    [
        Connect("c", version=4, flags=0x03),
        Connect("c", version=4, flags=0x0A),
        Connect("c", version=4, flags=0x22),
        Connect("c", version=4, will=Will("w", b"x", 3)),
        Connect("c", version=4, flags=0x42, trailing=b"\x00\x01p"),  # password without user name
        Connect("c", version=4, trailing=b"x"),
        Connect("c", version=4, will=Will("w/#", b"x")),
        Connect(b"\xff", version=4),
        Connect("c", version=4, username=b"\xff"),
        Connect("c", version=4, will=Will(b"\xff", b"x")),
    ],
)
def test_4_8_a_malformed_connect_is_closed(core: CoreDriver, packet: Connect) -> None:
    """[MQTT-3.1.2-3], [MQTT-3.1.2-13], [MQTT-3.1.2-22], [MQTT-3.1.4-1], [MQTT-4.8.0-1]."""
    client = FakeClient(core, version=4)
    client.send(packet)
    client.expect_close()


def test_3_1_3_1_an_empty_client_identifier_needs_a_clean_session(core: CoreDriver) -> None:
    """[MQTT-3.1.3-6], [MQTT-3.1.3-7], [MQTT-3.1.3-8]."""
    first, second = old(core, ""), old(core, "")
    first.ping()
    second.ping()
    refused = FakeClient(core, version=4)
    refused.send(Connect("", version=4, clean_start=False))
    refused.expect_refused(2)


def test_3_1_2_4_clean_session_1_keeps_nothing(core: CoreDriver) -> None:
    """[MQTT-3.1.2-6]."""
    client = old(core, "c")
    client.subscribe("t", qos=1)
    client.drop()
    assert core.counters()["sessions"] == 0
    assert not client.reconnect().session_present


def test_3_1_2_4_clean_session_0_keeps_the_session(core: CoreDriver) -> None:
    """[MQTT-3.1.2-4], [MQTT-3.1.2-5], [MQTT-3.2.2-2]."""
    client = FakeClient(core, "c", version=4)
    assert not client.connect(clean_start=False).session_present
    client.subscribe("t", qos=1)
    client.disconnect()
    connected(core, "p").publish("t", b"x", 1)
    core.advance(1000 * 86400 * 365)
    assert client.reconnect().session_present
    client.expect_publish("t", b"x", 1)


def test_3_2_2_2_session_present_after_both_kinds_of_session(core: CoreDriver) -> None:
    """[MQTT-3.2.2-1], [MQTT-3.2.2-2], [MQTT-3.2.2-3]."""
    client = old(core, "c", clean=False)
    assert client.reconnect().session_present
    assert not client.reconnect(clean_start=True).session_present
    assert not client.reconnect().session_present


def test_3_1_4_a_second_connection_closes_the_first_without_a_packet(core: CoreDriver) -> None:
    """[MQTT-3.1.4-2]; 3.1.1 has no DISCONNECT of the server."""
    first = old(core, "c")
    second = old(core, "c")
    first.expect_close()
    second.ping()


def test_3_1_0_a_second_connect_closes(core: CoreDriver) -> None:
    """[MQTT-3.1.0-2]."""
    client = old(core, "c")
    client.send(Connect("c", version=4))
    client.expect_close()


def test_3_9_3_a_refused_subscription_gets_0x80(core: CoreDriver) -> None:
    """[MQTT-3.9.3-2]; as the Paho suite: test/nosubscribe is denied."""
    core.acl([Rule(False, "test/nosubscribe", Access.SUBSCRIBE), Rule(True, "#")])
    client = old(core, "c")
    client.subscribe(Filter("a", 1), Filter("test/nosubscribe", 2), codes=[1, 0x80])
    new = connected(core, "n")
    new.subscribe(Filter("a", 1), Filter("test/nosubscribe", 2), codes=[1, 0x87])


@pytest.mark.parametrize(
    "packet",
    [
        frame(3, 6, b"\x00\x01t\x00\x01"),  # [MQTT-3.3.1-4]
        frame(3, 0, b"\x00\x01#"),  # [MQTT-3.3.2-2]
        frame(3, 0, b"\x00\x00x"),  # [MQTT-4.7.3-1]
        frame(3, 2, b"\x00\x01t\x00\x00"),  # [MQTT-2.3.1-1]
        frame(6, 0, b"\x00\x01"),  # [MQTT-3.6.1-1]
        frame(8, 0, b"\x00\x01\x00\x01t\x00"),  # [MQTT-3.8.1-1]
        frame(8, 2, b"\x00\x01"),  # [MQTT-3.8.3-3]
        frame(8, 2, b"\x00\x01\x00\x01t\x03"),  # [MQTT-3-8.3-4]
        frame(8, 2, b"\x00\x01\x00\x01t\x04"),
        frame(8, 2, b"\x00\x01\x00\x01t\x80"),
        frame(10, 0, b"\x00\x01\x00\x01t"),  # [MQTT-3.10.1-1]
        frame(10, 2, b"\x00\x01"),  # [MQTT-3.10.3-2]
        frame(12, 1, b""),
        frame(14, 1, b""),  # [MQTT-3.14.1-1]
        frame(15, 0, b""),  # type 15 is forbidden
        frame(0, 0, b""),
        frame(2, 0, b"\x00\x00"),
        frame(4, 0, b"\x00\x01\x00"),  # no reason code in 3.1.1
        frame(4, 0, b"\x00"),
        frame(14, 0, b"\x00"),
        b"\x30\x80\x80\x80\x80\x01",
    ],
)
def test_4_8_malformed_packets_close_without_a_packet(core: CoreDriver, packet: bytes) -> None:
    """[MQTT-4.8.0-1], and [MQTT-2.2.2-2] for the flags."""
    client = old(core, "c")
    client.send(packet)
    client.expect_close()


def test_3_14_4_disconnect_discards_the_will(core: CoreDriver) -> None:
    """[MQTT-3.14.4-3]."""
    watcher = connected(core, "w")
    watcher.subscribe("will")
    client = FakeClient(core, "c", version=4)
    client.connect(will=Will("will", b"x", 1, retain=True))
    client.disconnect()
    watcher.expect_nothing()
    client.open()
    client.connect(will=Will("will", b"y", 1, retain=True))
    client.drop()
    watcher.expect_publish("will", b"y")


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_4_3_the_delivery_protocols(core: CoreDriver, qos: int) -> None:
    """[MQTT-4.3.1-1] to [MQTT-4.3.3-2]: acknowledgements of exactly two bytes."""
    client = old(core, "c")
    client.subscribe("t", qos=2)
    client.publish("t", b"x", qos)
    client.expect_publish("t", b"x", qos)
    assert all(size in (2, 4, 5, 6, 8) for size in client.sizes)


def test_4_4_unacknowledged_packets_are_sent_again_after_a_reconnect(core: CoreDriver) -> None:
    """[MQTT-4.4.0-1], [MQTT-3.3.1-1]."""
    client = old(core, "c", clean=False)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    for qos in (1, 2, 2):
        publisher.publish("t", b"%d" % qos, qos)
    packets = [client.expect_publish(acknowledge=False) for _ in range(3)]
    last = packets[2]
    assert last.packet_id is not None
    client.send(Pubrec(last.packet_id))
    client.expect(Pubrel)
    client.reconnect()
    got = [client.receive() for _ in range(3)]
    publishes = [p for p in got if isinstance(p, Publish)]
    assert [(p.packet_id, p.dup) for p in publishes] == [(p.packet_id, True) for p in packets[:2]]
    assert [p.packet_id for p in got if isinstance(p, Pubrel)] == [last.packet_id]


def test_3_6_and_3_7_unknown_identifiers_are_answered(core: CoreDriver) -> None:
    """[MQTT-4.3.3-2]: PUBREL is answered by PUBCOMP, which has no code in 3.1.1."""
    client = old(core, "c")
    client.send(Pubrel(9))
    assert client.expect(Pubcomp).packet_id == 9
    client.ping()


def test_3_3_1_3_a_live_message_has_no_retain_flag(core: CoreDriver) -> None:
    """[MQTT-3.3.1-8], [MQTT-3.3.1-9]."""
    client = old(core, "c")
    client.subscribe("t")
    client.publish("t", b"x", retain=True)
    client.expect_publish("t", b"x", retain=False)
    client.subscribe("t")
    client.expect_publish("t", b"x", retain=True)


def test_3_8_4_a_subscription_is_replaced(core: CoreDriver) -> None:
    """[MQTT-3.8.4-3]: retained messages are sent again."""
    client = old(core, "c")
    connected(core, "p").publish("t", b"r", 1, retain=True)
    client.subscribe("t", qos=0)
    client.expect_publish("t", b"r", 0, retain=True)
    client.subscribe("t", qos=1)
    client.expect_publish("t", b"r", 1, retain=True)
    assert core.counters()["subscriptions"] == 1


def test_3_3_5_overlapping_subscriptions_respect_the_highest_qos(core: CoreDriver) -> None:
    """[MQTT-3.3.5-1]."""
    client = old(core, "c")
    client.subscribe(Filter("t/#", 0), Filter("t/+", 2))
    connected(core, "p").publish("t/1", b"x", 2)
    got = client.received()
    assert got[0].qos == 2


def test_3_11_unsuback_has_no_payload(core: CoreDriver) -> None:
    client = old(core, "c")
    client.send(Unsubscribe(7, ["a", "b"]))
    assert client.expect(Unsuback).packet_id == 7
    assert client.sizes[-1] == 4


def test_3_1_2_10_keep_alive(core: CoreDriver) -> None:
    """[MQTT-3.1.2-24]."""
    client = connected(core, "c", version=4, keep_alive_s=4)
    core.advance(5_900)
    client.send(Pingreq())
    client.receive()
    core.advance(5_900)
    client.expect_nothing()
    core.advance(1_100)
    assert client.closed
    assert not client.inbox


def test_a_denied_publish_is_acknowledged_or_closed_but_never_delivered(core: CoreDriver) -> None:
    """[MQTT-3.3.5-2]: a positive acknowledgement, or the end of the connection."""
    core.acl([Rule(True, "#", Access.SUBSCRIBE), Rule(False, "#")])
    watcher = connected(core, "w")
    watcher.subscribe("#")
    packets: tuple[ToServer, ...] = (Publish("t", b"x"), Publish("t", b"x", 1, 1))
    for packet in packets:
        client = old(core, "c")
        client.send(packet)
        client.pump()
        assert all(isinstance(p, Puback) for p in client.inbox)
        watcher.expect_nothing()


def test_limits_of_mqtt_5_hold_for_311_too(core: CoreDriver) -> None:
    """Maximum packet size and QoS cannot be announced; a packet beyond them ends the connection."""
    core.settings({Setting.MAXIMUM_PACKET_BYTES: 100})
    client = old(core, "c")
    client.send(Publish("t", bytes(200)))
    client.expect_close()


def test_dollar_share_works_for_311(core: CoreDriver) -> None:
    """Not in the specification of 3.1.1, but what brokers do."""
    first, second = old(core, "a"), old(core, "b")
    for client in (first, second):
        client.subscribe("$share/g/t")
    connected(core, "p").publish("t", b"x")
    assert len(first.received()) + len(second.received()) == 1


def test_the_user_of_an_acl_rule_is_respected(core: CoreDriver) -> None:
    core.acl([Rule(True, "t", Access.BOTH, Principal.USER, "alice"), Rule(False, "#")])
    alice = FakeClient(core, "c", version=4, identity="alice")
    alice.connect()
    alice.subscribe("t")
    bob = FakeClient(core, "d", version=4, identity="bob")
    bob.connect()
    bob.send(Subscribe(1, [Filter("t")]))
    assert bob.expect(Suback).codes == [0x80]


def test_no_server_disconnect_is_ever_sent(core: CoreDriver) -> None:
    """The strict decoder refuses DISCONNECT; here everything that would cause one in MQTT 5."""
    core.settings({Setting.RECEIVE_MAXIMUM: 1})
    overrun = old(core, "overrun")
    overrun.send(Publish("t", b"x", 2, 1), Publish("t", b"x", 2, 2))
    overrun.expect(Pubrec)
    overrun.pump()
    assert not [p for p in overrun.inbox if isinstance(p, Disconnect)]
    drained = old(core, "drained")
    core.drain()
    drained.expect_close()
