"""From a sealed store to files in clear: a directory that did not exist, or a tar archive."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from avow.errors import StorageError
from avow.sealing.store import Entry, Stat, Store

PIECE_BYTES: Final = 1 << 20
_NS_PER_S: Final = 1_000_000_000

Note = Callable[[int], None]


def joined(directory: str, name: str) -> str:
    """The path of a name in a directory of the store."""
    return f"{directory.rstrip('/')}/{name}"


def walk(store: Store, path: str) -> Iterator[tuple[str, Stat]]:
    """`path` and all below it, parents before children, names in order."""
    waiting = [(path, store.stat(path))]
    while waiting:
        here, stat = waiting.pop()
        yield here, stat
        if stat.kind == "directory":
            entries: list[Entry] = sorted(store.listdir(here), key=lambda each: each.name)
            waiting += [(joined(here, each.name), each.stat) for each in reversed(entries)]


def pieces(store: Store, path: str, size_bytes: int) -> Iterator[bytes]:
    """A file's content, a mebibyte at a time."""
    offset = 0
    while offset < size_bytes:
        piece = store.read(path, offset, min(PIECE_BYTES, size_bytes - offset))
        if not piece:
            raise StorageError(
                f"expected {size_bytes} bytes of {path}, got {offset}; it "
                "changed meanwhile: try again"
            )
        yield piece
        offset += len(piece)


def export_directory(store: Store, source: str, target: Path, note: Note) -> int:
    """Writes `source` and all below it as `target`, which must not exist. Returns the files.

    It is built beside `target` and renamed at the end: what is half done never has that name.
    Raises StorageError, and what reading the store raises.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise StorageError(
            f"expected to make the folder {target}, got: {error}; name another"
        ) from error
    try:
        place = building / "export"
        count = _build(store, source, place, note)
        if os.path.lexists(target):
            raise StorageError(
                f"expected nothing at {target}, got something, which was not "
                "replaced; name another folder"
            )
        place.rename(target)
    except OSError as error:
        raise StorageError(
            f"expected to write {target}, got: {error}; check the free space of the disk"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return count


def _build(store: Store, source: str, place: Path, note: Note) -> int:
    count = 0
    first_names: dict[int, Path] = {}
    times: list[tuple[Path, Stat]] = []
    for path, stat in walk(store, source):
        # Names in a store hold no `/` and are not `.` or `..`, and every folder on the way was
        # made a moment ago: nothing is written outside of `place`.
        here = place / path[len(source) :].lstrip("/")
        times.append((here, stat))
        if stat.kind == "directory":
            here.mkdir(mode=0o700)
            continue
        count += 1
        if stat.inode in first_names:
            here.hardlink_to(first_names[stat.inode])
        elif stat.kind == "link":
            here.symlink_to(os.fsdecode(store.read(path)))
        else:
            first_names[stat.inode] = here
            _write_file(store, path, stat, here, note)
    # Last and from below: to make a file changes the time of its folder.
    for here, stat in reversed(times):
        os.utime(here, ns=(stat.accessed_ns, stat.modified_ns), follow_symlinks=False)
    return count


def _write_file(store: Store, path: str, stat: Stat, here: Path, note: Note) -> None:
    descriptor = os.open(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        for piece in pieces(store, path, stat.size_bytes):
            file.write(piece)
            note(len(piece))


class _Pieces(io.RawIOBase):
    """A file of the store as tarfile wants to read it."""

    def __init__(self, store: Store, path: str, size_bytes: int, note: Note) -> None:
        self._pieces = pieces(store, path, size_bytes)
        self._rest = b""
        self._note = note

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, not fewer while there are more."""
        found = bytearray()
        while size < 0 or len(found) < size:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                self._note(len(self._rest))
                if not self._rest:
                    break
            take = len(self._rest) if size < 0 else size - len(found)
            found += self._rest[:take]
            self._rest = self._rest[take:]
        return bytes(found)


def export_tar(store: Store, source: str, stream: BinaryIO, note: Note) -> int:
    """Writes `source` and all below it to `stream` as a tar archive. Returns the files."""
    count = 0
    first_names: dict[int, str] = {}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path, stat in walk(store, source):
            name = path[len(source) :].lstrip("/") or ("." if stat.kind == "directory" else "")
            info = tarfile.TarInfo(name or path.rpartition("/")[2])
            info.mtime = stat.modified_ns // _NS_PER_S
            info.mode = 0o700 if stat.kind == "directory" else 0o600
            if stat.kind == "directory":
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
                continue
            count += 1
            if stat.inode in first_names:
                info.type, info.linkname = tarfile.LNKTYPE, first_names[stat.inode]
                archive.addfile(info)
            elif stat.kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(store.read(path))
                archive.addfile(info)
            else:
                first_names[stat.inode] = info.name
                info.size = stat.size_bytes
                archive.addfile(info, _Pieces(store, path, stat.size_bytes, note))
    return count
