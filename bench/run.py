"""Measures avow and its peers in turns on the same cores.

python -m bench                              # what is installed, all scenarios, five rounds
python -m bench --quick --only pairs32       # a look
python -m bench --peer /path/to/mosquitto    # repeatable
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.brokers import (
    ROOT,
    Avow,
    Broker,
    BrokerError,
    Certificate,
    Mosquitto,
    Reflector,
    Running,
    make_certificate,
    started,
    tail,
    two_cores,
)
from bench.loadgen.library import LoadgenError, build
from bench.processes import raise_descriptor_limit
from bench.report import Row, Sample
from bench.scenarios import MATCHING, Scenario, all_scenarios

RESULTS = ROOT / "bench" / "results"
# mosquitto is a service: Debian puts it where only root's PATH leads.
_INSTALLED = ("mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto")


class RunError(Exception):
    """A run broke; the message says which and how."""


@dataclasses.dataclass(slots=True)
class Bench:
    """What all runs have in common."""

    folder: Path
    certificate: Certificate
    broker_core: int | None
    generator_core: int | None
    seconds: float
    warmup_s: float
    with_ceiling: bool
    spin: bool
    repeats: int
    samples: list[Sample] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def on_two_cores(
        cls,
        folder: Path,
        *,
        seconds: float,
        warmup_s: float,
        with_ceiling: bool = False,
        spin: bool = True,
        repeats: int = 0,
    ) -> Bench:
        """With a new certificate, and a core for the broker and one for the generator."""
        broker_core, generator_core = two_cores()
        return cls(
            folder,
            make_certificate(folder),
            broker_core=broker_core,
            generator_core=generator_core,
            seconds=seconds,
            warmup_s=warmup_s,
            with_ceiling=with_ceiling,
            spin=spin,
            repeats=repeats,
        )

    def run(self, scenario: Scenario, broker: Broker, rate: float = 0.0) -> dict[str, Any]:
        """One run against a fresh broker; the worker's result. Errors: RunError."""
        try:
            with started(broker, self.folder, self.certificate, self.broker_core) as running:
                return self.load(scenario, running, rate)
        except BrokerError as error:
            text = f"{scenario.name}, {broker.name}: {error}"
            raise RunError(f"{text}; the broker wrote: {tail(self.folder, broker)}") from error

    def load(self, scenario: Scenario, running: Running, rate: float = 0.0) -> dict[str, Any]:
        """The same against a broker that runs. Errors: BrokerError."""
        return self._work(
            {
                **scenario.job,
                "port": running.tls_port if scenario.tls else running.port,
                "broker_pid": running.pid,
                "tls_ca": str(self.certificate.ca) if scenario.tls else "",
                "core": self.generator_core,
                "rate": rate,
                "warmup_s": self.warmup_s,
                "seconds": self.seconds,
                "spin": self.spin,
            }
        )

    def _work(self, job: dict[str, Any]) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "bench.loadgen.worker"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=300,
        )
        if done.returncode != 0:
            raise BrokerError(done.stderr.strip()[-500:])
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def _run_undisturbed(self, scenario: Scenario, broker: Broker, rate: float) -> dict[str, Any]:
        """The run during which least else used the cores; a quiet one is not repeated."""
        found: list[dict[str, Any]] = []
        for _ in range(1 + self.repeats):
            found.append(self.run(scenario, broker, rate))
            if report.disturbance(found[-1]) <= report.DISTURBED:
                break
        return min(found, key=report.disturbance)

    def sample(
        self, scenario: Scenario, broker: Broker, number: int, against: str = "", rate: float = 0.0
    ) -> None:
        """One run that counts; a broken one is remembered and the others go on."""
        try:
            values = self._run_undisturbed(scenario, broker, rate)
        except (RunError, subprocess.TimeoutExpired) as error:
            self.failures.append(str(error))
            print(f"  broken: {error}", file=sys.stderr)
            return
        self.samples.append(Sample(scenario.name, broker.name, against, number, values))
        metric = scenario.targets[0].metric
        load = "".join(
            f" {name} {values[key]:.0%}"
            for name, key in (("broker", "broker_cpu"), ("generator", "generator_cpu"))
        )
        print(
            f"  {scenario.name} {broker.name}: {metric} {values[metric]:,.1f}{load}",
            file=sys.stderr,
        )


def measure(
    bench: Bench, scenario: Scenario, own: Broker | None, peers: Sequence[Broker], rounds: int
) -> None:
    """All rounds of one scenario, the brokers in turns."""
    print(f"== {scenario.title}", file=sys.stderr)
    if scenario.half_of_saturation:
        for peer in peers:
            _measure_half(bench, scenario, own, peer, rounds)
        return
    for number in range(rounds):
        for broker in ([own] if own else []) + list(peers):
            bench.sample(scenario, broker, number)
        if bench.with_ceiling and scenario.has_ceiling:
            bench.sample(scenario, Reflector(), number)


def _measure_half(
    bench: Bench, scenario: Scenario, own: Broker | None, peer: Broker, rounds: int
) -> None:
    try:
        # Published messages: each counts once, however many subscribers it has.
        found = [bench.run(scenario, peer)["published_rate"] for _ in range(min(3, rounds))]
    except (RunError, subprocess.TimeoutExpired) as error:
        bench.failures.append(str(error))
        return
    rate = sorted(found)[len(found) // 2] / 2
    print(f"  {peer.name}: half of saturation is {rate:,.0f} published a second", file=sys.stderr)
    for number in range(rounds):
        for broker in ([own] if own else []) + [peer]:
            bench.sample(scenario, broker, number, against=peer.name, rate=rate)


def measure_matching(bench: Bench, arguments: Sequence[str], rounds: int) -> None:
    """The core alone, without sockets, in a process of its own."""
    print(f"== {MATCHING.title}", file=sys.stderr)
    for number in range(rounds):
        done = subprocess.run(
            [sys.executable, "-m", "bench.matching", "--json", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if done.returncode != 0:
            bench.failures.append(f"matching: {done.stderr.strip()[-500:]}")
            print(f"  broken: {bench.failures[-1]}", file=sys.stderr)
            return
        values = json.loads(done.stdout)
        bench.samples.append(Sample(MATCHING.name, report.AVOW, "", number, values))
        print(
            f"  us_per_match {values['us_per_match']:.3f}"
            f" us_per_publish {values['us_per_publish']:.3f}",
            file=sys.stderr,
        )


def find_peers(paths: Sequence[Path], libraries: Path | None) -> list[Broker]:
    """The peers named, or the mosquitto that is installed."""
    if not paths:
        installed = next(filter(None, map(shutil.which, _INSTALLED)), None)
        if installed is None:
            return []
        paths = [Path(installed)]
    return [Mosquitto(path, libraries) for path in paths]


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write_json(path: Path, rows: Sequence[Row], bench: Bench, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(),
        "settings": settings,
        "rows": [dataclasses.asdict(row) for row in rows],
        "failures": bench.failures,
        "samples": [dataclasses.asdict(sample) for sample in bench.samples],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the broker.")
    parser.add_argument(
        "--peer", type=Path, action="append", default=[], help="a mosquitto (repeatable)"
    )
    parser.add_argument("--peer-libs", type=Path, help="LD_LIBRARY_PATH for the peers")
    parser.add_argument("--no-avow", action="store_true", help="only the peers")
    parser.add_argument(
        "--no-ceiling", action="store_true", help="leave out what shows the generator's own limit"
    )
    parser.add_argument(
        "--no-spin", action="store_true", help="the generator sleeps when nothing is there"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured seconds of a run")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before that")
    parser.add_argument(
        "--repeats", type=int, default=2, help="of a run while something else used the cores"
    )
    parser.add_argument(
        "--only", action="append", default=[], help="scenarios whose name starts so (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="one short round, smaller numbers")
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    parser.add_argument("--json", type=Path, help="where the results go (bench/results/...)")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.warmup = 1, 0.5, 0.2
    sizes = {"idle": 1000, "idle_tls": 200} if arguments.quick else {}
    scenarios = [*all_scenarios(**sizes), MATCHING]
    if arguments.only:
        scenarios = [s for s in scenarios if s.name.startswith(tuple(arguments.only))]
    if arguments.list or not scenarios:
        print("\n".join(f"{s.name:20} {s.title}" for s in [*all_scenarios(), MATCHING]))
        return 0 if arguments.list else 2
    raise_descriptor_limit()
    try:
        peers = find_peers(arguments.peer, arguments.peer_libs)
        build()
    except (BrokerError, LoadgenError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not peers:
        print("bench: no mosquitto found, avow alone (apt-get install mosquitto)", file=sys.stderr)
    own = None if arguments.no_avow else Avow()
    with tempfile.TemporaryDirectory(prefix="avow-bench-") as name:
        return _measure_all(arguments, scenarios, own, peers, Path(name))


def _measure_all(
    arguments: argparse.Namespace,
    scenarios: Sequence[Scenario],
    own: Broker | None,
    peers: Sequence[Broker],
    folder: Path,
) -> int:
    bench = Bench.on_two_cores(
        folder,
        seconds=arguments.seconds,
        warmup_s=arguments.warmup,
        with_ceiling=not arguments.no_ceiling,
        spin=not arguments.no_spin,
        repeats=arguments.repeats,
    )
    for scenario in scenarios:
        if scenario is not MATCHING:
            measure(bench, scenario, own, peers, arguments.rounds)
        elif own is not None:
            small = ["--subscriptions", "50000", "--clients", "500"] if arguments.quick else []
            measure_matching(bench, small, arguments.rounds)
    rows = report.rows(scenarios, bench.samples, {peer.name: peer.version for peer in peers})
    print(report.table(rows))
    path = arguments.json or RESULTS / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    settings = {
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "warmup_s": arguments.warmup,
        "quick": arguments.quick,
        "spin": bench.spin,
    }
    write_json(path, rows, bench, settings)
    print(f"\n{path}")
    for failure in bench.failures:
        print(f"broken: {failure}", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
