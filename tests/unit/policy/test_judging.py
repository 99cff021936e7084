"""`all`, `any`, `not`, platforms, tiers and the trust vector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from avow.errors import DeniedError, MalformedError
from avow.evidence.appraisal import Tier, TrustVector
from avow.evidence.origin import Verified
from avow.evidence.vocabulary import KINDS, ClaimValue
from avow.policy import CHECKS, Policy, parse_policy
from avow.policy.constraints import same
from avow.policy.trust import CATEGORIES, Tally, category_of, tier
from tests.unit.policy.examples import (
    NONCE,
    NOW,
    RULES,
    evidence_for,
    policy_for,
    policy_of,
    rule_text,
)


def numbers(policy: Policy, verified: Verified) -> list[str]:
    """The numbers of the checks that failed."""
    return [finding.check.number for finding in policy.appraise(verified).findings]


def test_checks_are_numbered_in_order() -> None:
    assert [check.number for check in CHECKS] == [f"P{n}" for n in range(1, len(CHECKS) + 1)]


def test_result_says_what_was_judged() -> None:
    policy, verified = policy_for("snp"), evidence_for("snp")
    result = policy.appraise(verified)
    assert result == policy.require(verified)
    assert (result.policy_id, result.platform) == (policy.policy_id, "snp")
    assert (result.nonce, result.appraised_at, result.claims) == (NONCE, NOW, verified.claims)


def test_other_platform_is_refused_by_name() -> None:
    policy = policy_of("".join(f"[[any]]\n{rule_text(name)}" for name in ("snp", "tpm")))
    (finding,) = policy.appraise(evidence_for("nitro")).findings
    assert finding.check.number == "P1"
    assert finding.expected == "evidence from snp or tpm"
    assert finding.actual == "evidence from nitro"
    with pytest.raises(DeniedError, match=r"check P1 .*expected evidence from snp or tpm"):
        policy.require(evidence_for("nitro"))


@pytest.mark.parametrize("name", sorted(set(RULES) - {"simulated"}))
def test_simulation_is_refused_everywhere_else(name: str) -> None:
    assert "P2" in numbers(policy_for(name), evidence_for("simulated"))
    # Even one whose claims say that it is real, and real evidence that says it is simulated.
    posing = replace(evidence_for(name), platform="simulated")
    assert {"P1", "P2"} <= set(numbers(policy_for(name), posing))
    assert numbers(policy_for(name), evidence_for(name, {"simulated": True})) == ["P2"]
    both = f'version = 1\nname = "t"\nunsafe_simulated = true\n[[any]]\n{rule_text("simulated")}'
    lenient = parse_policy(both + f"[[any]]\n{rule_text(name)}", name="x")
    assert numbers(lenient, evidence_for("simulated")) == []
    assert numbers(lenient, evidence_for(name, {"simulated": True})) == ["P2"]


def test_platform_of_the_signer_counts_not_what_claims_say() -> None:
    assert numbers(policy_for("snp"), replace(evidence_for("snp"), platform="tpm")) == ["P1"]
    assert numbers(policy_for("snp"), evidence_for("snp", {"platform": "tpm"})) == ["P1"]
    assert numbers(policy_for("snp"), evidence_for("snp", {"platform": None})) == ["P1"]


def test_any_reports_the_rule_of_the_platform_that_came_nearest() -> None:
    other = {"snp.measurement": '"' + "c3" * 48 + '"', "snp.vmpl": "1"}
    policy = policy_of(
        f"[[any]]\n{rule_text('tpm')}[[any]]\n{rule_text('snp', other)}[[any]]\n{rule_text('snp')}"
    )
    assert numbers(policy, evidence_for("snp")) == []
    measurement: dict[str, ClaimValue | None] = {"snp.measurement": b"\xc3" * 48, "snp.vmpl": 1}
    assert numbers(policy, evidence_for("snp", measurement)) == []
    (finding,) = policy.appraise(evidence_for("snp", {"snp.measurement": b"\xc3" * 48})).findings
    # Two rules miss it by one claim each; the first of them is named.
    assert "(rule `any[2].snp.vmpl`)" in finding.expected
    (finding,) = policy.appraise(evidence_for("snp", {"snp.measurement": b"\xd4" * 48})).findings
    assert "(rule `any[3].snp.measurement`)" in finding.expected


def test_findings_are_never_those_of_another_platform() -> None:
    rules = "".join(f"[[any]]\n{rule_text(name)}" for name in ("simulated", "snp"))
    policy = parse_policy(f'version = 1\nname = "t"\nunsafe_simulated = true\n{rules}', name="x")
    wrong: dict[str, ClaimValue | None] = {f"snp.tcb.{n}": 0 for n in ("bootloader", "snp", "tee")}
    assert numbers(policy, evidence_for("snp", wrong)) == ["P5", "P5", "P5"]


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("collateral.age_s", True),
        ("collateral.age_s", 3.5),
        ("collateral.age_s", "3"),
        ("snp.vmpl", False),
        ("snp.migration_agent", 0),
        ("collateral.crl_checked", 1),
        ("module", "a1" * 32),
        ("module", bytearray(b"\xa1" * 32)),
        ("tcb.advisories", ["INTEL-SA-00289"]),
        ("tcb.status", b"UpToDate"),
    ],
)
def test_values_of_another_type_are_refused(claim: str, value: Any) -> None:
    name = "sgx" if claim.startswith("tcb") else "snp"
    (finding,) = policy_for(name).appraise(evidence_for(name, {claim: value})).findings
    assert f"`{claim}`" in finding.expected


def test_true_is_not_one() -> None:
    assert not same(True, 1)
    assert not same(0, False)
    assert not same("a", b"a")
    assert same(b"a", b"a")
    assert tier(Tally(), accepted=False) is Tier.CONTRAINDICATED


def test_measurement_sets_do_not_mix() -> None:
    sets = ", ".join(
        f'{{ module = "{m * 32}", configuration = "{c * 32}" }}'
        for m, c in (("01", "02"), ("03", "04"))
    )
    text = rule_text("nitro", {"module": None, "configuration": None})
    policy = policy_of(f"any = [{sets}]\n{text}")

    def judged(module: int, configuration: int) -> list[str]:
        changes: dict[str, ClaimValue | None] = {
            "module": bytes([module]) * 32,
            "configuration": bytes([configuration]) * 32,
        }
        return numbers(policy, evidence_for("nitro", changes))

    assert judged(1, 2) == judged(3, 4) == []
    assert judged(1, 4) == judged(3, 2) == ["P4"]


def test_best_tier_of_several_rules_counts() -> None:
    lenient = rule_text("snp", {"snp.chip_id": '"any"'})
    for order in ((lenient, rule_text("snp")), (rule_text("snp"), lenient)):
        policy = policy_of("".join(f"[[any]]\n{rule}" for rule in order))
        assert policy.appraise(evidence_for("snp")).tier is Tier.AFFIRMING
        other = evidence_for("snp", {"snp.chip_id": b"\0" * 64})
        assert policy.appraise(other).tier is Tier.WARNING


def test_a_constraint_above_makes_leniency_below_void() -> None:
    policy = policy_of(
        f"all = [{{ snp.chip_id = '{'a1' * 64}' }}]\n" + rule_text("snp", {"snp.chip_id": '"any"'})
    )
    assert policy.appraise(evidence_for("snp")).tier is Tier.AFFIRMING
    assert numbers(policy, evidence_for("snp", {"snp.chip_id": b"\0" * 64})) == ["P4"]


@pytest.mark.parametrize(
    ("rule", "excluded", "absent"),
    [
        ('{ snp.product = "milan" }', {"snp.product": "milan"}, "snp.product"),
        ("{ snp.vmpl = 0, snp.smt = true }", {"snp.smt": True}, "snp.smt"),
        ("{ any = [{ snp.smt = true }, { snp.vmpl = 1 }] }", {"snp.smt": True}, "snp.smt"),
        ("{ not = { snp.smt = false } }", {"snp.smt": True}, "snp.smt"),
        ("{ all = [{ snp.vmpl = 0 }, { snp.smt = true }] }", {"snp.smt": True}, "snp.smt"),
        ("{ snp.guest_svn = { max = 3 } }", {"snp.guest_svn": 3}, "snp.guest_svn"),
    ],
)
def test_not(rule: str, excluded: dict[str, ClaimValue | None], absent: str) -> None:
    policy = policy_for("snp", {"not": rule})
    fine: dict[str, ClaimValue | None] = {
        "snp.product": "turin",
        "snp.smt": False,
        "snp.guest_svn": 4,
    }
    assert numbers(policy, evidence_for("snp", fine)) == []
    result = policy.appraise(evidence_for("snp", {**fine, **excluded}))
    assert [finding.check.number for finding in result.findings] == ["P8"]
    assert result.tier is Tier.CONTRAINDICATED
    # What is absent is not "not that": it is refused.
    (finding,) = policy.appraise(evidence_for("snp", {**fine, absent: None})).findings
    assert finding.check.number == "P3"
    assert f"`{absent}`" in finding.expected


def test_not_is_no_way_to_treat_a_claim() -> None:
    with pytest.raises(MalformedError, match="`debug`"):
        policy_for("snp", {"debug": None, "not": "{ not = { debug = false } }"})


def test_not_of_several_rules() -> None:
    policy = policy_for(
        "snp", {"all": "[{ not = { snp.vmpl = 3 } }, { not = { snp.guest_svn = 1 } }]"}
    )
    assert numbers(policy, evidence_for("snp", {"snp.guest_svn": 2})) == []
    assert numbers(policy, evidence_for("snp", {"snp.guest_svn": 1})) == ["P8"]


def test_all_findings_are_told() -> None:
    verified = evidence_for("snp", {"module": b"\0" * 32, "snp.vmpl": 3, "debug": True})
    assert sorted(numbers(policy_for("snp"), verified)) == ["P4", "P4", "P9"]
    with pytest.raises(DeniedError, match="2 more findings after this"):
        policy_for("snp").require(verified)


@pytest.mark.parametrize(
    ("name", "changes", "claims", "vector"),
    [
        ("snp", {}, {}, TrustVector(2, 2, 2, 0, 2)),
        ("nitro", {}, {}, TrustVector(0, 2, 2, 0, 2)),
        ("snp", {"snp.chip_id": '"any"'}, {}, TrustVector(32, 2, 2, 0, 2)),
        ("snp", {"configuration": '"any"'}, {}, TrustVector(2, 36, 2, 0, 2)),
        ("snp", {"module": '"any"'}, {}, TrustVector(2, 2, 33, 0, 2)),
        ("snp", {"collateral.crl_checked": '"any"'}, {}, TrustVector(2, 2, 2, 0, 32)),
        ("snp", {"debug": None, "unsafe_debug": "true"}, {}, TrustVector(2, 36, 2, 0, 2)),
        ("snp", {}, {"snp.chip_id": b"\0" * 64}, TrustVector(97, 2, 2, 0, 2)),
        ("snp", {}, {"snp.vmpl": 1}, TrustVector(2, 96, 2, 0, 2)),
        ("snp", {}, {"module": b"\0" * 32}, TrustVector(2, 2, 96, 0, 2)),
        ("snp", {}, {"snp.tcb.snp": 1}, TrustVector(2, 2, 2, 0, 97)),
        (
            "sgx",
            {"tcb.status": '"OutOfDate"'},
            {"tcb.status": "OutOfDate"},
            TrustVector(0, 2, 2, 0, 32),
        ),
        ("sgx", {}, {"tcb.advisories": ("INTEL-SA-00289",)}, TrustVector(0, 2, 2, 0, 32)),
        (
            "snp",
            {"collateral.crl_checked": "false"},
            {"collateral.crl_checked": False},
            TrustVector(2, 2, 2, 0, 32),
        ),
        (
            "snp",
            {"snp.migration_agent": "true"},
            {"snp.migration_agent": True},
            TrustVector(2, 36, 2, 0, 2),
        ),
        ("simulated", {}, {}, TrustVector(0, 2, 2, 0, 32)),
    ],
)
def test_trust_vector(
    name: str,
    changes: dict[str, str | None],
    claims: dict[str, ClaimValue | None],
    vector: TrustVector,
) -> None:
    result = policy_for(name, changes).appraise(evidence_for(name, claims))
    assert result.vector == vector
    values = [value for value in vector.named().values() if value]
    refused = any(value >= 96 for value in values)
    assert result.accepted is not refused
    expected = (
        Tier.CONTRAINDICATED if refused else Tier.WARNING if max(values) > 31 else Tier.AFFIRMING
    )
    assert result.tier is expected


def test_refusal_of_a_platform_speaks_against_the_hardware() -> None:
    assert policy_for("snp").appraise(evidence_for("tpm")).vector == TrustVector(hardware=97)


def test_every_claim_has_its_place_in_the_vector() -> None:
    known = set(TrustVector.__dataclass_fields__)
    assert {category_of(kind.name.replace("{n}", "3")) for kind in KINDS} <= known
    prefixes = {kind.name.partition(".")[0] for kind in KINDS}
    assert prefixes <= {name.partition(".")[0] for name in CATEGORIES}


def test_values_of_evidence_do_not_reach_the_terminal_raw() -> None:
    policy = policy_for("nitro", {"nitro.module_id": '"i-1"'})
    (finding,) = policy.appraise(
        evidence_for("nitro", {"nitro.module_id": "\x1b[2Ji-1" + "x" * 500})
    ).findings
    assert "\x1b" not in finding.actual
    assert len(finding.actual) <= 140


def test_evidence_from_the_future_names_the_clock() -> None:
    """A device without a battery for its clock finds everything in the future."""
    claims = {**evidence_for("snp").claims, "evidence_age_s": -86_400}
    (finding,) = policy_for("snp").appraise(evidence_for("snp", claims)).findings
    assert finding.advice.startswith("set the clock that is wrong: this machine's is behind")
    late = {**claims, "evidence_age_s": 86_400}
    (finding,) = policy_for("snp").appraise(evidence_for("snp", late)).findings
    assert "fresh evidence" in finding.advice
