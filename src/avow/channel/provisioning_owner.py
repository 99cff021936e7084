"""Provisioning, the owner's side: nothing is handed over before the node's evidence was accepted.

The node's TLS certificate means nothing, as it has none yet; its evidence is bound to this very
connection, and to the owner's key on it. docs/spec/provisioning.md.
"""

from __future__ import annotations

import secrets as entropy
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from OpenSSL import SSL

from avow.channel import provisioning_checks as checks
from avow.channel.address import host_and_port
from avow.channel.checks import PRESENT
from avow.channel.conversation import run_client_exchange
from avow.channel.exchange import CONTEXT_BYTES, ClientExchange, ClientSettings, Outcome
from avow.channel.judge import Judge
from avow.channel.messages import Category
from avow.channel.provisioning import self_signed
from avow.channel.provisioning_messages import (
    FrameType,
    NotTaken,
    Secrets,
    Taken,
    decode,
    encode,
)
from avow.channel.provisioning_stream import ProvisioningStream
from avow.channel.session import facts_of
from avow.errors import (
    AvowError,
    DeniedError,
    MalformedError,
    UnavailableError,
    UntrustedError,
)
from avow.evidence.appraisal import AttestationResult

CONNECT_TIMEOUT_S: Final = 10.0
# From the end of the exchange to the node's word: it may load certificates and users first.
ANSWER_TIMEOUT_S: Final = 90.0

_ERRORS: Final[dict[Category, type[AvowError]]] = {
    Category.MALFORMED: MalformedError,
    Category.UNTRUSTED: DeniedError,
    Category.DENIED: DeniedError,
    Category.UNAVAILABLE: UnavailableError,
}


@dataclass(frozen=True, slots=True)
class OwnerKey:
    """The key (P-256) that a node's configuration names. Make one with `new_owner_key`."""

    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of its SubjectPublicKeyInfo."""
        spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return sha256(spki).digest()

    def pem(self) -> bytes:
        """PKCS #8, without a passphrase: for a file that nobody else may read."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def context(self, now: datetime) -> SSL.Context:
        """TLS 1.3 that shows this key, and leaves judging the node to its evidence."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
        context.set_verify(SSL.VERIFY_NONE)
        credential = self_signed(self._key, "avow owner", now)
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
        return context


def new_owner_key() -> OwnerKey:
    """From the system's entropy."""
    return OwnerKey(ec.generate_private_key(ec.SECP256R1()))


def parse_owner_key(content: bytes, name: str) -> OwnerKey:
    """A P-256 key in PEM; `name` names it in the error. Raises `MalformedError`."""
    try:
        key = load_pem_private_key(content, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise MalformedError(
            f"expected an unencrypted private key in PEM, got something else in {name}; make one "
            f"with `avow provision --new-owner-key FILE`"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise MalformedError(
            f"expected a P-256 key as the owner's, got another kind in {name}; make one with "
            f"`avow provision --new-owner-key FILE`"
        )
    return OwnerKey(key)


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What came of it: what the policy said of the node, and the names of what it has taken."""

    node: AttestationResult
    taken: Taken


def hand_over(
    host: str,
    port: int,
    owner: OwnerKey,
    judge: Judge,
    secrets: Secrets,
    now: datetime,
    *,
    attested: Callable[[AttestationResult], None] = lambda _: None,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> HandedOver:
    """Attests the node at `host`, and hands over `secrets` only to what `judge` accepts.

    `judge` has a policy. `attested` is told of the node before anything is handed over. Raises
    `UnavailableError` without a finding when nothing is there, and errors with one for a failed
    check, of the exchange or PR1 to PR6.
    """
    message = encode(secrets)
    if not judge.has_policy:
        raise MalformedError("expected a judge with a policy for provisioning, got none; report it")
    try:
        sock = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnavailableError(
            f"expected a node that listens for its owner at {host_and_port(host, port)}, got "
            f"{reason!r}; check the address, and that it waits to be provisioned"
        ) from error
    with sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = SSL.Connection(owner.context(now), sock)
        tls.set_connect_state()
        ProvisioningStream(sock.fileno(), tls, time.monotonic() + CONNECT_TIMEOUT_S).handshake()
        node = _accepted(_attest(tls, judge, now))
        attested(node)
        stream = ProvisioningStream(sock.fileno(), tls, time.monotonic() + answer_timeout_s)
        stream.write(message)
        answers = (FrameType.TAKEN, FrameType.REFUSED)
        answer = decode(stream.read_frame(answers), answers)
        stream.end()
    return HandedOver(node, _taken(answer, secrets))


def _attest(tls: SSL.Connection, judge: Judge, now: datetime) -> Outcome:
    facts = facts_of(tls, "client")
    exchange = ClientExchange(
        facts, ClientSettings(judge), context=entropy.token_bytes(CONTEXT_BYTES), now=now
    )
    return run_client_exchange(tls, exchange)


def _accepted(outcome: Outcome) -> AttestationResult:
    """Asked once more, right before secrets leave."""
    if outcome.peer is None or not outcome.peer.accepted:
        raise UntrustedError.at(
            PRESENT,
            expected="a node that the policy has accepted",
            actual="one that nobody has judged",
            advice="report this",
        )
    return outcome.peer


def _taken(answer: object, secrets: Secrets) -> Taken:
    if isinstance(answer, NotTaken):
        # `check` says what failed there; here it is one thing: the node has not taken them.
        raise _ERRORS[answer.category].at(
            checks.USED,
            expected="the node to take the secrets",
            actual=f"its refusal ({answer.sentence})",
            advice="nothing was taken; correct that, and provision again",
        )
    wanted = Taken(tuple(sorted(secrets.keys)), tuple(sorted(secrets.files)))
    if not isinstance(answer, Taken) or answer != wanted:
        raise UntrustedError.at(
            checks.COMPLETE,
            expected="the names of all that was handed over",
            actual="others",
            advice="use the same release of avow on both sides",
        )
    return answer
