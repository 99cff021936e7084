"""The verifying side of Azure's confidential VMs: hardware, then its runtime data, then the vTPM.

The processor signs the digest of the runtime data; these name the attestation key of the virtual
TPM that the paravisor keeps inside the protected memory; that key signs the quote.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Final

from avow.errors import Check, UnavailableError, UntrustedError, well_formed
from avow.evidence.roles import Authenticated, Verifier
from avow.evidence.vocabulary import ClaimValue
from avow.tee.azure.hcl import parse_runtime_data
from avow.tee.azure.report import Report, decode_report
from avow.tee.tpm import event_log
from avow.tee.tpm.quote import SignedQuote, check_quote, quote_claims

_SPEC: Final = "docs/platforms/azure.md"
REPORT: Final = Check("AZ1", "the Azure report is well-formed", _SPEC)
HARDWARE: Final = Check("AZ2", "avow has a verifier for the VM's hardware", _SPEC)
RUNTIME: Final = Check("AZ3", "the hardware signed the digest of the runtime data", _SPEC)
PARAVISOR: Final = Check("AZ4", "the paravisor asked for the hardware report", _SPEC)
CHECKS: Final = (REPORT, HARDWARE, RUNTIME, PARAVISOR)

# The paravisor has the highest privilege level; what boots in the VM has a lower one.
_PARAVISOR_VMPL: Final = 0
_AGAIN: Final = "ask again; if this persists, somebody may be intercepting the connection to the VM"


class AzureVerifier:
    """Verifies reports of the platform `azure`, with verifiers of `snp` and `tdx` for the part that
    is theirs. Their errors come through as they are."""

    platform = "azure"

    def __init__(self, hardware: Mapping[str, Verifier]) -> None:
        self._hardware = dict(hardware)

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`: AZ1 to AZ4, those of the hardware, and TPM4, TPM6,
        TPM7 and TPM8 for the quote."""
        with well_formed(REPORT, "Azure report", advice=_AGAIN):
            return self._authenticate(decode_report(report), now)

    def _authenticate(self, report: Report, now: datetime) -> Authenticated:
        runtime = parse_runtime_data(report.runtime)
        verifier = self._hardware.get(report.kind)
        if verifier is None:
            raise UnavailableError.at(
                HARDWARE,
                expected=f"hardware of {', '.join(sorted(self._hardware)) or 'no platform'}",
                actual=report.kind,
                advice="use a release of avow that knows the hardware",
            )
        hardware = verifier.authenticate(report.hardware, now)
        _check_runtime(report, hardware)
        _check_paravisor(hardware)
        signed = SignedQuote(report.quote, report.signature, report.pcrs, report.log)
        quote = check_quote(signed, runtime.ak)
        claims: dict[str, ClaimValue] = {
            **hardware.claims,
            **quote_claims(quote, runtime.ak, report.pcrs),
            "azure.confidential_type": report.kind,
            "azure.vm_configuration": runtime.vm_configuration,
            "azure.secure_boot": runtime.secure_boot,
        }
        return Authenticated(
            self.platform,
            quote.extra_data,
            "sha256",
            claims,
            event_log.measured(report.log),
        )


def _check_runtime(report: Report, hardware: Authenticated) -> None:
    expected = sha256(report.runtime).digest() + bytes(32)
    if hardware.binding != "report data" or not hmac.compare_digest(hardware.bound, expected):
        raise UntrustedError.at(
            RUNTIME,
            expected=f"a hardware report over {expected.hex()}, the runtime data",
            actual=f"one over {hardware.bound.hex()}",
            advice=_AGAIN,
        )


def _check_paravisor(hardware: Authenticated) -> None:
    """The VM's own kernel may ask for a report over data of its choosing, so also over runtime data
    with a key of its own: only a report that the paravisor asked for names the vTPM's key. In a VM
    on TDX the kernel has no way to ask."""
    vmpl = hardware.claims.get("snp.vmpl")
    if hardware.platform == "snp" and vmpl != _PARAVISOR_VMPL:
        raise UntrustedError.at(
            PARAVISOR,
            expected=f"a report that VMPL {_PARAVISOR_VMPL} asked for",
            actual=f"VMPL {vmpl!r}",
            advice="do not trust this VM: its kernel pretends to be the paravisor",
        )
