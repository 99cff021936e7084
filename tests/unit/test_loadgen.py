"""The load generator: it must count what a broker loses, doubles or reorders, exactly."""

from __future__ import annotations

import asyncio
import ctypes
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.brokers import make_certificate
from bench.loadgen.library import (
    Account,
    Generator,
    LoadgenError,
    Role,
    account,
    bucket_middle_ns,
    build,
    load,
    percentile_ns,
)
from bench.loadgen.worker import Job, TlsDialer

HOST = "127.0.0.1"
Forward = Callable[[int, bytes], list[bytes]]
"""What a broker sends to subscribers for its n-th PUBLISH."""


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return load(build())


class TinyBroker:
    """Just enough MQTT 3.1.1 for the generator: QoS 0 and 1, exact topics, faults on demand."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._subscribers: dict[bytes, list[asyncio.StreamWriter]] = {}
        self.published = 0
        self.sent = 0
        self.handlers: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handlers.add(task)
        try:
            while True:
                header, body = await _read_packet(reader)
                writer.write(self._answer(header, body, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.handlers.discard(task)
            writer.close()

    def _answer(self, header: int, body: bytes, writer: asyncio.StreamWriter) -> bytes:
        match header >> 4:
            case 1:
                return b"\x20\x02\x00\x00"
            case 8:
                length = int.from_bytes(body[2:4], "big")
                self._subscribers.setdefault(body[4 : 4 + length], []).append(writer)
                return b"\x90\x03" + body[:2] + body[-1:]
            case 3:
                return self._route(header, body)
            case _:
                return b""  # PUBACK of a subscriber

    def _route(self, header: int, body: bytes) -> bytes:
        packet = bytes((header, len(body))) + body
        length = int.from_bytes(body[:2], "big")
        for copy in self._forward(self.published, packet):
            self.sent += 1
            for subscriber in self._subscribers.get(body[2 : 2 + length], []):
                subscriber.write(copy)
        self.published += 1
        return b"\x40\x02" + body[2 + length : 4 + length] if header & 2 else b""


async def _read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    header, length = await reader.readexactly(2)
    assert length < 128, "the tests keep packets short"
    return header, await reader.readexactly(length)


@contextmanager
def running(broker: TinyBroker, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The broker in a thread of its own; its port."""
    started: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def body() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(broker.serve, HOST, 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        started.set_result((port, asyncio.get_running_loop(), stop))
        await stop.wait()
        server.close()
        for task in list(broker.handlers):
            task.cancel()
        await asyncio.gather(*broker.handlers)

    thread = threading.Thread(target=lambda: asyncio.run(body()))
    thread.start()
    port, loop, stop = started.result(timeout=10)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)


def run_load(
    library: ctypes.CDLL,
    forward: Forward,
    *,
    subscribers: int = 1,
    window: int = 50,
    seconds: float = 0.2,
    qos: int = 0,
    rate: float = 0.0,
) -> tuple[TinyBroker, dict[str, int]]:
    broker = TinyBroker(forward)
    with (
        running(broker) as port,
        Generator(
            library,
            host=HOST,
            port=port,
            capacity=subscribers + 1,
            groups=1,
            window=window,
            qos=qos,
            rate=rate,
            payload_bytes=32,
        ) as generator,
    ):
        for _ in range(subscribers):
            generator.open(Role.SUBSCRIBER)
        generator.open(Role.PUBLISHER)
        generator.establish(timeout_s=10)
        generator.run(seconds)
        published = generator.report()["published"]
        recorded = sum(generator.histogram())
        generator.drain(quiet_s=0.5)
        result = generator.report()
    assert published == broker.published > 0
    assert 0 < recorded <= result["received"]
    return broker, result


def faults(result: dict[str, int]) -> Counter[str]:
    return Counter({n: result[n] for n in ("lost", "duplicates", "disordered", "misrouted")})


@pytest.mark.parametrize("qos", [0, 1])
def test_an_honest_broker_has_no_faults(library: ctypes.CDLL, qos: int) -> None:
    broker, result = run_load(library, lambda _, packet: [packet], subscribers=3, qos=qos)
    assert faults(result).total() == 0
    assert result["received"] == 3 * broker.published
    assert result["acknowledged"] == (broker.published if qos else 0)
    assert result["stalls"] == 0


def test_tls_counts_as_well(library: ctypes.CDLL, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    broker = TinyBroker(lambda n, packet: [] if n % 10 == 9 else [packet])
    with (
        running(broker, context) as port,
        Generator(
            library, host=HOST, port=port, capacity=3, groups=1, window=200, with_tls=True
        ) as generator,
    ):
        dialer = TlsDialer(Job(port=port, broker_pid=0, tls_ca=str(certificate.ca)))
        for role in (Role.SUBSCRIBER, Role.SUBSCRIBER, Role.PUBLISHER):
            generator.adopt(*dialer.dial(), role)
        generator.establish(timeout_s=10)
        generator.run(0.3)
        generator.drain(quiet_s=0.5)
        result = generator.report()
    dropped = broker.published - broker.sent
    assert dropped > 0
    assert faults(result) == Counter(lost=2 * dropped)


def test_a_broker_that_drops_is_found_out(library: ctypes.CDLL) -> None:
    broker, result = run_load(
        library, lambda n, packet: [] if n % 10 == 9 else [packet], subscribers=2
    )
    dropped = broker.published - broker.sent
    assert dropped > 0
    assert faults(result) == Counter(lost=2 * dropped)


def test_a_loop_of_one_goes_on_after_a_loss(library: ctypes.CDLL) -> None:
    # Nothing follows the lost message that could show the gap: only time does.
    broker, result = run_load(
        library, lambda n, packet: [] if n == 5 else [packet], window=1, seconds=1.5
    )
    assert faults(result) == Counter(lost=1)
    assert result["stalls"] == 1
    assert broker.published > 10


def test_an_acknowledged_message_may_be_lost_as_well(library: ctypes.CDLL) -> None:
    broker, result = run_load(
        library, lambda n, packet: [] if n % 7 == 3 else [packet], qos=1, window=20
    )
    assert faults(result) == Counter(lost=broker.published - broker.sent)
    assert result["acknowledged"] == broker.published


def test_a_broker_that_doubles_is_found_out(library: ctypes.CDLL) -> None:
    broker, result = run_load(
        library, lambda n, packet: [packet, packet] if n % 4 == 0 else [packet]
    )
    assert faults(result) == Counter(duplicates=broker.sent - broker.published)
    assert result["duplicates"] > 0


def test_a_broker_that_swaps_is_found_out(library: ctypes.CDLL) -> None:
    held: list[bytes] = []

    def swap(number: int, packet: bytes) -> list[bytes]:
        if number % 10 == 0:
            held.append(packet)
            return []
        return [packet, held.pop()] if held else [packet]

    broker, result = run_load(library, swap)
    # The last one may still be held back when the run ends.
    assert faults(result) == Counter(
        disordered=result["disordered"], lost=broker.published - broker.sent
    )
    assert result["disordered"] == (broker.published + 9) // 10 - len(held)


def test_an_open_loop_keeps_its_rate(library: ctypes.CDLL) -> None:
    broker, result = run_load(library, lambda _, packet: [packet], rate=2000, seconds=0.5)
    # 1000 were due; a machine with other work may not get to the last of them.
    assert 800 <= broker.published <= 1000
    assert faults(result).total() == 0


def test_a_refused_connection_is_an_error(library: ctypes.CDLL) -> None:
    class Refusing(TinyBroker):
        def _answer(self, header: int, body: bytes, writer: asyncio.StreamWriter) -> bytes:
            return b"\x20\x02\x00\x05"

    with (
        running(Refusing(lambda _, packet: [packet])) as port,
        Generator(library, host=HOST, port=port, capacity=1) as generator,
    ):
        generator.open(Role.IDLE)
        with pytest.raises(LoadgenError, match="CONNACK refuses: 0005"):
            generator.establish(timeout_s=10)


@pytest.mark.parametrize(
    ("numbers", "published", "expected"),
    [
        ([], 0, Account(0, 0, 0, 0)),
        ([], 3, Account(0, 0, 0, 3)),
        ([0, 1, 2], 3, Account(3, 0, 0, 0)),
        ([0, 1, 2], 5, Account(3, 0, 0, 2)),
        ([0, 3], 4, Account(2, 0, 0, 2)),
        ([0, 3, 1], 4, Account(3, 0, 1, 1)),
        ([0, 3, 2, 2], 4, Account(4, 1, 1, 1)),
        ([0, 9, 5, 4, 6], 10, Account(5, 0, 3, 5)),
        ([0, 0], 1, Account(2, 1, 0, 0)),
    ],
)
def test_accounting(
    library: ctypes.CDLL, numbers: list[int], published: int, expected: Account
) -> None:
    assert account(library, numbers, published) == expected


@given(st.lists(st.integers(0, 60), max_size=200))
def test_accounting_agrees_with_a_set(numbers: list[int]) -> None:
    seen: set[int] = set()
    highest, duplicates, disordered = -1, 0, 0
    for number in numbers:
        if number in seen:
            duplicates += 1
        elif number < highest:
            disordered += 1
        seen.add(number)
        highest = max(highest, number)
    expected = Account(len(numbers), duplicates, disordered, 61 - len(seen))
    assert account(load(build()), numbers, 61) == expected


@given(st.integers(0, 2**63))
def test_a_bucket_is_less_than_two_percent_wide(value_ns: int) -> None:
    bucket = load(build()).loadgen_bucket(value_ns)
    assert bucket_middle_ns(bucket) == pytest.approx(value_ns, rel=0.01)


def test_percentiles() -> None:
    buckets = [0] * 100
    buckets[10], buckets[20], buckets[99] = 90, 9, 1
    assert percentile_ns(buckets, 0.5) == 10
    assert percentile_ns(buckets, 0.9) == 10
    assert percentile_ns(buckets, 0.99) == 20
    assert percentile_ns(buckets, 0.999) == 99
    assert percentile_ns([0] * 100, 0.5) is None


def test_the_library_is_built_once(tmp_path: Path) -> None:
    first = build(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
