"""Answers as Linux's configfs-tsm does (drivers/virt/coco/guest/report.c), in memory.

What it shares with the kernel, as tests rely on it: entries can only be made while a driver is
registered; `inblob` is handed over at close and a refusal is not reported; every accepted write
raises `generation`; a read of `outblob` or `auxblob` without `inblob` is EINVAL; the report is made
once a generation; attributes are write-only or read-only; an entry with attributes can be removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# From inblob and privilege level to outblob and auxblob. May raise OSError, as a driver would.
Driver = Callable[[bytes, int], tuple[bytes, bytes]]

_WRITABLE = frozenset({"inblob", "privlevel"})
_READABLE = frozenset({"outblob", "auxblob", "provider", "generation", "privlevel_floor"})


@dataclass
class _Entry:
    generation: int = 0
    inblob: bytes = b""
    privlevel: int = 0
    made_at: int = -1
    blobs: tuple[bytes, bytes] = (b"", b"")


@dataclass
class TsmDirectory:
    """Give it to `TsmReports(root, files=...)`, with the same root.

    `hidden` are attributes that the driver does not show. `before_read` runs before each read of an
    attribute, with the entry's path and the attribute's name: a place for another program to write.
    """

    root: Path
    driver: Driver
    provider: str | None
    hidden: frozenset[str] = frozenset()
    privlevel_floor: int = 0
    before_read: Callable[[Path, str], None] | None = None
    entries: dict[Path, _Entry] = field(default_factory=dict)
    made: int = 0

    def make_folder(self, path: Path) -> None:
        """mkdir."""
        if path.parent != self.root:
            raise _os_error(errno.ENOENT, path)
        if path in self.entries:
            raise _os_error(errno.EEXIST, path)
        if self.provider is None:
            raise _os_error(errno.ENXIO, path)
        self.entries[path] = _Entry()
        self.made += 1

    def remove_folder(self, path: Path) -> None:
        """rmdir."""
        self._entry(path)
        del self.entries[path]

    def write(self, path: Path, content: bytes) -> None:
        """open, write and close."""
        entry = self._attribute(path, _WRITABLE)
        if path.name == "inblob":
            if len(content) > 64:
                raise _os_error(errno.EFBIG, path)
            entry.inblob = content
        else:
            level = int(content)
            if not self.privlevel_floor <= level <= 3:
                raise _os_error(errno.EINVAL, path)
            entry.privlevel = level
        entry.generation += 1

    def read(self, path: Path) -> bytes:
        """open and read to the end."""
        entry = self._attribute(path, _READABLE)
        if self.before_read is not None:
            self.before_read(path.parent, path.name)
        if path.name == "generation":
            return b"%d\n" % entry.generation
        if path.name == "provider":
            return f"{self.provider}\n".encode()
        if path.name == "privlevel_floor":
            return b"%d\n" % self.privlevel_floor
        if not entry.inblob:
            raise _os_error(errno.EINVAL, path)
        if entry.made_at != entry.generation:
            entry.blobs = self.driver(entry.inblob, entry.privlevel)
            entry.made_at = entry.generation
        return entry.blobs[0 if path.name == "outblob" else 1]

    def _entry(self, path: Path) -> _Entry:
        entry = self.entries.get(path)
        if entry is None:
            raise _os_error(errno.ENOENT, path)
        return entry

    def _attribute(self, path: Path, allowed: frozenset[str]) -> _Entry:
        entry = self._entry(path.parent)
        if path.name in self.hidden or path.name not in _WRITABLE | _READABLE:
            raise _os_error(errno.ENOENT, path)
        if path.name not in allowed:
            raise _os_error(errno.EACCES, path)
        return entry


def _os_error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))
