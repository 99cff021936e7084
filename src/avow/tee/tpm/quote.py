"""What a quote proves, once its key is known; the same for a TPM and for Azure's virtual one."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.errors import Check, UntrustedError, counted
from avow.evidence.vocabulary import ClaimValue
from avow.tee.tpm import event_log
from avow.tee.tpm.structures import (
    ALG_ECDSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    HASHES,
    Public,
    PublicKey,
    Quote,
    Signature,
    parse_quote,
    parse_signature,
)

_SPEC: Final = "docs/platforms/tpm.md"
SIGNATURE: Final = Check(
    "TPM4", "the attestation key signed the quote", "TPM 2.0 Library, Part 3, section 18.4"
)
QUALIFYING_DATA: Final = Check("TPM6", "the quote is over 32 bytes of avow's", _SPEC)
PCR_VALUES: Final = Check(
    "TPM7", "the PCRs are those of the quote", "TPM 2.0 Library, Part 2, section 10.12.4"
)
EVENT_LOG: Final = Check("TPM8", "the event log leads to the quoted PCR 23", _SPEC)
CHECKS: Final = (SIGNATURE, QUALIFYING_DATA, PCR_VALUES, EVENT_LOG)

QUALIFYING_DATA_BYTES: Final = 32
AGAIN: Final = "ask again; if this persists, somebody may be intercepting the connection to the TPM"


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """TPMS_ATTEST and TPMT_SIGNATURE as bytes, and what they are to be compared with."""

    quote: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    log: event_log.Log


def check_quote(signed: SignedQuote, key: PublicKey, public: Public | None = None) -> Quote:
    """The quote that `key` signed. `public`, where it is known, says which scheme the key has.

    Raises `MalformedError` without a finding for bytes that have another form, `UntrustedError` at
    TPM4, TPM7, TPM8 and TPM6, in this order.
    """
    quote = parse_quote(signed.quote)
    signature = parse_signature(signed.signature)
    scheme = (signature.algorithm, signature.hash_algorithm)
    if public is not None and scheme != (public.scheme, public.scheme_hash):
        raise _bad_signature("one by another scheme than the key's")
    try:
        _verify(key, signature, signed.quote)
    except InvalidSignature as error:
        raise _bad_signature("another") from error
    _check_pcrs(quote, signed.pcrs, signature.hash_algorithm)
    _check_log(signed.log, signed.pcrs)
    if len(quote.extra_data) != QUALIFYING_DATA_BYTES:
        raise UntrustedError.at(
            QUALIFYING_DATA,
            expected=f"qualifying data of {QUALIFYING_DATA_BYTES} bytes",
            actual=f"{counted(len(quote.extra_data), 'byte')}",
            advice="use a quote that avow asked for",
        )
    return quote


def quote_claims(quote: Quote, key: PublicKey, pcrs: Mapping[int, bytes]) -> dict[str, ClaimValue]:
    """What a checked quote says."""
    claims: dict[str, ClaimValue] = {f"tpm.pcr.{number}": pcrs[number] for number in pcrs}
    claims["tpm.ak"] = spki_digest(key)
    claims["tpm.firmware_version"] = quote.firmware_version
    claims["tpm.reset_count"] = quote.reset_count
    claims["tpm.restart_count"] = quote.restart_count
    claims["tpm.clock_safe"] = quote.clock_safe
    return claims


def spki_digest(key: PublicKey) -> bytes:
    """The SHA-256 (32 bytes) of the key's SubjectPublicKeyInfo."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _verify(key: PublicKey, signature: Signature, content: bytes) -> None:
    algorithm = HASHES[signature.hash_algorithm]
    if isinstance(key, rsa.RSAPublicKey) and signature.algorithm == ALG_RSASSA:
        key.verify(signature.rsa, content, padding.PKCS1v15(), algorithm)
    elif isinstance(key, rsa.RSAPublicKey) and signature.algorithm == ALG_RSAPSS:
        # Part 1, annex B, RSASSA-PSS: the salt is as long as fits, or as long as the digest.
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
        key.verify(signature.rsa, content, pss, algorithm)
    elif isinstance(key, ec.EllipticCurvePublicKey) and signature.algorithm == ALG_ECDSA:
        key.verify(encode_dss_signature(signature.r, signature.s), content, ec.ECDSA(algorithm))
    else:
        raise _bad_signature("one by another kind of key")


def _bad_signature(actual: str) -> UntrustedError:
    return UntrustedError.at(
        SIGNATURE,
        expected="a signature over the quote by the attestation key",
        actual=actual,
        advice=AGAIN,
    )


def _check_pcrs(quote: Quote, pcrs: Mapping[int, bytes], hash_algorithm: int) -> None:
    """TPM7. The digest is by the hash of the signature (Part 3, section 18.4)."""
    context = hashes.Hash(HASHES[hash_algorithm])
    for number in sorted(pcrs):
        context.update(pcrs[number])
    digest = context.finalize()
    if tuple(sorted(pcrs)) != quote.pcrs or not hmac.compare_digest(quote.pcr_digest, digest):
        raise UntrustedError.at(
            PCR_VALUES,
            expected=f"the PCRs {list(quote.pcrs)} with the digest {quote.pcr_digest.hex()}",
            actual=f"{sorted(pcrs)} with {digest.hex()}",
            advice=AGAIN,
        )


def _check_log(log: event_log.Log, pcrs: Mapping[int, bytes]) -> None:
    """TPM8. Without events nothing is claimed to be measured."""
    if not log:
        return
    expected = event_log.replay(log)
    actual = pcrs.get(event_log.PCR)
    if actual is None or not hmac.compare_digest(actual, expected):
        raise UntrustedError.at(
            EVENT_LOG,
            expected=f"PCR {event_log.PCR} quoted as {expected.hex()}, as the log says",
            actual="none" if actual is None else f"{actual.hex()}",
            advice="start the program again with avow, and check that nothing else uses that PCR",
        )
