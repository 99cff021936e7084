"""What is measured, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to reach.

    `metric` is a key of the worker's result. Relative targets hold `avow / peer` against the factor
    of the longest matching version prefix ("" matches all); an absolute one holds avow's own figure
    against `limit`.
    """

    metric: str
    higher_is_better: bool = True
    factors: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None

    def factor(self, version: str) -> float | None:
        """The factor against a peer of this version, if there is one."""
        matching = [prefix for prefix in self.factors if version.startswith(prefix)]
        return self.factors[max(matching, key=len)] if matching else None

    def is_reached(self, value: float, bound: float) -> bool:
        return value >= bound if self.higher_is_better else value <= bound


@dataclass(frozen=True, slots=True)
class Scenario:
    """One shape of load, the same for every broker.

    `job` holds fields of `bench.loadgen.worker.Job`. With `half_of_saturation` the job is first run
    against the peer as it is (closed loop), then against both at half of the rate it gave.
    """

    name: str
    title: str
    job: Mapping[str, Any]
    targets: tuple[Target, ...]
    tls: bool = False
    half_of_saturation: bool = False
    # Against mosquitto too, or avow alone.
    compared: bool = True

    @property
    def has_ceiling(self) -> bool:
        """The reflector, which is no real broker, can stand in: what it reaches nobody exceeds."""
        return self.targets[0].metric == "rate" and not self.half_of_saturation


# 2.1 is faster than 2.0, so what is asked for differs.
_IN_FLIGHT = Target("rate", factors={"2.0": 1.2, "": 1.0})
_PIPELINED = Target("rate", factors={"": 8.0})
_ACKNOWLEDGED = Target("rate", factors={"": 2.0})
_P99 = Target("p99_us", higher_is_better=False, factors={"": 1.0})


def _both(
    name: str, title: str, job: Mapping[str, Any], target: Target, **more: Any
) -> list[Scenario]:
    return [
        Scenario(f"{name}_plain", f"{title}, plain", job, (target,), **more),
        Scenario(f"{name}_tls", f"{title}, TLS 1.3", job, (target,), tls=True, **more),
    ]


def all_scenarios(*, idle: int = 10_000, idle_tls: int = 2_000) -> list[Scenario]:
    """In the order of the table."""
    found: list[Scenario] = []
    for pairs in (32, 256):
        job = {"groups": pairs, "window": 1}
        found += _both(f"pairs{pairs}", f"{pairs} pairs, one in flight", job, _IN_FLIGHT)
    for subscribers in (1, 20, 200):
        job = {"subscribers": subscribers, "window": 1000}
        title = f"pipelined QoS 0, 1 to {subscribers}"
        found += _both(f"pipelined{subscribers}", title, job, _PIPELINED)
    for qos in (1, 2):
        for pairs in (1, 16):
            job = {"qos": qos, "window": 20, "groups": pairs}
            plural = "pair" if pairs == 1 else "pairs"
            title = f"QoS {qos}, window 20, {pairs} {plural}"
            found += _both(f"qos{qos}_pairs{pairs}", title, job, _ACKNOWLEDGED)
    shapes = {
        "p99_pairs32": ("p99 at half load, 32 pairs", {"groups": 32, "window": 20}),
        "p99_fanout20": ("p99 at half load, 1 to 20", {"subscribers": 20, "window": 100}),
    }
    for name, (title, job) in shapes.items():
        found += _both(name, title, job, _P99, half_of_saturation=True)
    found.append(
        Scenario(
            "idle_plain",
            f"{idle} idle connections, plain",
            {"connections": idle},
            (
                Target("bytes_per_connection", higher_is_better=False, limit=8 * 1024),
                Target("accept_rate", limit=2000),
            ),
        )
    )
    found.append(
        Scenario(
            "idle_tls",
            f"{idle_tls} idle connections, TLS 1.3",
            {"connections": idle_tls},
            (
                Target("bytes_per_connection", higher_is_better=False, limit=40 * 1024),
                Target("accept_rate"),
            ),
            tls=True,
        )
    )
    return found


MATCHING = Scenario(
    "matching",
    "matching one publish",
    {},
    (
        Target("us_per_match", higher_is_better=False, limit=2.0),
        Target("us_per_publish", higher_is_better=False),
    ),
    compared=False,
)
