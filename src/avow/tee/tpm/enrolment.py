"""How an attestation key gets a certificate: an owner's authority makes sure that it is in a TPM.

1. The machine sends a `Request`: the certificates of its endorsement key (EK), and both keys.
2. The authority checks the EK's certificates up to a pinned maker and the attributes of both keys,
   and sends a `Credential` that hides a secret (`avow.tee.tpm.credential`).
3. The TPM opens it (TPM2_ActivateCredential) only if it has that EK and, in the same TPM, a key
   with that name; a name holds the attributes. The machine sends the secret back.
4. The authority issues the certificate.

Messages are deterministic CBOR. See docs/platforms/tpm.md.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from avow.errors import Check, MalformedError, UntrustedError
from avow.evidence import cbor
from avow.evidence.claims import DIGEST_BYTES
from avow.tee.tpm import structures
from avow.tee.tpm.chain import AK_USAGE, EK_USAGE, Anchors, check_chain
from avow.tee.tpm.credential import Credential, make_credential
from avow.tee.tpm.quote import spki_digest
from avow.tee.tpm.report import bytes_of
from avow.tee.tpm.structures import Public, PublicKey, parse_public
from avow.tee.tpm.verifier import EK_DIGEST, EK_DIGEST_HEADER, check_attributes

_SPEC: Final = "docs/platforms/tpm.md"
EK_CERTIFICATE: Final = Check(
    "TPM9", "the endorsement key's certificate leads to a pinned root of its maker", _SPEC
)
EK_PUBLIC: Final = Check(
    "TPM10", "the endorsement key is the certified one, and a proper endorsement key", _SPEC
)
ACTIVATED: Final = Check(
    "TPM11",
    "the TPM with the endorsement key has the attestation key",
    "TPM 2.0 Library, Part 1, section 24",
)
CHECKS: Final = (EK_CERTIFICATE, EK_PUBLIC, ACTIVATED)

SECRET_BYTES: Final = 32
# Intel's firmware TPMs since the 11th generation have six below the root; no chain needs more.
EK_CERTIFICATES_MAX: Final = 8
# How far a verifier's clock may be behind when a certificate is new.
_CLOCKS_DIFFER: Final = timedelta(minutes=5)
_EK_MUST: Final = (
    structures.FIXED_TPM
    | structures.FIXED_PARENT
    | structures.SENSITIVE_DATA_ORIGIN
    | structures.RESTRICTED
    | structures.DECRYPT
)
_REQUEST_KEYS: Final = frozenset({"ak", "ek", "ek certificates"})
_CREDENTIAL_KEYS: Final = frozenset({"id object", "encrypted secret"})
_KEPT_KEYS: Final = frozenset({"ak", "ek digest", "secret"})


@dataclass(frozen=True, slots=True)
class Request:
    """`ak` and `ek` are TPMT_PUBLIC; the certificates (DER) are the EK's and of those between it
    and its maker's root."""

    ak: bytes
    ek: bytes
    ek_certificates: tuple[bytes, ...]

    def encoded(self) -> bytes:
        """The request as bytes."""
        return cbor.encode(
            {"ak": self.ak, "ek": self.ek, "ek certificates": list(self.ek_certificates)}
        )


def decode_request(content: bytes) -> Request:
    """The request that `content` is. Raises `MalformedError`."""
    fields = cbor.decode(content, "enrolment request")
    if not isinstance(fields, dict) or fields.keys() != _REQUEST_KEYS:
        raise _malformed("a request of ak, ek and ek certificates")
    certificates = fields["ek certificates"]
    if not isinstance(certificates, list) or not 0 < len(certificates) <= EK_CERTIFICATES_MAX:
        raise _malformed(f"1 to {EK_CERTIFICATES_MAX} certificates of the endorsement key")
    return Request(
        bytes_of(fields["ak"], "ak"),
        bytes_of(fields["ek"], "ek"),
        tuple(bytes_of(each, "certificate") for each in certificates),
    )


def encode_credential(credential: Credential) -> bytes:
    """The authority's challenge as bytes."""
    return cbor.encode(
        {"id object": credential.id_object, "encrypted secret": credential.encrypted_secret}
    )


def decode_credential(content: bytes) -> Credential:
    """The challenge that `content` is. Raises `MalformedError`."""
    fields = cbor.decode(content, "enrolment challenge")
    if not isinstance(fields, dict) or fields.keys() != _CREDENTIAL_KEYS:
        raise _malformed("a challenge of id object and encrypted secret")
    return Credential(
        bytes_of(fields["id object"], "id object"),
        bytes_of(fields["encrypted secret"], "encrypted secret"),
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """What the authority keeps until the answer comes: the attestation key, the SHA-256 of the EK's
    certificate, and the secret (32 bytes each)."""

    ak: Public
    ek_digest: bytes
    secret: bytes

    def encoded(self) -> bytes:
        """What the authority keeps, as bytes. Whoever reads it can have any key certified."""
        return cbor.encode(
            {"ak": self.ak.encoded, "ek digest": self.ek_digest, "secret": self.secret}
        )


def decode_kept(content: bytes) -> Kept:
    """What `Kept.encoded` made. Raises `MalformedError`."""
    fields = cbor.decode(content, "kept challenge")
    if not isinstance(fields, dict) or fields.keys() != _KEPT_KEYS:
        raise _malformed("a kept challenge of ak, ek digest and secret")
    digest = bytes_of(fields["ek digest"], "ek digest")
    secret = bytes_of(fields["secret"], "secret")
    if len(digest) != DIGEST_BYTES or len(secret) != SECRET_BYTES:
        raise _malformed("a digest and a secret of 32 bytes")
    return Kept(parse_public(bytes_of(fields["ak"], "ak")), digest, secret)


class Challenger:
    """Finds out whether a key is in a TPM. `makers` are the roots of TPM makers that the owner
    trusts, and their revocation lists."""

    def __init__(self, makers: Anchors) -> None:
        self._makers = makers

    def challenge(
        self, request: Request, now: datetime, secret: bytes, seed: bytes
    ) -> tuple[Kept, Credential]:
        """What to keep and what to send. `secret` and `seed` are 32 fresh random bytes each.

        Raises `MalformedError` and `UntrustedError`, at TPM2, TPM9 and TPM10.
        """
        if len(secret) != SECRET_BYTES or len(seed) != SECRET_BYTES:
            raise _malformed(f"a secret and a seed of {SECRET_BYTES} bytes")
        ak, ek = parse_public(request.ak), parse_public(request.ek)
        check_attributes(ak)
        chain = check_chain(request.ek_certificates, self._makers, EK_USAGE, now, EK_CERTIFICATE)
        certified = chain.leaf.public_key()
        same = isinstance(certified, PublicKey) and spki_digest(certified) == spki_digest(ek.key)
        sha256_storage_key = (ek.name_algorithm, ek.symmetric_bits) == (structures.ALG_SHA256, 128)
        is_one = ek.attributes & _EK_MUST == _EK_MUST and not ek.attributes & structures.SIGN
        if not (same and is_one and sha256_storage_key):
            raise UntrustedError.at(
                EK_PUBLIC,
                expected="the certified key, as a restricted storage key with SHA-256 and AES-128",
                actual="another key" if not same else f"attributes {ek.attributes:#010x}",
                advice="send an endorsement key made from TCG's template L-1 or L-2",
            )
        digest = sha256(request.ek_certificates[0]).digest()
        return Kept(ak, digest, secret), make_credential(ek, ak.name, secret, seed)


class Issuer:
    """Issues certificates with the authority's own certificate and key."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    ) -> None:
        self._certificate = certificate
        self._key = key

    def issue(
        self, kept: Kept, answer: bytes, now: datetime, valid_for: timedelta, serial: int
    ) -> x509.Certificate:
        """The attestation key's certificate. `serial` is random, positive and of at most 159 bits.

        Raises `UntrustedError` at TPM11 when the TPM did not open the challenge.
        """
        if not hmac.compare_digest(answer, kept.secret):
            raise UntrustedError.at(
                ACTIVATED,
                expected="the secret that only the TPM can open",
                actual="another",
                advice="do not trust this machine: its attestation key is not in that TPM",
            )
        name = f"avow attestation key {spki_digest(kept.ak.key).hex()[:16]}"
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(kept.ak.key)
            .serial_number(serial)
            .not_valid_before(now - _CLOCKS_DIFFER)
            .not_valid_after(now + valid_for)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNS_ONLY, critical=True)
            .add_extension(x509.ExtendedKeyUsage([AK_USAGE]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(EK_DIGEST, EK_DIGEST_HEADER + kept.ek_digest),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )


_SIGNS_ONLY: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _malformed(expected: str) -> MalformedError:
    return MalformedError(f"expected {expected}, got something else; start the enrolment again")
