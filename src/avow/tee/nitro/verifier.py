"""Who made a Nitro document: AWS's root, the chain in the document, the signature.

AWS, "Nitro Enclaves Attestation Process" (cited as AWS), section 3.2, and RFC 5280, section 6. AWS
publishes revocation lists for its intermediates; they live for days to weeks, the signing
certificate for three hours, and no list is consulted here.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from avow.errors import Check, MalformedError, UntrustedError, counted, well_formed
from avow.evidence.report_data import REPORT_DATA_BYTES
from avow.evidence.roles import Authenticated
from avow.evidence.validity import advice_at
from avow.evidence.vocabulary import ClaimValue
from avow.tee import der
from avow.tee.nitro.report import Document, parse_document

FORM: Final = Check("NIT1", "document and certificates are well-formed", "AWS, 3.2.2; RFC 5280")
ROOT: Final = Check("NIT2", "the root is AWS's", "AWS, 2.1; pinned by SHA-256")
CHAIN: Final = Check("NIT3", "each certificate was signed by the one before", "AWS, 3.2.3")
USE: Final = Check("NIT4", "each certificate may be used as it is", "AWS, 3.2.3.2 and 3.2.3.3")
VALIDITY: Final = Check("NIT5", "every certificate is valid now", "AWS, 3.2.3.1")
SIGNATURE: Final = Check("NIT6", "the last certificate's key signed the document", "AWS, 3.1")
DATA: Final = Check("NIT7", "user_data is report data", "docs/platforms/nitro.md")
CHECKS: Final = (FORM, ROOT, CHAIN, USE, VALIDITY, SIGNATURE, DATA)

# SHA-256 of AWS_NitroEnclaves_Root-G1 in DER.
AWS_ROOT_G1: Final = bytes.fromhex(
    "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"
)
AWS_ROOTS: Final = frozenset({AWS_ROOT_G1})

_AGAIN: Final = "ask again; if this persists, the document was altered or is not genuine"
_CHAINS_KEPT: Final = 64
_KNOWN_CRITICAL: Final = frozenset({"2.5.29.15", "2.5.29.19"})


@dataclass(frozen=True, slots=True)
class Link:
    """One certificate of a chain; `issuer` and `subject` are names in DER."""

    name: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    issuer: bytes
    subject: bytes


class NitroVerifier:
    """Proves Nitro documents. Safe to call from several threads.

    `roots` are the SHA-256 of trusted root certificates.
    """

    def __init__(self, roots: AbstractSet[bytes] = AWS_ROOTS) -> None:
        self._roots = frozenset(roots)
        # Keyed by the exact bytes: the signatures of a chain are verified once.
        self._chain = lru_cache(maxsize=_CHAINS_KEPT)(self._prove_chain)

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Verifier`."""
        return "nitro"

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`. `report` is the document."""
        document = self.prove(report, now)
        if document.user_data is None or len(document.user_data) != REPORT_DATA_BYTES:
            raise UntrustedError.at(
                DATA,
                expected=f"{REPORT_DATA_BYTES} bytes of report data in user_data",
                actual="none" if document.user_data is None else str(len(document.user_data)),
                advice="use a document that avow has requested inside the enclave",
            )
        return Authenticated("nitro", document.user_data, "report data", _claims(document))

    def prove(self, content: bytes, now: datetime) -> Document:
        """A document of proven origin, whatever was bound into it."""
        with well_formed(FORM, "document", advice=_AGAIN):
            document = parse_document(content)
            chain = self._chain(document.chain)
        for link in chain:
            certificate = link.certificate
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                raise UntrustedError.at(
                    VALIDITY,
                    expected=f"{link.name} valid at {now:%Y-%m-%d %H:%M}",
                    actual=f"valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                    f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M}",
                    advice=advice_at(
                        now,
                        certificate.not_valid_before_utc,
                        "ask for a new document",
                    ),
                )
        document.signed.verify(chain[-1].key, SIGNATURE)
        return document

    def _prove_chain(self, encoded: tuple[bytes, ...]) -> tuple[Link, ...]:
        fingerprint = hashlib.sha256(encoded[0]).digest()
        if fingerprint not in self._roots:
            raise UntrustedError.at(
                ROOT,
                expected="AWS's root certificate G1 first in cabundle",
                actual=f"SHA-256 {fingerprint.hex()}",
                advice="do not trust it: AWS did not sign it, and emulators make such documents",
            )
        try:
            links = tuple(map(_load, encoded, itertools.count()))
            for issuer, link in itertools.pairwise(links):
                _check_issued(link, issuer)
            for below, link in enumerate(reversed(links)):
                _check_use(link, below)
        except (
            ValueError,
            TypeError,
            UnsupportedAlgorithm,
            x509.InvalidVersion,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
        ) as error:
            raise MalformedError(f"expected certificates, got other bytes ({error})") from error
        return links


def _load(content: bytes, place: int) -> Link:
    """Names stay as they are encoded, and a serial number that is not positive (RFC 5280, section
    4.1.2.2) is refused here: about odd ones the library prints warnings, and later refuses."""
    body = asn1.decode_der(der.Signed, content).content.parse(der.Certificate)
    if body.serial_number <= 0:
        raise ValueError("a serial number that is not positive")
    certificate = x509.load_der_x509_certificate(content)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("another key than one on P-384")
    return Link(
        f"certificate {place}",
        certificate,
        key,
        asn1.encode_der(body.issuer),
        asn1.encode_der(body.subject),
    )


def _check_issued(link: Link, issuer: Link) -> None:
    certificate = link.certificate
    good = (
        certificate.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA384
        and link.issuer == issuer.subject
    )
    try:
        issuer.key.verify(
            certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA384())
        )
    except InvalidSignature:
        good = False
    if not good:
        raise UntrustedError.at(
            CHAIN,
            expected=f"{link.name} signed by {issuer.name}",
            actual="a signature or name that does not fit",
            advice=_AGAIN,
        )


def _check_use(link: Link, below: int) -> None:
    """`below` is the number of certificates below it: none for the one that signs documents."""
    extensions = link.certificate.extensions
    unknown = [
        each.oid.dotted_string
        for each in extensions
        if each.critical and each.oid.dotted_string not in _KNOWN_CRITICAL
    ]
    try:
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise MalformedError(f"expected constraints and key usage, got none ({error})") from error
    if below == 0:
        good = not basic.ca and usage.digital_signature
    else:
        # Of the certificates below, the last one is not an authority.
        fits = basic.path_length is None or basic.path_length >= below - 1
        good = basic.ca and usage.key_cert_sign and fits
    if not good or unknown:
        raise UntrustedError.at(
            USE,
            expected=f"{link.name} to be usable with {counted(below, 'certificate')} below it",
            actual=f"the unknown critical extension {unknown[0]}" if unknown else "another use",
            advice=_AGAIN,
        )


def _claims(document: Document) -> dict[str, ClaimValue]:
    claims: dict[str, ClaimValue] = {
        "debug": document.debug,
        "nitro.module_id": document.module_id,
    }
    return claims | {f"nitro.pcr.{index}": pcr for index, pcr in document.pcrs.items()}
