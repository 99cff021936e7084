"""MQTT 5.0, section 4.8.2: shared subscriptions."""

from __future__ import annotations

import pytest

from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Disconnect,
    Filter,
    Puback,
    Pubcomp,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    props,
)

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


def group(core: CoreDriver, count: int, wanted: str, qos: int = 2) -> list[FakeClient]:
    """Clients of one shared subscription, with sessions that last."""
    members = [connected(core, f"m{n}", properties=LONG) for n in range(count)]
    for member in members:
        member.subscribe(wanted, qos=qos)
    return members


@clause("MQTT-4.8.2-1", "MQTT-4.8.2-2")
@pytest.mark.parametrize(
    "wanted",
    [
        "$share",
        "$share/",
        "$share//t",
        "$share//",
        "$share/g",
        "$share/g/",
        "$share/g+/t",
        "$share/+/t",
        "$share/#",
        "$share/g#/t",
        "$share/#/t",
        "$share/g/t#",
        "$share/g/#/t",
        "$share/g/a+",
    ],
)
def test_a_wrong_shared_filter_is_refused(core: CoreDriver, wanted: str) -> None:
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter(wanted)]))
    packet = client.receive()
    if isinstance(packet, Suback):
        # "$share" alone does not start with "$share/": an ordinary filter of one level.
        assert packet.codes == [0x8F] or wanted == "$share"
    else:
        assert isinstance(packet, Disconnect)
        assert packet.code in (0x81, 0x82, 0x8F)
    assert core.counters()["shared_subscriptions"] == 0


@clause("MQTT-4.8.2-1")
@pytest.mark.parametrize("name", ["g", "a long name", "ä€😀", "$share", "1" * 200])
def test_share_names_may_be_anything_else(core: CoreDriver, name: str) -> None:
    client = connected(core, "c")
    client.subscribe(f"$share/{name}/t/+")
    client.publish("t/1", b"x")
    client.expect_publish("t/1", b"x")


def test_each_message_goes_to_exactly_one_of_the_group(core: CoreDriver) -> None:
    members = group(core, 5, "$share/g/t/#")
    publisher = connected(core, "p")
    total: list[bytes] = []
    for number in range(200):
        publisher.publish("t/1", b"%d" % number, number % 3)
        ((chosen, packet),) = [(member, p) for member in members for p in member.received()]
        assert packet.qos == number % 3
        total.append(packet.payload)
        chosen.acknowledge(packet)
    assert total == [b"%d" % number for number in range(200)]


def test_the_load_is_spread_over_the_group(core: CoreDriver) -> None:
    """4.8.2: the server is free to choose, but the purpose is to share the work."""
    members = group(core, 4, "$share/g/t", qos=0)
    publisher = connected(core, "p")
    for _ in range(200):
        publisher.publish("t", b"x")
    counts = [len(member.received()) for member in members]
    assert sum(counts) == 200
    assert min(counts) >= 20


def test_groups_are_independent_of_each_other_and_of_ordinary_subscriptions(
    core: CoreDriver,
) -> None:
    first = group(core, 2, "$share/one/sport/tennis/+", qos=0)
    second = connected(core, "second")
    second.subscribe("$share/two/sport/tennis/+")
    other = connected(core, "other")
    other.subscribe("$share/one/sport/#")
    plain = connected(core, "plain")
    plain.subscribe("sport/tennis/+")
    connected(core, "p").publish("sport/tennis/x", b"x")
    assert sum(len(member.received()) for member in first) == 1
    for client in (second, other, plain):
        assert len(client.received()) == 1


def test_a_shared_filter_may_begin_with_a_slash(core: CoreDriver) -> None:
    """4.8.2, example: $share/consumer1//finance matches /finance."""
    client = connected(core, "c")
    client.subscribe("$share/consumer1//finance")
    client.publish("/finance", b"x")
    client.expect_publish("/finance", b"x")
    client.publish("finance", b"x")
    client.expect_nothing()


def test_a_shared_and_an_ordinary_subscription_of_one_client_give_two_copies(
    core: CoreDriver,
) -> None:
    client = connected(core, "c")
    client.subscribe("t", "$share/g/t")
    connected(core, "p").publish("t", b"x")
    assert len(client.received()) == 2


@pytest.mark.parametrize("handling", [0, 1])
def test_no_retained_messages_are_sent_to_a_shared_subscription(
    core: CoreDriver, handling: int
) -> None:
    connected(core, "p").publish("t", b"x", retain=True)
    for client_id in ("a", "b", "a"):
        client = connected(core, client_id)
        client.subscribe(Filter("$share/g/t", retain_handling=handling))
        client.expect_nothing()


@clause("MQTT-4.8.2-3")
def test_the_granted_qos_of_the_receiving_client_counts(core: CoreDriver) -> None:
    members = [connected(core, f"m{qos}") for qos in range(3)]
    for qos, member in enumerate(members):
        member.subscribe("$share/g/t", qos=qos)
    publisher = connected(core, "p")
    for number in range(60):
        publisher.publish("t", b"%d" % number, 2)
        got = [(qos, p) for qos, member in enumerate(members) for p in member.received()]
        ((qos, packet),) = got
        assert packet.qos == qos
        members[qos].acknowledge(packet)


@clause("MQTT-4.8.2-4")
def test_a_qos_2_delivery_is_completed_with_the_same_client(core: CoreDriver) -> None:
    members = group(core, 2, "$share/g/t")
    connected(core, "p").publish("t", b"x", 2)
    (chosen,) = [member for member in members if member.pending]
    other = members[0] if chosen is members[1] else members[1]
    packet = chosen.expect_publish("t", b"x", 2, acknowledge=False)
    chosen.drop()
    core.advance(5_000)
    other.expect_nothing()
    chosen.reconnect(properties=LONG)
    again = chosen.expect_publish("t", b"x", 2, dup=True, acknowledge=False)
    assert again.packet_id == packet.packet_id
    assert again.packet_id is not None
    chosen.send(Pubrec(again.packet_id))
    chosen.expect(Pubrel)
    chosen.reconnect(properties=LONG)
    chosen.expect(Pubrel)
    chosen.send(Pubcomp(again.packet_id))
    chosen.expect_nothing()
    other.expect_nothing()


@clause("MQTT-4.8.2-5")
def test_a_qos_2_message_of_a_session_that_ended_goes_to_nobody_else(core: CoreDriver) -> None:
    members = group(core, 2, "$share/g/t")
    connected(core, "p").publish("t", b"x", 2)
    (chosen,) = [member for member in members if member.pending]
    other = members[0] if chosen is members[1] else members[1]
    chosen.expect_publish("t", b"x", 2, acknowledge=False)
    chosen.disconnect(properties=props(session_expiry_interval=0))
    core.advance(5_000)
    other.expect_nothing()


@clause("MQTT-4.8.2-6")
@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_that_was_refused_goes_to_nobody_else(core: CoreDriver, qos: int) -> None:
    members = group(core, 3, "$share/g/t")
    connected(core, "p").publish("t", b"x", qos)
    (chosen,) = [member for member in members if member.pending]
    packet = chosen.expect_publish("t", b"x", qos, acknowledge=False)
    assert packet.packet_id is not None
    refusal = Puback(packet.packet_id, 0x80) if qos == 1 else Pubrec(packet.packet_id, 0x80)
    chosen.send(refusal)
    for member in members:
        member.expect_nothing()
    chosen.drop()
    core.advance(2_000_000)
    for member in members:
        if member is not chosen:
            member.expect_nothing()


def test_a_client_that_is_connected_is_preferred_to_one_that_is_not(core: CoreDriver) -> None:
    """4.8.2 leaves the choice; a message should not wait where somebody can take it."""
    away, here = group(core, 2, "$share/g/t")
    away.drop()
    publisher = connected(core, "p")
    for number in range(20):
        publisher.publish("t", b"%d" % number, 1)
        here.expect_publish("t", b"%d" % number, 1)


def test_a_message_waits_when_nobody_of_the_group_is_connected(core: CoreDriver) -> None:
    members = group(core, 2, "$share/g/t")
    for member in members:
        member.drop()
    connected(core, "p").publish("t", b"x", 1)
    got = []
    for member in members:
        member.reconnect(properties=LONG)
        got += member.received()
    assert [p.payload for p in got] == [b"x"]


def test_a_second_subscribe_does_not_count_twice(core: CoreDriver) -> None:
    """4.8.2: the session leaves with its first UNSUBSCRIBE."""
    client = connected(core, "c")
    client.subscribe("$share/g/t", qos=0)
    client.subscribe("$share/g/t", qos=1)
    client.publish("t", b"x", 1)
    client.expect_publish("t", b"x", 1)
    client.expect_nothing()
    client.unsubscribe("$share/g/t")
    client.publish("t", b"x", 1)
    client.expect_nothing()


def test_a_group_shrinks_when_sessions_end_and_survives_its_founder(core: CoreDriver) -> None:
    members = group(core, 3, "$share/g/t")
    members[0].unsubscribe("$share/g/t")
    members[1].disconnect(properties=props(session_expiry_interval=0))
    publisher = connected(core, "p")
    for number in range(10):
        publisher.publish("t", b"%d" % number, 1)
        members[2].expect_publish("t", b"%d" % number, 1)
    members[0].expect_nothing()
    members[2].disconnect(properties=props(session_expiry_interval=0))
    assert core.counters()["shared_subscriptions"] == 0
    publisher.publish("t", b"nobody", 1)
    late = connected(core, "late")
    late.subscribe("$share/g/t")
    late.expect_nothing()


def test_publishing_to_a_topic_that_looks_like_a_share_reaches_no_group(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("$share/g/t")
    client.send(Subscribe(9, [Filter("t")]))
    client.expect(Suback)
    connected(core, "p").publish("$share/g/t", b"x")
    client.expect_nothing()
