"""COSE_Sign1, the signed envelope of Nitro documents, PSA tokens and CCA tokens.

RFC 9052, section 4.2 (the structure) and 4.4 (what is signed); RFC 9053, section 2.1 (ECDSA). Only
what these tokens use is known: ES256, ES384 and ES512 with the curve of the same strength, an
attached payload, no external data, no critical header parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from avow.errors import Check, MalformedError, UntrustedError
from avow.evidence import cbor

# RFC 9052, section 2: the tag of COSE_Sign1, in its one encoding.
_TAG_18: Final = b"\xd2"
# What else COSE can be, by its tag in the same encoding (RFC 9052, table 1).
_OTHERS: Final = {
    b"\xd0": "a COSE_Encrypt0 (tag 16)",
    b"\xd1": "a COSE_Mac0 (tag 17), which only a verifier with the device's own secret can check",
    b"\xd8\x60": "a COSE_Encrypt (tag 96)",
    b"\xd8\x61": "a COSE_Mac (tag 97)",
    b"\xd8\x62": "a COSE_Sign (tag 98)",
}
# RFC 9052, table 3: the header parameters that may be there.
_ALG, _CONTENT_TYPE, _KID = 1, 3, 4
# RFC 9596: the type of the whole.
_TYP = 16


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One of RFC 9053, table 1. `half_bytes` is the size of r and of s."""

    number: int
    name: str
    hash: hashes.HashAlgorithm
    curve: type[ec.EllipticCurve]
    half_bytes: int


ES256: Final = Algorithm(-7, "ES256", hashes.SHA256(), ec.SECP256R1, 32)
ES384: Final = Algorithm(-35, "ES384", hashes.SHA384(), ec.SECP384R1, 48)
ES512: Final = Algorithm(-36, "ES512", hashes.SHA512(), ec.SECP521R1, 66)
ALGORITHMS: Final = {each.number: each for each in (ES256, ES384, ES512)}


@dataclass(frozen=True, slots=True)
class Sign1:
    """The parts of a COSE_Sign1. Nothing is verified yet; `key_id` is what the signer says."""

    protected: bytes
    algorithm: Algorithm
    key_id: bytes | None
    payload: bytes
    signature: bytes

    def verify(self, key: ec.EllipticCurvePublicKey, check: Check) -> None:
        """Raises `UntrustedError` at `check` when `key` has not signed this."""
        if not isinstance(key.curve, self.algorithm.curve):
            raise UntrustedError.at(
                check,
                expected=f"a key on {self.algorithm.curve.name} for {self.algorithm.name}",
                actual=f"one on {key.curve.name}",
                advice="use the key that the device's maker published",
            )
        half = self.algorithm.half_bytes
        signature = encode_dss_signature(
            int.from_bytes(self.signature[:half], "big"),
            int.from_bytes(self.signature[half:], "big"),
        )
        try:
            key.verify(
                signature,
                signed_bytes(self.protected, self.payload),
                ec.ECDSA(self.algorithm.hash),
            )
        except InvalidSignature as error:
            raise UntrustedError.at(
                check,
                expected=f"a good {self.algorithm.name} signature",
                actual="one that does not verify",
                advice="ask again; if this persists, the evidence was altered or is not genuine",
            ) from error


def parse_sign1(content: bytes, what: str) -> Sign1:
    """The parts of a COSE_Sign1, with or without its tag; `what` names it in the error.

    Raises `MalformedError`.
    """
    if content[:1] == _TAG_18:
        content = content[1:]
    for tag, other in _OTHERS.items():
        if content.startswith(tag):
            raise MalformedError(
                f"expected a COSE_Sign1 (tag 18) as {what}, got {other}; have the device sign its "
                f"tokens with a key pair"
            )
    parts = cbor.decode_foreign(content, what)
    if not isinstance(parts, list) or len(parts) != 4:
        raise _malformed(what, "a COSE_Sign1 of four parts", "something else")
    protected, unprotected, payload, signature = parts
    if not (
        isinstance(protected, bytes)
        and isinstance(unprotected, dict)
        and isinstance(payload, bytes)
        and isinstance(signature, bytes)
    ):
        raise _malformed(what, "two headers, a payload and a signature", "other types")
    header = cbor.decode_foreign(protected, f"{what}'s protected header")
    if not isinstance(header, dict):
        raise _malformed(what, "a map as protected header", "something else")
    algorithm = _algorithm(header.get(_ALG), what)
    key_id = _key_id(header, unprotected, what)
    if len(signature) != 2 * algorithm.half_bytes:
        raise _malformed(
            what, f"a signature of {2 * algorithm.half_bytes} bytes", f"{len(signature)}"
        )
    return Sign1(protected, algorithm, key_id, payload, signature)


def signed_bytes(protected: bytes, payload: bytes) -> bytes:
    """The Sig_structure (RFC 9052, section 4.4) that the signature is over."""
    return cbor2.dumps(["Signature1", protected, b"", payload])


def _algorithm(number: cbor.Value, what: str) -> Algorithm:
    known = ALGORITHMS.get(number) if type(number) is int else None
    if known is None:
        names = ", ".join(each.name for each in ALGORITHMS.values())
        raise _malformed(what, f"one of the algorithms {names}", repr(number)[:80])
    return known


def _key_id(
    header: dict[int | str, cbor.Value], unprotected: dict[int | str, cbor.Value], what: str
) -> bytes | None:
    others = set(header) - {_ALG, _CONTENT_TYPE, _KID, _TYP}
    # What is not signed may hint at the key, and at nothing else.
    others |= set(unprotected) - {_KID}
    if others or set(header) & set(unprotected):
        raise _malformed(what, "header parameters that are known", repr(sorted(map(str, others))))
    key_id = header.get(_KID, unprotected.get(_KID))
    if key_id is not None and not isinstance(key_id, bytes):
        raise _malformed(what, "bytes as key identifier", type(key_id).__name__)
    return key_id


def _malformed(what: str, expected: str, actual: str) -> MalformedError:
    return MalformedError(f"expected {expected} in the {what}, got {actual}; fetch it again")
