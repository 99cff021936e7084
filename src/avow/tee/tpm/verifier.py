"""The verifying side of TPM 2.0: which attestation key quoted what, and who vouches for the key."""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Final

from cryptography import x509

from avow.errors import Check, MalformedError, UntrustedError, well_formed
from avow.evidence.claims import DIGEST_BYTES
from avow.evidence.roles import Authenticated
from avow.evidence.vocabulary import ClaimValue
from avow.tee.tpm import event_log, quote, structures
from avow.tee.tpm.chain import AK_USAGE, Anchors, check_chain
from avow.tee.tpm.quote import AGAIN, SignedQuote, check_quote, quote_claims, spki_digest
from avow.tee.tpm.report import Report, decode_report
from avow.tee.tpm.structures import ALG_NULL, Public, PublicKey, Quote, name_of, parse_public

_SPEC: Final = "docs/platforms/tpm.md"
REPORT: Final = Check("TPM1", "the TPM report is well-formed", _SPEC)
ATTRIBUTES: Final = Check(
    "TPM2",
    "the attestation key signs only what its TPM made",
    'TPM 2.0 Library, Part 1, "Object Attributes"',
)
CERTIFICATE: Final = Check(
    "TPM3", "the attestation key's certificate leads to a pinned enrolment authority", _SPEC
)
SIGNER: Final = Check(
    "TPM5", "the quote names the attestation key", 'TPM 2.0 Library, Part 1, "Qualified Name"'
)
CHECKS: Final = tuple(
    sorted((REPORT, ATTRIBUTES, CERTIFICATE, SIGNER, *quote.CHECKS), key=lambda each: each.number)
)

# In an AK's certificate: the SHA-256 of the certificate of the same TPM's EK, as an ASN.1 OCTET
# STRING. The number is that of a UUID (Rec. ITU-T X.667), so that it is nobody else's.
EK_DIGEST: Final = x509.ObjectIdentifier("2.25.293070660190717937512547431642717507295")

EK_DIGEST_HEADER: Final = b"\x04\x20"

_MUST: Final = (
    structures.FIXED_TPM
    | structures.FIXED_PARENT
    | structures.SENSITIVE_DATA_ORIGIN
    | structures.RESTRICTED
    | structures.SIGN
)
_MUST_NOT: Final = structures.DECRYPT | structures.X509_SIGN
# The handle of a hierarchy, or a name by SHA-256, SHA-384 or SHA-512.
_PARENT_BYTES: Final = (4, 34, 50, 66)


class TpmVerifier:
    """Verifies reports of the platform `tpm`.

    `enrolment` holds the roots of the authorities whose certificates of attestation keys count, and
    their revocation lists. An AK that none of them certified has the origin "owner": nobody but the
    policy vouches for it then, by naming it as `tpm.ak`.
    """

    platform = "tpm"

    def __init__(self, enrolment: Anchors | None = None) -> None:
        self._enrolment = Anchors() if enrolment is None else enrolment

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`: the checks TPM1 to TPM8."""
        with well_formed(REPORT, "TPM report", advice=AGAIN):
            return self._authenticate(decode_report(report), now)

    def _authenticate(self, report: Report, now: datetime) -> Authenticated:
        ak = parse_public(report.ak)
        check_attributes(ak)
        vouched = self._vouched(report, ak, now)
        signed = SignedQuote(report.quote, report.signature, report.pcrs, report.log)
        quoted = check_quote(signed, ak.key, ak)
        _check_signer(quoted, ak, report.parent)
        return Authenticated(
            self.platform,
            quoted.extra_data,
            "sha256",
            # A TPM has no debug mode. What it does not protect from: docs/platforms/tpm.md.
            {**quote_claims(quoted, ak.key, report.pcrs), **vouched, "debug": False},
            event_log.measured(report.log),
        )

    def _vouched(self, report: Report, ak: Public, now: datetime) -> dict[str, ClaimValue]:
        """TPM3: who vouches for the AK, as claims."""
        if not self._enrolment.roots or not report.certificates:
            return {"tpm.ak_origin": "owner", "collateral.crl_checked": False}
        chain = check_chain(report.certificates, self._enrolment, AK_USAGE, now, CERTIFICATE)
        certified = chain.leaf.public_key()
        if not isinstance(certified, PublicKey) or spki_digest(certified) != spki_digest(ak.key):
            raise UntrustedError.at(
                CERTIFICATE,
                expected="the certificate of the report's attestation key",
                actual="one of another key",
                advice="give the attester the certificate that was issued for its key",
            )
        return {
            "tpm.ak_origin": "ek",
            "tpm.ek": _ek_digest(chain.leaf),
            "collateral.crl_checked": chain.crl_checked,
        }


def check_attributes(ak: Public) -> None:
    """TPM2: a restricted signing key that the TPM made and never lets out. With such a key a TPM
    signs nothing that looks like an attestation unless it made the attestation itself."""
    wrong = ak.attributes & _MUST != _MUST or ak.attributes & _MUST_NOT
    if wrong or ak.scheme == ALG_NULL or ak.symmetric_bits:
        raise UntrustedError.at(
            ATTRIBUTES,
            expected="a restricted signing key with fixedTPM, fixedParent, sensitiveDataOrigin "
            "and a scheme",
            actual=f"attributes {ak.attributes:#010x} and scheme {ak.scheme:#06x}",
            advice="let avow make the attestation key",
        )


def _check_signer(quoted: Quote, ak: Public, parent: bytes) -> None:
    """TPM5. A qualified name is the digest of the parent's qualified name (for a primary key, of
    its hierarchy's handle) and the key's name. The TPM writes it into the quote: so the public area
    in the report, with its attributes, is that of the key inside the TPM."""
    if len(parent) not in _PARENT_BYTES:
        raise MalformedError(
            f"expected a parent of 4, 34, 50 or 66 bytes, got {len(parent)}; {AGAIN}"
        )
    expected = name_of(ak.name_algorithm, parent + ak.name)
    if not hmac.compare_digest(quoted.qualified_signer, expected):
        raise UntrustedError.at(
            SIGNER,
            expected=f"the qualified name {expected.hex()[:20]}…",
            actual=f"{quoted.qualified_signer.hex()[:20]}…",
            advice=AGAIN,
        )


def _ek_digest(certificate: x509.Certificate) -> bytes:
    """What the authority says about the TPM's endorsement key."""
    try:
        value = certificate.extensions.get_extension_for_oid(EK_DIGEST).value
    except x509.ExtensionNotFound:
        value = x509.UnrecognizedExtension(EK_DIGEST, b"")
    content = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    digest = content.removeprefix(EK_DIGEST_HEADER)
    if len(digest) != DIGEST_BYTES or len(content) != len(EK_DIGEST_HEADER) + DIGEST_BYTES:
        raise UntrustedError.at(
            CERTIFICATE,
            expected=f"the endorsement key's digest (32 bytes) in {EK_DIGEST.dotted_string}",
            actual="none",
            advice="have the certificate issued by avow's enrolment",
        )
    return digest
