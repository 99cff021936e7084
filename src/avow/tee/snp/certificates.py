"""AMD's certificates and revocation lists, read exactly.

Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification (AMD 57230),
chapter 3: the certificates and their extensions; RFC 5280 for the rest. AMD gives every VCEK and
VLEK the serial number zero, which RFC 5280, section 4.1.2.2, says to handle gracefully, which
`cryptography` warns about today and announces to refuse. So these are read with the ASN.1 decoder
of the same library, field by field, and not by its X.509 parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import ObjectIdentifier

from avow.errors import MalformedError
from avow.tee import der

AMD_ARC: Final = "1.3.6.1.4.1.3704.1"
_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_KEY_USAGE: Final = "2.5.29.15"
_CERTIFICATE_ISSUER: Final = "2.5.29.29"
_ISSUING_DISTRIBUTION_POINT: Final = "2.5.29.28"
_DELTA_CRL: Final = "2.5.29.27"
_COMMON_NAME: Final = ObjectIdentifier("2.5.4.3")

# RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes (RFC 4055, section 3.1): what
# AMD signs with, with and without the trailer field, which is the default one.
_PSS_SHA384: Final = tuple(
    map(
        bytes.fromhex,
        (
            "304606092a864886f70d01010a3039a00f300d06096086480165030402020500"
            "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101",
            "304106092a864886f70d01010a3034a00f300d06096086480165030402020500"
            "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130",
        ),
    )
)
_CERT_SIGN_BIT: Final = 0x04
_CRL_SIGN_BIT: Final = 0x02


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is needed of a certificate; `issuer` and `subject` are names in DER.

    `extensions` are values in DER by object identifier, AMD's own only. Nothing is verified yet.
    """

    serial_number: int
    issuer: bytes
    subject: bytes
    common_name: str
    not_before: datetime
    not_after: datetime
    public_key: bytes
    extensions: dict[str, bytes]
    is_authority: bool
    signs_certificates: bool
    signs_crls: bool
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL. `revoked` are (issuer in DER, serial number). Nothing is verified yet."""

    issuer: bytes
    this_update: datetime
    next_update: datetime
    revoked: frozenset[tuple[bytes, int]]
    signed: bytes
    signature: bytes


def parse_certificate(content: bytes, what: str) -> Certificate:
    """A certificate in DER; `what` names it in the error. Raises `MalformedError`."""
    try:
        signed, signature, inner = _open(content)
        body = asn1.decode_der(der.Certificate, signed)
        if body.version != 2 or asn1.encode_der(body.algorithm) != inner:
            raise ValueError("a version or algorithm that AMD does not use")
        extensions = _by_oid(body.extensions)
        known = {_BASIC_CONSTRAINTS, _KEY_USAGE}
        if unknown := [
            oid
            for oid, extension in extensions.items()
            if extension.critical and oid not in known and not oid.startswith(f"{AMD_ARC}.")
        ]:
            raise ValueError(f"the unknown critical extension {unknown[0]}")
        usage = _key_usage(extensions)
        return Certificate(
            serial_number=body.serial_number,
            issuer=asn1.encode_der(body.issuer),
            subject=asn1.encode_der(body.subject),
            common_name=_common_name(body.subject),
            not_before=body.validity.not_before.as_datetime(),
            not_after=body.validity.not_after.as_datetime(),
            public_key=asn1.encode_der(body.public_key),
            extensions={
                oid: extension.value
                for oid, extension in extensions.items()
                if oid.startswith(f"{AMD_ARC}.")
            },
            is_authority=_is_authority(extensions),
            signs_certificates=bool(usage & _CERT_SIGN_BIT),
            signs_crls=bool(usage & _CRL_SIGN_BIT),
            signed=signed,
            signature=signature,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise _malformed(what, error) from error


def parse_crl(content: bytes) -> RevocationList:
    """A certificate revocation list in DER (RFC 5280, section 5). Raises `MalformedError`.

    An entry belongs to the issuer of the list, or, in an indirect list, to the one that its
    extension or that of an entry before it names (section 5.3.3).
    """
    try:
        signed, signature, inner = _open(content)
        body = asn1.decode_der(der.RevocationList, signed)
        if body.version != 1 or asn1.encode_der(body.algorithm) != inner:
            raise ValueError("a version or algorithm that AMD does not use")
        extensions = _by_oid(body.extensions or [])
        if _DELTA_CRL in extensions:
            raise ValueError("a list of changes only")
        if unknown := [
            oid
            for oid, extension in extensions.items()
            if extension.critical and oid != _ISSUING_DISTRIBUTION_POINT
        ]:
            raise ValueError(f"the unknown critical extension {unknown[0]}")
        if body.next_update is None:
            raise ValueError("no time of the next one")
        issuer = asn1.encode_der(body.issuer)
        return RevocationList(
            issuer=issuer,
            this_update=body.this_update.as_datetime(),
            next_update=body.next_update.as_datetime(),
            revoked=frozenset(_revoked(body.revoked or [], issuer)),
            signed=signed,
            signature=signature,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise _malformed("revocation list", error) from error


def is_signed_by(signed: bytes, signature: bytes, issuer: Certificate) -> bool:
    """True when the RSA key of `issuer` has signed, as AMD signs."""
    try:
        key = load_der_public_key(issuer.public_key)
    except (ValueError, TypeError) as error:
        raise _malformed(f"{issuer.common_name} certificate", error) from error
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    try:
        key.verify(signature, signed, scheme, hashes.SHA384())
    except InvalidSignature:
        return False
    return True


def _open(content: bytes) -> tuple[bytes, bytes, bytes]:
    """What is signed, the signature, and the algorithm, of a certificate or a list."""
    outer = asn1.decode_der(der.Signed, content)
    algorithm = asn1.encode_der(outer.algorithm)
    if algorithm not in _PSS_SHA384 or outer.signature.padding_bits():
        raise ValueError("another signature algorithm than RSASSA-PSS with SHA-384")
    return asn1.encode_der(outer.content), outer.signature.as_bytes(), algorithm


def _by_oid(extensions: list[der.Extension]) -> dict[str, der.Extension]:
    named = {extension.oid.dotted_string: extension for extension in extensions}
    if len(named) != len(extensions):
        raise ValueError("an extension that is there twice")
    return named


def _is_authority(extensions: dict[str, der.Extension]) -> bool:
    extension = extensions.get(_BASIC_CONSTRAINTS)
    return extension is not None and asn1.decode_der(der.BasicConstraints, extension.value).ca


def _key_usage(extensions: dict[str, der.Extension]) -> int:
    """The first byte of the bits: digitalSignature is the highest."""
    extension = extensions.get(_KEY_USAGE)
    if extension is None:
        return 0
    bits: asn1.BitString = asn1.decode_der(asn1.BitString, extension.value)
    return bits.as_bytes()[0] if bits.as_bytes() else 0


def _common_name(name: asn1.TLV) -> str:
    found = [
        bytes(attribute.value.data).decode("ascii")
        for relative in asn1.decode_der(
            der.HoldsName, asn1.encode_der(der.HoldsAny(held=name))
        ).held
        for attribute in relative.as_list()
        if attribute.oid == _COMMON_NAME
    ]
    if len(found) != 1:
        raise ValueError("other than one common name")
    return found[0]


def _revoked(entries: list[der.Revoked], issuer: bytes) -> list[tuple[bytes, int]]:
    revoked: list[tuple[bytes, int]] = []
    for entry in entries:
        extensions = _by_oid(entry.extensions or [])
        if _CERTIFICATE_ISSUER in extensions:
            issuer = _directory_name(extensions[_CERTIFICATE_ISSUER].value)
        elif unknown := [oid for oid, extension in extensions.items() if extension.critical]:
            raise ValueError(f"the unknown critical extension {unknown[0]} in an entry")
        revoked.append((issuer, entry.serial_number))
    return revoked


def _directory_name(value: bytes) -> bytes:
    """The name inside of GeneralNames with one directoryName (RFC 5280, section 4.2.1.6)."""
    held = asn1.encode_der(der.HoldsAny(held=asn1.decode_der(asn1.TLV, value)))
    names = asn1.decode_der(der.HoldsList, held).held
    if len(names) != 1 or names[0].tag_bytes != b"\xa4":
        raise ValueError("an entry's issuer that is no directory name")
    return bytes(names[0].data)


def _malformed(what: str, error: Exception) -> MalformedError:
    return MalformedError(
        f"expected AMD's {what} in DER, got other bytes ({error}); fetch it from AMD's key "
        f"distribution service again"
    )
