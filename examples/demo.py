"""Real clients at a real broker: this machine's readings over TLS, for about twenty seconds.

    make demo

The broker is `avow broker` in a process of its own, with a certificate from an authority that is
made for this run. The clients are paho-mqtt's: publishers send load, memory and network counters
from /proc; subscribers use wildcards, a shared subscription, retained values and a will. Every
count is checked at the end: the exit code is 0 only when everything expected has happened.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from avow.testing.pki import Authority

FLOW_S = 10.0
READINGS_PER_S = 5
BURST_MESSAGES = 20_000
PATIENCE_S = 20.0

BOLD, DIM, GREEN, RED, PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m"


def show(text: str, *marks: str) -> None:
    """One line, in colour where a terminal can show it."""
    if sys.stdout.isatty() and marks:
        text = "".join(marks) + text + PLAIN
    print(text, flush=True)


class Expectations:
    """What had to happen, and whether it did."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, happened: bool, sentence: str) -> None:
        """Prints the sentence with its verdict."""
        if not happened:
            self.failed += 1
        show(f"  {'ok  ' if happened else 'FAIL'} {sentence}", GREEN if happened else RED)


@dataclass
class Broker:
    """The broker's process and what its log says."""

    process: subprocess.Popen[str]
    port: int = 0
    module_sha256: str = ""
    lines: list[str] = field(default_factory=list)
    listening: threading.Event = field(default_factory=threading.Event)

    def read_log(self) -> None:
        """Runs in a thread until the broker has closed its log."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            entry = json.loads(line) if line.startswith("{") else {}
            self.module_sha256 = entry.get("module_sha256", self.module_sha256)
            if entry.get("event") == "listening":
                self.port = int(entry["port"])
                self.listening.set()
        self.listening.set()


@contextmanager
def running_broker(folder: Path, authority: Authority) -> Iterator[Broker]:
    """`avow broker` with TLS on a free port of this machine; stopped by SIGTERM."""
    certificate, key = authority.issue_server().write(folder, "server")
    command = [sys.executable, "-m", "avow", "broker", "--allow-anonymous"]
    command += ["--listen", "mqtts://127.0.0.1:0", "--cert", str(certificate), "--key", str(key)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    broker = Broker(process)
    reader = threading.Thread(target=broker.read_log)
    reader.start()
    try:
        if not broker.listening.wait(PATIENCE_S) or not broker.port:
            raise RuntimeError("the broker did not start:\n" + "".join(broker.lines))
        yield broker
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
        reader.join(PATIENCE_S)
        if process.stderr is not None:
            process.stderr.close()


class Member:
    """One paho-mqtt client of the demo: it counts what comes, by topic."""

    def __init__(self, name: str, broker: Broker, context: ssl.SSLContext) -> None:
        self.name = name
        self.received: Counter[str] = Counter()
        self.retained: Counter[str] = Counter()
        self.latest: dict[str, str] = {}
        self._changed = threading.Condition()
        self._subscribed = 0
        self._connected = False
        self._port = broker.port
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=name,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        self.client.tls_set_context(context)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message

    def __enter__(self) -> Member:
        self.client.connect("127.0.0.1", self._port)
        self.client.loop_start()
        self.wait(lambda: self._connected, f"{self.name} to be connected")
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Returns when the broker has confirmed it."""
        wanted = self._subscribed + 1
        self.client.subscribe(topic_filter, qos)
        self.wait(lambda: self._subscribed >= wanted, f"{self.name} to be subscribed")

    def wait(self, ready: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Waits for something that a callback brings; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(ready, timeout_s):
                raise TimeoutError(f"waited {timeout_s:g} s for {what}")

    def wait_for_total(self, count: int) -> bool:
        """True as soon as `count` messages have come; False when they do not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.received.total() >= count, PATIENCE_S)

    def lose_connection(self) -> None:
        """Cuts the socket without a goodbye, as a device does that loses its power."""
        sock = self.client.socket()
        if isinstance(sock, socket.socket):
            sock.shutdown(socket.SHUT_RDWR)

    def _on_connect(
        self, client: Client, data: object, flags: object, code: ReasonCode, properties: object
    ) -> None:
        with self._changed:
            self._connected = not code.is_failure
            self._changed.notify_all()

    def _on_subscribe(
        self,
        client: Client,
        data: object,
        number: int,
        codes: list[ReasonCode],
        properties: object,
    ) -> None:
        with self._changed:
            self._subscribed += sum(not code.is_failure for code in codes)
            self._changed.notify_all()

    def _on_message(self, client: Client, data: object, message: MQTTMessage) -> None:
        with self._changed:
            self.received[message.topic] += 1
            self.retained[message.topic] += bool(message.retain)
            if len(message.payload) < 200:
                self.latest[message.topic] = message.payload.decode()
            self._changed.notify_all()


def load() -> dict[str, str]:
    """The load averages of one and five minutes."""
    one, five, *_ = Path("/proc/loadavg").read_text().split()
    return {"machine/load/1min": one, "machine/load/5min": five}


def memory() -> dict[str, str]:
    """Free and used memory, MiB."""
    kib: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    free = kib["MemAvailable"] // 1024
    return {
        "machine/memory/free": str(free),
        "machine/memory/used": str(kib["MemTotal"] // 1024 - free),
    }


def network() -> dict[str, str]:
    """Bytes received and sent by the loopback interface, which carries this demo."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            fields = rest.split()
            return {"machine/network/received": fields[0], "machine/network/sent": fields[8]}
    return {"machine/network/received": "0", "machine/network/sent": "0"}


SOURCES: dict[str, tuple[Callable[[], dict[str, str]], int]] = {
    "load": (load, 0),
    "memory": (memory, 1),
    "network": (network, 2),
}


def publish_readings(member: Member, source: str, until_s: float, sent: Counter[str]) -> None:
    """Sends readings, retained, at the source's QoS, until `until_s`."""
    read, qos = SOURCES[source]
    due_s = time.monotonic()
    while due_s < until_s:
        for topic, value in read().items():
            member.client.publish(topic, value, qos, retain=True).wait_for_publish(PATIENCE_S)
            sent[topic] += 1
        due_s += 1 / READINGS_PER_S
        time.sleep(max(0.0, due_s - time.monotonic()))


def flow(
    broker: Broker, context: ssl.SSLContext, watcher: Member, shared: list[Member]
) -> Counter[str]:
    """Publishers in threads; the latest values on the screen once a second."""
    sent: Counter[str] = Counter()
    with ExitStack() as stack:
        until_s = time.monotonic() + FLOW_S
        threads = []
        for source in SOURCES:
            member = stack.enter_context(Member(f"publisher-{source}", broker, context))
            threads.append(
                threading.Thread(target=publish_readings, args=(member, source, until_s, sent))
            )
        for thread in threads:
            thread.start()
        show(f"{'seconds':>8} {'load':>6} {'free MiB':>9} {'lo bytes':>12} {'messages':>9}", BOLD)
        started_s = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1.0)
            latest = watcher.latest
            show(
                f"{time.monotonic() - started_s:>8.1f} {latest.get('machine/load/1min', ''):>6} "
                f"{latest.get('machine/memory/free', ''):>9} "
                f"{latest.get('machine/network/sent', ''):>12} {watcher.received.total():>9}  "
                + DIM * sys.stdout.isatty()
                + "shared between two: "
                + " + ".join(str(member.received.total()) for member in shared)
                + PLAIN * sys.stdout.isatty()
            )
        for thread in threads:
            thread.join()
    return sent


def burst(broker: Broker, context: ssl.SSLContext) -> tuple[int, float]:
    """Messages as fast as these Python clients can: how many came, and how many a second."""
    with Member("burst-in", broker, context) as sink, Member("burst-out", broker, context) as out:
        sink.subscribe("burst", 0)
        payload = b"x" * 256
        started_s = time.monotonic()
        for _ in range(BURST_MESSAGES):
            out.client.publish("burst", payload, 0)
        sink.wait_for_total(BURST_MESSAGES)
        count = sink.received.total()
        return count, count / (time.monotonic() - started_s)


def last_will(broker: Broker, context: ssl.SSLContext, watcher: Member) -> bool:
    """A client that vanishes: the broker speaks for it."""
    device = Member("device", broker, context)
    device.client.will_set("status/device", "lost", 1)
    watcher.subscribe("status/+")
    with device:
        device.client.publish("status/device", "here", 1).wait_for_publish(PATIENCE_S)
        device.lose_connection()
        try:
            watcher.wait(lambda: watcher.latest.get("status/device") == "lost", "the will")
        except TimeoutError:
            return False
    return True


def retained_values(broker: Broker, context: ssl.SSLContext, topics: int) -> int:
    """How many values somebody who comes late gets at once."""
    with Member("latecomer", broker, context) as late:
        late.subscribe("machine/#")
        late.wait_for_total(topics)
        return sum(late.retained.values())


def drained(broker: Broker) -> bool:
    """SIGTERM: the broker tells its clients and ends with 0."""
    broker.process.send_signal(signal.SIGTERM)
    return broker.process.wait(PATIENCE_S) == 0


def demonstrate(broker: Broker, context: ssl.SSLContext, expect: Expectations) -> None:
    """The whole story, and the checks of its counts."""
    with ExitStack() as stack:
        watcher = stack.enter_context(Member("watcher", broker, context))
        loads = stack.enter_context(Member("loads", broker, context))
        shared = [stack.enter_context(Member(f"worker-{n}", broker, context)) for n in (1, 2)]
        watcher.subscribe("machine/#", 2)
        loads.subscribe("machine/load/+")
        for worker in shared:
            worker.subscribe("$share/workers/machine/#")
        sent = flow(broker, context, watcher, shared)
        total = sent.total()
        watcher.wait_for_total(total)
        of_loads = sum(count for topic, count in sent.items() if "/load/" in topic)
        loads.wait_for_total(of_loads)
        for worker in shared:
            worker.wait(lambda: sum(w.received.total() for w in shared) >= total, "the workers")
        show("\nchecks", BOLD)
        expect.check(total >= 0.8 * FLOW_S * READINGS_PER_S * 6, f"{total} readings were sent")
        expect.check(watcher.received == sent, f"machine/# brought all {total}, once each")
        expect.check(loads.received.total() == of_loads, f"machine/load/+ brought {of_loads}")
        parts = [worker.received.total() for worker in shared]
        expect.check(
            sum(parts) == total and min(parts) > 0,
            f"the shared subscription split them: {parts[0]} + {parts[1]}",
        )
        count = retained_values(broker, context, len(sent))
        expect.check(count == len(sent), f"a latecomer got {count} retained values")
        expect.check(last_will(broker, context, watcher), "the will of a lost client came")
        came, rate = burst(broker, context)
        expect.check(came == BURST_MESSAGES, f"{came} of {BURST_MESSAGES} messages of a burst came")
        show(f"\nrates, TLS 1.3, bounded by these Python clients: {rate:,.0f} messages a second")
        expect.check(drained(broker), "SIGTERM drained the broker: exit 0")


def main() -> int:
    """0 when everything expected has happened."""
    started_s = time.monotonic()
    expect = Expectations()
    with tempfile.TemporaryDirectory(prefix="avow-demo-") as name:
        folder = Path(name)
        authority = Authority("avow demo authority")
        context = ssl.create_default_context(cafile=str(authority.write(folder / "ca.pem")))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with running_broker(folder, authority) as broker:
            show(f"broker    mqtts://127.0.0.1:{broker.port} (process {broker.process.pid})", BOLD)
            show(f"module    {broker.module_sha256}", BOLD)
            measured = subprocess.run(
                [sys.executable, "-m", "avow", "measure", "broker"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            try:
                demonstrate(broker, context, expect)
            except TimeoutError as error:
                expect.check(False, str(error))
            except KeyboardInterrupt:
                expect.check(False, "the demo was interrupted")
            expect.check(
                measured == broker.module_sha256, "`avow measure broker` prints the same module"
            )
    show(f"\n{time.monotonic() - started_s:.0f} seconds", DIM)
    if expect.failed:
        show(f"{expect.failed} expectations were not met", RED)
    return 1 if expect.failed else 0


if __name__ == "__main__":
    sys.exit(main())
