"""Bytes of all kinds on every port: others never notice, and what was taken for them comes back."""

from __future__ import annotations

import random
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from avow.testing.mqtt import Connect, Pingreq, Pingresp, Publish
from avow.testing.pki import Authority
from tests.integration.service_process import PlainClient, ServiceProcess, service, write

SEED = 20261120
STRANGERS = 60
SCHEMES = ("mqtt", "mqtts", "ws", "wss")
UPGRADE = (
    b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServiceProcess]:
    authority = Authority()
    authority.write(tmp_path / "ca.pem")
    authority.issue_server().write(tmp_path, "server")
    listeners = "".join(
        f'[[listeners]]\nurl = "{scheme}://127.0.0.1:0"\n'
        + (
            'cert = "server.pem"\nkey = "server.key"\n'
            if scheme.endswith("s") and scheme != "ws"
            else ""
        )
        for scheme in SCHEMES
    )
    text = (
        f"allow_anonymous = true\n{listeners}[metrics]\nport = 0\n[limits]\nsys_interval_ms = 0\n"
    )
    with service("--config", str(write(tmp_path / "avow.toml", text))) as running:
        yield running


def _blob(dice: random.Random, scheme: str) -> bytes:
    """Noise, or noise after a beginning that the port takes seriously."""
    noise = dice.randbytes(dice.choice((1, 2, 7, 100, 5_000, 70_000)))
    beginnings = [
        b"",
        Connect("stranger", version=dice.choice((4, 5))).encode(),
        b"\x10\xff\xff\xff\x7f",
    ]
    if scheme in ("ws", "wss"):
        beginnings += [
            UPGRADE,
            UPGRADE + b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
            b"GET / HTTP/1.1\r\n",
        ]
    if scheme in ("mqtts", "wss"):
        beginnings += [b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"]
    return dice.choice(beginnings) + noise


def _misbehave(dice: random.Random, port: int, scheme: str, context: ssl.SSLContext) -> None:
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    try:
        _speak(dice, plain, scheme, context)
    except TimeoutError:
        raise  # it has to end the connection, not to leave it hanging
    except OSError:
        pass  # the broker may end the connection at any moment
    finally:
        plain.close()


def _speak(dice: random.Random, plain: socket.socket, scheme: str, context: ssl.SSLContext) -> None:
    blob = _blob(dice, scheme)
    half_close = dice.random() < 0.5
    if scheme in ("mqtts", "wss") and dice.random() < 0.5:
        with context.wrap_socket(plain, server_hostname="localhost") as stream:
            stream.sendall(blob)
        return
    plain.sendall(blob)
    if half_close:
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass


def _metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith(f"avow_{name} ")]
    return float(line.split(" ")[1])


def _settled(url: str, client: PlainClient) -> bool:
    """Whether only the well-behaved client is left; each look is a turn of the broker."""
    for _ in range(3000):
        client.send(Pingreq())
        client.receive(Pingresp)
        if _metric(url, "connections_open") == 1:
            return True
    return False


def test_strangers_with_noise_harm_nobody(broker: ServiceProcess, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    url = broker.event("metrics")["url"]
    ports = {scheme: broker.port(scheme) for scheme in SCHEMES}
    with PlainClient(ports["mqtt"]) as client:
        client.connect(client_id="well-behaved")
        client.subscribe("t")
        assert _settled(url, client)
        for scheme in SCHEMES:  # what grows once and stays (tables, the interpreter) grows here
            for _ in range(STRANGERS):
                _misbehave(dice, ports[scheme], scheme, context)
        client.send(Publish("t", b"first"))  # makes the table of remembered topics
        assert client.receive(Publish).payload == b"first"
        assert _settled(url, client)
        before = _metric(url, "heap_bytes")
        for number in range(STRANGERS):
            for scheme in SCHEMES:
                _misbehave(dice, ports[scheme], scheme, context)
            client.send(Publish("t", b"%d" % number))
            assert client.receive(Publish).payload == b"%d" % number
        assert _settled(url, client), f"seed {SEED}"
        assert _metric(url, "heap_bytes") <= before * 1.05, f"seed {SEED}"
        assert _metric(url, "clients_connected") == 1


def test_a_packet_that_is_too_large_is_named_in_the_log(broker: ServiceProcess) -> None:
    """At the default level, with the key to raise: a client of MQTT 3.1.1 is told nothing."""
    with socket.create_connection(("127.0.0.1", broker.port()), timeout=30) as device:
        device.sendall(Connect("bridge", version=4).encode() + b"\x33\x81\x80\x80\x01")
        line = broker.event("client disconnected", matches=lambda one: one["client"] == "bridge")
    assert line["level"] == "info"
    assert line["reason"] == "a packet of 2097158 bytes, more than maximum_packet_bytes (2097152)"
