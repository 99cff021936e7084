"""What a program gets from `avow.client`: an attested connection, or an error that says why not."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from OpenSSL import SSL

from avow.channel.exchange import AskClients, EvidenceFor, Outcome
from avow.channel.judge import Judge
from avow.channel.psk import load_pre_shared_keys, serve_keys
from avow.client import (
    AttestedContext,
    AttestedSocket,
    DeniedPeerError,
    MalformedPeerError,
    UnavailablePeerError,
    UntrustedPeerError,
)
from avow.errors import AvowError, MalformedError, UnavailableError
from avow.policy import parse_policy
from avow.runtime.manifest import runtime_manifest
from avow.tee.platforms import verifiers
from avow.testing.attested_peer import (
    MODULE,
    policy_text,
    server_context,
    stripped_answer,
)
from avow.testing.pki import DAY, Authority
from tests.integration.attested_endpoint import AttestedEndpoint, attested_endpoint

PATIENCE_S = 20.0
OTHER_MODULE = bytes(32)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[AttestedEndpoint]:
    with attested_endpoint(tmp_path) as endpoint:
        yield endpoint


def refused(endpoint: AttestedEndpoint, kind: type[AvowError], check: str | None) -> AvowError:
    """Connects, which has to fail by this check; says with what error."""
    context = endpoint.context()
    with pytest.raises(kind) as caught:
        endpoint.connect(context)
    error = caught.value
    assert isinstance(error, AvowError)
    assert isinstance(error, ConnectionError)
    assert (error.finding and error.finding.check.number) == check
    assert context.failure is error
    assert context.outcome is None
    return error


def test_bytes_pass_after_the_evidence(endpoint: AttestedEndpoint) -> None:
    context = endpoint.context()
    with endpoint.connect(context) as connection:
        data = bytes(range(256)) * 8192
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        got = bytearray()
        while len(got) < len(data):
            got += connection.recv(100_000)
        sender.join(PATIENCE_S)
        assert bytes(got) == data
        outcome = context.outcome
        assert outcome is not None
        assert outcome.peer is not None
        assert outcome.peer.accepted
        assert outcome.peer.claims["module"] == MODULE
        assert not outcome.sent_evidence
    assert isinstance(endpoint.peer.outcome(), Outcome)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_names_and_addresses_of_the_certificate(endpoint: AttestedEndpoint, host: str) -> None:
    endpoint.connect(host=host).close()


def test_names_are_indicated_and_addresses_are_not(endpoint: AttestedEndpoint) -> None:
    """RFC 6066, section 3."""
    indicated: list[bytes | None] = []
    context = server_context(endpoint.authority.issue_server())
    context.set_tlsext_servername_callback(lambda tls: indicated.append(tls.get_servername()))
    endpoint.peer.change(context=context)
    for host in ("localhost", "127.0.0.1"):
        endpoint.connect(host=host).close()
    assert indicated == [b"localhost", None]


def test_another_module(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.run(OTHER_MODULE)
    error = refused(endpoint, DeniedPeerError, "P4")
    assert error.finding is not None
    assert MODULE.hex() in error.finding.expected
    assert OTHER_MODULE.hex() in error.finding.actual
    # The peer is told which check, and never a value.
    answer = endpoint.peer.outcome()
    assert isinstance(answer, AvowError)
    assert "P4" in str(answer)
    assert MODULE.hex() not in str(answer)


@pytest.mark.parametrize(
    ("first_word", "kind", "check"),
    [
        (stripped_answer(), UntrustedPeerError, "C11"),
        # A broker that knows nothing of it closes the connection, or answers in MQTT or HTTP.
        (b"", UnavailablePeerError, "C22"),
        (b"\x20\x02\x00\x00", MalformedPeerError, "C3"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", MalformedPeerError, "C3"),
    ],
    ids=["stripped", "closed", "mqtt", "http"],
)
def test_stripped_evidence(
    endpoint: AttestedEndpoint, first_word: bytes, kind: type[AvowError], check: str
) -> None:
    endpoint.peer.change(first_word=first_word)
    refused(endpoint, kind, check)


def test_a_server_without_a_tee(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.change(settings=replace(endpoint.peer.conduct.settings, identity=None))
    refused(endpoint, UnavailablePeerError, "C21")


def test_evidence_for_the_authorised_alone(endpoint: AttestedEndpoint) -> None:
    settings = replace(endpoint.peer.conduct.settings, evidence_for=EvidenceFor.AUTHORISED)
    endpoint.peer.change(settings=settings)
    refused(endpoint, DeniedPeerError, "C21")
    endpoint.peer.change(authorised=True)
    endpoint.connect().close()


def test_a_certificate_of_another_authority(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.change(context=server_context(Authority().issue_server()))
    assert "trusted authority" in str(refused(endpoint, UntrustedPeerError, "C23"))


def test_an_expired_certificate(endpoint: AttestedEndpoint) -> None:
    old = endpoint.authority.issue_server(valid_until=datetime.now(UTC) - timedelta(minutes=1))
    endpoint.peer.change(context=server_context(old))
    assert "expired" in str(refused(endpoint, UntrustedPeerError, "C23"))


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.2", "host.localhost"])
def test_a_certificate_for_another_host(endpoint: AttestedEndpoint, host: str) -> None:
    with pytest.raises(UntrustedPeerError, match="mismatch"):
        endpoint.connect(host=host)
    # Nothing was said to it but TLS: it never came to an exchange.
    assert isinstance(endpoint.peer.outcome(), ssl.SSLError)


def test_a_clients_certificate_is_none_for_servers(endpoint: AttestedEndpoint) -> None:
    client = endpoint.authority.issue("localhost", names=[x509.DNSName("localhost")])
    endpoint.peer.change(context=server_context(client))
    refused(endpoint, UntrustedPeerError, "C23")


def test_a_certificate_that_nobody_verifies(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.change(context=server_context(Authority().issue_server()))
    context = endpoint.context(unsafe_no_verify=True)
    assert not context.check_hostname
    endpoint.connect(context, host="elsewhere.example").close()
    endpoint.peer.run(OTHER_MODULE)
    with pytest.raises(DeniedPeerError):
        endpoint.connect(context)


def test_tls_1_2_is_not_spoken(endpoint: AttestedEndpoint) -> None:
    old = server_context(endpoint.authority.issue_server())
    old.set_max_proto_version(SSL.TLS1_2_VERSION)
    endpoint.peer.change(context=old)
    assert "TLS 1.3" in str(refused(endpoint, UnavailablePeerError, None))


def test_a_client_certificate(endpoint: AttestedEndpoint) -> None:
    asking = server_context(endpoint.authority.issue_server(), client_ca=endpoint.authority)
    endpoint.peer.change(context=asking)
    # In TLS 1.3 the server says no after the client's handshake has ended. What the client has sent
    # meanwhile can make the connection's end overtake the server's words.
    with pytest.raises(UnavailablePeerError, match=r"--cert|check C22"):
        endpoint.connect()
    certificate, key = endpoint.authority.issue("sensor").write(endpoint.folder, "sensor")
    with endpoint.connect(endpoint.context(certfile=certificate, keyfile=key)) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_a_pre_shared_key(endpoint: AttestedEndpoint) -> None:
    keys, own, other = (endpoint.folder / name for name in ("keys", "own", "other"))
    keys.write_text(f"sensor:{'ab' * 32}\nanother:{'cd' * 32}\n")
    own.write_text(f"sensor:{'ab' * 32}\n")
    other.write_text(f"sensor:{'ef' * 32}\n")
    serving = server_context(endpoint.authority.issue_server())
    serve_keys(serving, load_pre_shared_keys(keys))
    endpoint.peer.change(context=serving)
    with endpoint.connect(endpoint.context(cafile=None, psk=own)) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    with pytest.raises(UnavailablePeerError):
        endpoint.connect(endpoint.context(cafile=None, psk=other))
    # Without the key, a certificate of whatever authority is no substitute.
    endpoint.peer.change(context=server_context(endpoint.authority.issue_server()))
    with pytest.raises((UntrustedPeerError, UnavailablePeerError)):
        endpoint.connect(endpoint.context(cafile=None, psk=own))
    for more in ({"psk": own}, {"cafile": None, "psk": keys}):
        with pytest.raises(MalformedError):
            endpoint.context(**more)


def test_both_sides_show_evidence(endpoint: AttestedEndpoint) -> None:
    context = endpoint.context(tee="simulated")
    runtime = runtime_manifest().digest

    def expect(module: bytes) -> None:
        text = policy_text(
            module,
            runtime=runtime.hex(),
            configuration=sha256(endpoint.policy.read_bytes()).hexdigest(),
        )
        settings = replace(
            endpoint.peer.conduct.settings,
            ask_clients=AskClients.ALWAYS,
            judge=Judge(verifiers(), parse_policy(text, name="clients")),
        )
        endpoint.peer.change(settings=settings)

    expect(runtime)
    endpoint.connect(context).close()
    outcome = endpoint.peer.outcome()
    assert isinstance(outcome, Outcome)
    assert outcome.peer is not None
    assert outcome.peer.claims["role"] == "client"
    assert context.outcome is not None
    assert context.outcome.sent_evidence
    context.close()
    with pytest.raises(UnavailablePeerError, match="C19"):
        endpoint.connect(context)
    endpoint.peer.outcome()
    # A client cannot have a file of its choice named as its module.
    expect(sha256(b"the program").digest())
    with pytest.raises(DeniedPeerError, match="P4"):
        endpoint.connect(endpoint.context(tee="simulated"))
    with pytest.raises(TypeError, match="module"):
        endpoint.context(tee="simulated", module=endpoint.policy)
    endpoint.peer.outcome()
    with pytest.raises(DeniedPeerError, match="C17"):
        endpoint.connect()


def test_nothing_is_sent_before_the_evidence(endpoint: AttestedEndpoint) -> None:
    """Whoever forgets the handshake gets it all the same."""
    endpoint.peer.run(OTHER_MODULE)
    uses: tuple[Callable[[AttestedSocket], object], ...] = (
        lambda each: each.send(b"secret"),
        lambda each: each.recv(1),
        lambda each: each.sendall(b"secret"),
    )
    for use in uses:
        sock = socket.create_connection(("127.0.0.1", endpoint.peer.port), PATIENCE_S)
        connection = endpoint.context().wrap_socket(
            sock, server_hostname="localhost", do_handshake_on_connect=False
        )
        for _ in range(2):
            with pytest.raises(DeniedPeerError):
                use(connection)
        assert connection.fileno() == -1
        assert isinstance(endpoint.peer.outcome(), AvowError)
    endpoint.peer.run(MODULE)
    sock = socket.create_connection(("127.0.0.1", endpoint.peer.port), PATIENCE_S)
    with endpoint.context().wrap_socket(
        sock, server_hostname="localhost", do_handshake_on_connect=False
    ) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_a_server_that_stays_silent(tmp_path: Path) -> None:
    with attested_endpoint(tmp_path) as endpoint, socket.create_server(("127.0.0.1", 0)) as mute:
        sock = socket.create_connection(mute.getsockname())
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            endpoint.context().wrap_socket(sock, server_hostname="localhost")
        assert sock.fileno() == -1


def test_what_is_no_attested_connection_is_refused(endpoint: AttestedEndpoint) -> None:
    context = endpoint.context()
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ValueError, match="new connection"):
            context.wrap_socket(left, server_side=True)
        with pytest.raises(ValueError, match="saved session"):
            context.wrap_socket(left, server_hostname="localhost", session=object())
        with pytest.raises(ValueError, match="server_hostname"):
            context.wrap_socket(left)
        with pytest.raises(ValueError, match="unsafe_no_verify"):
            context.check_hostname = False
        context.check_hostname = True
        with pytest.raises(MalformedPeerError):
            context.wrap_socket(left, server_hostname="..")


def test_asyncio_does_not_take_it_for_plain_tls(endpoint: AttestedEndpoint) -> None:
    """It would make its own TLS connection from it, without any evidence."""
    context = endpoint.context()
    left, right = socket.socketpair()

    async def connect() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(
            asyncio.Protocol, sock=left, ssl=context, server_hostname="localhost"
        )

    with left, right:
        with pytest.raises((TypeError, AttributeError)):
            asyncio.run(connect())
        right.setblocking(False)
        with pytest.raises(BlockingIOError):
            right.recv(1)


def test_files_that_will_not_do(endpoint: AttestedEndpoint, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("version = 1")
    with pytest.raises(MalformedError):
        AttestedContext(bad, cafile=endpoint.ca)
    with pytest.raises(UnavailableError, match="no such file"):
        AttestedContext(tmp_path / "absent.toml", cafile=endpoint.ca)
    with pytest.raises(UnavailableError):
        endpoint.context(cafile=tmp_path / "absent.pem")
    with pytest.raises(MalformedError):
        endpoint.context(tee="abacus")
    with pytest.raises(UnavailableError):
        endpoint.context(endorsements=tmp_path / "absent")
    expired = endpoint.authority.issue("old", valid_until=datetime.now(UTC) - DAY / 2)
    certificate, key = expired.write(tmp_path, "old")
    with pytest.raises(AvowError, match="expired"):
        endpoint.context(certfile=certificate, keyfile=key)
