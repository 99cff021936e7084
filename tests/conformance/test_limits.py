"""Bounds of the core and what happens at them: nothing grows without end, others never notice."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import CommandFailed, Drained, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connack, Disconnect, Pingreq, Puback, Publish, Subscribe, props

LONG = props(session_expiry_interval=1000)
MEGABYTE = 1 << 20


def test_a_session_queues_no_more_messages_than_allowed() -> None:
    core = CoreDriver(settings={Setting.QUEUED_MESSAGES_MAX: 10})
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = connected(core, "p")
    for number in range(50):
        publisher.publish("t", b"%02d" % number, 1)
    client.reconnect(properties=LONG)
    got = [p.payload for p in client.received()]
    assert len(got) == 10
    assert got == sorted(got)
    assert core.counters()["publish_dropped"] == 40
    publisher.publish("t", b"next", 1)
    client.expect_publish("t", b"next")


def test_a_session_queues_no_more_bytes_than_allowed() -> None:
    core = CoreDriver(settings={Setting.QUEUED_BYTES_MAX: MEGABYTE})
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = connected(core, "p")
    base = core.heap_bytes
    for _ in range(100):
        publisher.publish("t", bytes(100_000), 1)
    assert core.heap_bytes - base < 2 * MEGABYTE
    client.reconnect(properties=LONG)
    got = client.received()
    assert 5 <= len(got) <= 11


def test_no_more_messages_are_in_flight_than_allowed() -> None:
    core = CoreDriver(settings={Setting.INFLIGHT_MAX: 3})
    client = connected(core, "c")
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    for number in range(10):
        publisher.publish("t", b"%d" % number, 1)
    got = client.received()
    assert [p.payload for p in got] == [b"0", b"1", b"2"]
    client.acknowledge(got[0])
    client.expect_publish("t", b"3", acknowledge=False)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_reader_that_takes_nothing_neither_grows_nor_delays_others(qos: int) -> None:
    core = CoreDriver(settings={Setting.QUEUED_BYTES_MAX: MEGABYTE})
    slow = connected(core, "slow")
    fast = connected(core, "fast")
    for client in (slow, fast):
        client.subscribe("t", qos=qos)
    core.open_window(slow.connection, 0)
    publisher = connected(core, "p")
    base = core.heap_bytes
    for _ in range(200):
        publisher.publish("t", bytes(50_000), qos)
        fast.expect_publish("t", bytes(50_000))
    assert core.heap_bytes - base < 4 * MEGABYTE
    assert core.counters()["publish_dropped"] > 0 or slow.closed
    fast.ping()


def test_a_slow_reader_gets_everything_when_it_is_within_its_bounds(core: CoreDriver) -> None:
    slow = connected(core, "slow")
    slow.subscribe("t", qos=1)
    core.open_window(slow.connection, 0)
    publisher = connected(core, "p")
    for number in range(100):
        publisher.publish("t", b"%d" % number * 50, 1)
    got: list[Publish] = []
    for _ in range(10_000):
        core.open_window(slow.connection, 97)
        got += slow.received()
        if len(got) == 100:
            break
    assert [p.payload for p in got] == [b"%d" % number * 50 for number in range(100)]


def test_a_disconnect_reaches_a_slow_reader_before_the_end(core: CoreDriver) -> None:
    """A CLOSE that was BLOCKED is offered again with its bytes."""
    slow = connected(core, "slow")
    slow.subscribe("t")
    core.open_window(slow.connection, 0)
    connected(core, "p").publish("t", bytes(300))
    core.disconnect(slow.connection, 0x98)
    for _ in range(1000):
        if not slow.connection.alive:
            break
        core.open_window(slow.connection, 7)
    slow.expect_publish("t", bytes(300))
    slow.expect_close(0x98)


def test_retained_messages_have_a_bound() -> None:
    core = CoreDriver(settings={Setting.RETAINED_MESSAGES_MAX: 3})
    client = connected(core, "c")
    for number in range(3):
        client.publish(f"t/{number}", b"x", 1, retain=True)
    client.publish("t/3", b"x", 1, retain=True, code=0x97)
    client.publish("t/0", b"replaced", 1, retain=True)
    client.publish("t/1", b"", 1, retain=True)
    client.publish("t/3", b"x", 1, retain=True)
    assert core.counters()["retained"] == 3
    client.ping()


def test_memory_has_a_bound_and_the_broker_goes_on() -> None:
    core = CoreDriver(
        settings={
            Setting.MEMORY_BUDGET_BYTES: 32 * MEGABYTE,
            Setting.QUEUED_BYTES_MAX: 1 << 30,
        }
    )
    client = connected(core, "c")
    codes = []
    for number in range(100):
        packet_id = number + 1
        client.send(Publish(f"t/{number}", bytes(900_000), 1, packet_id, retain=True))
        client.pump()
        if client.closed:
            break
        codes.append(client.expect(Puback).code)
    assert 0x97 in codes or client.closed
    assert core.heap_bytes <= 32 * MEGABYTE
    other = connected(core, "other")
    other.ping()
    other.subscribe("small")
    other.publish("small", b"x", 1)
    other.expect_publish("small", b"x")
    for number in range(100):
        other.send(Publish(f"t/{number}", b"", retain=True))
    assert core.heap_bytes < 8 * MEGABYTE
    other.publish("again", bytes(900_000), 1, retain=True)


def test_memory_returns_when_clients_and_sessions_are_gone(core: CoreDriver) -> None:
    def busy(number: int) -> None:
        clients = [connected(core, f"c{number}-{n}", properties=LONG) for n in range(20)]
        for client in clients:
            client.subscribe("t/#", "+/x", f"own/{client.client_id}", "$share/g/t/1", qos=2)
        for client in clients:
            client.send(Publish("t/1", bytes(1000), 2, 1))
            client.send(Subscribe(2, []) if client is clients[0] else Pingreq())
        for client in clients:
            client.drop()
        core.advance(2_000_000)

    busy(0)
    base = core.heap_bytes
    for number in range(1, 6):
        busy(number)
    counters = core.counters()
    assert (counters["sessions"], counters["subscriptions"], counters["connections_open"]) == (
        0,
        0,
        0,
    )
    assert core.heap_bytes <= base + 4096


def test_many_connections_open_and_close(core: CoreDriver) -> None:
    connections = [core.open() for _ in range(3000)]
    assert core.counters()["connections_open"] == 3000
    with core.batch():
        for connection in connections:
            core.close(connection)
    assert core.counters()["connections_open"] == 0


def test_a_sender_that_is_paused_loses_nothing(core: CoreDriver) -> None:
    """Whether and when the core says PAUSE is its affair; the driver keeps the bytes back."""
    core.settings({Setting.RECEIVE_MAXIMUM: 5000})
    subscriber = connected(core, "s")
    subscriber.subscribe("t", qos=1)
    publisher = connected(core, "p")
    core.open_window(publisher.connection, 0)  # its PUBACKs are not taken
    for number in range(2000):
        publisher.send(Publish("t", bytes(500), 1, number % 60000 + 1))
        for packet in subscriber.received():
            subscriber.acknowledge(packet)
    core.open_window(publisher.connection, None)
    for packet in subscriber.received():
        subscriber.acknowledge(packet)
    publisher.pump()
    acknowledged = [p for p in publisher.inbox if isinstance(p, Puback)]
    assert len(acknowledged) == 2000
    assert core.counters()["publish_received"] == 2000


def test_drain_says_goodbye_and_refuses_the_next(core: CoreDriver) -> None:
    clients = [connected(core, f"c{version}", version=version) for version in (4, 5)]
    core.drain()
    for client in clients:
        client.expect_close(0x8B)
    assert [e for e in core.take_events() if isinstance(e, Drained)]
    late = FakeClient(core, "late")
    late.send(late.connect_packet())
    late.pump()
    assert late.closed
    assert all(isinstance(p, Connack) and p.code in (0x88, 0x89) for p in late.inbox)


def test_drain_of_an_empty_broker_is_reported_too(core: CoreDriver) -> None:
    core.drain()
    assert [e for e in core.take_events() if isinstance(e, Drained)]


def test_drain_waits_for_a_slow_reader(core: CoreDriver) -> None:
    slow = connected(core, "slow")
    core.open_window(slow.connection, 0)
    core.drain()
    assert not [e for e in core.take_events() if isinstance(e, Drained)]
    core.open_window(slow.connection, None)
    packet = slow.expect(Disconnect)
    assert packet.code == 0x8B
    assert [e for e in core.take_events() if isinstance(e, Drained)]


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x00",
        b"\x63",
        b"\x01\x01",
        b"\x01\x01\x00\x00",
        b"\x01\xff\xff" + bytes(8),
        b"\x03",
        b"\x03" + bytes(9),
        b"\x04\x00\x00\x00",
        b"\x04\xff\xff\xff\xff\x98",
        b"\x06\xff\xff",
        b"\x07\x01\x00",
        b"\x05extra",
    ],
)
def test_a_malformed_or_impossible_command_is_reported(core: CoreDriver, blob: bytes) -> None:
    core.take_events()
    core.command(blob)
    assert [e for e in core.take_events() if isinstance(e, CommandFailed)]
    connected(core, "c").ping()
