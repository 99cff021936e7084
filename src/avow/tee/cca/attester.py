"""Asks the realm management monitor for tokens, through configfs-tsm.

Linux, drivers/virt/coco/arm-cca-guest (6.13 and newer): provider `arm_cca_guest`, a challenge of
32 to 64 bytes, the token as it is. A realm's extensible measurements (REMs) can be extended through
the RSI, which Linux offers to no program: `measure` does nothing.
"""

from __future__ import annotations

from typing import Final

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.cca.report import parse_token
from avow.tee.configfs_tsm import TsmReports

TSM_PROVIDER: Final = "arm_cca_guest"


class CcaAttester:
    """The attesting side of Arm CCA."""

    def __init__(self, reports: TsmReports) -> None:
        self._reports = reports

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Attester`."""
        return "cca"

    def measure(self, workload: Workload) -> None:
        """See `avow.evidence.roles.Attester`. The kernel offers no register for it."""

    def quote(self, report_data: ReportData) -> bytes:
        """See `avow.evidence.roles.Attester`."""
        token = self._reports.report(TSM_PROVIDER, report_data.content).outblob
        try:
            challenge = parse_token(token).realm.challenge
        except MalformedError as error:
            raise UnavailableError(f"{error}; the realm management monitor gave this") from error
        if challenge != report_data.content:
            raise UnavailableError(
                "expected a token over the data that was asked for, got one over other data; "
                "another program asked at the same time: try again"
            )
        return token
