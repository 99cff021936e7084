"""Accepts connections, finishes their TLS handshakes and attestation exchanges, hands them over.

One thread for one set of entrances, and nothing in it ever blocks on a peer: sockets are
non-blocking, a handshake goes on when its socket is ready, and one that takes too long is closed.
What it holds is bounded: with `handshakes_max` handshakes and exchanges under way no further TLS
connection is accepted (the kernel's queue waits), and slow ones get a shorter time, so that idle
peers cannot keep the door shut.

Where attestation is configured, the first decrypted byte is awaited here (`avow.channel.opening`).
Evidence for a peer comes from the issuer's threads: they leave it in a queue and wake this one.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from OpenSSL import SSL

from avow.channel.address import Address, host_and_port
from avow.channel.exchange import DEADLINE_S
from avow.channel.identity import IdentitySource, identity_of
from avow.channel.opening import AttestedPeer, DoorAttestation, Opened, Opening, Wants
from avow.channel.psk import key_identity
from avow.channel.session import peer_certificate
from avow.channel.tls import certificate_failure, reason_of, session_reused
from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError
from avow.evidence.envelope import Evidence

# Connections taken from one listener before the others get a look.
ACCEPT_BATCH = 128
# How long to leave the listeners alone after the system had no descriptor or memory left.
EXHAUSTED_PAUSE_S = 0.5
# With all handshake places taken, one that has lasted this part of its time is given up.
CROWDED_SHARE = 0.2

# What a refused peer had sent and nobody will read: at most this much is taken out of its socket.
UNREAD_PIECE_BYTES = 64 * 1024
UNREAD_PIECES_MAX = 4

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(slots=True)
class Door:
    """One listening socket and what is asked of those who come in.

    `context` (None: no TLS), `identity_source`, `allow_anonymous` and `attestation` (None: nobody
    looks at the first byte) may be replaced at any time by another thread; new connections follow
    the new ones. `configuration` is the digest (32 bytes) of the attested configuration that they
    belong to, None where there is no attestation; who replaces them replaces it last.
    """

    listening: socket.socket
    address: Address
    context: SSL.Context | None = None
    identity_source: IdentitySource = "none"
    allow_anonymous: bool = False
    attestation: DoorAttestation | None = None
    configuration: bytes | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A connection that does not come in. `check` is the number of the check that failed, empty
    where it was none of attestation."""

    door: Door
    peer: str
    reason: str
    check: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection that is ready for MQTT. The receiver owns the non-blocking descriptor `fd`.

    `configuration` is the door's when the connection was accepted; `shown` the digest (32 bytes) of
    the one in the evidence that the peer asked for.
    """

    fd: int
    door: Door
    peer: str
    configuration: bytes | None
    tls: SSL.Connection | None = field(default=None, repr=False)
    identity: str | None = None
    attested: AttestedPeer | None = None
    shown: bytes | None = None


@dataclass(slots=True, eq=False)
class _Handshake:
    """A connection until it is ready for MQTT. `opening` is there when TLS is done and the first
    byte matters; `started_s` counts anew then."""

    door: Door
    sock: socket.socket
    tls: SSL.Connection
    peer: str
    started_s: float
    attestation: DoorAttestation | None
    configuration: bytes | None
    events: int = 0
    opening: Opening | None = None
    identity: str | None = None


class Acceptor:
    """Runs one thread from `start` to `stop`. The callbacks run in that thread and must not block.

    `admit` receives every connection that is ready; `refused` is told of every one that is not;
    `exhausted` of the system's words when accepting has to pause. `exchange_timeout_s` counts from
    the end of the TLS handshake to the end of an exchange, or to the first byte of MQTT.
    """

    def __init__(
        self,
        doors: Sequence[Door],
        *,
        admit: Callable[[Arrival], None],
        refused: Callable[[Refusal], None],
        exhausted: Callable[[str], None],
        handshake_timeout_s: float = 10.0,
        exchange_timeout_s: float = DEADLINE_S,
        handshakes_max: int = 1024,
        name: str = "acceptor",
    ) -> None:
        self._doors = list(doors)
        self._admit = admit
        self._refused = refused
        self._exhausted = exhausted
        self._handshake_timeout_s = handshake_timeout_s
        self._exchange_timeout_s = exchange_timeout_s
        self._handshakes_max = handshakes_max
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        # Evidence for those who wait for it, put here by other threads.
        self._quoted: queue.SimpleQueue[tuple[_Handshake, Evidence | AvowError]]
        self._quoted = queue.SimpleQueue()
        self._stopping = False
        self._paused_until_s: float | None = None
        self._listening = False
        # In the order in which they began, which is the order in which they run out of time.
        self._handshakes: OrderedDict[_Handshake, None] = OrderedDict()
        self._openings: OrderedDict[_Handshake, None] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins to accept."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the listening sockets, gives up unfinished handshakes and waits for the thread."""
        self._stopping = True
        self._wake()
        self._thread.join()

    def set_handshake_timeout(self, timeout_s: float) -> None:
        """For handshakes that begin from now on, and for those under way."""
        self._handshake_timeout_s = timeout_s

    def _run(self) -> None:
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        try:
            while not self._stopping:
                self._listen_or_pause()
                for key, _ in self._selector.select(self._patience_s()):
                    if isinstance(key.data, Door):
                        self._accept(key.data)
                    elif isinstance(key.data, _Handshake):
                        self._advance(key.data)
                    else:
                        self._take_quoted()
                self._give_up_slow(self._handshakes)
                self._give_up_slow(self._openings)
        finally:
            self._close()

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            # Full: it is being woken already. Closed: nobody is left to wake.
            return

    def _listen_or_pause(self) -> None:
        if self._paused_until_s is not None and time.monotonic() >= self._paused_until_s:
            self._paused_until_s = None
        wanted = self._paused_until_s is None and not self._crowded
        if wanted == self._listening:
            return
        for door in self._doors:
            if wanted:
                self._selector.register(door.listening, selectors.EVENT_READ, door)
            else:
                self._selector.unregister(door.listening)
        self._listening = wanted

    def _patience_s(self) -> float | None:
        deadlines = []
        if self._paused_until_s is not None:
            deadlines.append(self._paused_until_s)
        for waiting in (self._handshakes, self._openings):
            if waiting:
                oldest = next(iter(waiting))
                deadlines.append(oldest.started_s + self._allowed_s(oldest))
        if not deadlines:
            return None
        return max(0.0, min(deadlines) - time.monotonic())

    @property
    def _crowded(self) -> bool:
        return len(self._handshakes) + len(self._openings) >= self._handshakes_max

    def _allowed_s(self, handshake: _Handshake) -> float:
        whole_s = (
            self._handshake_timeout_s if handshake.opening is None else self._exchange_timeout_s
        )
        return whole_s * (CROWDED_SHARE if self._crowded else 1.0)

    def _accept(self, door: Door) -> None:
        for _ in range(ACCEPT_BATCH):
            if self._paused_until_s is not None:
                return
            try:
                sock, target = door.listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._paused_until_s = time.monotonic() + EXHAUSTED_PAUSE_S
                    self._exhausted(error.strerror or "no resources")
                    return
                # The peer is gone again (ECONNABORTED and its kin): nothing was lost but it.
                continue
            peer = host_and_port(target[0], target[1])
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                sock.close()
                continue
            # First: what is replaced after this makes the connection one of the old configuration.
            configuration = door.configuration
            context = door.context
            if context is None:
                self._admit(Arrival(sock.detach(), door, peer, configuration))
            elif not self._begin(door, context, configuration, sock, peer):
                return

    def _begin(
        self,
        door: Door,
        context: SSL.Context,
        configuration: bytes | None,
        sock: socket.socket,
        peer: str,
    ) -> bool:
        """Starts a handshake; False when that was the last place."""
        tls = SSL.Connection(context, sock)
        tls.set_accept_state()
        started_s = time.monotonic()
        handshake = _Handshake(door, sock, tls, peer, started_s, door.attestation, configuration)
        self._handshakes[handshake] = None
        self._advance(handshake)
        return not self._crowded

    def _advance(self, handshake: _Handshake) -> None:
        if handshake.opening is not None:
            self._go_on(handshake, handshake.opening)
            return
        try:
            handshake.tls.do_handshake()
        except SSL.WantReadError:
            self._await(handshake, selectors.EVENT_READ)
        except SSL.WantWriteError:
            self._await(handshake, selectors.EVENT_WRITE)
        except SSL.Error as error:
            self._refuse(handshake, _handshake_reason(error, handshake.tls))
        else:
            self._finish(handshake)

    def _await(self, handshake: _Handshake, events: int) -> None:
        if handshake.events == events:
            return
        if handshake.events == 0:
            self._selector.register(handshake.sock, events, handshake)
        elif events == 0:
            self._selector.unregister(handshake.sock)
        else:
            self._selector.modify(handshake.sock, events, handshake)
        handshake.events = events

    def _finish(self, handshake: _Handshake) -> None:
        """TLS is done."""
        key_name = key_identity(handshake.tls)
        if key_name is None and session_reused(handshake.tls):
            self._refuse(handshake, "a resumed session")
            return
        source = handshake.door.identity_source
        try:
            certificate = peer_certificate(handshake.tls)
            if key_name is not None:
                handshake.identity = None if source == "none" else key_name
            elif certificate is not None:
                handshake.identity = identity_of(certificate, source)
        except (DeniedError, MalformedError) as error:
            self._refuse(handshake, str(error))
            return
        if handshake.attestation is None:
            self._arrived(handshake, Opened())
            return
        handshake.opening = Opening(
            handshake.tls,
            handshake.attestation,
            authorised=certificate is not None or key_name is not None,
            external_psk=key_name is not None,
        )
        del self._handshakes[handshake]
        self._openings[handshake] = None
        handshake.started_s = time.monotonic()
        self._go_on(handshake, handshake.opening)

    def _go_on(self, handshake: _Handshake, opening: Opening) -> None:
        """The first byte or an exchange, as far as it goes without waiting."""

        def quoted(answer: Evidence | AvowError) -> None:
            self._quoted.put((handshake, answer))
            self._wake()

        try:
            step = opening.advance(quoted)
        except SSL.Error as error:
            self._refuse(handshake, reason_of(error))
        except AvowError as error:
            self._refuse_attestation(handshake, error)
        else:
            match step:
                case Wants.READ:
                    self._await(handshake, selectors.EVENT_READ)
                case Wants.WRITE:
                    self._await(handshake, selectors.EVENT_WRITE)
                case Wants.QUOTE:
                    self._await(handshake, 0)
                case Opened():
                    self._arrived(handshake, step)

    def _take_quoted(self) -> None:
        try:
            while self._wake_reader.recv(4096):
                pass
        except BlockingIOError:
            pass
        while not self._quoted.empty():
            handshake, answer = self._quoted.get()
            # It may have run out of time meanwhile.
            if handshake in self._openings and handshake.opening is not None:
                handshake.opening.quoted(answer)
                self._go_on(handshake, handshake.opening)

    def _arrived(self, handshake: _Handshake, opened: Opened) -> None:
        self._leave(handshake)
        self._admit(
            Arrival(
                handshake.sock.detach(),
                handshake.door,
                handshake.peer,
                handshake.configuration,
                handshake.tls,
                handshake.identity,
                opened.peer,
                opened.shown,
            )
        )

    def _refuse_attestation(self, handshake: _Handshake, error: AvowError) -> None:
        check = "" if error.finding is None else error.finding.check.number
        # The alert that ends the stream, so that the peer reads our last words as complete.
        with contextlib.suppress(SSL.Error):
            handshake.tls.shutdown()
        self._refuse(handshake, str(error), check)

    def _refuse(self, handshake: _Handshake, reason: str, check: str = "") -> None:
        self._leave(handshake)
        _close(handshake.sock)
        self._refused(Refusal(handshake.door, handshake.peer, reason, check))

    def _leave(self, handshake: _Handshake) -> None:
        self._await(handshake, 0)
        del (self._handshakes if handshake.opening is None else self._openings)[handshake]

    def _give_up_slow(self, waiting: OrderedDict[_Handshake, None]) -> None:
        now_s = time.monotonic()
        while waiting:
            oldest = next(iter(waiting))
            if now_s < oldest.started_s + self._allowed_s(oldest):
                return
            if oldest.opening is None:
                self._refuse(oldest, "the TLS handshake took too long")
            else:
                self._refuse_attestation(oldest, oldest.opening.late())

    def _close(self) -> None:
        for handshake in (*self._handshakes, *self._openings):
            handshake.sock.close()
        for door in self._doors:
            door.listening.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()


# OpenSSL's words for a first record that is none of TLS.
_NO_TLS = frozenset({"wrong version number", "http request", "https proxy request"})


def _handshake_reason(error: SSL.Error, tls: SSL.Connection) -> str:
    reason = reason_of(error)
    if failure := certificate_failure(tls):
        return f"{reason}: {failure}"
    if reason not in _NO_TLS:
        return reason
    return f"expected TLS, got something else ({reason}); have the client use mqtts:// or wss://"


def _close(sock: socket.socket) -> None:
    """Closes a refused connection so that the peer can still read why.

    With unread bytes in it the kernel would reset the connection, and what was sent last, an alert
    or a refusal, would be lost on the way.
    """
    with contextlib.suppress(OSError):
        for _ in range(UNREAD_PIECES_MAX):
            if not sock.recv(UNREAD_PIECE_BYTES):
                break
    sock.close()


def open_listeners(
    targets: Sequence[tuple[int, str]], port: int, address: Address, *, backlog: int = 4096
) -> list[socket.socket]:
    """Binds each (family, host); port 0 becomes the same free port for all of them.

    An address that this machine does not have is skipped as long as another one works: `localhost`
    names ::1 on machines without IPv6 too. Raises `UnavailableError` when none works.
    """
    opened: list[socket.socket] = []
    failure: OSError | None = None
    for family, host in targets:
        try:
            listening = _listen(family, host, port, backlog)
        except OSError as error:
            failure = error
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            break
        port = listening.getsockname()[1]
        opened.append(listening)
    else:
        if opened:
            return opened
    for listening in opened:
        listening.close()
    raise _cannot_listen(address, failure) from failure


def _listen(family: int, host: str, port: int, backlog: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restart must not wait for the old connections' TIME_WAIT; a second broker on the same
        # port is still refused.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `[::]` means IPv6 and `0.0.0.0` means IPv4, whatever the system's default is.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(backlog)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _cannot_listen(address: Address, failure: OSError | None) -> UnavailableError:
    if failure is not None and failure.errno == errno.EADDRINUSE:
        return UnavailableError(
            f"expected a free port for the listener {address}, got one that another program "
            f"occupies; stop that program (see `ss -ltnp`) or choose another port"
        )
    if failure is not None and failure.errno == errno.EACCES:
        return UnavailableError(
            f"expected permission to listen on {address}, got none; choose a port above 1023 "
            f"or give the program CAP_NET_BIND_SERVICE"
        )
    reason = failure.strerror if failure is not None else "no address"
    return UnavailableError(
        f"expected an address of this machine in the listener {address}, got {reason!r}; "
        f"use one that `ip address` shows"
    )
