"""What an observer of the network sees, byte by byte, and what TLS itself must not allow."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from OpenSSL import SSL

from avow.channel.exchange import ClientSettings
from avow.channel.session import facts_of
from avow.errors import AvowError
from avow.testing.attested_channel import tls_in_memory
from avow.testing.pki import Authority
from tests.adversary.removal import Defence, removed
from tests.integration.attested_clients import (
    AttestedClient,
    broker_policy,
    judge_of,
    own_evidence,
)
from tests.integration.service_process import PATIENCE_S, ServiceProcess, service

HANDSHAKE, CHANGE_CIPHER_SPEC, APPLICATION_DATA = 22, 20, 23


@dataclass
class Wire:
    """A cable with a clip on it: passes bytes between its port and a server's, and keeps them."""

    target: int
    captures: list[tuple[bytearray, bytearray]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _listening: socket.socket = field(default_factory=socket.socket)

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    def open(self) -> None:
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self._start(self._accept)

    def close(self) -> None:
        # Wakes the thread that accepts.
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._listening.close()

    def capture(self, number: int) -> tuple[bytes, bytes]:
        """What went to the server and what came back, once both directions have ended."""
        for thread in self._threads[1:]:
            thread.join(PATIENCE_S)
        sent, received = self.captures[number]
        return bytes(sent), bytes(received)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self._start(self._carry, near)

    def _carry(self, near: socket.socket) -> None:
        kept = (bytearray(), bytearray())
        self.captures.append(kept)
        with near, socket.create_connection(("127.0.0.1", self.target), PATIENCE_S) as far:
            back = threading.Thread(target=_pass_on, args=(far, near, kept[1]))
            back.start()
            _pass_on(near, far, kept[0])
            back.join(PATIENCE_S)


def _pass_on(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    source.settimeout(PATIENCE_S)
    try:
        while piece := source.recv(65536):
            kept += piece
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # One end has gone without a word; what it sent is kept.
        return


@contextmanager
def wire(target: int) -> Iterator[Wire]:
    """A wire to a port of this machine."""
    clipped = Wire(target)
    clipped.open()
    try:
        yield clipped
    finally:
        clipped.close()


def records(content: bytes) -> list[tuple[int, bytes, bytes]]:
    """TLS records: content type, version, fragment (RFC 8446, section 5.1). All of them."""
    found = []
    while content:
        length = int.from_bytes(content[3:5], "big")
        assert len(content) >= 5 + length
        found.append((content[0], content[1:3], content[5 : 5 + length]))
        content = content[5 + length :]
    return found


def hello_shape(fragment: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """A hello without what is drawn at random: fixed fields, and each extension by type, with its
    content unless that is a key share."""
    body = fragment[4:]
    version, at = body[:2], 2 + 32
    at += 1 + body[at]  # the session identifier that TLS 1.3 draws for old middleboxes
    if fragment[0] == 1:
        suites = int.from_bytes(body[at : at + 2], "big")
        fixed = version + body[at : at + 2 + suites]
        at += 2 + suites
        fixed += body[at : at + 1 + body[at]]
        at += 1 + body[at]
    else:
        fixed = version + body[at : at + 3]
        at += 3
    at += 2
    extensions = []
    while at < len(body):
        kind = int.from_bytes(body[at : at + 2], "big")
        length = int.from_bytes(body[at + 2 : at + 4], "big")
        content = body[at + 4 : at + 4 + length]
        extensions.append((kind, b"" if kind == 51 else content))
        at += 4 + length
    return fixed, extensions


def visible(capture: tuple[bytes, bytes]) -> list[object]:
    """All that an observer sees of a connection, but for lengths, number and times of records."""
    seen: list[object] = []
    for content in capture:
        parsed = records(content)
        hello = parsed[0]
        assert hello[0] == HANDSHAKE
        later = {(kind, version) for kind, version, _ in parsed[1:]}
        seen += [hello[:2], hello_shape(hello[2]), sorted(later)]
    return seen


@dataclass
class Place:
    """A broker that attests, and the policy that accepts it."""

    broker: ServiceProcess
    policy: str
    folder: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("wire")
    certificate, key = Authority().issue_server().write(folder, "server")
    files = ("--cert", str(certificate), "--key", str(key))
    options = ("--listen", "mqtts://127.0.0.1:0", *files, "--allow-anonymous")
    with service(*options, "--tee", "simulated") as broker:
        yield Place(broker, broker_policy(*options), folder)


def test_an_observer_cannot_tell(place: Place) -> None:
    """The bytes on the wire of an ordinary and of an attested connection, and of a mutual one."""
    with wire(place.broker.port("mqtts")) as clipped:
        with AttestedClient(clipped.port) as plain:
            assert plain.connected("plain").code == 0
        with AttestedClient(clipped.port) as attested:
            attested.attest(ClientSettings(judge=judge_of(place.policy)))
            assert attested.connected("attested").code == 0
        with AttestedClient(clipped.port) as mutual, own_evidence(judge_of(place.policy)) as own:
            settings, issuer = own
            mutual.attest(settings, issuer=issuer)
            assert mutual.connected("mutual").code == 0
        ordinary, *others = (clipped.capture(number) for number in range(3))
    for other in others:
        assert visible(other) == visible(ordinary)
        # It was a different conversation all the same.
        assert len(other[1]) > len(ordinary[1]) + 32 * 1024
        for word in (b"avow", b"cmw", b"simulated", place.policy.encode()[-64:]):
            assert word not in other[0]
            assert word not in other[1]


def test_the_test_would_see_a_difference(place: Place) -> None:
    """An ALPN protocol in the hello, and a record of another type, are seen."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([b"avow"])
    with wire(place.broker.port("mqtts")) as clipped:
        with AttestedClient(clipped.port) as plain:
            assert plain.connected("plain").code == 0
        with AttestedClient(clipped.port, context) as marked:
            assert marked.connected("marked").code == 0
        ordinary, other = clipped.capture(0), clipped.capture(1)
    assert visible(other) != visible(ordinary)
    alert = (ordinary[0] + b"\x15\x03\x03\x00\x02\x01\x00", ordinary[1])
    assert visible(alert) != visible(ordinary)


def test_evidence_of_any_size_has_one_length(place: Place) -> None:
    """Two attested connections carry as many bytes from the server."""
    with wire(place.broker.port("mqtts")) as clipped:
        for _ in range(2):
            with AttestedClient(clipped.port) as attested:
                attested.attest(ClientSettings(judge=judge_of(place.policy)))
        first, second = clipped.capture(0), clipped.capture(1)
    payload = [
        sum(len(fragment) for kind, _, fragment in records(each[1]) if kind == APPLICATION_DATA)
        for each in (first, second)
    ]
    # The certificate's signature in the handshake differs by a byte or two in length.
    assert abs(payload[0] - payload[1]) <= 4


def _facts(connections: tuple[SSL.Connection, SSL.Connection]) -> AvowError | None:
    try:
        facts_of(connections[0], "client")
    except AvowError as error:
        return error
    return None


def _number(error: AvowError | None) -> str | None:
    return None if error is None or error.finding is None else error.finding.check.number


def test_downgrade_to_tls_1_2() -> None:
    """A man in the middle who has both sides speak 1.2, whose exporter binds less."""
    connections = tls_in_memory(Authority().issue_server(), version=SSL.TLS1_2_VERSION)
    defence = Defence("C1", "avow.channel.session", "TLS_1_3")
    assert _number(_facts(connections)) == "C1"
    with removed([defence]):
        assert _facts(connections) is None


def test_resumed_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/unit/channel has one that is really resumed; here the check is what stops it."""
    connections = tls_in_memory(Authority().issue_server())
    monkeypatch.setattr("avow.channel.session.session_reused", lambda _: True)
    defence = Defence("C2", "avow.channel.session", "NOT_RESUMED")
    assert _number(_facts(connections)) == "C2"
    with removed([defence]):
        assert _facts(connections) is None
