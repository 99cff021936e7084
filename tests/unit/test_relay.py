"""The relay: every byte once, in order, with backpressure and half-closed connections."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from avow.client import relay as relay_module
from avow.client.relay import PIECE_BYTES, Ended, relay

PATIENCE_S = 20.0


@dataclass
class Relayed:
    """A relay in a thread, and the far ends of its two connections."""

    client: socket.socket
    server: socket.socket
    inner: tuple[socket.socket, socket.socket]
    thread: threading.Thread
    ended: list[Ended]

    def end(self) -> Ended:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.ended[0]


@pytest.fixture
def relayed() -> Iterator[Relayed]:
    client, local = socket.socketpair()
    server, remote = socket.socketpair()
    ended: list[Ended] = []
    thread = threading.Thread(target=lambda: ended.append(relay(local, remote)), daemon=True)
    thread.start()
    for sock in (client, server):
        sock.settimeout(PATIENCE_S)
    with client, server, local, remote:
        yield Relayed(client, server, (local, remote), thread, ended)
        client.close()
        server.close()
        thread.join(PATIENCE_S)


def read_all(sock: socket.socket) -> bytes:
    pieces = bytearray()
    while piece := sock.recv(65536):
        pieces += piece
    return bytes(pieces)


def test_both_ways_at_once(relayed: Relayed) -> None:
    up, down = bytes(range(256)) * 20_000, bytes(reversed(range(256))) * 20_000
    got: dict[str, bytes] = {}

    def send(sock: socket.socket, data: bytes) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    threads = [
        threading.Thread(target=send, args=(relayed.client, up)),
        threading.Thread(target=send, args=(relayed.server, down)),
        threading.Thread(target=lambda: got.update(up=read_all(relayed.server))),
        threading.Thread(target=lambda: got.update(down=read_all(relayed.client))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert got == {"up": up, "down": down}
    assert relayed.end() == Ended(len(up), len(down))


def test_half_a_connection_ends_alone(relayed: Relayed) -> None:
    relayed.client.sendall(b"question")
    relayed.client.shutdown(socket.SHUT_WR)
    assert read_all(relayed.server) == b"question"
    relayed.server.sendall(b"answer")
    relayed.server.shutdown(socket.SHUT_WR)
    assert read_all(relayed.client) == b"answer"
    assert relayed.end() == Ended(8, 6)


def test_a_slow_reader_slows_its_writer(relayed: Relayed) -> None:
    """What nobody reads is bounded by the kernel's buffers and one piece."""
    relayed.client.setblocking(False)
    written = 0
    # The relay may still be moving what it can: the kernel says when nothing moves any more.
    while select.select([], [relayed.client], [], 0.2)[1]:
        with contextlib.suppress(BlockingIOError):
            written += relayed.client.send(bytes(PIECE_BYTES))
    assert written < 8 * 1024 * 1024
    # The other direction is not held up by that.
    relayed.server.sendall(b"x")
    relayed.client.settimeout(PATIENCE_S)
    assert relayed.client.recv(1) == b"x"
    relayed.client.shutdown(socket.SHUT_WR)
    assert len(read_all(relayed.server)) == written


def test_a_broken_end_ends_it(relayed: Relayed) -> None:
    relayed.client.close()
    relayed.server.close()
    assert relayed.end().up_bytes == 0


def test_a_client_that_is_gone_needs_no_goodbye(relayed: Relayed) -> None:
    relayed.client.sendall(b"bye")
    relayed.client.close()
    assert read_all(relayed.server) == b"bye"
    relayed.server.close()
    assert relayed.end().up_bytes == 3


def test_half_a_connection_that_stays_silent_ends(
    relayed: Relayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LINGER_S", 0.01)
    relayed.client.shutdown(socket.SHUT_WR)
    assert isinstance(relayed.end().error, TimeoutError)
