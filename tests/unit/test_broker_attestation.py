"""Whom a listener believes is what was measured: roots and keys cannot be exchanged in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.cli.broker_attestation import load_judge
from avow.errors import MalformedError, UnavailableError
from avow.testing.attested_peer import policy_text
from avow.testing.pki import Authority

POLICY = policy_text().encode()


def _key() -> bytes:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def _endorsements(folder: Path, kind: str, content: bytes) -> Path:
    (folder / kind).mkdir()
    name = "root.pem" if kind == "tpm" else f"{'01' * 33}.pem"
    (folder / kind / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["tpm", "psa", "cca"])
def test_anchors_that_were_not_measured(tmp_path: Path, kind: str) -> None:
    def new() -> bytes:
        if kind != "tpm":
            return _key()
        return Authority().write(tmp_path / "root").read_bytes()

    content = new()
    folder = _endorsements(tmp_path, kind, content)
    policy = tmp_path / "policy.toml"
    assert load_judge(policy, POLICY, endorsements=folder, anchors=[b"noise", content])
    for others in ([], [new()], [b"noise"]):
        with pytest.raises(UnavailableError, match="stay the same while they are read"):
            load_judge(policy, POLICY, endorsements=folder, anchors=others)


def test_a_policy_is_text(tmp_path: Path) -> None:
    assert load_judge(tmp_path / "policy.toml", POLICY, endorsements=None, anchors=())
    with pytest.raises(MalformedError, match="offset 0"):
        load_judge(tmp_path / "policy.toml", b"\xff", endorsements=None, anchors=())
