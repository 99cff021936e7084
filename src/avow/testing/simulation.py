"""Seeded simulation: the real core, a fake clock, a bad network, and a model to compare with.

    python -m avow.testing.simulation --seed 17            one seed, as a failure prints it
    python -m avow.testing.simulation --seeds 5000 --first 1000 --processes 2

Clients connect, subscribe, publish, lose their connection and come back; the core is killed and
restored from its journal. In the end the network heals, everything comes to rest, and what each
client received is compared with the model: QoS 1 at least once, QoS 2 exactly once, order per
topic and publisher, retained messages, wills. Some connections of a client are attested and some
are not: what is below p/ reaches the former only.
"""

from __future__ import annotations

import argparse
import copy
import functools
import multiprocessing
import random
import sys
from collections import Counter
from dataclasses import dataclass

from avow.errors import AvowError
from avow.testing.core_abi import Access, Attestation, ClosedBy, Input, Rule
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import connected
from avow.testing.model import FOREVER_S, PROTECTED, ModelBroker, Session
from avow.testing.mqtt import (
    Disconnect,
    Filter,
    Pingreq,
    StreamDecoder,
    Subscribe,
    Unsubscribe,
    Will,
    props,
)
from avow.testing.network import Pipe
from avow.testing.simulated_client import Link, Received, SimulatedClient

STEPS = 1500
TOPICS = ("t/0", "t/1", "t/2", "t/3", "t/4", "s/0", "s/1", "p/5")
FILTERS = ("t/0", "t/1", "t/2", "t/3", "t/+", "t/#", "+/3", "t/4/#", "+/5")
PROVEN = Attestation(2, bytes(range(32)))
RULES = (
    Rule(True, PROTECTED + "#", Access.SUBSCRIBE, module=PROVEN.module),
    Rule(False, PROTECTED + "#", Access.SUBSCRIBE),
    Rule(True, "#"),
)
SHARED = ("$share/g/s/+", "$share/h/s/0")


class SimulationError(AssertionError):
    """The core and the model differ; the message has the command that shows it again."""


@dataclass(slots=True)
class Totals:
    """What one seed did."""

    steps: int = 0
    published: int = 0
    received: int = 0
    connections: int = 0
    crashes: int = 0


class Simulation:
    """One seed."""

    def __init__(self, seed: int, steps: int = STEPS) -> None:
        self.seed = seed
        self.steps = steps
        self.totals = Totals()
        self.chance = random.Random(seed)
        self.core = CoreDriver(seed=seed, rules=RULES)
        self.core.observer = self._observe
        self.model = ModelBroker(self.core.now_ms)
        self.links: dict[int, Link] = {}
        self.crashing = seed % 3 == 0
        self.clients = [self._client(number) for number in range(self.chance.randrange(3, 8))]
        self.watcher = SimulatedClient("watcher", self.chance, version=5, expiry_s=FOREVER_S)
        self.healing = False
        self._will_counter = 0

    def _client(self, number: int) -> SimulatedClient:
        expiries = [0, FOREVER_S, FOREVER_S] if self.crashing else [0, 3, FOREVER_S, FOREVER_S]
        version = self.chance.choice([4, 5, 5])
        expiry_s = self.chance.choice(expiries)
        if version == 4 and expiry_s == 3:
            expiry_s = FOREVER_S
        return SimulatedClient(f"c{number}", self.chance, version=version, expiry_s=expiry_s)

    @property
    def now_ms(self) -> int:
        """The clock of the core."""
        return self.core.now_ms

    # -- the core's side --------------------------------------------------------------------

    def _observe(self, kind: int, number: int, data: bytes) -> None:
        """Tells the model what the core gets, packet by packet, in the same order."""
        if kind == Input.OPEN:
            self.model.opened(number, attested=bool(data[1] & 4))
        elif kind == Input.CLOSED:
            self.model.closed(number)
        elif kind == Input.DATA:
            link = self.links[number]
            link.fed_bytes += len(data)
            while link.marks and link.marks[0][0] <= link.fed_bytes:
                _, packet = link.marks.pop(0)
                self.model.packet(number, packet)
                session = self.model.session_of(number)
                if session is not None and link.session_number < 0:
                    link.session_number = session.number
                    link.session_present = self.model.session_present[number]
                    if link.client.link is link:
                        link.client.in_session(session.number)

    def _connect(self, client: SimulatedClient, *, clean_start: bool, will: Will | None) -> None:
        delay_max_ms = 0 if self.healing or client is self.watcher else 40
        if client.link is not None:
            client.link.up.queue.clear()
            client.lost()
        attested = client is not self.watcher and self.chance.random() < 0.6
        connection = self.core.open(client.transport, attestation=PROVEN if attested else None)
        link = Link(
            client,
            connection,
            Pipe(self.chance, delay_max_ms),
            Pipe(self.chance, delay_max_ms),
            StreamDecoder(client.version),
            attested=attested,
        )
        self.links[connection.number] = link
        client.attach(link, self.now_ms, clean_start=clean_start, will=will)
        self.totals.connections += 1

    def _drop(self, link: Link) -> None:
        """The network breaks; a part of what was under way still reaches the core."""
        rest = link.up.cut()
        if link.connection.alive:
            self.core.send(link.connection, rest)
            self.core.close(link.connection, self.chance.choice(list(ClosedBy)[:3]))
        self._forget(link)

    def _forget(self, link: Link) -> None:
        link.gone = True
        if link.client.link is link:
            link.client.lost()

    def _exchange(self) -> None:
        """Moves bytes both ways for one tick."""
        with self.core.batch():
            for link in list(self.links.values()):
                data = link.up.take(self.now_ms)
                if data and link.connection.alive:
                    self.core.send(link.connection, data)
        self._collect()

    def _collect(self) -> None:
        for client in (*self.clients, self.watcher):
            link = client.link
            if link is None:
                continue
            link.down.put(self.now_ms, link.connection.read())
            if link.connection.closed in ("close", "abort"):
                link.gone = True
            data = link.down.take(self.now_ms)
            if data:
                client.receive(self.now_ms, data)
            if link.gone and link.down.empty:
                client.lost()

    # -- what happens -----------------------------------------------------------------------

    def run(self) -> Totals:
        """The whole seed. Raises SimulationError with the command that repeats it."""
        try:
            self._start_watcher()
            for _ in range(self.steps):
                self._step()
            self._heal()
            self._check()
        except (AssertionError, AvowError) as error:
            raise SimulationError(
                f"seed {self.seed}, step {self.totals.steps}: {error}\nrun it again with: "
                f"python -m avow.testing.simulation --seed {self.seed} --steps {self.steps}"
            ) from error
        return self.totals

    def _start_watcher(self) -> None:
        self._connect(self.watcher, clean_start=False, will=None)
        self._exchange()
        if not self.watcher.connected:
            self._exchange()
        assert self.watcher.connected, "the watcher could not connect"
        self.watcher.request(self.now_ms, Subscribe(0, [Filter("w/#", 2)]))
        self._exchange()
        self._exchange()

    def _step(self) -> None:
        self.totals.steps += 1
        client = self.chance.choice(self.clients)
        if client.link is None:
            if self._may_connect(client):
                clean = self.chance.random() < 0.15
                self._connect(client, clean_start=clean, will=self._will(client))
        elif client.connected:
            self._act(client)
        elif self.chance.random() < 0.02:
            self._drop(client.link)
        if self.crashing and self.chance.random() < 0.006:
            self._crash()
            return
        if self.chance.random() < 0.6:
            self._exchange()
        self._tick()

    def _tick(self) -> None:
        length = self.chance.choice([0, 1, 5, 20, 20, 20, 200])
        if self.chance.random() < 0.004:
            length = 6000
        self.core.advance(length)
        self.model.time(self.now_ms)
        self._collect()

    def _may_connect(self, client: SimulatedClient) -> bool:
        """Not close to the moment when a will is due or a session ends: either would be right."""
        moment = self.model.next_moment_ms(client.name)
        return moment is None or not moment - 100 <= self.now_ms <= moment + 1100

    def _will(self, client: SimulatedClient) -> Will | None:
        if self.chance.random() < 0.5:
            return None
        self._will_counter += 1
        properties = props()
        if client.version == 5 and self.chance.random() < 0.5:
            properties = props(will_delay_interval=self.chance.choice([1, 2, 5]))
        payload = f"{client.name}:will {self._will_counter}".encode()
        return Will(f"w/{client.name}", payload, 2, False, properties)

    def _act(self, client: SimulatedClient) -> None:
        link = client.link
        assert link is not None
        dice = self.chance.random()
        if dice < 0.79 and not client.may_send:
            return
        if dice < 0.62:
            self.totals.published += 1
            retain = self.chance.random() < 0.15
            client.publish(
                self.now_ms,
                self.chance.choice(TOPICS),
                self.chance.randrange(3),
                retain=retain,
                clear=retain and self.chance.random() < 0.2,
            )
        elif dice < 0.75:
            client.request(self.now_ms, Subscribe(0, self._filters(client)))
        elif dice < 0.79:
            count = self.chance.randrange(1, 3)
            client.request(self.now_ms, Unsubscribe(0, self.chance.sample(FILTERS + SHARED, count)))
        elif dice < 0.81:
            client.send(self.now_ms, Pingreq())
        elif dice < 0.90:
            self._drop(link)
        elif dice < 0.92:
            code = self.chance.choice([0, 0, 4]) if client.version == 5 else 0
            client.send(self.now_ms, Disconnect(code))
            link.leaving = True
        elif dice < 0.94 and self._may_connect(client):
            # A second connection while the first is open: the core takes over.
            self._connect(client, clean_start=False, will=self._will(client))
        elif dice < 0.97:
            self.core.open_window(link.connection, self.chance.choice([0, 1, 50, 2000]))
        else:
            self.core.open_window(link.connection, None)

    def _filters(self, client: SimulatedClient) -> list[Filter]:
        chosen = []
        for wanted in self.chance.sample(FILTERS, self.chance.randrange(1, 4)):
            one = Filter(wanted, self.chance.randrange(3))
            if client.version == 5:
                one.no_local = self.chance.random() < 0.2
                one.retain_handling = self.chance.choice([0, 0, 1, 2])
            chosen.append(one)
        if self.chance.random() < 0.3:
            chosen.append(Filter(self.chance.choice(SHARED), 2))
        return chosen

    def _crash(self) -> None:
        """Kills the core and restores another one from what was committed."""
        self.totals.crashes += 1
        how = self.chance.choice(["after", "before commit", "snapshot"])
        if how == "before commit":
            before = copy.deepcopy(self.model)
            self.core.auto_commit = False
            with self.core.batch():
                for link in list(self.links.values()):
                    data = link.up.take(self.now_ms)
                    if data and link.connection.alive:
                        self.core.send(link.connection, data)
            if self.core.waiting is not None:
                self.model = before
            else:
                self._collect()
            journal = self.core.journal
        elif how == "snapshot":
            journal = self.core.snapshot()
        else:
            journal = self.core.journal
        self._restart(journal)

    def _restart(self, journal: list[bytes]) -> None:
        pieces = list(journal)
        now_ms = self.now_ms + self.chance.choice([0, 1, 1000])
        self.core = CoreDriver(
            seed=self.chance.randrange(1 << 30), now_ms=now_ms, journal=pieces, rules=RULES
        )
        self.core.journal[:0] = pieces  # the first step may have written more already
        self.core.observer = self._observe
        for client in (*self.clients, self.watcher):
            if client.link is not None:
                rest = client.link.down.cut()
                if rest:
                    client.receive(self.now_ms, rest)
                client.lost()
        self.links.clear()
        self.model.crash()
        self.model.time(self.now_ms)
        self._connect(self.watcher, clean_start=False, will=None)
        for _ in range(3):
            self._exchange()
        assert self.watcher.connected, "the watcher could not come back"

    # -- the end ----------------------------------------------------------------------------

    def _heal(self) -> None:
        """The network is perfect from now on; every session comes back and comes to rest."""
        self.healing = True
        for _ in range(2000):
            self.core.advance(10)
            self.model.time(self.now_ms)
            for link in self.links.values():
                if link.connection.alive:
                    self.core.open_window(link.connection, None)
            for client in self.clients:
                comes = client.link is None and client.name in self.model.sessions
                if comes and self._may_connect(client):
                    self._connect(client, clean_start=False, will=None)
            self._exchange()
            if self._at_rest():
                break
        else:
            raise AssertionError("the simulation never came to rest")
        self.core.advance(10_000)
        self.model.time(self.now_ms)
        for _ in range(3):
            self._exchange()

    def _at_rest(self) -> bool:
        for client in self.clients:
            if client.link is None:
                if client.name in self.model.sessions:
                    return False
                continue
            link = client.link
            if not link.connected or not link.up.empty or not link.down.empty:
                return False
            if not client.quiet:
                return False
        counters = self.core.counters()
        return counters["inflight"] == 0 and counters["queued"] == 0

    def _check(self) -> None:
        for client in self.clients:
            self.totals.received += len(client.log)
            for received in client.log:
                assert received.attested or not received.topic.startswith(PROTECTED), (
                    f"{client.name}: {received} came on a connection that had proven nothing"
                )
            by_session: dict[int, list[Received]] = {}
            for received in client.log:
                by_session.setdefault(received.session_number, []).append(received)
            for session in self.model.all_sessions(client.name):
                log = by_session.pop(session.number, [])
                check_session(client.name, session, log)
            assert not by_session, f"{client.name} received in sessions that were not: {by_session}"
        self._check_shared()
        self._check_wills()
        self._check_retained()

    def _check_shared(self) -> None:
        counts: Counter[bytes] = Counter()
        for client in self.clients:
            for received in client.log:
                if received.topic.startswith("s/"):
                    counts[received.payload] += 1
        wanted: Counter[bytes] = Counter()
        certain: set[bytes] = set()
        for shared in self.model.shared:
            payload = shared.message.payload
            wanted[payload] += 1
            if shared.message.qos == 2:
                certain.add(payload)
            stays = [not member.ended and member.kept_shared for member in shared.members]
            # What was begun of QoS 2 nobody else may get; of QoS 1 one member that stays is enough.
            sure = any(stays) if shared.message.qos == 1 else all(stays)
            if payload and shared.message.qos and sure:
                assert counts[payload] >= 1, f"no member of a group received {payload!r}"
        for payload in certain:
            assert counts[payload] <= wanted[payload] or not payload, (
                f"{counts[payload]} copies of {payload!r} for {wanted[payload]} groups"
            )

    def _check_wills(self) -> None:
        got = {r.payload: r.at_ms for r in self.watcher.log}
        counts = Counter(r.payload for r in self.watcher.log)
        expected = {will.payload: will for will in self.model.wills}
        for payload, count in counts.items():
            assert count == 1, f"the will {payload!r} came {count} times"
            assert payload in expected, f"the will {payload!r} came although it was cancelled"
        for payload, will in expected.items():
            if will.certain:
                assert payload in got, f"the will {payload!r} never came"
                late_ms = got[payload] - will.from_ms
                # A long tick, and another one before the watcher has room for the next message.
                assert 0 <= late_ms <= 13_000, f"the will {payload!r} came {late_ms} ms late"

    def _check_retained(self) -> None:
        self.core.observer = None
        auditor = connected(self.core, "auditor", attestation=PROVEN)
        auditor.subscribe("t/#", "s/#", "p/#", qos=2)
        got = {p.text: (p.payload, p.qos) for p in auditor.received()}
        wanted = {t: (m.payload, m.qos) for t, m in self.model.retained.items()}
        assert got == wanted, f"retained: {got}, the model has {wanted}"


def check_session(name: str, session: Session, log: list[Received]) -> None:
    """What one session of one client received, against the model."""
    expected: dict[tuple[bytes, bool], list[tuple[int, bool]]] = {}
    # A message of QoS 1 that its publisher sent again is several messages for the broker.
    numbers: dict[bytes, list[int]] = {}
    publishers: dict[bytes, str] = {}
    for delivery in session.deliveries:
        key = (delivery.message.payload, delivery.retained)
        expected.setdefault(key, []).append((delivery.qos, delivery.needed))
        numbers.setdefault(delivery.message.payload, []).append(delivery.message.number)
        publishers[delivery.message.payload] = delivery.message.publisher
    counts: Counter[tuple[bytes, bool]] = Counter()
    last: dict[tuple[str, str, int], int] = {}
    for received in log:
        if not received.payload:
            continue
        key = (received.payload, received.retain)
        assert key in expected, f"{name}, session {session.number}: {received} was not for it"
        qos_allowed = {qos for qos, _ in expected[key]}
        assert received.qos in qos_allowed, f"{name}: {received} should have QoS {qos_allowed}"
        counts[key] += 1
        if counts[key] == 1 and not received.retain and received.topic.startswith("t/"):
            stream = (publishers[received.payload], received.topic, received.qos)
            later = [n for n in numbers[received.payload] if n > last.get(stream, 0)]
            assert later, f"{name}: {received} came out of order"
            last[stream] = min(later)
    for (payload, retained), deliveries in expected.items():
        if not payload:
            continue
        count = counts[payload, retained]
        if all(qos != 1 for qos, _ in deliveries):
            assert count <= len(deliveries), (
                f"{name}, session {session.number}: {payload[:20]!r} came {count} times, "
                f"at most {len(deliveries)} are right"
            )
        needed = sum(must for _, must in deliveries)
        assert session.ended or count >= needed, (
            f"{name}, session {session.number}: {payload[:20]!r} came {count} times, "
            f"{needed} are needed (retained: {retained})"
        )


def run_seed(seed: int, steps: int = STEPS) -> Totals:
    """Runs one seed; raises SimulationError when it fails."""
    return Simulation(seed, steps).run()


def _try_seed(seed: int, steps: int) -> tuple[int, Totals | None, str]:
    try:
        return seed, run_seed(seed, steps), ""
    except SimulationError as error:
        return seed, None, str(error)


def run_seeds(first: int, count: int, steps: int, processes: int) -> list[str]:
    """Runs many seeds and gives the messages of those that failed."""
    work = functools.partial(_try_seed, steps=steps)
    seeds = range(first, first + count)
    if processes == 1:
        return [message for _, totals, message in map(work, seeds) if totals is None]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        results = pool.imap_unordered(work, seeds, chunksize=4)
        return [message for _, totals, message in results if totals is None]


def main(arguments: list[str] | None = None) -> int:
    """Command line of the simulation."""
    parser = argparse.ArgumentParser(prog="avow.testing.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--first", type=int, default=0, help="first of many seeds")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps a seed")
    parser.add_argument("--processes", type=int, default=1, help="how many at once")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        print(run_seed(options.seed, options.steps))
        return 0
    failures = run_seeds(options.first, options.seeds, options.steps, options.processes)
    for message in failures:
        print(message)
    print(f"{options.seeds - len(failures)} of {options.seeds} seeds passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
