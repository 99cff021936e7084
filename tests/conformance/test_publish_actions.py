"""MQTT 5.0, sections 3.3.4 and 4.9: what PUBLISH causes, overlaps, flow control."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Refused, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Filter,
    Pingreq,
    Pingresp,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    props,
)

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


@clause("MQTT-3.3.4-1")
def test_the_response_depends_on_the_qos(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x"))
    client.expect_nothing()
    client.send(Publish("t", b"x", 1, 1))
    client.expect(Puback)
    client.send(Publish("t", b"x", 2, 2))
    client.expect(Pubrec)
    client.expect_nothing()


@clause("MQTT-3.3.4-2")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_overlapping_subscriptions_respect_the_highest_qos(core: CoreDriver, qos: int) -> None:
    client = connected(core, "c")
    client.subscribe(Filter("a/b", 0), Filter("a/+", 2), Filter("a/#", 1))
    connected(core, "p").publish("a/b", b"x", qos)
    got = client.received()
    assert got[0].qos == qos
    assert len(got) == 1


@clause("MQTT-3.3.4-3", "MQTT-3.3.4-4")
def test_one_publish_carries_the_identifiers_of_all_matching_subscriptions(
    core: CoreDriver,
) -> None:
    client = connected(core, "c")
    client.subscribe("a/b", properties=props(subscription_identifier=1))
    client.subscribe("a/+", qos=2, properties=props(subscription_identifier=268_435_455))
    client.subscribe("a/#", qos=1)
    client.subscribe("x/#", properties=props(subscription_identifier=3))
    connected(core, "p").publish("a/b", b"x", 2)
    packet = client.expect_publish("a/b", b"x", 2)
    assert sorted(packet.props.all(Property.SUBSCRIPTION_IDENTIFIER), key=repr) == [1, 268_435_455]
    client.expect_nothing()


@clause("MQTT-3.3.4-4")
def test_the_same_identifier_of_two_subscriptions_is_carried_twice(core: CoreDriver) -> None:
    """3.3.4: the PUBLISH will carry multiple identical identifiers."""
    client = connected(core, "c")
    for wanted in ("a/b", "a/+"):
        client.subscribe(wanted, properties=props(subscription_identifier=9))
    connected(core, "p").publish("a/b", b"x")
    packet = client.expect_publish("a/b", b"x")
    assert packet.props.all(Property.SUBSCRIPTION_IDENTIFIER) == [9, 9]


@clause("MQTT-3.3.4-5")
def test_the_copy_of_a_shared_subscription_carries_only_its_own_identifier(
    core: CoreDriver,
) -> None:
    """A shared and a non-shared subscription are delivered as two PUBLISH packets (4.8.2)."""
    client = connected(core, "c")
    client.subscribe("t", properties=props(subscription_identifier=1))
    client.subscribe("$share/g/t", properties=props(subscription_identifier=2))
    connected(core, "p").publish("t", b"x")
    got = [p.props.all(Property.SUBSCRIPTION_IDENTIFIER) for p in client.received()]
    assert sorted(got, key=repr) == [[1], [2]]


@clause("MQTT-3.3.4-3")
def test_identifiers_reach_queued_and_retained_messages(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    publisher.publish("r", b"x", retain=True)
    client = connected(core, "c", properties=LONG)
    client.subscribe("r", properties=props(subscription_identifier=5))
    packet = client.expect_publish("r", b"x", retain=True)
    assert packet.props.all(Property.SUBSCRIPTION_IDENTIFIER) == [5]
    client.subscribe("q", qos=1, properties=props(subscription_identifier=6))
    client.drop()
    publisher.publish("q", b"y", 1)
    client.reconnect(properties=LONG)
    packet = client.expect_publish("q", b"y")
    assert packet.props.all(Property.SUBSCRIPTION_IDENTIFIER) == [6]


@clause("MQTT-3.3.4-6")
def test_a_subscription_identifier_from_a_client_is_a_protocol_error(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", properties=props(subscription_identifier=1)))
    client.expect_close(0x82)


def test_an_empty_topic_without_an_alias_is_a_protocol_error(core: CoreDriver) -> None:
    """3.3.2.1."""
    client = connected(core, "c")
    client.send(Publish("", b"x"))
    client.expect_close({0x82, 0x90})


def test_an_alias_that_was_never_set_is_a_protocol_error(core: CoreDriver) -> None:
    """3.3.4: 0x82."""
    client = connected(core, "c")
    client.send(Publish("", b"x", properties=props(topic_alias=1)))
    client.expect_close(0x82)


@clause("MQTT-3.3.4-7")
@pytest.mark.parametrize("maximum", [1, 2, 10])
def test_qos_2_publishes_above_the_receive_maximum_are_refused_alone(maximum: int) -> None:
    """A QoS 2 publish is open until PUBCOMP. Those beyond the quota get PUBREC 0x97 and are not
    routed; their identifiers are free again, and the connection goes on.
    """
    core = CoreDriver(settings={Setting.RECEIVE_MAXIMUM: maximum})
    watcher = connected(core, "w")
    watcher.subscribe("t", qos=2)
    client = FakeClient(core, "c")
    assert client.connect().properties.get(Property.RECEIVE_MAXIMUM) == maximum
    client.send(*(Publish("t", b"%d" % n, 2, n) for n in range(1, maximum + 4)))
    refused = [event for event in core.take_events() if isinstance(event, Refused)]
    assert {(event.client_id, event.code, event.topic) for event in refused} == {("c", 0x93, "t")}
    codes = [client.expect(Pubrec).code for _ in range(maximum + 3)]
    assert codes == [0] * maximum + [0x97] * 3
    assert [p.payload for p in watcher.received()] == [b"%d" % n for n in range(1, maximum + 1)]
    client.send(Pubrel(1))
    assert client.expect(Pubcomp).code == 0
    client.send(Publish("t", b"again", 2, maximum + 1))
    assert client.expect(Pubrec).code == 0
    client.send(Pubrel(maximum + 2))
    assert client.expect(Pubcomp).code == 0x92  # a refused exchange is over
    watcher.expect_publish("t", b"again", 2)


@clause("MQTT-3.3.4-7")
def test_qos_0_and_1_never_use_the_receive_maximum_up() -> None:
    """3.3.4: open is what the server has "not sent a PUBACK" for, and it answers at once."""
    core = CoreDriver(settings={Setting.RECEIVE_MAXIMUM: 1})
    client = connected(core, "c")
    client.send(Publish("t", b"x", 2, 1))
    client.expect(Pubrec)
    client.publish("t", b"zero")
    client.send(*(Publish("t", b"x", 1, n) for n in range(2, 102)))
    assert [client.expect(Puback).packet_id for _ in range(100)] == list(range(2, 102))
    client.ping()


@pytest.mark.parametrize("version", [4, 5])
def test_every_packet_identifier_can_be_open_at_once(version: int) -> None:
    """2.2.1: 65,535 of them; without a Receive Maximum in CONNACK all may be (3.2.2.3.3)."""
    core = CoreDriver()
    client = FakeClient(core, "c", version=version)
    connack = client.connect()
    if version == 5:
        assert connack.properties.get(Property.RECEIVE_MAXIMUM) is None
    for start in range(1, 65536, 4096):
        identifiers = range(start, min(start + 4096, 65536))
        client.send(*(Publish("t", b"x", 2, n) for n in identifiers))
        assert [client.expect(Pubrec).packet_id for _ in identifiers] == list(identifiers)
    client.send(Publish("t", b"x", 2, 40_000, dup=True))
    assert client.expect(Pubrec).packet_id == 40_000
    for start in range(1, 65536, 4096):
        identifiers = range(start, min(start + 4096, 65536))
        client.send(*(Pubrel(n) for n in identifiers))
        assert all(client.expect(Pubcomp).code == 0 for _ in identifiers)
    client.send(Pubrel(40_000))
    assert client.expect(Pubcomp).code in (0, 0x92)


@clause("MQTT-3.3.4-7")
def test_the_receive_maximum_counts_only_what_is_open() -> None:
    core = CoreDriver(settings={Setting.RECEIVE_MAXIMUM: 2})
    client = connected(core, "c")
    for _ in range(50):
        client.publish("t", b"x", 2)
        client.publish("t", b"x", 1)
    client.send(Publish("t", b"x", 2, 1), Publish("t", b"x", 2, 2))
    client.expect(Pubrec)
    client.expect(Pubrec)
    client.send(Publish("t", b"x", 2, 1, dup=True))  # the same exchange again
    client.expect(Pubrec)
    client.ping()


@clause("MQTT-3.3.4-7")
def test_a_full_window_of_qos_1_publishes_in_one_piece_is_not_an_overrun() -> None:
    core = CoreDriver(settings={Setting.RECEIVE_MAXIMUM: 3})
    client = connected(core, "c")
    for _ in range(50):
        client.send(*(Publish("t", b"x", 1, n) for n in (1, 2, 3)))
        assert [client.expect(Puback).packet_id for _ in range(3)] == [1, 2, 3]


@clause("MQTT-3.3.4-7")
def test_a_burst_of_qos_1_above_the_receive_maximum_is_acknowledged_whole() -> None:
    core = CoreDriver(settings={Setting.RECEIVE_MAXIMUM: 2})
    watcher = connected(core, "w")
    watcher.subscribe("t")
    client = connected(core, "c")
    client.send(*(Publish("t", b"%d" % n, 1, n) for n in range(1, 5001)))
    assert [client.expect(Puback).packet_id for _ in range(5000)] == list(range(1, 5001))
    client.ping()
    assert len(watcher.received()) == 5000


@clause("MQTT-3.3.4-9", "MQTT-4.9.0-1", "MQTT-4.9.0-2")
@pytest.mark.parametrize("maximum", [1, 2, 7, 100])
@pytest.mark.parametrize("qos", [1, 2])
def test_the_server_keeps_to_the_clients_receive_maximum(
    core: CoreDriver, maximum: int, qos: int
) -> None:
    client = connected(core, "c", properties=props(receive_maximum=maximum))
    client.subscribe("t", qos=qos)
    publisher = connected(core, "p")
    total = maximum + 20
    for number in range(total):
        publisher.publish("t", b"%d" % number, qos)
    got = client.received()
    assert len(got) == maximum
    received = []
    while got:
        packet = got.pop(0)
        received.append(packet.payload)
        client.acknowledge(packet)
        got += client.received()
        assert len(got) <= maximum
    assert received == [b"%d" % number for number in range(total)]


@clause("MQTT-4.9.0-2")
def test_a_pubrec_alone_does_not_open_the_window(core: CoreDriver) -> None:
    client = connected(core, "c", properties=props(receive_maximum=1))
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    publisher.publish("t", b"a", 2)
    publisher.publish("t", b"b", 2)
    packet = client.expect_publish("t", b"a", acknowledge=False)
    assert packet.packet_id is not None
    client.send(Pubrec(packet.packet_id))
    client.expect(Pubrel)
    client.expect_nothing()
    client.send(Pubcomp(packet.packet_id))
    client.expect_publish("t", b"b", 2)


@clause("MQTT-4.9.0-2")
def test_a_pubrec_with_an_error_opens_the_window(core: CoreDriver) -> None:
    client = connected(core, "c", properties=props(receive_maximum=1))
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    publisher.publish("t", b"a", 2)
    publisher.publish("t", b"b", 2)
    packet = client.expect_publish("t", b"a", acknowledge=False)
    assert packet.packet_id is not None
    client.send(Pubrec(packet.packet_id, 0x80))
    client.expect_publish("t", b"b", 2)


@clause("MQTT-4.9.0-2")
def test_a_needless_pubcomp_does_not_open_the_window_further(core: CoreDriver) -> None:
    """4.9: the quota is not incremented above its initial value."""
    client = connected(core, "c", properties=props(receive_maximum=1))
    client.subscribe("t", qos=1)
    for packet_id in range(1, 5):
        client.send(Pubcomp(packet_id), Puback(packet_id))
    publisher = connected(core, "p")
    publisher.publish("t", b"a", 1)
    publisher.publish("t", b"b", 1)
    client.expect_publish("t", b"a", acknowledge=False)
    client.expect_nothing()


@clause("MQTT-3.3.4-9", "MQTT-4.6.0-5")
def test_new_messages_wait_for_those_that_are_sent_again(core: CoreDriver) -> None:
    """A smaller window than before: what is sent again comes piece by piece, and first."""
    client = connected(core, "c", properties=props(receive_maximum=4, session_expiry_interval=100))
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    for number in range(4):
        publisher.publish("t", b"%d" % number, 1 + number % 2)
    assert len(client.received()) == 4
    client.reconnect(properties=props(receive_maximum=1, session_expiry_interval=100))
    publisher.publish("t", b"4", 1)
    publisher.publish("t", b"5", 2)
    for number in range(6):
        packet = client.expect_publish("t", b"%d" % number, dup=number < 4, acknowledge=False)
        client.expect_nothing()
        client.acknowledge(packet)


@clause("MQTT-3.3.4-9")
def test_a_pubcomp_for_an_earlier_connection_does_not_open_the_window(core: CoreDriver) -> None:
    """The PUBREL that is sent again took nothing from this connection's quota (4.9)."""
    properties = props(receive_maximum=2, session_expiry_interval=100)
    client = connected(core, "c", properties=properties)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    publisher.publish("t", b"released", 2)
    for number in range(4):
        publisher.publish("t", b"%d" % number, 1)
    packet = client.expect_publish("t", b"released", acknowledge=False)
    assert packet.packet_id is not None
    client.send(Pubrec(packet.packet_id))
    client.reconnect(properties=properties)
    pubrels = [p for p in (client.receive() for _ in range(3)) if isinstance(p, Pubrel)]
    assert [p.packet_id for p in pubrels] == [packet.packet_id]
    client.expect_nothing()
    client.send(Pubcomp(packet.packet_id))
    client.expect_nothing()


def test_messages_of_qos_0_pass_or_wait_but_are_not_lost(core: CoreDriver) -> None:
    """4.9: the server may continue to send QoS 0 while the quota is zero."""
    client = connected(core, "c", properties=props(receive_maximum=1))
    client.subscribe("one", qos=1)
    client.subscribe("zero")
    publisher = connected(core, "p")
    publisher.publish("one", b"x", 1)
    publisher.publish("zero", b"y")
    packet = client.expect_publish("one", b"x", acknowledge=False)
    client.acknowledge(packet)
    client.expect_publish("zero", b"y")


@clause("MQTT-3.3.4-10", "MQTT-4.9.0-3")
def test_other_packets_are_not_delayed_when_the_window_is_full(core: CoreDriver) -> None:
    client = connected(core, "c", properties=props(receive_maximum=1))
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    for _ in range(3):
        publisher.publish("t", b"x", 1)
    client.expect_publish("t", b"x", acknowledge=False)
    client.send(Pingreq())
    client.expect(Pingresp)
    client.send(Subscribe(100, [Filter("u")]))
    client.expect(Suback)
    client.send(Publish("v", b"", 1, 101))
    client.expect(Puback)
    client.send(Publish("v", b"", 2, 102))
    client.expect(Pubrec)
    client.send(Pubrel(102))
    client.expect(Pubcomp)
    client.expect_nothing()


def test_the_window_starts_anew_with_every_connection(core: CoreDriver) -> None:
    """4.9: quota and Receive Maximum are not preserved."""
    client = connected(core, "c", properties=props(receive_maximum=1, session_expiry_interval=100))
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    for number in range(5):
        publisher.publish("t", b"%d" % number, 1)
    assert len(client.received()) == 1
    client.reconnect(properties=props(receive_maximum=3, session_expiry_interval=100))
    assert [p.payload for p in client.received()] == [b"0", b"1", b"2"]
    client.reconnect(properties=props(receive_maximum=2, session_expiry_interval=100))
    got = client.received()
    assert [p.payload for p in got] == [b"0", b"1"]
    for packet in got:
        client.acknowledge(packet)
    assert [p.payload for p in client.received()] == [b"2", b"3"]


def test_a_message_reaches_each_of_many_subscribers_once(core: CoreDriver) -> None:
    clients = [connected(core, f"c{n}") for n in range(50)]
    for number, client in enumerate(clients):
        client.subscribe("t", qos=number % 3)
    connected(core, "p").publish("t", b"x", 2)
    for number, client in enumerate(clients):
        client.expect_publish("t", b"x", number % 3)
        client.expect_nothing()


def test_no_matching_subscribers_may_be_said(core: CoreDriver) -> None:
    """3.4.2.1: 0x10 instead of 0x00, only when there really is none."""
    publisher = connected(core, "p")
    assert publisher.publish("t", b"x", 1) in (0x00, 0x10)
    client = connected(core, "c")
    client.subscribe("t")
    assert publisher.publish("t", b"x", 1) == 0
    assert publisher.publish("t", b"x", 2) == 0
