"""`avow proxy`: clients that know nothing of attestation, and a broker that has to prove itself."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt import publish as paho_publish
from paho.mqtt import subscribe as paho_subscribe

from avow.broker.logs import SOURCE_BURST
from avow.channel.exchange import AskClients, Outcome
from avow.channel.judge import Judge
from avow.policy import parse_policy
from avow.runtime.manifest import runtime_manifest
from avow.tee.platforms import verifiers
from avow.tee.simulated import NOTHING_IS_PROTECTED
from avow.testing.attested_peer import (
    MODULE,
    echo,
    forward_to,
    policy_text,
    stripped_answer,
)
from avow.testing.pki import Authority
from tests.integration.attested_endpoint import AttestedEndpoint, attested_endpoint
from tests.integration.service_process import ServiceProcess, avow, service

PATIENCE_S = 20.0
OTHER_MODULE = bytes(32)
# A client speaks first, and MQTT begins with CONNECT.
FIRST = b"\x10"


class ProxyProcess:
    """A running proxy. Its log is read all the time and can be waited for."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "avow", "proxy", *arguments], stderr=subprocess.PIPE
        )
        self.entries: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Waits for the `count`-th line with this event."""

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.entries if entry["event"] == name]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._over, PATIENCE_S)
            assert len(found()) >= count, (name, self.entries)
            return found()[count - 1]

    @property
    def port(self) -> int:
        return int(self.event("listening")["url"].rpartition(":")[2])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry = {"event": line} if not line.startswith(b"{") else json.loads(line)
            with self._changed:
                self.entries.append(entry)
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()


@contextmanager
def proxy(endpoint: AttestedEndpoint, *more: str, scheme: str = "mqtt") -> Iterator[ProxyProcess]:
    """A proxy that has to end with 0 when it is asked to, unless the test has ended it."""
    encrypted = {"mqtt": "mqtts", "ws": "wss"}[scheme]
    running = ProxyProcess(
        [
            *("--listen", f"{scheme}://127.0.0.1:0"),
            *("--connect", f"{encrypted}://localhost:{endpoint.peer.port}"),
            *endpoint.options,
            *more,
        ]
    )
    try:
        running.event("listening")
        yield running
        if running.process.poll() is None:
            assert running.stop() == 0, running.entries
        # After it there can only be how many lines are missing.
        assert "stopped" in [entry["event"] for entry in running.entries[-2:]]
    finally:
        running.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[ServiceProcess]:
    with service("--listen", "mqtt://127.0.0.1:0", "--listen", "ws://127.0.0.1:0") as running:
        yield running


@pytest.fixture
def endpoint(broker: ServiceProcess, tmp_path: Path) -> Iterator[AttestedEndpoint]:
    with attested_endpoint(tmp_path, forward_to(broker.port())) as endpoint:
        yield endpoint


@pytest.fixture
def echoing(tmp_path: Path) -> Iterator[AttestedEndpoint]:
    with attested_endpoint(tmp_path, echo) as endpoint:
        yield endpoint


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Sends, says that it was all, and reads to the end."""

    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = bytearray()
    while piece := sock.recv(65536):
        got += piece
    sender.join(PATIENCE_S)
    return bytes(got)


def test_paho_through_the_proxy(endpoint: AttestedEndpoint) -> None:
    payload = bytes(range(256)) * 3000
    with proxy(endpoint) as running:
        paho_publish.single(
            "proxy/paho", payload, qos=2, retain=True, hostname="127.0.0.1", port=running.port
        )
        simple: Any = paho_subscribe.simple
        assert simple("proxy/paho", hostname="127.0.0.1", port=running.port).payload == payload
        entry = running.event("connected")
        assert (entry["platform"], entry["tier"]) == ("simulated", "warning")
        assert running.event("disconnected", 2)["received_bytes"] > len(payload)


def test_aiomqtt_through_the_proxy_by_websocket(
    broker: ServiceProcess, endpoint: AttestedEndpoint
) -> None:
    endpoint.peer.change(serve=forward_to(broker.port("ws")))

    async def run(port: int) -> object:
        async with aiomqtt.Client(
            "127.0.0.1", port, transport="websockets", websocket_path="/mqtt"
        ) as client:
            await client.subscribe("proxy/ws", 1)
            await client.publish("proxy/ws", b"through", 1)
            async for message in client.messages:
                return message.payload
        return None

    with proxy(endpoint, scheme="ws") as running:
        assert asyncio.run(asyncio.wait_for(run(running.port), PATIENCE_S)) == b"through"


@pytest.mark.mosquitto
def test_mosquitto_through_the_proxy(endpoint: AttestedEndpoint) -> None:
    with proxy(endpoint) as running:
        where = ["-h", "127.0.0.1", "-p", str(running.port), "-t", "proxy/mosquitto", "-q", "1"]
        for program, more in (
            ("mosquitto_pub", ["-m", "from mosquitto", "-r"]),
            ("mosquitto_sub", ["-C", "1", "-W", "20"]),
        ):
            path = shutil.which(program)
            assert path is not None, f"{program}: apt-get install mosquitto-clients"
            done = subprocess.run(
                [path, *where, *more], capture_output=True, timeout=PATIENCE_S, check=False
            )
            assert done.returncode == 0, done.stderr
        assert done.stdout == b"from mosquitto\n"


def test_many_clients_at_once(echoing: AttestedEndpoint) -> None:
    data = FIRST + os.urandom(300_000)
    with proxy(echoing) as running:
        connections = [running.connect() for _ in range(20)]
        got: list[bytes] = []
        threads = [
            threading.Thread(target=lambda each=each: got.append(exchange(each, data)))
            for each in connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        for each in connections:
            each.close()
        assert got == [data] * 20
        assert running.event("disconnected", 20)["reason"] == "both sides ended"


def test_half_a_connection_and_large_amounts(echoing: AttestedEndpoint) -> None:
    data = FIRST + os.urandom(30_000_000)
    with proxy(echoing) as running, running.connect() as client:
        assert exchange(client, data) == data


def test_a_client_that_does_not_read_is_not_buffered(echoing: AttestedEndpoint) -> None:
    """The proxy reads no further: what was written stays with the writer."""
    with proxy(echoing) as running, running.connect() as client:
        client.sendall(FIRST)
        assert client.recv(1) == FIRST
        client.setblocking(False)
        written = 0
        while select.select([], [client], [], 0.5)[1]:
            with contextlib.suppress(BlockingIOError):
                written += client.send(bytes(256 * 1024))
        assert written < 64 * 1024 * 1024
        memory = Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]
        assert int(memory) * os.sysconf("SC_PAGE_SIZE") < 256 * 1024 * 1024


def test_evidence_is_refused(echoing: AttestedEndpoint) -> None:
    echoing.peer.run(OTHER_MODULE)
    with proxy(echoing) as running:
        with running.connect() as client:
            client.sendall(FIRST)
            assert gone(client)
        entry = running.event("refused")
        assert (entry["check"], entry["level"]) == ("P4", "warning")
        assert MODULE.hex() in entry["expected"]
        assert OTHER_MODULE.hex() in entry["actual"]
        assert entry["advice"]
        assert entry["title"]
        # The next client is let through when the broker is the right one again.
        echoing.peer.run(MODULE)
        with running.connect() as client:
            client.sendall(FIRST)
            assert client.recv(1) == FIRST
        echoing.peer.change(first_word=stripped_answer())
        with running.connect() as client:
            client.sendall(FIRST + b"secret")
            assert gone(client)
        assert running.event("refused", 2)["check"] == "C11"
        # A cut says nothing about the broker.
        echoing.peer.change(first_word=b"")
        with running.connect() as client:
            client.sendall(FIRST + b"secret")
            assert gone(client)
        assert running.event("not connected")["check"] == "C22"


def gone(client: socket.socket) -> bool:
    """Whether the proxy has closed the connection, without a byte."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        # It had something unread, which was not sent on.
        return True


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with attested_endpoint(tmp_path) as endpoint:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        running = ProxyProcess(
            [
                *("--listen", "mqtt://127.0.0.1:0", "--connect", f"mqtts://localhost:{port}"),
                *endpoint.options,
            ]
        )
        try:
            with running.connect() as client:
                client.sendall(FIRST)
                assert gone(client)
            assert "refused connection" in running.event("not connected")["reason"]
            assert running.stop() == 0
        finally:
            running.close()


def test_a_client_in_a_tee(echoing: AttestedEndpoint) -> None:
    """The proxy shows its evidence for each of its clients; the log says what that is worth, once
    in words and in each line."""
    runtime = runtime_manifest().digest.hex()
    text = policy_text(
        bytes.fromhex(runtime),
        runtime=runtime,
        configuration=sha256(echoing.policy.read_bytes()).hexdigest(),
    )
    echoing.peer.change(
        settings=replace(
            echoing.peer.conduct.settings,
            ask_clients=AskClients.ALWAYS,
            judge=Judge(verifiers(), parse_policy(text, name="clients")),
        )
    )
    with proxy(echoing, "--tee", "simulated") as running:
        with running.connect() as client:
            client.sendall(FIRST)
            assert client.recv(1) == FIRST
        outcome = echoing.peer.outcome()
        assert isinstance(outcome, Outcome)
        assert outcome.peer is not None
        assert running.event("connected")["attested_to_server"] is True
    said, *others = running.entries
    assert said["event"] == NOTHING_IS_PROTECTED
    assert NOTHING_IS_PROTECTED not in json.dumps(others)
    assert {entry["tee"] for entry in others} == {"simulated"}


def test_connections_are_bounded(echoing: AttestedEndpoint) -> None:
    """With one place, the second client waits until the first has left."""
    with proxy(echoing, "--connections-max", "1") as running:
        with running.connect() as first:
            first.sendall(FIRST)
            assert first.recv(1) == FIRST
            second = running.connect()
            second.sendall(FIRST)
            second.settimeout(0.3)
            with pytest.raises(TimeoutError):
                second.recv(1)
        second.settimeout(PATIENCE_S)
        with second:
            assert second.recv(1) == FIRST


def test_a_full_proxy_says_so_once_and_once_when_it_is_free_again(
    echoing: AttestedEndpoint,
) -> None:
    with proxy(echoing, "--connections-max", "2") as running:
        with contextlib.ExitStack() as all_:
            clients = [all_.enter_context(running.connect()) for _ in range(5)]
            for client in clients:
                client.sendall(FIRST)
            for client in clients[:2]:
                assert client.recv(1) == FIRST
            entry = running.event("full")
            assert (entry["connections"], entry["connections_max"]) == (2, 2)
            assert entry["level"] == "warning"
            assert entry["by_owner"] == {f"user {os.getuid()}": 2}
        entry = running.event("places free again")
        assert entry["connections_max"] == 2
        assert entry["full_s"] >= 0
    events = [each["event"] for each in running.entries]
    assert (events.count("full"), events.count("places free again")) == (1, 1)


def test_one_user_does_not_take_the_last_places(echoing: AttestedEndpoint) -> None:
    """Seven of eight; the eighth is for others."""
    with proxy(echoing, "--connections-max", "8") as running, contextlib.ExitStack() as all_:
        clients = [all_.enter_context(running.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(FIRST)
        for client in clients[:7]:
            assert client.recv(1) == FIRST
        assert running.event("full")["connections"] == 7
        clients[7].settimeout(0.3)
        with pytest.raises(TimeoutError):
            clients[7].recv(1)
        clients[0].close()
        clients[7].settimeout(PATIENCE_S)
        assert clients[7].recv(1) == FIRST


def test_silent_clients_cost_the_server_nothing(echoing: AttestedEndpoint) -> None:
    """They hold no places either: who speaks is served, however many of them there are."""
    with (
        proxy(echoing, "--connections-max", "1") as running,
        contextlib.ExitStack() as all_,
    ):
        for _ in range(300):
            all_.enter_context(running.connect())
        with running.connect() as client:
            client.sendall(FIRST)
            assert client.recv(1) == FIRST
        assert isinstance(echoing.peer.outcome(), Outcome)
        assert echoing.peer.outcomes.empty()
        assert "others came" in running.event("turned away")["reason"]
        assert [each["event"] for each in running.entries].count("turned away") <= SOURCE_BURST


def test_a_log_that_nobody_reads_stops_nothing(echoing: AttestedEndpoint) -> None:
    """Neither connections nor the end: a line more than the pipe holds waits for its reader."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    arguments = ["--listen", "mqtt://127.0.0.1:0", *echoing.options]
    arguments += ["--connect", f"mqtts://localhost:{echoing.peer.port}"]
    process = subprocess.Popen([sys.executable, "-m", "avow", "proxy", *arguments], stderr=writing)
    try:
        with os.fdopen(reading, "rb", closefd=False) as log:
            lines = iter(log.readline, b"")
            url = next(entry["url"] for line in lines if "url" in (entry := json.loads(line)))
        # As many lines as fill the pipe several times.
        port = int(url.rpartition(":")[2])
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
                client.sendall(FIRST)
                assert client.recv(1) == FIRST
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        os.close(reading)
        os.close(writing)


def test_a_stranger_does_not_fill_the_log(echoing: AttestedEndpoint) -> None:
    """Lines about refusals have a bound, whoever causes them, and what is left out is counted."""
    with proxy(echoing) as running:
        for _ in range(SOURCE_BURST + 20):
            with running.connect() as client:
                client.sendall(b"POST")
                assert gone(client)
        assert running.stop() == 0
    events = [each["event"] for each in running.entries]
    assert SOURCE_BURST <= events.count("turned away") < SOURCE_BURST + 20
    left_out = running.entries[events.index("log lines left out")]
    assert left_out["count"]["turned away"] + events.count("turned away") == SOURCE_BURST + 20


def test_what_is_no_mqtt_is_turned_away(echoing: AttestedEndpoint) -> None:
    """As a web page speaks, which can reach every port of this machine."""
    with proxy(echoing) as running, running.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert gone(client)
        entry = running.event("turned away")
        assert "web page" in entry["reason"]
        assert entry["owner"] == f"user {os.getuid()}"
        assert echoing.peer.outcomes.empty()


UPGRADE = (
    b"GET /mqtt HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: mqtt\r\n%s\r\n"
)


@pytest.mark.parametrize(
    ("head", "allowed"),
    [
        (UPGRADE % (b"127.0.0.1:1884", b""), True),
        (UPGRADE % (b"127.0.0.1:1884", b"Origin: http://127.0.0.1:3000\r\n"), False),
        (UPGRADE % (b"127.0.0.1:1884", b"Origin: https://evil.example\r\n"), False),
        (UPGRADE % (b"evil.example:1884", b"Origin: http://evil.example:1884\r\n"), False),
        (UPGRADE % (b"proxy.example", b""), True),
        (UPGRADE % (b"localhost", b"Origin: https://panel.example\r\n"), True),
    ],
)
def test_web_pages_are_turned_away(echoing: AttestedEndpoint, head: bytes, allowed: bool) -> None:
    options = ("--allow-origin", "https://panel.example", "--allow-host", "proxy.example")
    with proxy(echoing, *options, scheme="ws") as running, running.connect() as client:
        # In two pieces, as a slow sender does.
        client.sendall(head[:30])
        client.sendall(head[30:])
        if allowed:
            assert client.recv(len(head), socket.MSG_WAITALL) == head
        else:
            assert client.recv(65536).startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert gone(client)
            assert running.event("turned away")
            assert echoing.peer.outcomes.empty()


def test_a_page_s_picture_costs_the_server_nothing(echoing: AttestedEndpoint) -> None:
    """`<img src=http://127.0.0.1:1884/>`: a browser sends no Origin with it, and no page can have
    it ask for a WebSocket."""
    with proxy(echoing, scheme="ws") as running, running.connect() as client:
        client.sendall(b"GET /x.png HTTP/1.1\r\nHost: 127.0.0.1:1884\r\nAccept: image/*\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert gone(client)
        assert "Upgrade" in running.event("turned away")["reason"]
        assert echoing.peer.outcomes.empty()


def test_files_are_read_again(echoing: AttestedEndpoint) -> None:
    """For new connections; those that are there stay, and what is wrong changes nothing."""
    right = echoing.policy.read_text()
    with proxy(echoing) as running, running.connect() as kept:
        kept.sendall(FIRST)
        assert kept.recv(1) == FIRST
        echoing.policy.write_text(policy_text(OTHER_MODULE))
        running.process.send_signal(signal.SIGHUP)
        running.event("reloaded")
        with running.connect() as client:
            client.sendall(FIRST)
            assert gone(client)
        assert running.event("refused")["check"] == "P4"
        echoing.policy.write_text("version = 1\nnonsense")
        running.process.send_signal(signal.SIGHUP)
        assert str(echoing.policy) in running.event("reload refused")["reason"]
        authorities = echoing.ca.read_bytes()
        echoing.policy.write_text(right)
        Authority("another").write(echoing.ca)
        running.process.send_signal(signal.SIGHUP)
        running.event("reloaded", 2)
        with running.connect() as client:
            client.sendall(FIRST)
            assert gone(client)
        assert running.event("refused", 2)["check"] == "C23"
        echoing.ca.write_bytes(authorities)
        running.process.send_signal(signal.SIGHUP)
        running.event("reloaded", 3)
        with running.connect() as client:
            client.sendall(FIRST)
            assert client.recv(1) == FIRST
        kept.sendall(b"y")
        assert kept.recv(1) == b"y"


def test_a_client_in_a_tee_reads_its_files_again(echoing: AttestedEndpoint) -> None:
    """Its configuration is its policy: what it shows of itself changes with it."""
    echoing.peer.change(
        settings=replace(
            echoing.peer.conduct.settings,
            ask_clients=AskClients.ALWAYS,
            judge=Judge(verifiers(), None),
        )
    )

    def shown(running: ProxyProcess) -> dict[str, Any]:
        with running.connect() as client:
            client.sendall(FIRST)
            assert client.recv(1) == FIRST
        outcome = echoing.peer.outcome()
        assert isinstance(outcome, Outcome)
        assert outcome.verified is not None
        return dict(outcome.verified.claims)

    with proxy(echoing, "--tee", "simulated") as running:
        before = shown(running)
        echoing.policy.write_text(policy_text() + "# another\n")
        running.process.send_signal(signal.SIGHUP)
        running.event("reloaded")
        after = shown(running)
    digest = sha256(echoing.policy.read_bytes()).digest()
    assert after["configuration"] == digest != before["configuration"]
    assert after["module"] == before["module"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_with_clients_connected(echoing: AttestedEndpoint, number: signal.Signals) -> None:
    with proxy(echoing) as running, running.connect() as client:
        client.sendall(FIRST)
        assert client.recv(1) == FIRST
        assert running.stop(number) == 0
        assert gone(client)
        assert running.event("stopped")
        assert running.event("disconnected")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--connect", "mqtts://h"], "'--policy'"),
        (["--connect", "mqtt://h", "--policy", "P"], "mqtts:// for --connect"),
        (["--connect", "wss://h", "--policy", "P"], "mqtts:// for --connect"),
        (["--listen", "ws://127.0.0.1:0", "--connect", "mqtts://h", "--policy", "P"], "wss://"),
        (["--listen", "mqtts://127.0.0.1:0", "--connect", "mqtts://h"], "mqtt:// or ws://"),
        (["--connect", "mqtts://me@h", "--policy", "P"], "user name"),
        (["--listen", "ws://127.0.0.1:0", "--connect", "wss://h/mqtt"], "path"),
        (["--listen", "mqtt://0.0.0.0:0", "--connect", "mqtts://h"], "--unsafe-listen-anywhere"),
        (["--listen", "mqtt://[::]:0", "--connect", "mqtts://h"], "--unsafe-listen-anywhere"),
        (["--connect", "mqtts://h", "--policy", "absent"], "no such file"),
        (["--policy", "P"], "'--connect'"),
        (["--connect", "mqtts://h", "--policy", "P", "--allow-host", "h"], "ws:// for --listen"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], words: str) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(policy_text())
    done = avow("proxy", *(str(policy) if each == "P" else each for each in arguments))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.decode()


def test_an_occupied_port(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(policy_text())
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        listen = f"mqtt://127.0.0.1:{occupied.getsockname()[1]}"
        done = avow(
            *("proxy", "--listen", listen, "--connect", "mqtts://h", "--policy", str(policy))
        )
    assert done.returncode == 2
    assert b"another program" in done.stderr


def test_listening_anywhere_has_to_be_said(echoing: AttestedEndpoint) -> None:
    running = ProxyProcess(
        [
            *("--listen", "mqtt://0.0.0.0:0", "--unsafe-listen-anywhere"),
            *("--connect", f"mqtts://localhost:{echoing.peer.port}", *echoing.options),
        ]
    )
    try:
        with running.connect() as client:
            client.sendall(FIRST)
            assert client.recv(1) == FIRST
        assert running.stop() == 0
    finally:
        running.close()
