"""An attested broker, clients that judge it, and three impostors that they refuse.

    make demo

The broker is `avow broker --tee simulated` in a process of its own, so NOTHING IS PROTECTED here:
software signs what a TEE would sign. Everything else is as on hardware: a policy made by `avow
policy init`, fresh evidence for every connection, and paho-mqtt's clients that send no byte of MQTT
before the policy has accepted it. They exchange this machine's readings from /proc for ten seconds.
Then they refuse three impostors: a broker with an altered module, a machine in the middle that
passes genuine evidence on, and one that leaves it out. Both in the middle have the broker's own TLS
key. The demo checks every sentence: the exit code is 0 only when everything expected has happened.
"""

from __future__ import annotations

import json
import os
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

from avow.client import AttestedContext
from avow.errors import AvowError, counted
from avow.evidence.appraisal import printable_claims
from avow.testing.pki import Authority
from examples.impostors import InBetween, altered_avow, refused_by_client

FLOW_S = 10.0
READINGS_PER_S = 5
BURST_MESSAGES = 20_000
# Of a loaded machine: on an idle one nothing takes a tenth of it.
PATIENCE_S = 60.0

SIMULATED = "SIMULATED TEE: software signs the evidence; nothing is protected"

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

    def refused(self, error: AvowError | None, check: str, what: str) -> None:
        """The client has to have refused, at the check with this number."""
        if error is None or error.finding is None:
            self.check(
                False,
                f"expected a refusal of {what} at check {check}, got {error or 'a connection'}",
            )
            return
        self.check(error.finding.check.number == check, f"refused, {what}: {error}")


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


@dataclass(frozen=True)
class Setup:
    """The files of this run."""

    folder: Path
    authority: Path
    certificate: Path
    key: Path

    @property
    def configuration(self) -> Path:
        """The broker's."""
        return self.folder / "avow.toml"

    @property
    def policy(self) -> Path:
        """The clients'."""
        return self.folder / "policy.toml"

    @classmethod
    def make(cls, folder: Path) -> Setup:
        """An authority, a certificate, and a configuration with one listener."""
        authority = Authority("avow demo authority")
        certificate, key = authority.issue_server().write(folder, "server")
        setup = cls(folder, authority.write(folder / "ca.pem"), certificate, key)
        setup.configuration.write_text(
            "allow_anonymous = true\n\n[[listeners]]\n"
            f'url = "mqtts://127.0.0.1:0"\ncert = "{certificate}"\nkey = "{key}"\n'
        )
        return setup

    def avow(self, *arguments: str) -> str:
        """What a command of avow prints."""
        done = subprocess.run(
            [sys.executable, "-m", "avow", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )
        if done.returncode != 0:
            raise RuntimeError(f"avow {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def ordinary(self) -> ssl.SSLContext:
        """For clients that know nothing of evidence."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    def attested(self) -> AttestedContext:
        """For clients that judge the broker first: all that changes in a program of paho-mqtt."""
        return AttestedContext(self.policy, cafile=self.authority)


@contextmanager
def running_broker(setup: Setup, *, package: Path | None = None) -> Iterator[Broker]:
    """`avow broker` on a free port of this machine; stopped by SIGTERM.

    `package` is the folder of another avow, to be run in place of this one.
    """
    command = [sys.executable, "-m", "avow", "broker", "--tee", "simulated"]
    command += ["--config", str(setup.configuration)]
    environment = dict(os.environ)
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    broker = Broker(process)
    reader = threading.Thread(target=broker.read_log)
    reader.start()
    try:
        if not broker.listening.wait(PATIENCE_S) or not broker.port:
            raise RuntimeError(
                "expected the broker to start, got this log:\n" + "".join(broker.lines)
            )
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
                raise TimeoutError(
                    f"expected {what} within {timeout_s:g} s, got nothing; is this machine busy?"
                )

    def wait_for_total(self, count: int) -> bool:
        """True as soon as `count` messages have come; False when they do not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.received.total() >= count, PATIENCE_S)

    def lose_connection(self) -> None:
        """Cuts the socket without a goodbye, as a device does that loses its power."""
        attested = self.client.socket()
        if attested is not None:
            # Below TLS, which would say goodbye.
            with socket.socket(fileno=os.dup(attested.fileno())) as sock:
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
            watcher.wait(
                lambda: watcher.latest.get("status/device") == "lost", "the will of the lost client"
            )
        except TimeoutError:
            return False
    return True


def retained_values(broker: Broker, context: ssl.SSLContext, topics: int) -> int:
    """How many values somebody who comes late gets at once."""
    with Member("latecomer", broker, context) as late:
        late.subscribe("machine/#")
        late.wait_for_total(topics)
        return sum(late.retained.values())


def exchange_readings(broker: Broker, setup: Setup, expect: Expectations) -> None:
    """What people do with a broker, over attested connections, and the checks of its counts."""
    context = setup.attested()
    with ExitStack() as stack:
        watcher = stack.enter_context(Member("watcher", broker, context))
        show_evidence(context, broker, expect)
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
            worker.wait(
                lambda: sum(w.received.total() for w in shared) >= total,
                "the workers to get every reading",
            )
        show("\nchecks", BOLD)
        expect.check(
            total >= 0.8 * FLOW_S * READINGS_PER_S * 6, f"the publishers sent {total} readings"
        )
        expect.check(
            watcher.received == sent, f"the subscriber of machine/# got all {total}, each once"
        )
        expect.check(
            loads.received.total() == of_loads, f"the subscriber of machine/load/+ got {of_loads}"
        )
        parts = [worker.received.total() for worker in shared]
        expect.check(
            sum(parts) == total and min(parts) > 0,
            f"the shared subscription split them between two: {parts[0]} + {parts[1]}",
        )
        count = retained_values(broker, setup.ordinary(), len(sent))
        expect.check(
            count == len(sent),
            f"an ordinary client that came later got the {count} retained values",
        )
        expect.check(
            last_will(broker, context, watcher),
            "the broker published the will of a client that vanished",
        )
        came, rate = burst(broker, context)
        expect.check(
            came == BURST_MESSAGES, f"{came} of {BURST_MESSAGES} messages of a burst arrived"
        )
        show(f"\nrate, attested, limited by these Python clients: {rate:,.0f} messages a second")


def show_evidence(context: AttestedContext, broker: Broker, expect: Expectations) -> None:
    """What the broker has shown to the client that connected last, and what was made of it."""
    result = None if context.outcome is None else context.outcome.peer
    if result is None:
        expect.check(False, "the client judged the evidence")
        return
    show("\nwhat the evidence says", BOLD)
    for name, value in printable_claims(result.claims).items():
        show(f"  {name:<16} {value}")
    show(f"result under the policy {result.policy_id[:23]}…: {result.tier.label}\n")
    expect.check(result.accepted, "the policy accepts it")
    expect.check(
        printable_claims(result.claims)["module"] == broker.module_sha256,
        "it names the module that the broker has loaded",
    )


def refusals(broker: Broker, setup: Setup, expect: Expectations) -> None:
    """Three impostors, each refused by the client."""
    context = setup.attested()
    show("\nthree refusals", BOLD)
    package = altered_avow(setup.folder / "altered")
    with running_broker(setup, package=package) as altered:
        expect.check(
            "" != altered.module_sha256 != broker.module_sha256,
            f"a broker with an altered module started ({altered.module_sha256[:16]}…)",
        )
        expect.refused(refused_by_client(altered.port, context), "P4", "another module")
    for strip, check, what in (
        (False, "C15", "a relayed connection"),
        (True, "C11", "stripped evidence"),
    ):
        with InBetween(broker.port, setup.certificate, setup.key, strip=strip) as between:
            expect.refused(refused_by_client(between.port, context), check, what)
        # OPEN came through, in which there is no secret; CONNECT did not.
        expect.check(
            len(between.heard) > 0 and b"MQTT" not in between.heard,
            f"the machine in the middle, which has the broker's TLS key, got {len(between.heard)} "
            f"bytes of the attestation exchange and nothing of MQTT: no login, no message",
        )


def judged_by_commands(broker: Broker, setup: Setup, expect: Expectations) -> None:
    """The same from a shell."""
    address = f"mqtts://127.0.0.1:{broker.port}"
    trust = ["--policy", str(setup.policy), "--cafile", str(setup.authority)]
    setup.avow("pub", *trust, "-t", "demo/round", "-m", "trip", "--retain", address)
    got = setup.avow("sub", *trust, "-t", "demo/+", "--count", "1", "--verbose", address)
    expect.check(
        got == "demo/round trip\n", "`avow sub --policy` got what `avow pub --policy` sent"
    )


def drained(broker: Broker) -> bool:
    """SIGTERM: the broker tells its clients and ends with 0."""
    broker.process.send_signal(signal.SIGTERM)
    return broker.process.wait(PATIENCE_S) == 0


def demonstrate(setup: Setup, expect: Expectations) -> None:
    """The whole story."""
    show("the policy, made by `avow policy init --broker`", BOLD)
    configuration = ("--config", str(setup.configuration))
    simulated = ("--platform", "simulated", "-o", str(setup.policy))
    setup.avow("policy", "init", "--broker", *simulated, *configuration)
    show(setup.avow("policy", "explain", str(setup.policy)))
    measured = setup.avow("measure", "broker").strip()
    with running_broker(setup) as broker:
        show(f"broker    mqtts://127.0.0.1:{broker.port} (process {broker.process.pid})", BOLD)
        show(f"module    {broker.module_sha256}", BOLD)
        expect.check(
            measured == broker.module_sha256, "`avow measure broker` prints the same digest"
        )
        exchange_readings(broker, setup, expect)
        judged_by_commands(broker, setup, expect)
        refusals(broker, setup, expect)
        expect.check(drained(broker), "the broker stopped cleanly on SIGTERM: exit 0")


def main() -> int:
    """0 when everything expected has happened."""
    started_s = time.monotonic()
    expect = Expectations()
    show(f"{SIMULATED}\n", BOLD, RED)
    with tempfile.TemporaryDirectory(prefix="avow-demo-") as name:
        try:
            demonstrate(Setup.make(Path(name)), expect)
        except (TimeoutError, RuntimeError, ConnectionError) as error:
            expect.check(False, str(error))
        except KeyboardInterrupt:
            expect.check(False, "expected the demo to run to its end, got an interrupt")
    show(f"\n{time.monotonic() - started_s:.0f} seconds. {SIMULATED}", DIM)
    if expect.failed:
        show(f"{counted(expect.failed, 'expectation')} not met: see the lines with FAIL", RED)
    return 1 if expect.failed else 0


if __name__ == "__main__":
    sys.exit(main())
