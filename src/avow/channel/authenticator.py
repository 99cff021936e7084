"""Exported authenticators (RFC 9261) that carry evidence (draft-fossati-seat-expat-02).

A request is a CertificateRequest (from the server; RFC 8446, section 4.3.2) or a
ClientCertificateRequest (from the client; RFC 9261, section 4) with exactly three extensions:
`signature_algorithms` with ecdsa_secp256r1_sha256 alone, an empty `cmw_attestation`, and
`avow_evidence_types`, the platforms whose evidence the requester can verify. An authenticator is
Certificate, CertificateVerify and Finished (RFC 9261, section 5.2), with one certificate, whose
entry has one extension: `cmw_attestation` with the evidence.

The certificate is self-signed and nothing in it is looked at but its key: who has that key is
what the evidence says. docs/spec/attested-channel.md, section "Authenticators".
"""

from __future__ import annotations

import functools
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import new
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.channel.checks import (
    ANSWERS,
    AUTHENTICATOR,
    CONTEXT,
    FINISHED,
    KEY,
    PRESENT,
    REQUEST,
    SIGNATURE,
)
from avow.channel.octets import Octets, vector
from avow.channel.session import CERTIFICATES_KEPT, TlsFacts
from avow.errors import Check, MalformedError, UntrustedError, counted
from avow.evidence.claims import NONCE_BYTES, Role

# RFC 8446, section 4, and RFC 9261, section 4.
CERTIFICATE: Final = 11
CERTIFICATE_REQUEST: Final = 13
CERTIFICATE_VERIFY: Final = 15
CLIENT_CERTIFICATE_REQUEST: Final = 17
FINISHED_TYPE: Final = 20

SIGNATURE_ALGORITHMS: Final = 13
# The draft has no code point yet: these are of the registry's private use (RFC 8446, section 11).
CMW_ATTESTATION: Final = 0xFFA0
EVIDENCE_TYPES: Final = 0xFFA1
ECDSA_SECP256R1_SHA256: Final = 0x0403

PLATFORMS_MAX: Final = 16
# The certificate that avow makes has about 330 bytes.
CERTIFICATE_BYTES_MAX: Final = 2048

# 16 names of at most 16 bytes, and what is around them, are far less.
EXTENSIONS_BYTES_MAX: Final = 512

_PLATFORM = re.compile(r"[a-z]{2,16}")
_REQUEST_TYPES: Final = {Role.SERVER: CERTIFICATE_REQUEST, Role.CLIENT: CLIENT_CERTIFICATE_REQUEST}
# RFC 9261, section 5.1; for the sender of the authenticator.
_HANDSHAKE_CONTEXTS: Final = {
    Role.SERVER: b"EXPORTER-server authenticator handshake context",
    Role.CLIENT: b"EXPORTER-client authenticator handshake context",
}
_FINISHED_KEYS: Final = {
    Role.SERVER: b"EXPORTER-server authenticator finished key",
    Role.CLIENT: b"EXPORTER-client authenticator finished key",
}
# RFC 9261, section 5.2.2.
_SIGNED_PREFIX: Final = b"\x20" * 64 + b"Exported Authenticator" + b"\0"
_P256 = ec.ECDSA(SHA256())
_AGAIN: Final = (
    "connect again; if this persists, somebody may be intercepting the connection to the peer"
)


@dataclass(frozen=True, slots=True)
class Request:
    """`context` are 32 bytes of the requester's entropy, the nonce of the evidence; `platforms`
    are 1 to 16 names of platforms, each once."""

    context: bytes
    platforms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A verified authenticator: the SubjectPublicKeyInfo (DER) of the key that made it, and the
    evidence, which is not verified yet."""

    spki: bytes
    evidence: bytes


def encode_request(requester: Role, request: Request) -> bytes:
    """The handshake message; `requester` is SERVER or CLIENT."""
    names = b"".join(vector(name.encode("ascii"), 1) for name in request.platforms)
    extensions = (
        _extension(SIGNATURE_ALGORITHMS, vector(ECDSA_SECP256R1_SHA256.to_bytes(2, "big"), 2))
        + _extension(CMW_ATTESTATION, b"")
        + _extension(EVIDENCE_TYPES, vector(names, 2))
    )
    return _handshake(_REQUEST_TYPES[requester], vector(request.context, 1) + vector(extensions, 2))


def decode_request(requester: Role, content: bytes) -> Request:
    """The request in the handshake message `content`.

    Raises `MalformedError` (check C6), and `UntrustedError` (C7) for a context that is not 32 bytes
    long or all of one value: a requester whose entropy has failed.
    """
    try:
        return _decode_request(requester, content)
    except MalformedError as error:
        if error.finding is not None:
            raise
        raise _malformed(REQUEST, "a well-formed request", str(error)) from error


def _decode_request(requester: Role, content: bytes) -> Request:
    message = Octets(content, "request")
    body = Octets(_body(message, _REQUEST_TYPES[requester], REQUEST), "request")
    message.end()
    context = body.vector(1, 0, 255)
    if len(context) != NONCE_BYTES or len(set(context)) == 1:
        raise UntrustedError.at(
            CONTEXT,
            expected=f"a context of {NONCE_BYTES} random bytes",
            actual=f"{counted(len(context), 'byte')}, {context.hex()[:16] or 'none'}…",
            advice="have the requester draw a new context for every connection",
        )
    extensions = body.vector(2, 2, EXTENSIONS_BYTES_MAX)
    body.end()
    return Request(context, _decode_extensions(extensions))


# Every request of one release has the same extensions; only the context differs.
@functools.lru_cache(maxsize=64)
def _decode_extensions(content: bytes) -> tuple[str, ...]:
    """The platforms that the extensions of a request name."""
    extensions = Octets(content, "request's extensions")
    algorithms = _expect_extension(extensions, SIGNATURE_ALGORITHMS, REQUEST)
    asked = _expect_extension(extensions, CMW_ATTESTATION, REQUEST)
    types = Octets(_expect_extension(extensions, EVIDENCE_TYPES, REQUEST), "evidence types")
    extensions.end()
    if algorithms != vector(ECDSA_SECP256R1_SHA256.to_bytes(2, "big"), 2):
        raise _malformed(REQUEST, "ecdsa_secp256r1_sha256 alone", f"{algorithms.hex()[:16]}")
    if asked:
        raise _malformed(REQUEST, "an empty cmw_attestation", f"{counted(len(asked), 'byte')}")
    names = Octets(types.vector(2, 3, PLATFORMS_MAX * 17), "evidence types")
    types.end()
    platforms: list[str] = []
    while names.left:
        name = names.vector(1, 2, 16).decode("latin-1")
        if not _PLATFORM.fullmatch(name) or name in platforms or len(platforms) == PLATFORMS_MAX:
            raise _malformed(REQUEST, "names of platforms, each once", repr(name))
        platforms.append(name)
    return tuple(platforms)


def make_authenticator(
    sender: Role,
    *,
    facts: TlsFacts,
    request: bytes,
    context: bytes,
    certificate: bytes,
    evidence: bytes,
    sign: Callable[[bytes], bytes],
) -> bytes:
    """The answer of `sender` to the handshake message `request`, whose context is `context`.

    `certificate` is X.509 (DER), `evidence` 1 to 61,440 bytes; `sign` is called once with what
    CertificateVerify signs. Raises `MalformedError` when the evidence is too large.
    """
    entry = vector(certificate, 3) + vector(_extension(CMW_ATTESTATION, vector(evidence, 2)), 2)
    message = _handshake(CERTIFICATE, vector(context, 1) + vector(entry, 3))
    transcript = _handshake_context(facts, sender) + request + message
    signature = sign(_SIGNED_PREFIX + _hash(facts, transcript))
    verify = _handshake(
        CERTIFICATE_VERIFY, ECDSA_SECP256R1_SHA256.to_bytes(2, "big") + vector(signature, 2)
    )
    mac = _finished(facts, sender, transcript + verify)
    return message + verify + _handshake(FINISHED_TYPE, mac)


def prepare_to_open(facts: TlsFacts, sender: Role) -> None:
    """Has the exporters' part of `open_authenticator` computed, which needs no authenticator."""
    _handshake_context(facts, sender)
    _finished_key(facts, sender)


def open_authenticator(
    sender: Role, content: bytes, *, facts: TlsFacts, request: bytes, context: bytes
) -> Opened:
    """Verifies the authenticator of the peer `sender` for our own `request` with `context`.

    Raises `MalformedError` (checks C12 and C14) and `UntrustedError` (C11, C13, C15, C16).
    """
    try:
        parts = _decode_authenticator(content)
    except MalformedError as error:
        if error.finding is not None:
            raise
        raise _malformed(AUTHENTICATOR, "a well-formed authenticator", str(error)) from error
    if not hmac.compare_digest(parts.context, context):
        raise UntrustedError.at(
            ANSWERS,
            expected=f"the context {context.hex()}",
            actual=f"{parts.context.hex() or 'none'}",
            advice=_AGAIN,
        )
    transcript = _handshake_context(facts, sender) + request + parts.certificate_message
    mac = _finished(facts, sender, transcript + parts.verify_message)
    if not hmac.compare_digest(parts.mac, mac):
        raise UntrustedError.at(
            FINISHED,
            expected="Finished over this connection and this request",
            actual="another",
            advice=_AGAIN,
        )
    key, spki = _key_of(parts.certificate)
    try:
        key.verify(parts.signature, _SIGNED_PREFIX + _hash(facts, transcript), _P256)
    except InvalidSignature as error:
        raise UntrustedError.at(
            SIGNATURE,
            expected="a signature by the key of the authenticator's certificate",
            actual="another",
            advice=_AGAIN,
        ) from error
    return Opened(spki, parts.evidence)


@dataclass(frozen=True, slots=True)
class _Parts:
    context: bytes
    certificate: bytes
    evidence: bytes
    signature: bytes
    mac: bytes
    certificate_message: bytes
    verify_message: bytes


def _decode_authenticator(content: bytes) -> _Parts:
    messages = Octets(content, "authenticator")
    body = Octets(_body(messages, CERTIFICATE, AUTHENTICATOR), "Certificate")
    verify_start = len(content) - messages.left
    verify = Octets(_body(messages, CERTIFICATE_VERIFY, AUTHENTICATOR), "CertificateVerify")
    verify_end = len(content) - messages.left
    mac = _body(messages, FINISHED_TYPE, AUTHENTICATOR)
    messages.end()
    context = body.vector(1, 0, 255)
    entries = Octets(body.vector(3, 0, len(content)), "certificate list")
    body.end()
    certificate = entries.vector(3, 1, CERTIFICATE_BYTES_MAX)
    extensions = Octets(entries.vector(2, 0, 2**16 - 1), "certificate's extensions")
    # One certificate: a chain would say nothing that is looked at.
    entries.end()
    if not extensions.left:
        raise UntrustedError.at(
            PRESENT,
            expected="evidence beside the certificate",
            actual="none",
            advice="use a peer that runs in a TEE; `avow tee` shows what a machine has",
        )
    evidence = Octets(_expect_extension(extensions, CMW_ATTESTATION, AUTHENTICATOR), "evidence")
    extensions.end()
    cmw = evidence.vector(2, 1, 2**16 - 1)
    evidence.end()
    if verify.number(2) != ECDSA_SECP256R1_SHA256:
        raise _malformed(AUTHENTICATOR, "ecdsa_secp256r1_sha256", "another signature algorithm")
    signature = verify.vector(2, 1, 128)
    verify.end()
    return _Parts(
        context,
        certificate,
        cmw,
        signature,
        mac,
        certificate_message=content[:verify_start],
        verify_message=content[verify_start:verify_end],
    )


@functools.lru_cache(maxsize=CERTIFICATES_KEPT)
def _key_of(certificate: bytes) -> tuple[ec.EllipticCurvePublicKey, bytes]:
    """The key and its SubjectPublicKeyInfo; a peer has one as long as it runs."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _malformed(KEY, "an X.509 certificate", "other bytes") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise _malformed(KEY, "a P-256 key", type(key).__name__)
    return key, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _handshake(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + vector(body, 3)


def _body(messages: Octets, kind: int, check: Check) -> bytes:
    actual = messages.number(1)
    if actual != kind:
        raise _malformed(check, f"a handshake message of type {kind}", f"type {actual}")
    return messages.vector(3, 0, messages.left)


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(content, 2)


def _expect_extension(extensions: Octets, kind: int, check: Check) -> bytes:
    """The next extension, which has to be `kind`: one request has one encoding."""
    actual = extensions.number(2)
    if actual != kind:
        raise _malformed(check, f"the extension 0x{kind:04x}", f"0x{actual:04x}")
    return extensions.vector(2, 0, 2**16 - 1)


def _handshake_context(facts: TlsFacts, sender: Role) -> bytes:
    return facts.export(_HANDSHAKE_CONTEXTS[sender], new(facts.hash_name).digest_size, b"")


def _hash(facts: TlsFacts, transcript: bytes) -> bytes:
    return new(facts.hash_name, transcript).digest()


def _finished(facts: TlsFacts, sender: Role, transcript: bytes) -> bytes:
    return hmac.digest(_finished_key(facts, sender), _hash(facts, transcript), facts.hash_name)


def _finished_key(facts: TlsFacts, sender: Role) -> bytes:
    return facts.export(_FINISHED_KEYS[sender], new(facts.hash_name).digest_size, b"")


def _malformed(check: Check, expected: str, actual: str) -> MalformedError:
    return MalformedError.at(check, expected=expected, actual=actual, advice=_AGAIN)
