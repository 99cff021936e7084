"""Sealing 16 blocks at a time gives the bytes that one at a time gives, and that others give."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator

import pytest

from avow.sealing import library
from avow.sealing.store import Store
from avow.testing.store_reader import xaes_open

# Around the ends of one, two and sixteen chunks of 256 bytes, and every remainder of a block.
LENGTHS = (*range(18), *range(240, 290), *range(500, 530), 4080, 4095, 4096, 4097, 4352, 65_536)
KEY = bytes(range(32))


@pytest.fixture(params=[False, True], ids=["standard library", "wide"])
def native(request: pytest.FixtureRequest) -> Iterator[ctypes.CDLL]:
    """Either way; a processor without the instructions takes the first one twice."""
    loaded = library.load()
    loaded.avow_vault_use_wide(ctypes.c_bool(request.param))
    yield loaded
    loaded.avow_vault_use_wide(ctypes.c_bool(True))


def seal(native: ctypes.CDLL, key: bytes, nonce: bytes, plain: bytes, ad: bytes) -> bytes:
    into = ctypes.create_string_buffer(len(plain) + 16)
    size = ctypes.c_size_t
    native.avow_vault_xaes_seal(key, nonce, plain, size(len(plain)), ad, size(len(ad)), into)
    return into.raw


@pytest.mark.parametrize("length", LENGTHS)
def test_another_implementation_opens_it(native: ctypes.CDLL, length: int) -> None:
    chance = random.Random(length)
    key, nonce, plain = chance.randbytes(32), chance.randbytes(24), chance.randbytes(length)
    ad = chance.randbytes(chance.randrange(64))
    assert xaes_open(key, nonce, seal(native, key, nonce, plain, ad), ad) == plain


def test_what_one_way_sealed_the_other_opens() -> None:
    loaded = library.load()
    content = random.Random(1).randbytes(300_000)
    for sealing, opening in ((True, False), (False, True)):
        disk = Bytes()
        loaded.avow_vault_use_wide(ctypes.c_bool(sealing))
        with Store.create_on(disk, [KEY]) as store:
            store.make_file("/files/a")
            store.write("/files/a", content)
        loaded.avow_vault_use_wide(ctypes.c_bool(opening))
        with Store.open_on(disk, KEY) as store:
            assert store.read("/files/a") == content
    loaded.avow_vault_use_wide(ctypes.c_bool(True))


class Bytes:
    """A disk in memory."""

    def __init__(self) -> None:
        self.image = bytearray()

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.image[offset : offset + length])

    def write(self, offset: int, data: bytes) -> int:
        self.image.extend(bytes(max(0, offset + len(data) - len(self.image))))
        self.image[offset : offset + len(data)] = data
        return len(data)

    def sync(self) -> None:
        """Memory needs none."""

    def size(self) -> int:
        return len(self.image)

    def resize(self, size: int) -> None:
        del self.image[size:]
        self.image.extend(bytes(size - len(self.image)))
