"""Folders that are in the memory of this process and nowhere else, as WASI's host shows them.

A program reads its owner's secrets there, as files. To the vault they are plain folders (nothing
can be written in them) whose host is this module: it answers for descriptors that no system has
given out, and leaves all others to the functions that were there before. A folder is flat.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

FIRST_DESCRIPTOR: Final = 1 << 30
"""Above all that Linux gives out: `fs.nr_open` is 2^20, if nobody has raised it a thousandfold."""

# vault/src/wasi/host.zig: the flag of `open`, and `Facts`.
_OPEN_DIRECTORY: Final = 1
_FACTS: Final = struct.Struct("<IIQQq6q")
_FOLDER_MODE: Final = 0o040500
_FILE_MODE: Final = 0o100400
# No device of the host's has this number.
_DEVICE: Final = (1 << 64) - 1
# linux_dirent64: inode, offset, length of the record, kind; then the name and a zero byte.
_ENTRY: Final = struct.Struct("<QqHB")
_ENTRY_ALIGNMENT: Final = 8
_REGULAR: Final = 8
_NAME_BYTES_MAX: Final = 255

Native = Callable[[str], Callable[..., int]]


@dataclass(slots=True)
class _Folder:
    """Its files in their order, the descriptor of the first, and how far it has been listed."""

    files: Mapping[str, bytes]
    first: int
    listed: int = 0


class MemoryFolders:
    """The folders of one program, by descriptors from `FIRST_DESCRIPTOR` on.

    Each folder and each file has one, and it never changes, so opening and closing them is nothing.
    """

    def __init__(self) -> None:
        self._folders: dict[int, _Folder] = {}
        self._files: dict[int, bytes] = {}
        self._next = FIRST_DESCRIPTOR

    def add(self, files: Mapping[str, bytes]) -> int:
        """The descriptor of a folder with these files; their names have no slash."""
        ordered = dict(sorted(files.items()))
        folder, self._next = self._next, self._next + 1 + len(ordered)
        self._folders[folder] = _Folder(ordered, folder + 1)
        self._files.update(enumerate(ordered.values(), folder + 1))
        return folder

    def functions(self, native: Native) -> dict[str, Callable[..., int]]:
        """For `Wasi.replace`, by name; none for no folder, as they make plain folders slower.
        `native` gives the function that answers for all else."""
        if not self._folders:
            return {}
        own: dict[str, Callable[..., int]] = {
            "open": self._open,
            "close": lambda fd: 0,
            "facts": self._facts,
            "read": self._read,
            "entries": self._entries,
            "rewind": self._rewind,
        }
        return {name: self._choosing(each, native(name)) for name, each in own.items()}

    def _choosing(self, own: Callable[..., int], other: Callable[..., int]) -> Callable[..., int]:
        def call(_context: Any, fd: int, *arguments: Any) -> int:
            return own(fd, *arguments) if fd >= FIRST_DESCRIPTOR else other(fd, *arguments)

        return call

    def _open(self, fd: int, path: bytes, flags: int) -> int:
        folder = self._folders.get(fd)
        if folder is None:
            return -errno.ENOTDIR
        found, wants_folder = fd, bool(flags & _OPEN_DIRECTORY) or path.endswith(b"/")
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            if found != fd:
                return -errno.ENOTDIR
            if name == b"..":
                return -errno.EXDEV
            if len(name) > _NAME_BYTES_MAX:
                return -errno.ENAMETOOLONG
            names = [each.encode() for each in folder.files]
            if name not in names:
                return -errno.ENOENT
            found = folder.first + names.index(name)
        # `file/.` too: only a folder has something in it.
        wants_folder = wants_folder or path.endswith(b"/.")
        return -errno.ENOTDIR if wants_folder and found != fd else found

    def _facts(self, fd: int, into: int) -> int:
        content = self._files.get(fd)
        if content is None and fd not in self._folders:
            return -errno.EBADF
        mode, size = (_FOLDER_MODE, 0) if content is None else (_FILE_MODE, len(content))
        # Of 1970: when they came is no affair of a program that has no clock.
        ctypes.memmove(into, _FACTS.pack(mode, 1, _DEVICE, fd, size, *[0] * 6), _FACTS.size)
        return 0

    def _read(self, fd: int, into: int, length: int, offset: int) -> int:
        content = self._files.get(fd)
        if content is None:
            return -errno.EISDIR if fd in self._folders else -errno.EBADF
        if offset < 0:
            return -errno.EINVAL
        piece = content[offset : offset + length]
        ctypes.memmove(into, piece, len(piece))
        return len(piece)

    def _rewind(self, fd: int) -> int:
        folder = self._folders.get(fd)
        if folder is None:
            return -errno.EBADF
        folder.listed = 0
        return 0

    def _entries(self, fd: int, into: int, length: int) -> int:
        folder = self._folders.get(fd)
        if folder is None:
            return -errno.ENOTDIR
        records = b""
        for number, name in list(enumerate(folder.files))[folder.listed :]:
            text = name.encode() + b"\0"
            size = -(-(_ENTRY.size + len(text)) // _ENTRY_ALIGNMENT) * _ENTRY_ALIGNMENT
            if len(records) + size > length:
                break
            head = _ENTRY.pack(folder.first + number, number + 1, size, _REGULAR)
            records += (head + text).ljust(size, b"\0")
            folder.listed = number + 1
        ctypes.memmove(into, records, len(records))
        return len(records)
