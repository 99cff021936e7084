"""RA-TLS: evidence inside of the server's certificate, for clients that can do no exchange.

The extension is id-pe-cmw (1.3.6.1.5.5.7.1.35, non-critical) of RFC 9999: a DER
OCTET STRING with the evidence as a CMW in CBOR, the same collection as everywhere
(`avow.evidence.envelope`). Where a request would have given nonce and binder, both follow from the
certificate's key, so that a verifier can compute them:

    nonce  = SHA-256("avow ra-tls v1" || SubjectPublicKeyInfo)
    binder = SHA-512("avow ra-tls v1" || SubjectPublicKeyInfo)

So it proves that the key in the certificate belonged to this workload when the evidence was made;
not that it does now, nor anything about this connection. Who gets hold of the key can use the
certificate until it ends. docs/how-to/ra-tls.md says it for users.
"""

from __future__ import annotations

import queue
import secrets
from datetime import datetime, timedelta
from hashlib import sha256, sha512
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.channel import checks
from avow.channel.attestation import ServerAttestation
from avow.channel.exchange import QuoteWanted
from avow.channel.judge import Judge, Judged
from avow.channel.tls import Credential
from avow.errors import AvowError, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Claims, Role
from avow.evidence.envelope import Evidence
from avow.evidence.origin import Expectation
from avow.evidence.validity import advice_at

CMW_EXTENSION: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.35")
QUOTE_PATIENCE_S: Final = 20.0

_PREFIX: Final = b"avow ra-tls v1"
# What a clock may be behind.
_EARLIER: Final = timedelta(minutes=5)
_OCTET_STRING: Final = 0x04


def make_credential(
    attestation: ServerAttestation, now: datetime, lifetime: timedelta
) -> Credential:
    """A new key (P-256) and its self-signed certificate with evidence; waits for a quote.

    Raises `UnavailableError` when there is no evidence.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    spki = _spki(key.public_key())
    claims = Claims(
        nonce=_nonce(spki),
        role=Role.CERTIFICATE,
        workload=attestation.identity.workload,
        key=sha256(spki).digest(),
        issued_at_s=int(now.timestamp()),
    )
    evidence = _quote(attestation, QuoteWanted(claims, _binder(spki)))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "avow attested server")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(secrets.token_bytes(8), "big") >> 1 | 1 << 62)
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + lifetime)
        .add_extension(
            x509.UnrecognizedExtension(CMW_EXTENSION, _octet_string(evidence)), critical=False
        )
        .sign(key, SHA256())
    )
    return Credential(certificate, key)


def judge_certificate(certificate: x509.Certificate, judge: Judge, now: datetime) -> Judged:
    """What the certificate of a server proves about its key.

    The handshake has to have proven that the server holds the key. Raises `MalformedError`,
    `UntrustedError`, `UnavailableError` or `DeniedError` as `Judge.judge` does, and
    `UntrustedError` for a certificate that has no evidence or is not valid at `now`.
    """
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise UntrustedError.at(
            checks.PRESENT,
            expected="a certificate with evidence that is valid now",
            actual=f"one from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
            advice=advice_at(
                now,
                certificate.not_valid_before_utc,
                "check both clocks; a server renews its certificate on its own",
            ),
        )
    evidence = evidence_in(certificate)
    spki = _spki(certificate.public_key())
    expectation = Expectation(
        nonce=_nonce(spki),
        role=Role.CERTIFICATE,
        key=sha256(spki).digest(),
        binder=_binder(spki),
    )
    return judge.judge(evidence, expectation, now)


def evidence_in(certificate: x509.Certificate) -> bytes:
    """The evidence as the certificate has it, not verified. Raises `UntrustedError` without any."""
    try:
        extension = certificate.extensions.get_extension_for_oid(CMW_EXTENSION).value
    except (
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        ValueError,
    ) as error:
        raise UntrustedError.at(
            checks.PRESENT,
            expected="a certificate with the extension id-pe-cmw",
            actual="one without",
            advice="set ra_tls = true for the listener, or use the attestation exchange",
        ) from error
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise MalformedError("expected the bytes of the extension id-pe-cmw, got others")
    return _content_of(extension.value)


def _quote(attestation: ServerAttestation, wanted: QuoteWanted) -> bytes:
    answers: queue.SimpleQueue[Evidence | AvowError] = queue.SimpleQueue()
    attestation.quote(wanted, answers.put)
    try:
        answer = answers.get(timeout=QUOTE_PATIENCE_S)
    except queue.Empty as error:
        raise UnavailableError(
            f"expected evidence for the certificate within {QUOTE_PATIENCE_S:g} s, got none; check "
            f"the platform's device"
        ) from error
    if isinstance(answer, AvowError):
        raise answer
    return answer.encoded()


def _nonce(spki: bytes) -> bytes:
    return sha256(_PREFIX + spki).digest()


def _binder(spki: bytes) -> bytes:
    return sha512(_PREFIX + spki).digest()


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UntrustedError.at(
            checks.KEY,
            expected="an EC key in the certificate",
            actual="another kind",
            advice="use a certificate that avow has made",
        )
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _octet_string(content: bytes) -> bytes:
    """DER (X.690, sections 8.7 and 10.1)."""
    if len(content) < 0x80:
        return bytes([_OCTET_STRING, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([_OCTET_STRING, 0x80 | len(length)]) + length + content


def _content_of(octet_string: bytes) -> bytes:
    """The inverse of `_octet_string`, for exactly what it writes."""
    if len(octet_string) >= 2 and octet_string[0] == _OCTET_STRING:
        size = octet_string[1] & 0x7F if octet_string[1] & 0x80 else 0
        content = octet_string[2 + size :]
        if _octet_string(content) == octet_string:
            return content
    raise MalformedError.at(
        checks.PRESENT,
        expected="an OCTET STRING in DER in the extension id-pe-cmw",
        actual="other bytes",
        advice="use a certificate that avow has made",
    )
