"""Measures what attestation costs.

python -m bench attestation                   # everything, against the targets
python -m bench attestation --quick           # a look
python -m bench attestation --only connect    # connect, slow, verify, afterwards; repeatable
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from avow.errors import AvowError
from bench import report
from bench.attestation.connecting import Connector, connect_in_turns, flood
from bench.attestation.dialing import (
    Attested,
    DialError,
    Plain,
    StandardLibrary,
    attestation_key,
    settings,
)
from bench.attestation.measured_brokers import SIMULATED, AttestedAvow, Tee, slow_tees
from bench.attestation.verifying import cases, time_ms, vectors
from bench.brokers import BrokerError, pinned, started
from bench.loadgen.library import LoadgenError, build
from bench.processes import raise_descriptor_limit
from bench.report import Row, Sample, median
from bench.run import RESULTS, Bench, write_json
from bench.scenarios import Scenario, Target

PLAIN, ATTESTED, STANDARD = "plain TLS", "attested", "ssl, plain TLS"

_CONNECT = Target("ms", higher_is_better=False, factors={"": 2.0})
_SERVED = Target("rate", limit=200.0)
_REFUSED = Target("refused", higher_is_better=False, limit=0.0)
_AFTERWARDS = Target("rate", factors={"": 0.98})
# Says the same on a machine that does other work too.
_COST = Target("broker_us_per_message", higher_is_better=False)

# Closed loops: the rate is what broker and generator can do.
_LOADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "pairs32": ("32 pairs, one in flight", {"groups": 32, "window": 1}),
    "pipelined1": ("pipelined QoS 0, 1 to 1", {"subscribers": 1, "window": 1000}),
    "pipelined20": ("pipelined QoS 0, 1 to 20", {"subscribers": 20, "window": 1000}),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """How much is measured; `connections` and `verifications` are for each round."""

    rounds: int = 5
    connections: int = 100
    clients: int = 256
    flood_s: float = 5.0
    verifications: int = 200
    loads: tuple[str, ...] = tuple(_LOADS)
    load_s: float = 2.0
    warmup_s: float = 1.0


QUICK = Size(
    rounds=1,
    connections=20,
    clients=64,
    flood_s=1.0,
    verifications=20,
    loads=("pairs32",),
    load_s=0.3,
    warmup_s=0.3,
)


class Suite:
    """All measurements and what came of them."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.size = size
        self.rows: list[Row] = []
        self.bench = Bench.on_two_cores(
            folder,
            seconds=size.load_s,
            warmup_s=size.warmup_s,
            repeats=2 if size.rounds > 1 else 0,
        )

    def connect(self) -> None:
        """A connection to CONNACK, attested and not, in turns."""
        authority = self.bench.certificate.ca
        ways: dict[str, Connector] = {
            STANDARD: StandardLibrary(authority),
            PLAIN: Plain(authority),
            ATTESTED: Attested(authority, settings("simulated")),
        }
        with self._broken_is_noted("connect"), self._broker(SIMULATED) as port:
            for number in range(self.size.rounds):
                found = connect_in_turns(ways, port, self.size.connections)
                for name, ms in found.items():
                    self._sample("connect", name, number, {"ms": ms})
        title = "a connection, to CONNACK"
        self._add(_CONNECT, "connect", title, ATTESTED, PLAIN)
        self._add(_CONNECT, "connect", title, ATTESTED, STANDARD)

    def slow(self) -> None:
        """Many clients at the same time, at a TEE that makes five quotes a second."""
        with slow_tees() as found:
            for title, tee in found:
                self._flood(title, tee)

    def _flood(self, title: str, tee: Tee) -> None:
        name, authority = f"slow_{tee.name}", self.bench.certificate.ca
        with self._broken_is_noted(name), self._broker(tee) as port:
            way = Attested(authority, settings(tee.name, attestation_key(authority, port)))
            for number in range(min(2, self.size.rounds)):
                found = flood(
                    way,
                    port,
                    clients=self.size.clients,
                    warmup_s=self.size.warmup_s,
                    seconds=self.size.flood_s,
                )
                self._sample(name, ATTESTED, number, found.values())
                for reason in sorted(set(found.refused))[:3]:
                    print(f"  refused: {reason}", file=sys.stderr)
        for target in (_SERVED, _REFUSED, Target("p50_ms", higher_is_better=False)):
            self._add(target, name, title, ATTESTED)

    def verify(self) -> None:
        """Every platform's verifier, on one report."""
        print("== verify", file=sys.stderr)
        for case in cases(vectors()):
            name = f"verify_{case.platform}_{case.source}"
            for number in range(self.size.rounds):
                with pinned(self.bench.generator_core):
                    values = time_ms(case, self.size.verifications)
                self._sample(name, ATTESTED, number, values)
            title = f"verify {case.platform} ({case.source})"
            for metric in ("ms", "first_ms"):
                target = Target(metric, higher_is_better=False, limit=case.limit_ms)
                self._add(target, name, title, ATTESTED)

    def afterwards(self) -> None:
        """The same load over connections that were attested and over others, in turns."""
        build()
        print("== afterwards", file=sys.stderr)
        for name in self.size.loads:
            title, job = _LOADS[name]
            for number in range(self.size.rounds):
                for kind, attested in ((PLAIN, False), (ATTESTED, True)):
                    scenario = Scenario(
                        name,
                        f"{title}, {kind}",
                        {**job, "attested": attested},
                        (_AFTERWARDS,),
                        True,
                    )
                    self.bench.sample(scenario, AttestedAvow(name=kind), number)
            self._add(_AFTERWARDS, name, title, ATTESTED, PLAIN)
            self._add(_COST, name, title, ATTESTED, PLAIN)

    @contextlib.contextmanager
    def _broken_is_noted(self, what: str) -> Iterator[None]:
        """Whatever breaks is remembered, and the other measurements go on."""
        print(f"== {what}", file=sys.stderr)
        try:
            yield
        except (AvowError, BrokerError, DialError, OSError, SSL.Error) as error:
            self.bench.failures.append(f"{what}: {error}")
            print(f"  broken: {error}", file=sys.stderr)

    @contextlib.contextmanager
    def _broker(self, tee: Tee) -> Iterator[int]:
        """A broker on its core, and this thread, and those that it starts, on the other one."""
        bench = self.bench
        with (
            started(
                AttestedAvow(tee), bench.folder, bench.certificate, bench.broker_core
            ) as running,
            pinned(bench.generator_core),
        ):
            yield running.tls_port

    def _sample(self, scenario: str, kind: str, number: int, values: dict[str, Any]) -> None:
        self.bench.samples.append(Sample(scenario, kind, "", number, values))
        shown = " ".join(f"{name} {value:,.3f}" for name, value in list(values.items())[:4])
        print(f"  {scenario} {kind}: {shown}", file=sys.stderr)

    def _add(self, target: Target, scenario: str, title: str, kind: str, other: str = "") -> None:
        """One line of the table, if something was measured."""
        value = median(self._samples(scenario, kind), target.metric)
        if value is None:
            return
        row = Row(scenario, title, target.metric, other, value)
        bound = target.limit
        if other:
            row.peer_value = median(self._samples(scenario, other), target.metric)
            row.ratio = value / row.peer_value if row.peer_value else None
            bound = target.factors.get("")
        measured = row.ratio if other else value
        if bound is not None and measured is not None:
            row.bound = bound
            row.verdict = "reached" if target.is_reached(measured, bound) else "missed"
        self.rows.append(row)

    def _samples(self, scenario: str, kind: str) -> list[Sample]:
        return [
            sample
            for sample in self.bench.samples
            if (sample.scenario, sample.broker) == (scenario, kind)
        ]


MEASUREMENTS = {
    "connect": Suite.connect,
    "slow": Suite.slow,
    "verify": Suite.verify,
    "afterwards": Suite.afterwards,
}


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench attestation", description="Measures what attestation costs."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", action="append", choices=MEASUREMENTS, help="one measurement (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="one short round, smaller numbers")
    parser.add_argument("--json", type=Path, help="where the results go (bench/results/...)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 whether targets are reached or missed, 1 when a run broke, 2 when nothing could start."""
    chosen = _arguments(arguments)
    size = QUICK if chosen.quick else Size(rounds=chosen.rounds)
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="avow-bench-") as folder:
        suite = Suite(Path(folder), size)
        try:
            for name, measure in MEASUREMENTS.items():
                if chosen.only is None or name in chosen.only:
                    measure(suite)
        except LoadgenError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
    print(report.table(suite.rows))
    path = chosen.json or RESULTS / time.strftime("attestation-%Y%m%d-%H%M%S.json", time.gmtime())
    write_json(path, suite.rows, suite.bench, dataclasses.asdict(size))
    print(f"\n{path}")
    for failure in suite.bench.failures:
        print(f"broken: {failure}", file=sys.stderr)
    return 1 if suite.bench.failures else 0
