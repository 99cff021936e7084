"""MQTT 5.0, section 4.8.2: what a member of a shared subscription leaves goes to another one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from avow.testing.core_abi import Access, Rule, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Property,
    Puback,
    Publish,
    props,
)

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)
SHARE = "$share/w/jobs"
JOBS = 20


def worker(
    core: CoreDriver, name: str, *, long: bool, window: int = 100, qos: int = 2
) -> FakeClient:
    """A member whose session lasts, or ends with its connection."""
    more = {"session_expiry_interval": 1000} if long else {}
    member = connected(core, name, properties=props(receive_maximum=window, **more))
    member.subscribe(SHARE, qos=qos)
    return member


def hand_out(core: CoreDriver, qos: int = 1) -> None:
    """Twenty jobs, all of which the broker takes over."""
    boss = connected(core, "boss")
    for number in range(JOBS):
        assert boss.publish("jobs", b"%d" % number, qos) == 0


def work(member: FakeClient, *, again: bool = False) -> list[int]:
    """Takes and acknowledges all that comes; `again`: a repetition too."""
    done: list[int] = []
    while True:
        member.pump()
        if not member.pending:
            return done
        packet = member.expect(Publish)
        assert again or not packet.dup
        done.append(int(packet.payload))
        member.acknowledge(packet)


def cut(core: CoreDriver, a: FakeClient) -> None:
    a.drop()


def leave(core: CoreDriver, a: FakeClient) -> None:
    a.received()
    a.disconnect()


def administrator(core: CoreDriver, a: FakeClient) -> None:
    core.disconnect(a.connection, 0x98)


def expire(core: CoreDriver, a: FakeClient) -> None:
    a.drop()
    core.advance(1_001_000)


def start_clean(core: CoreDriver, a: FakeClient) -> None:
    connected(core, a.client_id)


def start_clean_later(core: CoreDriver, a: FakeClient) -> None:
    a.drop()
    connected(core, a.client_id)


def end_by_disconnect(core: CoreDriver, a: FakeClient) -> None:
    a.received()
    a.disconnect(properties=props(session_expiry_interval=0))


def shorten(core: CoreDriver, a: FakeClient) -> None:
    """The session is resumed as one that ends with its connection, and ends."""
    a.reconnect()
    a.drop()


End = Callable[[CoreDriver, FakeClient], None]
SHORT_ENDS = [cut, leave, administrator, start_clean]
LONG_ENDS = [expire, start_clean, start_clean_later, end_by_disconnect, shorten]


@pytest.mark.parametrize("window", [100, 3], ids=["sent", "partly queued"])
@pytest.mark.parametrize("other_is_long", [False, True])
@pytest.mark.parametrize(
    ("long", "end"),
    [(False, end) for end in SHORT_ENDS] + [(True, end) for end in LONG_ENDS],
)
def test_qos_1_goes_on_to_another_member(
    core: CoreDriver, long: bool, end: End, other_is_long: bool, window: int
) -> None:
    a = worker(core, "a", long=long, window=window)
    b = worker(core, "b", long=other_is_long)
    hand_out(core)
    mine = work(b)
    assert 0 < len(mine) < JOBS
    end(core, a)
    assert sorted(mine + work(b)) == list(range(JOBS))
    counters = core.counters()
    assert counters["queued"] == counters["inflight"] == counters["publish_dropped"] == 0


@clause("MQTT-4.8.2-5")
@pytest.mark.parametrize("long", [False, True])
def test_of_qos_2_only_what_was_not_begun_goes_on(core: CoreDriver, long: bool) -> None:
    a = worker(core, "a", long=long, window=3)
    b = worker(core, "b", long=False)
    hand_out(core, 2)
    begun = [int(packet.payload) for packet in a.received()]
    assert len(begun) == 3
    mine = work(b)
    (expire if long else cut)(core, a)
    assert sorted(begun + mine + work(b)) == list(range(JOBS))


def test_what_was_acknowledged_is_not_handed_on(core: CoreDriver) -> None:
    a, b = worker(core, "a", long=False), worker(core, "b", long=False)
    hand_out(core)
    first = a.received()[:4]
    for packet in first:
        a.acknowledge(packet)
    done = [int(packet.payload) for packet in first]
    a.drop()
    assert sorted(done + work(b)) == list(range(JOBS))


def test_members_that_are_left_share_in_turns(core: CoreDriver) -> None:
    a = worker(core, "a", long=False)
    hand_out(core)
    others = [worker(core, name, long=False) for name in ("b", "c", "d", "e")]
    a.drop()
    shares = [work(other) for other in others]
    assert sorted(itertools.chain(*shares)) == list(range(JOBS))
    assert [len(share) for share in shares] == [5] * 4


def test_a_chain_of_deaths_loses_nothing(core: CoreDriver) -> None:
    members = [worker(core, f"m{number}", long=number % 2 == 1) for number in range(6)]
    hand_out(core)
    for number, member in enumerate(members[:-1]):
        (expire if number % 2 else cut)(core, member)
    assert sorted(work(members[-1])) == list(range(JOBS))


def test_an_absent_member_gets_it_when_it_comes_back(core: CoreDriver) -> None:
    a = worker(core, "a", long=False)
    hand_out(core)
    b = worker(core, "b", long=True)
    b.drop()
    a.drop()
    b.reconnect(properties=LONG)
    assert sorted(work(b)) == list(range(JOBS))


def test_with_the_last_member_the_messages_end(core: CoreDriver) -> None:
    """4.8.2: a shared subscription ends, with its undelivered messages, when nobody is left."""
    a = worker(core, "a", long=False)
    hand_out(core)
    a.drop()
    b = worker(core, "b", long=False)
    b.expect_nothing()
    counters = core.counters()
    assert counters["publish_dropped"] == JOBS
    assert counters["stored_messages"] == counters["inflight"] == 0


def test_unsubscribe_hands_on_what_was_not_sent(core: CoreDriver) -> None:
    """3.10.4: what was begun is completed with the client; the rest need not be."""
    a = worker(core, "a", long=True, window=3)
    b = worker(core, "b", long=False)
    hand_out(core)
    a.unsubscribe(SHARE)
    mine = work(b)
    kept = work(a)
    assert len(kept) == 3
    assert sorted(mine + kept) == list(range(JOBS))


def test_what_was_begun_when_a_member_unsubscribed_goes_on_when_it_dies(core: CoreDriver) -> None:
    a, b = worker(core, "a", long=False), worker(core, "b", long=False)
    hand_out(core)
    a.unsubscribe(SHARE)
    mine = work(b)
    a.drop()
    assert sorted(mine + work(b)) == list(range(JOBS))


def test_the_last_member_that_unsubscribes_still_gets_what_waits(core: CoreDriver) -> None:
    a = worker(core, "a", long=False, window=3)
    hand_out(core)
    a.unsubscribe(SHARE)
    assert sorted(work(a)) == list(range(JOBS))
    assert core.counters()["stored_messages"] == 0


def test_messages_of_other_subscriptions_end_with_the_session(core: CoreDriver) -> None:
    a, b = connected(core, "a"), worker(core, "b", long=False)
    a.subscribe("jobs", "$share/other/jobs", qos=1)
    hand_out(core)
    assert len(work(b)) == JOBS
    a.drop()
    b.expect_nothing()
    assert core.counters()["stored_messages"] == 0


def test_the_new_members_terms_count(core: CoreDriver) -> None:
    a = worker(core, "a", long=False)
    boss = connected(core, "boss")
    boss.publish("jobs", b"one", 2)
    boss.publish("jobs", b"two", 1, retain=True)
    boss.publish("jobs", b"short", 1, properties=props(message_expiry_interval=10))
    boss.publish("jobs", b"long", 1, properties=props(message_expiry_interval=100))
    a.received()
    zero = connected(core, "zero")
    zero.subscribe(SHARE, qos=0, properties=props(subscription_identifier=7))
    core.advance(20_000)
    a.drop()
    got = zero.received()
    assert [(p.payload, p.qos, p.retain) for p in got] == [(b"two", 0, False), (b"long", 0, False)]
    assert all(p.props.all(Property.SUBSCRIPTION_IDENTIFIER) == [7] for p in got)
    assert got[1].props.get(Property.MESSAGE_EXPIRY_INTERVAL) == 80


def test_who_may_not_have_a_message_does_not_get_it(core: CoreDriver) -> None:
    a, b = worker(core, "a", long=False), worker(core, "b", long=False)
    hand_out(core)
    mine = work(b)
    core.acl([Rule(True, "#", Access.PUBLISH), Rule(True, "x", Access.SUBSCRIBE)])
    a.drop()
    b.expect_nothing()
    assert len(mine) < JOBS


def test_the_bound_on_queues_holds_and_nobody_is_cut_off() -> None:
    core = CoreDriver(settings={Setting.QUEUED_MESSAGES_MAX: 5})
    a = worker(core, "a", long=False, window=5)
    b = worker(core, "b", long=True, window=1)
    hand_out(core)
    b.drop()
    a.drop()
    assert core.counters()["queued"] <= 5
    b.reconnect(properties=LONG)
    assert len(work(b, again=True)) >= 5
    b.ping()


def restarted(core: CoreDriver, *, compacted: bool, before: CoreDriver | None = None) -> CoreDriver:
    """The broker after a crash, from the journal as it was written or as it was compacted."""
    written = (before.journal if before else []) + core.journal
    return CoreDriver(now_ms=core.now_ms, journal=core.snapshot() if compacted else written)


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("window", [100, 3])
def test_a_restart_ends_sessions_without_expiry_and_hands_their_messages_on(
    core: CoreDriver, window: int, compacted: bool
) -> None:
    a = worker(core, "a", long=False, window=window)
    b = worker(core, "b", long=True)
    hand_out(core)
    done = work(b)
    packet = a.expect(Publish)
    a.acknowledge(packet)
    done.append(int(packet.payload))
    again = restarted(core, compacted=compacted)
    b = FakeClient(again, "b")
    assert b.connect(clean_start=False, properties=LONG).session_present
    assert sorted(done + work(b)) == list(range(JOBS))
    assert again.counters()["stored_messages"] == 0


@pytest.mark.parametrize("compacted", [False, True])
def test_a_session_that_expires_after_a_restart_hands_on_too(
    core: CoreDriver, compacted: bool
) -> None:
    a, b = worker(core, "a", long=True, window=3), worker(core, "b", long=True)
    hand_out(core)
    done = work(b)
    a.drop()
    again = restarted(core, compacted=compacted)
    b = connected(again, "b", clean_start=False, properties=props(session_expiry_interval=9000))
    again.advance(1_001_000)
    done += work(b)
    # And none of it a second time, after the next restart.
    twice = restarted(again, compacted=compacted, before=core)
    b = connected(twice, "b", clean_start=False, properties=LONG)
    b.expect_nothing()
    assert sorted(done) == list(range(JOBS))


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_handed_on_survives_a_restart_once(
    core: CoreDriver, qos: int, compacted: bool
) -> None:
    a = worker(core, "a", long=False, window=3)
    b = worker(core, "b", long=True)
    hand_out(core, qos)
    done = work(b)
    begun = [int(packet.payload) for packet in a.received()] if qos == 2 else []
    b.drop()
    a.drop()
    again = restarted(core, compacted=compacted)
    b = connected(again, "b", clean_start=False, properties=LONG)
    assert sorted(begun + done + work(b)) == list(range(JOBS))


@pytest.mark.parametrize("compacted", [False, True])
def test_begun_qos_2_of_a_shortened_session_is_not_handed_on_after_a_restart(
    core: CoreDriver, compacted: bool
) -> None:
    a, b = worker(core, "a", long=True, window=3), worker(core, "b", long=True)
    hand_out(core, 2)
    begun = [int(packet.payload) for packet in a.received()]
    done = work(b)
    a.reconnect()  # without an expiry, and without a window: now all of it is begun
    begun = [int(packet.payload) for packet in a.received()]
    assert sorted(done + begun) == list(range(JOBS))
    again = restarted(core, compacted=compacted)
    connected(again, "b", clean_start=False, properties=LONG).expect_nothing()


def test_qos_1_of_a_shortened_session_is_handed_on_once_after_a_restart(core: CoreDriver) -> None:
    a, b = worker(core, "a", long=True), worker(core, "b", long=True)
    hand_out(core)
    done = work(b)
    a.reconnect()
    packet = a.expect(Publish)
    assert packet.packet_id is not None
    a.send(Puback(packet.packet_id))
    done.append(int(packet.payload))
    again = restarted(core, compacted=False)
    b = connected(again, "b", clean_start=False, properties=LONG)
    assert sorted(done + work(b)) == list(range(JOBS))


def test_a_pool_without_lasting_sessions_writes_no_journal(core: CoreDriver) -> None:
    members = [worker(core, name, long=False) for name in ("a", "b")]
    boss = connected(core, "boss")
    before = len(core.journal)
    for number in range(JOBS):
        boss.publish("jobs", b"%d" % number, 1)
    members[0].drop()
    work(members[1])
    assert len(core.journal) == before


def test_a_long_queue_is_handed_on_whole() -> None:
    core = CoreDriver()
    a, b = worker(core, "a", long=True), worker(core, "b", long=True)
    b.drop()
    a.drop()
    boss = connected(core, "boss")
    numbers = range(1, 20_001)
    boss.send(*(Publish("jobs", b"%d" % number, 1, number) for number in numbers))
    assert all(boss.expect(Puback).code == 0 for _ in numbers)
    b.reconnect(properties=LONG)
    mine = work(b)
    core.advance(1_001_000)
    assert sorted(mine + work(b)) == list(numbers)


def test_a_long_queue_is_handed_on_over_several_turns() -> None:
    """Meanwhile the session is not there for anybody: its client finds none."""
    core = CoreDriver()
    a, b = worker(core, "a", long=True), worker(core, "b", long=True)
    a.drop()
    b.drop()
    boss = connected(core, "boss")
    numbers = range(1, 20_001)
    boss.send(*(Publish("jobs", b"%d" % number, 1, number) for number in numbers))
    assert all(boss.expect(Puback).code == 0 for _ in numbers)
    steps = core.counters()["steps"]
    core.advance(1_001_000)
    assert core.counters()["steps"] - steps >= len(numbers) // 2 // 1024
    assert core.counters()["queued"] == 0  # both have ended
    assert core.counters()["stored_messages"] == 0


def test_who_comes_back_while_its_session_is_handed_on_finds_none() -> None:
    core = CoreDriver()
    a = worker(core, "a", long=False, window=1)
    b = worker(core, "b", long=True)
    b.drop()
    boss = connected(core, "boss")
    numbers = range(1, 5001)
    boss.send(*(Publish("jobs", b"%d" % number, 1, number) for number in numbers))
    assert all(boss.expect(Puback).code == 0 for _ in numbers)
    a.drop()  # a thousand of its messages have gone on by now
    again = FakeClient(core, "a")
    assert not again.connect(clean_start=False).session_present
    again.expect_nothing()
    b.reconnect(properties=LONG)
    assert sorted(work(b)) == list(numbers)
