"""The attesting side of `azure`: a real TPM in software, a mock processor and metadata service.

Only the TPM's area with the HCL report is a stand-in: swtpm has no room for 2,600 bytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from avow.errors import UnavailableError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.origin import DOCUMENT_BINDER, Expectation, verify_evidence
from avow.evidence.report_data import batch
from avow.tee.azure.attester import AK_HANDLE, REPORT_INDEX, AzureAttester
from avow.tee.azure.metadata import MetadataService
from avow.tee.azure.verifier import AzureVerifier
from avow.tee.intel.collateral import parse_collateral
from avow.tee.intel.vouching import Roots
from avow.tee.tdx.verifier import TdxVerifier
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.structures import parse_public
from avow.tee.tpm.templates import AK_RSA
from avow.testing.amd_pki import NOW, AmdPki
from avow.testing.azure_vm import (
    MockMetadata,
    certification,
    hcl_report,
    quote_answer,
    report_data,
    runtime_data,
    td_report,
)
from avow.testing.intel_pki import IntelPki, TdxBody
from avow.testing.swtpm import SoftwareTpm
from avow.testing.tpm_maker import make_persistent

pytestmark = pytest.mark.tpm

WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)
CLAIMS = Claims(b"n" * 32, Role.DOCUMENT, WORKLOAD, b"", int(NOW.timestamp()))
EXPECTATION = Expectation(b"n" * 32, Role.DOCUMENT, b"", DOCUMENT_BINDER)
CERTIFICATION = "/metadata/THIM/amd/certification"
TD_QUOTE = "/acc/tdquote"


class VirtualTpm(TpmDevice):
    """The TPM with the area that the paravisor fills."""

    def __init__(self, tcti: str, area: bytes) -> None:
        super().__init__(tcti, timeout_s=30)
        self._area = area

    def read_nv(self, index: int) -> bytes:
        assert index == REPORT_INDEX
        return self._area


@dataclass(frozen=True)
class Tpm:
    tcti: str
    runtime: bytes


@pytest.fixture(scope="module")
def tpm() -> Iterator[Tpm]:
    with SoftwareTpm() as software:
        ak = parse_public(make_persistent(software, AK_RSA, AK_HANDLE)).key
        assert isinstance(ak, rsa.RSAPublicKey)
        yield Tpm(software.tcti, runtime_data(ak))


def accepted(attester: AzureAttester, verifier: AzureVerifier) -> None:
    attester.measure(WORKLOAD)
    data, _ = batch([(CLAIMS, DOCUMENT_BINDER)])
    evidence = Evidence("azure", attester.quote(data), CLAIMS.encoded()).encoded()
    said = verify_evidence(evidence, EXPECTATION, {"azure": verifier}, NOW).claims
    assert said["module_measured"] is True
    assert said["azure.secure_boot"] is True


def test_snp(tpm: Tpm) -> None:
    pki = AmdPki()
    chip = pki.chip()
    area = hcl_report("snp", chip.report(report_data(tpm.runtime)), tpm.runtime)
    device = VirtualTpm(tpm.tcti, area)
    with MockMetadata({CERTIFICATION: certification(chip.chain)}) as service:
        attester = AzureAttester(device, MetadataService(service.address))
        accepted(attester, AzureVerifier({"snp": pki.verifier()}))
        attester.close()
    assert len(service.asked) == 1


def test_tdx(tpm: Tpm) -> None:
    pki = IntelPki(NOW)
    signed = report_data(tpm.runtime)
    quote = pki.tdx_quote(TdxBody(signed))
    device = VirtualTpm(tpm.tcti, hcl_report("tdx", td_report(signed), tpm.runtime))
    collateral = parse_collateral(pki.collateral("tdx").encode(), "mock")
    with MockMetadata({TD_QUOTE: quote_answer(quote)}) as service:
        attester = AzureAttester(device, MetadataService(service.address), collateral=collateral)
        verifier = TdxVerifier(Roots(root_der=pki.root_der))
        accepted(attester, AzureVerifier({"tdx": verifier}))
        attester.close()
    ((method, path, headers, body),) = service.asked
    assert (method, path, headers["Metadata"]) == ("POST", TD_QUOTE, "true")
    assert headers["Content-Type"] == "application/json"
    asked = base64.urlsafe_b64encode(td_report(signed)).rstrip(b"=").decode()
    assert json.loads(body) == {"report": asked}


def test_a_key_that_the_report_does_not_name(tpm: Tpm) -> None:
    other = runtime_data(rsa.generate_private_key(65537, 2048).public_key())
    chip = AmdPki().chip()
    area = hcl_report("snp", chip.report(report_data(other)), other)
    device = VirtualTpm(tpm.tcti, area)
    with (
        MockMetadata({CERTIFICATION: certification(chip.chain)}) as service,
        pytest.raises(UnavailableError, match="0x81000003"),
    ):
        AzureAttester(device, MetadataService(service.address))


def test_an_ordinary_tpm_is_none_of_azures(tpm: Tpm) -> None:
    device = TpmDevice(tpm.tcti, timeout_s=30)
    with pytest.raises(UnavailableError):
        AzureAttester(device)
    empty = VirtualTpm(tpm.tcti, bytes(2600))
    with pytest.raises(UnavailableError, match="confidential VM of Azure"):
        AzureAttester(empty)
