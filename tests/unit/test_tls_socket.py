"""`TlsSocket` does what `ssl.SSLSocket` does, as far as paho-mqtt and aiomqtt look."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from OpenSSL import SSL

from avow.client.openssl_context import client_context, expect_server
from avow.client.options import ClientTls
from avow.client.tls_socket import TlsSocket
from avow.errors import MalformedError
from avow.testing.attested_peer import server_context
from avow.testing.pki import Authority

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[SSL.Context, SSL.Context]:
    authority = Authority()
    ca = authority.write(tmp_path_factory.mktemp("pki") / "ca.pem")
    client = client_context(ClientTls(cafile=ca), datetime.now(UTC))
    return client, server_context(authority.issue_server())


@contextmanager
def connected(contexts: tuple[SSL.Context, SSL.Context]) -> Iterator[tuple[TlsSocket, TlsSocket]]:
    """Client and server after their handshake, both of which may wait."""
    ours, theirs = socket.socketpair()
    client_tls, server_tls = SSL.Connection(contexts[0], ours), SSL.Connection(contexts[1], theirs)
    client_tls.set_connect_state()
    server_tls.set_accept_state()
    expect_server(client_tls, "localhost")
    with TlsSocket(ours, client_tls) as client, TlsSocket(theirs, server_tls) as server:
        client.settimeout(PATIENCE_S)
        server.settimeout(PATIENCE_S)
        thread = threading.Thread(target=server.do_handshake)
        thread.start()
        client.do_handshake()
        thread.join(PATIENCE_S)
        yield client, server


def fill(client: TlsSocket, data: bytes) -> int:
    """Writes until the kernel takes no more; the rest waits for the same bytes again."""
    client.setblocking(False)
    written = 0
    while True:
        try:
            written += client.send(data[written:])
        except ssl.SSLWantWriteError:
            return written


def received(server: TlsSocket, count: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < count:
        piece = server.recv(count - len(pieces))
        assert piece
        pieces += piece
    return bytes(pieces)


def test_bytes_arrive_in_pieces_of_any_size(contexts: tuple[SSL.Context, SSL.Context]) -> None:
    data = bytes(range(256)) * 4096
    with connected(contexts) as (client, server):
        thread = threading.Thread(target=client.sendall, args=(data,))
        thread.start()
        assert server.recv(0) == b""
        assert server.recv(1) == data[:1]
        buffer = bytearray(7)
        assert server.recv_into(buffer) == 7
        assert bytes(buffer) == data[1:8]
        assert server.recv_into(buffer, 2) == 2
        assert received(server, len(data) - 10) == data[10:]
        thread.join(PATIENCE_S)
        assert client.version() == "TLSv1.3"


def test_pending_counts_what_select_does_not_see(
    contexts: tuple[SSL.Context, SSL.Context],
) -> None:
    with connected(contexts) as (client, server):
        assert server.pending() == 0
        client.sendall(b"12345")
        assert server.recv(1) == b"1"
        assert server.pending() == 4
        server.close()
        assert server.pending() == 0


def test_a_read_that_would_wait(contexts: tuple[SSL.Context, SSL.Context]) -> None:
    with connected(contexts) as (client, _):
        client.setblocking(False)
        assert (client.gettimeout(), client.getblocking()) == (0, False)
        with pytest.raises(ssl.SSLWantReadError):
            client.recv(1)
        client.settimeout(0.01)
        with pytest.raises(TimeoutError):
            client.recv(1)
        with pytest.raises(ValueError, match="at least 0"):
            client.settimeout(-1)


def test_an_interrupted_write_goes_on_with_the_same_bytes(
    contexts: tuple[SSL.Context, SSL.Context],
) -> None:
    data = bytes(range(256)) * 65536
    with connected(contexts) as (client, server):
        written = fill(client, data)
        assert 0 < written < len(data)
        with pytest.raises(ssl.SSLWantWriteError):
            client.send(data[written:])
        # OpenSSL would send the old record and report it as these bytes.
        with pytest.raises(ssl.SSLError, match="same bytes first"):
            client.send(b"something else")
        assert received(server, written) == data[:written]
        client.settimeout(PATIENCE_S)
        thread = threading.Thread(target=client.sendall, args=(data[written:],))
        thread.start()
        assert received(server, len(data) - written) == data[written:]
        thread.join(PATIENCE_S)


def test_half_a_connection_can_end(contexts: tuple[SSL.Context, SSL.Context]) -> None:
    with connected(contexts) as (client, server):
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        assert server.recv(10) == b"last"
        assert server.recv(10) == b""
        server.sendall(b"answer")
        assert client.recv(10) == b"answer"
        server.close()
        assert client.recv(10) == b""


def test_an_end_without_goodbye_is_an_error(contexts: tuple[SSL.Context, SSL.Context]) -> None:
    with connected(contexts) as (client, server):
        client._sock.close()
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            server.recv(1)


def test_a_closed_socket_does_nothing_more(contexts: tuple[SSL.Context, SSL.Context]) -> None:
    with connected(contexts) as (client, server):
        assert client.fileno() >= 0
        client.close()
        client.close()
        assert client.fileno() == -1
        for call in (lambda: client.recv(1), lambda: client.send(b"x")):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()
        assert server.recv(1) == b""


def test_flags_and_forms_that_it_does_not_have(contexts: tuple[SSL.Context, SSL.Context]) -> None:
    with connected(contexts) as (client, _):
        with pytest.raises(ValueError, match="no flags"):
            client.recv(1, socket.MSG_PEEK)
        with pytest.raises(ValueError, match="no flags"):
            client.send(b"x", socket.MSG_OOB)
        with pytest.raises(ValueError, match="binary_form"):
            client.getpeercert(binary_form=False)
        assert client.send(b"") == 0
        assert client.getpeercert() is not None


def test_two_threads_write_whole_pieces(contexts: tuple[SSL.Context, SSL.Context]) -> None:
    """paho publishes from the caller's thread while its own reads and writes."""
    count = 400
    with connected(contexts) as (client, server):

        def send(letter: bytes) -> None:
            for _ in range(count):
                client.sendall(letter * 1000)

        threads = [threading.Thread(target=send, args=(letter,)) for letter in (b"a", b"b")]
        for thread in threads:
            thread.start()
        data = received(server, 2 * count * 1000)
        for thread in threads:
            thread.join(PATIENCE_S)
    pieces = {data[start : start + 1000] for start in range(0, len(data), 1000)}
    assert pieces == {b"a" * 1000, b"b" * 1000}


@pytest.mark.parametrize("host", ["", "a" * 300, "nul\0", ".example", "xn--\u00e9"])
def test_names_that_are_none(contexts: tuple[SSL.Context, SSL.Context], host: str) -> None:
    connection = SSL.Connection(contexts[0], None)
    with pytest.raises(MalformedError):
        expect_server(connection, host)


def test_one_file_may_hold_certificate_and_key(tmp_path: Path) -> None:
    authority = Authority()
    credential = authority.issue("client")
    both = tmp_path / "both.pem"
    both.write_bytes(credential.certificate_pem() + credential.key_pem())
    client_context(
        ClientTls(cafile=authority.write(tmp_path / "ca.pem"), certificate=both),
        datetime.now(UTC),
    )


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "PEM certificates"), (b"-----BEGIN X", "PEM certificates")]
)
def test_an_authority_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    with pytest.raises(MalformedError, match=message):
        client_context(ClientTls(cafile=path), datetime.now(UTC))


def test_a_key_needs_its_certificate(tmp_path: Path) -> None:
    with pytest.raises(MalformedError, match="--cert with --key"):
        client_context(ClientTls(key=tmp_path / "x.key", unsafe_no_verify=True), datetime.now(UTC))
