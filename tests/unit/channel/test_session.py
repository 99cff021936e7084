"""Facts of real TLS connections, the exchange over them, and the exporter against RFC 8446."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL

from avow.channel import checks, session
from avow.channel.conversation import run_client_exchange
from avow.channel.exchange import (
    AskClients,
    ClientExchange,
    ClientSettings,
    ServerExchange,
    ServerSettings,
)
from avow.channel.issuer import Issuer
from avow.channel.session import facts_of
from avow.errors import (
    AvowError,
    DeniedError,
    UnavailableError,
    UntrustedError,
)
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.attested_channel import (
    CLIENT_CONTEXT,
    NOW,
    SERVER_CONTEXT,
    Expect,
    PromptPlatform,
    conversation,
    exporter,
    identity,
    judge,
    tls_in_memory,
)
from avow.testing.pki import Authority, Credential

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def server(authority: Authority) -> Credential:
    return authority.issue_server()


@pytest.fixture(scope="module")
def client(authority: Authority) -> Credential:
    return authority.issue("a client")


def spki(credential: Credential) -> bytes:
    return credential.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_both_ends_agree(server: Credential, client: Credential) -> None:
    ends = tls_in_memory(server, client=client, ask_client=True)
    ours, theirs = facts_of(ends[0], "client"), facts_of(ends[1], "server")
    assert ours.own_spki == theirs.peer_spki == spki(client)
    assert ours.peer_spki == theirs.own_spki == spki(server)
    assert ours.hash_name == theirs.hash_name
    assert ours.export(b"EXPERIMENTAL x", 32, b"y") == theirs.export(b"EXPERIMENTAL x", 32, b"y")


def test_certificate_that_was_not_asked_for_does_not_count(
    server: Credential, client: Credential
) -> None:
    """OpenSSL names the client's certificate even where it was never sent."""
    ends = tls_in_memory(server, client=client, ask_client=False)
    assert ends[0].get_certificate() is not None
    assert facts_of(ends[0], "client").own_spki == b""
    assert facts_of(ends[1], "server").peer_spki == b""


def test_each_context_has_its_own_certificate(server: Credential, client: Credential) -> None:
    """What is remembered of one context says nothing of another, nor of its peers."""
    for certificate, peer in ((server, client), (client, server), (server, client)):
        connections = tls_in_memory(certificate, client=peer, ask_client=True)
        ours = facts_of(connections[1], "server")
        theirs = facts_of(connections[0], "client")
        assert ours.own_spki == theirs.peer_spki != ours.peer_spki
        assert ours.peer_spki == theirs.own_spki
        assert facts_of(connections[1], "server").own_spki == ours.own_spki


def test_client_without_certificate(server: Credential) -> None:
    ends = tls_in_memory(server, ask_client=True)
    assert facts_of(ends[0], "client").own_spki == b""
    assert facts_of(ends[1], "server").peer_spki == b""


def test_tls_1_2_is_refused(server: Credential) -> None:
    for end, name in zip(
        tls_in_memory(server, version=SSL.TLS1_2_VERSION), ("client", "server"), strict=True
    ):
        with pytest.raises(UntrustedError) as caught:
            facts_of(end, name)  # type: ignore[arg-type]
        assert caught.value.finding is not None
        assert caught.value.finding.check is checks.TLS_1_3


def test_resumed_session_is_refused(server: Credential, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = tls_in_memory(server)
    monkeypatch.setattr(session, "session_reused", lambda connection: True)
    with pytest.raises(UntrustedError) as caught:
        facts_of(ends[0], "client")
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.NOT_RESUMED
    # OpenSSL says the same of an external pre-shared key: then no certificate was sent.
    assert facts_of(ends[0], "client", external_psk=True).peer_spki == b""


def test_session_that_really_is_resumed(server: Credential) -> None:
    """With tickets, as a server that is not ours could have them."""
    server_context = SSL.Context(SSL.TLS_SERVER_METHOD)
    server_context.use_certificate(server.certificate)
    server_context.use_privatekey(server.key)
    server_context.set_session_id(b"test")
    client_context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    saved = None
    for resumed in (False, True):
        near, far = socket.socketpair()
        with near, far:
            there = SSL.Connection(server_context, far)
            there.set_accept_state()
            here = SSL.Connection(client_context, near)
            here.set_connect_state()
            if saved is not None:
                here.set_session(saved)
            thread = threading.Thread(target=lambda end=there: end.do_handshake() or end.send(b"x"))
            thread.start()
            here.do_handshake()
            here.recv(1)
            thread.join()
            saved = here.get_session()
            if not resumed:
                facts_of(here, "client")
                # OpenSSL resumes only what ended properly.
                here.shutdown()
                continue
            for end, name in ((here, "client"), (there, "server")):
                with pytest.raises(UntrustedError) as caught:
                    facts_of(end, name)  # type: ignore[arg-type]
                assert caught.value.finding is not None
                assert caught.value.finding.check is checks.NOT_RESUMED


@pytest.mark.parametrize(
    ("name", "expected"),
    [("TLS_AES_128_GCM_SHA256", "sha256"), ("TLS_AES_256_GCM_SHA384", "sha384")],
)
def test_hash_of_the_cipher_suite(name: str, expected: str) -> None:
    assert session._hash_of(name) == expected


def test_cipher_suite_without_a_known_hash() -> None:
    with pytest.raises(UntrustedError):
        session._hash_of("ECDHE-RSA-AES128-SHA")


def test_exporter_is_that_of_rfc_8446(server: Credential) -> None:
    """OpenSSL's exporter, computed again from the secret in its key log; in TLS 1.3 no context and
    an empty one are the same."""
    lines: list[bytes] = []
    ends = tls_in_memory(server, keylog=lines.append)
    facts = facts_of(ends[0], "client")
    secret = next(line.split()[2] for line in lines if line.startswith(b"EXPORTER_SECRET"))
    export = exporter(bytes.fromhex(secret.decode()), facts.hash_name)
    for label, length, context in (
        (b"EXPORTER-server authenticator handshake context", 48, b""),
        (b"EXPERIMENTAL avow evidence of the server", 32, CLIENT_CONTEXT),
        (b"EXPERIMENTAL avow evidence of the client", 32, CLIENT_CONTEXT),
    ):
        assert facts.export(label, length, context) == export(label, length, context)
    assert ends[0].export_keying_material(b"EXPERIMENTAL z", 32) == facts.export(
        b"EXPERIMENTAL z", 32, b""
    )


@pytest.mark.parametrize("mutual", [False, True])
def test_exchange_over_real_tls(server: Credential, client: Credential, mutual: bool) -> None:
    ends = tls_in_memory(server, client=client, ask_client=mutual)
    facts = facts_of(ends[0], "client"), facts_of(ends[1], "server")
    talk = conversation(
        ClientSettings(judge=judge(), identity=identity()),
        ServerSettings(identity=identity(), ask_clients=AskClients.ALWAYS, judge=judge()),
        facts,
    ).run()
    assert talk.client_outcome is not None
    assert talk.server_outcome is not None


def test_other_connection_between_the_same_two(server: Credential) -> None:
    """A TLS key that leaked does not help: the exporter is that of another connection."""
    settings = ServerSettings(identity=identity())
    first, second = tls_in_memory(server), tls_in_memory(server)
    crossed = facts_of(first[0], "client"), facts_of(second[1], "server")
    talk = conversation(ClientSettings(judge=judge()), settings, crossed).run()
    assert talk.client_outcome is None
    assert talk.client_error is not None
    assert talk.client_error.finding is not None
    assert talk.client_error.finding.check is checks.FINISHED


# The blocking shell


class Peer:
    """A server in a thread, over a socket, with what comes after the exchange."""

    def __init__(self, server: Credential, settings: ServerSettings | None) -> None:
        self.near, self._far = socket.socketpair()
        self._settings = settings
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.use_certificate(server.certificate)
        self._context.use_privatekey(server.key)
        self.rest = b""
        self.error: AvowError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def connect(self) -> SSL.Connection:
        self.near.settimeout(PATIENCE_S)
        connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), self.near)
        connection.set_connect_state()
        while True:
            try:
                connection.do_handshake()
                return connection
            except SSL.WantReadError:
                continue

    def _run(self) -> None:
        connection = SSL.Connection(self._context, self._far)
        connection.set_accept_state()
        try:
            connection.do_handshake()
            if self._settings is None:
                return
            exchange = ServerExchange(
                facts_of(connection, "server"),
                self._settings,
                authorised=False,
                context=SERVER_CONTEXT,
                now=NOW,
            )
            platform = PromptPlatform()
            while exchange.outcome is None:
                if (wanted := exchange.quote_wanted) is not None:
                    exchange.quoted(platform.quote(wanted.claims, wanted.binder))
                    connection.sendall(exchange.to_send())
                else:
                    exchange.receive(connection.recv(exchange.needed))
                    if content := exchange.to_send():
                        # MQTT right behind it, in the same record.
                        connection.sendall(content)
            connection.sendall(exchange.to_send() + b"MQTT")
            self.rest = connection.recv(4)
        except AvowError as error:
            self.error = error
        finally:
            self._far.close()

    def join(self) -> None:
        self._thread.join()

    def close(self) -> None:
        self.near.close()
        self.join()


@pytest.fixture
def meet(server: Credential) -> Iterator[Callable[[ServerSettings | None], Peer]]:
    peers: list[Peer] = []

    def make(settings: ServerSettings | None) -> Peer:
        peers.append(Peer(server, settings))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


Meet = Callable[[ServerSettings | None], Peer]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer(SimulatedAttester())
    issuer.start()
    yield issuer
    issuer.stop()


def start(connection: SSL.Connection, settings: ClientSettings) -> ClientExchange:
    return ClientExchange(facts_of(connection, "client"), settings, context=CLIENT_CONTEXT, now=NOW)


def test_blocking_client(meet: Meet, issuer: Issuer) -> None:
    peer = meet(ServerSettings(identity=identity(), ask_clients=AskClients.ALWAYS, judge=judge()))
    connection = peer.connect()
    exchange = start(connection, ClientSettings(judge=judge(), identity=identity()))
    outcome = run_client_exchange(connection, exchange, issuer=issuer)
    assert outcome.sent_evidence
    peer.near.setblocking(True)
    connection.sendall(b"mqtt")
    assert connection.recv(4) == b"MQTT"
    peer.close()
    assert peer.rest == b"mqtt"


def test_blocking_client_tells_the_server_why(meet: Meet) -> None:
    peer = meet(ServerSettings(identity=identity()))
    connection = peer.connect()
    exchange = start(connection, ClientSettings(judge=judge(Expect(bytes(32)))))
    with pytest.raises(DeniedError, match="P99"):
        run_client_exchange(connection, exchange)
    peer.close()
    assert peer.error is not None
    assert "P99" in str(peer.error)


@pytest.mark.parametrize("gone_before", [False, True])
def test_blocking_client_whose_server_closes(meet: Meet, gone_before: bool) -> None:
    """Before or after OPEN was written."""
    peer = meet(None)
    connection = peer.connect()
    if gone_before:
        peer.join()
    with pytest.raises(UnavailableError) as caught:
        run_client_exchange(connection, start(connection, ClientSettings(judge=judge())))
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.STAYED
    peer.close()


def test_blocking_client_whose_time_is_over(server: Credential) -> None:
    ends = tls_in_memory(server)
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), near)
        connection.set_connect_state()
        exchange = start(ends[0], ClientSettings(judge=judge()))
        with pytest.raises(UnavailableError) as caught:
            run_client_exchange(connection, exchange, deadline_s=0.0)
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.DEADLINE


def test_blocking_client_whose_platform_does_not_answer(meet: Meet) -> None:
    class Silent(Issuer):
        def request(self, claims: object, binder: bytes, done: object) -> None:
            """Never."""

    peer = meet(ServerSettings(identity=identity(), ask_clients=AskClients.ALWAYS, judge=judge()))
    connection = peer.connect()
    exchange = start(connection, ClientSettings(judge=judge(), identity=identity()))
    with pytest.raises(UnavailableError) as caught:
        run_client_exchange(
            connection, exchange, issuer=Silent(SimulatedAttester()), deadline_s=0.2
        )
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.DEADLINE
    peer.close()


def test_blocking_client_without_issuer(meet: Meet) -> None:
    peer = meet(ServerSettings(ask_clients=AskClients.ALWAYS, judge=judge()))
    connection = peer.connect()
    with pytest.raises(UnavailableError) as caught:
        run_client_exchange(connection, start(connection, ClientSettings(identity=identity())))
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.QUOTE
    peer.close()
    assert isinstance(peer.error, AvowError)
