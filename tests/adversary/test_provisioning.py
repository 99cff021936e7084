"""Secrets reach the node that the owner has judged, and no other; and come from nobody else.

As elsewhere here: each attack is stopped by a check that is named, and when that is taken out of
the code that runs, by the next one; without all of them it succeeds.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from avow.channel.attested_identity import make_identity
from avow.channel.exchange import ClientExchange, ClientSettings
from avow.channel.judge import Judge
from avow.channel.messages import Answer as AnswerFrame
from avow.channel.messages import FrameType, encode, frame_bytes
from avow.channel.provisioning import HANDSHAKES_MAX, node_context, self_signed
from avow.channel.provisioning_messages import FrameType as Kind
from avow.channel.provisioning_messages import NotTaken, Secrets, Taken, decode
from avow.channel.provisioning_messages import encode as encode_secrets
from avow.channel.provisioning_owner import OwnerKey, hand_over, new_owner_key
from avow.channel.provisioning_stream import ProvisioningStream
from avow.channel.session import facts_of
from avow.errors import AvowError
from avow.evidence.claims import Workload
from avow.policy.policy_file import parse_policy
from avow.tee.simulated.verifier import SimulatedVerifier
from avow.testing.provisioning_node import NODE, PATIENCE_S, POLICY, Node, provisioning_node
from tests.adversary.removal import Defence, removed
from tests.adversary.scene import check_of

OWNER = new_owner_key()
STRANGER = new_owner_key()
SECRETS = Secrets({"store": bytes(range(32))}, {"users": b"alice:the password of alice"})
FRAME = encode_secrets(SECRETS)

AUTHORISED = Defence("C9", "avow.channel.exchange", "AUTHORISED", inside="_may_show")
MUST_ASK = Defence("C18", "avow.channel.exchange", "ASKED", inside="_open")
NOT_AT_ONCE = Defence("C18", "avow.channel.opening", inside="_refuse_plain")
THE_OWNER = Defence("PR2", "avow.channel.provisioning", "OWNER")
POLICY_SAYS_NO = Defence("P4", "avow.policy.policy", inside="require")
AT_THE_END = Defence("C11", "avow.channel.exchange", "PRESENT", inside="_finish")
BEFORE_SECRETS = Defence("C11", "avow.channel.provisioning_owner", "PRESENT")
FINISHED = Defence("C15", "avow.channel.authenticator", "FINISHED")
SIGNATURE = Defence("C16", "avow.channel.authenticator", "SIGNATURE")
BOUND = Defence("E7", "avow.evidence.origin", "BOUND")


def judge() -> Judge:
    return Judge({"simulated": SimulatedVerifier()}, parse_policy(POLICY, name="policy.toml"))


def provision(port: int, key: OwnerKey = OWNER) -> AvowError | None:
    """As `avow provision` does: why it failed, or None."""
    try:
        hand_over("127.0.0.1", port, key, judge(), SECRETS, datetime.now(UTC))
    except AvowError as error:
        return error
    return None


# Whoever wants to provision a node that is not theirs.


class Intruder:
    """A TLS connection to a node, with the stranger's key or without any."""

    def __init__(self, node: Node, key: OwnerKey | None) -> None:
        self.sock = socket.create_connection(("127.0.0.1", node.port), PATIENCE_S)
        self.sock.setblocking(False)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_NONE)
        if key is not None:
            context = key.context(datetime.now(UTC))
        self.tls = SSL.Connection(context, self.sock)
        self.tls.set_connect_state()
        self.stream = ProvisioningStream(self.sock.fileno(), self.tls, time.monotonic() + 20)
        self.stream.handshake()

    def read(self, count: int) -> bytes:
        return self.stream._read(count)

    def answer(self) -> Taken | NotTaken:
        expected = (Kind.TAKEN, Kind.REFUSED)
        message = decode(self.stream.read_frame(expected), expected)
        assert isinstance(message, Taken | NotTaken)
        return message


def asks(intruder: Intruder) -> None:
    """Opens an exchange as the owner does, and believes every answer."""
    exchange = ClientExchange(
        facts_of(intruder.tls, "client"),
        ClientSettings(Judge({"simulated": SimulatedVerifier()}, None)),
        context=bytes(range(32)),
        now=datetime.now(UTC),
    )
    intruder.stream.write(exchange.to_send())
    while exchange.outcome is None:
        exchange.receive(intruder.read(exchange.needed))
    intruder.stream.write(exchange.to_send())


def shows_something(intruder: Intruder) -> None:
    """Opens an exchange and asks for nothing."""
    identity = make_identity("simulated", NODE, datetime.now(UTC))
    exchange = ClientExchange(
        facts_of(intruder.tls, "client"),
        ClientSettings(None, identity),
        context=bytes(range(32)),
        now=datetime.now(UTC),
    )
    intruder.stream.write(exchange.to_send())
    while exchange.outcome is None:
        exchange.receive(intruder.read(exchange.needed))
    intruder.stream.write(exchange.to_send())


def says_nothing(intruder: Intruder) -> None:
    """Sends its secrets at once."""


def intrude(node: Node, key: OwnerKey | None, begin: Callable[[Intruder], None]) -> str | None:
    """The check that the node stopped it by; None when the node has taken something."""
    intruder = Intruder(node, key)
    with intruder.sock:
        try:
            begin(intruder)
            intruder.stream.write(FRAME)
            if isinstance(intruder.answer(), Taken):
                return None
        except AvowError:
            # The node has said no, and says below why.
            pass
    return node.refusal()[0]


@pytest.mark.parametrize("key", [STRANGER, None], ids=["another key", "no key"])
@pytest.mark.parametrize(
    ("begin", "defences"),
    [
        (asks, [AUTHORISED, THE_OWNER]),
        (shows_something, [MUST_ASK, THE_OWNER]),
        (says_nothing, [NOT_AT_ONCE, THE_OWNER]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_stranger_cannot_provision(
    key: OwnerKey | None, begin: Callable[[Intruder], None], defences: Sequence[Defence]
) -> None:
    with provisioning_node(OWNER) as node:
        for number, defence in enumerate(defences):
            with removed(defences[:number]):
                assert intrude(node, key, begin) == defence.check
            assert node.offers.empty()
        with removed(defences):
            assert intrude(node, key, begin) is None
        assert node.offers.get(timeout=PATIENCE_S).keys == SECRETS.keys


def test_strangers_cause_no_quote() -> None:
    with provisioning_node(OWNER) as node:
        for key in (STRANGER, None):
            for begin in (asks, shows_something, says_nothing):
                assert intrude(node, key, begin) is not None
        assert node.attestation.counters.requests == 0
        assert provision(node.port) is None
        assert node.attestation.counters.requests == 1


def version_20(certificate: bytes) -> bytes:
    """OpenSSL does not mind; whoever asks for its key later does."""
    return certificate.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x14")


def february_30(certificate: bytes) -> bytes:
    """The same with a date that is none (UTCTime, 13 characters)."""
    at = certificate.index(b"\x17\x0d") + 2
    return certificate[:at] + b"260230000000Z" + certificate[at + 13 :]


def odd_context(
    method: int, folder: Path, change: Callable[[bytes], bytes]
) -> Callable[[datetime], SSL.Context]:
    """Makes contexts that show a certificate that OpenSSL takes, and that is none."""
    made = self_signed(ec.generate_private_key(ec.SECP256R1()), "odd", datetime.now(UTC))
    whole = made.certificate.public_bytes(Encoding.DER)
    body = base64.encodebytes(change(whole)).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"
    (folder / "odd.pem").write_text(pem)
    assert change(whole) != whole
    (folder / "odd.key").write_bytes(OwnerKey(made.key).pem())

    def context(_: datetime) -> SSL.Context:
        context = SSL.Context(method)
        context.set_verify(SSL.VERIFY_NONE)
        context.use_certificate_file(str(folder / "odd.pem"))
        context.use_privatekey_file(str(folder / "odd.key"))
        return context

    return context


@pytest.mark.parametrize("change", [version_20, february_30])
def test_a_certificate_that_nobody_can_read_does_not_end_the_listener(
    change: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may show any here, as only its key counts: one connection made a node deaf."""
    context = odd_context(SSL.TLS_CLIENT_METHOD, tmp_path, change)
    with provisioning_node(OWNER) as node:
        with monkeypatch.context() as patched:
            patched.setattr(OwnerKey, "context", lambda _, now: context(now))
            stranger = Intruder(node, STRANGER)
        with stranger.sock, pytest.raises(AvowError):
            stranger.read(1)
        assert "a certificate of X.509 version 3" in node.refusal()[1]
        assert provision(node.port) is None


@pytest.mark.parametrize("change", [version_20, february_30])
def test_an_owner_that_is_shown_such_a_certificate_reads_a_sentence(
    change: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = odd_context(SSL.TLS_SERVER_METHOD, tmp_path, change)
    monkeypatch.setattr(f"{__name__}.node_context", context)
    with listening() as (port, got, conduct):
        conduct(takes)
        assert "a certificate of X.509 version 3" in str(provision(port))
        assert got.get(timeout=PATIENCE_S) == b""


def test_idle_strangers_do_not_keep_the_owner_out() -> None:
    """As many as there are places, and some more in the kernel's queue."""
    with provisioning_node(OWNER) as node, contextlib.ExitStack() as crowd:
        for _ in range(HANDSHAKES_MAX + 20):
            address = ("127.0.0.1", node.port)
            crowd.enter_context(socket.create_connection(address, PATIENCE_S))
        assert provision(node.port) is None
        assert node.offers.get(timeout=PATIENCE_S).keys == SECRETS.keys


# An owner that is slow, goes away, or says what nobody understands.


def begun(node: Node) -> Intruder:
    """The owner's connection, with its exchange done."""
    connection = Intruder(node, OWNER)
    asks(connection)
    return connection


def test_an_owner_that_goes_away_before_the_answer_has_provisioned_and_can_do_it_again() -> None:
    with provisioning_node(OWNER) as node:
        gone = begun(node)
        gone.stream.write(FRAME)
        gone.sock.close()
        assert node.offers.get(timeout=PATIENCE_S).keys == SECRETS.keys
        assert node.taken.get(timeout=PATIENCE_S) == _taken()
        assert provision(node.port) is None
        # What was taken stays taken, whether its owner knows it or not.
        other = Secrets({"store": bytes(32)}, {})
        with pytest.raises(AvowError, match="PR3"):
            hand_over("127.0.0.1", node.port, OWNER, judge(), other, datetime.now(UTC))


def test_an_owner_that_stops_in_the_middle_keeps_the_next_one_waiting_and_no_longer() -> None:
    """Both have the key: the second is the same owner, whose first connection hangs."""
    with provisioning_node(OWNER, message_timeout_s=0.3) as node:
        hanging = [begun(node) for _ in range(2)]
        with hanging[0].sock, hanging[1].sock:
            hanging[0].stream.write(FRAME[:-1])
            hanging[1].stream.write(FRAME[:3])
            assert provision(node.port) is None
        assert [node.refusal()[0] for _ in hanging] == ["PR4", "PR4"]
        assert node.offers.get(timeout=PATIENCE_S).keys == SECRETS.keys
        assert node.offers.empty()


def test_a_message_that_is_none_is_refused_and_nothing_of_it_is_taken() -> None:
    with provisioning_node(OWNER) as node:
        for wrong in (
            FRAME[:-1] + b"\1",
            b"\xb1" + FRAME[1:],
            b"\xb0\xff\xff\xff\xff" + FRAME[5:],
            b"\xb0\0\0\0\0" + FRAME[5:],
        ):
            connection = begun(node)
            with connection.sock:
                connection.stream.write(wrong)
                answer = connection.answer()
            assert isinstance(answer, NotTaken)
            assert (answer.check, node.refusal()[0]) == ("PR1", "PR1")
        assert node.offers.empty()
        assert provision(node.port) is None


# A node that is not the one that the owner means.


def stopped_by_each(
    attack: Callable[[], AvowError | None], defences: Sequence[Defence], *, in_the_end: bool
) -> None:
    for number, defence in enumerate(defences):
        with removed(defences[:number]):
            assert check_of(attack()) == defence.check, f"after {defences[:number]}"
    with removed(defences):
        assert (attack() is None) is in_the_end


@pytest.mark.parametrize(
    "workload",
    [
        dataclasses.replace(NODE, module=b"\xee" * 32),
        dataclasses.replace(NODE, runtime=b"\xee" * 32),
        dataclasses.replace(NODE, configuration=b"\xee" * 32),
    ],
    ids=["module", "runtime", "configuration"],
)
def test_another_program_gets_nothing(workload: Workload) -> None:
    """By the policy, by the exchange at its end, and by the owner's side before it sends."""
    with provisioning_node(OWNER, workload=workload) as node:

        def attack() -> AvowError | None:
            error = provision(node.port)
            assert node.offers.empty() is (error is not None)
            return error

        stopped_by_each(attack, [POLICY_SAYS_NO, AT_THE_END, BEFORE_SECRETS], in_the_end=True)


@contextmanager
def listening() -> Iterator[tuple[int, queue.SimpleQueue[bytes], Callable[[Listen], None]]]:
    """A machine of somebody else's: its port, what its conduct has got hold of, and how to set
    that."""
    conducts: list[Listen] = []
    got: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def run() -> None:
        while True:
            sock, _ = listener.accept()
            if not conducts:
                sock.close()
                return
            with sock:
                sock.setblocking(False)
                tls = SSL.Connection(node_context(datetime.now(UTC)), sock)
                tls.set_accept_state()
                stream = ProvisioningStream(sock.fileno(), tls, time.monotonic() + PATIENCE_S)
                try:
                    stream.handshake()
                    conducts[0](stream)
                    got.put(stream.read_frame((Kind.SECRETS,)))
                    stream.write(encode_secrets(_taken()))
                except AvowError:
                    got.put(b"")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], got, conducts.append
    finally:
        conducts.clear()
        socket.create_connection(listener.getsockname(), PATIENCE_S).close()
        thread.join(PATIENCE_S)
        listener.close()


Listen = Callable[[ProvisioningStream], None]


def _taken() -> Taken:
    return Taken(tuple(sorted(SECRETS.keys)), tuple(sorted(SECRETS.files)))


def strips(stream: ProvisioningStream) -> None:
    """Says that all is well and shows nothing."""
    stream._read(frame_bytes(FrameType.OPEN))
    stream.write(encode(AnswerFrame(b"", b"")))
    stream._read(frame_bytes(FrameType.ACCEPTED))


def takes(stream: ProvisioningStream) -> None:
    """Waits for secrets without a word."""


def test_a_machine_without_evidence_gets_nothing() -> None:
    with listening() as (port, got, conduct):
        conduct(strips)
        assert check_of(provision(port)) == "C11"
        assert got.get(timeout=PATIENCE_S) == b""
        present = Defence("C11", "avow.channel.exchange", "PRESENT", inside="_judge")
        with removed([present]):
            assert provision(port) is not None
        assert got.get(timeout=PATIENCE_S) == b""


def test_a_machine_that_only_waits_gets_nothing() -> None:
    """Until the owner gives up: what comes first from it is no secret."""
    with listening() as (port, got, conduct):
        conduct(takes)
        assert provision(port) is not None
        assert got.get(timeout=PATIENCE_S) == b""


def test_a_machine_in_the_middle_gets_nothing() -> None:
    """It passes the owner's frames on to the genuine node, over a connection of its own."""
    with provisioning_node(OWNER) as node, listening() as (port, got, conduct):

        def relays(stream: ProvisioningStream) -> None:
            # With a stranger's key: the owner's is not on the machine.
            beyond = Intruder(node, STRANGER)
            with beyond.sock:
                beyond.stream.write(stream._read(frame_bytes(FrameType.OPEN)))
                header = beyond.read(4)
                frame = header + beyond.read(int.from_bytes(header[1:], "big"))
                stream.write(frame)
                stream._read(frame_bytes(FrameType.ACCEPTED))

        conduct(relays)
        # The genuine node shows a stranger nothing; what a stranger could show does not serve.
        assert check_of(provision(port)) == "C21"
        assert node.refusal()[0] == "C9"
        assert got.get(timeout=PATIENCE_S) == b""
        defences = [FINISHED, SIGNATURE, BOUND]
        for number, defence in enumerate(defences):
            with removed([AUTHORISED, *defences[:number]]):
                assert check_of(provision(port)) == defence.check
            assert got.get(timeout=PATIENCE_S) == b""
        with removed([AUTHORISED, *defences]):
            assert provision(port) is None
        assert got.get(timeout=PATIENCE_S) == FRAME
        assert node.offers.empty()


# What was recorded on the way.


@contextmanager
def recorder(port: int) -> Iterator[tuple[int, bytearray, bytearray]]:
    """Passes one connection on, and keeps what both sides said."""
    from_owner, from_node = bytearray(), bytearray()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        # Whoever has got what it wanted may be gone before the last bytes.
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                kept.extend(piece)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def run() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", port), PATIENCE_S) as far:
            back = threading.Thread(target=pump, args=(far, near, from_node), daemon=True)
            back.start()
            pump(near, far, from_owner)
            back.join(PATIENCE_S)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], from_owner, from_node
    finally:
        thread.join(PATIENCE_S)
        listener.close()


def test_a_recorded_session_shows_nothing_and_does_nothing_again() -> None:
    with provisioning_node(OWNER) as node:
        with recorder(node.port) as (port, from_owner, from_node):
            assert provision(port) is None
        node.offers.get(timeout=PATIENCE_S)
        recorded = bytes(from_owner)
        assert len(recorded) > len(FRAME)
        for secret in (*SECRETS.keys.values(), *SECRETS.files.values()):
            assert secret not in recorded
            assert secret not in from_node
        with socket.create_connection(("127.0.0.1", node.port), PATIENCE_S) as again:
            again.sendall(recorded)
            again.shutdown(socket.SHUT_WR)
            while again.recv(65536):
                pass
        assert node.refusal()[0] == ""
        assert node.offers.empty()


def test_an_older_rotation_cannot_be_played_again_in_another_session() -> None:
    """Even the plaintext of an old message is of no use to who is not the owner."""
    with provisioning_node(OWNER) as node:
        assert provision(node.port) is None
        assert intrude(node, STRANGER, asks) == "C9"
        node.offers.get(timeout=PATIENCE_S)
        assert node.offers.empty()
