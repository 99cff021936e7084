"""Reports through Linux's configfs-tsm, the one interface of TDX, SEV-SNP and Arm CCA guests.

Linux, Documentation/ABI/testing/configfs-tsm-report (since 6.7; `privlevel_floor` and the service
attributes since 6.10). An entry is a folder that one makes; a write of `inblob` or of an option
raises `generation` by one, and a read of `outblob` has the report made. configfs hands a binary
attribute to the driver when the file is closed, and tells nobody when the driver refuses it: so
`generation` is compared after the writes as well as after the reads.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from avow.errors import UnavailableError

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
INBLOB_BYTES_MAX: Final = 64
# The kernel's TSM_REPORT_OUTBLOB_MAX is 32 KiB, and 16 MiB in later ones; nothing that avow can
# carry is larger than this.
_BLOB_BYTES_MAX: Final = 64 * 1024
_PRIVLEVEL_MAX: Final = 3

_ADVICE: Final = {
    errno.ENOENT: "use Linux 6.7 or newer, mount configfs and load the guest's TSM driver",
    errno.EACCES: "run as root, or give the user permission to write there",
    errno.EPERM: "run as root, or give the user permission to write there",
    errno.ENXIO: "load the guest's TSM driver (tdx_guest, sev_guest or arm_cca_guest)",
    errno.EBUSY: "another program uses the interface: try again",
    errno.EFBIG: "the report is larger than this kernel can carry: update the kernel",
    errno.EINVAL: "the driver refused the request: see the kernel's log",
    errno.ETIMEDOUT: "the host does not answer: on TDX, check its quote generation service",
    errno.EIO: "the host does not answer: on TDX, check its quote generation service",
}


class TsmFiles(Protocol):
    """The file operations that are needed, so that a test can answer as the kernel would."""

    def make_folder(self, path: Path) -> None:
        """mkdir. Raises `OSError`."""

    def remove_folder(self, path: Path) -> None:
        """rmdir, with the attributes still in it, as configfs has it. Raises `OSError`."""

    def write(self, path: Path, content: bytes) -> None:
        """Opens, writes and closes an existing file. Raises `OSError`."""

    def read(self, path: Path) -> bytes:
        """The content of a file, at most 64 KiB and one byte. Raises `OSError`."""


class KernelFiles:
    """The kernel's own."""

    def make_folder(self, path: Path) -> None:
        """See `TsmFiles`."""
        path.mkdir()

    def remove_folder(self, path: Path) -> None:
        """See `TsmFiles`."""
        path.rmdir()

    def write(self, path: Path, content: bytes) -> None:
        """See `TsmFiles`. One write: an attribute takes all of its value at once."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, content)
        finally:
            os.close(descriptor)
        if written != len(content):
            raise OSError(errno.EIO, f"wrote {written} B of {len(content)} B", str(path))

    def read(self, path: Path) -> bytes:
        """See `TsmFiles`."""
        with path.open("rb", buffering=0) as file:
            content = b""
            while len(content) <= _BLOB_BYTES_MAX:
                part = file.read(_BLOB_BYTES_MAX + 1 - len(content))
                if not part:
                    break
                content += part
        return content


@dataclass(frozen=True, slots=True)
class TsmReport:
    """`outblob` is the report; `auxblob` (certificates on SEV-SNP) is empty where there is none."""

    provider: str
    outblob: bytes
    auxblob: bytes


class TsmReports:
    """Asks for reports; each in an entry of its own, which is removed again."""

    def __init__(self, root: Path = REPORTS, files: TsmFiles | None = None) -> None:
        self._root = root
        self._files: TsmFiles = KernelFiles() if files is None else files

    def report(self, provider: str, inblob: bytes, *, privlevel: int | None = None) -> TsmReport:
        """The report over `inblob` (1 to 64 bytes) by the driver `provider`, such as "tdx_guest".

        `privlevel` (0 to 3) is the VMPL on SEV-SNP; None leaves the driver's default. Raises
        `UnavailableError`, also when another program wrote to the entry in between.
        """
        if not 0 < len(inblob) <= INBLOB_BYTES_MAX:
            raise UnavailableError(
                f"expected 1 to {INBLOB_BYTES_MAX} bytes for the report, got {len(inblob)}; "
                f"report this"
            )
        if privlevel is not None and not 0 <= privlevel <= _PRIVLEVEL_MAX:
            raise UnavailableError(
                f"expected a privilege level from 0 to {_PRIVLEVEL_MAX}, got {privlevel}; "
                f"change the configuration"
            )
        entry = self._root / f"avow-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            self._files.make_folder(entry)
            try:
                return self._report_in(entry, provider, inblob, privlevel)
            finally:
                self._files.remove_folder(entry)
        except OSError as error:
            raise _unavailable(error, entry) from error

    def _report_in(
        self, entry: Path, provider: str, inblob: bytes, privlevel: int | None
    ) -> TsmReport:
        actual = self._text(entry / "provider")
        if actual != provider:
            raise UnavailableError(
                f"expected the report driver {provider} in {self._root}, got {actual[:80]!r}; "
                f"choose the platform that `avow tee` shows as present"
            )
        generation = self._generation(entry)
        if privlevel is not None:
            self._files.write(entry / "privlevel", str(privlevel).encode())
            generation += 1
        self._files.write(entry / "inblob", inblob)
        generation += 1
        self._expect_generation(entry, generation)
        outblob = self._blob(entry / "outblob")
        auxblob = self._optional_blob(entry / "auxblob")
        self._expect_generation(entry, generation)
        if not outblob:
            raise UnavailableError(
                f"expected a report in {entry / 'outblob'}, got nothing; see the kernel's log"
            )
        return TsmReport(actual, outblob, auxblob)

    def _expect_generation(self, entry: Path, expected: int) -> None:
        actual = self._generation(entry)
        if actual != expected:
            raise UnavailableError(
                f"expected the generation {expected} in {entry}, got {actual}: the driver "
                "refused a value, or another program wrote there; try again, and check who "
                "has access"
            )

    def _generation(self, entry: Path) -> int:
        text = self._text(entry / "generation")
        if not (text.isascii() and text.isdecimal()):
            raise UnavailableError(
                f"expected a number in {entry / 'generation'}, got {text[:80]!r}; check that "
                "configfs is mounted there"
            )
        return int(text[:20])

    def _text(self, path: Path) -> str:
        return self._files.read(path).decode("ascii", "replace").strip()

    def _blob(self, path: Path) -> bytes:
        content = self._files.read(path)
        if len(content) > _BLOB_BYTES_MAX:
            raise UnavailableError(
                f"expected at most {_BLOB_BYTES_MAX} bytes in {path}, got more; report this"
            )
        return content

    def _optional_blob(self, path: Path) -> bytes:
        try:
            return self._blob(path)
        except FileNotFoundError:
            return b""


def _unavailable(error: OSError, entry: Path) -> UnavailableError:
    advice = _ADVICE.get(error.errno or 0, "see the kernel's log")
    return UnavailableError(
        f"expected a report through {entry.parent}, got {error.strerror or error}; {advice}"
    )
