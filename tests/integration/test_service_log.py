"""The real process and its log: who was refused what, and a reader that does not read."""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from avow.broker.users import add_user, new_user
from avow.testing.mqtt import Will
from avow.testing.pki import Authority
from tests.integration.service_process import PATIENCE_S, PlainClient, avow, service, write

PIPE_BYTES = 4096
LOGINS = 40


@pytest.fixture
def config(tmp_path: Path) -> Path:
    Authority().issue_server().write(tmp_path, "server")
    add_user(tmp_path / "users", new_user("alice", "a"))
    return write(
        tmp_path / "avow.toml",
        """
password_file = "users"
[[listeners]]
url = "mqtts://127.0.0.1:0"
cert = "server.pem"
key = "server.key"
[[listeners]]
url = "mqtt://127.0.0.1:0"
allow_anonymous = true
[[acl]]
effect = "allow"
access = "publish"
pattern = "open"
""",
    )


def without_checks() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_a_full_pipe_stops_neither_handshakes_nor_logins_nor_the_end(config: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "avow", "broker", "--config", str(config)], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        port = 0
        while not port:
            line = json.loads(process.stderr.readline())
            if line["event"] == "listening" and line["url"].startswith("mqtts:"):
                port = line["port"]
        for number in range(LOGINS):
            with PlainClient(port, without_checks()) as client:
                answer = client.connect(client_id=f"c{number}", username="alice", password=b"a")
                assert answer.code == 0
        # Two lines a login: more than the pipe holds, or this shows nothing.
        assert LOGINS * 2 * 100 > PIPE_BYTES
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stderr.close()


def test_every_refusal_is_a_line_that_says_who_what_and_why(config: Path) -> None:
    with service("--config", str(config)) as running:
        plain, tls = running.port("mqtt"), running.port("mqtts")
        with PlainClient(tls, without_checks()) as client:
            assert client.connect(client_id="nobody").code == 0x87
        line = running.event("connection refused")
        assert (line["client"], line["code"], line["level"]) == ("nobody", "0x87", "info")
        assert "anonymous" in line["reason"]
        assert line["peer"].startswith("127.0.0.1:")

        with PlainClient(plain) as client:
            assert client.connect(client_id="willy", will=Will("secret", b"x")).code == 0x87
        line = running.event("connection refused for its will")
        assert (line["client"], line["topic"], line["rule"]) == (
            "willy",
            "secret",
            "no access rule fits",
        )

        with PlainClient(plain, version=4) as client:
            client.connect(client_id="old")
            assert client.subscribe("open") == 0x80
        line = running.event("subscription refused")
        assert (line["client"], line["topic"]) == ("old", "open")

        with PlainClient(tls, without_checks()) as client:
            wrong = client.connect(client_id="guess", username="alice", password=b"b")
            assert wrong.code == 0x86
        line = running.event("login failed")
        assert (line["client"], line["user"]) == ("guess", "alice")

        with socket.create_connection(("127.0.0.1", plain)) as stranger:
            stranger.sendall(b"\x00\x00")
            assert stranger.recv(1) == b""
        assert "packet" in running.event("connection refused", 2)["reason"]
        # A login that failed was told of once, and so was the will.
        refused = [line for line in running.entries() if line["event"] == "connection refused"]
        assert len(refused) == 2


def test_who_speaks_to_the_wrong_port_is_told_apart(config: Path) -> None:
    with service("--config", str(config)) as running:
        with (
            socket.create_connection(("127.0.0.1", running.port("mqtt"))) as sock,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            without_checks().wrap_socket(sock)
        reason = running.event("connection refused")["reason"]
        assert "TLS handshake" in reason
        assert "mqtts://" in reason
        with (
            PlainClient(running.port("mqtts")) as client,
            pytest.raises((AssertionError, ConnectionError)),
        ):
            client.connect(client_id="plain")
        reason = running.event("handshake refused")["reason"]
        assert "expected TLS" in reason
        assert "mqtts://" in reason
        # The same to who uses avow's own client.
        port = running.port("mqtts")
        for command in (("pub", "-t", "a", "-m", "b"), ("sub", "-t", "a")):
            for version in ("5", "311"):
                done = avow(*command, "-V", version, f"mqtt://localhost:{port}")
                assert done.returncode == 1
                assert b"expected an answer to CONNECT" in done.stderr
                assert b"a port for TLS needs mqtts://" in done.stderr
