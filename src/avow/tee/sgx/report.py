"""The report of SGX: deterministic CBOR of a quote and, where it is stapled, Intel's collateral.

    { "quote": bytes, a quote of version 3, "collateral": map (optional) }

The quote's envelope: `avow.tee.intel.quote`. Its body is the enclave report: Intel SGX ECDSA Quote
Library Reference for DCAP (API), appendix A.4, "Enclave Report Body", with the fields that Intel's
Software Developer's Manual, volume 3D, table "REPORT Structure", gives in place of reserved ones:

      0 CPUSVN 16 | 16 MISCSELECT 4 | 20 reserved 12 | 32 ISVEXTPRODID 16 | 48 ATTRIBUTES 16
     64 MRENCLAVE 32 | 96 reserved 32 | 128 MRSIGNER 32 | 160 reserved 32 | 192 CONFIGID 64
    256 ISVPRODID 2 | 258 ISVSVN 2 | 260 CONFIGSVN 2 | 262 reserved 42 | 304 ISVFAMILYID 16
    320 REPORTDATA 64
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from avow.errors import Check, MalformedError
from avow.evidence import cbor
from avow.tee.intel.collateral import Collateral, collateral_of_value
from avow.tee.intel.quote import Quote, decode_quote, malformed

SPEC: Final = "docs/platforms/sgx.md"
FORMAT: Final = Check("SGX1", "the SGX report is well-formed", SPEC)

_RESERVED: Final = (slice(20, 32), slice(96, 128), slice(160, 192), slice(262, 304))
_DEBUG: Final = 0x02


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """The body of the quote. Measurements are 32 bytes, `attributes` 16, `config_id` 64."""

    attributes: bytes
    mrenclave: bytes
    mrsigner: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes

    @property
    def debug(self) -> bool:
        """ATTRIBUTES.DEBUG: the host can read and write the enclave's memory."""
        return bool(self.attributes[0] & _DEBUG)


@dataclass(frozen=True, slots=True)
class SgxReport:
    """`collateral` is None where none is stapled."""

    quote: Quote
    collateral: Collateral | None

    @property
    def enclave(self) -> EnclaveReport:
        """The quote's body. Raises `MalformedError`."""
        return decode_enclave_report(self.quote.body)


def encode_report(quote: bytes, collateral: Collateral | None) -> bytes:
    """The report as bytes."""
    fields: dict[int | str, cbor.Value] = {"quote": quote}
    if collateral is not None:
        fields["collateral"] = collateral.value()
    return cbor.encode(fields)


def decode_report(content: bytes) -> SgxReport:
    """The report that `content` is. Raises `MalformedError`; nothing is verified."""
    try:
        fields = cbor.decode(content, "SGX report")
        if not isinstance(fields, dict) or not {"quote"} <= set(fields) <= {"quote", "collateral"}:
            raise malformed(FORMAT, "a quote and at most collateral", "something else")
        collateral = None
        if "collateral" in fields:
            collateral = collateral_of_value(fields["collateral"], "the SGX report's collateral")
    except MalformedError as error:
        raise _with_finding(error) from error
    content_of_quote = fields["quote"]
    if not isinstance(content_of_quote, bytes):
        raise malformed(FORMAT, "bytes as the quote", "something else")
    return SgxReport(decode_sgx_quote(content_of_quote), collateral)


def decode_sgx_quote(content: bytes) -> Quote:
    """A quote of version 3. Raises `MalformedError`."""
    quote = decode_quote(content, FORMAT)
    if quote.version != 3:
        raise malformed(FORMAT, "a quote of version 3 from SGX", f"version {quote.version}")
    return quote


def decode_enclave_report(body: bytes) -> EnclaveReport:
    """The enclave report in 384 bytes. Raises `MalformedError`."""
    if len(body) != 384:
        raise malformed(FORMAT, "an enclave report of 384 bytes", f"{len(body)}")
    if any(any(body[part]) for part in _RESERVED):
        raise malformed(FORMAT, "zeros in what the enclave report reserves", "other bytes")
    return EnclaveReport(
        attributes=body[48:64],
        mrenclave=body[64:96],
        mrsigner=body[128:160],
        config_id=body[192:256],
        isv_prod_id=int.from_bytes(body[256:258], "little"),
        isv_svn=int.from_bytes(body[258:260], "little"),
        report_data=body[320:384],
    )


def _with_finding(error: MalformedError) -> MalformedError:
    return error if error.finding is not None else malformed(FORMAT, "an SGX report", str(error))
