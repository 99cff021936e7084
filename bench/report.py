"""Medians, ratios and verdicts, as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.scenarios import Scenario, Target

AVOW = "avow"
CEILING = "ceiling"
# Above this share of its core the generator may be what limits the rate.
_GENERATOR_BUSY = 0.92
# Ready but not on its core for more than this share: something else used the machine.
DISTURBED = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. `against`: the peer whose saturation set the rate, else empty."""

    scenario: str
    broker: str
    against: str
    round_number: int
    values: dict[str, Any]


@dataclass(slots=True)
class Row:
    """One line of the table: one target, against one peer or absolute."""

    scenario: str
    title: str
    metric: str
    peer: str
    avow: float | None
    peer_value: float | None = None
    ratio: float | None = None
    bound: float | None = None
    verdict: str = ""
    # What generator and kernel reach without a real broker.
    ceiling: float | None = None
    notes: list[str] = field(default_factory=list)
    avow_context: dict[str, float] = field(default_factory=dict)
    peer_context: dict[str, float] = field(default_factory=dict)


CONTEXT = (
    "generator_cpu",
    "broker_cpu",
    "broker_us_per_message",
    "broker_resident_bytes",
    "generator_wait",
    "broker_wait",
    "p50_us",
    "p99_us",
    "p999_us",
)


def median(samples: Sequence[Sample], metric: str) -> float | None:
    """The median of a figure; None when no run has it."""
    values = [s.values[metric] for s in samples if s.values.get(metric) is not None]
    return float(statistics.median(values)) if values else None


def _chosen(
    samples: Iterable[Sample], scenario: Scenario, broker: str, against: str
) -> list[Sample]:
    return [
        sample
        for sample in samples
        if (sample.scenario, sample.broker) == (scenario.name, broker)
        and sample.against == (against if scenario.half_of_saturation else "")
    ]


def rows(
    scenarios: Sequence[Scenario], samples: Sequence[Sample], versions: dict[str, str]
) -> list[Row]:
    """A row for each target and peer. `versions`: the peers by name."""
    found: list[Row] = []
    for scenario in scenarios:
        for target in scenario.targets:
            if not versions or not scenario.compared:
                found.append(_absolute(scenario, target, samples, ""))
            for peer, version in versions.items():
                if not scenario.compared:
                    continue
                if target.factors:
                    found.append(_relative(scenario, target, samples, peer, version))
                else:
                    found.append(_absolute(scenario, target, samples, peer))
    return [row for row in found if row.avow is not None or row.peer_value is not None]


def _row(scenario: Scenario, target: Target, samples: Sequence[Sample], peer: str) -> Row:
    own = _chosen(samples, scenario, AVOW, peer)
    others = _chosen(samples, scenario, peer, peer)
    row = Row(scenario.name, scenario.title, target.metric, peer, median(own, target.metric))
    row.peer_value = median(others, target.metric)
    if row.avow is not None and row.peer_value:
        row.ratio = row.avow / row.peer_value
    row.ceiling = median(_chosen(samples, scenario, CEILING, ""), target.metric)
    row.avow_context, row.peer_context = _context(own), _context(others)
    row.notes += _notes(AVOW, own) + _notes(peer, others)
    return row


def _relative(
    scenario: Scenario, target: Target, samples: Sequence[Sample], peer: str, version: str
) -> Row:
    row = _row(scenario, target, samples, peer)
    row.bound = target.factor(version)
    if row.ratio is not None and row.bound is not None:
        row.verdict = _verdict(target, row.ratio, row.bound)
    return row


def _absolute(scenario: Scenario, target: Target, samples: Sequence[Sample], peer: str) -> Row:
    row = _row(scenario, target, samples, peer)
    row.bound = target.limit
    if row.avow is not None and row.bound is not None:
        row.verdict = _verdict(target, row.avow, row.bound)
    return row


def _verdict(target: Target, value: float, bound: float) -> str:
    return "reached" if target.is_reached(value, bound) else "missed"


def disturbance(values: Mapping[str, float]) -> float:
    """The share of the time that broker or generator were ready, but not on their cores."""
    return max(values.get("generator_wait", 0.0), values.get("broker_wait", 0.0))


def _context(samples: Sequence[Sample]) -> dict[str, float]:
    values = {name: median(samples, name) for name in CONTEXT}
    return {name: value for name, value in values.items() if value is not None}


def _notes(broker: str, samples: Sequence[Sample]) -> list[str]:
    notes = []
    for name in ("lost", "duplicates", "disordered", "misrouted"):
        total = sum(sample.values.get(name, 0) for sample in samples)
        if total:
            notes.append(f"{broker}: {total} {name}")
    context = _context(samples)
    generator, server = context.get("generator_cpu", 0.0), context.get("broker_cpu", 0.0)
    if generator > _GENERATOR_BUSY and generator > server:
        notes.append(f"{broker}: limited by the generator ({generator:.0%} of its core)")
    waited = disturbance(context)
    if waited > DISTURBED:
        notes.append(f"{broker}: the cores were not ours alone ({waited:.0%} of the time)")
    return notes


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _load(context: dict[str, float]) -> str:
    """Broker CPU for a message, then the shares of their cores that broker and generator used."""
    if "broker_cpu" not in context:
        return "-"
    cost = context.get("broker_us_per_message")
    shares = f"{context['broker_cpu']:.0%}/{context.get('generator_cpu', 0):.0%}"
    return shares if cost is None else f"{cost:.2f} {shares}"


def table(found: Sequence[Row]) -> str:
    """For a terminal."""
    head = ["scenario", "metric", "peer", "avow", "peer's", "ratio", "target", "verdict"]
    head += ["ceiling", "avow: µs/msg, CPU b/g", "peer: µs/msg, CPU b/g"]
    lines = [head]
    for row in found:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            [
                row.title,
                row.metric,
                row.peer.removeprefix("mosquitto ") or "-",
                _number(row.avow),
                _number(row.peer_value),
                ratio,
                _number(row.bound),
                row.verdict or "-",
                _number(row.ceiling),
                _load(row.avow_context),
                _load(row.peer_context),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    out = []
    for index, line in enumerate(lines):
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
        if index == 0:
            out.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    notes = sorted({f"{row.scenario}: {note}" for row in found for note in row.notes})
    return "\n".join([*out, "", *notes] if notes else out)
