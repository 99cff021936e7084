"""The broker on a TPM: the command as users run it, on a real TPM in software."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from avow.tee.tpm.templates import EK_ECC
from avow.testing.pki import Authority
from avow.testing.swtpm import SoftwareTpm
from avow.testing.tpm_maker import TpmAuthority, provision
from tests.integration.service_process import ServiceProcess, avow

pytestmark = pytest.mark.tpm

DENIED = 3
UNJUDGED = 4


@dataclass(frozen=True)
class Deployment:
    """A folder with a TPM, the broker's files and its options."""

    folder: Path
    tpm: SoftwareTpm
    options: Sequence[str]

    def policy(self, evidence: str = "evidence.cmw", *more: str) -> Path:
        """A policy from evidence that is trusted."""
        path = self.folder / "policy.toml"
        nonce = "11" * 32
        file = str(self.folder / evidence)
        done(avow("attest", "--tee", "tpm", "--nonce", nonce, "-o", file, *self.options))
        init = ["policy", "init", "--broker", "--platform", "tpm", "--from", file]
        done(avow(*init, "-o", str(path), "--force", *more, *self.options))
        return path

    def publish(self, url: str, policy: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
        """`avow pub`, which connects only if the evidence satisfies the policy."""
        trusted = ("--cafile", str(self.folder / "ca.pem"), "--policy", str(policy))
        return avow("pub", *trusted, *more, "-t", "a/b", "-m", "hello", url)


def done(result: subprocess.CompletedProcess[bytes]) -> None:
    assert result.returncode == 0, result.stderr.decode()


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    authority = Authority()
    authority.write(tmp_path / "ca.pem")
    certificate, key = authority.issue_server().write(tmp_path, "server")
    options = ["--listen", "mqtts://localhost:0", "--allow-anonymous"]
    options += ["--cert", str(certificate), "--key", str(key)]
    with SoftwareTpm() as tpm:
        monkeypatch.setenv("AVOW_TPM_TCTI", tpm.tcti)
        yield Deployment(tmp_path, tpm, options)


@pytest.fixture
def broker(deployment: Deployment) -> Iterator[ServiceProcess]:
    service = ServiceProcess([*deployment.options, "--tee", "tpm"])
    yield service
    service.stop()
    service.close()


def test_attested_by_a_key_that_the_policy_names(
    deployment: Deployment, broker: ServiceProcess
) -> None:
    url = broker.url("mqtts")
    policy = deployment.policy()
    done(deployment.publish(url, policy))
    text = policy.read_text()
    assert 'tpm.ak_origin = "owner"' in text
    assert "module_measured = true" in text
    other = deployment.folder / "other.toml"
    lines = text.splitlines()
    module = next(line for line in lines if line.startswith("module = "))
    other.write_text(text.replace(module, f'module = "sha256:{"00" * 32}"'))
    refused = deployment.publish(url, other)
    assert refused.returncode == DENIED
    assert b"module" in refused.stderr


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def enrol(folder: Path, root: TpmAuthority, line: TpmAuthority, owner: TpmAuthority) -> None:
    """The four steps, on files."""
    name = {key: str(folder / key) for key in ("request", "kept", "challenge", "answer", "ak.pem")}
    (folder / "makers.pem").write_bytes(pem(root.certificate))
    (folder / "line.pem").write_bytes(pem(line.certificate))
    (folder / "owner.pem").write_bytes(pem(owner.certificate))
    (folder / "owner.key").write_bytes(
        owner.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    makers, chain = str(folder / "makers.pem"), str(folder / "line.pem")
    ca, key = str(folder / "owner.pem"), str(folder / "owner.key")
    done(avow("enrol", "request", "--chain", chain, "-o", name["request"]))
    challenge = ("enrol", "challenge", name["request"], "--keep", name["kept"])
    stranger = avow(*challenge, "--makers", ca, "-o", name["challenge"])
    assert stranger.returncode == DENIED
    assert b"TPM9" in stranger.stderr
    done(avow(*challenge, "--makers", makers, "-o", name["challenge"]))
    assert (folder / "kept").stat().st_mode & 0o777 == 0o600
    done(avow("enrol", "answer", name["challenge"], "-o", name["answer"]))
    issue = ("enrol", "issue", "--kept", name["kept"], "--ca", ca, "--ca-key", key)
    (folder / "guess").write_bytes(bytes(32))
    guessed = avow(*issue, str(folder / "guess"), "-o", name["ak.pem"])
    assert guessed.returncode == DENIED
    assert b"TPM11" in guessed.stderr
    done(avow(*issue, name["answer"], "-o", name["ak.pem"]))


def test_attested_by_a_key_that_was_enrolled(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = TpmAuthority("mock maker")
    line = TpmAuthority("mock line", parent=root)
    chains = provision(deployment.tpm, line)
    owner = TpmAuthority("mock enrolment")
    enrol(deployment.folder, root, line, owner)
    endorsements = deployment.folder / "endorsements"
    (endorsements / "tpm").mkdir(parents=True)
    (endorsements / "tpm" / "enrolment.pem").write_bytes(pem(owner.certificate))
    monkeypatch.setenv("AVOW_TPM_CERTIFICATES", str(deployment.folder / "ak.pem"))
    trusted = ("--endorsements", str(endorsements))
    text = deployment.policy("enrolled.cmw", *trusted).read_text()
    assert 'tpm.ak_origin = "ek"' in text
    # The owner trusts every attestation key of this TPM, and so names the TPM.
    policy = deployment.folder / "ek.toml"
    lines = [line for line in text.splitlines() if not line.startswith("tpm.ak = ")]
    lines.append(f'tpm.ek = "{sha256(chains[EK_ECC][0]).hexdigest()}"')
    policy.write_text("\n".join(lines) + "\n")
    service = ServiceProcess([*deployment.options, "--tee", "tpm"])
    try:
        url = service.url("mqtts")
        done(deployment.publish(url, policy, *trusted))
        # Who does not pin the authority has nobody's word for the key.
        assert deployment.publish(url, policy).returncode == DENIED
    finally:
        service.stop()
        service.close()


def test_a_reloaded_configuration_is_measured(deployment: Deployment) -> None:
    """Claims and register move together: the log gains an event, and both stay in agreement."""
    config = deployment.folder / "avow.toml"
    text = (
        'allow_anonymous = true\n[[listeners]]\nurl = "mqtts://localhost:0"\n'
        'cert = "server.pem"\nkey = "server.key"\n'
    )
    config.write_text(text)
    from_file = Deployment(deployment.folder, deployment.tpm, ["--config", str(config)])
    service = ServiceProcess([*from_file.options, "--tee", "tpm"])
    try:
        url = service.url("mqtts")
        before = from_file.policy()
        done(from_file.publish(url, before))
        first = before.read_text()
        rule = '[[acl]]\naccess = "both"\neffect = "allow"\npattern = "#"\n'
        config.write_text(text + rule)
        after = from_file.policy()
        assert after.read_text() != first
        assert from_file.publish(url, after).returncode == DENIED
        service.reload()
        service.event("reloaded")
        done(from_file.publish(url, after))
    finally:
        service.stop()
        service.close()


def test_another_tpm_is_refused(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = deployment.policy()
    with SoftwareTpm() as other:
        monkeypatch.setenv("AVOW_TPM_TCTI", other.tcti)
        service = ServiceProcess([*deployment.options, "--tee", "tpm"])
        try:
            refused = deployment.publish(service.url("mqtts"), policy)
        finally:
            service.stop()
            service.close()
    assert refused.returncode == DENIED
    assert b"tpm.ak" in refused.stderr


def test_a_tpm_that_breaks_gives_no_evidence_until_it_works_again(
    deployment: Deployment, broker: ServiceProcess
) -> None:
    url = broker.url("mqtts")
    policy = deployment.policy()
    deployment.tpm.stop()
    refused = deployment.publish(url, policy)
    assert refused.returncode == UNJUDGED
    deployment.tpm.start()
    done(deployment.publish(url, policy))
    deployment.tpm.stop()
    assert deployment.publish(url, policy).returncode == UNJUDGED
    # Connections that do not ask for evidence go on.
    plain = ("--cafile", str(deployment.folder / "ca.pem"))
    done(avow("pub", *plain, "-t", "a/b", "-m", "hello", url))


def test_no_tpm_no_broker(deployment: Deployment) -> None:
    deployment.tpm.stop()
    refused = avow("broker", *deployment.options, "--tee", "tpm")
    assert refused.returncode not in (0, 70)
    assert b"expected the TPM" in refused.stderr
