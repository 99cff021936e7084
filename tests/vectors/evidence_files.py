"""Where the real evidence is: AVOW_VECTORS and AVOW_CASES, or folders beside the checkout.

Never copied here.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

_BESIDE = Path(__file__).resolve().parents[3] / "shared"


def vector(name: str) -> bytes:
    """A file's content, by its path in the folder."""
    return (_vectors() / name).read_bytes()


def _vectors() -> Path:
    return Path(os.environ.get("AVOW_VECTORS") or _BESIDE / "vectors")


def case(name: str) -> bytes:
    """A file's content of the cases from the field, by its path in their folder.

    They lie beside the vectors, where AVOW_CASES does not say otherwise. Whoever needs them has the
    mark `cases`.
    """
    return (Path(os.environ.get("AVOW_CASES") or _vectors().parent / "cases") / name).read_bytes()


def certificates(name: str) -> list[bytes]:
    """The certificates of a PEM file, in DER."""
    return [
        certificate.public_bytes(Encoding.DER)
        for certificate in load_pem_x509_certificates(vector(name))
    ]


def flips(content: bytes) -> list[bytes]:
    """`content` with one byte changed, for every byte."""
    return [
        content[:place] + bytes((content[place] ^ 0x01,)) + content[place + 1 :]
        for place in range(len(content))
    ]
