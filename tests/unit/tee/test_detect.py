"""Detection on directory trees, the choice of `auto`, endorsements from folders, `avow tee`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow import cli
from avow.errors import MalformedError, UnavailableError, UntrustedError
from avow.evidence.roles import Attester, Verifier
from avow.tee import platforms
from avow.tee.platforms import (
    PLATFORMS,
    Found,
    Machine,
    detect,
    load_endorsements,
    open_attester,
    verifiers,
)
from avow.tee.sgx.report import encode_report
from avow.testing.intel_pki import SgxBody
from avow.testing.pki import Authority
from tests.unit.tee.intel_world import LATER, intel

TSM = "sys/kernel/config/tsm/report/"
AZURE = "7783-7084-3265-9085-8269-3286-77\n"


def _machine(
    root: Path, files: dict[str, str], release: str = "6.16.3-generic", **environment: str
) -> Machine:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(content)
    return Machine(root, release, environment)


def _found(machine: Machine, platform: str) -> Found:
    return next(each for each in detect(machine) if each.platform == platform)


def test_order() -> None:
    """What `auto` tries in turn is what can be opened."""
    names = [each.platform for each in detect(Machine(Path("/nowhere"), "6.1", {}))]
    assert tuple(names) == PLATFORMS
    assert names[-1] == "simulated"


def test_an_ordinary_machine(tmp_path: Path) -> None:
    found = detect(_machine(tmp_path, {"proc/cpuinfo": "flags\t\t: fpu sse\n"}))
    assert [each.platform for each in found if each.present] == ["simulated"]
    assert all(each.reason for each in found)


@pytest.mark.parametrize(
    ("platform", "files"),
    [
        ("tdx", {"dev/tdx_guest": "", TSM: ""}),
        ("snp", {"dev/sev-guest": "", TSM: ""}),
        ("snp", {"dev/sev-guest": ""}),
        ("cca", {"sys/devices/platform/arm-cca-dev/": "", TSM: ""}),
        ("nitro", {"dev/nsm": ""}),
        ("sgx", {"dev/attestation/attestation_type": "dcap"}),
        ("tpm", {"dev/tpmrm0": ""}),
        ("tpm", {"dev/tpmrm0": "", "dev/tee0": "", "sys/bus/platform/drivers/optee/": ""}),
        ("psa", {"dev/tee0": "", "sys/bus/platform/drivers/optee/": ""}),
        ("psa", {"dev/tee0": "", "sys/bus/arm_ffa/drivers/optee/": ""}),
        ("azure", {"sys/class/dmi/id/chassis_asset_tag": AZURE, "dev/tpmrm0": ""}),
    ],
)
def test_present(tmp_path: Path, platform: str, files: dict[str, str]) -> None:
    found = [each.platform for each in detect(_machine(tmp_path, files)) if each.present]
    assert found[0] == platform


@pytest.mark.parametrize(
    ("platform", "files", "release", "reason"),
    [
        ("tdx", {}, "6.16", "no /dev/tdx_guest"),
        ("tdx", {"proc/cpuinfo": "flags : fpu tdx_guest\n"}, "6.16", "modprobe tdx_guest"),
        ("tdx", {"dev/tdx_guest": ""}, "6.5.0-44", "use 6.7 or newer"),
        ("tdx", {"dev/tdx_guest": ""}, "6.10.1", "mount -t configfs"),
        ("tdx", {"dev/tdx_guest": ""}, "weird", "use 6.7 or newer"),
        ("snp", {"proc/cpuinfo": "flags : fpu sev_snp\n"}, "6.16", "modprobe sev-guest"),
        ("cca", {"sys/devices/platform/arm-cca-dev/": ""}, "6.12", "mount -t configfs"),
        ("sgx", {"dev/attestation/attestation_type": "none"}, "6.16", "sgx.remote_attestation"),
        ("sgx", {"dev/sgx_enclave": ""}, "6.16", "gramine-sgx"),
        ("psa", {"dev/tee0": ""}, "6.16", "no OP-TEE"),
        ("psa", {"sys/bus/platform/drivers/optee/": ""}, "6.16", "without /dev/tee0"),
        ("tpm", {"sys/class/tpm/tpm0/tpm_version_major": "1\n"}, "6.16", "1.2"),
        ("azure", {"sys/class/dmi/id/chassis_asset_tag": AZURE}, "6.16", "no TPM 2.0"),
        ("azure", {"sys/class/dmi/id/chassis_asset_tag": "7783\n"}, "6.16", "no virtual machine"),
    ],
)
def test_absent(
    tmp_path: Path, platform: str, files: dict[str, str], release: str, reason: str
) -> None:
    found = _found(_machine(tmp_path, files, release), platform)
    assert not found.present
    assert reason in found.reason


def test_no_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _machine(tmp_path, {"dev/tdx_guest": "", TSM: "", "dev/nsm": "", "dev/tpmrm0": ""})
    monkeypatch.setattr(os, "access", lambda *_: False)
    for platform in ("tdx", "nitro", "tpm"):
        found = _found(machine, platform)
        assert not found.present
        assert "run as root" in found.reason


def test_a_tpm_named_by_the_environment(tmp_path: Path) -> None:
    found = _found(_machine(tmp_path, {}, AVOW_TPM_TCTI="swtpm:path=socket"), "tpm")
    assert found.present
    assert "swtpm:path=socket" in found.reason


def test_a_package_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _machine(tmp_path, {"dev/tpmrm0": ""})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = _found(machine, "tpm")
    assert not found.present
    assert "pip install '.[tpm]'" in found.reason


def test_auto_finds_nothing() -> None:
    found = [Found("tpm", False, "none"), Found("simulated", True, "always")]
    with pytest.raises(UnavailableError, match="--tee simulated"):
        open_attester("auto", {}, found)


def test_auto_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that was found and does not open is told, not passed over."""
    opened: list[str] = []

    def fail(environment: platforms.Environment) -> Attester:
        opened.append("tdx")
        raise UnavailableError("the host does not answer")

    monkeypatch.setattr(platforms, "_ATTESTERS", {"tdx": fail, "tpm": fail})
    found = [Found("tdx", True, "here"), Found("tpm", True, "here too")]
    with pytest.raises(UnavailableError, match="platform tdx to attest"):
        open_attester("auto", {}, found)
    assert opened == ["tdx"]


def test_auto_passes_an_ordinary_machine_on_azure_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(environment: platforms.Environment) -> Attester:
        raise UnavailableError("no report of a paravisor")

    simulated = open_attester("simulated", {})
    monkeypatch.setattr(platforms, "_ATTESTERS", {"azure": fail, "tpm": lambda _: simulated})
    found = [Found("azure", True, "a machine"), Found("tpm", True, "a vTPM")]
    assert open_attester("auto", {}, found) is simulated


def test_another_name() -> None:
    with pytest.raises(MalformedError, match="expected auto or one of"):
        open_attester("tee", {})


def test_settings_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="openssl genpkey"):
        open_attester("simulated", {"AVOW_SIMULATED_KEY": str(tmp_path / "none")})
    with pytest.raises(MalformedError, match="0 to 3 in AVOW_SNP_VMPL"):
        open_attester("snp", {"AVOW_SNP_VMPL": "4"})
    with pytest.raises(MalformedError, match="0 to 3 in AVOW_SNP_VMPL"):
        open_attester("snp", {"AVOW_SNP_VMPL": "²"})
    with pytest.raises(UnavailableError, match="Intel's collateral"):
        open_attester("tdx", {"AVOW_INTEL_COLLATERAL": str(tmp_path / "none")})
    with pytest.raises(UnavailableError, match="certificates as PEM"):
        open_attester("snp", {"AVOW_SNP_CERTIFICATES": str(tmp_path / "none")})
    path = tmp_path / "file"
    path.write_bytes(b"other")
    with pytest.raises(MalformedError, match="JSON"):
        open_attester("tdx", {"AVOW_INTEL_COLLATERAL": str(path)})
    with pytest.raises(MalformedError):
        open_attester("snp", {"AVOW_SNP_CRL": str(path)})


@pytest.mark.parametrize("name", PLATFORMS)
def test_attesters_that_open_without_hardware_name_themselves(name: str) -> None:
    """All wiring is run; what is not here says so."""
    try:
        attester = open_attester(name, {"AVOW_TPM_TCTI": "device:/nowhere"})
    except UnavailableError:
        return
    assert attester.platform == name


@pytest.mark.parametrize("name", PLATFORMS)
def test_verifiers_refuse_what_is_no_report(name: str) -> None:
    """All wiring is run, with no endorsements at all: nothing is accepted."""
    verifier: Verifier = verifiers()[name]
    assert verifier.platform == name
    with pytest.raises((MalformedError, UnavailableError)):
        verifier.authenticate(b"x", datetime(2026, 1, 1, tzinfo=UTC))


def test_a_missing_package_matters_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("avow.tee.nitro", "avow.tee.snp")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "avow.tee.nitro.verifier", None)
    found = verifiers()
    with pytest.raises(UnavailableError, match="which the platform nitro needs"):
        found["nitro"].authenticate(b"x", LATER)
    with pytest.raises(MalformedError):
        found["simulated"].authenticate(b"x", LATER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("intel", "amd", "tpm", "psa", "cca"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_endorsements(folder: Path) -> None:
    (folder / "intel" / "sgx.json").write_text(intel().collateral("sgx"))
    (folder / "intel" / "tdx.json").write_text(intel().collateral("tdx"))
    (folder / "intel" / "notes.txt").write_text("ignored")
    authority = Authority()
    authority.write(folder / "tpm" / "root.pem")
    endorsements = load_endorsements(folder)
    assert [each.tee for each in endorsements.intel] == ["SGX", "TDX"]
    assert endorsements.tpm_roots == (authority.certificate,)
    assert not endorsements.amd_crls


def test_keys_of_devices(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    instance_id = "01" + "ab" * 32
    for name in ("psa", "cca"):
        (folder / name / f"{instance_id}.pem").write_bytes(pem)
    endorsements = load_endorsements(folder)
    assert endorsements.psa_keys == {bytes.fromhex(instance_id): key} == endorsements.cca_keys
    other = rsa.generate_private_key(65537, 2048).public_key()
    (folder / "psa" / f"{'02' * 33}.pem").write_bytes(
        other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(MalformedError, match="elliptic-curve"):
        load_endorsements(folder)


def test_endorsements_reach_their_verifiers(folder: Path) -> None:
    """Intel's own root does not know the mock, but the collateral is found."""
    report = encode_report(intel().sgx_quote(SgxBody(bytes(64))), None)
    with pytest.raises(UnavailableError, match="SGX2"):
        verifiers()["sgx"].authenticate(report, LATER)
    (folder / "intel" / "sgx.json").write_text(intel().collateral("sgx"))
    with pytest.raises(UntrustedError, match="SGX4"):
        verifiers(load_endorsements(folder))["sgx"].authenticate(report, LATER)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="folder of endorsements"):
        load_endorsements(tmp_path / "none")
    (tmp_path / "intel").write_text("a file")
    with pytest.raises(UnavailableError, match="to list"):
        load_endorsements(tmp_path)


@pytest.mark.parametrize("name", ["intel/x.json", "amd/x.crl", "tpm/x.pem", "tpm/x.crl"])
def test_a_file_of_another_form(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"other")
    with pytest.raises(MalformedError, match=name.partition("/")[2]):
        load_endorsements(folder)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tee"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(detect()) + 1
    assert lines[-1].startswith("--tee auto would")
    assert cli.run(["tee", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert [each["platform"] for each in description["platforms"]] == [
        each.platform for each in detect()
    ]
    assert description["kernel"]


def test_command_names_what_auto_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for found, said in (
        ([Found("tpm", True, "here")], "--tee auto would take tpm"),
        ([Found("simulated", True, "always")], "--tee auto would find no platform here"),
    ):
        monkeypatch.setattr(platforms, "detect", lambda _, found=found: found)
        assert cli.run(["tee"]) == 0
        assert said in capsys.readouterr().out
