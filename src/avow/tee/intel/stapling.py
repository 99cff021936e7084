"""Collateral from a file that goes with the evidence, read anew when the file changes.

It lives for 30 days and a broker for longer: a timer that replaces the file is enough.
"""

from __future__ import annotations

from pathlib import Path

from avow.errors import AvowError, UnavailableError
from avow.tee.intel.collateral import COLLATERAL_BYTES_MAX, Collateral, parse_collateral


class StapledCollateral:
    """Call it for the collateral. Not to be used by two threads at once, as an attester is not."""

    def __init__(self, path: Path) -> None:
        """Reads the file. Raises `UnavailableError` or `MalformedError`."""
        self._path = path
        self._state = _state(path)
        self._collateral = _read(path)

    def __call__(self) -> Collateral:
        """What the file holds. What cannot be read, such as half of a file, does not count: then it
        is what it held before, and the verifier says whether that will do."""
        try:
            state = _state(self._path)
            if state != self._state:
                self._collateral = _read(self._path)
                self._state = state
        except AvowError:
            return self._collateral
        return self._collateral


def _state(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise _unavailable(path, error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> Collateral:
    try:
        with path.open("rb") as file:
            content = file.read(COLLATERAL_BYTES_MAX + 1)
    except OSError as error:
        raise _unavailable(path, error) from error
    return parse_collateral(content, str(path))


def _unavailable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"expected Intel's collateral in {path}, got {error.strerror}; fetch it with "
        "dcap-qvl, as the page on SGX describes"
    )
