"""Public areas that avow asks a TPM to make keys from, as bytes of TPMT_PUBLIC.

The endorsement keys are those of TCG "EK Credential Profile for TPM Family 2.0", version 2.4,
annex B: templates L-1 (RSA 2048) and L-2 (ECC NIST P-256), whose certificates are at fixed indices
of the TPM's memory (section 2.2.1.4 there). A primary key comes from its hierarchy's seed and its
template alone, so making it again gives the same key, and nothing has to be stored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from avow.tee.tpm import structures
from avow.tee.tpm.structures import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSA,
    ALG_RSASSA,
    ALG_SHA256,
)

_EK_ATTRIBUTES: Final = (
    structures.FIXED_TPM
    | structures.FIXED_PARENT
    | structures.SENSITIVE_DATA_ORIGIN
    | structures.ADMIN_WITH_POLICY
    | structures.RESTRICTED
    | structures.DECRYPT
)
_AK_ATTRIBUTES: Final = (
    structures.FIXED_TPM
    | structures.FIXED_PARENT
    | structures.SENSITIVE_DATA_ORIGIN
    | structures.USER_WITH_AUTH
    | structures.NO_DA
    | structures.RESTRICTED
    | structures.SIGN
)
_STORAGE_ATTRIBUTES: Final = (
    structures.FIXED_TPM
    | structures.FIXED_PARENT
    | structures.SENSITIVE_DATA_ORIGIN
    | structures.USER_WITH_AUTH
    | structures.NO_DA
    | structures.RESTRICTED
    | structures.DECRYPT
)
# TPM2_PolicySecret(TPM_RH_ENDORSEMENT), PolicyA of the profile.
_EK_POLICY: Final = bytes.fromhex(
    "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
)
_CURVE_P256: Final = 0x0003


def _tpm2b(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def _area(kind: int, attributes: int, policy: bytes, rest: bytes) -> bytes:
    return struct.pack(">HHI", kind, ALG_SHA256, attributes) + _tpm2b(policy) + rest


AK_ECC: Final = _area(
    ALG_ECC,
    _AK_ATTRIBUTES,
    b"",
    struct.pack(">HHHHH", ALG_NULL, ALG_ECDSA, ALG_SHA256, _CURVE_P256, ALG_NULL)
    + _tpm2b(b"")
    + _tpm2b(b""),
)
AK_RSA: Final = _area(
    ALG_RSA,
    _AK_ATTRIBUTES,
    b"",
    struct.pack(">HHHHI", ALG_NULL, ALG_RSASSA, ALG_SHA256, 2048, 0) + _tpm2b(b""),
)
# A primary key of the owner hierarchy that protects what is kept outside of the TPM, without a
# password (TCG "TPM v2.0 Provisioning Guidance", section 7.5.1).
STORAGE_ECC: Final = _area(
    ALG_ECC,
    _STORAGE_ATTRIBUTES,
    b"",
    struct.pack(">HHHHHH", ALG_AES, 128, ALG_CFB, ALG_NULL, _CURVE_P256, ALG_NULL)
    + _tpm2b(bytes(32))
    + _tpm2b(bytes(32)),
)


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """A template, and the index at which the maker put the certificate of the key."""

    template: bytes
    certificate_index: int


EK_RSA: Final = EndorsementKey(
    _area(
        ALG_RSA,
        _EK_ATTRIBUTES,
        _EK_POLICY,
        struct.pack(">HHHHHI", ALG_AES, 128, ALG_CFB, ALG_NULL, 2048, 0) + _tpm2b(bytes(256)),
    ),
    0x01C00002,
)
EK_ECC: Final = EndorsementKey(
    _area(
        ALG_ECC,
        _EK_ATTRIBUTES,
        _EK_POLICY,
        struct.pack(">HHHHHH", ALG_AES, 128, ALG_CFB, ALG_NULL, _CURVE_P256, ALG_NULL)
        + _tpm2b(bytes(32))
        + _tpm2b(bytes(32)),
    ),
    0x01C0000A,
)
