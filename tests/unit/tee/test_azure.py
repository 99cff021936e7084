"""The verifying side of `azure` on mock hardware, and its parsers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import AvowError, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Workload
from avow.evidence.roles import Authenticated, Verifier
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee.azure import verifier
from avow.tee.azure.hcl import decode_base64url, parse_hcl_report, parse_runtime_data
from avow.tee.azure.metadata import MetadataService
from avow.tee.azure.report import Report, decode_report
from avow.tee.azure.verifier import AzureVerifier
from avow.tee.intel.collateral import parse_collateral
from avow.tee.intel.vouching import Roots
from avow.tee.tdx.report import encode_report
from avow.tee.tdx.verifier import TdxVerifier
from avow.tee.tpm import event_log
from avow.tee.tpm.quote import spki_digest
from avow.testing.amd_pki import NOW, AmdPki, SnpSigner
from avow.testing.azure_vm import (
    MockMetadata,
    certification,
    hcl_report,
    report_data,
    runtime_data,
    td_report,
)
from avow.testing.intel_pki import IntelPki, TdxBody
from avow.testing.tpm_forge import ForgedKey

DATA = b"d" * 32
WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)
LOG = event_log.start(WORKLOAD)


@dataclass(frozen=True)
class Vm:
    pki: AmdPki
    chip: SnpSigner
    intel: IntelPki
    ak: ForgedKey

    def runtime(self, **changes: Any) -> bytes:
        return runtime_data(self.ak.key.public_key(), **changes)  # type: ignore[arg-type]

    def snp(self, runtime: bytes | None = None, data: bytes = DATA, **fields: Any) -> Report:
        runtime = self.runtime() if runtime is None else runtime
        hardware = self.chip.evidence(report_data(runtime), **fields).encoded()
        return self.around("snp", hardware, runtime, data)

    def tdx(self, body: TdxBody | None = None) -> Report:
        runtime = self.runtime()
        quote = self.intel.tdx_quote(TdxBody(report_data(runtime)) if body is None else body)
        collateral = parse_collateral(self.intel.collateral("tdx").encode(), "mock")
        return self.around("tdx", encode_report(quote, collateral, None), runtime)

    def around(self, kind: Any, hardware: bytes, runtime: bytes, data: bytes = DATA) -> Report:
        tpm = self.ak.report(data, log=LOG)
        return Report(kind, hardware, runtime, tpm.quote, tpm.signature, tpm.pcrs, LOG)

    def verifiers(self) -> dict[str, Verifier]:
        return {
            "snp": self.pki.verifier(),
            "tdx": TdxVerifier(Roots(root_der=self.intel.root_der)),
        }


@pytest.fixture(scope="module")
def vm() -> Vm:
    pki = AmdPki()
    return Vm(pki, pki.chip(), IntelPki(NOW), ForgedKey("rsassa"))


@pytest.fixture(scope="module")
def judge(vm: Vm) -> AzureVerifier:
    return AzureVerifier(vm.verifiers())


def refusal(judge: AzureVerifier, report: Report | bytes) -> str:
    content = report if isinstance(report, bytes) else report.encoded()
    with pytest.raises(AvowError) as caught:
        judge.authenticate(content, NOW)
    assert caught.value.finding is not None
    return caught.value.finding.check.number


def test_claims_of_both_kinds(vm: Vm, judge: AzureVerifier) -> None:
    for kind, report in (("snp", vm.snp()), ("tdx", vm.tdx())):
        authenticated = judge.authenticate(report.encoded(), NOW)
        assert authenticated.platform == "azure"
        assert (authenticated.bound, authenticated.binding) == (DATA, "sha256")
        assert authenticated.measured["module"] == WORKLOAD.module
        said = authenticated.claims
        assert said["azure.confidential_type"] == kind
        assert said["azure.secure_boot"] is True
        assert said["debug"] is False
        assert said["tpm.ak"] == spki_digest(vm.ak.key.public_key())
        assert said["tpm.pcr.23"] == event_log.replay(LOG)
        assert ("snp.measurement" in said, "tdx.mrtd" in said) == (kind == "snp", kind == "tdx")
        for name, value in said.items():
            described = kind_of(name)
            assert described is not None
            assert is_value_of(described, value)
            assert not described.platforms or "azure" in described.platforms, name


def test_secure_boot_and_configuration_come_from_the_runtime_data(
    vm: Vm, judge: AzureVerifier
) -> None:
    on = judge.authenticate(vm.snp().encoded(), NOW).claims
    off = judge.authenticate(vm.snp(vm.runtime(secure_boot=False)).encoded(), NOW).claims
    assert off["azure.secure_boot"] is False
    assert on["azure.vm_configuration"] != off["azure.vm_configuration"]


def test_debug_is_the_hardwares_word(vm: Vm, judge: AzureVerifier) -> None:
    report = vm.snp(policy=0xB0000)
    assert judge.authenticate(report.encoded(), NOW).claims["debug"] is True


def test_no_flipped_bit_is_accepted(vm: Vm, judge: AzureVerifier) -> None:
    content = vm.snp().encoded()
    for index in range(len(content)):
        flipped = bytearray(content)
        flipped[index] ^= 1 << index % 8
        with pytest.raises((MalformedError, UntrustedError, UnavailableError)):
            judge.authenticate(bytes(flipped), NOW)
    assert refusal(judge, content[:-1]) == "AZ1"
    assert refusal(judge, content + b"\0") == "AZ1"


def test_refuses_runtime_data_that_the_hardware_did_not_sign(vm: Vm, judge: AzureVerifier) -> None:
    """The quote is by a TPM of the attacker's, and the hardware report is genuine."""
    mine = ForgedKey("rsassa")
    other = replace(vm, ak=mine).snp()
    assert refusal(judge, replace(other, hardware=vm.snp().hardware)) == "AZ3"


def test_refuses_report_data_beyond_the_digest(vm: Vm, judge: AzureVerifier) -> None:
    runtime = vm.runtime()
    more = report_data(runtime)[:63] + b"\1"
    hardware = vm.chip.evidence(more).encoded()
    assert refusal(judge, vm.around("snp", hardware, runtime)) == "AZ3"


class _SignsDigests:
    """A verifier whose hardware signs a digest of the report data in place of them."""

    platform = "snp"

    def __init__(self, bound: bytes) -> None:
        self._bound = bound

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        return Authenticated("snp", self._bound, "sha256", {"snp.vmpl": 0})


def test_refuses_hardware_that_signs_something_else(vm: Vm) -> None:
    judge = AzureVerifier({"snp": _SignsDigests(report_data(vm.runtime()))})
    assert refusal(judge, vm.snp()) == "AZ3"


def test_refuses_quotes_by_another_key(vm: Vm, judge: AzureVerifier) -> None:
    other = ForgedKey("rsassa").report(DATA, log=LOG)
    report = vm.snp()
    forged = replace(report, quote=other.quote, signature=other.signature)
    assert refusal(judge, forged) == "TPM4"
    assert refusal(judge, replace(report, signature=ForgedKey().sign(report.quote))) == "TPM4"


@pytest.mark.parametrize("vmpl", [1, 2, 3])
def test_refuses_hardware_reports_that_the_kernel_asked_for(
    vm: Vm, judge: AzureVerifier, vmpl: int
) -> None:
    """A kernel in the VM could have runtime data of its own signed, with a key of its own."""
    assert refusal(judge, vm.snp(vmpl=vmpl)) == "AZ4"


def test_hardware_has_to_be_of_the_kind_that_is_said(vm: Vm, judge: AzureVerifier) -> None:
    # The one format is none of the other platform's.
    with pytest.raises(MalformedError):
        judge.authenticate(replace(vm.snp(), kind="tdx").encoded(), NOW)
    assert refusal(AzureVerifier({"tdx": vm.verifiers()["tdx"]}), vm.snp()) == "AZ2"


def test_refuses_what_the_hardwares_verifier_refuses(vm: Vm) -> None:
    strangers = AmdPki().verifier()
    assert refusal(AzureVerifier({"snp": strangers}), vm.snp()).startswith("SNP")


def test_quote_and_log_are_checked_as_on_any_tpm(vm: Vm, judge: AzureVerifier) -> None:
    report = vm.snp()
    assert refusal(judge, vm.snp(data=b"d" * 20)) == "TPM6"
    assert refusal(judge, replace(report, pcrs={**report.pcrs, 0: b"\1" * 32})) == "TPM7"
    other = event_log.start(replace(WORKLOAD, module=b"M" * 32))
    assert refusal(judge, replace(report, log=other)) == "TPM8"


@pytest.mark.parametrize(
    "changes",
    [
        {"kid": "Other"},
        {"kty": "EC"},
        {"e": "Aw"},
        {"key_ops": ["encrypt"]},
        {"n": "AQAB"},
        {"n": "=" * 342},
        {"n": 5},
        {"n": base64.urlsafe_b64encode(b"\xc1" * 384).decode()},
    ],
)
def test_refuses_other_keys_in_the_runtime_data(
    vm: Vm, judge: AzureVerifier, changes: dict[str, Any]
) -> None:
    assert refusal(judge, vm.snp(vm.runtime(**changes))) == "AZ1"


def altered(runtime: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    fields = json.loads(runtime)
    change(fields)
    return json.dumps(fields).encode()


def test_refuses_runtime_data_of_another_form(vm: Vm) -> None:
    good = vm.runtime()
    parse_runtime_data(good)
    key = json.loads(good)["keys"][0]
    for bad in (
        b"",
        b"[]",
        b"\xff",
        good + b"x",
        good[:-1],
        b'{"keys":[],' + good[1:],
        good.replace(b"true", b"NaN", 1),
        b"[" * 8000,
        good.ljust(8193),
        altered(good, lambda fields: fields["keys"].append(key)),
        altered(good, lambda fields: fields.pop("keys")),
        altered(good, lambda fields: fields["keys"].append(1)),
        altered(good, lambda fields: fields.pop("vm-configuration")),
        altered(good, lambda fields: fields["vm-configuration"].pop("secure-boot")),
        altered(good, lambda fields: fields["vm-configuration"].update({"secure-boot": 1})),
    ):
        with pytest.raises(MalformedError):
            parse_runtime_data(bad)


def test_hcl_reports_are_read_to_the_last_byte(vm: Vm) -> None:
    runtime = vm.runtime()
    snp = vm.chip.report(report_data(runtime))
    tdx = td_report(report_data(runtime))
    for kind, hardware in (("snp", snp), ("tdx", tdx)):
        content = hcl_report(kind, hardware, runtime)  # type: ignore[arg-type]
        parsed = parse_hcl_report(content)
        assert (parsed.kind, parsed.hardware_report, parsed.runtime) == (kind, hardware, runtime)
        used = 32 + 1184 + 20 + len(runtime)
        for length in range(used):
            with pytest.raises(MalformedError):
                parse_hcl_report(content[:length])
        assert parse_hcl_report(content[:used]) == parsed
        with pytest.raises(MalformedError):
            parse_hcl_report(content + b"\1")
        for place in (*range(32), *range(32 + 1184, 32 + 1184 + 20)):
            flipped = bytearray(content)
            flipped[place] ^= 0x80
            with pytest.raises(MalformedError):
                parse_hcl_report(bytes(flipped))


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_hcl_reports_of_request_version_2(vm: Vm, kind: Literal["snp", "tdx"]) -> None:
    """OpenVMM: four bytes of capabilities lie between the request data and the JSON."""
    runtime = vm.runtime()
    hardware = (
        vm.chip.report(report_data(runtime)) if kind == "snp" else td_report(report_data(runtime))
    )
    content = hcl_report(kind, hardware, runtime, version=2)
    assert content[1240 : 1240 + len(runtime)] == runtime
    parsed = parse_hcl_report(content)
    assert parsed == parse_hcl_report(hcl_report(kind, hardware, runtime))
    used = 1240 + len(runtime)
    assert parse_hcl_report(content[:used]) == parsed
    for bad in (
        *(content[:length] for length in range(used)),
        content + b"\1",
        content[:1220] + b"\1" + content[1221:],
        content[:1220] + b"\3" + content[1221:],
        hcl_report(kind, hardware, runtime, version=3),
        hcl_report(kind, hardware, runtime, version=0),
    ):
        with pytest.raises(MalformedError):
            parse_hcl_report(bad)


@given(st.binary(max_size=300), st.data())
def test_parsers_raise_one_error(vm: Vm, noise: bytes, data: st.DataObject) -> None:
    runtime = vm.runtime()
    area = hcl_report("tdx", td_report(report_data(runtime)), runtime)
    parsers: tuple[tuple[Callable[[bytes], object], bytes], ...] = (
        (parse_runtime_data, runtime),
        (parse_hcl_report, area),
        (decode_report, vm.around("snp", b"hardware", runtime).encoded()),
    )
    for parse, content in parsers:
        start = data.draw(st.integers(0, len(content)))
        for candidate in (noise, content[:start] + noise + content[start + len(noise) :]):
            try:
                parse(candidate)
            except MalformedError:
                continue


def test_base64url_has_one_spelling() -> None:
    assert decode_base64url("AQAB") == b"\1\0\1"
    assert decode_base64url("-_8") == b"\xfb\xff"
    for text in ("AQA=", "+/8", "AQAB\n", "AQ B", "A", "-_9", "é"):
        with pytest.raises(ValueError, match=r"base64|ASCII"):
            decode_base64url(text)


def test_checks_are_numbered_in_order() -> None:
    assert [check.number for check in verifier.CHECKS] == ["AZ1", "AZ2", "AZ3", "AZ4"]


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{", b"{}", b'{"vcekCert":1,"certificateChain":""}', b"x" * 70_000]
)
def test_other_answers_of_the_metadata_service(answer: bytes) -> None:
    paths = ("/metadata/THIM/amd/certification", "/acc/tdquote")
    with MockMetadata(dict.fromkeys(paths, answer)) as service:
        client = MetadataService(service.address)
        with pytest.raises(UnavailableError, match="metadata service"):
            client.amd_certificates()
        with pytest.raises(UnavailableError, match="metadata service"):
            client.td_quote(bytes(1024))


def test_no_metadata_service() -> None:
    with MockMetadata({}) as service, pytest.raises(UnavailableError, match="404"):
        MetadataService(service.address).amd_certificates()
    with pytest.raises(UnavailableError, match="refused"):
        MetadataService(service.address).amd_certificates()


def test_certificates_of_the_metadata_service(vm: Vm) -> None:
    path = "/metadata/THIM/amd/certification"
    with MockMetadata({path: certification(vm.chip.chain)}) as service:
        assert MetadataService(service.address).amd_certificates() == vm.chip.chain
    ((method, asked, headers, body),) = service.asked
    assert (method, asked, headers["Metadata"], body) == ("GET", path, "true", b"")
