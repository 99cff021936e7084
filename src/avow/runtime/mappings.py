"""Which files are mapped as code: /proc/self/maps, proc_pid_maps(5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from avow.errors import MalformedError

MAPS: Final = "/proc/self/maps"
_FIELDS: Final = 6


def mapped_files() -> dict[str, int]:
    """The files of this process that are mapped as code, with their inodes."""
    with open(MAPS, "rb") as file:
        return dict(code_mappings(file.read()))


def code_mappings(content: bytes) -> Iterator[tuple[str, int]]:
    """Path and inode of every executable mapping of a file in such a text.

    A file that was unlinked has ` (deleted)` behind its path, as the kernel writes it. Code that
    was made in memory, as wasmtime does, has no file. Raises `MalformedError`.
    """
    for line in content.splitlines():
        fields = line.split(maxsplit=_FIELDS - 1)
        if len(fields) < _FIELDS - 1:
            raise MalformedError(f"expected a line of {MAPS}, got {line!r}; report this")
        if len(fields) == _FIELDS and b"x" in fields[1] and not fields[5].startswith(b"["):
            yield fields[5].decode("utf-8", "surrogateescape"), int(fields[4])
