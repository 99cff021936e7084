"""The generator's process: one job, as JSON on standard input; one result, as JSON, on output.

python -m bench.loadgen.worker < job.json
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processes
from bench.loadgen.library import Generator, LoadgenError, Role, build, load, percentile_ns


@dataclass(frozen=True, slots=True)
class Job:
    """One load on one broker. Closed loop when `rate` is 0, else that many messages a second.

    `connections` > 0: that many idle connections and nothing else. `attested`: each TLS connection
    asks a simulated broker for its evidence first.
    """

    port: int
    broker_pid: int
    host: str = "127.0.0.1"
    tls_ca: str = ""
    attested: bool = False
    core: int | None = None
    groups: int = 1
    subscribers: int = 1
    connections: int = 0
    level: int = 4
    qos: int = 0
    payload_bytes: int = 64
    window: int = 1
    backlog: int = 10_000
    rate: float = 0.0
    spin: bool = False
    durable: bool = False
    warmup_s: float = 0.5
    seconds: float = 2.0
    settle_s: float = 1.0


class TlsDialer:
    """Makes TLS 1.3 connections on memory BIOs, attested if the job says so."""

    def __init__(self, job: Job) -> None:
        from bench.tls_session import client_context

        self._address = (job.host, job.port)
        self._context = client_context(Path(job.tls_ca))
        self._attested = job.attested

    def dial(self) -> tuple[Any, socket.socket]:
        from bench.tls_session import Session

        session = Session(self._context, *self._address)
        if self._attested:
            from bench.attestation.dialing import attest, settings

            attest(session, settings("simulated"))
        return session.tls, session.sock


def _members(job: Job) -> Iterator[tuple[Role, int]]:
    for group in range(job.groups):
        for _ in range(job.subscribers):
            yield Role.SUBSCRIBER, group
        yield Role.PUBLISHER, group


def _generator(job: Job, capacity: int, groups: int) -> Generator:
    return Generator(
        load(build()),
        host=job.host,
        port=job.port,
        capacity=capacity,
        groups=groups,
        level=job.level,
        qos=job.qos,
        payload_bytes=job.payload_bytes,
        window=job.window,
        backlog=job.backlog,
        rate=job.rate,
        spin=job.spin or job.rate > 0,
        with_tls=bool(job.tls_ca),
        durable=job.durable,
        prefix=f"lg{os.getpid()}",
    )


def run_load(job: Job) -> dict[str, Any]:
    """Warm-up, measured seconds, drain; shares of a core, rates a second, latencies in µs."""
    members = list(_members(job))
    with _generator(job, len(members), job.groups) as generator:
        dialer = TlsDialer(job) if job.tls_ca else None
        for role, group in members:
            if dialer is None:
                generator.open(role, group)
            else:
                generator.adopt(*dialer.dial(), role, group)
        generator.establish()
        generator.run(job.warmup_s)
        own_wait_s, broker_wait_s = processes.wait_s(os.getpid()), processes.wait_s(job.broker_pid)
        broker_start_s, start_s = processes.cpu_s(job.broker_pid), time.monotonic()
        generator.run(job.seconds)
        broker_cpu_s = processes.cpu_s(job.broker_pid) - broker_start_s
        wall_s = time.monotonic() - start_s
        own_wait_s = processes.wait_s(os.getpid()) - own_wait_s
        broker_wait_s = processes.wait_s(job.broker_pid) - broker_wait_s
        phase, buckets = generator.report(), generator.histogram()
        resident_bytes = processes.resident_bytes(job.broker_pid)
        generator.drain()
        final = generator.report()
    elapsed_s = phase["elapsed_ns"] / 1e9
    # Empty polls are timed by the wall clock, so a disturbed run bounds this from above only.
    busy_ns = min(phase["cpu_ns"], phase["elapsed_ns"] - phase["idle_ns"])
    result: dict[str, Any] = {
        "rate": phase["received"] / elapsed_s,
        "published_rate": phase["published"] / elapsed_s,
        "acknowledged_rate": phase["acknowledged"] / elapsed_s,
        "elapsed_s": elapsed_s,
        "generator_cpu": busy_ns / phase["elapsed_ns"],
        "broker_cpu": broker_cpu_s / wall_s,
        # Wanted to run and could not: something else was on the core.
        "generator_wait": own_wait_s / wall_s,
        "broker_wait": broker_wait_s / wall_s,
        "broker_us_per_message": broker_cpu_s * 1e6 / max(1, phase["received"]),
        "broker_resident_bytes": resident_bytes,
        "turns": phase["turns"],
        "late_us_max": phase["late_ns_max"] / 1e3,
        "stalls": final["stalls"],
    }
    for name in ("lost", "duplicates", "disordered", "misrouted"):
        result[name] = final[name]
    for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
        latency_ns = percentile_ns(buckets, share)
        result[name] = None if latency_ns is None else latency_ns / 1e3
    return result


def run_idle(job: Job) -> dict[str, Any]:
    """Opens connections as fast as the broker accepts them; then the broker's memory for each."""
    before_bytes = processes.resident_bytes(job.broker_pid)
    broker_start_s, cpu_start_s = processes.cpu_s(job.broker_pid), time.process_time()
    with _generator(job, job.connections, 0) as generator:
        start_s = time.monotonic()
        if job.tls_ca:
            dialer = TlsDialer(job)
            for number in range(job.connections):
                generator.adopt(*dialer.dial(), Role.IDLE)
                if number % 50 == 49 or number == job.connections - 1:
                    generator.establish()
        else:
            for _ in range(job.connections):
                generator.open(Role.IDLE)
            generator.establish(timeout_s=120)
        elapsed_s = time.monotonic() - start_s
        generator_cpu_s = time.process_time() - cpu_start_s
        broker_cpu_s = processes.cpu_s(job.broker_pid) - broker_start_s
        # Still connected after a while? A closed connection ends the run with an error.
        generator.run(job.settle_s)
        after_bytes = processes.resident_bytes(job.broker_pid)
    return {
        "accept_rate": job.connections / elapsed_s,
        "elapsed_s": elapsed_s,
        "bytes_per_connection": (after_bytes - before_bytes) / job.connections,
        "broker_resident_bytes": after_bytes,
        "generator_cpu": generator_cpu_s / elapsed_s,
        "broker_cpu": broker_cpu_s / elapsed_s,
    }


def main() -> int:
    job = Job(**json.load(sys.stdin))
    if job.core is not None:
        os.sched_setaffinity(0, {job.core})
    processes.raise_descriptor_limit()
    try:
        result = run_idle(job) if job.connections else run_load(job)
    except (LoadgenError, OSError) as error:
        print(f"load generator: {error}", file=sys.stderr)
        return 1
    json.dump({"job": dataclasses.asdict(job), **result}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
