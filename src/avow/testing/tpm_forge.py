"""Reports like a TPM's, made from a key in software: for what no TPM would ever say.

The encodings are written here a second time, apart from the parser's module, so that the two check
each other.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from avow.tee.tpm.event_log import Log, replay
from avow.tee.tpm.report import Report

Scheme = Literal["ecdsa", "rsassa", "rsapss"]
# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign.
ATTRIBUTES: Final = 0x00050472
ENDORSEMENT: Final = bytes.fromhex("4000000b")
_NAMES: Final = {0x000B: hashes.SHA256(), 0x000C: hashes.SHA384(), 0x000D: hashes.SHA512()}


def tpm2b(content: bytes) -> bytes:
    """16 bits of length, and the content."""
    return struct.pack(">H", len(content)) + content


@dataclass(frozen=True, slots=True)
class Attest:
    """The fields of a TPMS_ATTEST; whoever changes one makes what a TPM would not."""

    qualified_signer: bytes
    extra_data: bytes
    pcr_digest: bytes
    pcrs: tuple[int, ...]
    magic: int = 0xFF544347
    kind: int = 0x8018
    clock_ms: int = 1000
    reset_count: int = 7
    restart_count: int = 3
    safe: int = 1
    firmware_version: int = 0x0102030405060708
    banks: int = 1
    bank: int = 0x000B
    select_bytes: int = 3

    def encoded(self) -> bytes:
        """The structure as bytes."""
        selected = sum(1 << number for number in self.pcrs)
        selection = struct.pack(">HB", self.bank, self.select_bytes) + selected.to_bytes(
            self.select_bytes, "little"
        )
        return (
            struct.pack(">IH", self.magic, self.kind)
            + tpm2b(self.qualified_signer)
            + tpm2b(self.extra_data)
            + struct.pack(">QIIB", self.clock_ms, self.reset_count, self.restart_count, self.safe)
            + struct.pack(">QI", self.firmware_version, self.banks)
            + selection * self.banks
            + tpm2b(self.pcr_digest)
        )


class ForgedKey:
    """An attestation key in software. Its private half is known: no TPM vouches for it."""

    def __init__(
        self,
        scheme: Scheme = "ecdsa",
        *,
        attributes: int = ATTRIBUTES,
        parent: bytes = ENDORSEMENT,
        hash_algorithm: int = 0x000B,
        curve: ec.EllipticCurve | None = None,
    ) -> None:
        self.scheme = scheme
        self.parent = parent
        self.hash_algorithm = hash_algorithm
        self.key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        head = struct.pack(">HHI", 1 if scheme != "ecdsa" else 0x23, 0x000B, attributes)
        head += tpm2b(b"") + struct.pack(">H", 0x0010)
        if scheme == "ecdsa":
            curve = ec.SECP256R1() if curve is None else curve
            self.key = ec.generate_private_key(curve)
            point = self.key.public_key().public_numbers()
            size = curve.key_size // 8
            number = {"secp256r1": 3, "secp384r1": 4}[curve.name]
            self.public = (
                head
                + struct.pack(">HHHH", 0x0018, hash_algorithm, number, 0x0010)
                + tpm2b(point.x.to_bytes(size, "big"))
                + tpm2b(point.y.to_bytes(size, "big"))
            )
        else:
            self.key = rsa.generate_private_key(65537, 2048)
            algorithm = 0x0014 if scheme == "rsassa" else 0x0016
            self.public = (
                head
                + struct.pack(">HHHI", algorithm, hash_algorithm, 2048, 0)
                + tpm2b(self.key.public_key().public_numbers().n.to_bytes(256, "big"))
            )

    @property
    def qualified_name(self) -> bytes:
        """As the TPM would write it into a quote."""
        name = b"\x00\x0b" + hashlib.sha256(self.public).digest()
        return b"\x00\x0b" + hashlib.sha256(self.parent + name).digest()

    def sign(self, content: bytes) -> bytes:
        """TPMT_SIGNATURE."""
        algorithm = _NAMES[self.hash_algorithm]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.key.sign(content, ec.ECDSA(algorithm)))
            size = self.key.curve.key_size // 8
            return (
                struct.pack(">HH", 0x0018, self.hash_algorithm)
                + tpm2b(r.to_bytes(size, "big"))
                + tpm2b(s.to_bytes(size, "big"))
            )
        if self.scheme == "rsassa":
            signature = self.key.sign(content, padding.PKCS1v15(), algorithm)
        else:
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.MAX_LENGTH)
            signature = self.key.sign(content, pss, algorithm)
        number = 0x0014 if self.scheme == "rsassa" else 0x0016
        return struct.pack(">HH", number, self.hash_algorithm) + tpm2b(signature)

    def attest(self, data: bytes, pcrs: Mapping[int, bytes]) -> Attest:
        """A right TPMS_ATTEST over `data` and these PCRs, to be changed."""
        context = hashes.Hash(_NAMES[self.hash_algorithm])
        for number in sorted(pcrs):
            context.update(pcrs[number])
        return Attest(self.qualified_name, data, context.finalize(), tuple(sorted(pcrs)))

    def report(
        self,
        data: bytes,
        *,
        log: Log = (),
        pcrs: Mapping[int, bytes] | None = None,
        attest: Attest | None = None,
        certificates: tuple[bytes, ...] = (),
    ) -> Report:
        """A report over `data`; `attest` replaces what would be right."""
        if pcrs is None:
            pcrs = {**{number: bytes([number]) * 32 for number in range(8)}, 23: replay(log)}
        quote = (self.attest(data, pcrs) if attest is None else attest).encoded()
        return Report(quote, self.sign(quote), self.public, self.parent, pcrs, log, certificates)
