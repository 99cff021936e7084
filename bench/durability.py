"""`python -m bench durability`: acknowledged messages a second from brokers that keep their state.

QoS 1, pipelined, to a subscriber with a session that outlives it. avow with its default, `commit`:
a message is on the disk before it is acknowledged. mosquitto with `autosave_on_changes` and
`autosave_interval 1`, the most that it offers: it writes its whole database after every change, and
acknowledges before. Then: how long a killed avow takes until it answers with a million queued
messages, and for how long it acknowledges nothing while it compacts its journal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Puback,
    Publish,
    StreamDecoder,
    Suback,
    Subscribe,
)
from bench.brokers import (
    HOST,
    Avow,
    Broker,
    BrokerError,
    Certificate,
    Mosquitto,
    free_port,
    started,
)
from bench.loadgen.library import build
from bench.run import Bench, RunError, find_peers, machine
from bench.scenarios import Scenario, Target

_LEVEL = 4
_RESTART_S = 60.0
_COMPACTION_S = 120.0
# Messages that are handed to a socket at once.
_PIECE = 10_000
# What makes a journal grow until it is compacted: values that replace one another.
_GROWTH_BYTES = 16_384
_GROWTH_WINDOW = 8


class DurableAvow(Avow):
    """avow with a sealed store, new for every run."""

    def __init__(self, durability: str) -> None:
        super().__init__()
        self.name = f"avow {durability}"
        self._durability = durability
        self.keep = False
        self.metrics_port = 0

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        state, key = folder / "state", folder / "owner.key"
        if not self.keep:
            shutil.rmtree(state, ignore_errors=True)
            key.unlink(missing_ok=True)
            key.touch(mode=0o600)
            key.write_text(secrets.token_hex(32) + "\n")
        command = super().command(folder, port, tls_port, certificate)
        config = folder / "avow.toml"
        text = config.read_text().replace("persist_sessions = false", "persist_sessions = true")
        store = f'[store]\ndirectory = "{state}"\nkey = "file:{key}"\n'
        metrics = f"[metrics]\nport = {self.metrics_port}\n" if self.metrics_port else ""
        config.write_text(f'{text}\n{store}durability = "{self._durability}"\n{metrics}')
        return command


class DurableMosquitto(Mosquitto):
    """mosquitto that saves as often as it can."""

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        command = super().command(folder, port, tls_port, certificate)
        state = folder / "mosquitto"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        config = folder / "mosquitto.conf"
        config.write_text(
            config.read_text().replace(
                "persistence false",
                f"persistence true\npersistence_location {state}/\n"
                "autosave_on_changes true\nautosave_interval 1",
            )
        )
        return command


def rates(bench: Bench, brokers: Sequence[Broker], groups: int, rounds: int) -> dict[str, Any]:
    """Acknowledged messages a second by broker: every round, and the median."""
    scenario = Scenario(
        f"durable_pairs{groups}",
        f"QoS 1, durable, pipelined, {groups} pairs",
        {"qos": 1, "window": 1000, "groups": groups, "durable": True},
        (Target("acknowledged_rate"),),
    )
    found: dict[str, list[float]] = {broker.name: [] for broker in brokers}
    for _ in range(rounds):
        for broker in brokers:
            values = bench.run(scenario, broker)
            found[broker.name].append(values["acknowledged_rate"])
            print(f"  {scenario.name} {broker.name}: {found[broker.name][-1]:,.0f}/s", flush=True)
    return {
        name: {"median_per_s": statistics.median(values), "rounds_per_s": values}
        for name, values in found.items()
    }


class _Connection:
    """A client for the restart, as simple as it can be."""

    def __init__(self, port: int, client: str) -> None:
        self.sock = socket.create_connection((HOST, port))
        self._decoder = StreamDecoder(_LEVEL)
        self._waiting: list[Any] = []
        self.sock.sendall(Connect(client, _LEVEL, clean_start=False).encode())
        self.session_present = self.next(Connack).session_present

    def next(self, kind: type[Any]) -> Any:
        while not self._waiting:
            data = self.sock.recv(1 << 16)
            if not data:
                raise BrokerError("the broker closed the connection")
            self._waiting = list(self._decoder.feed(data))
        packet = self._waiting.pop(0)
        if not isinstance(packet, kind):
            raise BrokerError(f"expected {kind.__name__}, got {packet}")
        return packet


def _queue(port: int, count: int, payload_bytes: int) -> None:
    """`count` messages of QoS 1 for a subscriber that is not there."""
    subscriber = _Connection(port, "absent")
    subscriber.sock.sendall(Subscribe(1, [Filter("queue", 1)]).encode(_LEVEL))
    subscriber.next(Suback)
    subscriber.sock.close()
    publisher = _Connection(port, "publisher")
    acknowledged = threading.Thread(target=_count, args=(publisher.sock, 4 * count))
    acknowledged.start()
    for start in range(0, count, _PIECE):
        publisher.sock.sendall(
            b"".join(
                Publish("queue", bytes(payload_bytes), 1, 1 + number % 60_000).encode(_LEVEL)
                for number in range(start, min(start + _PIECE, count))
            )
        )
    acknowledged.join()
    publisher.sock.close()


def _retain(port: int, count: int, payload_bytes: int) -> None:
    """`count` retained values, each with a topic of its own."""
    publisher = _Connection(port, "publisher")
    acknowledged = threading.Thread(target=_count, args=(publisher.sock, 4 * count))
    acknowledged.start()
    for start in range(0, count, _PIECE):
        publisher.sock.sendall(
            b"".join(
                Publish(
                    f"kept/{number}", bytes(payload_bytes), 1, 1 + number % 60_000, retain=True
                ).encode(_LEVEL)
                for number in range(start, min(start + _PIECE, count))
            )
        )
    acknowledged.join()
    publisher.sock.close()


def _count(sock: socket.socket, size_bytes: int) -> None:
    """Until that many bytes of PUBACK came, four a message."""
    while size_bytes > 0:
        data = sock.recv(1 << 16)
        if not data:
            raise BrokerError("the broker closed the connection before it had acknowledged all")
        size_bytes -= len(data)


@contextlib.contextmanager
def _killed(broker: Broker, folder: Path, certificate: Certificate, count: int) -> Iterator[None]:
    with contextlib.suppress(BrokerError), started(broker, folder, certificate, None) as running:
        _queue(running.port, count, 64)
        os.kill(running.pid, signal.SIGKILL)
    yield


def restart(folder: Path, certificate: Certificate, count: int, rounds: int) -> dict[str, Any]:
    """Seconds from the start of a process until a client has its session with `count` messages."""
    broker = DurableAvow("commit")
    with _killed(broker, folder, certificate, count):
        broker.keep = True
        state_bytes = (folder / "state" / "store.avow").stat().st_size
        found: list[float] = []
        for _ in range(rounds):
            begin_s = time.monotonic()
            with contextlib.suppress(BrokerError), started(broker, folder, certificate, None) as at:
                connection = _Connection(at.port, "absent")
                found.append(time.monotonic() - begin_s)
                if not connection.session_present:
                    raise RunError("the session was lost")
                first = connection.next(Publish)
                if first.text != "queue":
                    raise RunError(f"expected the first queued message, got {first}")
                connection.sock.close()
                os.kill(at.pid, signal.SIGKILL)
            print(f"  restart with {count:,} queued: {found[-1]:.2f} s", flush=True)
    return {"queued": count, "median_s": statistics.median(found), "store_bytes": state_bytes}


def compaction(
    folder: Path, certificate: Certificate, fill: Callable[[int, int, int], None], count: int
) -> dict[str, Any]:
    """The longest time without a PUBACK while the journal of `count` messages is compacted, and in
    the second before, in ms."""
    broker = DurableAvow("commit")
    broker.metrics_port = free_port()
    with started(broker, folder, certificate, None) as running:
        fill(running.port, count, 64)
        made = _compactions(broker.metrics_port)
        gaps: list[float] = []
        calm = 0.0
        growing = _growing(running.port)
        begun_s = time.monotonic()
        for number, gap_s in enumerate(growing):
            gaps.append(gap_s)
            if time.monotonic() - begun_s < 1.0:
                calm = max(gaps)
            elif number % 256 == 0 and _compactions(broker.metrics_port) > made:
                break
            elif time.monotonic() - begun_s > _COMPACTION_S:
                raise RunError(f"expected a compaction within {_COMPACTION_S:.0f} s, got none")
        growing.close()
    name = fill.__name__.strip("_")
    print(f"  compaction with {count:,} ({name}): {1000 * max(gaps):.0f} ms", flush=True)
    return {"messages": count, "longest_gap_ms": 1000 * max(gaps), "before_ms": 1000 * calm}


def _growing(port: int) -> Generator[float, None, None]:
    """Publishes without an end; gives the seconds between one PUBACK and the next."""
    connection = _Connection(port, "growing")
    packet = Publish("kept/0", bytes(_GROWTH_BYTES), 1, 1, retain=True).encode(_LEVEL)
    try:
        connection.sock.sendall(packet * _GROWTH_WINDOW)
        before_s = time.monotonic()
        while True:
            connection.next(Puback)
            now_s = time.monotonic()
            yield now_s - before_s
            before_s = now_s
            connection.sock.sendall(packet)
    finally:
        connection.sock.close()


def _compactions(metrics_port: int) -> int:
    url = f"http://{HOST}:{metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=_RESTART_S) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("avow_pump_journal_compactions_total "):
                return int(float(line.split()[1]))
    raise RunError("the broker's metrics do not count compactions")


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench durability", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warmup", type=float, default=0.5)
    parser.add_argument(
        "--queued", type=int, default=1_000_000, help="for the restart and the compactions"
    )
    parser.add_argument("--groups", type=int, action="append", default=None)
    parser.add_argument("--peer", type=Path, help="a mosquitto")
    parser.add_argument("--json", type=Path, help="where the results go")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Prints and writes what was measured; 1 when a run broke."""
    options = _arguments(arguments)
    build()
    peers = find_peers([options.peer] if options.peer else [], None)
    brokers: list[Broker] = [DurableAvow(name) for name in ("commit", "interval", "none")]
    brokers += [DurableMosquitto(peer.path) for peer in peers if isinstance(peer, Mosquitto)]
    with tempfile.TemporaryDirectory(prefix="avow-durability-") as name:
        folder = Path(name)
        bench = Bench.on_two_cores(folder, seconds=options.seconds, warmup_s=options.warmup)
        try:
            result = {
                "machine": machine(),
                "pairs": {
                    str(groups): rates(bench, brokers, groups, options.rounds)
                    for groups in options.groups or (1, 16)
                },
                "restart": restart(folder, bench.certificate, options.queued, options.rounds),
                "compaction": {
                    f"{fill.__name__.strip('_')} {count}": compaction(
                        folder, bench.certificate, fill, count
                    )
                    for fill in (_queue, _retain)
                    for count in (options.queued // 10, options.queued)
                },
            }
        except (RunError, BrokerError, subprocess.TimeoutExpired) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    for groups, found in result["pairs"].items():
        for broker, values in found.items():
            print(f"{groups:>3} pairs  {broker:24} {values['median_per_s']:>12,.0f} /s")
    print(f"restart with {result['restart']['queued']:,} queued: ", end="")
    print(f"{result['restart']['median_s']:.2f} s")
    for what, found in result["compaction"].items():
        print(f"longest time without a PUBACK, {what:16} ", end="")
        print(f"{found['longest_gap_ms']:.0f} ms ({found['before_ms']:.0f} ms before)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0
