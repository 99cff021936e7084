"""The report of TDX: deterministic CBOR of a quote and what goes with it.

    { "quote": bytes, a quote of version 4 or 5,
      "collateral": map (optional), as in `avow.tee.intel.collateral`,
      "log": array (optional), as in `avow.tee.tdx.rtmr` }

The quote's envelope: `avow.tee.intel.quote`. Its body is a TD report: Intel TDX DCAP Quoting
Library API, appendix A.3, "TD Quote Body":

      0 TEETCBSVN 16 | 16 MRSEAM 48 | 64 MRSIGNERSEAM 48 | 112 SEAMATTRIBUTES 8
    120 TDATTRIBUTES 8 | 128 XFAM 8 | 136 MRTD 48 | 184 MRCONFIGID 48 | 232 MROWNER 48
    280 MROWNERCONFIG 48 | 328 RTMR0 to RTMR3 48 each | 520 REPORTDATA 64
    in a TD report 1.5 also: 584 TEETCBSVN2 16 | 600 MRSERVICETD 48
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from avow.errors import Check, MalformedError
from avow.evidence import cbor
from avow.tee.intel.collateral import Collateral, collateral_of_value
from avow.tee.intel.quote import (
    TD_REPORT_10_BYTES,
    TD_REPORT_15_BYTES,
    Quote,
    decode_quote,
    malformed,
)
from avow.tee.tdx.rtmr import Log, log_of_value, log_value

SPEC: Final = "docs/platforms/tdx.md"
FORMAT: Final = Check("TDX1", "the TDX report is well-formed", SPEC)

MEASUREMENT_BYTES: Final = 48

_NAMES: Final = {"quote", "collateral", "log"}
# Bits of TDATTRIBUTES: Intel TDX Module ABI specification, ATTRIBUTES.
_SEPT_VE_DISABLE: Final = 28
_MIGRATABLE: Final = 29
_RESERVED: Final = (1, 2, 3, *range(7, 16), *range(23, 27), *range(32, 62))


@dataclass(frozen=True, slots=True)
class TdReport:
    """The body of the quote: security versions of 16 bytes, measurements of 48, attributes and
    XFAM of 8.

    `tee_tcb_svn_2` and `mrservicetd` are None in a TD report 1.0, which has no room for them.
    """

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    attributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes | None
    mrservicetd: bytes | None

    @property
    def debug(self) -> bool:
        """A bit of TDATTRIBUTES.TUD (debugging, profiling, or one still reserved): the host can
        look inside (Intel TDX Module ABI specification, ATTRIBUTES)."""
        return self.attributes[0] != 0

    @property
    def sept_ve_disable(self) -> bool:
        """The host cannot make the guest's kernel take #VE where it takes a page away."""
        return self._attribute(_SEPT_VE_DISABLE)

    @property
    def migratable(self) -> bool:
        """A migration TD may move the domain to another machine."""
        return self._attribute(_MIGRATABLE)

    @property
    def reserved_attributes(self) -> tuple[int, ...]:
        """The set bits of TDATTRIBUTES that have no meaning."""
        return tuple(bit for bit in _RESERVED if self._attribute(bit))

    def _attribute(self, bit: int) -> bool:
        return bool(int.from_bytes(self.attributes, "little") >> bit & 1)


@dataclass(frozen=True, slots=True)
class TdxReport:
    """`collateral` and `log` are None where they are not there."""

    quote: Quote
    collateral: Collateral | None
    log: Log | None


def encode_report(quote: bytes, collateral: Collateral | None, log: Log | None) -> bytes:
    """The report as bytes."""
    fields: dict[int | str, cbor.Value] = {"quote": quote}
    if collateral is not None:
        fields["collateral"] = collateral.value()
    if log is not None:
        fields["log"] = log_value(log)
    return cbor.encode(fields)


def decode_report(content: bytes) -> TdxReport:
    """The report that `content` is. Raises `MalformedError`; nothing is verified."""
    try:
        fields = cbor.decode(content, "TDX report")
        if not isinstance(fields, dict) or not {"quote"} <= set(fields) <= _NAMES:
            raise malformed(FORMAT, "a quote and at most collateral and log", "something else")
        collateral = None
        if "collateral" in fields:
            collateral = collateral_of_value(fields["collateral"], "the TDX report's collateral")
    except MalformedError as error:
        raise _with_finding(error) from error
    log = log_of_value(fields["log"], FORMAT) if "log" in fields else None
    content_of_quote = fields["quote"]
    if not isinstance(content_of_quote, bytes):
        raise malformed(FORMAT, "bytes as the quote", "something else")
    return TdxReport(decode_tdx_quote(content_of_quote), collateral, log)


def decode_tdx_quote(content: bytes) -> Quote:
    """A quote of version 4 or 5. Raises `MalformedError`."""
    quote = decode_quote(content, FORMAT)
    if quote.version == 3:
        raise malformed(FORMAT, "a quote of version 4 or 5 from TDX", "version 3")
    return quote


def decode_td_report(body: bytes) -> TdReport:
    """The TD report in 584 or 648 bytes. Raises `MalformedError`."""
    if len(body) not in (TD_REPORT_10_BYTES, TD_REPORT_15_BYTES):
        raise malformed(FORMAT, "a TD report of 584 or 648 bytes", f"{len(body)}")
    late = len(body) == TD_REPORT_15_BYTES
    return TdReport(
        tee_tcb_svn=body[:16],
        mrseam=body[16:64],
        mrsignerseam=body[64:112],
        seam_attributes=body[112:120],
        attributes=body[120:128],
        xfam=body[128:136],
        mrtd=body[136:184],
        mrconfigid=body[184:232],
        mrowner=body[232:280],
        mrownerconfig=body[280:328],
        rtmrs=(body[328:376], body[376:424], body[424:472], body[472:520]),
        report_data=body[520:584],
        tee_tcb_svn_2=body[584:600] if late else None,
        mrservicetd=body[600:648] if late else None,
    )


def _with_finding(error: MalformedError) -> MalformedError:
    return error if error.finding is not None else malformed(FORMAT, "a TDX report", str(error))
