"""A second reader of sealed stores, written from docs/spec/sealed-store.md and from nothing else.

It shares no code with the vault, so that a store which both read alike is as the document says. It
takes a whole container as bytes, checks all that the document demands, and is slow and plain. The
section that a function follows is named in its docstring.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from avow.errors import DamagedError, MalformedError, WrongKeyError

SLOT_BYTES: Final = 4096
POINTER_BYTES: Final = 48
FANOUT: Final = 85
HEIGHT_MAX: Final = 8
ROOT_COPIES: Final = 4
RECORD_BYTES: Final = 128
ROOT_DIRECTORY: Final = 1
MAGIC: Final = b"AVOWSTOR"
VERSION: Final = 1
KEY_SLOTS: Final = 8
GENERATIONS_MAX: Final = 32
TAG_BYTES: Final = 16

KINDS: Final = {1: "file", 2: "directory", 3: "link"}

_HEADER = struct.Struct("<8sII16sQ")
_KEY_SLOT = struct.Struct("<8s24s48s")
_BODY = struct.Struct("<QQQB7s48sQQ32s")
_RECORD = struct.Struct("<BBHIQQQQQ48s32s")
_ENTRY = struct.Struct("<QHBB")
_COUNT = struct.Struct("<II")

_KEYRING_NONCE_AT: Final = 680
_BODY_NONCE_AT: Final = 1752
_SEQUENCE_END: Final = (1 << 64) - 1


def xaes_key(key: bytes, nonce: bytes) -> bytes:
    """C2SP XAES-256-GCM, "Overview": the AES-256-GCM key for a 24-byte nonce.

    NIST SP 800-108r1 in counter mode with CMAC, which for one block of input is AES of that block
    XOR the subkey K1.
    """
    # CMAC and the derivation are defined on single blocks.
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    doubled = int.from_bytes(block.update(bytes(16)), "big") << 1
    if doubled >> 128:
        doubled ^= (1 << 128) | 0x87
    derived = b""
    for counter in (1, 2):
        message = struct.pack(">HBB", counter, ord("X"), 0) + nonce[:12]
        masked = int.from_bytes(message, "big") ^ doubled
        derived += block.update(masked.to_bytes(16, "big"))
    return derived


def xaes_open(key: bytes, nonce: bytes, sealed: bytes, data: bytes) -> bytes:
    """The plaintext of ciphertext ‖ tag. Raises InvalidTag."""
    return AESGCM(xaes_key(key, nonce)).decrypt(nonce[12:], sealed, data)


@dataclass(frozen=True, slots=True)
class Pointer:
    """Section "Pointers"."""

    slot: int
    generation: int
    nonce: bytes
    tag: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Pointer | None:
        """Of 48 bytes; None for a hole."""
        if not any(raw):
            return None
        slot, generation = int.from_bytes(raw[:6], "little"), int.from_bytes(raw[6:8], "little")
        return cls(slot, generation, raw[8:32], raw[32:48])


@dataclass(frozen=True, slots=True)
class Place:
    """Which block it is, as the additional data says."""

    inode: int
    level: int
    index: int

    def __str__(self) -> str:
        return f"inode {self.inode}, level {self.level}, block {self.index}"


@dataclass(frozen=True, slots=True)
class Inode:
    """Section "Inodes"."""

    number: int
    kind: str
    height: int
    links: int
    size: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int
    parent: int
    pointer: Pointer | None


@dataclass(frozen=True, slots=True)
class RootRecord:
    """Section "Root records", opened."""

    copy: int
    store_id: bytes
    sequence: int
    key_ids: tuple[bytes, ...]
    ring_key: bytes = field(repr=False)
    ring_nonce: bytes
    data_keys: tuple[bytes, ...] = field(repr=False)
    body_nonce: bytes
    slots: int
    table_size: int
    table_height: int
    table_pointer: Pointer | None
    anchor: int
    committed_ns: int
    before: bytes
    digest: bytes
    # Nonce and sealed ring key of each owner key's slot; the sealed keyring.
    key_slots: tuple[tuple[bytes, bytes], ...]
    sealed_ring: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """One use of a key: two of them with the same key and nonce must be one and the same."""

    key: bytes = field(repr=False)
    nonce: bytes
    what: str


class StoreReader:
    """An opened container. Everything but the contents of files is read and checked at once.

    Raises WrongKeyError, DamagedError and MalformedError as the document has it.
    """

    def __init__(
        self, container: bytes | bytearray, key: bytes, *, copy: int | None = None
    ) -> None:
        self._container = container
        self.records = root_records(container, key)
        chosen = [record for record in self.records if copy in {None, record.copy}]
        if not chosen:
            raise DamagedError(f"root record {copy} does not open")
        self.root = max(chosen, key=lambda record: record.sequence)
        self.used: dict[int, Place] = {}
        self.uses: list[Sealed] = []
        self.inodes = self._inodes()
        self.directories = {
            number: self._entries(inode)
            for number, inode in self.inodes.items()
            if inode.kind == "directory"
        }
        for number, inode in self.inodes.items():
            if inode.kind != "directory":
                for _ in self._data_pointers(number, inode.height, inode.size, inode.pointer):
                    pass
        self._check_names()

    def paths(self) -> Iterator[tuple[str, Inode]]:
        """Every name in the store, `/` for the root directory, parents before children."""
        waiting = [("", ROOT_DIRECTORY)]
        while waiting:
            path, number = waiting.pop()
            yield path or "/", self.inodes[number]
            waiting += [
                (f"{path}/{name}", inner)
                for name, inner in sorted(self.directories.get(number, {}).items(), reverse=True)
            ]

    def lookup(self, path: str) -> Inode:
        """By an absolute path. Raises KeyError."""
        number = ROOT_DIRECTORY
        for name in path.split("/"):
            if name:
                number = self.directories[number][name]
        return self.inodes[number]

    def content(self, number: int) -> bytes:
        """All bytes of a file, or a link's target. Not for sparse giants: see `pieces`."""
        inode = self.inodes[number]
        content = bytearray(inode.size)
        for index, block in self.pieces(number):
            end = min(SLOT_BYTES, inode.size - index * SLOT_BYTES)
            content[index * SLOT_BYTES : index * SLOT_BYTES + end] = block[:end]
        return bytes(content)

    def pieces(self, number: int) -> Iterator[tuple[int, bytes]]:
        """The data blocks that are no holes, with their numbers, in order."""
        inode = self.inodes[number]
        yield from self._blocks(number, inode.height, inode.size, inode.pointer)

    def tree(self) -> dict[str, bytes | None]:
        """Every path with its content; None for directories. What a user sees of a store."""
        return {
            path: None if inode.kind == "directory" else self.content(inode.number)
            for path, inode in self.paths()
        }

    def sealed(self) -> Iterator[Sealed]:
        """Every use of a key that made what this root record reaches, and the record itself."""
        root = self.root
        for nonce, sealed in root.key_slots:
            # Under an owner's key, which one reader does not have for all slots: the nonce alone.
            yield Sealed(b"", nonce, f"key slot {sealed.hex()}")
        yield Sealed(root.ring_key, root.ring_nonce, f"keyring {root.sealed_ring.hex()}")
        yield Sealed(root.data_keys[-1], root.body_nonce, f"body of {root.digest.hex()}")
        yield from self.uses

    def _inodes(self) -> dict[int, Inode]:
        """Section "Inodes"."""
        root = self.root
        if root.table_size % RECORD_BYTES:
            raise MalformedError(f"the table of inodes has {root.table_size} bytes")
        inodes: dict[int, Inode] = {}
        table = self._blocks(0, root.table_height, root.table_size, root.table_pointer)
        for index, block in table:
            for at in range(0, SLOT_BYTES, RECORD_BYTES):
                number = index * (SLOT_BYTES // RECORD_BYTES) + at // RECORD_BYTES
                inode = _inode(number, block[at : at + RECORD_BYTES])
                if inode is not None:
                    inodes[number] = inode
        if 0 in inodes or inodes[ROOT_DIRECTORY].kind != "directory":
            raise MalformedError("inode 0 is used, or inode 1 is not the root directory")
        return inodes

    def _entries(self, inode: Inode) -> dict[str, int]:
        """Section "Directories"."""
        if inode.size % SLOT_BYTES:
            raise MalformedError(f"directory {inode.number} has {inode.size} bytes")
        entries: dict[str, int] = {}
        found = list(self._blocks(inode.number, inode.height, inode.size, inode.pointer))
        if len(found) * SLOT_BYTES != inode.size:
            raise MalformedError(f"directory {inode.number} has holes")
        for _, block in found:
            at = 0
            while at < SLOT_BYTES:
                number, length, kind, name_bytes = _ENTRY.unpack_from(block, at)
                _check_entry(block, at)
                if number:
                    name = block[at + 12 : at + 12 + name_bytes].decode()
                    _check_name(name, entries)
                    target = self.inodes.get(number)
                    if target is None or KINDS.get(kind) != target.kind:
                        raise MalformedError(f"{name!r} names inode {number} of another kind")
                    entries[name] = number
                at += length
        return entries

    def _check_names(self) -> None:
        """Every inode has as many names as its links say; each directory one, in its parent."""
        names = dict.fromkeys(self.inodes, 0)
        names[ROOT_DIRECTORY] += 1
        if self.inodes[ROOT_DIRECTORY].parent != ROOT_DIRECTORY:
            raise MalformedError("the root directory's parent is another one")
        for number, entries in self.directories.items():
            for name, inner in entries.items():
                names[inner] += 1
                inode = self.inodes[inner]
                if inode.parent != (number if inode.kind == "directory" else 0):
                    raise MalformedError(f"{name!r} has the parent {inode.parent}, not {number}")
        for number, inode in self.inodes.items():
            if inode.links != names[number]:
                raise MalformedError(f"inode {number}: {inode.links} links, {names[number]} names")

    def _blocks(
        self, number: int, height: int, size: int, pointer: Pointer | None
    ) -> Iterator[tuple[int, bytes]]:
        """Section "Files as trees": the data blocks that are no holes."""
        for index, found in self._data_pointers(number, height, size, pointer):
            block = self._open(found, Place(number, 0, index))
            behind = size - index * SLOT_BYTES
            if behind < SLOT_BYTES and any(block[behind:]):
                raise MalformedError(f"inode {number}: bytes behind its size are not zero")
            yield index, block

    def _data_pointers(
        self, number: int, height: int, size: int, pointer: Pointer | None
    ) -> Iterator[tuple[int, Pointer]]:
        if height != least_height(size):
            raise MalformedError(f"inode {number}: {size} bytes, height {height}")
        if pointer is None:
            return
        if height == 0:
            raise MalformedError(f"inode {number}: empty, with a pointer")
        count = -(-size // SLOT_BYTES)
        yield from self._below(Place(number, height - 1, 0), pointer, count)

    def _below(self, place: Place, pointer: Pointer, count: int) -> Iterator[tuple[int, Pointer]]:
        self._note(pointer, place)
        if place.level == 0:
            yield place.index, pointer
            return
        block = self._open(pointer, place)
        if any(block[FANOUT * POINTER_BYTES :]):
            raise MalformedError(f"{place}: the last 16 bytes are not zero")
        for child in range(FANOUT):
            inner = Pointer.parse(block[child * POINTER_BYTES : (child + 1) * POINTER_BYTES])
            below = Place(place.inode, place.level - 1, place.index * FANOUT + child)
            if inner is None:
                continue
            if below.index * FANOUT**below.level >= count:
                raise MalformedError(f"{below}: lies behind the size")
            yield from self._below(below, inner, count)

    def _note(self, pointer: Pointer, place: Place) -> None:
        """Section "Opening": each slot is used once, and lies where slots of blocks lie."""
        before = self.used.get(pointer.slot)
        if before is not None and before != place:
            raise DamagedError(f"slot {pointer.slot} holds {before} and {place}")
        end = min(self.root.slots, len(self._container) // SLOT_BYTES)
        if not ROOT_COPIES <= pointer.slot < end:
            raise DamagedError(f"{place}: slot {pointer.slot} is not from 4 to {end - 1}")
        if pointer.generation >= len(self.root.data_keys):
            raise DamagedError(f"{place}: there is no data key {pointer.generation}")
        if before is None:
            self.used[pointer.slot] = place
            key = self.root.data_keys[pointer.generation]
            self.uses.append(Sealed(key, pointer.nonce, f"{place}, {pointer.tag.hex()}"))

    def _open(self, pointer: Pointer, place: Place) -> bytes:
        """Section "Pointers": a block's plaintext."""
        at = pointer.slot * SLOT_BYTES
        sealed = bytes(self._container[at : at + SLOT_BYTES]) + pointer.tag
        data = (
            self.root.store_id
            + place.inode.to_bytes(8, "little")
            + bytes([place.level])
            + place.index.to_bytes(7, "little")
        )
        key = self.root.data_keys[pointer.generation]
        try:
            return xaes_open(key, pointer.nonce, sealed, data)
        except InvalidTag as error:
            raise DamagedError(f"{place}: slot {pointer.slot} holds something else") from error


def least_height(size: int) -> int:
    """Section "Files as trees": the least height for a size in bytes."""
    blocks = -(-size // SLOT_BYTES)
    if blocks == 0:
        return 0
    height = 1
    while FANOUT ** (height - 1) < blocks:
        height += 1
    if height > HEIGHT_MAX:
        raise MalformedError(f"{size} bytes need the height {height}")
    return height


def root_records(container: bytes | bytearray, key: bytes) -> list[RootRecord]:
    """Section "Opening": every copy that opens with the key. At least one, or it raises."""
    opened: list[RootRecord] = []
    slot_found = slot_missing = False
    for copy in range(ROOT_COPIES):
        raw = bytes(container[copy * SLOT_BYTES : (copy + 1) * SLOT_BYTES])
        if len(raw) < SLOT_BYTES or raw[:8] != MAGIC:
            continue
        found = _key_slot(raw, key)
        if found is None:
            slot_missing = True
            continue
        slot_found = True
        record = _open_record(copy, raw, key, found)
        if record is not None:
            opened.append(record)
    if not opened:
        if slot_found and not slot_missing:
            raise DamagedError("no root record opens, though the key has a slot")
        raise WrongKeyError("not every root record has a slot for the key")
    if len({record.store_id for record in opened}) > 1:
        raise DamagedError("the root records are of different stores")
    return opened


def _key_slot(raw: bytes, key: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Section "Root records": id, nonce and sealed ring key of this owner key."""
    store_id = raw[16:32]
    key_id = hmac.digest(key, b"avow store key id v1" + store_id, "sha256")[:8]
    for found in _KEY_SLOT.iter_unpack(raw[40:_KEYRING_NONCE_AT]):
        if hmac.compare_digest(found[0], key_id) and any(found[1]):
            return found
    return None


def _open_record(
    copy: int, raw: bytes, key: bytes, key_slot: tuple[bytes, bytes, bytes]
) -> RootRecord | None:
    """Section "Root records": None when a part of it does not open or is not as it must be."""
    _, version, zero, store_id, sequence = _HEADER.unpack_from(raw)
    if version != VERSION or zero:
        return None
    key_id, nonce, sealed = key_slot
    header = raw[:32]
    slot_key = HKDF(SHA256(), 32, salt=store_id, info=b"avow store key slot v1").derive(key)
    ring_nonce = raw[_KEYRING_NONCE_AT : _KEYRING_NONCE_AT + 24]
    body_nonce = raw[_BODY_NONCE_AT : _BODY_NONCE_AT + 24]
    try:
        ring_key = xaes_open(slot_key, nonce, sealed, header + key_id)
        keyring = xaes_open(ring_key, ring_nonce, raw[704:_BODY_NONCE_AT], header)
        data_keys = _data_keys(keyring)
        body = xaes_open(data_keys[-1], body_nonce, raw[1776:], raw[:_BODY_NONCE_AT])
    except InvalidTag:
        return None
    again, slots, size, height, zeros, pointer, anchor, ns, before = _BODY.unpack_from(body)
    if again != sequence or not 0 < sequence < _SEQUENCE_END or sequence % 2 != copy % 2:
        return None
    if any(zeros) or any(body[_BODY.size :]):
        raise MalformedError(f"root record {copy}: unused bytes of the body are not zero")
    taken = [each for each in _KEY_SLOT.iter_unpack(raw[40:_KEYRING_NONCE_AT]) if any(each[0])]
    return RootRecord(
        copy=copy,
        store_id=store_id,
        sequence=sequence,
        key_ids=tuple(each[0] for each in taken),
        ring_key=ring_key,
        ring_nonce=ring_nonce,
        data_keys=data_keys,
        body_nonce=body_nonce,
        slots=slots,
        table_size=size,
        table_height=height,
        table_pointer=Pointer.parse(pointer),
        anchor=anchor,
        committed_ns=ns,
        before=before,
        digest=hashlib.sha256(raw).digest(),
        key_slots=tuple((each[1], each[2]) for each in taken),
        sealed_ring=raw[704:_BODY_NONCE_AT],
    )


def _data_keys(keyring: bytes) -> tuple[bytes, ...]:
    """Section "Root records", the keyring's plaintext."""
    count, zero = _COUNT.unpack_from(keyring)
    places = [keyring[at : at + 32] for at in range(_COUNT.size, len(keyring), 32)]
    if not 1 <= count <= GENERATIONS_MAX or zero or any(map(any, places[count:])):
        raise MalformedError(f"the keyring says {count} keys, or unused places are not zero")
    return tuple(places[:count])


def _inode(number: int, raw: bytes) -> Inode | None:
    kind, height, zero, links, size, accessed, modified, changed, parent, pointer, zeros = (
        _RECORD.unpack(raw)
    )
    if kind == 0:
        if any(raw):
            raise MalformedError(f"inode {number} is free, and its record is not zero")
        return None
    if kind not in KINDS or zero or any(zeros):
        raise MalformedError(f"inode {number}: kind {kind}, or unused bytes are not zero")
    return Inode(
        number,
        KINDS[kind],
        height,
        links,
        size,
        accessed,
        modified,
        changed,
        parent,
        Pointer.parse(pointer),
    )


def _check_entry(block: bytes, at: int) -> None:
    number, length, kind, name_bytes = _ENTRY.unpack_from(block, at)
    used = _ENTRY.size + name_bytes
    fits = length % 8 == 0 and 16 <= length <= SLOT_BYTES - at and used <= length
    if not fits or (number == 0) != (name_bytes == 0) or (number == 0 and kind):
        raise MalformedError(f"an entry at {at}: inode {number}, {length} bytes, kind {kind}")
    # The space that an entry of another name once filled must not keep that name.
    if any(block[at + used : at + length]):
        raise MalformedError(f"an entry at {at}: its last bytes are not zero")


def _check_name(name: str, entries: dict[str, int]) -> None:
    if name in {"", ".", ".."} or "/" in name or "\0" in name or name in entries:
        raise MalformedError(f"{name!r} is no name, or is there twice")
