"""The reader's XAES-256-GCM against the vectors of C2SP."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag

from avow.testing.store_reader import least_height, xaes_open

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"


# The first key's subkey does not overflow when it is doubled, the second one's does.
@pytest.mark.parametrize(
    ("key", "data", "sealed"),
    [
        (b"\x01", b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (
            b"\x03",
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ],
)
def test_vectors_of_c2sp(key: bytes, data: bytes, sealed: str) -> None:
    assert xaes_open(key * 32, NONCE, bytes.fromhex(sealed), data) == b"XAES-256-GCM"
    with pytest.raises(InvalidTag):
        xaes_open(key * 32, NONCE, bytes.fromhex(sealed), data + b"x")


@pytest.mark.parametrize(
    ("size", "height"),
    [
        (0, 0),
        (1, 1),
        (4096, 1),
        (4097, 2),
        (85 * 4096, 2),
        (85 * 4096 + 1, 3),
        (85**2 * 4096, 3),
        (85**7 * 4096, 8),
    ],
)
def test_heights(size: int, height: int) -> None:
    assert least_height(size) == height
