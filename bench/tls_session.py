"""A TLS 1.3 client on memory BIOs over a blocking socket: what the bench connects with.

Memory BIOs, because the load generator goes on with them after the handshake.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from OpenSSL import SSL

TIMEOUT_S = 20.0
# The same for every connection of every run.
CIPHER_SUITE = b"TLS_AES_256_GCM_SHA384"
_READ_BYTES = 64 * 1024


def client_context(authority: Path) -> SSL.Context:
    """The server's certificate has to come from `authority`."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(CIPHER_SUITE)
    context.load_verify_locations(str(authority))
    context.set_verify(SSL.VERIFY_PEER)
    return context


def open_socket(host: str, port: int) -> socket.socket:
    """A TCP connection without Nagle's algorithm."""
    sock = socket.create_connection((host, port), timeout=TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def shake_hands(tls: SSL.Connection, sock: socket.socket) -> None:
    """The TLS handshake of a connection on memory BIOs. Errors: OSError, SSL.Error."""
    while True:
        try:
            tls.do_handshake()
            done = True
        except SSL.WantReadError:
            done = False
        _flush(tls, sock)
        if done:
            return
        _fill(tls, sock)


class Session:
    """A connection after its handshake. Errors of all methods: OSError, SSL.Error."""

    def __init__(self, context: SSL.Context, host: str, port: int) -> None:
        self.sock = open_socket(host, port)
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()
        try:
            shake_hands(self.tls, self.sock)
        except BaseException:
            self.close()
            raise

    def read(self, size: int) -> bytes:
        """1 to `size` bytes, as soon as some are there."""
        while True:
            with contextlib.suppress(SSL.WantReadError):
                return self.tls.recv(size)
            _fill(self.tls, self.sock)

    def write(self, content: bytes) -> None:
        """Everything, at once."""
        self.tls.sendall(content)
        _flush(self.tls, self.sock)

    def close(self) -> None:
        """Without TLS's goodbye."""
        self.sock.close()


def _flush(tls: SSL.Connection, sock: socket.socket) -> None:
    with contextlib.suppress(SSL.WantReadError):  # nothing to send
        while True:
            sock.sendall(tls.bio_read(_READ_BYTES))


def _fill(tls: SSL.Connection, sock: socket.socket) -> None:
    records = sock.recv(_READ_BYTES)
    if not records:
        raise ConnectionError("the peer closed the connection")
    tls.bio_write(records)
