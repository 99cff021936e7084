"""The broker's journal in a sealed store: found, read back into a core, and handed to the pump.

The journal is the file `/journal/records-1` of the store; the 1 is the version of the records
(core/src/journal.zig). The pump appends to it and makes it durable (pump/src/journal.zig); here is
what happens before: whatever a crash left half made is removed, and a core is brought to where the
last committed record leads.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from avow.errors import DamagedError, MalformedError, UnavailableError
from avow.sandbox.engine import LoadedCore
from avow.sealing.store import Store

DIRECTORY: Final = "/journal"
NAME: Final = "records-1"
FRESH_NAME: Final = "records-1.new"
PATH: Final = f"{DIRECTORY}/{NAME}"

# u8 kind, u32 body length (core/src/journal.zig).
_RECORD_HEAD: Final = struct.Struct("<BI")
_NO_MEMORY: Final = 3
_OUTCOMES: Final = {1: "a record that is not well-formed", 2: "an incomplete record at the end"}
_SCAN_BYTES: Final = 1 << 20


class Durability(enum.IntEnum):
    """When a change is safe enough for what follows from it to be sent."""

    COMMIT = 0
    INTERVAL = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of an open store. `interval_ms` is for `Durability.INTERVAL`; `commit` is called
    in the place of the store's own, where more has to happen with each."""

    store: Store
    durability: Durability
    interval_ms: int
    directory_inode: int
    inode: int
    size_bytes: int
    commit: Callable[[], object] | None = None


def open_journal(
    store: Store,
    durability: Durability,
    interval_ms: int,
    *,
    commit: Callable[[], object] | None = None,
) -> Journal:
    """Finds the journal, or makes an empty one.

    Raises `MalformedError` where the store's journal is of another version.
    """
    if not store.exists(DIRECTORY):
        store.make_directory(DIRECTORY)
    # A compaction that never came to its end: the journal that it was to replace is whole.
    if store.exists(f"{DIRECTORY}/{FRESH_NAME}"):
        store.remove(f"{DIRECTORY}/{FRESH_NAME}")
    others = sorted(entry.name for entry in store.listdir(DIRECTORY) if entry.name != NAME)
    if others:
        raise MalformedError(
            f"expected only {NAME} in {DIRECTORY} of the store, got {', '.join(others)}; "
            "use the version of avow that wrote it"
        )
    if not store.exists(PATH):
        store.make_file(PATH)
    stat = store.stat(PATH)
    return Journal(
        store,
        durability,
        interval_ms,
        store.stat(DIRECTORY).inode,
        stat.inode,
        stat.size_bytes,
        commit,
    )


def restore(journal: Journal, core: LoadedCore) -> None:
    """Feeds the whole journal to a core that was initialised and made no step yet.

    Raises `DamagedError` with the file and the record, `MalformedError` for records that the core
    does not take, `UnavailableError` where its memory does not suffice.
    """
    offset = 0
    arena_bytes = core.layout.arena_bytes
    while offset < journal.size_bytes:
        length = min(arena_bytes, journal.size_bytes - offset)
        base = ctypes.addressof(core.memory.data_ptr(core.store).contents)
        address = base + core.layout.arena_address
        try:
            journal.store.read_into(journal.inode, offset, address, length)
        except DamagedError as error:
            raise DamagedError(f"{error}; {_place(journal, offset)}") from error
        offset += length
        outcome = core.call("restore", length, int(offset == journal.size_bytes))
        if outcome == _NO_MEMORY:
            raise UnavailableError(
                f"expected the journal of {journal.size_bytes} bytes to fit into the core's "
                f"memory, got no more memory at byte {offset}; raise "
                "limits.memory_budget_bytes"
            )
        if outcome != 0:
            problem = _OUTCOMES.get(outcome, f"the code {outcome}")
            raise MalformedError(
                f"expected {PATH} to be records of version 1, got {problem} before byte "
                f"{offset}; use the version of avow that wrote it"
            )


def _place(journal: Journal, whole_bytes: int) -> str:
    """Which record the first one is that cannot be read, from what stands before it."""
    number, start = max(_records(journal, whole_bytes), default=(0, 0))
    return f"the last whole piece of {PATH} ends in record {number}, which starts at byte {start}"


def _records(journal: Journal, limit_bytes: int) -> Iterator[tuple[int, int]]:
    """Number and offset of every record that begins before `limit_bytes`."""
    offset = number = 0
    piece, piece_start = b"", 0
    while offset + _RECORD_HEAD.size <= limit_bytes:
        inside = offset - piece_start
        if inside + _RECORD_HEAD.size > len(piece):
            piece_start, inside = offset, 0
            wanted = min(_SCAN_BYTES, limit_bytes - offset)
            piece = journal.store.read(PATH, offset, wanted)
        number += 1
        yield number, offset
        _, body_bytes = _RECORD_HEAD.unpack_from(piece, inside)
        offset += _RECORD_HEAD.size + body_bytes
