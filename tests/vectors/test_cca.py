"""The verifier of Arm CCA on a token that the realm management monitor TF-RMM made."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from avow.errors import AvowError, UnavailableError, UntrustedError
from avow.tee.cca.report import parse_token
from avow.tee.cca.verifier import CcaVerifier
from avow.testing.arm_keys import records
from tests.vectors.evidence_files import flips, vector

pytestmark = pytest.mark.vectors

NOW = datetime(2025, 6, 1, tzinfo=UTC)
TOKEN = "cca/cca_token.cbor"


def verifier() -> CcaVerifier:
    key = load_pem_public_key(vector("cca/cca_platform.pub"))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return CcaVerifier({parse_token(vector(TOKEN)).platform.instance_id: key})


def test_the_token_is_proven() -> None:
    proven = verifier().authenticate(vector(TOKEN), NOW)
    assert proven.platform == "cca"
    assert (proven.bound, proven.binding) == (b"\xab" * 64, "report data")
    # Secured, but signed with a key whose private half is public.
    assert proven.claims["debug"] is True
    assert proven.claims["psa.lifecycle"] == 0x3003
    assert proven.claims["cca.hash_algorithm"] == "sha-256"
    assert proven.claims["cca.rim"] == bytes(32)
    assert [proven.claims[f"cca.rem.{index}"] for index in range(4)] == [bytes(32)] * 4


def test_the_same_in_the_outer_form_of_today() -> None:
    """TF-RMM 0.9.0 puts the same signed tokens into records with tag 907."""
    parts = cbor2.loads(vector(TOKEN)).value
    content = records(parts[44234], parts[44241])
    judge = verifier()
    old = judge.authenticate(vector(TOKEN), NOW)
    assert judge.authenticate(content, NOW) == old
    for changed in (*flips(content), content + b"\0", content[:-1]):
        with pytest.raises(AvowError):
            judge.authenticate(changed, NOW)


def test_the_platform_names_the_realms_key() -> None:
    token = parse_token(vector(TOKEN))
    point = vector(TOKEN).index(b"\x04\x76\xf9\x88")
    raw = vector(TOKEN)[point : point + 97]
    assert token.platform.nonce == hashlib.sha256(raw).digest() == token.realm.key_hash


def test_another_key_and_none() -> None:
    instance_id = parse_token(vector(TOKEN)).platform.instance_id
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(UntrustedError, match="CCA3"):
        CcaVerifier({instance_id: other}).authenticate(vector(TOKEN), NOW)
    with pytest.raises(UnavailableError, match="CCA2"):
        CcaVerifier({}).authenticate(vector(TOKEN), NOW)


def test_no_byte_can_be_changed() -> None:
    content, judge = vector(TOKEN), verifier()
    for changed in (*flips(content), content + b"\0", content[:-1]):
        with pytest.raises(AvowError):
            judge.authenticate(changed, NOW)
