"""The verifier of SEV-SNP on reports of real processors: Milan with a VCEK, a cloud with a VLEK."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from avow.errors import AvowError, UntrustedError
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee.snp import verifier as snp
from avow.tee.snp.certificates import parse_certificate
from avow.tee.snp.report import SigningKey, SnpEvidence, Tcb
from avow.tee.snp.verifier import SnpVerifier
from tests.vectors.evidence_files import case, certificates, flips, vector

pytestmark = pytest.mark.vectors

NOW = datetime(2025, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def vcek() -> SnpEvidence:
    ask, ark = certificates("snp/milan_ask_ark.pem")
    return SnpEvidence(vector("snp/report_milan.bin"), (vector("snp/vcek_milan.der"), ask, ark))


@pytest.fixture(scope="module")
def vlek() -> SnpEvidence:
    asvk, ark = certificates("snp/milan_asvk_ark.pem")
    return SnpEvidence(vector("snp/report_vlek.bin"), (vector("snp/vlek.der"), asvk, ark))


def test_a_report_signed_by_a_vcek(vcek: SnpEvidence) -> None:
    proven = SnpVerifier().authenticate(vcek.encoded(), NOW)
    assert proven.platform == "snp"
    assert proven.binding == "report data"
    assert proven.bound.hex().startswith("ec6c52d7533cc2c4")
    assert len(proven.bound) == 64
    claims = proven.claims
    assert claims["debug"] is False
    assert claims["snp.signer"] == "vcek"
    assert claims["snp.product"] == "milan"
    assert claims["snp.vmpl"] == 0
    assert claims["snp.guest_svn"] == 4
    assert claims["snp.tcb.bootloader"] == 3
    assert claims["snp.tcb.snp"] == 8
    assert claims["snp.tcb.microcode"] == 0x73
    assert claims["collateral.crl_checked"] is False
    # SMT and ECC; firmware of that time knows no alias check.
    assert claims["snp.platform.alias_check_complete"] is False
    for name, value in claims.items():
        kind = kind_of(name)
        assert kind is not None, name
        assert is_value_of(kind, value), name


def test_a_report_signed_by_a_vlek(vlek: SnpEvidence) -> None:
    claims = SnpVerifier().authenticate(vlek.encoded(), NOW).claims
    assert claims["debug"] is False
    assert claims["snp.signer"] == "vlek"
    assert claims["snp.vmpl"] == 1
    assert claims["snp.csp_id"] == "CN=cc-us-east-2.amazonaws.com"
    assert claims["snp.chip_id"] == bytes(64)


def test_a_vlek_ends(vlek: SnpEvidence) -> None:
    verifier = SnpVerifier()
    assert verifier.authenticate(vlek.encoded(), datetime(2025, 12, 10, tzinfo=UTC))
    with pytest.raises(UntrustedError) as caught:
        verifier.authenticate(vlek.encoded(), datetime(2025, 12, 11, tzinfo=UTC))
    assert caught.value.finding is not None
    assert caught.value.finding.check is snp.VALIDITY


@pytest.mark.parametrize(
    "when", [datetime(2023, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)]
)
def test_a_vcek_outside_of_its_time(vcek: SnpEvidence, when: datetime) -> None:
    with pytest.raises(UntrustedError, match="SNP4"):
        SnpVerifier().authenticate(vcek.encoded(), when)


def test_a_broken_vcek(vcek: SnpEvidence) -> None:
    chain = (vector("snp/vcek_invalid.der"), *vcek.chain[1:])
    with pytest.raises(UntrustedError) as caught:
        SnpVerifier().prove(SnpEvidence(vcek.report, chain), NOW)
    assert caught.value.finding is not None
    assert caught.value.finding.check is snp.CHAIN


@pytest.mark.cases
def test_a_vcek_of_turin() -> None:
    """It has structVersion 1, no 3.4, and a hardware id of 8 bytes."""
    leaf = parse_certificate(case("turin-vcek-no-spl4/vcek_turin_virtee.der"), "VCEK")
    signer = snp._signer(leaf, SigningKey.VCEK, snp.TURIN)
    assert signer.tcb == Tcb(bootloader=0, tee=0, snp=0, microcode=9, fmc=0)
    assert signer.chip_id[8:] == bytes(56)
    assert any(signer.chip_id[:8])


def test_the_chain_of_the_other_kind_of_key(vcek: SnpEvidence, vlek: SnpEvidence) -> None:
    for report, leaf, issuer in (
        (vcek.report, vlek.chain[0], vlek.chain[1]),
        (vlek.report, vcek.chain[0], vcek.chain[1]),
        (vcek.report, vcek.chain[0], vlek.chain[1]),
    ):
        with pytest.raises(UntrustedError):
            SnpVerifier().prove(SnpEvidence(report, (leaf, issuer, vcek.chain[2])), NOW)


@pytest.mark.parametrize("name", ["vcek", "vlek"])
def test_no_byte_of_the_report_can_be_changed(name: str, request: pytest.FixtureRequest) -> None:
    evidence: SnpEvidence = request.getfixturevalue(name)
    verifier = SnpVerifier()
    for changed in flips(evidence.report):
        with pytest.raises(AvowError):
            verifier.prove(SnpEvidence(changed, evidence.chain), NOW)


def test_no_byte_of_the_chain_can_be_changed(vcek: SnpEvidence) -> None:
    verifier = SnpVerifier()
    for place, certificate in enumerate(vcek.chain):
        for changed in flips(certificate):
            chain = (*vcek.chain[:place], changed, *vcek.chain[place + 1 :])
            with pytest.raises(AvowError):
                verifier.prove(SnpEvidence(vcek.report, (chain[0], chain[1], chain[2])), NOW)
