"""The key of this process: made at its start, named in its evidence, never outside its memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.evidence.claims import Workload

# RFC 5280, section 4.1.2.5: no well-defined end. Nobody looks at it: only the key matters.
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_SIGNATURE = ec.ECDSA(SHA256(), deterministic_signing=True)


@dataclass(frozen=True, slots=True, eq=False)
class AttestedIdentity:
    """What one process says of itself.

    `certificate` is a self-signed X.509 certificate (DER) around the key, because RFC 9261 carries
    certificates; its names and dates mean nothing. `spki` is the key's SubjectPublicKeyInfo (DER)
    and `key_digest` its SHA-256, as in the claims. Make one with `make_identity`.
    """

    platform: str
    workload: Workload
    certificate: bytes = field(repr=False)
    spki: bytes = field(repr=False)
    key_digest: bytes
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    def sign(self, content: bytes) -> bytes:
        """ecdsa_secp256r1_sha256 (RFC 8446, section 4.2.3), with the nonce of RFC 6979."""
        return self._key.sign(content, _SIGNATURE)

    def with_workload(self, workload: Workload) -> AttestedIdentity:
        """The same key for another configuration, after a reload."""
        return AttestedIdentity(
            self.platform, workload, self.certificate, self.spki, self.key_digest, self._key
        )


def make_identity(
    platform: str,
    workload: Workload,
    now: datetime,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> AttestedIdentity:
    """A new key (P-256) and its certificate. `platform` is the attester's; `key` is for tests."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = sha256(spki).digest()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "avow instance")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        # 63 bits with the highest set: always the same length.
        .serial_number(int.from_bytes(digest[:8], "big") >> 1 | 1 << 62)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(_NO_END)
        .sign(key, SHA256(), ecdsa_deterministic=True)
    )
    return AttestedIdentity(
        platform, workload, certificate.public_bytes(Encoding.DER), spki, digest, key
    )
