"""Verdicts about two builds: the right way round, and none that chance could have given."""

from __future__ import annotations

import pytest

from bench.builds import BOUND, Comparison, compared, interval_of_median, main
from bench.scenarios import Scenario, Target

RATE = Scenario("load", "load", {}, (Target("rate"),))
LATENCY = Scenario("p99", "p99", {}, (Target("p99_us", higher_is_better=False),))


def verdict(*ratios: float) -> str:
    return Comparison("load", "rate", 0, 0, ratios).verdict


def test_better_is_above_one_for_rates_and_for_latencies() -> None:
    found = compared(RATE, [(200.0, 100.0), (90.0, 100.0), (300.0, 200.0)])
    assert (found.metric, found.this, found.other) == ("rate", 200.0, 100.0)
    assert found.ratios == (2.0, 0.9, 1.5)
    assert found.ratio == 1.5
    assert compared(LATENCY, [(50.0, 100.0)]).ratios == (2.0,)


@pytest.mark.parametrize(
    ("count", "left_out"),
    # By the tables of the binomial distribution: P(X <= 2) is 0.019 for 12, P(X <= 9) 0.021 for 30.
    [(1, 0), (5, 0), (6, 0), (12, 2), (30, 9)],
)
def test_the_interval_is_that_of_the_sign_test(count: int, left_out: int) -> None:
    values = [float(value) for value in range(count)]
    assert interval_of_median(values[::-1]) == (values[left_out], values[count - 1 - left_out])


def test_chance_gives_no_verdict() -> None:
    slower, faster = BOUND - 0.05, BOUND + 0.05
    assert verdict(*[slower] * 12) == "missed"
    assert verdict(*[faster] * 12) == "reached"
    assert verdict(*[slower] * 7, *[faster] * 5) == "unclear"


def test_a_checkout_that_is_not_built_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/proc"]) == 2
    assert "run `make build` in that checkout" in capsys.readouterr().err
