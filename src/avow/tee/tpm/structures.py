"""The structures of a TPM that evidence is made of, parsed to the last byte.

Trusted Computing Group, "Trusted Platform Module Library", family 2.0, revision 01.59 (also
ISO/IEC 11889:2015), Part 2 "Structures": numbers of sections below are of that part. All integers
are big-endian; a TPM2B is a length of 16 bits and so many bytes (section 10.4).

Only what an attestation key, an endorsement key or a quote may have is understood: RSA and ECC keys
with SHA-256, SHA-384 or SHA-512, and signatures by RSASSA, RSAPSS and ECDSA. All else is malformed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from avow.errors import MalformedError, counted

# Section 6.3, TPM_ALG_ID.
ALG_RSA: Final = 0x0001
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043

HASHES: Final[dict[int, hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    ALG_SHA256: hashes.SHA256(),
    ALG_SHA384: hashes.SHA384(),
    ALG_SHA512: hashes.SHA512(),
}
# Section 6.4, TPM_ECC_CURVE.
CURVES: Final[dict[int, ec.SECP256R1 | ec.SECP384R1]] = {
    0x0003: ec.SECP256R1(),
    0x0004: ec.SECP384R1(),
}

# Section 6.2, TPM_GENERATED, and section 6.9, TPM_ST.
GENERATED: Final = 0xFF544347
ST_ATTEST_QUOTE: Final = 0x8018

# Section 8.3.2, TPMA_OBJECT.
FIXED_TPM: Final = 1 << 1
ST_CLEAR: Final = 1 << 2
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
ENCRYPTED_DUPLICATION: Final = 1 << 11
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18
X509_SIGN: Final = 1 << 19
_ATTRIBUTES: Final = (
    FIXED_TPM | ST_CLEAR | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH
    | ADMIN_WITH_POLICY | NO_DA | ENCRYPTED_DUPLICATION | RESTRICTED | DECRYPT | SIGN | X509_SIGN
)  # fmt: skip

PCRS: Final = 24
PCR_BYTES: Final = 32
_RSA_BITS: Final = (2048, 3072, 4096)
_RSA_EXPONENT: Final = 65537
# Nothing that is parsed here is larger; TPM2B lengths are checked against it first.
_SIZE_MAX: Final = 4096

HashAlgorithm = hashes.SHA256 | hashes.SHA384 | hashes.SHA512


class Reader:
    """Takes a structure apart from its front. `what` names it in the errors."""

    __slots__ = ("_content", "_offset", "_what")

    def __init__(self, content: bytes, what: str) -> None:
        self._content = content
        self._offset = 0
        self._what = what

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self._offset + count
        if end > len(self._content):
            raise self.malformed(f"{end} bytes or more", f"{len(self._content)}")
        taken = self._content[self._offset : end]
        self._offset = end
        return taken

    def u8(self) -> int:
        """The next byte as a number."""
        return self.take(1)[0]

    def u16(self) -> int:
        """The next 16 bits."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """The next 32 bits."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """The next 64 bits."""
        return int.from_bytes(self.take(8), "big")

    def tpm2b(self, largest: int = _SIZE_MAX) -> bytes:
        """The contents of a TPM2B of at most `largest` bytes."""
        size = self.u16()
        if size > largest:
            raise self.malformed(f"a field of at most {largest} bytes", f"{size}")
        return self.take(size)

    def hash_algorithm(self) -> int:
        """A TPMI_ALG_HASH that avow accepts."""
        algorithm = self.u16()
        if algorithm not in HASHES:
            raise self.malformed("SHA-256, SHA-384 or SHA-512", f"algorithm {algorithm:#06x}")
        return algorithm

    def end(self) -> None:
        """Nothing may follow."""
        left = len(self._content) - self._offset
        if left:
            raise self.malformed("its end", f"{counted(left, 'byte')} more")

    def malformed(self, expected: str, actual: str) -> MalformedError:
        """The error for this structure."""
        return MalformedError(
            f"expected {expected} in the {self._what}, got {actual}; have a TPM make it again"
        )


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_ATTEST (section 10.12.12) of type TPM_ST_ATTEST_QUOTE (TPMS_QUOTE_INFO, 10.12.4).

    `qualified_signer` is a name: 2 bytes of algorithm and a digest. `extra_data` (0 to 66 bytes) is
    what the caller asked to have signed. `pcrs` are the numbers selected in the SHA-256 bank, and
    `pcr_digest` the digest over their values, in ascending order, by the hash of the signature.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    clock_safe: bool
    firmware_version: int
    pcrs: tuple[int, ...]
    pcr_digest: bytes


def parse_quote(content: bytes) -> Quote:
    """The quote that a TPMS_ATTEST is. Raises `MalformedError`, also for other attestations."""
    reader = Reader(content, "TPMS_ATTEST")
    magic, kind = reader.u32(), reader.u16()
    if magic != GENERATED:
        raise reader.malformed("the mark of a TPM (ff544347)", f"{magic:08x}")
    if kind != ST_ATTEST_QUOTE:
        raise reader.malformed("a quote (type 8018)", f"type {kind:04x}")
    qualified_signer = reader.tpm2b(66)
    extra_data = reader.tpm2b(66)
    clock_ms, reset_count, restart_count, safe = (
        reader.u64(),
        reader.u32(),
        reader.u32(),
        reader.u8(),
    )
    if safe > 1:
        raise reader.malformed("yes or no (1 or 0) for the clock", f"{safe}")
    firmware_version = reader.u64()
    pcrs = _pcr_selection(reader)
    pcr_digest = reader.tpm2b(64)
    reader.end()
    return Quote(
        qualified_signer,
        extra_data,
        clock_ms,
        reset_count,
        restart_count,
        safe == 1,
        firmware_version,
        pcrs,
        pcr_digest,
    )


def _pcr_selection(reader: Reader) -> tuple[int, ...]:
    """TPML_PCR_SELECTION (sections 10.9.7 and 10.6.2) with the SHA-256 bank alone."""
    banks = reader.u32()
    if banks != 1:
        raise reader.malformed("PCRs of one bank", f"of {banks}")
    bank, size = reader.u16(), reader.u8()
    if bank != ALG_SHA256:
        raise reader.malformed("PCRs of the SHA-256 bank", f"of {bank:#06x}")
    if size != PCRS // 8:
        raise reader.malformed(f"a selection of {PCRS // 8} bytes", f"{size}")
    selected = int.from_bytes(reader.take(size), "little")
    return tuple(number for number in range(PCRS) if selected >> number & 1)


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE (section 11.3.4): `rsa` by RSASSA and RSAPSS, `r` and `s` by ECDSA."""

    algorithm: int
    hash_algorithm: int
    rsa: bytes = b""
    r: int = 0
    s: int = 0


def parse_signature(content: bytes) -> Signature:
    """A signature by RSASSA, RSAPSS or ECDSA. Raises `MalformedError`."""
    reader = Reader(content, "TPMT_SIGNATURE")
    algorithm = reader.u16()
    if algorithm in (ALG_RSASSA, ALG_RSAPSS):
        signature = Signature(algorithm, reader.hash_algorithm(), rsa=reader.tpm2b(512))
    elif algorithm == ALG_ECDSA:
        hash_algorithm = reader.hash_algorithm()
        r, s = reader.tpm2b(48), reader.tpm2b(48)
        signature = Signature(
            algorithm, hash_algorithm, r=int.from_bytes(r, "big"), s=int.from_bytes(s, "big")
        )
    else:
        raise reader.malformed("RSASSA, RSAPSS or ECDSA", f"algorithm {algorithm:#06x}")
    reader.end()
    return signature


PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Public:
    """TPMT_PUBLIC (section 12.2.4) of an asymmetric key; `encoded` are its bytes.

    `scheme` and `scheme_hash` are ALG_NULL (0x0010) where the key has no scheme of its own.
    `symmetric_bits` is 0, or the bits of the AES-CFB that a storage key protects its children with.
    """

    encoded: bytes
    name_algorithm: int
    attributes: int
    scheme: int
    scheme_hash: int
    symmetric_bits: int
    key: PublicKey

    @property
    def name(self) -> bytes:
        """The key's Name (Part 1, section 16): the algorithm, and the digest of the structure."""
        return name_of(self.name_algorithm, self.encoded)


def name_of(algorithm: int, content: bytes) -> bytes:
    """2 bytes of `algorithm`, which is in `HASHES`, and the digest of `content` by it."""
    digest = hashes.Hash(HASHES[algorithm])
    digest.update(content)
    return struct.pack(">H", algorithm) + digest.finalize()


def parse_public(content: bytes) -> Public:
    """The public area of an RSA or ECC key. Raises `MalformedError`."""
    reader = Reader(content, "TPMT_PUBLIC")
    kind = reader.u16()
    if kind not in (ALG_RSA, ALG_ECC):
        raise reader.malformed("an RSA or ECC key", f"type {kind:#06x}")
    name_algorithm, attributes = reader.hash_algorithm(), reader.u32()
    if attributes & ~_ATTRIBUTES:
        raise reader.malformed("known attributes", f"{attributes:#010x}")
    reader.tpm2b(64)  # authPolicy; it is part of the name
    symmetric_bits = _symmetric(reader)
    scheme = reader.u16()
    scheme_hash = ALG_NULL
    if scheme in (ALG_RSASSA, ALG_RSAPSS) if kind == ALG_RSA else scheme == ALG_ECDSA:
        scheme_hash = reader.hash_algorithm()
    elif scheme != ALG_NULL:
        raise reader.malformed("RSASSA, RSAPSS, ECDSA or no scheme", f"{scheme:#06x}")
    key = _rsa_key(reader) if kind == ALG_RSA else _ecc_key(reader)
    reader.end()
    return Public(content, name_algorithm, attributes, scheme, scheme_hash, symmetric_bits, key)


def _symmetric(reader: Reader) -> int:
    """TPMT_SYM_DEF_OBJECT (section 11.1.7): none, or AES in CFB mode. The key's bits."""
    algorithm = reader.u16()
    if algorithm == ALG_NULL:
        return 0
    bits = reader.u16() if algorithm == ALG_AES else 0
    if bits not in (128, 256) or reader.u16() != ALG_CFB:
        raise reader.malformed("AES-128-CFB, AES-256-CFB or nothing", f"{algorithm:#06x}, {bits}")
    return bits


def _rsa_key(reader: Reader) -> rsa.RSAPublicKey:
    """The rest of TPMS_RSA_PARMS (section 12.2.3.5) and TPM2B_PUBLIC_KEY_RSA."""
    bits, exponent = reader.u16(), reader.u32()
    modulus = reader.tpm2b(512)
    if bits not in _RSA_BITS or len(modulus) * 8 != bits or not modulus[0] & 0x80:
        raise reader.malformed(
            "an RSA key of 2048, 3072 or 4096 bits", f"{bits} and {counted(len(modulus), 'byte')}"
        )
    # Zero stands for the default (section 12.2.3.5).
    if exponent not in (0, _RSA_EXPONENT):
        raise reader.malformed(f"the exponent {_RSA_EXPONENT}", f"{exponent}")
    try:
        return rsa.RSAPublicNumbers(_RSA_EXPONENT, int.from_bytes(modulus, "big")).public_key()
    except ValueError as error:
        raise reader.malformed("an RSA key", f"none ({error})") from error


def _ecc_key(reader: Reader) -> ec.EllipticCurvePublicKey:
    """The rest of TPMS_ECC_PARMS (section 12.2.3.6) and TPMS_ECC_POINT (section 11.2.5.2)."""
    curve_number, kdf = reader.u16(), reader.u16()
    curve = CURVES.get(curve_number)
    if curve is None or kdf != ALG_NULL:
        raise reader.malformed(
            "NIST P-256 or P-384 and no KDF", f"curve {curve_number:#06x}, KDF {kdf:#06x}"
        )
    size = (curve.key_size + 7) // 8
    x, y = reader.tpm2b(size), reader.tpm2b(size)
    try:
        return ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
        ).public_key()
    except ValueError as error:
        raise reader.malformed("a point on the curve", f"none ({error})") from error
