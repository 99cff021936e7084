"""How long a connection takes, and how many a second a slow TEE serves."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bench.attestation.dialing import DialError, Stream


class Connector(Protocol):
    """One way to connect."""

    def connect(self, port: int) -> Stream:
        """To CONNACK. Errors: DialError."""


def connect_in_turns(ways: Mapping[str, Connector], port: int, count: int) -> dict[str, float]:
    """The median milliseconds of `count` connections for each way, one after the other.

    Whatever disturbs the machine for a moment disturbs all ways alike.
    """
    took_ms: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        # The first connection loads what others find loaded.
        way.connect(port).close()
    for _ in range(count):
        for name, way in ways.items():
            start_ns = time.perf_counter_ns()
            stream = way.connect(port)
            took_ms[name].append((time.perf_counter_ns() - start_ns) / 1e6)
            stream.close()
    return {name: statistics.median(values) for name, values in took_ms.items()}


@dataclass(slots=True)
class Flood:
    """What became of connections that many clients made at the same time."""

    clients: int
    seconds: float
    took_ms: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def values(self) -> dict[str, float]:
        """The figures of one run."""
        ordered = sorted(self.took_ms) or [float("nan")]
        return {
            "rate": len(self.took_ms) / self.seconds,
            "refused": len(self.refused),
            "p50_ms": statistics.median(ordered),
            "p99_ms": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        }


def flood(way: Connector, port: int, *, clients: int, warmup_s: float, seconds: float) -> Flood:
    """`clients` threads connect again and again; counts what ends in the measured seconds.

    A client that is refused says so and goes on.
    """
    found = Flood(clients, seconds)
    lock = threading.Lock()
    measured_from_s = time.monotonic() + warmup_s
    end_s = measured_from_s + seconds

    def one_client() -> None:
        while (start_s := time.monotonic()) < end_s:
            refusal = ""
            try:
                way.connect(port).close()
            except DialError as error:
                refusal = str(error)
            done_s = time.monotonic()
            with lock:
                if refusal:
                    found.refused.append(refusal)
                elif measured_from_s <= done_s < end_s:
                    found.took_ms.append((done_s - start_s) * 1000)

    threads = [threading.Thread(target=one_client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
