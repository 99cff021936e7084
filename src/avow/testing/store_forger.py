"""Somebody who has the key and writes a sealed store that is not one.

Whoever holds an owner key can make every tag right. A store must not crash, hang or ask for all
memory then either: it says where the damage is. Blocks keep their slots and nonces, which no real
writer may do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from avow.testing.store_reader import Place, RootRecord, root_records, xaes_key

SLOT_BYTES: Final = 4096
_POINTER_BYTES: Final = 48
_FANOUT: Final = 85
_RECORD_BYTES: Final = 128
_SEQUENCE_AT: Final = 32
_BODY_AT: Final = 1776
_BODY_NONCE_AT: Final = 1752
_TABLE_POINTER_AT: Final = 32

Change = Callable[[Place, bytes], bytes]


class StoreForger:
    """Seals a container anew, after `change` had every block: children before their parents.

    ``change_body`` gets the plaintext of the root record's body last.
    """

    def __init__(self, container: bytes, key: bytes) -> None:
        self.image = bytearray(container)
        self._root: RootRecord = max(root_records(container, key), key=lambda root: root.sequence)

    def forge(
        self,
        change: Change,
        change_body: Callable[[bytes], bytes] = bytes,
        *,
        sequence: int | None = None,
    ) -> bytes:
        """The container with what was changed, as the commit `sequence`."""
        root = self._root
        sequence = root.sequence if sequence is None else sequence
        number = struct.pack("<Q", sequence)
        slot = root.copy * SLOT_BYTES
        record = self.image[slot : slot + SLOT_BYTES]
        cipher = AESGCM(xaes_key(root.data_keys[-1], root.body_nonce))
        nonce, data = root.body_nonce[12:], bytes(record[:_BODY_NONCE_AT])
        body = number + cipher.decrypt(nonce, bytes(record[_BODY_AT:]), data)[8:]
        record[_SEQUENCE_AT : _SEQUENCE_AT + 8] = number
        data = bytes(record[:_BODY_NONCE_AT])
        end = _TABLE_POINTER_AT + _POINTER_BYTES
        pointer = self._block(
            body[_TABLE_POINTER_AT:end], Place(0, root.table_height - 1, 0), change
        )
        body = change_body(body[:_TABLE_POINTER_AT] + pointer + body[end:])
        record[_BODY_AT:] = cipher.encrypt(nonce, body, data)
        for copy in (sequence % 2, 2 + sequence % 2):
            self.image[copy * SLOT_BYTES : (copy + 1) * SLOT_BYTES] = record
        return bytes(self.image)

    def _block(self, pointer: bytes, place: Place, change: Change) -> bytes:
        if not any(pointer):
            return pointer
        slot = int.from_bytes(pointer[:6], "little") * SLOT_BYTES
        generation = int.from_bytes(pointer[6:8], "little")
        nonce = pointer[8:32]
        cipher = AESGCM(xaes_key(self._root.data_keys[generation], nonce))
        data = self._root.store_id + struct.pack("<QB", place.inode, place.level)
        data += place.index.to_bytes(7, "little")
        sealed = bytes(self.image[slot : slot + SLOT_BYTES]) + pointer[32:]
        block = bytearray(cipher.decrypt(nonce[12:], sealed, data))
        if place.level:
            for at in range(_FANOUT):
                below = Place(place.inode, place.level - 1, place.index * _FANOUT + at)
                self._replace(block, at * _POINTER_BYTES, below, change)
        elif place.inode == 0:
            for at in range(0, SLOT_BYTES, _RECORD_BYTES):
                number = (place.index * SLOT_BYTES + at) // _RECORD_BYTES
                self._replace(block, at + 48, Place(number, block[at + 1] - 1, 0), change)
        sealed = cipher.encrypt(nonce[12:], change(place, bytes(block)), data)
        self.image[slot : slot + SLOT_BYTES] = sealed[:SLOT_BYTES]
        return pointer[:32] + sealed[SLOT_BYTES:]

    def _replace(self, block: bytearray, at: int, place: Place, change: Change) -> None:
        pointer = bytes(block[at : at + _POINTER_BYTES])
        block[at : at + _POINTER_BYTES] = self._block(pointer, place, change)
