"""Evidence of two confidential VMs of Azure, as trustee's tests have it."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from avow.errors import AvowError, UnavailableError, UntrustedError
from avow.evidence.roles import Authenticated
from avow.tee.azure.hcl import parse_hcl_report, parse_runtime_data
from avow.tee.azure.report import Report
from avow.tee.azure.verifier import AzureVerifier
from avow.tee.intel.collateral import parse_collateral
from avow.tee.intel.quote import without_padding
from avow.tee.snp.report import SnpEvidence
from avow.tee.snp.verifier import SnpVerifier
from avow.tee.tdx.report import FORMAT, decode_td_report, decode_tdx_quote, encode_report
from avow.tee.tdx.verifier import TdxVerifier
from avow.testing.tpm_forge import tpm2b
from tests.vectors.evidence_files import case, certificates, flips, vector

pytestmark = pytest.mark.vectors

NOW = datetime(2025, 6, 1, tzinfo=UTC)


def parts(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(vector(f"azure/{name}_vtpm_evidence.json"))
    return loaded


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def around(kind: Any, hardware: bytes, evidence: dict[str, Any]) -> Report:
    quote = evidence["tpm_quote"]
    signature = bytes.fromhex(quote["signature"])
    return Report(
        kind,
        hardware,
        parse_hcl_report(unpadded(evidence["hcl_report"])).runtime,
        bytes.fromhex(quote["message"]),
        # The vectors have the number alone: RSASSA with SHA-256.
        struct.pack(">HH", 0x0014, 0x000B) + tpm2b(signature),
        dict(enumerate(map(bytes.fromhex, quote["pcrs"]))),
    )


@pytest.fixture(scope="module")
def snp() -> Report:
    evidence = parts("snp")
    ask, ark = certificates("snp/milan_ask_ark.pem")
    vcek = unpadded(evidence["vcek"])
    report = parse_hcl_report(unpadded(evidence["hcl_report"])).hardware_report
    return around("snp", SnpEvidence(report, (vcek, ask, ark)).encoded(), evidence)


@pytest.fixture(scope="module")
def tdx() -> Report:
    evidence = parts("tdx")
    quote = without_padding(unpadded(evidence["td_quote"]), FORMAT)
    return around("tdx", encode_report(quote, None, None), evidence)


class OnlyReportData:
    """In place of Intel's word, which nobody kept for this processor: the quote's report data."""

    platform = "tdx"

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        quote = without_padding(unpadded(parts("tdx")["td_quote"]), FORMAT)
        assert report == encode_report(quote, None, None)
        body = decode_td_report(decode_tdx_quote(quote).body)
        return Authenticated("tdx", body.report_data, "report data", {})


def refusal(report: Report) -> str:
    judge = AzureVerifier({"snp": SnpVerifier(), "tdx": OnlyReportData()})
    with pytest.raises(AvowError) as caught:
        judge.authenticate(report.encoded(), NOW)
    assert caught.value.finding is not None
    return caught.value.finding.check.number


@pytest.mark.parametrize("name", ["snp", "tdx"])
def test_all_is_good_but_the_size_of_the_challenge(name: str, snp: Report, tdx: Report) -> None:
    """TPM6 is the last check: hardware, runtime data, signature and registers hold. What was signed
    is the word "challenge", of 9 bytes."""
    assert refusal({"snp": snp, "tdx": tdx}[name]) == "TPM6"


def test_runtime_data(snp: Report, tdx: Report) -> None:
    for report in (snp, tdx):
        runtime = parse_runtime_data(report.runtime)
        assert runtime.secure_boot is True
        assert runtime.ak.key_size == 2048


def test_intels_word_is_needed(tdx: Report) -> None:
    judge = AzureVerifier({"snp": SnpVerifier(), "tdx": TdxVerifier()})
    with pytest.raises(UnavailableError, match="FMSPC 00806F050000"):
        judge.authenticate(tdx.encoded(), NOW)


INTEL = "azure-tdx-attributes-zero/collateral.json"
# The collateral's time.
INTEL_NOW = datetime(2025, 10, 25, tzinfo=UTC)


@pytest.mark.cases
def test_intels_word() -> None:
    """TDATTRIBUTES are all zero on this VM: genuine, and for the policy to judge."""
    quote = without_padding(case("azure-tdx-attributes-zero/td-quote.bin"), FORMAT)
    collateral = parse_collateral(case(INTEL), "Intel")
    report = encode_report(quote, collateral, None)
    claims = TdxVerifier().authenticate(report, INTEL_NOW).claims
    # Level of 2023-08-09; the TDX module is TDX_01 with the security version 2.
    assert claims["tcb.status"] == "OutOfDate"
    assert (
        claims["tcb.date_age_s"] == (INTEL_NOW - datetime(2023, 8, 9, tzinfo=UTC)).total_seconds()
    )
    assert claims["tcb.advisories"] == ("INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986")
    assert claims["tdx.attributes"] == bytes(8)
    assert claims["tdx.sept_ve_disable"] is False
    assert claims["debug"] is False
    for place in (48 + 120, 48 + 584 + 4, 48 + 584 + 4 + 64 + 64 + 6):
        changed = quote[:place] + bytes([quote[place] ^ 1]) + quote[place + 1 :]
        with pytest.raises(UntrustedError):
            TdxVerifier().authenticate(encode_report(changed, collateral, None), INTEL_NOW)


@pytest.mark.cases
def test_the_whole_chain_of_a_real_vm() -> None:
    """From Intel's root over the paravisor's TPM to its quote."""
    evidence = parts("tdx")
    quote = without_padding(unpadded(evidence["td_quote"]), FORMAT)
    collateral = parse_collateral(case(INTEL), "Intel")
    report = around("tdx", encode_report(quote, collateral, None), evidence)
    judge = AzureVerifier({"tdx": TdxVerifier()})
    with pytest.raises(AvowError) as caught:
        judge.authenticate(report.encoded(), INTEL_NOW)
    assert caught.value.finding is not None
    # All but the size of what was signed, "challenge", holds.
    assert caught.value.finding.check.number == "TPM6"


@pytest.mark.parametrize("name", ["snp", "tdx"])
@pytest.mark.parametrize("part", ["quote", "signature", "runtime"])
def test_no_flipped_bit_is_accepted(name: str, part: str, snp: Report, tdx: Report) -> None:
    report = {"snp": snp, "tdx": tdx}[name]
    change: Callable[[bytes], Report] = {
        "quote": lambda content: replace(report, quote=content),
        "signature": lambda content: replace(report, signature=content),
        "runtime": lambda content: replace(report, runtime=content),
    }[part]
    for flipped in flips(getattr(report, part)):
        assert refusal(change(flipped)) in {"AZ1", "AZ3", "TPM4"}


def test_parts_of_two_machines(snp: Report, tdx: Report) -> None:
    assert refusal(replace(snp, runtime=tdx.runtime)) == "AZ3"
    assert refusal(replace(snp, quote=tdx.quote, signature=tdx.signature)) == "TPM4"
    assert refusal(replace(snp, pcrs=tdx.pcrs)) == "TPM7"


def test_broken_chips_key(snp: Report) -> None:
    ask, ark = certificates("snp/milan_ask_ark.pem")
    report = parse_hcl_report(unpadded(parts("snp")["hcl_report"])).hardware_report
    broken = SnpEvidence(report, (vector("snp/vcek_invalid.der"), ask, ark))
    judge = AzureVerifier({"snp": SnpVerifier()})
    with pytest.raises(AvowError, match="SNP"):
        judge.authenticate(replace(snp, hardware=broken.encoded()).encoded(), NOW)
