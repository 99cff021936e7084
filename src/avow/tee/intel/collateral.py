"""Intel's collateral: what it says about a kind of processor, signed and for a limited time.

TCB info, QE identity, the CRLs of the root and of the PCK's CA, and the chains of who signed them:
Intel SGX and TDX Provisioning Certification Service API, version 4. Two forms are read:

- the JSON of `dcap-qvl` (docs/platforms/sgx.md says how to fetch it): a file of the verifier or of
  the attester, the CRLs and signatures in hexadecimal digits;
- the CBOR map inside of a report: the same nine names, CRLs and signatures as bytes, since that is
  a third smaller.

Dates are read before anything is verified, so that what has run out is called so; the signatures
over them are checked with the quote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import dcap_qvl  # type: ignore[import-untyped]
from cryptography import x509

from avow.errors import MalformedError
from avow.evidence import cbor

_BYTES: Final = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
_TEXTS: Final = (
    "pck_crl_issuer_chain",
    "tcb_info_issuer_chain",
    "tcb_info",
    "qe_identity_issuer_chain",
    "qe_identity",
)
# The chains among them: of who signed the PCK's CRL, the TCB info and the QE identity.
ISSUER_CHAINS: Final = tuple(name for name in _TEXTS if name.endswith("_issuer_chain"))
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FMSPC: Final = re.compile(r"[0-9A-Fa-f]{12}")
# 14 to 19 KB are usual; a revocation list may grow.
COLLATERAL_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Collateral:
    """Collateral for one TEE ("SGX" or "TDX") and one kind of processor (FMSPC, 6 bytes).

    It holds from `valid_from` to `valid_until`. `issued_at` is when the oldest of TCB info, QE
    identity and PCK CRL was made; Intel renews these every 30 days. The root's CRL lives a year and
    counts for `valid_until` only.
    """

    tee: str
    fmspc: bytes
    issued_at: datetime
    valid_from: datetime
    valid_until: datetime
    texts: Mapping[str, str] = field(repr=False)
    blobs: Mapping[str, bytes] = field(repr=False)
    parsed: Any = field(repr=False, compare=False)

    def is_current(self, now: datetime) -> bool:
        """True inside its validity, which does not include its last second."""
        return self.valid_from <= now < self.valid_until

    def value(self) -> cbor.Value:
        """As a map for a report."""
        value: dict[int | str, cbor.Value] = {}
        value.update(self.texts)
        value.update(self.blobs)
        return value


def parse_collateral(content: bytes, name: str) -> Collateral:
    """The collateral in JSON; `name` names the file in the error, a `MalformedError`."""
    if len(content) > COLLATERAL_BYTES_MAX:
        raise _malformed(name, f"at most {COLLATERAL_BYTES_MAX} bytes", f"{len(content)}")
    fields = _json_object(content, name)
    texts = {key: fields.get(key) for key in _TEXTS}
    blobs: dict[str, object] = {}
    for key in _BYTES:
        digits = fields.get(key)
        try:
            blobs[key] = bytes.fromhex(digits) if isinstance(digits, str) else None
        except ValueError as error:
            raise _malformed(name, f"hexadecimal digits as {key}", "something else") from error
    return _collateral(texts, blobs, name)


def collateral_of_value(value: cbor.Value, name: str) -> Collateral:
    """The collateral in a report. Raises `MalformedError`."""
    if not isinstance(value, dict) or set(value) != {*_TEXTS, *_BYTES}:
        raise _malformed(name, "a map of the nine parts", "something else")
    return _collateral(
        {key: value[key] for key in _TEXTS}, {key: value[key] for key in _BYTES}, name
    )


def _collateral(texts: Mapping[str, object], blobs: Mapping[str, object], name: str) -> Collateral:
    checked_texts: dict[str, str] = {}
    for key, text in texts.items():
        if not isinstance(text, str) or not _is_unicode(text):
            raise _malformed(name, f"a text as {key}", "something else")
        checked_texts[key] = text
    checked_blobs: dict[str, bytes] = {}
    for key, blob in blobs.items():
        if not isinstance(blob, bytes):
            raise _malformed(name, f"bytes as {key}", "something else")
        checked_blobs[key] = blob
    tcb_info = _json_object(checked_texts["tcb_info"], f"tcb_info of {name}")
    identity = _json_object(checked_texts["qe_identity"], f"qe_identity of {name}")
    issued_1, until_1 = _validity(tcb_info, f"tcb_info of {name}")
    issued_2, until_2 = _validity(identity, f"qe_identity of {name}")
    issued_3, until_3 = _crl_validity(checked_blobs["pck_crl"], f"pck_crl of {name}")
    issued_4, until_4 = _crl_validity(checked_blobs["root_ca_crl"], f"root_ca_crl of {name}")
    tee, fmspc = tcb_info.get("id"), tcb_info.get("fmspc")
    if tee not in ("SGX", "TDX"):
        raise _malformed(name, "SGX or TDX as the id of its tcb_info", "something else")
    if not isinstance(fmspc, str) or not _FMSPC.fullmatch(fmspc):
        raise _malformed(name, "12 hexadecimal digits as its fmspc", "something else")
    return Collateral(
        tee=tee,
        fmspc=bytes.fromhex(fmspc),
        issued_at=min(issued_1, issued_2, issued_3),
        valid_from=max(issued_1, issued_2, issued_3, issued_4),
        valid_until=min(until_1, until_2, until_3, until_4),
        texts=checked_texts,
        blobs=checked_blobs,
        parsed=dcap_qvl.QuoteCollateralV3(**checked_texts, **checked_blobs),
    )


def _json_object(content: bytes | str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _malformed(name, "JSON", "something else") from error
    if not isinstance(value, dict):
        raise _malformed(name, "a JSON object", "something else")
    return value


def _validity(content: Mapping[str, object], name: str) -> tuple[datetime, datetime]:
    return _moment(content.get("issueDate"), name), _moment(content.get("nextUpdate"), name)


def _moment(value: object, name: str) -> datetime:
    if not isinstance(value, str) or not _DATE.fullmatch(value) or not value.isascii():
        raise _malformed(name, "issueDate and nextUpdate as YYYY-MM-DDThh:mm:ssZ", "others")
    try:
        return datetime.fromisoformat(value[:-1]).replace(tzinfo=UTC)
    except ValueError as error:
        raise _malformed(name, "a date that exists", value) from error


def _crl_validity(content: bytes, name: str) -> tuple[datetime, datetime]:
    try:
        crl = x509.load_der_x509_crl(content)
        issued, until = crl.last_update_utc, crl.next_update_utc
    except (ValueError, x509.InvalidVersion) as error:
        raise _malformed(name, "a revocation list in DER", "something else") from error
    if until is None:
        raise _malformed(name, "a revocation list with an end", "one without")
    return issued, until


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which has no encoding.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _malformed(name: str, expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in {name}, got {actual}; fetch Intel's collateral again"
    )
