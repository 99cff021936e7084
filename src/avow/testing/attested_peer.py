"""An attested server for tests of clients: TLS, the exchange, then bytes to and from a back end.

It can also be what a client must refuse: a server that runs another module, that strips evidence,
that speaks plain MQTT, that has somebody else's certificate. What it does can be changed while it
runs, so that a reconnect finds something else than the first connection did.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from OpenSSL import SSL, crypto

from avow.channel.attested_identity import AttestedIdentity, make_identity
from avow.channel.exchange import Outcome, ServerExchange, ServerSettings
from avow.channel.issuer import Issuer
from avow.channel.messages import Answer, encode
from avow.channel.psk import key_identity
from avow.channel.session import facts_of
from avow.client.relay import relay
from avow.client.tls_socket import TlsSocket
from avow.errors import AvowError
from avow.evidence.claims import Workload
from avow.evidence.roles import Attester
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.pki import Authority, Credential

PATIENCE_S = 20.0
MODULE = bytes(range(32))
RUNTIME = bytes([1]) * 32
CONFIGURATION = bytes([2]) * 32

Serve = Callable[[TlsSocket], None]


def workload(module: bytes = MODULE) -> Workload:
    """What the peer claims to run."""
    return Workload(module, RUNTIME, CONFIGURATION, os.urandom(32))


def policy_text(
    module: bytes = MODULE, *, runtime: str | None = None, configuration: str | None = None
) -> str:
    """A policy for simulated evidence of `module`, in TOML."""
    return f"""\
version = 1
name = "test"
unsafe_simulated = true
platform = "simulated"
module = "{module.hex()}"
runtime = "{runtime or RUNTIME.hex()}"
configuration = "{configuration or CONFIGURATION.hex()}"
evidence_age_s = {{ min = -60, max = 60 }}
unsafe_debug = true
"""


# As `first_word`, or at its end: the connection is reset instead of being closed in order.
RESET: Final = b"\0reset"


def echo(connection: TlsSocket) -> None:
    """Sends back what comes, until the client's end."""
    while piece := connection.recv(64 * 1024):
        connection.sendall(piece)


def forward_to(port: int) -> Serve:
    """Has a server on this machine answer, such as `avow broker`."""

    def serve(connection: TlsSocket) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as back_end:
            relay(connection, back_end)

    return serve


@dataclass(frozen=True)
class Conduct:
    """How the peer treats its next connections.

    `settings` are those of an honest server. `first_word`, when given, replaces the exchange: the
    server reads what the client sends first and answers with these bytes.
    """

    context: SSL.Context
    settings: ServerSettings
    serve: Serve
    first_word: bytes | None = None
    authorised: bool = False


@dataclass
class AttestedPeer:
    """Listens on 127.0.0.1 from `start` to `stop`; use it as a context manager.

    `outcomes` has what came of each connection: an `Outcome`, an error, or None where `first_word`
    was said.
    """

    conduct: Conduct
    issuer: Issuer
    outcomes: queue.SimpleQueue[Outcome | Exception | None] = field(
        default_factory=queue.SimpleQueue
    )
    _listening: socket.socket = field(default_factory=lambda: _listen())
    _open: dict[int, TlsSocket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stopping: bool = False

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    def change(self, **fields: Any) -> None:
        """Another conduct from the next connection on; the fields are those of `Conduct`."""
        self.conduct = replace(self.conduct, **fields)

    def run(self, module: bytes) -> None:
        """From now on it claims to run `module`."""
        identity = make_identity("simulated", workload(module), datetime.now(UTC))
        self.change(settings=replace(self.conduct.settings, identity=identity))

    def drop_all(self) -> None:
        """Breaks every open connection, as a restart does."""
        with self._lock:
            for connection in self._open.values():
                _break(connection)

    def outcome(self) -> Outcome | Exception | None:
        """What came of the next connection."""
        return self.outcomes.get(timeout=PATIENCE_S)

    def __enter__(self) -> AttestedPeer:
        self.issuer.start()
        self._begin(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        # Wakes the thread that accepts.
        socket.create_connection(("127.0.0.1", self.port), PATIENCE_S).close()
        self._threads[0].join(PATIENCE_S)
        self._listening.close()
        self.drop_all()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), thread
        self.issuer.stop()

    def _begin(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            if self._stopping:
                sock.close()
                return
            self._begin(self._serve, sock, self.conduct)

    def _serve(self, sock: socket.socket, conduct: Conduct) -> None:
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = SSL.Connection(conduct.context, sock)
        tls.set_accept_state()
        with TlsSocket(sock, tls) as connection:
            with self._lock:
                self._open[id(connection)] = connection
            try:
                connection.do_handshake()
                if conduct.first_word is not None:
                    connection.recv(1)
                    if word := conduct.first_word.removesuffix(RESET):
                        connection.sendall(word)
                    if conduct.first_word.endswith(RESET):
                        _reset(sock)
                    self.outcomes.put(None)
                    return
                self.outcomes.put(self._exchange(connection, tls, conduct))
                conduct.serve(connection)
            except (AvowError, OSError) as error:
                self.outcomes.put(error)
            finally:
                with self._lock:
                    del self._open[id(connection)]

    def _exchange(self, connection: TlsSocket, tls: SSL.Connection, conduct: Conduct) -> Outcome:
        exchange = ServerExchange(
            facts_of(tls, "server", external_psk=key_identity(tls) is not None),
            conduct.settings,
            authorised=conduct.authorised,
            context=os.urandom(32),
            now=datetime.now(UTC),
        )
        try:
            while True:
                connection.sendall(exchange.to_send())
                if exchange.outcome is not None:
                    return exchange.outcome
                wanted = exchange.quote_wanted
                if wanted is not None:
                    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
                    self.issuer.request(wanted.claims, wanted.binder, answers.put)
                    exchange.quoted(answers.get(timeout=PATIENCE_S))
                    continue
                content = connection.recv(exchange.needed)
                if not content:
                    exchange.closed()
                exchange.receive(content)
        except AvowError:
            connection.sendall(exchange.to_send())
            raise


def attested_peer(
    folder: Path,
    *,
    authority: Authority | None = None,
    credential: Credential | None = None,
    identity: AttestedIdentity | None = None,
    serve: Serve = echo,
    attester: Attester | None = None,
) -> AttestedPeer:
    """An honest peer with the certificate `folder`/ca.pem signs, and the policy that accepts it in
    `folder`/policy.toml. Both files are written here."""
    authority = authority or Authority()
    authority.write(folder / "ca.pem")
    (folder / "policy.toml").write_text(policy_text())
    identity = identity or make_identity("simulated", workload(), datetime.now(UTC))
    settings = ServerSettings(identity=identity)
    context = server_context(credential or authority.issue_server())
    return AttestedPeer(
        Conduct(context, settings, serve), Issuer(attester or SimulatedAttester(), quotes_per_s=1e3)
    )


def server_context(credential: Credential, *, client_ca: Authority | None = None) -> SSL.Context:
    """The server's side of TLS, up to 1.3; with `client_ca` a client certificate is required."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_certificate(credential.certificate)
    context.use_privatekey(credential.key)
    if client_ca is not None:
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(client_ca.certificate))
        context.add_client_ca(client_ca.certificate)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return context


def stripped_answer() -> bytes:
    """What somebody in between says who takes the evidence out: a well-formed, empty ANSWER."""
    return encode(Answer(b"", b""))


def _listen() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    return listening


def _reset(sock: socket.socket) -> None:
    """The end of it will be an RST: lingering for no time does that."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _break(connection: TlsSocket) -> None:
    try:
        connection._sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It has ended already.
        return
