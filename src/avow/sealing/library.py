"""The native sealed store (vault/src/store) for Python: its functions, structures and results."""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import platform
from pathlib import Path
from typing import Any, Final

from avow import artefacts
from avow.errors import (
    AvowError,
    DamagedError,
    MalformedError,
    StorageError,
    UnavailableError,
    WrongKeyError,
)

INTERFACE_VERSION: Final = 1
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 8
KEYS_MAX: Final = 8
SESSION_BYTES: Final = 16
NEW_ENTROPY_BYTES: Final = 16 + 2 * KEY_BYTES + SESSION_BYTES
ROTATION_ENTROPY_BYTES: Final = 2 * KEY_BYTES
UNCHANGED: Final = (1 << 64) - 1
"""As a time: leave it as it is."""

# What the vault is compiled for on this architecture (hatch_build.py).
_CPU_FLAGS: Final = frozenset({"aes", "pclmulqdq", "avx"})
_CPU_FLAGS_FILE: Final = Path("/proc/cpuinfo")


class Result(enum.IntEnum):
    """The negative results (vault/src/store/errors.zig)."""

    NOT_FOUND = -1
    EXISTS = -2
    NOT_DIRECTORY = -3
    IS_DIRECTORY = -4
    NOT_EMPTY = -5
    NAME_INVALID = -6
    TOO_LARGE = -7
    NO_SPACE = -8
    DISK_FAILED = -9
    DAMAGED = -10
    WRONG_KEY = -11
    MALFORMED = -12
    BROKEN = -13
    READ_ONLY = -14
    OUT_OF_MEMORY = -15
    INVALID = -16


_REFUSALS: Final[dict[int, tuple[type[AvowError], str]]] = {
    Result.NOT_FOUND: (UnavailableError, "there is no such file or directory"),
    Result.EXISTS: (UnavailableError, "it exists already: choose another name"),
    Result.NOT_DIRECTORY: (MalformedError, "expected a directory, got something else"),
    Result.IS_DIRECTORY: (MalformedError, "expected a file, got a directory"),
    Result.NOT_EMPTY: (UnavailableError, "the directory is not empty: remove what is in it first"),
    Result.NAME_INVALID: (
        MalformedError,
        "a name has to be 1 to 255 bytes of UTF-8 without `/` and zero bytes, and not `.` or `..`",
    ),
    Result.TOO_LARGE: (UnavailableError, "it would be larger than the format holds"),
    Result.NO_SPACE: (
        StorageError,
        ("the disk is full: make room and open the store again; it is as its last commit left it"),
    ),
    Result.DISK_FAILED: (
        StorageError,
        "the disk failed to read, write or make durable: check it, and open the store again",
    ),
    Result.DAMAGED: (DamagedError, "what was read is not what was committed"),
    Result.WRONG_KEY: (
        WrongKeyError,
        (
            "this key does not open the store: use the key that the store was made with, or "
            "one that was added since"
        ),
    ),
    Result.MALFORMED: (
        MalformedError,
        "this is not a sealed store that this version of avow can read, or its first 16 "
        "KiB are damaged: name another, or restore a backup",
    ),
    Result.BROKEN: (
        StorageError,
        "the store has stopped, as the disk failed: open it again; it is as its last "
        "commit left it",
    ),
    Result.READ_ONLY: (UnavailableError, "the store was opened for reading only"),
    Result.OUT_OF_MEMORY: (
        UnavailableError,
        "no memory left for the store: free some, and open it again",
    ),
    Result.INVALID: (MalformedError, "a store cannot do this"),
}


class Damage(ctypes.Structure):
    """Where damage is: block ``index`` of ``level`` of an inode."""

    _fields_ = [
        ("inode", ctypes.c_uint64),
        ("index", ctypes.c_uint64),
        ("level", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
    ]


class NativeStat(ctypes.Structure):
    """An inode."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("inode", "size", "accessed_ns", "modified_ns", "changed_ns", "parent")
        ),
        ("links", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
    ]


class NativeEntry(ctypes.Structure):
    """A name in a directory."""

    _fields_ = [
        ("inode", ctypes.c_uint64),
        ("next", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("name_bytes", ctypes.c_uint32),
        ("name", ctypes.c_uint8 * 256),
    ]


class NativeRoot(ctypes.Structure):
    """What the newest root record says."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in ("sequence", "anchor", "committed_ns", "slots", "free_slots")
        ),
        ("damaged_copies", ctypes.c_uint32),
        ("key_count", ctypes.c_uint32),
        ("digest", ctypes.c_uint8 * 32),
        ("store_id", ctypes.c_uint8 * 16),
        ("key_ids", (ctypes.c_uint8 * KEY_ID_BYTES) * KEYS_MAX),
    ]


ReadCallback = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t
)
SyncCallback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
ResizeCallback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint64)


class NativeDisk(ctypes.Structure):
    """The functions of a disk that is not a file."""

    _fields_ = [
        ("context", ctypes.c_void_p),
        ("read", ReadCallback),
        ("write", ReadCallback),
        ("sync", SyncCallback),
        ("size", SyncCallback),
        ("resize", ResizeCallback),
    ]


def error_for(code: int, what: str) -> AvowError:
    """The error that a negative result stands for; ``what`` was asked for, as a message begins."""
    kind, sentence = _REFUSALS[code]
    return kind(f"{what}: {sentence}")


@functools.cache
def load() -> Any:
    """The native library with the types of its functions.

    Raises UnavailableError when it is absent, of another version, or not for this processor.
    """
    if platform.machine() == "x86_64":
        require_processor(_processor())
    path = artefacts.vault_path()
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be loaded ({error}): rebuild it") from error
    version = library.avow_vault_interface_version
    version.restype = ctypes.c_uint64
    if version() != INTERFACE_VERSION:
        raise UnavailableError(
            f"expected interface version {INTERFACE_VERSION} in {path}, got {version()}; "
            "rebuild it with `make build` or `pip install .`"
        )
    _declare(library)
    return library


def function_address(name: str) -> int:
    """Where a function of the library is, for native code that calls it. Raises as `load` does."""
    return int(ctypes.cast(getattr(load(), name), ctypes.c_void_p).value or 0)


def _processor() -> str:
    try:
        return _CPU_FLAGS_FILE.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UnavailableError(
            f"expected to read the processor's flags in {_CPU_FLAGS_FILE}, got "
            f"{error.strerror}; mount /proc"
        ) from error


def require_processor(description: str) -> None:
    """``description``: the text of /proc/cpuinfo. Raises UnavailableError when instructions that
    the vault is compiled with are missing: without this check it would be killed by SIGILL."""
    for line in description.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            missing = _CPU_FLAGS - set(value.split())
            if missing:
                raise UnavailableError(
                    "expected a processor with AES, PCLMULQDQ and AVX, which sealed stores "
                    f"need, got one without {', '.join(sorted(missing))}; use another "
                    "machine"
                )
            return
    raise UnavailableError(
        "expected the processor's flags in /proc/cpuinfo, got none; check that /proc is mounted"
    )


def _declare(library: Any) -> None:
    store, number, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
    text, pointer, small = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint32
    disk = [pointer, ctypes.c_int32]
    for name, arguments in (
        ("create", [*disk, text, size, text, number, number, pointer]),
        ("open", [*disk, text, text, number, small, number, pointer, pointer, pointer, size]),
        ("commit", [store, number]),
        ("commit_anchor", [store, number, number]),
        ("lookup", [store, number, text, size]),
        ("make", [store, number, text, size, small, number]),
        ("link", [store, number, number, text, size, number]),
        ("unlink", [store, number, text, size, number]),
        ("remove_directory", [store, number, text, size, number]),
        ("rename", [store, number, text, size, number, text, size, number]),
        ("read", [store, number, number, pointer, size]),
        ("write", [store, number, number, pointer, size, number]),
        ("resize", [store, number, number, number]),
        ("set_times", [store, number, number, number, number]),
        ("retain", [store, number]),
        ("release", [store, number, number]),
        ("stat", [store, number, pointer]),
        ("entry", [store, number, number, pointer]),
        ("add_key", [store, text, number]),
        ("remove_key", [store, text, number]),
        ("rotate", [store, text, size, text, number]),
        ("check", [store, pointer, size]),
        ("path", [store, number, pointer, size]),
        ("compact", [store, small, number]),
    ):
        function = getattr(library, f"avow_store_{name}")
        function.restype = ctypes.c_int64
        function.argtypes = arguments
    for name, reported in (("close", []), ("root", [pointer]), ("damage", [pointer])):
        function = getattr(library, f"avow_store_{name}")
        function.restype = None
        function.argtypes = [store, *reported]
