"""The ATTESTATION_REPORT of AMD SEV-SNP, and how avow carries it with its certificates.

SEV Secure Nested Paging Firmware ABI Specification (AMD 56860), revision 1.58: "ATTESTATION_REPORT
Structure" for the report (versions 2 to 5), section 2.2 for TCB_VERSION, section 4.3 for the guest
policy, and chapter 10 for the format of an ECDSA P-384 signature. All numbers are little-endian.
Version 3 says which processor it was (CPUID family, model, stepping), version 5 adds the mitigation
vectors; what has no name in a version has to be zero. AMD has not published what version 4 changes
(firmware 1.55.31 writes it); its layout is that of version 3.

avow's payload is deterministic CBOR: { "report": bytes, "chain": [VCEK or VLEK, ASK or ASVK, ARK],
"crl": bytes }, certificates and CRL in DER, `crl` optional.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from avow.errors import MalformedError
from avow.evidence import cbor

REPORT_BYTES: Final = 0x4A0
# What the signature is over.
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = (2, 3, 4, 5)
REPORT_DATA_OFFSET: Final = 0x50
CHIP_ID_BYTES: Final = 64

# Up to the signature, in the order of the specification's table.
LAYOUT: Final = struct.Struct(
    "<"
    "I I Q 16s 16s"  # 00 version, guest_svn, policy, family_id, image_id
    "I I 8s Q"  # 30 vmpl, signature_algo, current_tcb, platform_info
    "I I"  # 48 signing key and masking, reserved
    "64s 48s 32s"  # 50 report_data, measurement, host_data
    "48s 48s"  # e0 id_key_digest, author_key_digest
    "32s 32s"  # 140 report_id, report_id_ma
    "8s 24s 64s"  # 180 reported_tcb, cpuid and reserved, chip_id
    "8s 8s"  # 1e0 committed_tcb, current and committed version
    "8s 168s"  # 1f0 launch_tcb, mitigation vectors and reserved
)
_HALF: Final = 48
# r and s take 72 bytes each, and 368 bytes are reserved.
_SIGNATURE: Final = struct.Struct("<48s 24s 48s 24s 368s")

_ECDSA_P384_SHA384: Final = 1
_POLICY_SMT, _POLICY_ONE, _POLICY_MIGRATE_MA, _POLICY_DEBUG = 16, 17, 18, 19
# The highest bit of the guest policy that has a name: PAGE_SWAP_DISABLE.
_POLICY_BITS: Final = 26
_FLAG_BITS: Final = 5
_VECTOR_BITS: Final = 64
# PLATFORM_INFO (40h): the bits that have a name.
PLATFORM_FLAGS: Final = {
    "smt": 0,
    "tsme": 1,
    "ecc": 2,
    "rapl_disabled": 3,
    "ciphertext_hiding": 4,
    "alias_check_complete": 5,
    "iommu_write_safe": 6,
    "tio": 7,
}


class SigningKey(enum.IntEnum):
    """SIGNING_KEY: whose key signed."""

    VCEK = 0
    VLEK = 1
    NONE = 7


@dataclass(frozen=True, slots=True)
class Tcb:
    """TCB_VERSION: security patch levels, 0 to 255 each; `fmc` is 0 before Turin."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    def encoded(self, *, turin: bool) -> bytes:
        """The 8 bytes of one generation."""
        if turin:
            return bytes((self.fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode))
        return bytes((self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode))


def decode_tcb(content: bytes, *, turin: bool) -> Tcb:
    """The levels in 8 bytes: Turin and later have another order. Raises `MalformedError`."""
    if turin:
        tcb = Tcb(content[1], content[2], content[3], content[7], content[0])
    else:
        tcb = Tcb(content[0], content[1], content[6], content[7])
    if tcb.encoded(turin=turin) != content:
        raise _malformed("zeros in the reserved bytes of a TCB version", content.hex())
    return tcb


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPUID of the processor: combined family and model, and stepping."""

    family: int
    model: int
    stepping: int


@dataclass(frozen=True, slots=True)
class Report:
    """A report, with the specification's names. Nothing is verified yet.

    The TCBs are 8 bytes whose order depends on the processor: see `decode_tcb`. `cpu` is None in
    version 2, and the mitigation vectors are before version 5. `signed` are the bytes that the
    signature (`r`, `s`) is over.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    author_key_enabled: bool
    chip_key_masked: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpu: Cpu | None
    chip_id: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    launch_mitigations: int | None
    current_mitigations: int | None
    signed: bytes
    r: int
    s: int

    @property
    def debug(self) -> bool:
        """The policy lets the hypervisor decrypt the guest's memory."""
        return bool(self.policy >> _POLICY_DEBUG & 1)

    @property
    def migration_agent(self) -> bool:
        """The policy allows a migration agent."""
        return bool(self.policy >> _POLICY_MIGRATE_MA & 1)

    @property
    def smt(self) -> bool:
        """The policy allows simultaneous multithreading."""
        return bool(self.policy >> _POLICY_SMT & 1)

    @property
    def platform_flags(self) -> dict[str, bool]:
        """The bits of PLATFORM_INFO that have a name."""
        return {name: bool(self.platform_info >> bit & 1) for name, bit in PLATFORM_FLAGS.items()}


def bit_numbers(vector: int) -> tuple[str, ...]:
    """The bits of a mitigation vector that are set, by number."""
    return tuple(str(bit) for bit in range(_VECTOR_BITS) if vector >> bit & 1)


def parse_report(content: bytes) -> Report:
    """The fields of a report (1,184 bytes). Raises `MalformedError`."""
    if len(content) != REPORT_BYTES:
        raise _malformed(f"{REPORT_BYTES} bytes", str(len(content)))
    signed = bytes(content[:SIGNED_BYTES])
    (
        version, guest_svn, policy, family_id, image_id,
        vmpl, algorithm, current_tcb, platform_info,
        flags, reserved,
        report_data, measurement, host_data,
        id_key_digest, author_key_digest,
        report_id, report_id_ma,
        reported_tcb, cpuid, chip_id,
        committed_tcb, versions,
        launch_tcb, end,
    ) = LAYOUT.unpack(signed)  # fmt: skip
    if version not in VERSIONS:
        raise _malformed(
            f"one of the versions {', '.join(map(str, VERSIONS))}", f"version {version}"
        )
    _check_zero(reserved, "4C")
    if algorithm != _ECDSA_P384_SHA384:
        raise _malformed("the signature algorithm 1 (ECDSA P-384 with SHA-384)", str(algorithm))
    _check_policy(policy)
    signing_key = _signing_key(flags)
    _check_zero(versions[3] | versions[7], "1EB and 1EF")
    cpu = None if version == 2 else Cpu(*cpuid[:3])
    _check_zero(any(cpuid if cpu is None else cpuid[3:]), "188")
    vectors: tuple[int | None, int | None] = (None, None)
    if version >= 5:
        vectors = struct.unpack("<QQ", end[:16])
        end = end[16:]
    _check_zero(any(end), "1F8")
    r, s = _signature(content[SIGNED_BYTES:])
    return Report(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        current_tcb=current_tcb,
        platform_info=platform_info,
        author_key_enabled=bool(flags & 1),
        chip_key_masked=bool(flags & 2),
        signing_key=signing_key,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=reported_tcb,
        cpu=cpu,
        chip_id=chip_id,
        committed_tcb=committed_tcb,
        launch_tcb=launch_tcb,
        launch_mitigations=vectors[0],
        current_mitigations=vectors[1],
        signed=signed,
        r=r,
        s=s,
    )


def _check_policy(policy: int) -> None:
    # An unknown bit could allow something that nobody here has thought of.
    if policy >> _POLICY_BITS or not policy >> _POLICY_ONE & 1:
        raise _malformed(
            f"a guest policy with bit {_POLICY_ONE} set and none above {_POLICY_BITS - 1}",
            f"{policy:#x}",
        )


def _signing_key(flags: int) -> SigningKey:
    number = flags >> 2 & 7
    if flags >> _FLAG_BITS or number not in SigningKey._value2member_map_:
        raise _malformed("the signing key VCEK, VLEK or none", f"the flags {flags:#x}")
    return SigningKey(number)


def _signature(content: bytes) -> tuple[int, int]:
    r, above_r, s, above_s, reserved = _SIGNATURE.unpack(content)
    _check_zero(any(above_r) or any(above_s) or any(reserved), "2A0 (the signature)")
    return int.from_bytes(r, "little"), int.from_bytes(s, "little")


def encode_signature(r: int, s: int) -> bytes:
    """The 512 bytes in which r and s are carried."""
    halves = (number.to_bytes(_HALF, "little") for number in (r, s))
    return b"".join(half + bytes(24) for half in halves) + bytes(368)


def _check_zero(reserved: int | bool, offset: str) -> None:
    if reserved:
        raise _malformed(f"zeros in the reserved bytes from {offset}h", "others")


@dataclass(frozen=True, slots=True)
class SnpEvidence:
    """A report (1,184 bytes) and what verifies it: three certificates in DER, the signer's first,
    AMD's root last, and maybe a CRL of that root."""

    report: bytes
    chain: tuple[bytes, bytes, bytes]
    crl: bytes | None = None

    def encoded(self) -> bytes:
        """The payload as bytes."""
        fields: dict[int | str, cbor.Value] = {"report": self.report, "chain": list(self.chain)}
        if self.crl is not None:
            fields["crl"] = self.crl
        return cbor.encode(fields)


def decode_evidence(content: bytes) -> SnpEvidence:
    """The parts of a payload. Raises `MalformedError`."""
    fields = cbor.decode(content, "SEV-SNP evidence")
    if not isinstance(fields, dict) or {"report", "chain"} != set(fields) - {"crl"}:
        raise _malformed("a report, a chain and maybe a CRL", "other fields")
    report, chain, crl = fields["report"], fields["chain"], fields.get("crl")
    if not isinstance(report, bytes) or not isinstance(chain, list) or len(chain) != 3:
        raise _malformed("a report and a chain of three certificates", "something else")
    leaf, intermediate, root = chain
    if not (
        isinstance(leaf, bytes) and isinstance(intermediate, bytes) and isinstance(root, bytes)
    ):
        raise _malformed("certificates in DER", "something else")
    if "crl" in fields and not isinstance(crl, bytes):
        raise _malformed("a CRL in DER", "something else")
    return SnpEvidence(report, (leaf, intermediate, root), crl if isinstance(crl, bytes) else None)


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in the SEV-SNP report, got {actual}; fetch it again, and use a "
        f"release of avow that knows this firmware"
    )
