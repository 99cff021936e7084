"""Start, refusal to start, reload, drain and metrics of the real process."""

from __future__ import annotations

import contextlib
import hashlib
import re
import resource
import signal
import socket
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from avow import artefacts
from avow.broker.config import schema_rows
from avow.testing.mqtt import Disconnect, Pingreq, Pingresp
from avow.testing.pki import DAY, Authority
from tests.integration.attested_clients import client_policy
from tests.integration.service_process import PlainClient, avow, service, write

LOOPBACK = ("--listen", "mqtt://127.0.0.1:0")


def test_measurement_is_the_one_that_runs() -> None:
    digest = hashlib.sha256(artefacts.core_path().read_bytes()).hexdigest()
    assert avow("measure", "broker").stdout.decode() == digest + "\n"
    assert f'"sha256": "{digest}"' in avow("measure", "broker", "--json").stdout.decode()
    with service(*LOOPBACK) as running:
        assert running.event("avow broker")["module_sha256"] == digest


def test_without_arguments_only_this_machine_and_a_hint() -> None:
    """Port 1883 may be somebody else's here: then the refusal has to name it."""
    done = avow("broker", "--check")
    assert done.stdout.decode().startswith("listener mqtt://127.0.0.1:1883: anybody\n")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", 1883)))
        refused = avow("broker")
    assert refused.returncode == 2
    assert "mqtt://127.0.0.1:1883" in refused.stderr.decode()


def test_listeners_of_every_kind_on_free_ports(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue_server().write(tmp_path, "server")
    listen = [
        word
        for url in (
            "mqtt://127.0.0.1:0",
            "mqtts://localhost:0",
            "ws://[::1]:0",
            "wss://127.0.0.1:0",
        )
        for word in ("--listen", url)
    ]
    with service(*listen, "--cert", str(certificate), "--key", str(key)) as running:
        ports = {scheme: running.port(scheme) for scheme in ("mqtt", "mqtts", "ws", "wss")}
        assert len(set(ports.values())) == 4
        assert running.event("listening", 4, lambda line: line["anonymous"] is True)
        assert running.url("ws") == f"ws://[::1]:{ports['ws']}"
        socket.create_connection(("::1", ports["ws"]), timeout=10).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_stop_tells_the_clients_and_ends_with_0(number: signal.Signals) -> None:
    with service(*LOOPBACK) as running:
        port = running.port()
        with (
            PlainClient(port) as five,
            PlainClient(port, version=4) as three,
            contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as silent,
        ):
            assert five.connect(client_id="five").code == 0
            assert three.connect(client_id="three").code == 0
            running.process.send_signal(number)
            # 0x8B: server shutting down.
            assert five.receive(Disconnect).code == 0x8B
            assert five.closed()
            assert three.closed()
            assert silent.recv(1) == b""
            assert running.wait() == 0
        assert running.event("stopped")
        assert not [line for line in running.entries() if line["level"] == "warning"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)


def test_port_that_is_occupied(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = avow("broker", "--listen", f"mqtt://127.0.0.1:{port}")
        assert done.returncode == 2
        sentence = done.stderr.decode().splitlines()[-1]
        assert sentence.startswith("avow: expected a free port")
        assert str(port) in sentence
        config = write(tmp_path / "avow.toml", f"[metrics]\nport = {port}\n")
        done = avow("broker", *LOOPBACK, "--config", str(config))
        assert done.returncode == 2
        assert "[metrics]" in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()


def test_what_is_wrong_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    authority = Authority()
    authority.issue_server(valid_until=datetime.now(UTC) - DAY / 2).write(tmp_path, "old")
    for text, words in (
        (
            '[[listeners]]\nurl = "mqtts://127.0.0.1:0"\ncert = "old.pem"\nkey = "old.key"',
            "expired",
        ),
        ('password_file = "none"', "none"),
        ("keep_alive = 5", "`keep_alive`"),
    ):
        config = write(tmp_path / "avow.toml", text)
        for extra in ([], ["--check"]):
            done = avow("broker", "--config", str(config), *extra)
            assert done.returncode == 2
            assert done.stderr.decode().count("\n") == 1
            assert words in done.stderr.decode()


def test_reload_keeps_connections_and_changes_the_rules(tmp_path: Path) -> None:
    rules = '[[acl]]\neffect = "{}"\naccess = "both"\npattern = "#"\n'
    config = write(tmp_path / "avow.toml", rules.format("allow"))
    with service("--config", str(config), *LOOPBACK) as running:
        with PlainClient(running.port()) as client:
            client.connect(client_id="c")
            assert client.subscribe("a") == 0
            write(config, rules.format("deny"))
            running.reload()
            assert running.event("reloaded")["acl_rules"] == 1
            assert client.subscribe("a") == 0x87
            write(config, "acls = 1\n")
            running.reload()
            assert "`acls`" in running.event("reload refused")["reason"]
            assert client.subscribe("a") == 0x87
            write(config, "")
            running.reload()
            assert running.event("reloaded", 2)["acl_rules"] == 0
            assert client.subscribe("a") == 0
            client.send(Pingreq())
            client.receive(Pingresp)
        assert len([e for e in running.entries() if e["event"] == "client connected"]) == 1


def test_limits_reach_the_core(tmp_path: Path) -> None:
    config = write(
        tmp_path / "avow.toml",
        "[limits]\nkeep_alive_max_s = 60\nmaximum_qos = 1\nshared_available = false\n",
    )
    with service("--config", str(config), *LOOPBACK) as running:
        with PlainClient(running.port()) as client:
            answer = client.connect(client_id="c", keep_alive_s=120).properties
            assert answer.integer(0x13) == 60
            assert answer.integer(0x24) == 1
            assert answer.integer(0x2A) == 0
        line = running.event("client connected")
        assert (line["client"], line["keep_alive_s"], line["protocol"]) == ("c", 60, "5.0")


@pytest.mark.parametrize("bound", [0, 1], ids=["lowest", "highest"])
def test_core_takes_every_limit_that_the_file_allows(tmp_path: Path, bound: int) -> None:
    keys = []
    for row in schema_rows():
        if row.table == "[limits]" and row.bounds:
            keys.append(f"{row.key} = {row.bounds.split(' to ')[bound]}")
        elif row.table == "[limits]":
            keys.append(f"{row.key} = {'true' if bound else 'false'}")
    text = "[login]\nfailure_delay_max_s = 0.05\n[limits]\n" + "\n".join(keys)
    with service("--config", str(write(tmp_path / "avow.toml", text)), *LOOPBACK) as running:
        with PlainClient(running.port()) as client:
            assert client.connect(client_id="c").code == 0
        running.event("client disconnected")
        assert not [line for line in running.entries() if line["event"] == "command failed"]


def test_conformance_settings() -> None:
    """What Eclipse Paho's suites ask for, by both versions of MQTT."""
    config = Path(__file__).resolve().parents[2] / "examples" / "conformance.toml"
    with service("--config", str(config), *LOOPBACK) as running:
        for version in (4, 5):
            with PlainClient(running.port(), version=version) as client:
                answer = client.connect(client_id="c", keep_alive_s=120)
                if version == 5:
                    assert answer.properties.integer(0x13) == 60
                assert client.subscribe("test/nosubscribe") == 0x80
                assert client.subscribe("test/other") == 0
                assert client.subscribe("$SYS/#") == 0


def test_example_is_valid(tmp_path: Path) -> None:
    """The commented example, with the files that it names."""
    example = Path(__file__).resolve().parents[2] / "examples" / "avow.toml"
    authority = Authority()
    authority.issue_server().write(tmp_path, "server")
    authority.write(tmp_path / "devices-ca.pem")
    (tmp_path / "devices.crl").write_bytes(authority.revocation_list())
    write(tmp_path / "controllers.toml", client_policy())
    write(tmp_path / "devices.psk", "thermometer:" + "5a" * 32).chmod(0o600)
    config = write(tmp_path / "avow.toml", example.read_text())
    added = avow("user", "add", "operator", "--config", str(config), "--password-stdin", stdin=b"x")
    assert added.returncode == 0
    # Its platform is not here.
    done = avow("broker", "--config", str(config), "--check", "--tee", "simulated")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"warning" not in done.stdout
    assert b"listener mqtts://0.0.0.0:8884: users" in done.stdout
    assert b"listener mqtts://0.0.0.0:8885: users" in done.stdout
    assert b"listener mqtt://127.0.0.1:1883: anybody" in done.stdout


def test_log_follows_a_client() -> None:
    with service(*LOOPBACK) as running:
        with PlainClient(running.port(), version=4) as client:
            client.connect(client_id="c", clean_start=True)
            peer = running.event("client connected")["peer"]
            assert re.fullmatch(r"127\.0\.0\.1:\d+", peer)
        line = running.event("client disconnected")
        assert (line["client"], line["peer"], line["by"]) == ("c", peer, "network")
        with PlainClient(running.port()) as client:
            client.connect(client_id="d")
            client.send(Disconnect())
            assert client.closed()
        line = running.event("client disconnected", 2)
        assert (line["client"], line["by"], line["code"]) == ("d", "client", "0x00")


def test_metrics(tmp_path: Path) -> None:
    config = write(tmp_path / "avow.toml", "[metrics]\nport = 0\n")
    with service("--config", str(config), *LOOPBACK) as running:
        url = running.event("metrics")["url"]
        with PlainClient(running.port()) as client:
            client.connect(client_id="c")
            client.subscribe("a")
            client.send(Pingreq())
            client.receive(Pingresp)
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
        assert "avow_clients_connected 1.0" in text
        assert "avow_subscriptions 1.0" in text
        assert "avow_connects_accepted_total 1.0" in text
        assert "avow_login_failures_total 0.0" in text
        assert running.event("avow broker")["module_sha256"] in text


def test_no_free_descriptor_is_survived() -> None:
    descriptors = 128

    def few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with service(*LOOPBACK, before=few_descriptors) as running:
        port = running.port()
        crowd = [
            socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(descriptors)
        ]
        assert "open files" in running.event("accepting paused")["reason"]
        for peer in crowd:
            peer.close()
        with PlainClient(port) as client:
            assert client.connect(client_id="after").code == 0
        pauses = [e for e in running.entries() if e["event"] == "accepting paused"]
        assert len(pauses) < 20


def test_idle_connections_are_closed(tmp_path: Path) -> None:
    config = write(tmp_path / "avow.toml", "idle_timeout_s = 0.2\n")
    with service("--config", str(config), *LOOPBACK) as running:
        with PlainClient(running.port()) as client:
            client.connect(client_id="c")
            assert client.closed()
        assert running.event("client disconnected")["by"] != "client"
