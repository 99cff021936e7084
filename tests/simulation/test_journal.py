"""The journal: outputs wait for it, and a core that is restored from it goes on as before."""

from __future__ import annotations

import random

import pytest

from avow.testing.core_abi import Setting
from avow.testing.core_driver import CoreDriver, CoreTrapError, RestoreRefusedError
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Will,
    props,
)

LONG = props(session_expiry_interval=0xFFFFFFFF)


def busy_core() -> CoreDriver:
    """A core with something of everything that is durable."""
    core = CoreDriver()
    publisher = connected(core, "publisher", properties=LONG)
    for number in range(5):
        publisher.publish(
            f"retained/{number}",
            b"value %d" % number,
            number % 3,
            retain=True,
            properties=props(content_type="text", user_property=[("a", "1"), ("a", "2")]),
        )
    offline = connected(core, "offline", properties=LONG)
    offline.subscribe(
        Filter("t/#", 2, no_local=True, retain_as_published=True),
        properties=props(subscription_identifier=77),
    )
    offline.subscribe(Filter("$share/group/s", 1))
    offline.drop()
    half = connected(core, "half", properties=LONG)
    half.subscribe("t/#", qos=2)
    for number in range(3):
        publisher.publish("t/1", b"message %d" % number, number)
    publisher.publish("s", b"shared", 1)
    got = half.received()
    assert got[-1].packet_id is not None
    half.send(Pubrec(got[-1].packet_id))
    half.expect(Pubrel)
    publisher.send(Publish("t/2", b"open", 2, 9))
    publisher.expect(Pubrec)
    return core


def resume(core: CoreDriver, client_id: str, *, present: bool = True) -> FakeClient:
    """A client that comes back to its session."""
    client = FakeClient(core, client_id)
    connack = client.connect(clean_start=False, properties=LONG)
    assert connack.session_present == present
    return client


def behaviour(core: CoreDriver) -> list[object]:
    """What the durable state of `busy_core` does, in a form that can be compared."""
    out: list[object] = []
    publisher = resume(core, "publisher")
    publisher.send(Publish("t/2", b"open", 2, 9, dup=True))  # no second message
    out.append(publisher.expect(Pubrec).packet_id)
    publisher.send(Pubrel(9))
    out.append(publisher.expect(Pubcomp).code)
    half = resume(core, "half")
    half.pump()
    out.append([repr(p) for p in half.inbox])
    offline = resume(core, "offline")
    out.append([repr(p) for p in offline.received()])
    publisher.publish("t/9", b"live", 2, retain=True)
    offline.pump()
    out.append([repr(p) for p in offline.inbox])
    fresh = connected(core, "fresh")
    fresh.subscribe("retained/#", qos=2)
    out.append(sorted(repr((p.topic, p.payload, p.qos, p.properties)) for p in fresh.received()))
    counters = core.counters()
    out.append([counters[name] for name in ("sessions", "subscriptions", "retained")])
    return out


def commit_all(core: CoreDriver) -> int:
    """Commits what waits; gives the number of batches."""
    count = 0
    while core.waiting is not None:
        core.commit()
        count += 1
    return count


def test_outputs_wait_for_the_commit() -> None:
    core = CoreDriver(auto_commit=False)
    commit_all(core)
    subscriber = FakeClient(core, "s")
    subscriber.send(subscriber.connect_packet(properties=LONG))
    subscriber.expect_nothing()
    assert commit_all(core), "a new durable session is durable"
    subscriber.expect(Connack)
    subscriber.send(Subscribe(1, [Filter("t", 1)]))
    subscriber.expect_nothing()
    assert commit_all(core), "a subscription of a durable session is durable"
    subscriber.receive()
    publisher = FakeClient(core, "p")
    publisher.send(publisher.connect_packet())
    commit_all(core)
    publisher.expect(Connack)
    publisher.send(Publish("t", b"x", 1, 1))
    publisher.expect_nothing()
    subscriber.expect_nothing()
    assert commit_all(core), "an accepted message of QoS 1 is durable"
    publisher.expect(Puback)
    subscriber.expect(Publish)


def test_qos_0_between_sessions_without_expiry_writes_no_journal() -> None:
    core = CoreDriver()
    subscriber = connected(core, "s")
    subscriber.subscribe("t")
    publisher = connected(core, "p")
    before = len(core.journal)
    for _ in range(100):
        publisher.publish("t", b"x")
    assert len(subscriber.received()) == 100
    assert len(core.journal) == before


@pytest.mark.parametrize("wrong", [-1, 1, 2, 1000])
def test_a_commit_with_another_sequence_number_is_refused(wrong: int) -> None:
    core = CoreDriver(auto_commit=False)
    client = FakeClient(core, "c")
    client.send(client.connect_packet(properties=LONG))
    assert core.waiting is not None
    sequence, _ = core.waiting
    assert core.commit_wrong(sequence + wrong) == 2
    client.expect_nothing()
    core.commit()
    client.expect(Connack)


def test_a_commit_without_a_batch_is_refused() -> None:
    core = CoreDriver()
    assert core.commit_wrong(0) == 2
    assert core.commit_wrong(1) == 2
    connected(core, "c").ping()


def test_sequence_numbers_count_from_one() -> None:
    """The driver checks that each batch has the next number."""
    core = busy_core()
    assert len(core.journal) > 10
    assert core.counters()["journal_bytes"] == sum(len(batch) for batch in core.journal)


def test_a_restored_core_behaves_like_the_first() -> None:
    core = busy_core()
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    for client in list(core.connections.values()):
        core.close(client)
    assert behaviour(restored) == behaviour(core)


def test_a_snapshot_behaves_like_the_journal() -> None:
    core = busy_core()
    pieces = core.snapshot()
    restored = CoreDriver(now_ms=core.now_ms, journal=pieces)
    for client in list(core.connections.values()):
        core.close(client)
    assert behaviour(restored) == behaviour(core)


def test_a_snapshot_of_a_snapshot_of_a_snapshot_holds_the_same() -> None:
    core = busy_core()
    for client in list(core.connections.values()):
        core.close(client)
    first = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    second = CoreDriver(now_ms=core.now_ms, journal=first.snapshot())
    third = CoreDriver(now_ms=core.now_ms, journal=second.snapshot())
    sizes = {sum(map(len, one.snapshot())) for one in (first, second, third)}
    assert len(sizes) == 1
    assert behaviour(third) == behaviour(core)


def test_a_journal_goes_on_after_a_snapshot() -> None:
    core = busy_core()
    pieces = core.snapshot()
    before = len(core.journal)
    late = connected(core, "late", properties=LONG)
    late.subscribe("late", qos=1)
    late.drop()
    connected(core, "p").publish("late", b"x", 1)
    restored = CoreDriver(now_ms=core.now_ms, journal=[*pieces, *core.journal[before:]])
    resume(restored, "late").expect_publish("late", b"x", 1)


def test_an_empty_snapshot_and_an_empty_journal() -> None:
    core = CoreDriver(journal=[])
    connected(core, "c").ping()
    restored = CoreDriver(journal=CoreDriver().snapshot())
    connected(restored, "c").ping()
    assert restored.counters()["sessions"] == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_journal_may_be_handed_over_in_pieces_of_any_size(size: int) -> None:
    core = busy_core()
    whole = b"".join(core.journal)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    one = CoreDriver(now_ms=core.now_ms, journal=[whole])
    other = CoreDriver(now_ms=core.now_ms, journal=pieces)
    assert behaviour(one) == behaviour(other)


def test_every_prefix_of_whole_batches_can_be_restored() -> None:
    """A crash can come after any commit."""
    core = busy_core()
    for count in range(len(core.journal) + 1):
        restored = CoreDriver(now_ms=core.now_ms, journal=core.journal[:count])
        connected(restored, "probe").ping()
        restored.snapshot()


def outcome(core: CoreDriver, journal: bytes) -> str:
    """What a damaged journal does: it is refused, or taken; a trap fails the test."""
    try:
        restored = CoreDriver(now_ms=core.now_ms, journal=[journal])
    except RestoreRefusedError:
        return "refused"
    # What a damaged value does to a client is not looked at: the host seals the journal.
    connection = restored.open()
    restored.send(connection, Connect("probe").encode() + Subscribe(1, [Filter("#", 2)]).encode())
    restored.send(connection, Connect("offline", clean_start=False).encode())
    restored.advance(10_000)
    restored.snapshot()
    return "taken"


def test_a_journal_that_is_cut_off_is_refused_or_ends_before_the_cut() -> None:
    core = busy_core()
    whole = b"".join(core.journal)
    ends = set()
    at = 0
    for batch in core.journal:
        at += len(batch)
        ends.add(at)
    chance = random.Random(5)
    cuts = sorted(chance.sample(range(len(whole)), min(250, len(whole))))
    outcomes = {cut: outcome(core, whole[:cut]) for cut in cuts}
    for cut, what in outcomes.items():
        if cut in ends or cut == 0:
            assert what == "taken"
    assert "refused" in outcomes.values(), "no cut was noticed"


def test_a_journal_with_a_flipped_bit_never_traps() -> None:
    core = busy_core()
    whole = b"".join(core.journal)
    chance = random.Random(6)
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        outcome(core, bytes(damaged))


def test_arbitrary_bytes_are_not_a_journal() -> None:
    core = CoreDriver()
    chance = random.Random(7)
    refused = 0
    for _ in range(200):
        junk = chance.randbytes(chance.choice([1, 3, 10, 100, 5000]))
        refused += outcome(core, junk) == "refused"
    assert refused > 150


def test_restore_is_only_possible_before_the_first_step() -> None:
    core = CoreDriver()
    batches = busy_core().journal
    with pytest.raises((RestoreRefusedError, CoreTrapError)) as caught:
        core._restore(batches)
    assert caught.type is RestoreRefusedError


def test_sessions_that_expired_while_the_core_was_down_are_gone() -> None:
    core = CoreDriver()
    client = connected(core, "c", properties=props(session_expiry_interval=60))
    client.subscribe("t", qos=1)
    client.drop()
    for wait_ms, present in ((30_000, True), (3_600_000, False)):
        restored = CoreDriver(now_ms=core.now_ms + wait_ms, journal=core.journal)
        restored.advance(2_000)
        again = FakeClient(restored, "c")
        assert again.connect(clean_start=False).session_present == present


def test_messages_that_expired_while_the_core_was_down_are_gone() -> None:
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = connected(core, "p")
    publisher.publish("t", b"short", 1, properties=props(message_expiry_interval=10))
    publisher.publish("t", b"long", 1, properties=props(message_expiry_interval=1000))
    restored = CoreDriver(now_ms=core.now_ms + 100_000, journal=core.journal)
    again = resume(restored, "c")
    packet = again.expect_publish("t", b"long", 1)
    assert packet.props.get(Property.MESSAGE_EXPIRY_INTERVAL) == 900
    again.expect_nothing()


def test_a_will_with_a_delay_survives_a_restart() -> None:
    core = CoreDriver()
    watcher = connected(core, "watcher", properties=LONG)
    watcher.subscribe("will", qos=1)
    will = Will("will", b"gone", 1, properties=props(will_delay_interval=30))
    connected(core, "c", will=will, properties=props(session_expiry_interval=1000)).drop()
    restored = CoreDriver(now_ms=core.now_ms + 1_000, journal=core.journal)
    again = resume(restored, "watcher")
    restored.advance(20_000)
    again.expect_nothing()
    restored.advance(12_000)
    again.expect_publish("will", b"gone", 1)


def test_packet_identifiers_survive_a_restart() -> None:
    """The client knows a QoS 2 message by its identifier: it must not change [MQTT-4.4.0-1]."""
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    for number in range(5):
        publisher.publish("t", b"%d" % number, 2)
    before = {p.payload: p.packet_id for p in client.received()}
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    again = resume(restored, "c")
    after = again.received()
    assert {p.payload: p.packet_id for p in after} == before
    assert all(p.dup for p in after)


def test_an_identifier_that_was_released_is_free_after_a_restart() -> None:
    """After PUBCOMP the client may use it for a new message [MQTT-4.3.3-12]."""
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    watcher = connected(core, "w", properties=LONG)
    watcher.subscribe("t", qos=2)
    client.send(Publish("t", b"one", 2, 5))
    client.expect(Pubrec)
    client.send(Pubrel(5))
    client.expect(Pubcomp)
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    again = resume(restored, "c")
    again.send(Publish("t", b"two", 2, 5))
    again.expect(Pubrec)
    assert [p.payload for p in resume(restored, "w").received()] == [b"one", b"two"]


def test_acknowledged_messages_do_not_come_back() -> None:
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    for number in range(6):
        publisher.publish("t", b"%d" % number, 1 + number % 2)
        client.expect_publish("t", b"%d" % number)
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    resume(restored, "c").expect_nothing()


def test_what_ended_does_not_come_back() -> None:
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    client.subscribe("a", "b", qos=1)
    client.unsubscribe("a")
    client.publish("kept", b"x", retain=True)
    client.publish("kept", b"", retain=True)
    gone = connected(core, "gone", properties=LONG)
    gone.subscribe("b", qos=1)
    gone.disconnect(properties=props(session_expiry_interval=0))
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    counters = restored.counters()
    probe = connected(restored, "probe")
    probe.subscribe("#")
    probe.expect_nothing()
    counters = restored.counters()
    assert (counters["sessions"], counters["subscriptions"], counters["retained"]) == (2, 2, 0)
    assert not resume(restored, "gone", present=False).inbox


def test_without_persistence_nothing_is_written_and_outputs_do_not_wait() -> None:
    core = CoreDriver(settings={Setting.PERSIST_SESSIONS: 0}, auto_commit=False)
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    client.publish("t", b"x", 2)
    client.expect_publish("t", b"x", 2)
    assert core.waiting is None
    assert not core.journal


def test_a_compacted_journal_is_not_larger_than_the_state() -> None:
    """A snapshot holds what is there now, not how it came to be."""
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    for number in range(500):
        client.publish("t", b"%d" % number, 1, retain=True)
    assert sum(map(len, core.snapshot())) < sum(map(len, core.journal)) / 20


def retained_and_delivered() -> CoreDriver:
    """A message that is retained, and whose only delivery is over."""
    core = CoreDriver()
    first = connected(core, "first", properties=LONG)
    first.subscribe("t", qos=1)
    connected(core, "p").publish("t", b"kept", 1, retain=True)
    first.expect_publish("t", b"kept", 1)
    return core


def test_a_retained_message_that_was_delivered_before_a_snapshot_is_delivered_after_it() -> None:
    """The snapshot knows it as retained only: its next delivery has to bring it along."""
    core = retained_and_delivered()
    pieces = core.snapshot()
    before = len(core.journal)
    late = connected(core, "late", properties=LONG)
    late.subscribe("t", qos=1)
    late.drop()
    restored = CoreDriver(now_ms=core.now_ms, journal=[*pieces, *core.journal[before:]])
    assert [p.payload for p in resume(restored, "late").received()] == [b"kept"]


def test_a_retained_message_is_delivered_again_after_all_its_deliveries_are_over() -> None:
    core = retained_and_delivered()
    late = connected(core, "late", properties=LONG)
    late.subscribe("t", qos=1)
    late.drop()
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    assert [p.payload for p in resume(restored, "late").received()] == [b"kept"]


def test_a_session_that_gives_its_expiry_up_does_not_keep_messages_in_the_journal() -> None:
    """Its deliveries are in no snapshot, so that they may not be what a later one counts on."""
    core = CoreDriver()
    publisher = connected(core, "p")
    will = Will("w", b"gone", 1)
    for wanted in (None, will):
        keeper = connected(core, "keeper", properties=LONG)
        keeper.subscribe("t", qos=1)
        keeper.drop()
        publisher.publish("t", b"kept", 1, retain=True)
        back = FakeClient(core, "keeper")
        back.send(Connect("keeper", clean_start=False, will=wanted).encode())
        back.expect(Connack)
        pieces = core.snapshot()
        before = len(core.journal)
        late = connected(core, "late", properties=LONG)
        late.subscribe("t", qos=1)
        late.drop()
        restored = CoreDriver(now_ms=core.now_ms, journal=[*pieces, *core.journal[before:]])
        assert [p.payload for p in resume(restored, "late").received()] == [b"kept"]
        connected(core, "late").disconnect()
        back.drop()


def test_reading_a_journal_back_takes_no_more_memory_than_writing_it() -> None:
    """It may be many times as long as what is alive in it."""
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    payload = bytes(10_000)
    for _ in range(300):
        publisher.publish("t", payload, 1)
        client.expect_publish("t", payload, 1)
    for _ in range(20):
        waiting = connected(core, "w", properties=LONG)
        waiting.subscribe("t", qos=1)
        waiting.drop()
        for _ in range(10):
            publisher.publish("t", payload, 1)
            client.expect_publish("t", payload, 1)
        connected(core, "w").disconnect()
    assert sum(map(len, core.journal)) > 5_000_000
    restored = CoreDriver(now_ms=core.now_ms, journal=core.journal)
    assert (
        restored.counters()["heap_bytes_maximum"] < core.counters()["heap_bytes_maximum"] + 500_000
    )
    assert restored.counters()["stored_messages"] == 0


def test_a_snapshot_comes_in_pieces_however_long_a_queue_is() -> None:
    """A host takes a piece at a time, and the core has room for one."""
    core = CoreDriver()
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    for number in range(300):
        publisher.publish("t", b"%d" % number + bytes(20_000), 2)
    pieces = core.snapshot()
    assert len(pieces) > 4
    assert max(map(len, pieces)) < (1 << 20) + 21_000
    restored = CoreDriver(now_ms=core.now_ms, journal=pieces)
    numbers = [int(p.payload[:3].rstrip(b"\0")) for p in resume(restored, "c").received()]
    assert numbers == list(range(300))


def test_random_traffic_can_be_restored_from_a_snapshot_and_what_came_after() -> None:
    """Whatever a snapshot comes between: what follows it stands on what is in it."""
    for seed in range(25):
        chance = random.Random(seed)
        core = CoreDriver()
        publisher = connected(core, "p", properties=LONG)
        kept: list[bytes] = []
        since = 0
        for _ in range(60):
            name = chance.choice("abc")
            match chance.randrange(6):
                case 0:
                    kept, since = core.snapshot(), len(core.journal)
                case 1:
                    publisher.publish(chance.choice("xy"), b"m", 1 + chance.randrange(2))
                case 2:
                    publisher.publish(chance.choice("xy"), b"r", 2, retain=True)
                case 3:
                    publisher.publish(chance.choice("xy"), b"", 0, retain=True)
                case _:
                    expiry = chance.choice([0, 0xFFFFFFFF])
                    client = FakeClient(core, name)
                    client.connect(
                        clean_start=chance.random() < 0.3,
                        properties=props(session_expiry_interval=expiry),
                    )
                    client.subscribe(chance.choice("xy+"), qos=chance.randrange(3))
                    if chance.random() < 0.5:
                        client.received()
                    if chance.random() < 0.5:
                        client.drop()
        restored = CoreDriver(now_ms=core.now_ms, journal=[*kept, *core.journal[since:]])
        for connection in list(core.connections.values()):
            core.close(connection)
        for name in ("queued", "inflight", "retained", "subscriptions", "sessions"):
            assert restored.counters()[name] == core.counters()[name], (seed, name)


def test_a_clock_that_was_put_back_prolongs_no_session_and_no_will() -> None:
    core = CoreDriver()
    watcher = connected(core, "watcher", properties=LONG)
    watcher.subscribe("will", qos=1)
    will = Will("will", b"gone", 1, properties=props(will_delay_interval=30))
    connected(core, "c", will=will, properties=props(session_expiry_interval=60)).drop()
    restored = CoreDriver(now_ms=core.now_ms - 365 * 86_400_000, journal=core.journal)
    again = resume(restored, "watcher")
    restored.advance(31_000)
    again.expect_publish("will", b"gone", 1)
    assert restored.counters()["sessions"] == 2
    restored.advance(31_000)
    assert restored.counters()["sessions"] == 1


def test_whether_there_is_a_journal_is_decided_at_the_start() -> None:
    """A journal with a gap could not be read back."""
    core = CoreDriver(settings={Setting.PERSIST_SESSIONS: 0})
    client = connected(core, "c", properties=LONG)
    client.publish("t", b"x", 1, retain=True)
    core.settings({Setting.PERSIST_SESSIONS: 1})
    client.publish("t", b"", 1, retain=True)
    CoreDriver(now_ms=core.now_ms, journal=core.journal)
    other = CoreDriver()
    client = connected(other, "c", properties=LONG)
    other.settings({Setting.PERSIST_SESSIONS: 0})
    client.publish("t", b"x", 1, retain=True)
    assert CoreDriver(now_ms=core.now_ms, journal=other.journal).counters()["retained"] == 1
    assert other.snapshot()
