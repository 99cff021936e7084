"""Verdicts of the bench: the right bound for the right peer, and nothing hidden."""

from __future__ import annotations

from bench.report import Sample, rows, table
from bench.scenarios import MATCHING, Scenario, Target, all_scenarios

OLD, NEW = "mosquitto 2.0.11", "mosquitto 2.1.2"
VERSIONS = {OLD: "2.0.11", NEW: "2.1.2"}


def _samples(
    scenario: str, broker: str, metric: str, *values: float, against: str = "", **more: float
) -> list[Sample]:
    return [Sample(scenario, broker, against, n, {metric: v, **more}) for n, v in enumerate(values)]


def test_each_peer_has_its_own_factor() -> None:
    scenario = next(s for s in all_scenarios() if s.name == "pairs32_plain")
    samples = _samples(scenario.name, "avow", "rate", 90, 115, 500)
    samples += _samples(scenario.name, OLD, "rate", 100, 100, 1)
    samples += _samples(scenario.name, NEW, "rate", 110)
    old, new = rows([scenario], samples, VERSIONS)
    assert (old.peer, old.avow, old.ratio, old.bound, old.verdict) == (
        OLD,
        115,
        1.15,
        1.2,
        "missed",
    )
    assert (new.bound, new.verdict) == (1.0, "reached")


def test_less_is_better_for_latency_and_each_peer_sets_its_own_rate() -> None:
    target = Target("p99_us", higher_is_better=False, factors={"": 1.0})
    scenario = Scenario("p99", "p99", {}, (target,), half_of_saturation=True)
    samples = _samples("p99", "avow", "p99_us", 50, against=OLD)
    samples += _samples("p99", "avow", "p99_us", 80, against=NEW)
    samples += _samples("p99", OLD, "p99_us", 50, against=OLD)
    samples += _samples("p99", NEW, "p99_us", 79, against=NEW)
    assert [row.verdict for row in rows([scenario], samples, VERSIONS)] == ["reached", "missed"]


def test_an_absolute_target_needs_no_peer() -> None:
    samples = _samples("matching", "avow", "us_per_match", 1.9, 2.1, 2.2)
    row, *_ = rows([MATCHING], samples, VERSIONS)
    assert (row.avow, row.bound, row.verdict) == (2.1, 2.0, "missed")
    idle = next(s for s in all_scenarios() if s.name == "idle_plain")
    values = _samples("idle_plain", "avow", "bytes_per_connection", 8192, accept_rate=1999)
    assert [row.verdict for row in rows([idle], values, {})] == ["reached", "missed"]


def test_loss_and_a_busy_generator_are_said() -> None:
    scenario = next(s for s in all_scenarios() if s.name == "pipelined1_plain")
    samples = _samples(
        scenario.name, "avow", "rate", 800, lost=3, generator_cpu=0.99, broker_cpu=0.5
    )
    samples += _samples(scenario.name, OLD, "rate", 100, generator_cpu=0.5, broker_cpu=0.99)
    text = table(rows([scenario], samples, {OLD: "2.0.11"}))
    assert "avow: 3 lost" in text
    assert "avow: limited by the generator (99% of its core)" in text
    assert "mosquitto 2.0.11: limited" not in text
    assert "reached" in text


def test_a_scenario_that_did_not_run_has_no_row() -> None:
    assert rows(all_scenarios(), [], VERSIONS) == []
