"""Many threads do everything at once: what comes back is right, and everything ends."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import threading

import pytest

from avow.broker.pump import Transport

from .conftest import (
    CLOSED,
    OPENED,
    WAIT_S,
    Certificate,
    RunningPump,
    TlsSide,
    huge_pattern,
    receive_exactly,
    tcp_pair,
)

WORKERS = 6
CONNECTIONS_EACH = 40


class Client:
    """One thread's random work, repeatable by its seed as far as threads allow."""

    def __init__(self, running: RunningPump, sides: list[TlsSide], seed: int) -> None:
        self.running = running
        self.sides = sides
        self.random = random.Random(seed)
        self.failure: BaseException | None = None

    def work(self) -> None:
        try:
            for _ in range(CONNECTIONS_EACH):
                with self.connect() as client:
                    for _ in range(self.random.randrange(6)):
                        if not self.act(client):
                            break
        except (AssertionError, OSError) as error:
            self.failure = error

    def connect(self) -> socket.socket:
        kind = self.random.choice(["tcp", "unix", "tls", "tls"])
        client: socket.socket
        tls = None
        if kind == "tls":
            client, server_side, tls = self.random.choice(self.sides).pair()
        else:
            client, server_side = tcp_pair() if kind == "tcp" else socket.socketpair()
        client.settimeout(WAIT_S)
        self.running.pump.add(
            server_side.detach(), transport=Transport.MQTT, allow_anonymous=True, tls=tls
        )
        return client

    def act(self, client: socket.socket) -> bool:
        """True when the connection is still good for more."""
        deed = self.random.choice(["echo"] * 5 + ["huge", "close", "abort", "reset", "junk"])
        if deed == "echo":
            length = self.random.choice([1, 10, 1000, 20000])
            first = self.random.choice([b"x", b"J", b"G"])
            message = first + bytes(self.random.randrange(128, 256) for _ in range(length))
            client.sendall(message)
            assert receive_exactly(client, len(message)) == message
            return True
        if deed == "huge":
            length = self.random.randrange(1 << 20)
            client.sendall(b"H" + struct.pack("<I", length))
            if self.random.random() < 0.3:
                return False
            assert receive_exactly(client, length) == huge_pattern(length)
            return True
        if deed == "close":
            client.sendall(b"C")
            assert receive_exactly(client, 1) == b"C"
            assert client.recv(1) == b""
        elif deed == "abort":
            client.sendall(b"A")
        elif deed == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif isinstance(client, ssl.SSLSocket):
            with socket.socket(fileno=client.detach()) as plain:
                plain.sendall(bytes(self.random.randrange(256) for _ in range(100)))
        return False


@pytest.mark.parametrize("seed", range(2))
def test_everything_at_once(running: RunningPump, certificate: Certificate, seed: int) -> None:
    sides = [
        TlsSide(certificate, version)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    ]
    clients = [Client(running, sides, seed * WORKERS + index) for index in range(WORKERS)]
    threads = [threading.Thread(target=client.work) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [client.failure for client in clients] == [None] * WORKERS
    kinds = [running.next_event() for _ in range(2 * WORKERS * CONNECTIONS_EACH)]
    opened = sum(event is not None and event.kind == OPENED for event in kinds)
    closed = sum(event is not None and event.kind == CLOSED for event in kinds)
    assert opened == closed == WORKERS * CONNECTIONS_EACH
    assert running.trap is None
