"""The verifying side of TDX."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from avow.errors import Check, UntrustedError
from avow.evidence.roles import Authenticated
from avow.tee.intel.collateral import Collateral
from avow.tee.intel.levels import TdxModule
from avow.tee.intel.quote import Quote
from avow.tee.intel.vouching import IntelChecks, Roots, Voucher
from avow.tee.tdx import rtmr
from avow.tee.tdx.report import (
    FORMAT,
    MEASUREMENT_BYTES,
    SPEC,
    TdReport,
    decode_report,
    decode_td_report,
)

COLLATERAL: Final = Check("TDX2", "avow has collateral for the processor", SPEC)
CURRENT: Final = Check("TDX3", "the collateral is valid now", SPEC)
VOUCHED: Final = Check("TDX4", "Intel vouches for the TDX quote", SPEC)
TCB_LEVEL: Final = Check("TDX5", "Intel lists the platform's TCB level", SPEC)
ATTRIBUTES: Final = Check("TDX6", "TDATTRIBUTES have no reserved bit", SPEC)
LOG: Final = Check("TDX7", "the log explains RTMR3", SPEC)
CHECKS: Final = (FORMAT, COLLATERAL, CURRENT, VOUCHED, TCB_LEVEL, ATTRIBUTES, LOG)


class TdxVerifier:
    """Quotes of versions 4 and 5, up to Intel's root."""

    platform = "tdx"

    def __init__(self, roots: Roots | None = None) -> None:
        """Without `roots`: Intel's root, and only the collateral that comes with the evidence."""
        self._voucher = Voucher(
            "TDX",
            Roots() if roots is None else roots,
            IntelChecks(COLLATERAL, CURRENT, VOUCHED, TCB_LEVEL),
        )

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`."""
        decoded = decode_report(report)
        body, authenticated = self._authenticate(decoded.quote, decoded.collateral, now)
        measured: Mapping[str, bytes] = {}
        if decoded.log is not None:
            if not rtmr.explains(decoded.log, body.rtmrs[3]):
                raise UntrustedError.at(
                    LOG,
                    expected=f"a log that leads to {body.rtmrs[3].hex()}",
                    actual=f"one that leads to {rtmr.replayed(decoded.log).hex()}",
                    advice="ask again; if this persists, restart the trust domain",
                )
            measured = rtmr.measured(decoded.log)
        return Authenticated(
            self.platform,
            authenticated.bound,
            authenticated.binding,
            authenticated.claims,
            measured,
        )

    def _authenticate(
        self, quote: Quote, collateral: Collateral | None, now: datetime
    ) -> tuple[TdReport, Authenticated]:
        body = decode_td_report(quote.body)
        module = TdxModule(
            body.tee_tcb_svn, body.tee_tcb_svn_2, body.mrsignerseam, body.seam_attributes
        )
        claims = self._voucher.vouch(quote, module, collateral, now)
        if body.reserved_attributes:
            raise UntrustedError.at(
                ATTRIBUTES,
                expected="TDATTRIBUTES of which every set bit has a meaning",
                actual=f"{body.attributes.hex()}, with the reserved bits "
                f"{', '.join(map(str, body.reserved_attributes))}",
                advice="use a release of avow that knows this TDX module",
            )
        return body, Authenticated(
            self.platform,
            body.report_data,
            "report data",
            {
                **claims,
                "debug": body.debug,
                "tdx.mrtd": body.mrtd,
                "tdx.mrconfigid": body.mrconfigid,
                "tdx.mrowner": body.mrowner,
                "tdx.mrownerconfig": body.mrownerconfig,
                **{f"tdx.rtmr.{number}": value for number, value in enumerate(body.rtmrs)},
                "tdx.mrseam": body.mrseam,
                "tdx.mrsignerseam": body.mrsignerseam,
                "tdx.attributes": body.attributes,
                "tdx.sept_ve_disable": body.sept_ve_disable,
                "tdx.migratable": body.migratable,
                # A TD report 1.0 has no such field: the TDX module writes one only for a domain
                # without a service TD (TDG.MR.REPORT, REPORTTYPE.VERSION).
                "tdx.mrservicetd": body.mrservicetd or bytes(MEASUREMENT_BYTES),
                "tdx.xfam": body.xfam,
            },
        )
