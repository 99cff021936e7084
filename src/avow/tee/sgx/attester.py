"""The attesting side of SGX: Gramine's pseudo-files in /dev/attestation.

Gramine's documentation, "Attestation and Secret Provisioning", section "Low-level
/dev/attestation interface": `attestation_type` says "dcap" where the manifest asks for it; 64 bytes
are written to `user_report_data`, and `quote` gives the quote over them. The enclave is measured as
a whole, with the hashes of all its trusted files in the manifest: there is no register to extend.
"""

from __future__ import annotations

import errno
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.intel.collateral import Collateral
from avow.tee.intel.quote import without_padding
from avow.tee.sgx.report import FORMAT, decode_enclave_report, decode_sgx_quote, encode_report

ATTESTATION: Final = Path("/dev/attestation")

_ADVICE: Final = {
    errno.ENOENT: 'run in Gramine, with `sgx.remote_attestation = "dcap"` in the manifest',
    errno.EACCES: "let the process read and write in /dev/attestation",
    errno.EPERM: "let the process read and write in /dev/attestation",
}


class PseudoFiles(Protocol):
    """The file operations that are needed."""

    def write(self, path: Path, content: bytes) -> None:
        """Opens, writes and closes an existing file. Raises `OSError`."""

    def read(self, path: Path) -> bytes:
        """The content of a file. Raises `OSError`."""


class SgxAttester:
    """Asks Gramine for quotes."""

    platform = "sgx"

    def __init__(
        self,
        files: PseudoFiles,
        root: Path = ATTESTATION,
        collateral: Callable[[], Collateral] | None = None,
    ) -> None:
        """`collateral` gives what goes with each report.

        Raises `UnavailableError` outside of an enclave.
        """
        self._files = files
        self._root = root
        self._collateral = collateral
        kind = self._read("attestation_type").strip()
        if kind != b"dcap":
            raise UnavailableError(
                f"expected the attestation type dcap in {root / 'attestation_type'}, got "
                f"{kind[:20]!r}; set `sgx.remote_attestation` to dcap in Gramine's manifest"
            )

    def measure(self, workload: Workload) -> None:
        """Nothing: see above."""

    def quote(self, report_data: ReportData) -> bytes:
        """The report over `report_data`."""
        content = report_data.content
        try:
            self._files.write(self._root / "user_report_data", content)
        except OSError as error:
            raise _unavailable(error, self._root / "user_report_data") from error
        try:
            quote = without_padding(self._read("quote"), FORMAT)
            signed = decode_enclave_report(decode_sgx_quote(quote).body).report_data
        except MalformedError as error:
            raise UnavailableError(
                f"expected a quote of version 3 from {self._root / 'quote'}, got something else "
                f"({error}); see Gramine's log"
            ) from error
        if not hmac.compare_digest(signed, content):
            raise UnavailableError(
                "expected a quote over avow's report data, got one over other data; check that "
                "nothing else in the enclave uses /dev/attestation"
            )
        collateral = None if self._collateral is None else self._collateral()
        return encode_report(quote, collateral)

    def _read(self, name: str) -> bytes:
        try:
            return self._files.read(self._root / name)
        except OSError as error:
            raise _unavailable(error, self._root / name) from error


def _unavailable(error: OSError, path: Path) -> UnavailableError:
    advice = _ADVICE.get(error.errno or 0, "see Gramine's log, and that its AESM daemon runs")
    return UnavailableError(f"expected Gramine's {path}, got {error.strerror or error}; {advice}")
