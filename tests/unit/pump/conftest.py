"""A running pump over the toy core, and TLS on both sides of it."""

from __future__ import annotations

import datetime
import os
import queue
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from avow.broker.pump import CoreTrapError, Pump, Transport
from avow.sandbox import engine

WAIT_S = 20

OPENED, CLOSED, DEADLINE, COMMAND, SAID = 100, 101, 102, 200, 201


def build_toy_core(source: Path, target: Path) -> bytes:
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "build-exe", str(source)),
            *("-target", "wasm32-freestanding", "-O", "ReleaseSafe", "-fno-entry"),
            *("-rdynamic", "-fstrip", f"-femit-bin={target}"),
        ],
        check=True,
        cwd=target.parent,
    )
    return target.read_bytes()


@pytest.fixture(scope="session")
def toy_core(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("toy_core")
    return build_toy_core(Path(__file__).with_name("toy_core.zig"), folder / "toy.wasm")


@dataclass(frozen=True)
class Event:
    kind: int
    body: bytes

    @property
    def connection(self) -> int:
        return int(struct.unpack_from("<I", self.body)[0])


class RunningPump:
    """A pump with the thread that runs it; its events arrive in a queue."""

    def __init__(self, core: engine.LoadedCore, **settings: Any) -> None:
        compaction_min_bytes = int(settings.pop("compaction_min_bytes", 64 << 20))
        self.pump = Pump(
            core,
            entropy=os.urandom(32),
            compaction_min_bytes=compaction_min_bytes,
            **settings,
        )
        self.trap: CoreTrapError | None = None
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (batch := self.pump.run()) is not None:
                while batch:
                    (length,) = struct.unpack_from("<I", batch)
                    self._events.put(Event(batch[4], batch[8:length]))
                    batch = batch[length:]
        except CoreTrapError as error:
            self.trap = error
        self._events.put(None)

    def next_event(self) -> Event | None:
        return self._events.get(timeout=WAIT_S)

    def expect(self, kind: int) -> Event:
        event = self.next_event()
        assert event is not None, self.trap
        assert event.kind == kind, event
        return event

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def add(self, server_side: socket.socket, tls: SSL.Connection | None = None) -> int:
        number = self.pump.add(
            server_side.detach(), transport=Transport.MQTT, allow_anonymous=True, tls=tls
        )
        assert self.expect(OPENED).connection == number
        return number

    def connect(self, *, unix: bool = False) -> socket.socket:
        client, server_side = socket.socketpair() if unix else tcp_pair()
        client.settimeout(WAIT_S)
        self.add(server_side)
        return client

    def close(self) -> None:
        self.pump.stop()
        self.join()
        self.pump.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server_side, _ = listener.accept()
        return client, server_side


def receive_exactly(client: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        piece = client.recv(min(1 << 20, length - len(received)))
        assert piece, f"the stream ended after {len(received)} of {length} bytes"
        received += piece
    return bytes(received)


def huge_pattern(length: int) -> bytes:
    """What the toy core answers to 'H' (see toy_core.zig)."""
    period = bytes(((index * 251) >> 3) & 0xFF for index in range(2048))
    return (period * (length // 2048 + 1))[:length]


PumpFactory = Callable[..., RunningPump]


@pytest.fixture
def start_pump(toy_core: bytes) -> Iterator[PumpFactory]:
    started: list[RunningPump] = []

    def start(**settings: float) -> RunningPump:
        running = RunningPump(engine.load(toy_core), **settings)
        started.append(running)
        return running

    yield start
    for running in started:
        running.close()


@pytest.fixture
def running(start_pump: PumpFactory) -> RunningPump:
    return start_pump()


@dataclass(frozen=True)
class Certificate:
    key_path: Path
    certificate_path: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_path, certificate_path = folder / "key.pem", folder / "certificate.pem"
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return Certificate(key_path, certificate_path)


class TlsSide:
    """Makes TLS connections of one protocol version; pyOpenSSL shakes hands for the server."""

    def __init__(self, certificate: Certificate, version: ssl.TLSVersion) -> None:
        self.server = SSL.Context(SSL.TLS_SERVER_METHOD)
        self.server.use_privatekey_file(str(certificate.key_path))
        self.server.use_certificate_file(str(certificate.certificate_path))
        self.client = ssl.create_default_context(cafile=str(certificate.certificate_path))
        self.client.minimum_version = self.client.maximum_version = version

    def pair(
        self, *, receive_buffer_bytes: int = 0
    ) -> tuple[ssl.SSLSocket, socket.socket, SSL.Connection]:
        """The client after the handshake, the server's socket, and its TLS connection."""
        plain, server_side = tcp_pair()
        if receive_buffer_bytes:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        plain.settimeout(WAIT_S)
        clients: list[ssl.SSLSocket] = []

        def shake_hands() -> None:
            clients.append(self.client.wrap_socket(plain, server_hostname="localhost"))

        thread = threading.Thread(target=shake_hands)
        thread.start()
        tls = SSL.Connection(self.server, server_side)
        tls.set_accept_state()
        tls.do_handshake()
        thread.join(WAIT_S)
        return clients[0], server_side, tls

    def connect(self, running: RunningPump, **options: int) -> ssl.SSLSocket:
        client, server_side, tls = self.pair(**options)
        server_side.setblocking(False)
        running.add(server_side, tls)
        return client


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=["1.3", "1.2"])
def tls_side(certificate: Certificate, request: pytest.FixtureRequest) -> TlsSide:
    return TlsSide(certificate, request.param)
