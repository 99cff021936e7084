"""`python -m bench neighbours`: what clients that behave get while others do their worst.

Brokers run with their own default limits, in turns, and each is attacked in three ways.

`deep`: one client subscribes to 4,000 filters of 120 levels, each of them `+` or `a`, in ten
packets; then a message goes to `a/a/a/…`, which they all match. Printed: how long it takes until
all filters and the message (QoS 1) are acknowledged, and the longest answer to a PINGREQ of
somebody else, who asks all the while.

`deaf`: many clients subscribe to `#` and never read. A pair exchanges one message at a time, which
all of them match. Printed: p50 and p99 of its latency. The kernel has room for all of it, so that
no socket is ever full.

`full`: the same with sockets that take little. The pair is measured until the kernel's queue of
each of them is full (`filling`), and then with larger messages, which the broker has to keep or to
drop (`blocked`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from avow.testing.mqtt import Connect, Filter, Publish, Subscribe
from bench.brokers import (
    HOST,
    Avow,
    Broker,
    BrokerError,
    Certificate,
    Mosquitto,
    make_certificate,
    started,
    two_cores,
)
from bench.processes import raise_descriptor_limit
from bench.run import RunError, find_peers, machine

_VERSION = 4
_LEVELS = 120
_FILTERS = 4000
_TOPIC = "/".join("a" * _LEVELS)
_PATIENCE_S = 180.0
_KINDS = ("deep", "deaf", "full")
_PING = b"\xc0\x00"
_PAYLOAD = b"x" * 64
# 1,000 of these for 2,000 clients are twice the memory that avow takes by default.
_LARGE_PAYLOAD = b"x" * 1024
_PAIR_PATIENCE_S = 20.0
# What `full` asks of the kernel: room for some ten thousand bytes at each end. The bound on a
# segment is what makes the sending end small: it is twice ten segments.
_SMALL_BUFFER_BYTES = 4096
_SMALL_SEGMENT_BYTES = 536
# The kernel still lets the sending end grow to some 200,000 bytes.
_FILL_PAYLOAD = b"x" * 512
_FILL_BYTES = 300_000


class DefaultAvow(Avow):
    """avow as it is without a line about limits."""

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        config = folder / "avow.toml"
        urls = [f"mqtt://{HOST}:{number}" for number in (port, tls_port)]
        listeners = "".join(f'[[listeners]]\nurl = "{url}"\n' for url in urls)
        config.write_text(f'allow_anonymous = true\n{listeners}[log]\nlevel = "error"\n')
        return [str(self.python), "-m", "avow", "broker", "--config", str(config)]


class DefaultMosquitto(Mosquitto):
    """mosquitto as it is without a line about limits, but without Nagle."""

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        lines = ["allow_anonymous true", "set_tcp_nodelay true", "log_dest none"]
        lines += [f"listener {number} {HOST}" for number in (port, tls_port)]
        if os.geteuid() == 0:
            lines.append("user root")
        config = folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [str(self.path), "-c", str(config)]


def _connect(port: int, name: str, *, small: bool = False) -> socket.socket:
    """`small`: the kernel keeps little for this client, here and at the broker's end."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SMALL_SEGMENT_BYTES)
    sock.settimeout(_PATIENCE_S)
    sock.connect((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(Connect(name, version=_VERSION).encode())
    if _exactly(sock, 4)[:2] != b"\x20\x02":
        raise RunError(f"{name} was not admitted")
    return sock


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise RunError(f"the broker closed a connection after {len(data)} of {count} bytes")
        data += piece
    return bytes(data)


@contextlib.contextmanager
def _longest_answer(port: int) -> Iterator[list[float]]:
    """PINGREQ after PINGREQ in a thread; at the end the list holds the longest answer's seconds."""
    found: list[float] = []
    stop = threading.Event()
    with contextlib.closing(_connect(port, "neighbour")) as sock:

        def ask() -> None:
            longest_s = 0.0
            while not stop.wait(0.001):
                start_s = time.perf_counter()
                sock.sendall(_PING)
                _exactly(sock, 2)
                longest_s = max(longest_s, time.perf_counter() - start_s)
            found.append(longest_s)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()


def deep(port: int) -> dict[str, float]:
    """Seconds; see the module's text."""
    draw = random.Random(1)
    filters = ["/".join(draw.choice("a+") for _ in range(_LEVELS)) for _ in range(_FILTERS)]
    each = _FILTERS // 10
    packets = [
        Subscribe(1 + at, [Filter(text) for text in filters[at : at + each]]).encode(_VERSION)
        for at in range(0, _FILTERS, each)
    ]
    message = Publish(_TOPIC, b"x", 1, 1).encode(_VERSION)
    evil = _connect(port, "evil")
    source = _connect(port, "source")
    with contextlib.closing(evil), contextlib.closing(source):
        with _longest_answer(port) as subscribing:
            start_s = time.perf_counter()
            evil.sendall(b"".join(packets))
            _exactly(evil, 10 * (2 + 1 + 2 + each))  # each SUBACK has a length of two bytes
            subscribed_s = time.perf_counter() - start_s
        with _longest_answer(port) as matching:
            start_s = time.perf_counter()
            source.sendall(message)
            _exactly(source, 4)  # PUBACK
            matched_s = time.perf_counter() - start_s
    return {
        "subscribe_s": subscribed_s,
        "match_s": matched_s,
        "longest_answer_s": max(*subscribing, *matching),
    }


@contextlib.contextmanager
def _pair_among_the_deaf(
    port: int, clients: int, *, small: bool = False
) -> Iterator[Callable[[int, bytes], list[float]]]:
    """Yields what exchanges so many messages of this payload; seconds for each."""
    with contextlib.ExitStack() as stack:
        subscribe = Subscribe(1, [Filter("#")]).encode(_VERSION)
        for number in range(clients):
            sock = _connect(port, f"deaf-{number}", small=small)
            stack.enter_context(contextlib.closing(sock))
            sock.sendall(subscribe)
            _exactly(sock, 5)
        reader = stack.enter_context(contextlib.closing(_connect(port, "reader")))
        reader.sendall(Subscribe(1, [Filter("pair")]).encode(_VERSION))
        _exactly(reader, 5)
        reader.settimeout(_PAIR_PATIENCE_S)
        writer = stack.enter_context(contextlib.closing(_connect(port, "writer")))

        def exchange(messages: int, payload: bytes) -> list[float]:
            packet = Publish("pair", payload).encode(_VERSION)
            taken: list[float] = []
            gc.disable()
            for _ in range(messages):
                start_s = time.perf_counter()
                writer.sendall(packet)
                try:
                    _exactly(reader, len(packet))
                except TimeoutError:
                    text = f"expected the pair's message within {_PAIR_PATIENCE_S:.0f} s, got"
                    raise RunError(f"{text} {len(taken)} of {messages} and no more") from None
                taken.append(time.perf_counter() - start_s)
            gc.enable()
            return taken

        yield exchange


def _spread(name: str, taken: Sequence[float]) -> dict[str, float]:
    steps = statistics.quantiles(taken, n=100)
    return {f"{name}p50_s": steps[49], f"{name}p99_s": steps[98]}


def deaf(port: int, clients: int, messages: int) -> dict[str, float]:
    """Seconds; see the module's text."""
    with _pair_among_the_deaf(port, clients) as exchange:
        return _spread("", exchange(messages, _PAYLOAD))


def _waiting_bytes(port: int) -> list[int]:
    """What waits in the kernel for each connection to `port`, at the sending end.

    Source: Documentation/networking/proc_net_tcp.rst of Linux (`local_address`, `st` 01 for
    established, `tx_queue`; all hexadecimal).
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    suffix = f":{port:04X}"
    return [
        int(row[4].split(":")[0], 16) for row in rows if row[1].endswith(suffix) and row[3] == "01"
    ]


def full(port: int, clients: int, messages: int) -> dict[str, float]:
    """Seconds; see the module's text."""
    with _pair_among_the_deaf(port, clients, small=True) as exchange:
        filling = exchange(max(messages, _FILL_BYTES // len(_FILL_PAYLOAD)), _FILL_PAYLOAD)
        time.sleep(1)  # what was put off is sent meanwhile
        before = _waiting_bytes(port)
        blocked = exchange(messages, _LARGE_PAYLOAD)
        after = _waiting_bytes(port)
        if sum(each > 0 for each in before) < clients or sum(after) > 1.1 * sum(before):
            raise RunError(f"the sockets were not full: {sum(before)} bytes, then {sum(after)}")
        return {**_spread("filling_", filling), **_spread("blocked_", blocked)}


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench neighbours", description=__doc__)
    parser.add_argument("--peer", type=Path, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=_KINDS)
    parser.add_argument("--clients", type=int, default=2000, help="of `deaf` and `full`")
    parser.add_argument("--messages", type=int, default=1000, help="of `deaf` and `full`")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Prints medians; 1 when a run broke."""
    options = _arguments(arguments)
    raise_descriptor_limit()
    peers = [peer for peer in find_peers(options.peer, None) if isinstance(peer, Mosquitto)]
    brokers: list[Broker] = [DefaultAvow(), *(DefaultMosquitto(peer.path) for peer in peers)]
    core, own_core = two_cores()
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="avow-neighbours-") as name:
        folder = Path(name)
        certificate = make_certificate(folder)
        if own_core is not None:
            os.sched_setaffinity(0, {own_core})
        try:
            for _ in range(options.rounds):
                for kind in [options.only] if options.only else _KINDS:
                    for broker in brokers:
                        with started(broker, folder, certificate, core) as running:
                            if kind == "deep":
                                found = deep(running.port)
                            else:
                                among = {"deaf": deaf, "full": full}[kind]
                                found = among(running.port, options.clients, options.messages)
                        runs.setdefault(kind, {}).setdefault(broker.name, []).append(found)
        except (RunError, BrokerError, OSError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    for kind, of_brokers in runs.items():
        for broker_name, rounds in of_brokers.items():
            values = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
            shown = "  ".join(f"{key[:-2]} {value * 1e3:9.2f} ms" for key, value in values.items())
            print(f"{kind}  {broker_name:18} {shown}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
