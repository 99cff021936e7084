"""A chain of X.509 certificates up to a pinned root (RFC 5280, section 6.1, without policies).

For keys of TPMs: endorsement keys certified by their makers (TCG "EK Credential Profile for TPM
Family 2.0", version 2.4) and attestation keys certified by an enrolment authority.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from avow.errors import Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence.validity import advice_at
from avow.tee.tpm.certificates import Certificate, read_certificate

# TCG's extended key usages for the certificates of endorsement and of attestation keys
# (EK Credential Profile, section 3.2; the OIDs tcg-kp-EKCertificate and tcg-kp-AIKCertificate).
EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
AK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.3")

# Whose meaning is checked here, or restricts nothing that is relied on.
_UNDERSTOOD: Final = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.CertificatePolicies,
)
_RENEW: Final = "have a new certificate issued, or pin the root that issued this one"


@dataclass(frozen=True, slots=True)
class Anchors:
    """What is pinned: roots, and revocation lists of any of the issuers in a chain."""

    roots: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """A checked chain: its first certificate, and whether each one was looked up in a list."""

    leaf: x509.Certificate
    crl_checked: bool


def check_chain(
    encoded: Sequence[bytes],
    anchors: Anchors,
    usage: x509.ObjectIdentifier,
    now: datetime,
    check: Check,
) -> Chain:
    """`encoded` are certificates in DER: of the key first, each issued by the next, the last one by
    a pinned root.

    Raises `MalformedError` for what is no certificate, `UntrustedError` for a chain that does not
    hold at `now`, and `UnavailableError` for a revocation list that is out of date; all at `check`.
    """
    try:
        certificates = [read_certificate(each) for each in encoded]
        return _check(certificates, anchors, usage, now, check)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise MalformedError.at(
            check,
            expected="X.509 certificates in DER",
            actual=f"other bytes ({error})",
            advice=_RENEW,
        ) from error


def _check(
    chain: list[Certificate],
    anchors: Anchors,
    usage: x509.ObjectIdentifier,
    now: datetime,
    check: Check,
) -> Chain:
    certificates = [each.parsed for each in chain]
    last = certificates[-1]
    root = next((each for each in anchors.roots if chain[-1].is_issued_by(each)), None)
    if root is None:
        raise UntrustedError.at(
            check,
            expected="a chain of certificates up to a pinned root",
            actual=f"one up to {last.issuer.rfc4514_string()[:100]!r}",
            advice=_RENEW,
        )
    issuers = [*certificates[1:], root]
    for index, (link, issuer) in enumerate(zip(chain, issuers, strict=True)):
        _check_link(link, issuer, index, now, check)
    for certificate in (*certificates, root):
        _check_extensions(certificate, check)
    leaf = certificates[0]
    usages = _usages(leaf)
    unnamed = usages is None and usage == EK_USAGE
    if not (_is_ek_without_usage(leaf, issuers[0]) if unnamed else usage in (usages or ())):
        raise UntrustedError.at(
            check,
            expected=f"a certificate for the usage {usage.dotted_string}",
            actual=f"one for {', '.join(each.dotted_string for each in usages or ()) or 'none'}",
            advice=_RENEW,
        )
    checked = [
        _check_revocation(certificate, issuer, anchors, now, check)
        for certificate, issuer in zip(certificates, issuers, strict=True)
    ]
    return Chain(leaf, all(checked))


def _usages(certificate: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _is_ek_without_usage(leaf: x509.Certificate, issuer: x509.Certificate) -> bool:
    """An endorsement key's certificate that does not say its usage, as Google's virtual TPMs have.

    RFC 5280, section 4.2.1.12: without the extension every use is allowed. It has to be for a key
    that decrypts and does not sign, and by an issuer that is itself for endorsement keys.
    """
    try:
        key = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    decrypts = (key.key_encipherment or key.key_agreement) and not (
        key.digital_signature or key.key_cert_sign
    )
    return decrypts and EK_USAGE in (_usages(issuer) or ())


def _check_link(
    link: Certificate, issuer: x509.Certificate, below: int, now: datetime, check: Check
) -> None:
    """`issuer` may issue, and did; `below` is the number of authorities between it and the key."""
    for each in (link.parsed, issuer):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise UntrustedError.at(
                check,
                expected=f"certificates that are valid at {now.isoformat()}",
                actual=f"one from {each.not_valid_before_utc} to {each.not_valid_after_utc}",
                advice=advice_at(now, each.not_valid_before_utc, _RENEW),
            )
    if not link.is_issued_by(issuer):
        raise UntrustedError.at(
            check,
            expected=f"a certificate signed by {issuer.subject.rfc4514_string()[:100]!r}",
            actual="one signed by another",
            advice=_RENEW,
        )
    if not _may_issue(issuer, below):
        raise UntrustedError.at(
            check,
            expected="issuers that are certificate authorities",
            actual=f"{issuer.subject.rfc4514_string()[:100]!r}, which is none for this depth",
            advice=_RENEW,
        )


def _may_issue(issuer: x509.Certificate, below: int) -> bool:
    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    deep_enough = basic.path_length is None or below <= basic.path_length
    return basic.ca and usage.key_cert_sign and deep_enough


def _check_extensions(certificate: x509.Certificate, check: Check) -> None:
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            raise UntrustedError.at(
                check,
                expected="critical extensions that avow knows",
                actual=extension.oid.dotted_string,
                advice=_RENEW,
            )


def _check_revocation(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    anchors: Anchors,
    now: datetime,
    check: Check,
) -> bool:
    """True when a current list of `issuer` was consulted; False when there is none."""
    crls = list(_lists_of(issuer, anchors))
    for crl in crls:
        until = crl.next_update_utc
        if until is None or not crl.last_update_utc <= now <= until:
            raise UnavailableError.at(
                check,
                expected=f"a revocation list that is valid at {now.isoformat()}",
                actual=f"one from {crl.last_update_utc} to {until}",
                advice=advice_at(now, crl.last_update_utc, "fetch the issuer's current list"),
            )
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise UntrustedError.at(
                check,
                expected="certificates that are not revoked",
                actual=f"the revoked one with serial number {certificate.serial_number:x}",
                advice="do not trust this TPM: its owner or maker has revoked the certificate",
            )
    return bool(crls)


def _lists_of(
    issuer: x509.Certificate, anchors: Anchors
) -> Iterator[x509.CertificateRevocationList]:
    key = issuer.public_key()
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        for crl in anchors.crls:
            if crl.issuer == issuer.subject and crl.is_signature_valid(key):
                yield crl
