"""Sealed stores: files, directories and atomic commits in one container that nobody else can read.

The format is docs/spec/sealed-store.md, the work is done by vault/src/store. Paths are absolute,
`/a/b`; times are ns since 1970; sizes and offsets are bytes. What is read was proven to be what was
committed last, or DamagedError is raised.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from avow.errors import AvowError, DamagedError, MalformedError, UnavailableError, counted
from avow.sealing import library
from avow.sealing.disks import CONTAINER as CONTAINER
from avow.sealing.disks import Callbacks, begin_container, finish_container, open_container
from avow.sealing.disks import Disk as Disk
from avow.sealing.library import Result

CACHE_BYTES: Final = 32 << 20
TOP_DIRECTORIES: Final = ("/files", "/journal", "/cache")
ROOT_INODE: Final = 1

_KINDS: Final = {1: "file", 2: "directory", 3: "link"}
_FILE: Final = 1
_DIRECTORY: Final = 2
_PATH_MAX_BYTES: Final = 4096
_FINDINGS_MAX: Final = 4096
_READ_PART_BYTES: Final = 1 << 20
_LEVEL_ROOT: Final = 254
_LEVEL_RECORD: Final = 253
_FINDING_BLOCK: Final = 0
_FINDING_LINKS: Final = 1


@dataclass(frozen=True, slots=True)
class Root:
    """The newest commit. ``digest``: the root hash (32 bytes), which stands for every byte."""

    sequence: int
    digest: bytes
    anchor: int
    store_id: bytes
    slots: int
    free_slots: int
    key_ids: tuple[bytes, ...]
    damaged_copies: int


@dataclass(frozen=True, slots=True)
class Stat:
    """An inode; ``kind`` is file, directory or link."""

    inode: int
    kind: str
    links: int
    size_bytes: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory, and what it names."""

    name: str
    stat: Stat


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was committed: whose, and what."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class Store:
    """An open store. One process has it at a time; its threads may share it, and it is closed when
    none of them is in a call.

    ``handle``: the native store, for the sandbox and the pump. After a StorageError the store does
    nothing more: open it again, it is as of its last commit.
    """

    def __init__(
        self,
        handle: int,
        *,
        where: str,
        fd: int | None,
        callbacks: Callbacks | None,
        entropy: Callable[[int], bytes],
        clock_ns: Callable[[], int],
        read_only: bool,
    ) -> None:
        self._library = library.load()
        self._handle: int | None = handle
        self._where = where
        self._fd = fd
        self._callbacks = callbacks
        self._entropy = entropy
        self._clock_ns = clock_ns
        self._read_only = read_only
        self._process = os.getpid()

    @classmethod
    def create(
        cls,
        directory: Path,
        keys: Sequence[bytes],
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> Self:
        """A new store in a folder, which is made when it is absent, for 1 to 8 owner keys.

        It has its name only when it is whole, so a creation that was cut can be done again.
        Raises UnavailableError when there is a store, InUseError, StorageError and MalformedError.
        """
        _require_keys(keys)
        fd = begin_container(directory)
        made: Self | None = None
        try:
            made = cls._create(str(directory), fd, None, keys, entropy, clock_ns)
            finish_container(directory)
        except BaseException:
            if made is not None:
                made.abandon()
            else:
                os.close(fd)
            raise
        return made

    @classmethod
    def create_on(
        cls,
        disk: Disk,
        keys: Sequence[bytes],
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> Self:
        """As `create`, on any disk that holds no store."""
        _require_keys(keys)
        return cls._create("the disk", None, Callbacks(disk), keys, entropy, clock_ns)

    @classmethod
    def _create(
        cls,
        where: str,
        fd: int | None,
        callbacks: Callbacks | None,
        keys: Sequence[bytes],
        entropy: Callable[[int], bytes],
        clock_ns: Callable[[], int],
    ) -> Self:
        handle = ctypes.c_void_p()
        code = library.load().avow_store_create(
            *_disk(fd, callbacks),
            b"".join(keys),
            len(keys),
            _drawn(entropy, library.NEW_ENTROPY_BYTES),
            CACHE_BYTES,
            clock_ns(),
            ctypes.byref(handle),
        )
        _raise_kept(callbacks)
        if code < 0:
            raise library.error_for(code, f"creating a store on {where}")
        assert handle.value is not None
        store = cls(
            handle.value,
            where=where,
            fd=None,
            callbacks=callbacks,
            entropy=entropy,
            clock_ns=clock_ns,
            read_only=False,
        )
        try:
            for path in TOP_DIRECTORIES:
                store.make_directory(path)
            store.commit()
        except BaseException:
            store._free()
            raise
        store._fd = fd
        return store

    @classmethod
    def open(
        cls,
        directory: Path,
        key: bytes,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        clock_ns: Callable[[], int] = time.time_ns,
        cache_bytes: int = CACHE_BYTES,
        read_only: bool = False,
    ) -> Self:
        """The store in a folder, with one of its owner keys.

        Raises UnavailableError when there is none, InUseError, WrongKeyError, DamagedError,
        MalformedError when it is no store, and StorageError.
        """
        _require_keys([key])
        fd = open_container(directory, read_only=read_only)
        try:
            return cls._open(
                str(directory), fd, None, key, entropy, clock_ns, cache_bytes, read_only
            )
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open_on(
        cls,
        disk: Disk,
        key: bytes,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        clock_ns: Callable[[], int] = time.time_ns,
        cache_bytes: int = CACHE_BYTES,
        read_only: bool = False,
    ) -> Self:
        """As `open`, on any disk."""
        _require_keys([key])
        return cls._open(
            "the disk", None, Callbacks(disk), key, entropy, clock_ns, cache_bytes, read_only
        )

    @classmethod
    def _open(
        cls,
        where: str,
        fd: int | None,
        callbacks: Callbacks | None,
        key: bytes,
        entropy: Callable[[int], bytes],
        clock_ns: Callable[[], int],
        cache_bytes: int,
        read_only: bool,
    ) -> Self:
        handle, damage = ctypes.c_void_p(), library.Damage()
        path = ctypes.create_string_buffer(_PATH_MAX_BYTES)
        code = library.load().avow_store_open(
            *_disk(fd, callbacks),
            key,
            _drawn(entropy, library.SESSION_BYTES),
            cache_bytes,
            read_only,
            clock_ns(),
            ctypes.byref(handle),
            ctypes.byref(damage),
            path,
            len(path),
        )
        _raise_kept(callbacks)
        if code == Result.DAMAGED:
            raise _damaged(f"the store on {where}", _described(damage, path.value))
        if code < 0:
            raise library.error_for(code, f"opening the store on {where}")
        assert handle.value is not None
        return cls(
            handle.value,
            where=where,
            fd=fd,
            callbacks=callbacks,
            entropy=entropy,
            clock_ns=clock_ns,
            read_only=read_only,
        )

    @property
    def handle(self) -> int:
        """The native store. Raises UnavailableError when it is closed."""
        if self._handle is None:
            raise UnavailableError(f"the store on {self._where} is closed: open it again")
        return self._handle

    @property
    def root(self) -> Root:
        """The newest commit."""
        native = library.NativeRoot()
        self._library.avow_store_root(self.handle, ctypes.byref(native))
        return Root(
            sequence=native.sequence,
            digest=bytes(native.digest),
            anchor=native.anchor,
            store_id=bytes(native.store_id),
            slots=native.slots,
            free_slots=native.free_slots,
            key_ids=tuple(bytes(native.key_ids[at]) for at in range(native.key_count)),
            damaged_copies=native.damaged_copies,
        )

    def commit(self, *, anchor: int | None = None) -> Root:
        """Makes all that happened durable, at once or not at all; returns the root after it.

        Without any change there is no new commit. Raises StorageError; the store is then broken.
        """
        if anchor is None:
            self._call("commit", self._clock_ns(), what="committing")
        else:
            self._call("commit_anchor", anchor, self._clock_ns(), what="committing")
        return self.root

    def close(self) -> None:
        """Commits, and closes. Closed is closed, also when the commit fails."""
        if self._handle is None:
            return
        try:
            if not self._read_only:
                self.commit()
        finally:
            self._free()

    def abandon(self) -> None:
        """Closes, and drops what was not committed."""
        self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def exists(self, path: str) -> bool:
        """Whether there is something of that name."""
        return self._find(path) is not None

    def stat(self, path: str) -> Stat:
        """What is there. Raises UnavailableError when nothing is."""
        return self._stat(self._inode(path), path)

    def listdir(self, path: str) -> list[Entry]:
        """What is in a directory, by name."""
        inode = self._inode(path)
        native, entries, cookie = library.NativeEntry(), [], 0
        while self._call("entry", inode, cookie, ctypes.byref(native), what=f"listing {path}"):
            cookie = native.next
            name = bytes(native.name[: native.name_bytes]).decode()
            entries.append(Entry(name, self._stat(native.inode, f"{path.rstrip('/')}/{name}")))
        return sorted(entries, key=lambda entry: entry.name)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """The content from an offset on; shorter than ``length`` at the end only."""
        stat = self.stat(path)
        if stat.kind == "directory":
            raise library.error_for(Result.IS_DIRECTORY, f"reading {path}")
        _require_range(offset, 0 if length is None else length)
        left = max(0, stat.size_bytes - offset)
        if length is not None:
            left = min(left, length)
        buffer = bytearray(left)
        done = 0
        while done < left:
            part = min(left - done, _READ_PART_BYTES)
            into = (ctypes.c_uint8 * part).from_buffer(buffer, done)
            got = self._call("read", stat.inode, offset + done, into, part, what=f"reading {path}")
            if got == 0:
                break
            done += got
        return bytes(buffer[:done]) if done < left else bytes(buffer)

    def read_into(self, inode: int, offset: int, address: int, length: int) -> None:
        """Exactly ``length`` bytes of a file to a place in memory: of the pump's core, for one.

        Raises DamagedError, and MalformedError where the file ends before.
        """
        done = 0
        while done < length:
            got = self._call(
                "read", inode, offset + done, address + done, length - done, what="reading"
            )
            if got == 0:
                raise MalformedError(
                    f"expected {counted(length, 'byte')} at {offset} of inode {inode}, got {done}"
                )
            done += got

    def error(self, code: int, what: str) -> AvowError:
        """The error that a negative result of the native store stands for, when others call it;
        ``what`` was asked for."""
        return self._error(code, what)

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """Writes into a file that exists; beyond its end it grows, and a gap reads as zeros."""
        _require_range(offset, len(data))
        inode = self._inode(path)
        self._call(
            "write", inode, offset, data, len(data), self._clock_ns(), what=f"writing {path}"
        )

    def truncate(self, path: str, size: int) -> None:
        """Makes a file that long; what is new reads as zeros."""
        _require_range(size, 0)
        inode = self._inode(path)
        self._call("resize", inode, size, self._clock_ns(), what=f"resizing {path}")

    def make_file(self, path: str, parents: bool = False) -> None:
        """A new, empty file."""
        self._make(path, _FILE, parents)

    def make_directory(self, path: str, parents: bool = False) -> None:
        """A new directory. ``parents``: those above it are made, and it may be there."""
        if parents and self.exists(path) and self.stat(path).kind == "directory":
            return
        self._make(path, _DIRECTORY, parents)

    def _make(self, path: str, kind: int, parents: bool) -> None:
        above, name = self._split(path)
        directory = self._made(above) if parents else self._inode(above)
        self._call(
            "make", directory, name, len(name), kind, self._clock_ns(), what=f"making {path}"
        )

    def _made(self, path: str) -> int:
        """The inode of a directory, which is made as far as it is absent."""
        inode = ROOT_INODE
        for name in _names(path):
            code: int = self._library.avow_store_lookup(self.handle, inode, name, len(name))
            _raise_kept(self._callbacks)
            if code == Result.NOT_FOUND:
                now_ns = self._clock_ns()
                code = self._call(
                    "make", inode, name, len(name), _DIRECTORY, now_ns, what=f"making {path}"
                )
            elif code < 0:
                raise self._error(code, f"making {path}")
            inode = code
        return inode

    def remove(self, path: str) -> None:
        """Removes a file's name, or an empty directory."""
        above, name = self._split(path)
        function = "remove_directory" if self.stat(path).kind == "directory" else "unlink"
        directory = self._inode(above)
        self._call(function, directory, name, len(name), self._clock_ns(), what=f"removing {path}")

    def rename(self, old: str, new: str) -> None:
        """Gives another name, and replaces what has it: a file, or an empty directory."""
        old_above, old_name = self._split(old)
        new_above, new_name = self._split(new)
        self._call(
            "rename",
            self._inode(old_above),
            old_name,
            len(old_name),
            self._inode(new_above),
            new_name,
            len(new_name),
            self._clock_ns(),
            what=f"renaming {old} to {new}",
        )

    def check(self) -> Iterator[Damage]:
        """Reads and proves every block; yields what is damaged, nothing when all is well."""
        findings = (library.Damage * _FINDINGS_MAX)()
        count = self._call("check", findings, len(findings), what="checking")
        for finding in findings[: min(count, len(findings))]:
            yield self._damage(finding)
        if count > len(findings):
            yield Damage("/", f"{count - len(findings)} more places are damaged")

    def add_key(self, key: bytes) -> None:
        """One more owner key, from now on; there may be eight."""
        _require_keys([key])
        self._call("add_key", key, self._clock_ns(), what="adding an owner key")

    def remove_key(self, key_id: bytes) -> None:
        """An owner key opens the store no more. The last one cannot be removed."""
        if len(key_id) != library.KEY_ID_BYTES:
            raise MalformedError(
                f"a key id has {library.KEY_ID_BYTES} bytes, this one has {len(key_id)}"
            )
        self._call("remove_key", key_id, self._clock_ns(), what="removing an owner key")

    def rotate(self, keys: Sequence[bytes]) -> None:
        """From now on only these owner keys open the store, and what is written is under a new key.

        What was written before stays under the keys that it is under until `compact(rewrite=True)`.
        """
        _require_keys(keys)
        fresh = _drawn(self._entropy, library.ROTATION_ENTROPY_BYTES)
        joined = b"".join(keys)
        # Refused as too large when the keyring is full; then this says what to do.
        what = "rotating the keys, of which a store keeps 32 (compact with rewrite drops the old)"
        self._call("rotate", joined, len(keys), fresh, self._clock_ns(), what=what)

    def compact(self, rewrite: bool = False) -> None:
        """Makes the container as small as it gets. ``rewrite``: seals everything anew under the
        newest key and drops the older ones."""
        self._call("compact", rewrite, self._clock_ns(), what="compacting")

    def _call(self, name: str, *arguments: Any, what: str) -> int:
        code: int = getattr(self._library, f"avow_store_{name}")(self.handle, *arguments)
        _raise_kept(self._callbacks)
        if code < 0:
            raise self._error(code, what)
        return code

    def _error(self, code: int, what: str) -> AvowError:
        if code == Result.INVALID and os.getpid() != self._process:
            # Its nonces would be those of the process that it was forked from.
            return MalformedError(
                f"{what}: expected the process that opened the store, got one that was "
                "forked from it; close the store before the fork, and open it in one of "
                "the two"
            )
        if code != Result.DAMAGED:
            return library.error_for(code, what)
        finding = library.Damage()
        self._library.avow_store_damage(self.handle, ctypes.byref(finding))
        return _damaged(what, self._damage(finding))

    def _damage(self, finding: library.Damage) -> Damage:
        path = ctypes.create_string_buffer(_PATH_MAX_BYTES)
        count = self._library.avow_store_path(self.handle, finding.inode, path, len(path))
        return _described(finding, path.raw[:count])

    def _find(self, path: str) -> int | None:
        inode = ROOT_INODE
        for name in _names(path):
            code: int = self._library.avow_store_lookup(self.handle, inode, name, len(name))
            _raise_kept(self._callbacks)
            if code in (Result.NOT_FOUND, Result.NOT_DIRECTORY):
                return None
            if code < 0:
                raise self._error(code, f"looking for {path}")
            inode = code
        return inode

    def _inode(self, path: str) -> int:
        inode = self._find(path)
        if inode is None:
            raise library.error_for(Result.NOT_FOUND, path)
        return inode

    def _split(self, path: str) -> tuple[str, bytes]:
        names = _names(path)
        if not names:
            raise MalformedError(f"{path}: the root directory can neither be made nor changed")
        above = b"/" + b"/".join(names[:-1])
        return above.decode(), names[-1]

    def _stat(self, inode: int, path: str) -> Stat:
        native = library.NativeStat()
        self._call("stat", inode, ctypes.byref(native), what=path)
        return Stat(
            inode=native.inode,
            kind=_KINDS[native.kind],
            links=native.links,
            size_bytes=native.size,
            accessed_ns=native.accessed_ns,
            modified_ns=native.modified_ns,
            changed_ns=native.changed_ns,
        )

    def _free(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.avow_store_close(handle)
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _disk(fd: int | None, callbacks: Callbacks | None) -> tuple[Any, int]:
    if callbacks is not None:
        return ctypes.byref(callbacks.native), -1
    assert fd is not None
    return None, fd


def _raise_kept(callbacks: Callbacks | None) -> None:
    """An exception that the disk raised, and that native code could not pass on."""
    if callbacks is not None and callbacks.fence.raised is not None:
        raised, callbacks.fence.raised = callbacks.fence.raised, None
        raise raised


def _drawn(entropy: Callable[[int], bytes], count: int) -> bytes:
    drawn = entropy(count)
    if len(drawn) != count:
        raise MalformedError(
            f"expected {counted(count, 'byte')} of entropy, got {len(drawn)}; report this"
        )
    return drawn


def _require_keys(keys: Sequence[bytes]) -> None:
    if not 1 <= len(keys) <= library.KEYS_MAX:
        raise MalformedError(f"a store has 1 to {library.KEYS_MAX} owner keys, got {len(keys)}")
    for key in keys:
        if len(key) != library.KEY_BYTES:
            raise MalformedError(
                f"an owner key has {library.KEY_BYTES} bytes, this one has {len(key)}"
            )
    if len(set(keys)) != len(keys):
        raise MalformedError("the same owner key was given twice: give each one once")


def _require_range(offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length >= 1 << 63:
        raise MalformedError(
            f"expected a range that a file can have, got {counted(length, 'byte')} at {offset}"
        )


def _names(path: str) -> list[bytes]:
    if not path.startswith("/"):
        raise MalformedError(f"{path!r}: paths in a store begin with `/`")
    try:
        return [name.encode() for name in path.split("/") if name]
    except UnicodeEncodeError as error:
        raise MalformedError(f"{path!r}: names in a store are UTF-8, this is not") from error


def _damaged(what: str, damage: Damage) -> DamagedError:
    return DamagedError(
        f"{what}: {damage} is not what was committed; restore the store from a backup, or "
        "go on without this file"
    )


def _described(finding: library.Damage, path: bytes) -> Damage:
    if finding.level == _LEVEL_ROOT:
        return Damage("/", "the root record")
    if finding.inode == 0:
        return Damage("/", f"table of inodes, block {finding.index} (level {finding.level})")
    name = path.decode("utf-8", "replace") or f"inode {finding.inode}"
    if finding.level == _LEVEL_RECORD:
        kind = "the number of its links" if finding.kind == _FINDING_LINKS else "its record"
        return Damage(name, kind)
    where = f"block {finding.index} (level {finding.level})"
    return Damage(name, where if finding.kind == _FINDING_BLOCK else f"{where} after the end")
