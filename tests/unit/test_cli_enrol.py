"""`avow enrol` with bad input; that it works is tried on swtpm in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from avow.cli import run
from avow.cli.exit_codes import ExitCode
from avow.tee.tpm.enrolment import Kept, Request
from avow.tee.tpm.structures import parse_public
from avow.testing.tpm_forge import ForgedKey
from avow.testing.tpm_maker import TpmAuthority

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TpmAuthority:
    """An authority's files in the current folder."""
    monkeypatch.chdir(tmp_path)
    owner = TpmAuthority("mock enrolment")
    Path("ca.pem").write_bytes(owner.certificate.public_bytes(Encoding.PEM))
    write_key("ca.key", owner.key)
    Path("kept").write_bytes(Kept(parse_public(ForgedKey().public), bytes(32), bytes(32)).encoded())
    Path("answer").write_bytes(bytes(32))
    return owner


def write_key(name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    Path(name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def issue(*changes: str) -> int:
    options = ["--kept", "kept", "--ca", "ca.pem", "--ca-key", "ca.key", "-o", "ak.pem"]
    return run(["enrol", "issue", "answer", *options, *changes])


def test_issuing(files: TpmAuthority) -> None:
    assert issue() == ExitCode.OK
    assert Path("ak.pem").read_bytes().count(b"BEGIN CERTIFICATE") == 1


def test_an_authority_below_a_root_is_sent_along(files: TpmAuthority) -> None:
    below = TpmAuthority("mock branch", parent=files)
    Path("ca.pem").write_bytes(below.certificate.public_bytes(Encoding.PEM))
    write_key("ca.key", below.key)
    assert issue() == ExitCode.OK
    assert Path("ak.pem").read_bytes().count(b"BEGIN CERTIFICATE") == 2


def test_wrong_files_of_the_authority(files: TpmAuthority, capsys: Captured) -> None:
    write_key("other.key", ec.generate_private_key(ec.SECP256R1()))
    Path("empty").write_bytes(b"")
    for changes, said in (
        (("--ca", "absent"), "absent"),
        (("--ca", "empty"), "empty"),
        (("--ca-key", "absent"), "absent"),
        (("--ca-key", "empty"), "private key"),
        (("--ca-key", "other.key"), "the certificate ca.pem"),
        (("--kept", "absent"), "absent"),
        (("--kept", "answer"), "kept challenge"),
    ):
        assert issue(*changes) == ExitCode.USAGE
        error = capsys.readouterr().err
        assert error.startswith("avow: expected ")
        assert said in error
        assert not Path("ak.pem").exists()


def test_a_wrong_answer(files: TpmAuthority, capsys: Captured) -> None:
    Path("answer").write_bytes(b"\1" * 32)
    assert issue() == ExitCode.DENIED
    assert "TPM11" in capsys.readouterr().err
    assert not Path("ak.pem").exists()


def test_requests_that_are_none(files: TpmAuthority, capsys: Captured) -> None:
    options = ["--makers", "ca.pem", "--keep", "kept", "-o", "challenge"]
    assert run(["enrol", "challenge", "answer", *options]) == ExitCode.USAGE
    Path("request").write_bytes(Request(b"ak", b"ek", (b"certificate",)).encoded())
    assert run(["enrol", "challenge", "request", *options]) == ExitCode.UNJUDGED
    assert "TPMT_PUBLIC" in capsys.readouterr().err
    assert not Path("challenge").exists()


def test_no_tpm(files: TpmAuthority, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("AVOW_TPM_AK_HANDLE", "persistent")
    assert run(["enrol", "request", "-o", "request"]) == ExitCode.USAGE
    assert "AVOW_TPM_AK_HANDLE" in capsys.readouterr().err
    monkeypatch.delenv("AVOW_TPM_AK_HANDLE")
    monkeypatch.setenv("AVOW_TPM_TCTI", "device:/dev/avow-none")
    assert run(["enrol", "request", "-o", "request"]) == ExitCode.USAGE
    assert "TPM" in capsys.readouterr().err
