"""MQTT 5.0, sections 4.3 to 4.6: delivery protocols, retry, order."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Rule
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import connected
from avow.testing.mqtt import (
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    props,
)

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


@clause("MQTT-4.3.1-1")
def test_qos_0_is_sent_once_without_dup(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t", qos=2)
    connected(core, "p").publish("t", b"x")
    client.expect_publish("t", b"x", 0, dup=False)
    client.expect_nothing()


@clause("MQTT-4.3.2-1", "MQTT-4.3.2-2")
def test_qos_1_is_sent_first_without_dup_and_with_an_unused_identifier(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    for _ in range(20):
        publisher.publish("t", b"x", 1)
    identifiers = []
    for _ in range(20):
        packet = client.expect_publish("t", b"x", 1, dup=False, acknowledge=False)
        identifiers.append(packet.packet_id)
    assert len(set(identifiers)) == 20


@clause("MQTT-4.3.2-3")
def test_qos_1_is_unacknowledged_until_puback(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    connected(core, "p").publish("t", b"x", 1)
    packet = client.expect_publish("t", b"x", 1, acknowledge=False)
    for _ in range(2):
        client.reconnect(properties=LONG)
        again = client.expect_publish("t", b"x", 1, dup=True, acknowledge=False)
        assert again.packet_id == packet.packet_id
    client.acknowledge(packet)
    client.reconnect(properties=LONG)
    client.expect_nothing()


@clause("MQTT-4.3.2-4")
def test_qos_1_is_acknowledged_with_its_identifier(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(*(Publish("t", b"x", 1, n) for n in (7, 3, 65535, 1)))
    assert [client.expect(Puback).packet_id for _ in range(4)] == [7, 3, 65535, 1]


@clause("MQTT-4.3.2-5")
@pytest.mark.parametrize("dup", [False, True])
def test_an_identifier_after_its_puback_is_a_new_message(core: CoreDriver, dup: bool) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("t", qos=1)
    client = connected(core, "c")
    for payload in (b"one", b"two"):
        client.send(Publish("t", payload, 1, 5, dup=dup))
        client.expect(Puback)
    assert [p.payload for p in watcher.received()] == [b"one", b"two"]


@clause("MQTT-4.3.3-2", "MQTT-4.3.3-4")
def test_qos_2_of_the_server_step_by_step(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t", qos=2)
    connected(core, "p").publish("t", b"x", 2)
    packet = client.expect_publish("t", b"x", 2, dup=False, acknowledge=False)
    assert packet.packet_id is not None
    client.expect_nothing()
    client.send(Pubrec(packet.packet_id))
    pubrel = client.expect(Pubrel)
    assert (pubrel.packet_id, pubrel.code) == (packet.packet_id, 0)
    client.expect_nothing()
    client.send(Pubcomp(packet.packet_id))
    client.expect_nothing()
    assert core.counters()["inflight"] == 0


@clause("MQTT-4.3.3-3")
def test_qos_2_is_unacknowledged_until_pubrec(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    connected(core, "p").publish("t", b"x", 2)
    packet = client.expect_publish("t", b"x", 2, acknowledge=False)
    client.reconnect(properties=LONG)
    again = client.expect_publish("t", b"x", 2, dup=True, acknowledge=False)
    assert again.packet_id == packet.packet_id


@clause("MQTT-4.3.3-5", "MQTT-4.3.3-6")
def test_pubrel_is_unacknowledged_until_pubcomp_and_publish_is_not_sent_again(
    core: CoreDriver,
) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    connected(core, "p").publish("t", b"x", 2)
    packet = client.expect_publish("t", b"x", 2, acknowledge=False)
    assert packet.packet_id is not None
    client.send(Pubrec(packet.packet_id))
    client.expect(Pubrel)
    for _ in range(3):
        client.reconnect(properties=LONG)
        assert client.expect(Pubrel).packet_id == packet.packet_id
        client.expect_nothing()
    client.send(Pubcomp(packet.packet_id))
    client.reconnect(properties=LONG)
    client.expect_nothing()


@clause("MQTT-4.3.3-6")
def test_a_second_pubrec_is_answered_by_pubrel_only(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t", qos=2)
    connected(core, "p").publish("t", b"x", 2)
    packet = client.expect_publish("t", b"x", 2, acknowledge=False)
    assert packet.packet_id is not None
    for _ in range(3):
        client.send(Pubrec(packet.packet_id))
        pubrel = client.expect(Pubrel)
        assert (pubrel.packet_id, pubrel.code) == (packet.packet_id, 0)
        client.expect_nothing()


@clause("MQTT-4.3.3-7")
@pytest.mark.parametrize("qos", [1, 2])
def test_expiry_is_not_applied_to_what_was_sent(core: CoreDriver, qos: int) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=qos)
    properties = props(message_expiry_interval=5)
    connected(core, "p").publish("t", b"x", qos, properties=properties)
    client.expect_publish("t", b"x", qos, acknowledge=False)
    client.drop()
    core.advance(20_000)
    client.reconnect(properties=LONG)
    if qos == 2:
        client.expect_publish("t", b"x", 2, dup=True)


@clause("MQTT-4.3.3-8")
def test_qos_2_is_answered_by_pubrec_with_its_identifier(core: CoreDriver) -> None:
    client = connected(core, "c")
    for packet_id in (1, 300, 65535):
        client.send(Publish("t", b"x", 2, packet_id))
        pubrec = client.expect(Pubrec)
        assert pubrec.packet_id == packet_id
        assert pubrec.code in (0x00, 0x10)


@clause("MQTT-4.3.3-9")
def test_after_a_pubrec_with_an_error_the_identifier_is_new(core: CoreDriver) -> None:

    core.acl([Rule(False, "deny"), Rule(True, "#")])
    watcher = connected(core, "w")
    watcher.subscribe("t", qos=2)
    client = connected(core, "c")
    client.send(Publish("deny", b"x", 2, 5))
    assert client.expect(Pubrec).code == 0x87
    client.send(Publish("t", b"y", 2, 5))
    assert client.expect(Pubrec).code == 0
    watcher.expect_publish("t", b"y", 2)
    client.send(Pubrel(5))
    assert client.expect(Pubcomp).code == 0


@clause("MQTT-4.3.3-10")
def test_until_pubrel_the_same_identifier_is_acknowledged_but_not_delivered_again(
    core: CoreDriver,
) -> None:
    watchers = [connected(core, f"w{n}") for n in range(3)]
    for number, watcher in enumerate(watchers):
        watcher.subscribe("t", qos=number)
    client = connected(core, "c")
    for dup in (False, True, True, False):
        client.send(Publish("t", b"x", 2, 5, dup=dup))
        assert client.expect(Pubrec).packet_id == 5
    client.send(Pubrel(5))
    client.expect(Pubcomp)
    for number, watcher in enumerate(watchers):
        watcher.expect_publish("t", b"x", number)
        watcher.expect_nothing()


@clause("MQTT-4.3.3-11")
def test_pubrel_is_answered_by_pubcomp(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Publish("t", b"x", 2, 5))
    client.expect(Pubrec)
    client.send(Pubrel(5))
    pubcomp = client.expect(Pubcomp)
    assert (pubcomp.packet_id, pubcomp.code) == (5, 0)
    client.send(Pubrel(5))
    assert client.expect(Pubcomp).packet_id == 5


@clause("MQTT-4.3.3-12")
def test_after_pubcomp_the_identifier_is_new(core: CoreDriver) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("t", qos=2)
    client = connected(core, "c")
    for number in range(5):
        client.send(Publish("t", b"%d" % number, 2, 5, dup=number % 2 == 1))
        client.expect(Pubrec)
        client.send(Pubrel(5))
        client.expect(Pubcomp)
    assert [p.payload for p in watcher.received()] == [b"%d" % n for n in range(5)]


@clause("MQTT-4.3.3-13")
def test_the_exchange_goes_on_after_the_message_has_expired(core: CoreDriver) -> None:
    """Both directions: the server as the sender and as the receiver."""
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p", properties=LONG)
    publisher.send(Publish("t", b"x", 2, 5, properties=props(message_expiry_interval=1)))
    publisher.expect(Pubrec)
    packet = client.expect_publish("t", b"x", 2, acknowledge=False)
    assert packet.packet_id is not None
    core.advance(10_000)
    publisher.send(Pubrel(5))
    assert publisher.expect(Pubcomp).code == 0
    client.send(Pubrec(packet.packet_id))
    assert client.expect(Pubrel).code == 0
    client.send(Pubcomp(packet.packet_id))
    client.expect_nothing()


@clause("MQTT-4.4.0-1")
def test_everything_unacknowledged_is_sent_again_in_order_after_a_reconnect(
    core: CoreDriver,
) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    for number in range(9):
        publisher.publish("t", b"%d" % number, 1 + number % 2)
    first = [client.expect_publish(acknowledge=False) for _ in range(9)]
    client.acknowledge(first[2])
    released = first[3]
    assert released.packet_id is not None
    client.send(Pubrec(released.packet_id))
    client.expect(Pubrel)
    client.drop()
    client.open()
    client.connect(clean_start=False, properties=LONG)
    again: list[tuple[str, int | None, bool]] = []
    while client.inbox:
        packet = client.receive()
        if isinstance(packet, Pubrel):
            again.append(("pubrel", packet.packet_id, False))
        else:
            assert isinstance(packet, Publish)
            again.append((packet.payload.decode(), packet.packet_id, packet.dup))
    expected = [
        ("pubrel", p.packet_id, False) if p is released else (p.payload.decode(), p.packet_id, True)
        for p in first
        if p is not first[2]
    ]
    assert sorted(again, key=repr) == sorted(expected, key=repr)
    publishes = [one for one in again if one[0] != "pubrel"]
    assert publishes == [one for one in expected if one[0] != "pubrel"]


@clause("MQTT-4.4.0-1")
def test_nothing_is_sent_again_while_the_connection_is_open(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    publisher.publish("t", b"x", 1)
    publisher.publish("t", b"y", 2)
    client.expect_publish("t", b"x", acknowledge=False)
    packet = client.expect_publish("t", b"y", acknowledge=False)
    assert packet.packet_id is not None
    client.send(Pubrec(packet.packet_id))
    client.expect(Pubrel)
    core.advance(10_000_000)
    client.expect_nothing()
    client.ping()
    client.expect_nothing()


@clause("MQTT-4.4.0-2")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
def test_a_message_that_was_refused_is_not_sent_again(
    core: CoreDriver, qos: int, code: int
) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=qos)
    connected(core, "p").publish("t", b"x", qos)
    packet = client.expect_publish("t", b"x", qos, acknowledge=False)
    assert packet.packet_id is not None
    client.send(Puback(packet.packet_id, code) if qos == 1 else Pubrec(packet.packet_id, code))
    client.expect_nothing()
    client.reconnect(properties=LONG)
    client.expect_nothing()
    assert core.counters()["inflight"] == 0


@clause("MQTT-4.5.0-1")
@pytest.mark.parametrize("qos", [1, 2])
def test_an_accepted_message_is_in_the_session_of_every_subscriber(
    core: CoreDriver, qos: int
) -> None:
    names = [f"c{n}" for n in range(5)]
    clients = [connected(core, name, properties=LONG) for name in names]
    for client in clients:
        client.subscribe("t", qos=qos)
    for client in clients[::2]:
        client.drop()
    connected(core, "p").publish("t", b"x", qos)
    for client in clients[::2]:
        client.reconnect(properties=LONG)
    for client in clients:
        client.expect_publish("t", b"x", qos)
        client.expect_nothing()


@clause("MQTT-4.5.0-1")
def test_a_qos_2_message_is_delivered_without_waiting_for_pubrel(core: CoreDriver) -> None:
    """4.3.3: ownership is accepted with PUBREC; delivery may start then, and must happen."""
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p", properties=LONG)
    publisher.send(Publish("t", b"x", 2, 1))
    publisher.expect(Pubrec)
    publisher.drop()
    core.advance(5_000_000)  # its session ends, the message was accepted
    client.expect_publish("t", b"x", 2)


@clause("MQTT-4.6.0-5", "MQTT-4.6.0-6")
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
def test_order_is_kept_per_topic_and_qos(core: CoreDriver, granted: int, published: int) -> None:
    client = connected(core, "c", properties=props(receive_maximum=3))
    client.subscribe("t", qos=granted)
    publisher = connected(core, "p")
    for number in range(50):
        publisher.publish("t", b"%d" % number, published)
    got = []
    while packets := client.received():
        for packet in packets:
            got.append(packet.payload)
            client.acknowledge(packet)
    assert got == [b"%d" % number for number in range(50)]


@clause("MQTT-4.6.0-5")
def test_order_of_one_client_is_kept_over_a_reconnect_of_the_subscriber(
    core: CoreDriver,
) -> None:
    """The final copy of each message comes in order (4.6, comment)."""
    client = connected(core, "c", properties=props(receive_maximum=5, session_expiry_interval=99))
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    for number in range(30):
        publisher.publish("t", b"%d" % number, 1)
    order: list[bytes] = []
    for _ in range(12):
        packets = client.received()
        for packet in packets:
            if packet.payload in order:
                order.remove(packet.payload)
            order.append(packet.payload)
        for packet in packets[:3]:
            client.acknowledge(packet)
        client.reconnect(properties=props(receive_maximum=5, session_expiry_interval=99))
    assert order == [b"%d" % number for number in range(30)]


@clause("MQTT-4.6.0-6")
def test_messages_of_several_publishers_keep_the_order_of_each(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("#", qos=2)
    publishers = [connected(core, f"p{n}") for n in range(4)]
    for number in range(40):
        for publisher in publishers:
            payload = f"{publisher.client_id} {number:03}".encode()
            publisher.publish(f"t/{number % 3}", payload, 1)
    seen: dict[tuple[str, bytes], list[bytes]] = {}
    while packets := client.received():
        for packet in packets:
            seen.setdefault((packet.text, packet.payload[:2]), []).append(packet.payload)
            client.acknowledge(packet)
    assert sum(len(one) for one in seen.values()) == 160
    for one in seen.values():
        assert one == sorted(one)


def test_messages_are_exchanged_between_the_versions(core: CoreDriver) -> None:
    old, new = connected(core, "old", version=4), connected(core, "new")
    for client in (old, new):
        client.subscribe("t", qos=2)
    for publisher in (old, new):
        for qos in range(3):
            publisher.send(Publish("t", b"x", qos, 9 if qos else None))
            if qos == 1:
                publisher.take(Puback)
            if qos == 2:
                publisher.take(Pubrec)
                publisher.send(Pubrel(9))
                publisher.take(Pubcomp)
            for client in (old, new):
                packet = client.expect_publish("t", b"x", qos)
                assert Property.TOPIC_ALIAS not in packet.props
