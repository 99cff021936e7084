"""Files that an operator names: read whole, or refused in one sentence that names the file."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from avow.errors import MalformedError, UnavailableError

# Certificates, keys, revocation lists, users and configurations are far smaller. A wrong path to a
# device or a core dump must not fill the memory.
FILE_BYTES_MAX = 64 * 1024 * 1024


Read = Callable[[Path, str], bytes]
"""What `read_named_file` does."""


class FilesReadOnce:
    """Gives every reader of one file the same bytes, whatever happens to the file meanwhile.

    What a configuration names is measured and used: with two readings, who owns the disk could have
    one thing measured and another used.
    """

    def __init__(self, below: Read | None = None) -> None:
        """`below` reads a file the first time, `read_named_file` without it."""
        self._below = below or read_named_file
        self._contents: dict[Path, bytes] = {}

    def __call__(self, path: Path, what: str) -> bytes:
        """As `read_named_file`."""
        content = self._contents.get(path)
        if content is None:
            content = self._contents[path] = self._below(path, what)
        return content


def read_named_file(path: Path, what: str) -> bytes:
    """The bytes of `path`; `what` says what the file is for, such as "certificate".

    Raises `UnavailableError` when it cannot be read and `MalformedError` when it is too large.
    """
    try:
        # Before it is opened: to open a pipe that nobody writes to would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnavailableError(
                f"expected a {what} file, got {path}, which is not a regular file; correct the path"
            )
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise UnavailableError(
            f"expected a {what} file at {path}, got no such file; create it or correct the path"
        ) from error
    except PermissionError as error:
        raise UnavailableError(
            f"expected a readable {what} file, got no permission to read {path}; "
            f"let the user that runs avow read it (chown or chmod)"
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"expected a readable {what} file, got {error.strerror!r} for {path}; correct the path"
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise MalformedError(
            f"expected a {what} file of at most {FILE_BYTES_MAX} bytes, got more in {path}; "
            f"correct the path"
        )
    return content


def read_named_text(path: Path, what: str, *, read: Read = read_named_file) -> str:
    """Like `read_named_file`, for a file that has to be UTF-8."""
    content = read(path, what)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(
            f"expected UTF-8 in the {what} file {path}, got invalid bytes at offset "
            f"{error.start}; save it as UTF-8"
        ) from error


def readable_by_others(path: Path) -> bool:
    """True when every user of the machine may read the file: worth a warning for secrets."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
