"""The ASN.1 structures of X.509, for the declarative decoder of `cryptography`.

RFC 5280, sections 4.1 and 5.1. What is signed stays in its encoding until it is asked for.
"""

from __future__ import annotations

from typing import Annotated

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier


@asn1.sequence
class Signed:
    """Certificate and CertificateList alike (sections 4.1 and 5.1)."""

    content: asn1.TLV
    algorithm: asn1.TLV
    signature: asn1.BitString


@asn1.sequence
class Validity:
    """Section 4.1.2.5."""

    not_before: asn1.UTCTime | asn1.GeneralizedTime
    not_after: asn1.UTCTime | asn1.GeneralizedTime


@asn1.sequence
class Extension:
    """Section 4.1."""

    oid: ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class Certificate:
    """TBSCertificate (section 4.1), version 3."""

    version: Annotated[int, asn1.Explicit(0)]
    serial_number: int
    algorithm: asn1.TLV
    issuer: asn1.TLV
    validity: Validity
    subject: asn1.TLV
    public_key: asn1.TLV
    extensions: Annotated[list[Extension], asn1.Explicit(3)]


@asn1.sequence
class BasicConstraints:
    """Section 4.2.1.9."""

    ca: Annotated[bool, asn1.Default(False)]
    path_length: int | None


@asn1.sequence
class Attribute:
    """AttributeTypeAndValue (section 4.1.2.4)."""

    oid: ObjectIdentifier
    value: asn1.TLV


# The decoder starts at a class only: these hold one value each that is a list.
@asn1.sequence
class HoldsAny:
    """Any value."""

    held: asn1.TLV


@asn1.sequence
class HoldsName:
    """A Name."""

    held: list[asn1.SetOf[Attribute]]


@asn1.sequence
class HoldsList:
    """A SEQUENCE OF anything."""

    held: list[asn1.TLV]


@asn1.sequence
class Revoked:
    """An entry of revokedCertificates (section 5.1)."""

    serial_number: int
    date: asn1.UTCTime | asn1.GeneralizedTime
    extensions: list[Extension] | None


@asn1.sequence
class RevocationList:
    """TBSCertList (section 5.1), version 2."""

    version: int | None
    algorithm: asn1.TLV
    issuer: asn1.TLV
    this_update: asn1.UTCTime | asn1.GeneralizedTime
    next_update: asn1.UTCTime | asn1.GeneralizedTime | None
    revoked: list[Revoked] | None
    extensions: Annotated[list[Extension] | None, asn1.Explicit(0)]
