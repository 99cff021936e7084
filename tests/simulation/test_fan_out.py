"""A message of QoS 2 for more receivers than one turn serves: each gets it, and nobody twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from avow.testing.core_abi import Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
)

TOPIC = "to/all"
# Of the 200,000 units of a turn such a message costs 2,000 for each receiver.
PAYLOAD = b"p" * 1_000_000
RECEIVERS = 400
GROUPS = 400
# One client may have all of it waiting.
SETTINGS = {Setting.QUEUED_BYTES_MAX: 1 << 30}


def crowd(core: CoreDriver, *filters: Filter, count: int = RECEIVERS) -> list[str]:
    """So many durable sessions that subscribe and are away."""
    names = [f"away-{number:03}" for number in range(count)]
    packet = Subscribe(1, list(filters) or [Filter(TOPIC, 2)]).encode(4)
    with core.batch():
        connections = [core.open() for _ in names]
        for connection, name in zip(connections, names, strict=True):
            core.send(connection, Connect(name, version=4, clean_start=False).encode() + packet)
    with core.batch():
        for connection in connections:
            core.close(connection)
    return names


def resume(core: CoreDriver, name: str) -> FakeClient:
    client = FakeClient(core, name, version=4)
    client.connect(clean_start=False)
    return client


def taken(core: CoreDriver, names: list[str]) -> list[int]:
    """How many of the message each gets, and acknowledges, when it comes back."""
    counts = []
    for name in names:
        client = resume(core, name)
        counts.append(0)
        while client.pending:
            packet = client.expect(Publish)
            assert packet.payload == PAYLOAD
            client.acknowledge(packet)
            counts[-1] += 1
        client.drop()
    return counts


def begun(core: CoreDriver) -> FakeClient:
    """The first step of giving: some have it, others not, and the publisher has no answer."""
    source = resume(core, "publisher")
    core.one_step = True
    source.send(Publish(TOPIC, PAYLOAD, 2, 7))
    assert 0 < core.counters()["queued"] < RECEIVERS
    source.expect_nothing()
    return source


def finish(core: CoreDriver) -> None:
    core.one_step = False
    core.turn()


def complete(source: FakeClient) -> None:
    assert source.expect(Pubrec).packet_id == 7
    source.send(Pubrel(7))
    assert source.expect(Pubcomp).packet_id == 7


def test_it_takes_several_steps() -> None:
    core = CoreDriver()
    names = crowd(core)
    source = begun(core)
    finish(core)
    complete(source)
    assert core.counters()["queued"] == RECEIVERS
    assert taken(core, names) == [1] * RECEIVERS


@pytest.mark.parametrize("persist", [0, 1])
def test_the_publisher_comes_back_in_between(persist: int) -> None:
    """Its repetition is known [MQTT-4.3.3-10], and the others get the message nevertheless."""
    core = CoreDriver(settings={Setting.PERSIST_SESSIONS: persist})
    names = crowd(core)
    source = begun(core)
    source.drop()
    with core.batch():
        source.open()
        source.send(source.connect_packet(clean_start=False))
        source.send(Publish(TOPIC, PAYLOAD, 2, 7, dup=True))
    source.take(Connack)
    assert core.counters()["queued"] < RECEIVERS
    finish(core)
    complete(source)
    assert core.counters()["queued"] == RECEIVERS
    assert taken(core, names) == [1] * RECEIVERS


Restart = Callable[[CoreDriver], CoreDriver]


def by_journal(core: CoreDriver) -> CoreDriver:
    return CoreDriver(now_ms=core.now_ms, journal=core.journal, settings=SETTINGS)


def by_snapshot(core: CoreDriver) -> CoreDriver:
    return CoreDriver(now_ms=core.now_ms, journal=core.snapshot(), settings=SETTINGS)


def by_snapshot_of_the_journal(core: CoreDriver) -> CoreDriver:
    """The first step after a restart is a part of what is left, and then there is another one."""
    return by_snapshot(by_journal(core))


restarts = pytest.mark.parametrize("restart", [by_journal, by_snapshot, by_snapshot_of_the_journal])


@restarts
def test_a_restart_goes_on_with_the_others(restart: Restart) -> None:
    core = CoreDriver()
    names = crowd(core)
    begun(core)
    after = restart(core)
    source = resume(after, "publisher")
    source.send(Publish(TOPIC, PAYLOAD, 2, 7, dup=True))
    complete(source)
    assert after.counters()["queued"] == RECEIVERS
    assert taken(after, names) == [1] * RECEIVERS
    # It is over for the journal, too.
    assert taken(by_snapshot(after), names) == [0] * RECEIVERS


@restarts
def test_who_has_acknowledged_it_before_a_restart_gets_no_second_one(restart: Restart) -> None:
    core = CoreDriver()
    names = crowd(core)
    begun(core)
    quick = [FakeClient(core, name, version=4, open_now=False) for name in names[-20:]]
    with core.batch():
        for client in quick:
            client.open()
            client.send(client.connect_packet(clean_start=False))
    with core.batch():
        for client in quick:
            client.take(Connack)
            identifier = client.expect(Publish).packet_id
            assert identifier is not None
            client.send(Pubrec(identifier), Pubcomp(identifier))
    assert core.counters()["queued"] < RECEIVERS - len(quick)
    after = restart(core)
    assert after.counters()["queued"] == RECEIVERS - len(quick)
    assert taken(after, names) == [1] * (RECEIVERS - len(quick)) + [0] * len(quick)


@restarts
def test_each_shared_subscription_gets_it_once(restart: Restart) -> None:
    core = CoreDriver(settings=SETTINGS)
    groups = [Filter(f"$share/group-{number}/{TOPIC}", 2) for number in range(GROUPS)]
    names = crowd(core, *groups, count=2)
    source = resume(core, "publisher")
    core.one_step = True
    source.send(Publish(TOPIC, PAYLOAD, 2, 7))
    assert 0 < core.counters()["queued"] < GROUPS
    after = restart(core)
    assert after.counters()["queued"] == GROUPS
    assert sum(taken(after, names)) == GROUPS


@pytest.mark.parametrize("qos", [0, 1])
def test_memory_that_runs_out_in_between_gives_nobody_a_second_one(qos: int) -> None:
    """What the fan-out still looks at is put aside, and that takes no memory: the walk once began
    anew where there was none."""
    core = CoreDriver(settings={Setting.PERSIST_SESSIONS: 0})
    names = crowd(core, Filter(TOPIC, qos)) if qos else []
    readers = [] if qos else [connected(core, f"reader-{number}") for number in range(RECEIVERS)]
    for reader in readers:
        reader.subscribe(TOPIC)
    for number in range(10):
        source = connected(core, f"filler-{number}")
        source.publish(f"filler/{number}", PAYLOAD, retain=True)
    leaver = connected(core, "leaver")
    leaver.subscribe("somewhere/else", TOPIC)
    source = connected(core, "publisher")
    core.one_step = True
    source.send(Publish(TOPIC, PAYLOAD, qos, 7 if qos else None))
    source.expect_nothing()
    with core.batch():
        core.settings({Setting.MEMORY_BUDGET_BYTES: 8 << 20})
        leaver.drop()
        core.settings({Setting.MEMORY_BUDGET_BYTES: 1 << 30})
    finish(core)
    if qos:
        assert source.expect(Puback).code == 0
        assert taken(core, names) == [1] * RECEIVERS
    else:
        assert [len(reader.received()) for reader in readers] == [1] * RECEIVERS
