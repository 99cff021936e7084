"""The verifier of PSA tokens on tokens that TF-M made, one of each profile."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from avow.errors import AvowError, UnavailableError, UntrustedError
from avow.tee.psa.report import parse_token
from avow.tee.psa.verifier import PsaVerifier
from tests.vectors.evidence_files import case, flips, vector

pytestmark = pytest.mark.vectors

NOW = datetime(2025, 6, 1, tzinfo=UTC)
TOKENS = {"psa/psa-2_0_0_sign1.bin": "http://arm.com/psa/2.0.0",
          "psa/psa-iot-1_sign1.bin": "PSA_IOT_PROFILE_1"}  # fmt: skip


def key() -> ec.EllipticCurvePublicKey:
    public = load_pem_public_key(vector("psa/public.pem"))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return public


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_is_proven(name: str) -> None:
    token = parse_token(vector(name))
    proven = PsaVerifier({token.instance_id: key()}).authenticate(vector(name), NOW)
    assert proven.platform == "psa"
    assert (proven.bound, proven.binding) == (bytes(64), "report data")
    claims = proven.claims
    # Secured, but signed with TF-M's example key, whose private half is public.
    assert claims["debug"] is True
    assert claims["psa.profile"] == TOKENS[name]
    assert claims["psa.lifecycle"] == 0x3000
    assert claims["psa.client_id"] == 3002
    assert claims["psa.boot_seed"] == bytes(range(0xA0, 0xC0))
    software = claims["psa.software"]
    assert isinstance(software, tuple)
    assert [each.split(":")[0] for each in software] == ["SPE", "NSPE"]


@pytest.mark.cases
def test_the_boot_seed_of_the_rfcs_example() -> None:
    """RFC 9783, appendix A; its nonce has 32 bytes, so that it is no evidence for avow."""
    token = parse_token(case("psa-boot-seed-268/rfc9783-example-sign1.cbor"))
    assert token.profile == "tag:psacertified.org,2023:psa#tfm"
    assert token.boot_seed == bytes(8)
    assert len(token.nonce) == 32


@pytest.mark.parametrize("name", TOKENS)
def test_another_key_and_none(name: str) -> None:
    token = parse_token(vector(name))
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(UntrustedError, match="PSA3"):
        PsaVerifier({token.instance_id: other}).authenticate(vector(name), NOW)
    with pytest.raises(UnavailableError, match="PSA2"):
        PsaVerifier({}).authenticate(vector(name), NOW)


@pytest.mark.parametrize("name", TOKENS)
def test_no_byte_can_be_changed(name: str) -> None:
    content = vector(name)
    verifier = PsaVerifier({parse_token(content).instance_id: key()})
    for changed in (*flips(content), content + b"\0", content[:-1]):
        with pytest.raises(AvowError):
            verifier.authenticate(changed, NOW)
