"""COSE_Sign1 from the signing side, for mock vendors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from avow.tee.cose import ES256, ES384, ES512, Algorithm, signed_bytes

__all__ = ["ES256", "ES384", "ES512", "sign1"]


def sign1(
    payload: bytes,
    key: ec.EllipticCurvePrivateKey,
    algorithm: Algorithm,
    *,
    tagged: bool = True,
    protected: Mapping[Any, Any] | None = None,
    unprotected: Mapping[Any, Any] | None = None,
) -> bytes:
    """A COSE_Sign1; `protected` is the algorithm alone unless told otherwise."""
    header = cbor2.dumps({1: algorithm.number} if protected is None else dict(protected))
    r, s = decode_dss_signature(key.sign(signed_bytes(header, payload), ec.ECDSA(algorithm.hash)))
    signature = b"".join(half.to_bytes(algorithm.half_bytes, "big") for half in (r, s))
    content = cbor2.dumps([header, dict(unprotected or {}), payload, signature])
    return b"\xd2" + content if tagged else content
