"""The acceptor over real sockets of this machine: TLS versions, certificates, deadlines, bounds."""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from OpenSSL import SSL

from avow.channel.acceptor import Acceptor, Arrival, Door, Refusal, open_listeners
from avow.channel.address import Address, Scheme
from avow.channel.tls import ServerTls, server_context
from avow.errors import UnavailableError
from avow.testing.pki import Authority, Credential

NOW = datetime.now(UTC)
PATIENCE_S = 20.0


@dataclass
class Files:
    """An authority and what it issued, as files."""

    folder: Path
    authority: Authority
    certificate: Path
    key: Path
    ca: Path

    def tls(self, **settings: object) -> ServerTls:
        return ServerTls(self.certificate, self.key, **settings)  # type: ignore[arg-type]

    def client(self, credential: Credential | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if credential is not None:
            certificate, key = credential.write(self.folder, "client")
            context.load_cert_chain(certificate, key)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = Authority()
    certificate, key = authority.issue_server().write(tmp_path, "server")
    return Files(tmp_path, authority, certificate, key, authority.write(tmp_path / "ca.pem"))


@dataclass
class Seen:
    """What an acceptor told."""

    door: Door
    port: int
    arrivals: queue.SimpleQueue[Arrival] = field(default_factory=queue.SimpleQueue)
    refusals: queue.SimpleQueue[Refusal] = field(default_factory=queue.SimpleQueue)
    pauses: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def arrival(self) -> Arrival:
        return self.arrivals.get(timeout=PATIENCE_S)

    def refusal(self) -> str:
        return self.refusals.get(timeout=PATIENCE_S).reason


@contextmanager
def accepting(
    context: SSL.Context | None,
    *,
    timeout_s: float = PATIENCE_S,
    handshakes_max: int = 1024,
    listening: socket.socket | None = None,
) -> Iterator[Seen]:
    address = Address(Scheme.MQTT, "127.0.0.1", 0)
    if listening is None:
        (listening,) = open_listeners([(socket.AF_INET, "127.0.0.1")], 0, address)
    port = listening.getsockname()[1]
    door = Door(listening, address.at_port(port), context=context, identity_source="cn")
    seen = Seen(door, port)
    acceptor = Acceptor(
        [door],
        admit=seen.arrivals.put,
        refused=seen.refusals.put,
        exhausted=seen.pauses.put,
        handshake_timeout_s=timeout_s,
        handshakes_max=handshakes_max,
    )
    acceptor.start()
    try:
        yield seen
    finally:
        acceptor.stop()


def connect(seen: Seen) -> socket.socket:
    return socket.create_connection(("127.0.0.1", seen.port), timeout=PATIENCE_S)


@contextmanager
def taken(arrival: Arrival) -> Iterator[socket.socket]:
    with socket.socket(fileno=arrival.fd) as server:
        server.settimeout(PATIENCE_S)
        yield server


def handshake(seen: Seen, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(connect(seen), server_hostname="localhost")


def test_plain_connection_is_handed_over() -> None:
    with accepting(None) as seen, connect(seen) as client:
        arrival = seen.arrival()
        assert arrival.tls is None
        assert arrival.identity is None
        assert arrival.peer == f"127.0.0.1:{client.getsockname()[1]}"
        with taken(arrival) as server:
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"


def test_descriptor_is_non_blocking() -> None:
    with accepting(None) as seen, connect(seen):
        arrival = seen.arrival()
        with socket.socket(fileno=arrival.fd) as server:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(1)


def test_tls_1_3_without_resumption(files: Files) -> None:
    context = server_context(files.tls(), NOW)
    client_context = files.client()
    session = None
    with accepting(context) as seen:
        for _ in range(2):
            with client_context.wrap_socket(
                connect(seen), server_hostname="localhost", session=session
            ) as client:
                arrival = seen.arrival()
                assert client.version() == "TLSv1.3"
                assert not client.session_reused
                assert arrival.tls is not None
                with taken(arrival):
                    arrival.tls.send(b"x")
                    assert client.recv(1) == b"x"
                    session = client.session


def test_tls_1_2_is_refused_unless_asked_for(files: Files) -> None:
    old = files.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with accepting(server_context(files.tls(), NOW)) as seen:
        with pytest.raises(ssl.SSLError):
            handshake(seen, old)
        assert seen.refusal() == "unsupported protocol"
    with (
        accepting(server_context(files.tls(minimum="1.2"), NOW)) as seen,
        handshake(seen, old) as client,
        taken(seen.arrival()),
    ):
        assert client.version() == "TLSv1.2"
        cipher = client.cipher()
        assert cipher is not None
        assert cipher[0].startswith("ECDHE-")


def test_tls_1_2_sessions_are_not_resumed(files: Files) -> None:
    old = files.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with accepting(server_context(files.tls(minimum="1.2"), NOW)) as seen:
        with handshake(seen, old) as first, taken(seen.arrival()):
            session = first.session
        with (
            old.wrap_socket(connect(seen), server_hostname="localhost", session=session) as second,
            taken(seen.arrival()),
        ):
            assert not second.session_reused


def test_client_certificate_becomes_the_identity(files: Files) -> None:
    context = server_context(files.tls(client_ca=files.ca), NOW)
    with (
        accepting(context) as seen,
        handshake(seen, files.client(files.authority.issue("alice"))),
    ):
        arrival = seen.arrival()
        with taken(arrival):
            assert arrival.identity == "alice"


def test_client_without_certificate(files: Files) -> None:
    context = server_context(files.tls(client_ca=files.ca), NOW)
    assert "certificate" in refused_words(files, context, None)
    optional = server_context(files.tls(client_ca=files.ca, require_certificate=False), NOW)
    with accepting(optional) as seen, handshake(seen, files.client()):
        arrival = seen.arrival()
        with taken(arrival):
            assert arrival.identity is None


def refused_words(files: Files, context: SSL.Context, credential: Credential | None) -> str:
    with accepting(context) as seen:
        # With TLS 1.3 the client is through before the server has looked at its certificate.
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            handshake(seen, files.client(credential)) as client,
        ):
            assert client.recv(1) == b""
        assert seen.arrivals.empty()
        return seen.refusal()


def test_client_certificate_that_does_not_count(files: Files) -> None:
    context = server_context(files.tls(client_ca=files.ca), NOW)
    stranger = Authority("stranger").issue("alice")
    assert "certificate verify failed" in refused_words(files, context, stranger)
    expired = files.authority.issue("alice", valid_until=NOW - timedelta(hours=1))
    words = refused_words(files, context, expired)
    assert "certificate verify failed: certificate has expired" in words
    early = files.authority.issue(
        "alice", valid_from=NOW + timedelta(hours=1), valid_until=NOW + timedelta(hours=2)
    )
    assert refused_words(files, context, early).endswith(
        "set this machine's clock, which is behind"
    )
    server_only = files.authority.issue("alice", server=True)
    assert "certificate verify failed" in refused_words(files, context, server_only)
    nameless = files.authority.issue(None)
    assert "exactly one CN" in refused_words(files, context, nameless)


def test_revoked_certificates(files: Files) -> None:
    good, bad = files.authority.issue("good"), files.authority.issue("bad")
    crl = files.folder / "crl.pem"
    crl.write_bytes(files.authority.revocation_list([bad.certificate]))
    context = server_context(files.tls(client_ca=files.ca, crl=crl), NOW)
    assert "certificate verify failed" in refused_words(files, context, bad)
    with accepting(context) as seen, handshake(seen, files.client(good)), taken(seen.arrival()):
        pass
    # A CRL of somebody else says nothing about our clients: nobody comes in.
    crl.write_bytes(Authority("other").revocation_list())
    context = server_context(files.tls(client_ca=files.ca, crl=crl), NOW)
    assert "certificate verify failed" in refused_words(files, context, good)


def test_context_can_be_replaced(files: Files) -> None:
    with accepting(server_context(files.tls(), NOW)) as seen:
        fresh = files.authority.issue_server()
        certificate, key = fresh.write(files.folder, "fresh")
        with handshake(seen, files.client()) as before, taken(seen.arrival()):
            seen.door.context = server_context(ServerTls(certificate, key), NOW)
            with handshake(seen, files.client()) as after, taken(seen.arrival()):
                assert after.getpeercert(binary_form=True) != before.getpeercert(binary_form=True)


def test_a_connection_is_of_the_configuration_in_which_it_was_accepted(files: Files) -> None:
    with accepting(server_context(files.tls(), NOW)) as seen:
        seen.door.configuration = b"old"
        with connect(seen) as slow:
            # Somebody who comes later is through: so the slow one has been accepted.
            with handshake(seen, files.client()), taken(seen.arrival()):
                seen.door.configuration = b"new"
            with files.client().wrap_socket(slow, server_hostname="localhost"):
                arrival = seen.arrival()
                with taken(arrival):
                    assert arrival.configuration == b"old"
        with handshake(seen, files.client()), taken(arrival := seen.arrival()):
            assert arrival.configuration == b"new"


def test_slow_handshake_is_given_up_and_others_are_served(files: Files) -> None:
    with (
        accepting(server_context(files.tls(), NOW), timeout_s=0.3) as seen,
        connect(seen) as slow,
        handshake(seen, files.client()),
        taken(seen.arrival()),
    ):
        assert seen.refusal() == "the TLS handshake took too long"
        assert slow.recv(1) == b""


def test_what_is_not_tls_is_refused(files: Files) -> None:
    with accepting(server_context(files.tls(), NOW)) as seen, connect(seen) as client:
        client.sendall(b"\x10\x10\0\x04MQTT\x05\x02\0\0\0\0\0" * 10)
        assert seen.refusal()


def test_full_house_makes_room_for_those_who_speak(files: Files) -> None:
    """With every place taken by silent peers, they get a fifth of the time."""
    with accepting(server_context(files.tls(), NOW), timeout_s=2.0, handshakes_max=2) as seen:
        silent = [connect(seen) for _ in range(2)]
        with handshake(seen, files.client()), taken(seen.arrival()):
            assert seen.refusal() == "the TLS handshake took too long"
        for entry in silent:
            entry.close()


class Exhausted(socket.socket):
    """A listening socket that finds no free descriptor the first two times."""

    failures = 2

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_no_free_descriptor_pauses_and_goes_on() -> None:
    listening = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    listening.setblocking(False)
    with accepting(None, listening=listening) as seen, connect(seen):
        with taken(seen.arrival()):
            pass
        assert [seen.pauses.get_nowait() for _ in range(2)] == ["Too many open files"] * 2
        assert seen.pauses.empty()


def test_stop_closes_the_port() -> None:
    with accepting(None) as seen:
        port = seen.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    assert not [t for t in threading.enumerate() if t.name == "acceptor"]


def test_occupied_port_is_named() -> None:
    with accepting(None) as seen:
        address = Address(Scheme.MQTT, "127.0.0.1", seen.port)
        with pytest.raises(UnavailableError, match="another program occupies") as caught:
            open_listeners([(socket.AF_INET, "127.0.0.1")], seen.port, address)
        assert str(address) in str(caught.value)


def test_address_of_another_machine_is_named() -> None:
    address = Address(Scheme.MQTT, "192.0.2.1", 0)
    with pytest.raises(UnavailableError, match="an address of this machine"):
        open_listeners([(socket.AF_INET, "192.0.2.1")], 0, address)


def test_addresses_that_this_machine_lacks_are_skipped_beside_others() -> None:
    targets = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "127.0.0.1")]
    opened = open_listeners(targets, 0, Address(Scheme.MQTT, "name", 0))
    assert [entry.getsockname()[0] for entry in opened] == ["127.0.0.1"]
    opened[0].close()


def test_port_zero_is_the_same_port_for_every_address() -> None:
    targets = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2")]
    opened = open_listeners(targets, 0, Address(Scheme.MQTT, "name", 0))
    assert len({entry.getsockname()[1] for entry in opened}) == 1
    for entry in opened:
        entry.close()
