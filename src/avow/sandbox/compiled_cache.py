"""Compiled code, kept in the sealed store so that a program that ran before starts at once.

Whoever chooses compiled code chooses what runs, whatever was measured. So wasmtime is given
compiled code from one place only: the folder /cache of the sealed store, which no program can reach
(grants are below /files), under a name that is the SHA-256 of what it was compiled from:

    "avow compiled code v1" ‖ SHA-256 of the module ‖ fingerprint of the engine ‖ kind

An entry is `AVOWCODE`, those 32 bytes again, the number of bytes of code (u64, little-endian), and
the code. One that is damaged, cut, or of another name is never used: the module is compiled anew.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from wasmtime import WasmtimeError

from avow.errors import DamagedError
from avow.sandbox.engine_settings import Settings, fingerprint

FOLDER: Final = "/cache"
ENTRIES_MAX: Final = 32
# All of them; the newest stays, whatever its size.
BYTES_MAX: Final = 512 << 20

_LABEL: Final = b"avow compiled code v1"
_MAGIC: Final = b"AVOWCODE"
_HEADER: Final = struct.Struct("<8s32sQ")
_UNFINISHED: Final = f"{FOLDER}/unfinished"


class _Entry(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def stat(self) -> Any: ...


class SealedFiles(Protocol):
    """What is used of `avow.sealing.store.Store`."""

    def exists(self, path: str) -> bool: ...
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> object: ...
    def make_file(self, path: str) -> object: ...
    def remove(self, path: str) -> object: ...
    def rename(self, source: str, target: str) -> object: ...
    def listdir(self, path: str) -> Sequence[_Entry]: ...


class Compilable(Protocol):
    """A module or a component of wasmtime."""

    def serialize(self) -> bytearray: ...


Code = TypeVar("Code", bound=Compilable)


class CompiledCache:
    """Compiled code in one sealed store. `note` is told what was found damaged."""

    def __init__(self, files: SealedFiles, note: Callable[[str], None]) -> None:
        self._files = files
        self._note = note

    def find(self, key: bytes) -> bytes | None:
        """The code that was kept under `key` (32 bytes), or None when there is none to be used."""
        path = _path(key)
        if not self._files.exists(path):
            return None
        try:
            entry = self._files.read(path)
        except DamagedError as error:
            self._note(
                f"compiled code in the store is damaged, and avow compiles it again: {error}"
            )
            self._files.remove(path)
            return None
        if len(entry) < _HEADER.size:
            return None
        magic, named, length = _HEADER.unpack_from(entry)
        if magic != _MAGIC or named != key or length != len(entry) - _HEADER.size:
            return None
        return entry[_HEADER.size :]

    def keep(self, key: bytes, code: bytes) -> None:
        """Keep `code` under `key`; the oldest of too many entries, or of too large ones, go."""
        files, path = self._files, _path(key)
        if files.exists(_UNFINISHED):
            files.remove(_UNFINISHED)
        files.make_file(_UNFINISHED)
        # By another name until it is whole: a commit may come from another thread at any moment.
        files.write(_UNFINISHED, _HEADER.pack(_MAGIC, key, len(code)) + code)
        files.rename(_UNFINISHED, path)
        entries = sorted(files.listdir(FOLDER), key=lambda each: each.stat.modified_ns)
        count, total = len(entries), sum(each.stat.size_bytes for each in entries)
        for old in entries:
            name = f"{FOLDER}/{old.name}"
            if name == path or (count <= ENTRIES_MAX and total <= BYTES_MAX):
                continue
            files.remove(name)
            count, total = count - 1, total - old.stat.size_bytes


def key_of(module_sha256: bytes, settings: Settings, kind: str) -> bytes:
    """The name of an entry, 32 bytes."""
    return hashlib.sha256(_LABEL + module_sha256 + fingerprint(settings) + kind.encode()).digest()


def compile_or_find(
    make: Callable[[], Code],
    revive: Callable[[bytes], Code],
    cache: CompiledCache | None,
    key: bytes,
) -> tuple[Code, bool]:
    """What `make` compiles, or what `revive` makes of the code that `cache` has under `key`.

    Also whether it came from the cache. wasmtime's error of `make` passes.
    """
    found = cache.find(key) if cache is not None else None
    if found is not None:
        try:
            return revive(found), True
        except WasmtimeError:
            # Sealed by us, but not for this machine or this wasmtime: as if it was not there.
            pass
    code = make()
    if cache is not None:
        cache.keep(key, bytes(code.serialize()))
    return code, False


def _path(key: bytes) -> str:
    return f"{FOLDER}/{key.hex()}"
