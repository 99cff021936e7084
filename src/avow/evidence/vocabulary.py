"""Every claim that a policy can speak about: its name, type and meaning.

A verifier emits only these names (a test holds it to that), and a policy with any other name is
refused. `{n}` stands for a number. docs/reference/claims.md is generated from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ClaimValue = bool | int | str | bytes | tuple[str, ...]
VerifiedClaims = Mapping[str, ClaimValue]


@dataclass(frozen=True, slots=True)
class ClaimKind:
    """`platforms` is empty for claims of every platform; `size` is in bytes, for `bytes` only."""

    name: str
    type: type
    meaning: str
    platforms: tuple[str, ...] = ()
    size: int | None = None


def _kind(
    name: str, type_: type, meaning: str, *platforms: str, size: int | None = None
) -> ClaimKind:
    return ClaimKind(name, type_, meaning, platforms, size)


_INTEL = ("sgx", "tdx", "azure")
_SNP = ("snp", "azure")
_TDX = ("tdx", "azure")
_TPM = ("tpm", "azure")


def _tcb(name: str, meaning: str) -> tuple[ClaimKind, ...]:
    levels = {"bootloader": "boot loader", "tee": "TEE", "snp": "SNP firmware",
              "microcode": "microcode", "fmc": "FMC (Turin and later; else 0)"}  # fmt: skip
    return tuple(
        _kind(f"snp.{name}.{level}", int, f"{meaning}: {words}.", *_SNP)
        for level, words in levels.items()
    )


KINDS: tuple[ClaimKind, ...] = (
    _kind("platform", str, "The platform whose hardware signed."),
    _kind("role", str, "server, client, document, certificate or program."),
    _kind("module", bytes, "SHA-256 of the WebAssembly module.", size=32),
    _kind("runtime", bytes, "SHA-256 of the runtime's manifest.", size=32),
    _kind("configuration", bytes, "SHA-256 of the configuration.", size=32),
    _kind("boot_id", bytes, "Random; new at each start of the process.", size=32),
    _kind("key", bytes, "SHA-256 of the public key whose private key the sender has."),
    _kind("user_data", bytes, "What the program itself says; nobody vouches for it."),
    _kind("evidence_age_s", int, "Age by the sender's clock, in seconds."),
    _kind("module_measured", bool, "The platform's own log holds module, runtime, configuration."),
    _kind("debug", bool, "The platform lets its operator look inside."),
    _kind("simulated", bool, "Made by software; proves nothing.", "simulated"),
    _kind("tcb.status", str, "Intel's status for the platform's patch level.", *_INTEL),
    _kind("tcb.advisories", tuple, "Intel's advisories that apply.", *_INTEL),
    _kind("tcb.evaluation_number", int, "tcbEvaluationDataNumber of the collateral.", *_INTEL),
    _kind("tcb.date_age_s", int, "Seconds since the date of the TCB level.", *_INTEL),
    _kind("collateral.age_s", int, "Seconds since the oldest collateral was issued.",
          *_INTEL, "snp"),
    _kind("collateral.crl_checked", bool, "A current revocation list was consulted.",
          *_INTEL, "snp", "tpm"),
    _kind("sgx.mrenclave", bytes, "Measurement of the enclave.", "sgx", size=32),
    _kind("sgx.mrsigner", bytes, "Hash of the key that signed the enclave.", "sgx", size=32),
    _kind("sgx.isv_prod_id", int, "Product number that the signer chose.", "sgx"),
    _kind("sgx.isv_svn", int, "Security version of the enclave.", "sgx"),
    _kind("sgx.attributes", bytes, "ATTRIBUTES of the enclave report.", "sgx", size=16),
    _kind("sgx.config_id", bytes, "CONFIGID of the enclave report.", "sgx", size=64),
    _kind("tdx.mrtd", bytes, "Measurement of the trust domain's initial contents.",
          *_TDX, size=48),
    _kind("tdx.mrconfigid", bytes, "MRCONFIGID, chosen at creation.", *_TDX, size=48),
    _kind("tdx.mrowner", bytes, "MROWNER, chosen at creation.", *_TDX, size=48),
    _kind("tdx.mrownerconfig", bytes, "MROWNERCONFIG, chosen at creation.", *_TDX, size=48),
    _kind("tdx.rtmr.{n}", bytes, "Run-time measurement register 0 to 3.", *_TDX, size=48),
    _kind("tdx.mrseam", bytes, "Measurement of the TDX module.", *_TDX, size=48),
    _kind("tdx.mrsignerseam", bytes, "Signer of the TDX module.", *_TDX, size=48),
    _kind("tdx.attributes", bytes, "TDATTRIBUTES.", *_TDX, size=8),
    _kind("tdx.sept_ve_disable", bool, "The host cannot make the guest's kernel take #VE.", *_TDX),
    _kind("tdx.migratable", bool, "A migration TD may move the domain.", *_TDX),
    _kind("tdx.mrservicetd", bytes, "MRSERVICETD: service TDs bound to the domain; zero for none.",
          *_TDX, size=48),
    _kind("tdx.xfam", bytes, "XFAM.", *_TDX, size=8),
    _kind("snp.measurement", bytes, "Launch measurement.", *_SNP, size=48),
    _kind("snp.host_data", bytes, "HOST_DATA, chosen at launch.", *_SNP, size=32),
    _kind("snp.id_key_digest", bytes, "Digest of the owner's ID key.", *_SNP, size=48),
    _kind("snp.author_key_digest", bytes, "Digest of the author key.", *_SNP, size=48),
    _kind("snp.family_id", bytes, "FAMILY_ID of the guest.", *_SNP, size=16),
    _kind("snp.image_id", bytes, "IMAGE_ID of the guest.", *_SNP, size=16),
    _kind("snp.vmpl", int, "VM privilege level (VMPL) that asked for the report.", *_SNP),
    _kind("snp.guest_svn", int, "Security version of the guest.", *_SNP),
    _kind("snp.policy", int, "The guest policy, 64 bits.", *_SNP),
    _kind("snp.migration_agent", bool, "A migration agent is allowed.", *_SNP),
    _kind("snp.smt", bool, "The policy allows simultaneous multithreading.", *_SNP),
    _kind("snp.chip_id", bytes, "The processor, by its VCEK; by the report under a VLEK.",
          *_SNP, size=64),
    _kind("snp.csp_id", str, "Whose cloud the VLEK is for; empty for a VCEK.", *_SNP),
    _kind("snp.signer", str, "vcek or vlek.", *_SNP),
    _kind("snp.product", str, "milan, genoa or turin.", *_SNP),
    *_tcb("tcb", "Reported TCB, which the signer's key is for"),
    *_tcb("launch_tcb", "TCB under which the guest was launched, measured and encrypted"),
    *_tcb("committed_tcb", "TCB below which the host cannot roll back"),
    *_tcb("current_tcb", "TCB that runs"),
    _kind("snp.platform_info", int, "PLATFORM_INFO, 64 bits, also those without a name.", *_SNP),
    _kind("snp.platform.smt", bool, "Simultaneous multithreading is on.", *_SNP),
    _kind("snp.platform.tsme", bool, "All memory is encrypted (TSME).", *_SNP),
    _kind("snp.platform.ecc", bool, "The memory has error-correcting codes.", *_SNP),
    _kind("snp.platform.rapl_disabled", bool, "Power cannot be measured (RAPL is off).", *_SNP),
    _kind("snp.platform.ciphertext_hiding", bool, "The host cannot read the guest's ciphertext.",
          *_SNP),
    _kind("snp.platform.alias_check_complete", bool,
          "The firmware has found no aliased memory since the last reset (AMD-SB-3015).", *_SNP),
    _kind("snp.platform.iommu_write_safe", bool, "AMD's IOMMU_WRITE_SAFE (Turin).", *_SNP),
    _kind("snp.platform.tio", bool, "Trusted I/O (SEV-TIO) is on.", *_SNP),
    _kind("snp.mitigations.launch", tuple,
          "Bits of LAUNCH_MIT_VECTOR that are set, such as `0`; reports of version 5 only.", *_SNP),
    _kind("snp.mitigations.current", tuple,
          "Bits of CURRENT_MIT_VECTOR that are set; reports of version 5 only.", *_SNP),
    _kind("tpm.pcr.{n}", bytes, "PCR 0 to 23 of the SHA-256 bank, as quoted.", *_TPM, size=32),
    _kind("tpm.ak", bytes, "SHA-256 of the attestation key's SubjectPublicKeyInfo.",
          *_TPM, size=32),
    _kind("tpm.ek", bytes, "SHA-256 of the endorsement key's certificate.", "tpm", size=32),
    _kind("tpm.ak_origin", str, "Who vouches for the attestation key: ek or owner.", "tpm"),
    _kind("tpm.firmware_version", int, "Firmware version in the quote.", *_TPM),
    _kind("tpm.reset_count", int, "TPM resets since the owner was last cleared.", *_TPM),
    _kind("tpm.restart_count", int, "TPM restarts since the last reset.", *_TPM),
    _kind("tpm.clock_safe", bool, "The TPM's clock has not gone back.", *_TPM),
    _kind("azure.confidential_type", str, "snp or tdx.", "azure"),
    _kind("azure.vm_configuration", bytes, "SHA-256 of the VM's configuration as JSON.",
          "azure", size=32),
    _kind("azure.secure_boot", bool, "Secure boot, as the paravisor says.", "azure"),
    _kind("nitro.pcr.{n}", bytes, "PCR 0 to 31 (SHA-384), as signed.", "nitro", size=48),
    _kind("nitro.module_id", str, "The enclave's name, given by AWS.", "nitro"),
    _kind("psa.implementation_id", bytes, "The immutable root of trust.", "psa", "cca", size=32),
    _kind("psa.instance_id", bytes, "The device (33 bytes, EAT UEID).", "psa", "cca", size=33),
    _kind("psa.lifecycle", int, "Security lifecycle.", "psa", "cca"),
    _kind("psa.boot_seed", bytes, "Boot seed.", "psa"),
    _kind("psa.client_id", int, "The caller's partition: negative is non-secure.", "psa"),
    _kind("psa.software", tuple,
          "Software components, each `type:measurement:signer` with hexadecimal digests.",
          "psa", "cca"),
    _kind("psa.profile", str, "Profile of the token.", "psa", "cca"),
    _kind("cca.rim", bytes, "Realm initial measurement.", "cca"),
    _kind("cca.rem.{n}", bytes, "Realm extensible measurement 0 to 3.", "cca"),
    _kind("cca.personalization", bytes, "Realm personalization value.", "cca", size=64),
    _kind("cca.hash_algorithm", str, "Hash algorithm of the realm's measurements.", "cca"),
    _kind("cca.platform_config", bytes, "Platform configuration.", "cca"),
    _kind("cca.instance_id", bytes, "Random for each realm (realm profile 2.0.0).", "cca", size=33),
    _kind("cca.mec_policy", str,
          "shared or private: the keys of the realm's memory (realm profile 2.0.0).", "cca"),
    _kind("cca.lfa_policy", str,
          "disallow or allow: whether firmware may be updated while the realm runs (realm "
              "profile 2.0.0, where the monitor reports it).", "cca"),
)  # fmt: skip

_NAMED = {kind.name: kind for kind in KINDS if not kind.name.endswith("{n}")}
_NUMBERED = {kind.name.removesuffix("{n}"): kind for kind in KINDS if kind.name.endswith("{n}")}
_NUMBER = re.compile(r"0|[1-9][0-9]?")


def kind_of(name: str) -> ClaimKind | None:
    """What a claim's name means; None for a name that is none."""
    kind = _NAMED.get(name)
    if kind is not None:
        return kind
    family, dot, number = name.rpartition(".")
    return _NUMBERED.get(family + dot) if _NUMBER.fullmatch(number) else None


def is_value_of(kind: ClaimKind, value: object) -> bool:
    """True when `value` has the type and size of `kind`."""
    if kind.type is tuple:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    if type(value) is not kind.type:
        return False
    return kind.size is None or (isinstance(value, bytes) and len(value) == kind.size)
