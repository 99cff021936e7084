"""Certificates of TPMs and their makers, as makers write them and TPMs keep them.

Nuvoton's names have one relative name of three attributes whose SET is not in the order of DER
(X.690, section 11.6), which `cryptography` refuses. So names are put into that order to be read,
and signatures are verified over the bytes as they are. In a TPM's memory a certificate is what its
own length says; what pads the area is FFh or zeros.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from avow.errors import MalformedError
from avow.tee import der

_SEQUENCE: Final = 0x30
_LONG: Final = 0x80
_LENGTH_BYTES_MAX: Final = 3
_PADDING: Final = b"\xff\0"
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class Certificate:
    """`parsed` has the names in the order of DER; `encoded` is the certificate as it came."""

    parsed: x509.Certificate
    encoded: bytes

    def is_issued_by(self, issuer: x509.Certificate) -> bool:
        """True when the name fits and the issuer's key has signed these bytes.

        With SHA-256, SHA-384 or SHA-512; `cryptography` knows no SHA-1 here any more, and a test
        holds it to that.
        """
        try:
            if self.parsed.public_bytes(Encoding.DER) == self.encoded:
                self.parsed.verify_directly_issued_by(issuer)
                return True
            return self.parsed.issuer == issuer.subject and self._is_signed_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return False

    def _is_signed_by(self, issuer: x509.Certificate) -> bool:
        outer = asn1.decode_der(der.Signed, self.encoded)
        signed = asn1.encode_der(outer.content)
        inner = asn1.decode_der(der.Certificate, signed).algorithm
        # RFC 5280, section 4.1.1.2: what is not signed says the same as what is.
        same = asn1.encode_der(inner) == asn1.encode_der(outer.algorithm)
        if not same or outer.signature.padding_bits():
            return False
        algorithm, key = self.parsed.signature_hash_algorithm, issuer.public_key()
        if not isinstance(algorithm, _HASHES):
            return False
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(self.parsed.signature, signed, ec.ECDSA(algorithm))
            return True
        parameters = self.parsed.signature_algorithm_parameters
        if not isinstance(key, rsa.RSAPublicKey) or not isinstance(parameters, padding.PKCS1v15):
            return False
        key.verify(self.parsed.signature, signed, parameters, algorithm)
        return True


def read_certificate(encoded: bytes) -> Certificate:
    """A certificate in DER. Raises what `cryptography` raises for one that is none."""
    return Certificate(x509.load_der_x509_certificate(_with_ordered_names(encoded)), encoded)


def read_pem(content: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM file, in DER as they are. Raises `ValueError` and the like."""
    pieces = content.split(_END)
    found = tuple(_from_pem(piece + _END) for piece in pieces[:-1])
    if not found:
        raise ValueError("no certificate")
    for each in found:
        read_certificate(each)
    return found


def certificates_in(area: bytes) -> tuple[bytes, ...]:
    """The certificates (DER) one after the other in an area of a TPM's memory.

    Raises `MalformedError` for an area that holds something else.
    """
    found: list[bytes] = []
    # No certificate begins with one of these.
    while rest := area.lstrip(_PADDING):
        size = _element_bytes(rest)
        if rest[0] != _SEQUENCE or size is None:
            raise MalformedError(
                f"expected certificates in DER and their padding in the TPM's memory, got "
                f"{len(rest)} other bytes; give them as a file (--chain), or ask the TPM's maker"
            )
        found.append(rest[:size])
        area = rest[size:]
    return tuple(found)


def in_order(leaf: bytes, candidates: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """`leaf` and those of its issuers that are among `candidates`, without the root.

    Raises what `read_certificate` raises.
    """
    pool = [read_certificate(each) for each in dict.fromkeys(candidates)]
    chain = [read_certificate(leaf)]
    while len(chain) <= len(pool):
        issuer = next(
            (each for each in pool if each not in chain and chain[-1].is_issued_by(each.parsed)),
            None,
        )
        if issuer is None or issuer.parsed.issuer == issuer.parsed.subject:
            break
        chain.append(issuer)
    return tuple(each.encoded for each in chain)


_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"


def _from_pem(piece: bytes) -> bytes:
    _, found, text = piece.partition(_BEGIN)
    if not found:
        raise ValueError("an end without a beginning")
    return base64.b64decode(b"".join(text.removesuffix(_END).split()), validate=True)


def _with_ordered_names(encoded: bytes) -> bytes:
    """The same with each SET in the names in the order of DER; it keeps its length."""
    try:
        outer = asn1.decode_der(der.Signed, encoded)
        body = asn1.decode_der(der.Certificate, asn1.encode_der(outer.content))
        body.issuer = _ordered(body.issuer)
        body.subject = _ordered(body.subject)
        outer.content = asn1.decode_der(asn1.TLV, asn1.encode_der(body))
        return asn1.encode_der(outer)
    except (ValueError, TypeError):
        # Whoever loads it says what is wrong.
        return encoded


def _ordered(name: asn1.TLV) -> asn1.TLV:
    """A Name whose SETs are sorted by their elements' encodings."""
    encoded = asn1.encode_der(der.HoldsAny(held=name))
    relative = asn1.decode_der(der.HoldsList, encoded).held
    content = b"".join(_sorted_set(asn1.encode_der(each)) for each in relative)
    whole = asn1.encode_der(name)
    return asn1.decode_der(asn1.TLV, whole[: len(whole) - len(content)] + content)


def _sorted_set(encoded: bytes) -> bytes:
    content = _content_of(encoded)
    head = encoded[: len(encoded) - len(content)]
    elements: list[bytes] = []
    while content:
        size = _element_bytes(content)
        if size is None:
            raise ValueError("an element that does not end")
        elements.append(content[:size])
        content = content[size:]
    return head + b"".join(sorted(elements))


def _content_of(encoded: bytes) -> bytes:
    head = 2 if encoded[1] < _LONG else 2 + (encoded[1] & ~_LONG)
    return encoded[head:]


def _element_bytes(content: bytes) -> int | None:
    """The size of the element in DER (X.690, section 8.1.3) that `content` begins with; None where
    it does not hold one whole."""
    if len(content) < 2:
        return None
    length, head = content[1], 2
    if length >= _LONG:
        digits = length & ~_LONG
        if not 0 < digits <= _LENGTH_BYTES_MAX:
            return None
        head += digits
        length = int.from_bytes(content[2:head], "big")
    return head + length if head + length <= len(content) else None
