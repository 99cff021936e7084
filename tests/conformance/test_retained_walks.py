"""MQTT 5.0, section 3.3.1.3: retained messages come as the reader takes them, however many."""

from __future__ import annotations

import random

import pytest

from avow.testing.core_abi import Access, Rule, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.model import matches
from avow.testing.mqtt import Filter, Property, Puback, Publish, Suback, Subscribe, props

clause = pytest.mark.clause
COUNT = 600
SIZE = 1000
LONG = props(session_expiry_interval=1000)
SMALL = {Setting.QUEUED_BYTES_MAX: 65_536, Setting.QUEUED_MESSAGES_MAX: 50}
TOPICS = [f"r/{n // 100}/{n:03}" for n in range(COUNT)]


def plant(qos: int = 1, settings: dict[Setting, int] | None = None) -> CoreDriver:
    """A broker whose bound on queues is a tenth of what it retains."""
    core = CoreDriver(settings=SMALL if settings is None else settings)
    source = connected(core, "plant")
    for topic in TOPICS:
        source.publish(topic, value(topic, 1), qos, retain=True)
    return core


def value(topic: str, number: int) -> bytes:
    return f"{topic} {number} ".encode().ljust(SIZE, b"x")


def number_of(packet: Publish) -> int:
    return int(packet.payload.split()[1])


def take(client: FakeClient, count: int | None = None) -> list[Publish]:
    """Takes and acknowledges what comes, or so many of it."""
    got: list[Publish] = []
    while count is None or len(got) < count:
        client.pump()
        if not client.pending:
            break
        got.append(client.expect(Publish))
        client.acknowledge(got[-1])
    return got


def held_up(core: CoreDriver, name: str, qos: int, *, long: bool = True) -> FakeClient:
    """A client that has subscribed to all, and whose socket is full."""
    expiry = {"session_expiry_interval": 1000} if long else {}
    client = connected(core, name, properties=props(receive_maximum=10, **expiry))
    core.open_window(client.connection, 3000)
    client.send(Subscribe(1, [Filter("r/#", qos)]))
    client.expect(Suback)
    return client


@clause("MQTT-3.3.1-9")
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("qos", "slow"), [(0, False), (0, True), (1, False), (1, True), (2, False)]
)
def test_all_retained_messages_come(version: int, qos: int, slow: bool) -> None:
    core = plant(2)
    client = FakeClient(core, "dashboard", version=version)
    client.connect(clean_start=False)
    core.open_window(client.connection, 100 if slow else None)
    client.send(Subscribe(1, [Filter("r/#", qos)]))
    got: list[Publish] = []
    while True:
        client.pump()
        while client.pending:
            packet = client.receive()
            if isinstance(packet, Suback):
                continue
            assert isinstance(packet, Publish)
            got.append(packet)
            client.acknowledge(packet)
            client.pump()
        if not slow or len(got) == COUNT:
            break
        core.open_window(client.connection, 40_000)
        core.turn()
    assert [p.text for p in got] == TOPICS
    assert all(p.retain and p.qos == qos for p in got)
    client.ping()
    assert core.counters()["publish_dropped"] == 0


@pytest.mark.parametrize("qos", [0, 1])
def test_a_reader_that_does_not_read_costs_no_memory(qos: int) -> None:
    core = plant(settings={})
    before = core.counters()["heap_bytes"]
    for number in range(20):
        held_up(core, f"slow{number}", qos, long=number % 2 == 0)
    # 20 times 600,000 bytes are retained for them; what is sent ahead of a reader is 256 KiB.
    assert core.counters()["heap_bytes"] - before < 20 * 400_000
    assert core.counters()["queued"] <= 20 * 16


@pytest.mark.parametrize("qos", [0, 1])
def test_a_session_that_breaks_off_gets_the_rest_when_it_comes_back(qos: int) -> None:
    core = plant()
    client = held_up(core, "c", qos)
    got = [p.text for p in take(client, 2)]
    for _ in range(3):
        client.drop()
        client.open()
        core.open_window(client.connection, 50_000)
        client.connect(clean_start=False, properties=LONG)
        got += [p.text for p in take(client)]
    assert len(set(got)) < COUNT
    client.reconnect(properties=LONG)
    got += [p.text for p in take(client)]
    if qos:
        assert sorted(set(got)) == TOPICS
    else:
        # What was on its way when the connection broke is gone, and nothing comes twice.
        assert len(got) == len(set(got)) > 200
        assert TOPICS[-1] in got
    assert core.counters()["queued"] == 0


def test_what_changes_meanwhile_comes_once_and_never_the_old_after_the_new() -> None:
    core = plant(settings={})
    client = held_up(core, "c", 1)
    source = connected(core, "source")
    for topic in TOPICS[1::2]:
        source.publish(topic, value(topic, 2), 1, retain=True)
    for topic in TOPICS[10::50]:
        source.publish(topic, b"", 1, retain=True)
    source.publish("r/1/aaa", value("r/1/aaa", 9), 1, retain=True)
    core.open_window(client.connection, None)
    seen: dict[str, list[int]] = {}
    for packet in take(client):
        seen.setdefault(packet.text, []).append(number_of(packet) if packet.payload else 0)
    for topic in TOPICS[1::2]:
        assert seen[topic][-1] == 2
        assert seen[topic] in ([2], [1, 2]), topic
    for topic in TOPICS[10::50]:
        assert seen[topic] in ([0], [1, 0]), topic
    assert seen["r/1/aaa"] == [9]
    assert sorted(seen) == sorted([*TOPICS, "r/1/aaa"])


@clause("MQTT-4.6.0-6")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_live_message_comes_after_what_its_topic_retains(qos: int) -> None:
    core = plant(qos, settings={})
    client = held_up(core, "c", qos)
    source = connected(core, "source")
    for topic in TOPICS:
        source.publish(topic, value(topic, 2), qos)
        source.publish(topic, value(topic, 3), qos)
    core.open_window(client.connection, None)
    seen: dict[str, list[int]] = {}
    for packet in take(client):
        seen.setdefault(packet.text, []).append(number_of(packet))
    assert seen == {topic: [1, 2, 3] for topic in TOPICS}


def test_what_expires_meanwhile_does_not_come_and_is_forgotten() -> None:
    core = CoreDriver()
    source = connected(core, "source")
    for topic in TOPICS:
        source.publish(
            topic, value(topic, 1), 1, retain=True, properties=props(message_expiry_interval=10)
        )
    client = held_up(core, "c", 0)
    core.advance(20_000)
    core.open_window(client.connection, None)
    assert 0 < len(take(client)) < COUNT
    assert core.counters()["retained"] < COUNT


def test_unsubscribe_ends_it_and_a_new_subscription_starts_anew() -> None:
    core = plant()
    client = held_up(core, "c", 1)
    other = connected(core, "other")
    core.open_window(client.connection, None)
    client.unsubscribe("r/#")
    some = take(client)
    assert len(some) < 50
    client.send(Subscribe(2, [Filter("r/#", 1)]))
    client.expect(Suback)
    assert [p.text for p in take(client)] == TOPICS
    other.ping()


@pytest.mark.parametrize(("handling", "again"), [(0, True), (1, False), (2, False)])
def test_subscribing_again_while_it_goes_on(handling: int, again: bool) -> None:
    """What was promised with the first SUBSCRIBE comes; with retain handling 0 all comes again."""
    core = plant()
    client = held_up(core, "c", 1)
    client.send(Subscribe(2, [Filter("r/#", 1, retain_handling=handling)]))
    core.open_window(client.connection, None)
    got: list[str] = []
    client.pump()
    while client.pending:
        packet = client.receive()
        if isinstance(packet, Publish):
            got.append(packet.text)
            client.acknowledge(packet)
        client.pump()
    assert sorted(set(got)) == TOPICS
    assert (got.count(TOPICS[0]) == 2) == again


def test_several_subscriptions_of_a_session_all_get_theirs() -> None:
    core = plant()
    client = connected(core, "c", properties=props(receive_maximum=5))
    filters = ["r/#", "r/+/+", "r/3/+", "r/+/250", "r/5/599", "nothing/#"]
    for number, wanted in enumerate(filters, 1):
        client.send(Subscribe(number, [Filter(wanted, 1)], props(subscription_identifier=number)))
    got: dict[int, list[str]] = {}
    client.pump()
    while client.pending:
        packet = client.receive()
        if isinstance(packet, Publish):
            (identifier,) = packet.props.all(Property.SUBSCRIPTION_IDENTIFIER)
            assert isinstance(identifier, int)
            got.setdefault(identifier, []).append(packet.text)
            client.acknowledge(packet)
        client.pump()
    assert got == {
        number: [topic for topic in TOPICS if matches(wanted, topic)]
        for number, wanted in enumerate(filters, 1)
        if wanted != "nothing/#"
    }


def test_the_rules_of_the_moment_count() -> None:
    core = plant()
    client = held_up(core, "c", 1)
    core.acl([Rule(False, "r/4/#", Access.SUBSCRIBE), Rule(True, "#")])
    core.open_window(client.connection, None)
    got = [p.text for p in take(client)]
    assert got == [topic for topic in TOPICS if not topic.startswith("r/4/")]


def test_a_message_larger_than_the_bound_comes_too() -> None:
    core = CoreDriver(settings={Setting.QUEUED_BYTES_MAX: 4096})
    source = connected(core, "source")
    for number in range(5):
        source.publish(f"r/{number}", bytes(20_000), 1, retain=True)
    for qos, long in ((0, True), (1, True), (1, False)):
        name = f"c{qos}{long}"
        client = connected(core, name, properties=LONG if long else None)
        client.send(Subscribe(1, [Filter("r/#", qos)]))
        client.expect(Suback)
        assert len(take(client)) == 5


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("qos", [1, 2])
def test_the_rest_comes_after_a_restart(qos: int, compacted: bool) -> None:
    core = plant(2)
    client = held_up(core, "c", qos)
    core.open_window(client.connection, None)
    got = [p.text for p in take(client, 100)]
    journal = core.snapshot() if compacted else core.journal
    restored = CoreDriver(now_ms=core.now_ms, journal=journal, settings=SMALL)
    again = FakeClient(restored, "c")
    assert again.connect(clean_start=False, properties=LONG).session_present
    rest = take(again)
    assert sorted(set(got) | {p.text for p in rest}) == TOPICS
    assert len([p for p in rest if not p.dup]) + len(got) <= COUNT
    if qos == 2:
        assert len(got) + len(rest) == COUNT
    # And once it is over, it is over after the next restart as well.
    journal = restored.snapshot() if compacted else journal + restored.journal
    once_more = CoreDriver(now_ms=restored.now_ms, journal=journal)
    last = FakeClient(once_more, "c")
    last.connect(clean_start=False, properties=LONG)
    last.expect_nothing()


def test_a_walk_takes_many_turns_and_others_are_served_between() -> None:
    """A filter that matches nothing of what is retained costs each turn a bounded part."""
    core = CoreDriver()
    source = connected(core, "source")
    for start in range(0, 20_000, 1000):
        source.send(
            *(
                Publish(f"{n}/a", b"x", 1, n - start + 1, retain=True)
                for n in range(start, start + 1000)
            )
        )
        for _ in range(1000):
            source.expect(Puback)
    steps = core.counters()["steps"]
    client = connected(core, "c")
    client.send(Subscribe(1, [Filter("+/b", 1)]))
    client.expect(Suback)
    client.expect_nothing()
    assert core.counters()["steps"] - steps >= 20_000 // 512


@pytest.mark.parametrize("seed", range(8))
def test_filters_find_what_they_match_in_the_order_of_the_topics(seed: int) -> None:
    chance = random.Random(seed)
    levels = ["", "a", "aa", "a!", "b", "$", "$a", "\x01", "é", "z" * 9]
    core = CoreDriver()
    source = connected(core, "source")
    topics: set[str] = set()
    for _ in range(150):
        topic = "/".join(chance.choice(levels) for _ in range(chance.randint(1, 4)))
        if topic:
            topics.add(topic)
            source.publish(topic, b"x", retain=True)
    for topic in chance.sample(sorted(topics), len(topics) // 4):
        topics.discard(topic)
        source.publish(topic, b"", retain=True)
    client = connected(core, "c")
    for _ in range(150):
        parts = [chance.choice([*levels, "+", "+", "+"]) for _ in range(chance.randint(1, 4))]
        if chance.random() < 0.4:
            parts[-1] = "#"
        wanted = "/".join(parts)
        if not wanted or wanted.startswith("$share/"):
            continue
        client.subscribe(Filter(wanted, 0))
        got = [p.text for p in client.received()]
        expected = [topic for topic in topics if matches(wanted, topic)]
        expected.sort(key=lambda topic: [level.encode() for level in topic.split("/")])
        assert got == expected, wanted
