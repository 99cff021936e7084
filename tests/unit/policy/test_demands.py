"""No policy accepts by silence, and every claim that matters is judged: by name, per platform."""

from __future__ import annotations

import pytest

from avow.errors import DeniedError, MalformedError
from avow.evidence.appraisal import Tier
from avow.evidence.vocabulary import ClaimValue
from avow.policy.demands import DEMANDS
from tests.unit.policy.examples import (
    NEVER_ANY,
    RULES,
    evidence_for,
    lines_of,
    policy_for,
    policy_of,
    rule_text,
)

PLATFORMS = sorted(RULES)
LINES = [(name, claim) for name in PLATFORMS for claim in lines_of(name)]


def test_examples_are_complete() -> None:
    assert set(RULES) == set(DEMANDS)


@pytest.mark.parametrize("name", PLATFORMS)
def test_complete_policy_accepts(name: str) -> None:
    result = policy_for(name).appraise(evidence_for(name))
    assert result.findings == ()
    assert result.accepted
    assert result.tier is (Tier.WARNING if name == "simulated" else Tier.AFFIRMING)


@pytest.mark.parametrize(("name", "claim"), LINES)
def test_changed_claim_is_refused_by_name(name: str, claim: str) -> None:
    line = lines_of(name)[claim]
    verified = evidence_for(name, {claim: line.bad})
    result = policy_for(name).appraise(verified)
    (finding,) = result.findings
    assert finding.check.number == line.check
    assert f"`{claim}`" in finding.expected
    assert result.tier is Tier.CONTRAINDICATED
    with pytest.raises(DeniedError, match=f"check {line.check} .*{claim}") as caught:
        policy_for(name).require(verified)
    assert caught.value.finding == finding


@pytest.mark.parametrize(("name", "claim"), LINES)
def test_absent_claim_is_refused_by_name(name: str, claim: str) -> None:
    (finding,) = policy_for(name).appraise(evidence_for(name, {claim: None})).findings
    assert finding.check.number == "P3"
    assert f"`{claim}`" in finding.expected


@pytest.mark.parametrize(("name", "claim"), LINES)
def test_silence_is_refused_when_the_policy_is_read(name: str, claim: str) -> None:
    with pytest.raises(MalformedError, match=r"policy\.toml: ") as caught:
        policy_for(name, {claim: None})
    assert f"`{claim}`" in str(caught.value)


@pytest.mark.parametrize(("name", "claim"), LINES)
def test_any_accepts_with_a_warning(name: str, claim: str) -> None:
    if claim in NEVER_ANY:
        with pytest.raises(MalformedError, match=claim.replace(".", r"\.")):
            policy_for(name, {claim: '"any"'})
        return
    others: dict[str, str | None] = {}
    if claim == "tpm.ak":  # then the revocation list matters
        others = {"collateral.crl_checked": '"any"'}
    elif name == "tdx" and claim == "module_measured":  # then the register itself matters
        others = {"tdx.rtmr.3": '"any"'}
    policy = policy_for(name, {claim: '"any"', **others})
    for value in (lines_of(name)[claim].bad, None):
        result = policy.appraise(evidence_for(name, {claim: value}))
        assert result.accepted
        assert result.tier is Tier.WARNING


@pytest.mark.parametrize(
    ("name", "changes", "needle"),
    [
        ("sgx", {"tcb.evaluation_number": "{ max = 3 }"}, "lowest value"),
        ("sgx", {"collateral.age_s": "{ min = 3 }"}, "highest value"),
        ("sgx", {"tcb.advisories": '{ none_of = ["INTEL-SA-1"] }'}, "subset_of"),
        ("sgx", {"evidence_age_s": "{ max = 3 }"}, "lowest and a highest"),
        ("snp", {"snp.vmpl": "{ min = 0 }"}, "highest value"),
        ("snp", {"snp.tcb.snp": "{ max = 9 }"}, "lowest value"),
        ("psa", {"psa.software": '{ subset_of = ["a"] }'}, "all_of"),
        ("psa", {"psa.lifecycle": "{ min = 3 }"}, "a value"),
        ("sgx", {"sgx.mrenclave": None, "sgx.mrsigner": '"' + "a1" * 32 + '"'}, "sgx.isv_svn"),
        (
            "sgx",
            {
                "sgx.mrenclave": None,
                "sgx.mrsigner": '"any"',
                "sgx.isv_prod_id": "1",
                "sgx.isv_svn": "{ min = 1 }",
            },
            "sgx.mrenclave",
        ),
        ("tpm", {"tpm.ak": '"any"'}, "collateral.crl_checked"),
        (
            "tpm",
            {"tpm.ak": '"any"', "tpm.ak_origin": '"owner"', "collateral.crl_checked": '"any"'},
            "`tpm.ak`",
        ),
        (
            "tpm",
            {
                "tpm.ak": '"any"',
                "tpm.ak_origin": '["ek", "owner"]',
                "collateral.crl_checked": "true",
            },
            "`tpm.ak`",
        ),
        (
            "tpm",
            {"tpm.ak": '"any"', "tpm.ak_origin": '"any"', "collateral.crl_checked": "true"},
            "`tpm.ak`",
        ),
        ("tdx", {"module_measured": '"any"'}, "tdx.rtmr.3"),
        ("tdx", {"module_measured": "false"}, "tdx.rtmr.3"),
        ("azure/snp", {"azure.confidential_type": None}, "azure.confidential_type"),
        ("azure/snp", {"azure.confidential_type": '["snp", "tdx"]'}, "azure.confidential_type"),
        ("azure/snp", {"azure.confidential_type": '"tdx"'}, "snp."),
        ("azure/tdx", {"azure.confidential_type": '"snp"'}, "tdx."),
        ("snp", {"platform": None}, "`platform`"),
        ("snp", {"platform": '["snp", "tpm"]'}, "snp, tpm"),
        ("snp", {"platform": '"tdx"'}, "snp"),
        ("snp", {"tdx.mrtd": '"any"'}, "tdx.mrtd"),
        ("snp", {"not": '{ tpm.ak_origin = "ek" }'}, "not.tpm.ak_origin"),
    ],
)
def test_half_a_treatment_is_none(name: str, changes: dict[str, str | None], needle: str) -> None:
    with pytest.raises(MalformedError, match=r"policy\.toml: ") as caught:
        policy_for(name, changes)
    assert needle in str(caught.value)


def test_other_ways_to_name_an_enclave_or_a_key() -> None:
    signer = {
        "sgx.mrenclave": None,
        "sgx.mrsigner": '"' + "a1" * 32 + '"',
        "sgx.isv_prod_id": "7",
        "sgx.isv_svn": "{ min = 3 }",
    }
    claims: dict[str, ClaimValue | None] = {
        "sgx.mrsigner": b"\xa1" * 32,
        "sgx.isv_prod_id": 7,
        "sgx.isv_svn": 3,
    }
    policy = policy_for("sgx", signer)
    assert policy.appraise(evidence_for("sgx", claims)).tier is Tier.AFFIRMING
    old = policy.appraise(evidence_for("sgx", {**claims, "sgx.isv_svn": 2}))
    assert [finding.check.number for finding in old.findings] == ["P5"]
    by_ek = policy_for("tpm", {"tpm.ak": None, "tpm.ek": '"' + "e1" * 32 + '"'})
    assert by_ek.appraise(evidence_for("tpm", {"tpm.ek": b"\xe1" * 32})).accepted
    assert not by_ek.appraise(evidence_for("tpm", {"tpm.ek": b"\xe2" * 32})).accepted
    register = policy_for("tdx", {"module_measured": '"any"', "tdx.rtmr.3": '"' + "33" * 48 + '"'})
    assert register.appraise(evidence_for("tdx", {"tdx.rtmr.3": b"\x33" * 48})).accepted
    assert not register.appraise(evidence_for("tdx", {"tdx.rtmr.3": b"\x34" * 48})).accepted


def test_any_for_all_registers_at_once() -> None:
    none = dict.fromkeys(f"tpm.pcr.{n}" for n in range(8))
    policy = policy_for("tpm", {**none, "tpm.pcr": '"any"'})
    assert policy.appraise(evidence_for("tpm", {"tpm.pcr.3": None})).tier is Tier.WARNING
    with pytest.raises(MalformedError, match=r"tpm\.pcr\.0 = "):
        policy_for("tpm", {**none, "tpm.pcr": '"' + "00" * 32 + '"'})


def test_claims_may_be_treated_above_the_branches() -> None:
    shared = {"module", "runtime", "configuration", "evidence_age_s"}
    top = "".join(f"{claim} = {lines_of('snp')[claim].text}\n" for claim in sorted(shared))
    own = dict.fromkeys(shared)
    text = top + "".join(f"[[any]]\n{rule_text(name, own)}" for name in ("snp", "tpm"))
    policy = policy_of(text)
    assert policy.platforms == ("snp", "tpm")
    for name in ("snp", "tpm"):
        assert policy.appraise(evidence_for(name)).tier is Tier.AFFIRMING
        (finding,) = policy.appraise(evidence_for(name, {"module": b"\0" * 32})).findings
        assert "(rule `module`)" in finding.expected
    with pytest.raises(MalformedError, match=r"any\[2\].*module"):
        policy_of(
            text.replace(f"module = {lines_of('snp')['module'].text}\n", "").replace(
                'platform = "snp"', f'platform = "snp"\nmodule = {lines_of("snp")["module"].text}'
            )
        )
