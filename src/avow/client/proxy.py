"""A proxy on this machine: any MQTT client talks to it as to a broker, and it to the real one.

Each connection that it accepts gets an attested connection of its own, made when the client comes;
not a byte of the client is sent before the server's evidence was accepted. Bytes pass unchanged, so
MQTT of every version does, and MQTT over WebSocket where both sides speak it.

One thread for each connection, which is why their number is bounded: further clients wait in the
kernel's queue.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from structlog.typing import FilteringBoundLogger

from avow.channel.address import Address, host_and_port
from avow.client.attested_context import AttestedContext
from avow.client.attested_socket import AttestedSocket
from avow.client.connection import network_errors
from avow.client.options import ConnectOptions
from avow.client.relay import relay
from avow.errors import AvowError

CONNECTIONS_MAX: Final = 256
# After a stop: how long servers may take to end their side, and threads to notice.
GOODBYE_S: Final = 2.0
# How long to leave the listeners alone after the system had no descriptor left.
EXHAUSTED_PAUSE_S: Final = 0.5


@dataclass(slots=True, eq=False)
class _Carried:
    """One client: its socket, the one to the server as soon as there is one, and its thread."""

    local: socket.socket
    peer: str
    remote: socket.socket | None = None
    thread: threading.Thread | None = field(default=None, repr=False)


class Proxy:
    """Serves between `serve` and `stop`. Owns the listening sockets, which are non-blocking."""

    def __init__(
        self,
        listening: Sequence[socket.socket],
        server: Address,
        context: AttestedContext,
        *,
        log: FilteringBoundLogger,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self._listening = list(listening)
        self._server = server
        self._options = ConnectOptions(server)
        self._context = context
        self._log = log
        self._connections_max = connections_max
        self._carried: set[_Carried] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)

    def stop(self) -> None:
        """Has `serve` return soon. May be called from any thread."""
        self._stopping = True
        self._wake()

    def serve(self) -> None:
        """Accepts until `stop`, then ends all connections in order."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            accepting = False
            pause_until_s = 0.0
            while not self._stopping:
                pause_s = pause_until_s - time.monotonic()
                wanted = pause_s <= 0 and len(self._carried) < self._connections_max
                if wanted != accepting:
                    for listening in self._listening:
                        if wanted:
                            selector.register(listening, selectors.EVENT_READ)
                        else:
                            selector.unregister(listening)
                    accepting = wanted
                for key, _ in selector.select(pause_s if pause_s > 0 else None):
                    if key.fileobj is self._wake_reader:
                        self._wake_reader.recv(4096)
                    elif not self._accept(key.fileobj):
                        pause_until_s = time.monotonic() + EXHAUSTED_PAUSE_S
        self._close()

    def _accept(self, listening: object) -> bool:
        """Takes one client; False when the system has no room for it."""
        assert isinstance(listening, socket.socket)
        if len(self._carried) >= self._connections_max:
            return True
        try:
            local, target = listening.accept()
        except (BlockingIOError, ConnectionError):
            return True
        except OSError as error:
            self._log.warning("cannot accept", reason=error.strerror)
            return False
        carried = _Carried(local, host_and_port(target[0], target[1]))
        carried.thread = threading.Thread(
            target=self._carry, args=(carried,), name=f"client {carried.peer}", daemon=True
        )
        with self._lock:
            self._carried.add(carried)
        carried.thread.start()
        return True

    def _carry(self, carried: _Carried) -> None:
        log = self._log.bind(client=carried.peer)
        try:
            with carried.local, contextlib.suppress(AvowError):
                remote = self._connect(carried, log)
                with remote:
                    self._relay(carried, remote, log)
        finally:
            with self._lock:
                self._carried.discard(carried)
            self._wake()

    def _connect(self, carried: _Carried, log: FilteringBoundLogger) -> AttestedSocket:
        """The attested connection. Raises an `AvowError` that has been logged."""
        try:
            with network_errors(self._options):
                sock = socket.create_connection(
                    (self._server.host, self._server.port), self._options.timeout_s
                )
                carried.remote = sock
                if self._stopping:
                    _end(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return self._context.wrap_socket(sock, server_hostname=self._server.host)
        except AvowError as error:
            if error.finding is None:
                log.warning("not connected", server=str(self._server), reason=str(error))
            else:
                log.warning(
                    "refused",
                    server=str(self._server),
                    check=error.finding.check.number,
                    title=error.finding.check.title,
                    expected=error.finding.expected,
                    actual=error.finding.actual,
                    advice=error.finding.advice,
                )
            raise

    def _relay(self, carried: _Carried, remote: AttestedSocket, log: FilteringBoundLogger) -> None:
        outcome = remote.outcome
        result = None if outcome is None else outcome.peer
        log.info(
            "connected",
            server=str(self._server),
            platform=None if result is None else result.platform,
            tier=None if result is None else result.tier.label,
            attested_to_server=outcome is not None and outcome.sent_evidence,
        )
        carried.local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carried.local.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        ended = relay(carried.local, remote)
        log.info(
            "disconnected",
            sent_bytes=ended.up_bytes,
            received_bytes=ended.down_bytes,
            reason="both sides ended" if ended.error is None else str(ended.error),
        )

    def _close(self) -> None:
        for listening in self._listening:
            listening.close()
        with self._lock:
            carried = list(self._carried)
        for each in carried:
            _end(each.local)
        _join(carried)
        for each in carried:
            if each.remote is not None and each.thread is not None and each.thread.is_alive():
                _end(each.remote)
        _join(carried)
        self._wake_reader.close()
        self._wake_writer.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            # Full: it is awake. Closed: it needs no waking any more.
            self._wake_writer.send(b"\0")


def _end(sock: socket.socket) -> None:
    """Ends both directions, for whatever thread waits for it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _join(carried: Sequence[_Carried]) -> None:
    until_s = time.monotonic() + GOODBYE_S
    for each in carried:
        if each.thread is not None:
            each.thread.join(max(0.0, until_s - time.monotonic()))
