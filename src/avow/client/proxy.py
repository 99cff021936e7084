"""A proxy on this machine: any MQTT client talks to it as to a broker, and it to the real one.

Each connection that it accepts gets an attested connection of its own, made when the client comes;
not a byte of the client is sent before the server's evidence was accepted. Bytes pass unchanged, so
MQTT of every version does, and MQTT over WebSocket where both sides speak it.

A client has to speak before the server is connected to: see `avow.client.waiting_room`. One thread
for each connection, which is why their number is bounded: further clients wait for a place, and no
user of the machine can take the last eighth of them.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from structlog.typing import FilteringBoundLogger

from avow.channel.address import Address
from avow.channel.web_origin import WebRule
from avow.client.attested_context import AttestedContext
from avow.client.attested_socket import AttestedSocket
from avow.client.connection import network_errors
from avow.client.options import ConnectOptions
from avow.client.relay import relay
from avow.client.waiting_room import SILENT_S, Waiting, WaitingRoom
from avow.errors import AvowError, UnavailableError

CONNECTIONS_MAX: Final = 256
# After a stop: how long servers may take to end their side, and threads to notice.
GOODBYE_S: Final = 2.0
# How long to leave the listeners alone after the system had no descriptor left.
EXHAUSTED_PAUSE_S: Final = 0.5
# One of so many places is for others than who has all the rest.
_OTHERS_SHARE: Final = 8


@dataclass(slots=True, eq=False)
class _Carried:
    """One client: its socket, the one to the server as soon as there is one, and its thread."""

    local: socket.socket
    peer: str
    owner: str
    begun: bytes
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
        web: WebRule | None = None,
        silent_s: float = SILENT_S,
    ) -> None:
        """`web` says which pages may connect, where clients speak WebSocket; `silent_s` is how long
        a client may say nothing."""
        self._listening = list(listening)
        self._server = server
        self._options = ConnectOptions(server)
        self._context = context
        self._log = log
        self._connections_max = connections_max
        self._web = web
        self._silent_s = silent_s
        self._carried: set[_Carried] = set()
        self._lock = threading.Lock()
        self._stopping = False
        self._full = _Full(connections_max, log)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)

    def use(self, context: AttestedContext) -> None:
        """From the next connection on; those that are there stay. From any thread."""
        self._context = context

    def stop(self) -> None:
        """Has `serve` return soon. May be called from any thread."""
        self._stopping = True
        self._wake()

    def serve(self) -> None:
        """Accepts until `stop`, then ends all connections in order."""
        with selectors.DefaultSelector() as selector:
            room = WaitingRoom(selector, web=self._web, silent_s=self._silent_s)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            accepting = False
            pause_until_s = 0.0
            while not self._stopping:
                pause_s = pause_until_s - time.monotonic()
                wanted = pause_s <= 0 and room.has_room
                if wanted != accepting:
                    for listening in self._listening:
                        if wanted:
                            selector.register(listening, selectors.EVENT_READ)
                        else:
                            selector.unregister(listening)
                    accepting = wanted
                waits_s = [pause_s] if pause_s > 0 else []
                if room.ends_in_s is not None:
                    waits_s.append(room.ends_in_s)
                for key, _ in selector.select(min(waits_s, default=None)):
                    if key.fileobj is self._wake_reader:
                        self._wake_reader.recv(4096)
                    elif isinstance(key.data, Waiting):
                        self._hear(room, key.data)
                    elif not self._accept(key.fileobj, room):
                        pause_until_s = time.monotonic() + EXHAUSTED_PAUSE_S
                for late in room.expire():
                    self._turn_away(late, f"it said nothing for {self._silent_s:g} s")
                self._admit(room)
            room.close()
        self._close()

    def _accept(self, listening: object, room: WaitingRoom) -> bool:
        """Takes one client; False when the system has no room for it."""
        assert isinstance(listening, socket.socket)
        if not room.has_room:
            return True
        try:
            local, target = listening.accept()
        except (BlockingIOError, ConnectionError):
            return True
        except OSError as error:
            self._log.warning("cannot accept", reason=error.strerror)
            return False
        gone = room.add(local, target[0], target[1])
        if gone is not None:
            self._turn_away(gone, "it said nothing, and others came")
        return True

    def _hear(self, room: WaitingRoom, client: Waiting) -> None:
        if client.local.fileno() < 0:
            # It had to give way to another one in this very turn.
            return
        try:
            room.hear(client)
        except AvowError as error:
            self._turn_away(client, str(error))

    def _turn_away(self, client: Waiting, reason: str) -> None:
        self._log.warning("turned away", peer=client.peer, owner=client.owner, reason=reason)

    def _admit(self, room: WaitingRoom) -> None:
        """Gives places to those who wait for one, the first who came first."""
        with self._lock:
            taken = Counter(each.owner for each in self._carried)
        each_max = self._connections_max - self._connections_max // _OTHERS_SHARE
        left = []
        while room.ready:
            client = room.ready.popleft()
            if taken.total() >= self._connections_max or taken[client.owner] >= each_max:
                left.append(client)
                continue
            taken[client.owner] += 1
            self._begin(client)
        room.ready.extend(left)
        most = max(taken.values(), default=0)
        reached = taken.total() >= self._connections_max or most >= each_max
        free = self._connections_max - taken.total()
        enough = max(1, self._connections_max // _OTHERS_SHARE)
        self._full.note(reached, free >= enough and most <= each_max - enough, taken, len(left))

    def _begin(self, client: Waiting) -> None:
        carried = _Carried(client.local, client.peer, client.owner, client.begun)
        carried.thread = threading.Thread(
            target=self._carry, args=(carried,), name=f"client {carried.peer}", daemon=True
        )
        with self._lock:
            self._carried.add(carried)
        carried.thread.start()

    def _carry(self, carried: _Carried) -> None:
        log = self._log.bind(peer=carried.peer, owner=carried.owner)
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
                # Who could not be judged, as when the network was cut, was not refused.
                event = "not connected" if isinstance(error, UnavailableError) else "refused"
                log.warning(
                    event,
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
        if carried.begun:
            remote.sendall(carried.begun)
        ended = relay(carried.local, remote)
        log.info(
            "disconnected",
            sent_bytes=len(carried.begun) + ended.up_bytes,
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


class _Full:
    """Says once that clients have to wait, and once that they need not any more."""

    def __init__(self, connections_max: int, log: FilteringBoundLogger) -> None:
        self._connections_max = connections_max
        self._log = log
        self._since_s: float | None = None
        self._waited_most = 0

    def note(self, reached: bool, free: bool, taken: Counter[str], waiting: int) -> None:
        """`reached`: somebody who comes now has to wait; `free`: for some time nobody will."""
        self._waited_most = max(self._waited_most, waiting)
        if reached and self._since_s is None:
            self._since_s = time.monotonic()
            self._log.warning(
                "full",
                connections=taken.total(),
                connections_max=self._connections_max,
                by_owner=dict(taken.most_common(3)),
                advice="further clients wait; raise --connections-max, or find out who has so many",
            )
        elif free and self._since_s is not None:
            self._log.warning(
                "places free again",
                connections=taken.total(),
                connections_max=self._connections_max,
                full_s=round(time.monotonic() - self._since_s, 1),
                waited_at_once=self._waited_most,
            )
            self._since_s = None
            self._waited_most = 0


def _end(sock: socket.socket) -> None:
    """Ends both directions, for whatever thread waits for it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _join(carried: Sequence[_Carried]) -> None:
    until_s = time.monotonic() + GOODBYE_S
    for each in carried:
        if each.thread is not None:
            each.thread.join(max(0.0, until_s - time.monotonic()))
