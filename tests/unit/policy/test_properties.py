"""Over claims and texts of every kind: nothing but the documented errors, and no hole."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from avow.errors import DeniedError, MalformedError
from avow.evidence.appraisal import Tier, ear
from avow.evidence.origin import Verified
from avow.evidence.vocabulary import KINDS, ClaimValue, is_value_of, kind_of
from avow.policy import Policy, explain, parse_policy
from avow.policy.constraints import same
from tests.unit.policy.examples import (
    NONCE,
    NOW,
    RULES,
    evidence_for,
    head,
    lines_of,
    policy_for,
    policy_of,
    rule_text,
)

POLICIES: dict[str, Policy] = {name: policy_for(name) for name in RULES}
HARDWARE = sorted(set(RULES) - {"simulated"})
EVERYTHING = policy_of("".join(f"[[any]]\n{rule_text(name)}" for name in HARDWARE))

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.integers(-5, 500),
    st.sampled_from(["snp", "tdx", "ek", "UpToDate", "OutOfDate", "", "x"]),
    st.binary(max_size=64),
    st.sampled_from([bytes([fill]) * size for fill in (0xA1, 1, 2, 3) for size in (32, 48, 64)]),
    st.lists(st.sampled_from(["a", "INTEL-SA-00289"]), max_size=3).map(tuple),
    st.none(),
    st.floats(),
    st.lists(st.integers(), max_size=2),
)
NAMES = st.sampled_from(
    sorted({kind.name.replace("{n}", str(n)) for kind in KINDS for n in range(8)} | {"other"})
)


def right(name: str, verified: Verified) -> bool:
    """Whether evidence is what the example's rule wants, said without the policy's code."""
    claims = verified.claims
    if claims.get("platform") != verified.platform or claims.get("simulated"):
        return False
    if verified.platform != name.partition("/")[0]:
        return False
    for claim, line in lines_of(name).items():
        kind, value = kind_of(claim), claims.get(claim)
        assert kind is not None
        if not is_value_of(kind, value):
            return False
        assert value is not None
        if line.text.startswith("{ min"):
            assert isinstance(value, int)
            low = int(line.text.split("min = ")[1].split()[0].rstrip(","))
            if value < low or ("max" in line.text and value > 300):
                return False
        elif line.text.startswith("{ max"):
            assert isinstance(value, int)
            if value > 86400:
                return False
        elif isinstance(line.good, tuple):
            assert isinstance(value, tuple)
            allowed = {"INTEL-SA-00289"} if line.text.startswith("{") else set(line.good)
            if not (set(value) <= allowed and set(value) >= set(line.good)):
                return False
        elif type(value) is not type(line.good) or value != line.good:
            return False
    return True


@settings(deadline=None)
@given(
    name=st.sampled_from(HARDWARE),
    changes=st.dictionaries(NAMES, VALUES, max_size=4),
    platform=st.sampled_from([None, None, None, "simulated", "tpm", "other", ""]),
)
def test_accepts_exactly_what_the_rules_say(
    name: str, changes: dict[str, Any], platform: str | None
) -> None:
    verified = evidence_for(name, changes)
    if platform is not None:
        verified = replace(verified, platform=platform)
    for policy, wanted in (
        (POLICIES[name], right(name, verified)),
        (EVERYTHING, any(right(each, verified) for each in HARDWARE)),
    ):
        result = policy.appraise(verified)
        assert result.accepted is wanted
        assert (result.tier is Tier.CONTRAINDICATED) is not wanted
        with contextlib.suppress(DeniedError):
            assert policy.require(verified).accepted
            assert wanted


@settings(deadline=None)
@given(claims=st.dictionaries(NAMES, VALUES), platform=st.sampled_from(["snp", "sgx", "psa", "x"]))
def test_arbitrary_claims_raise_nothing(claims: dict[str, Any], platform: str) -> None:
    verified = Verified(platform, NONCE, claims, NOW)
    result = EVERYTHING.appraise(verified)
    assert not result.accepted
    for finding in result.findings:
        assert finding.expected
        assert finding.actual
        assert finding.advice
        assert "\n" not in finding.expected + finding.actual


@settings(deadline=None)
@given(name=st.sampled_from(sorted(RULES)), data=st.data())
def test_one_changed_claim_is_enough(name: str, data: st.DataObject) -> None:
    claim = data.draw(st.sampled_from(sorted(lines_of(name))))
    line, kind = lines_of(name)[claim], kind_of(claim)
    assert kind is not None
    values: dict[type, st.SearchStrategy[ClaimValue]] = {
        bool: st.just(not line.good),
        int: st.integers(),
        str: st.text(max_size=20),
        bytes: st.binary(min_size=kind.size or 32, max_size=kind.size or 32),
        tuple: st.lists(st.text(max_size=4), max_size=3).map(tuple),
    }
    value = data.draw(values[kind.type])
    verified = evidence_for(name, {claim: value})
    result = POLICIES[name].appraise(verified)
    if same(value, line.good):
        assert result.accepted
    elif name != "simulated":
        assert result.accepted is right(name, verified)
    if not result.accepted:
        assert [f"`{claim}`" in finding.expected for finding in result.findings] == [True]


TOML_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.sampled_from(['"any"', "true", "false", "0", "3", '"snp"', '"a1"', "[]", "{}", "1.5"]),
        st.sampled_from(["{ min = 1 }", '["a"]', '{ accept = ["UpToDate"] }', "2026-11-21"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda each: f"[{', '.join(each)}]"),
        st.tuples(
            st.sampled_from(["all", "any", "not", "snp", "vmpl", "min", "module"]), inner
        ).map(lambda pair: f"{{ {pair[0]} = {pair[1]} }}"),
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *sorted(lines_of("snp")),
        "snp",
        "tpm.pcr",
        "all",
        "any",
        "not",
        "platform",
        "role",
        "nonsense",
    ]
)


@settings(deadline=None)
@given(changes=st.dictionaries(KEYS, TOML_VALUES, max_size=3))
def test_a_policy_is_malformed_or_can_be_explained(changes: dict[str, str]) -> None:
    with contextlib.suppress(MalformedError):
        policy = policy_for("snp", changes)
        assert explain(policy)
        result = policy.appraise(evidence_for("snp"))
        assert ear(result, build="x")
        # Nothing that can be written in a policy makes it accept these.
        assert not policy.appraise(evidence_for("simulated")).accepted
        assert not policy.appraise(evidence_for("snp", {"debug": True})).accepted


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_arbitrary_text_is_malformed(text: str) -> None:
    for each in (text, head() + text):
        with contextlib.suppress(MalformedError):
            parse_policy(each, name="x")
            raise AssertionError("such a short text is no complete policy")
