"""TPM2_MakeCredential in software: a secret that only the TPM with a certain endorsement key (EK)
opens, and only if it also holds the key with a certain name.

Trusted Computing Group, "TPM 2.0 Library", Part 1: section 24 "Credential Protection", "Key
Derivation Function" (KDFa and KDFe) in section 11.4, "Secret Sharing" in annexes B (RSA) and C
(ECC). The answer is TPM2_ActivateCredential (Part 3, section 12.5).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from avow.tee.tpm.structures import HASHES, Public

_IV: Final = bytes(16)
_IDENTITY: Final = b"IDENTITY\0"


@dataclass(frozen=True, slots=True)
class Credential:
    """What goes to the TPM: the contents of TPM2B_ID_OBJECT and of TPM2B_ENCRYPTED_SECRET."""

    id_object: bytes
    encrypted_secret: bytes


def make_credential(ek: Public, name: bytes, secret: bytes, seed: bytes) -> Credential:
    """`secret` (1 to 32 bytes) for the TPM whose endorsement key is `ek`, if it has the key `name`.

    `seed` are as many fresh random bytes as the digest of the EK's name has (32 for SHA-256). An
    ECC key does not use it: there the seed comes from a fresh key pair.
    """
    algorithm = HASHES[ek.name_algorithm]
    if isinstance(ek.key, rsa.RSAPublicKey):
        oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, _IDENTITY)
        encrypted_secret = ek.key.encrypt(seed, oaep)
    else:
        seed, encrypted_secret = _ecdh_seed(ek.key, algorithm.name, algorithm.digest_size * 8)
    key = _kdfa(algorithm.name, seed, b"STORAGE", name, ek.symmetric_bits)
    encryptor = Cipher(algorithms.AES(key), CFB(_IV)).encryptor()
    identity = encryptor.update(_tpm2b(secret)) + encryptor.finalize()
    integrity_key = _kdfa(algorithm.name, seed, b"INTEGRITY", b"", algorithm.digest_size * 8)
    integrity = hmac.digest(integrity_key, identity + name, algorithm.name)
    return Credential(_tpm2b(integrity) + identity, encrypted_secret)


def _ecdh_seed(static: ec.EllipticCurvePublicKey, name: str, bits: int) -> tuple[bytes, bytes]:
    """The seed, and the fresh public point (TPMS_ECC_POINT) for the other side."""
    ours = ec.generate_private_key(static.curve)
    point, theirs = ours.public_key().public_numbers(), static.public_numbers()
    size = (static.curve.key_size + 7) // 8
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    shared = ours.exchange(ec.ECDH(), static)
    party_info = _IDENTITY + x + theirs.x.to_bytes(size, "big")
    digest = b"".join(
        hashlib.new(name, struct.pack(">I", counter) + shared + party_info).digest()
        for counter in _rounds(name, bits)
    )
    return digest[: bits // 8], _tpm2b(x) + _tpm2b(y)


def _kdfa(name: str, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa: SP 800-108 in counter mode with HMAC."""
    fixed = label + b"\0" + context + struct.pack(">I", bits)
    stream = b"".join(
        hmac.digest(key, struct.pack(">I", counter) + fixed, name)
        for counter in _rounds(name, bits)
    )
    return stream[: bits // 8]


def _rounds(name: str, bits: int) -> range:
    size = hashlib.new(name).digest_size * 8
    return range(1, -(-bits // size) + 1)


def _tpm2b(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content
