"""Where a container lies: a locked file, or anything that reads and writes like one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from avow.errors import InUseError, StorageError, UnavailableError
from avow.sealing.callback_fence import CallbackFence
from avow.sealing.library import NativeDisk, ReadCallback, ResizeCallback, SyncCallback

CONTAINER: Final = "store.avow"
# A container while it is made: it gets its name when it is whole.
_UNFINISHED: Final = "store.avow.new"
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


class Disk(Protocol):
    """Offsets and sizes in bytes. Every method raises OSError to fail."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; none at the end."""

    def write(self, offset: int, data: bytes) -> int:
        """How many bytes were written, at least one."""

    def sync(self) -> None:
        """Returns when everything that was written is durable."""

    def size(self) -> int:
        """How long the container is."""

    def resize(self, size: int) -> None:
        """Makes the container that long; what is new is zero."""


class Callbacks:
    """A disk of Python as the native store sees it.

    An exception other than OSError fails the call too, and is kept in ``fence`` for whoever called
    the store: it must not get lost between two languages.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.fence: Final = CallbackFence()
        self.native = NativeDisk(
            None,
            ReadCallback(self._read),
            ReadCallback(self._write),
            SyncCallback(self._sync),
            SyncCallback(self._size),
            ResizeCallback(self._resize),
        )

    def _read(self, _context: int, offset: int, into: int, length: int) -> int:
        def read() -> int:
            data = self._disk.read(offset, length)
            # More than was asked for is refused by the store; it must not be copied.
            ctypes.memmove(into, bytes(data), min(len(data), length))
            return len(data)

        return self._outcome(read)

    def _write(self, _context: int, offset: int, source: int, length: int) -> int:
        return self._outcome(lambda: self._disk.write(offset, ctypes.string_at(source, length)))

    def _sync(self, _context: int) -> int:
        def sync() -> int:
            self._disk.sync()
            return 0

        return self._outcome(sync)

    def _size(self, _context: int) -> int:
        return self._outcome(self._disk.size)

    def _resize(self, _context: int, size: int) -> int:
        def resize() -> int:
            self._disk.resize(size)
            return 0

        return self._outcome(resize)

    def _outcome(self, call: Callable[[], int]) -> int:
        outcome = -errno.EIO
        with self.fence:
            try:
                outcome = call()
            except OSError as error:
                outcome = -abs(error.errno or errno.EIO)
        return outcome


def open_container(directory: Path, *, read_only: bool) -> int:
    """The locked descriptor of a folder's container.

    Raises UnavailableError when there is none, InUseError when another process has it, StorageError
    when it cannot be opened.
    """
    path = directory / CONTAINER
    flags = os.O_RDONLY if read_only else os.O_RDWR
    try:
        # Without O_NONBLOCK, to open a pipe that nobody writes to would wait for ever.
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        cause = f"it has no {CONTAINER}" if directory.is_dir() else "no such folder"
        raise UnavailableError(
            f"expected a sealed store in {directory}, got none ({cause}); name the store's "
            f"folder, or make a store with `avow store init {shlex.quote(str(directory))} "
            "--new-key file:owner.key`"
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be opened ({error.strerror}): check it") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StorageError(
            f"expected {path} to be a file, got something else; restore the store from a backup"
        )
    _lock(fd, path)
    return fd


def begin_container(directory: Path) -> int:
    """The locked descriptor of a new, empty file that `finish_container` makes the container.

    Raises UnavailableError when there is a store already, InUseError when another process is making
    one, StorageError when the folder cannot be used.
    """
    path = directory / _UNFINISHED
    try:
        absent = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        directory.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        for folder in absent:
            # A folder that is not durable would take the store with it when the power fails.
            _make_durable(folder.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, _FILE_MODE)
    except OSError as error:
        raise StorageError(f"{path} cannot be made ({error.strerror}): check the folder") from error
    _lock(fd, path)
    try:
        # Between opening and locking it may have become the container of another process.
        if not path.exists() or _is_other(fd, path):
            raise InUseError(
                f"expected no sealed store in {directory}, got one that another "
                "process has just made; open that one"
            )
        if (directory / CONTAINER).exists():
            path.unlink()
            raise UnavailableError(
                f"expected no sealed store in {directory}, got one; open it, or name another folder"
            )
        os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def finish_container(directory: Path) -> None:
    """Gives a store that is whole and durable its name. Raises StorageError."""
    try:
        os.rename(directory / _UNFINISHED, directory / CONTAINER)
        _make_durable(directory)
    except OSError as error:
        raise StorageError(
            f"the store in {directory} cannot be given its name ({error.strerror}): create it again"
        ) from error


def _make_durable(directory: Path) -> None:
    """The names in a folder."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_other(fd: int, path: Path) -> bool:
    return not os.path.samestat(os.fstat(fd), os.stat(path))


def _lock(fd: int, path: Path) -> None:
    """Takes the lock of an open file, or closes it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise InUseError(
            f"{path} is open in another process: stop that one first, as only one process "
            "at a time can have a store open"
        ) from error
    except OSError as error:
        os.close(fd)
        raise StorageError(f"{path} cannot be locked ({error.strerror}): check it") from error
