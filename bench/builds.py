"""This build beside another checkout of avow, in turns, on the same cores and with one generator.

    git worktree add ../before COMMIT && make -C ../before build
    python -m bench builds ../before                      # every scenario
    python -m bench builds ../before --only pairs --starts 6

A change that may cost no speed is judged by this. Machines are noisy, and virtual ones change
their speed by a third within a second. So both brokers run all the time, on one core, and the load
goes to one and the other in short turns; who goes first alternates. Both are started anew a few
times, for where their memory lies matters too. Printed for each scenario: the medians of both, the
median of the ratios of neighbouring turns (better for this build above 1), the 95 % confidence
interval of that median, and the verdict: `missed` where even the interval is below 0.98, `reached`
where the median is not, `unclear` between, which more starts decide. `p99_…` runs both at half of
what the other build gave. What connections cost shows in a fresh broker only, so `idle_…` has one
turn a start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.brokers import Avow, BrokerError, Running, started
from bench.loadgen.library import LoadgenError, build
from bench.processes import raise_descriptor_limit
from bench.run import Bench, RunError
from bench.scenarios import Scenario, all_scenarios

# What a change may cost: less than runs of one and the same build differ.
BOUND = 0.98


class OtherBuild(Avow):
    """The broker of another checkout, by the interpreter of its `.venv`. Errors: BrokerError."""

    def __init__(self, checkout: Path) -> None:
        super().__init__()
        self.python = checkout.absolute() / ".venv" / "bin" / "python"
        if not self.python.exists():
            text = f"expected {self.python}, got nothing there"
            raise BrokerError(f"{text}; run `make build` in that checkout")
        self.name = f"avow of {checkout}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scenario. `ratios`: a turn each, above 1 where this build is better."""

    scenario: str
    metric: str
    this: float
    other: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        return interval_of_median(self.ratios)

    @property
    def verdict(self) -> str:
        if self.interval[1] < BOUND:
            return "missed"
        return "reached" if self.ratio >= BOUND else "unclear"


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """The confidence interval (95 %) of a median, from the order of the values alone: how many lie
    below it is binomial, so it holds whatever their distribution. Less than six say nothing: then
    it is all of them. Source: Conover, Practical Nonparametric Statistics, section 3.2.
    """
    ordered = sorted(values)
    count, outside, below = len(ordered), 0, 0.0
    while outside < count // 2:
        below += math.comb(count, outside) / 2**count
        if below > 0.025:
            break
        outside += 1
    left_out = max(outside - 1, 0)
    return ordered[left_out], ordered[count - 1 - left_out]


def compared(scenario: Scenario, turns: Sequence[tuple[float, float]]) -> Comparison:
    """Of figures (this, other), a turn each. Errors: AssertionError without a turn."""
    assert turns
    target = scenario.targets[0]
    ratios = tuple(
        this / other if target.higher_is_better else other / this for this, other in turns
    )
    this, other = (statistics.median(values) for values in zip(*turns, strict=True))
    return Comparison(scenario.name, target.metric, this, other, ratios)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both builds, and how often they take turns."""

    bench: Bench
    this: Avow
    other: Avow
    starts: int
    turns: int

    def measured(self, scenario: Scenario) -> Iterator[tuple[float, float]]:
        bench = self.bench
        rate = 0.0
        if scenario.half_of_saturation:
            rate = bench.run(scenario, self.other)["published_rate"] / 2
        idle = "connections" in scenario.job
        for start in range(self.starts):
            with contextlib.ExitStack() as both:
                running = [
                    both.enter_context(
                        started(broker, bench.folder, bench.certificate, bench.broker_core)
                    )
                    for broker in (self.this, self.other)
                ]
                for number in range(1 if idle else self.turns):
                    yield self._turn(scenario, running, rate, this_first=(start + number) % 2 == 0)

    def _turn(
        self, scenario: Scenario, running: Sequence[Running], rate: float, *, this_first: bool
    ) -> tuple[float, float]:
        metric = scenario.targets[0].metric
        order = running if this_first else running[::-1]
        figures = [self.bench.load(scenario, each, rate)[metric] for each in order]
        if min(figures) <= 0:
            raise RunError(f"expected a figure above zero of both builds, got {figures}")
        first, second = figures if this_first else figures[::-1]
        return first, second


def line(found: Comparison) -> str:
    """As the table has it."""
    low, high = found.interval
    return (
        f"{found.scenario:20} {found.metric:20} {found.this:14,.1f} {found.other:14,.1f} "
        f"{found.ratio:6.3f}  {low:.2f} to {high:.2f}  {found.verdict}"
    )


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench builds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", type=Path, help="another checkout, built")
    parser.add_argument("--only", action="append", default=[], help="as for `python -m bench`")
    parser.add_argument("--starts", type=int, default=4, help="of both brokers")
    parser.add_argument("--turns", type=int, default=12, help="of each start")
    parser.add_argument("--seconds", type=float, default=0.4, help="measured seconds of a turn")
    parser.add_argument("--warmup", type=float, default=0.15, help="seconds before that")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Exit code 1: something is missed or unclear, or a run broke; 2: nothing to compare with."""
    arguments = _arguments(argv)
    raise_descriptor_limit()
    scenarios = [s for s in all_scenarios() if s.name.startswith(tuple(arguments.only) or "")]
    found: list[Comparison] = []
    broken = 0
    try:
        this, other = Avow(), OtherBuild(arguments.other)
        build()
    except (BrokerError, LoadgenError, OSError) as error:
        print(f"builds: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="avow-bench-") as name:
        bench = Bench.on_two_cores(Path(name), seconds=arguments.seconds, warmup_s=arguments.warmup)
        pair = _Pair(bench, this, other, arguments.starts, arguments.turns)
        for scenario in scenarios:
            try:
                turns = list(pair.measured(scenario))
            except (RunError, BrokerError, subprocess.TimeoutExpired) as error:
                print(f"broken: {scenario.name}: {error}", file=sys.stderr)
                broken += 1
                continue
            found.append(compared(scenario, turns))
            if not arguments.json:
                print(line(found[-1]), flush=True)
    if arguments.json:
        shown = [
            {**asdict(one), "ratio": one.ratio, "interval": one.interval, "verdict": one.verdict}
            for one in found
        ]
        json.dump(shown, sys.stdout)
    return 0 if not broken and all(one.verdict == "reached" for one in found) else 1
