"""Which platform is this? Looks at files of the kernel, and changes nothing.

A platform that is found may still fail to attest: only opening it shows that the hardware, the
host's services and the rights are there.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# Microsoft's tag for every virtual machine on Azure, in the DMI table.
_AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
_TSM: Final = "sys/kernel/config/tsm/report"
_TSM_SINCE: Final = (6, 7)
_TEXT_BYTES_MAX: Final = 65536
# From the checkout: a package index has a project of somebody else by avow's name.
INSTALL_BINDING: Final = (
    "install libtss2 and a C compiler (on Debian: apt-get install libtss2-dev gcc pkg-config "
    "python3-dev), then in avow's checkout `pip install '.[tpm]'`"
)


@dataclass(frozen=True, slots=True)
class Found:
    """One platform: here or not, and why; for one that is absent, what would have to be there."""

    platform: str
    present: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look: the root of the file system, the kernel's release, the environment."""

    root: Path = Path("/")
    release: str = field(default_factory=lambda: os.uname().release)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def text(self, path: str) -> str:
        """The start of a file, or nothing where it cannot be read."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_TEXT_BYTES_MAX).decode("ascii", "replace").strip("\0\n ")
        except OSError:
            return ""

    def has(self, path: str) -> bool:
        """True when something is there."""
        return os.path.lexists(self.root / path)

    def may_use(self, path: str) -> bool:
        """True when this process may read and write it."""
        return os.access(self.root / path, os.R_OK | os.W_OK)

    def cpu_has(self, flag: str) -> bool:
        """True when /proc/cpuinfo lists a flag."""
        return re.search(rf"^flags\s*:.*\b{flag}\b", self.text("proc/cpuinfo"), re.M) is not None


def detect(machine: Machine | None = None) -> list[Found]:
    """Every platform of avow, in the order in which `auto` takes them."""
    machine = Machine() if machine is None else machine
    return [
        _azure(machine),
        _tdx(machine),
        _snp(machine),
        _cca(machine),
        _nitro(machine),
        _sgx(machine),
        _tpm(machine),
        _psa(machine),
        Found(
            "simulated",
            True,
            "always present, but protects nothing: `auto` never chooses it, and only a "
            "policy with unsafe_simulated accepts it",
        ),
    ]


def _device(machine: Machine, platform: str, path: str) -> Found:
    if not machine.may_use(path):
        return Found(
            platform,
            False,
            f"no permission to read and write /{path}: run as root, or give the user permission",
        )
    return Found(platform, True, f"/{path}")


def _tsm(machine: Machine, platform: str, what: str) -> Found:
    """What is here reports through configfs-tsm: can it?"""
    if not machine.has(_TSM):
        if _release(machine.release) < _TSM_SINCE:
            reason = f"{what}, but Linux {machine.release} has no configfs-tsm: use 6.7 or newer"
        else:
            reason = (
                f"{what}, but /{_TSM} is missing: `mount -t configfs none "
                "/sys/kernel/config`, and use a kernel with CONFIG_TSM_REPORTS"
            )
        return Found(platform, False, reason)
    if not machine.may_use(_TSM):
        return Found(platform, False, f"{what}, but no permission to write in /{_TSM}: run as root")
    return Found(platform, True, f"{what}, reports through /{_TSM}")


def _release(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _azure(machine: Machine) -> Found:
    if machine.text("sys/class/dmi/id/chassis_asset_tag") != _AZURE_TAG:
        return Found("azure", False, "no virtual machine on Azure (by the DMI chassis asset tag)")
    tpm = _tpm(machine)
    if not tpm.present:
        return Found(
            "azure", False, f"a virtual machine on Azure, but its vTPM cannot be used: {tpm.reason}"
        )
    return Found(
        "azure",
        True,
        f"a virtual machine on Azure with a vTPM ({tpm.reason}); its report will show "
        "whether it is a confidential one",
    )


def _tdx(machine: Machine) -> Found:
    if machine.has("dev/tdx_guest"):
        return _tsm(machine, "tdx", "a TDX guest (/dev/tdx_guest)")
    if machine.cpu_has("tdx_guest"):
        return Found("tdx", False, "a TDX guest without its driver: run `modprobe tdx_guest`")
    return Found("tdx", False, "no TDX guest: no /dev/tdx_guest, and no such CPU flag")


def _snp(machine: Machine) -> Found:
    if machine.has("dev/sev-guest"):
        by_tsm = _tsm(machine, "snp", "a SEV-SNP guest (/dev/sev-guest)")
        return by_tsm if by_tsm.present else _device(machine, "snp", "dev/sev-guest")
    if machine.cpu_has("sev_snp"):
        return Found("snp", False, "a SEV-SNP processor, but no driver: run `modprobe sev-guest`")
    return Found("snp", False, "no SEV-SNP guest: no /dev/sev-guest")


def _cca(machine: Machine) -> Found:
    if not machine.has("sys/devices/platform/arm-cca-dev"):
        return Found("cca", False, "no Arm CCA realm: no /sys/devices/platform/arm-cca-dev")
    return _tsm(machine, "cca", "an Arm CCA realm")


def _nitro(machine: Machine) -> Found:
    if not machine.has("dev/nsm"):
        return Found("nitro", False, "no AWS Nitro enclave: no /dev/nsm")
    return _device(machine, "nitro", "dev/nsm")


def _sgx(machine: Machine) -> Found:
    kind = machine.text("dev/attestation/attestation_type")
    if kind == "dcap":
        return Found("sgx", True, "a Gramine enclave (/dev/attestation)")
    if kind:
        return Found(
            "sgx",
            False,
            f"a Gramine enclave with the attestation type {kind[:20]!r}: set "
            f'`sgx.remote_attestation = "dcap"` in its manifest',
        )
    if machine.has("dev/sgx_enclave"):
        return Found(
            "sgx",
            False,
            "the processor has SGX, but avow does not run in an enclave: start it with gramine-sgx",
        )
    return Found("sgx", False, "no Gramine enclave: no /dev/attestation; and no /dev/sgx_enclave")


def _psa(machine: Machine) -> Found:
    # Other makers' TEEs have the same device; OP-TEE's driver is on one of two buses.
    buses = ("platform", "arm_ffa")
    if not any(machine.has(f"sys/bus/{bus}/drivers/optee") for bus in buses):
        return Found("psa", False, "no OP-TEE: no driver optee in /sys/bus")
    if not machine.has("dev/tee0"):
        return Found("psa", False, "OP-TEE without /dev/tee0: see the kernel's log")
    found = _device(machine, "psa", "dev/tee0")
    if not found.present:
        return found
    return Found(
        "psa",
        True,
        "OP-TEE (/dev/tee0); a request for evidence will show whether it has the "
        "attestation application",
    )


def _tpm(machine: Machine) -> Found:
    if importlib.util.find_spec("tpm2_pytss") is None:
        return Found(
            "tpm",
            False,
            f"the package tpm2-pytss is absent; {INSTALL_BINDING}",
        )
    tcti = machine.environment.get("AVOW_TPM_TCTI", "")
    if tcti:
        return Found("tpm", True, f"AVOW_TPM_TCTI={tcti}")
    if machine.text("sys/class/tpm/tpm0/tpm_version_major") == "1":
        return Found("tpm", False, "the TPM is a 1.2: avow needs a 2.0")
    if not machine.has("dev/tpmrm0"):
        return Found("tpm", False, "no TPM 2.0: no /dev/tpmrm0, and no AVOW_TPM_TCTI")
    return _device(machine, "tpm", "dev/tpmrm0")
