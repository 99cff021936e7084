"""How long the core takes for a publish among a million subscriptions, without any socket.

    python -m bench.matching [--json] [--subscriptions 1000000] [--clients 10000]

Ten thousand clients hold a hundred filters each, eight of ten without wildcards, one with `+` and
one with `#`. The publishes of one call each have a topic of their own, picked at random, that one
subscription matches: nothing is answered from a cache. What is timed is `step`, so parsing, routing
and the output queue are in the figure. Then the subscribers leave (their sessions stay), and the
same is timed again: a QoS 0 publish finds the one subscription that matches and has nobody to send
to, so `us_per_match` is parsing and matching alone. For comparison: one topic over and over, and a
core that holds a single subscription, which shows what a publish costs without the search.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from avow.errors import AvowError
from avow.testing.core_abi import Setting
from avow.testing.core_driver import Connection, CoreDriver
from avow.testing.fake_client import FakeClient
from avow.testing.mqtt import Connect, Filter, Publish, Subscribe

_VERSION = 4
_PAYLOAD = b"x" * 16
# Publishes of one call: as many as the pump would hand over at high load.
_BATCH = 1000


class MatchingError(Exception):
    """The core routed something else than was expected."""


@dataclass(frozen=True, slots=True)
class Matching:
    """Microseconds a publish."""

    subscriptions: int
    clients: int
    publishes: int
    us_per_match: float
    us_per_publish: float
    us_per_publish_cached: float
    us_per_publish_single: float
    heap_bytes_per_subscription: float
    build_s: float


class _Stopwatch:
    """Stands in for an export of the core and adds up the CPU time spent in it."""

    def __init__(self, function: Callable[..., int]) -> None:
        self._function = function
        self.elapsed_ns = 0

    def __call__(self, *arguments: int) -> int:
        start_ns = time.thread_time_ns()
        result = self._function(*arguments)
        self.elapsed_ns += time.thread_time_ns() - start_ns
        return result


def _filter(client: int, number: int) -> str:
    last = {0: "+", 1: "#"}.get(number % 10, "state")
    return f"site/{client:05}/device/{number:03}/{last}"


def _topic(client: int, number: int) -> str:
    return f"site/{client:05}/device/{number:03}/state"


class Population:
    """A core with clients that hold subscriptions, and one more client that publishes."""

    def __init__(self, clients: int, subscriptions: int) -> None:
        start_s = time.perf_counter()
        self.driver = CoreDriver(
            settings={Setting.MEMORY_BUDGET_BYTES: 3 * 2**30, Setting.PERSIST_SESSIONS: 0}
        )
        self._each = subscriptions // clients
        empty_bytes = self.driver.heap_bytes
        self.clients = [self._client(index) for index in range(clients)]
        self.publisher = self._connect("publisher")
        self.subscriptions = clients * self._each
        self.heap_bytes = self.driver.heap_bytes - empty_bytes
        self.build_s = time.perf_counter() - start_s

    def _connect(self, name: str) -> Connection:
        connection = self.driver.open()
        self.driver.send(connection, Connect(name, version=_VERSION, clean_start=False).encode())
        if connection.read()[:1] != b"\x20":
            raise MatchingError(f"client {name} was not admitted")
        return connection

    def _client(self, index: int) -> Connection:
        connection = self._connect(f"client-{index}")
        filters = [Filter(_filter(index, number)) for number in range(self._each)]
        self.driver.send(connection, Subscribe(1, filters).encode(_VERSION))
        if not connection.read().endswith(bytes(self._each)):
            raise MatchingError(f"client {index} could not subscribe")
        return connection

    def pick(self, count: int, seed: int) -> list[tuple[int, int]]:
        """Distinct subscriptions as (client, number)."""
        chosen = random.Random(seed).sample(range(self.subscriptions), count)
        return [divmod(index, self._each) for index in chosen]

    def us_per_publish(self, chosen: Sequence[tuple[int, int]]) -> float:
        """Publishes to each, in batches; every one must come out once, at its subscriber."""
        inner = self.driver._functions["step"]
        watch = _Stopwatch(inner)
        self.driver._functions["step"] = watch  # type: ignore[assignment]
        try:
            for batch in _batches(chosen):
                self._publish(batch)
        finally:
            self.driver._functions["step"] = inner
        return watch.elapsed_ns / 1000 / len(chosen)

    def us_per_match(self, chosen: Sequence[tuple[int, int]]) -> float:
        """Publishes that match a session whose client has left: nothing may come out."""
        for connection in self.clients:
            self.driver.close(connection)
        self._check_matches(chosen[:1000])
        inner = self.driver._functions["step"]
        watch = _Stopwatch(inner)
        self.driver._functions["step"] = watch  # type: ignore[assignment]
        sent = self.driver.counters()["publish_sent"]
        try:
            for batch in _batches(chosen):
                packets = [Publish(_topic(*where), _PAYLOAD).encode(_VERSION) for where in batch]
                self.driver.send(self.publisher, b"".join(packets))
        finally:
            self.driver._functions["step"] = inner
        if self.driver.counters()["publish_sent"] != sent:
            raise MatchingError("a message went out although every subscriber has left")
        return watch.elapsed_ns / 1000 / len(chosen)

    def _check_matches(self, chosen: Sequence[tuple[int, int]]) -> None:
        """An MQTT 5 PUBACK says whether somebody matched (0x00) or nobody (0x10)."""
        judge = FakeClient(self.driver, "judge")
        judge.connect()
        for where in chosen:
            judge.publish(_topic(*where), _PAYLOAD, qos=1, code=0x00)
        judge.publish("site/nobody", _PAYLOAD, qos=1, code=0x10)
        judge.drop()

    def _publish(self, batch: Sequence[tuple[int, int]]) -> None:
        packets = [Publish(_topic(*where), _PAYLOAD).encode(_VERSION) for where in batch]
        self.driver.send(self.publisher, b"".join(packets))
        wanted: dict[int, bytearray] = {}
        for (client, _), packet in zip(batch, packets, strict=True):
            wanted.setdefault(client, bytearray()).extend(packet)
        for client, expected in wanted.items():
            if self.clients[client].read() != expected:
                raise MatchingError(f"client {client} did not get exactly what it subscribed to")


def _batches(chosen: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    for at in range(0, len(chosen), _BATCH):
        yield chosen[at : at + _BATCH]


def measure(clients: int, subscriptions: int, publishes: int) -> Matching:
    """Errors: MatchingError; AvowError when there is no compiled core or it traps."""
    crowd = Population(clients, subscriptions)
    # The first batches fault pages in and grow queues, as a broker that has run for a while has.
    crowd.us_per_publish(crowd.pick(min(publishes, 5000), seed=1))
    fresh = crowd.us_per_publish(crowd.pick(publishes, seed=2))
    cached = crowd.us_per_publish(crowd.pick(1, seed=3) * publishes)
    match = crowd.us_per_match(crowd.pick(publishes, seed=4))
    single = Population(1, 1)
    single.us_per_publish([(0, 0)] * _BATCH)
    return Matching(
        subscriptions=crowd.subscriptions,
        clients=clients,
        publishes=publishes,
        us_per_match=match,
        us_per_publish=fresh,
        us_per_publish_cached=cached,
        us_per_publish_single=single.us_per_publish([(0, 0)] * publishes),
        heap_bytes_per_subscription=crowd.heap_bytes / crowd.subscriptions,
        build_s=crowd.build_s,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.matching", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--subscriptions", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--publishes", type=int, default=50_000)
    parser.add_argument("--core", type=int, help="run on this core only")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    publishes = min(arguments.publishes, arguments.subscriptions)
    try:
        found = asdict(measure(arguments.clients, arguments.subscriptions, publishes))
    except (MatchingError, AvowError) as error:
        print(f"matching: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        json.dump(found, sys.stdout)
    else:
        for name, value in found.items():
            print(f"{name:28} {value:,.3f}" if isinstance(value, float) else f"{name:28} {value:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
