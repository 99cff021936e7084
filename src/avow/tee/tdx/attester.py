"""The attesting side of TDX: quotes through configfs-tsm, RTMR3 through Linux's tdx_guest.

Linux 6.16 and newer give the registers as files: Documentation/ABI/testing/
sysfs-devices-virtual-misc-tdx_guest, `measurements/rtmr3:sha384`. A read gives 48 bytes, a write of
48 bytes extends. An older kernel has no such file, and then nothing is extended and no log goes
with the report: the module's digest is in avow's claims only.

The log outlives the process, since the register does; it is kept in memory (/run), as it has to end
with the boot. Nothing trusts it: the register says whether it is complete.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.configfs_tsm import TsmReports
from avow.tee.intel.collateral import Collateral
from avow.tee.intel.quote import without_padding
from avow.tee.tdx import rtmr
from avow.tee.tdx.report import FORMAT, decode_td_report, decode_tdx_quote, encode_report

RTMR3: Final = Path("/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384")
LOG_FILE: Final = Path("/run/avow/tdx-rtmr3.cbor")
PROVIDER: Final = "tdx_guest"


class RunTimeRegister:
    """RTMR3 and the log of what avow has extended into it since the boot."""

    def __init__(
        self,
        register: Path = RTMR3,
        log_file: Path = LOG_FILE,
        write: Callable[[bytes], None] | None = None,
    ) -> None:
        """`write` extends 48 bytes; a test gives one of its own in place of the kernel's."""
        self._register = register
        self._log_file = log_file
        self._write = self._write_register if write is None else write

    def extend(self, workload: Workload) -> None:
        """Extends a workload.

        Nothing happens where the kernel has no such register, where something else has extended
        it, or where the log is full. Raises `UnavailableError` when a write fails.
        """
        try:
            log = self._known()
            if log is None or len(log) + 2 * len(rtmr.NAMES) > rtmr.EVENTS_MAX:
                return
            for event in (*rtmr.missing(log, workload), *rtmr.events_of(workload)):
                log = (*log, event)
                # First the log: what is extended and not written down explains nothing for good.
                self._keep(log)
                self._write(event.extended())
        except OSError as error:
            raise UnavailableError(
                f"expected to extend {self._register} and to keep the log in {self._log_file}, "
                f"got {error.strerror or error}; run as root, or give the user access to both"
            ) from error

    def kept(self) -> rtmr.Log | None:
        """The log as it is kept, explaining the register or not; None where it is no log."""
        try:
            return rtmr.decode_kept_log(self._log_file.read_bytes())
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise UnavailableError(
                f"expected the log of RTMR3 in {self._log_file}, got {error.strerror}; "
                f"run as root, or give the user access to it"
            ) from error

    def _known(self) -> rtmr.Log | None:
        """The log, if it explains the register; None where there is no register or no such log."""
        try:
            register = self._register.read_bytes()
        except FileNotFoundError:
            return None
        kept = self.kept()
        if kept is None:
            return None
        # A run that ended between the log and the register has left one event too many.
        candidates = (kept, kept[:-1])
        return next((log for log in candidates if rtmr.explains(log, register)), None)

    def _keep(self, log: rtmr.Log) -> None:
        self._log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._log_file.with_suffix(".new")
        temporary.write_bytes(rtmr.encode_log(log))
        temporary.replace(self._log_file)

    def _write_register(self, content: bytes) -> None:
        # One write at offset 0, or the kernel refuses it.
        descriptor = os.open(self._register, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)


class TdxAttester:
    """Asks the TDX module, through the kernel and the host's quoting enclave."""

    platform = "tdx"

    def __init__(
        self,
        reports: TsmReports,
        register: RunTimeRegister,
        collateral: Callable[[], Collateral] | None = None,
    ) -> None:
        """`collateral` gives what goes with each report."""
        self._reports = reports
        self._register = register
        self._collateral = collateral
        self._workload: Workload | None = None

    def measure(self, workload: Workload) -> None:
        """Extends RTMR3 where the kernel can."""
        self._register.extend(workload)
        self._workload = workload

    def quote(self, report_data: ReportData) -> bytes:
        """The report over `report_data`."""
        content = report_data.content
        outblob = self._reports.report(PROVIDER, content).outblob
        try:
            quote = without_padding(outblob, FORMAT)
            body = decode_td_report(decode_tdx_quote(quote).body)
        except MalformedError as error:
            raise UnavailableError(
                "expected a quote of version 4 or 5 from the kernel, got something else "
                f"({error}); check that the host runs Intel's quote generation service"
            ) from error
        if not hmac.compare_digest(body.report_data, content):
            raise UnavailableError(
                "expected a quote over avow's report data, got one over other data; check "
                "who else has access to configfs-tsm"
            )
        collateral = None if self._collateral is None else self._collateral()
        return encode_report(quote, collateral, self._log(body.rtmrs[3]))

    def _log(self, register: bytes) -> rtmr.Log | None:
        """The log, if it explains the quoted register and says that what runs here ran last.

        Another program that avow runs in this trust domain makes it say something else.
        """
        if self._workload is None:
            return None
        log = self._register.kept()
        if log is None or not rtmr.explains(log, register):
            return None
        return log if rtmr.ends_with(log, self._workload) else None
