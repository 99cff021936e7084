"""The verifying side of SGX."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from avow.errors import Check
from avow.evidence.roles import Authenticated
from avow.tee.intel.vouching import IntelChecks, Roots, Voucher
from avow.tee.sgx.report import FORMAT, SPEC, decode_report

COLLATERAL: Final = Check("SGX2", "avow has collateral for the processor", SPEC)
CURRENT: Final = Check("SGX3", "the collateral is valid now", SPEC)
VOUCHED: Final = Check("SGX4", "Intel vouches for the SGX quote", SPEC)
TCB_LEVEL: Final = Check("SGX5", "Intel lists the processor's TCB level", SPEC)
CHECKS: Final = (FORMAT, COLLATERAL, CURRENT, VOUCHED, TCB_LEVEL)


class SgxVerifier:
    """Quotes of version 3, up to Intel's root."""

    platform = "sgx"

    def __init__(self, roots: Roots | None = None) -> None:
        """Without `roots`: Intel's root, and only the collateral that comes with the evidence."""
        self._voucher = Voucher(
            "SGX",
            Roots() if roots is None else roots,
            IntelChecks(COLLATERAL, CURRENT, VOUCHED, TCB_LEVEL),
        )

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`."""
        decoded = decode_report(report)
        enclave = decoded.enclave
        claims = self._voucher.vouch(decoded.quote, None, decoded.collateral, now)
        return Authenticated(
            self.platform,
            enclave.report_data,
            "report data",
            {
                **claims,
                "debug": enclave.debug,
                "sgx.mrenclave": enclave.mrenclave,
                "sgx.mrsigner": enclave.mrsigner,
                "sgx.isv_prod_id": enclave.isv_prod_id,
                "sgx.isv_svn": enclave.isv_svn,
                "sgx.attributes": enclave.attributes,
                "sgx.config_id": enclave.config_id,
            },
        )
