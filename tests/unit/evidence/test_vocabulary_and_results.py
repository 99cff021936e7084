"""Names of claims, and results in the shape of EAR."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from avow.errors import Check, Finding
from avow.evidence.appraisal import AttestationResult, Tier, TrustVector, ear, tier_of
from avow.evidence.vocabulary import KINDS, is_value_of, kind_of

PLATFORMS = {"tpm", "sgx", "tdx", "snp", "azure", "nitro", "psa", "cca", "simulated"}


def test_each_kind_is_found_by_its_own_name_only() -> None:
    for kind in KINDS:
        assert kind_of(kind.name.replace("{n}", "7")) is kind
        assert set(kind.platforms) <= PLATFORMS
        assert kind.type in (bool, int, str, bytes, tuple)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    "name",
    ["", "debug ", "tpm.pcr", "tpm.pcr.", "tpm.pcr.007", "tpm.pcr.x", "tpm-pcr.1", "modulex"],
)
def test_other_names_are_none(name: str) -> None:
    assert kind_of(name) is None


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("debug", True, 1),
        ("snp.vmpl", 0, False),
        ("snp.signer", "vcek", b"vcek"),
        ("module", b"m" * 32, b"m" * 31),
        ("cca.rim", b"any size", "text"),
        ("tcb.advisories", ("INTEL-SA-1",), ["INTEL-SA-1"]),
        ("tcb.advisories", (), ("INTEL-SA-1", 2)),
    ],
)
def test_values_have_types_and_sizes(name: str, good: object, bad: object) -> None:
    kind = kind_of(name)
    assert kind is not None
    assert is_value_of(kind, good)
    assert not is_value_of(kind, bad)


def test_tiers_of_numbers() -> None:
    """AR4SI, section 2.3.2: the ranges and their edges."""
    edges = {
        Tier.NONE: (-1, 0, 1),
        Tier.AFFIRMING: (2, 31, -2, -32),
        Tier.WARNING: (32, 95, -33, -96),
        Tier.CONTRAINDICATED: (96, 127, -97, -128),
    }
    for tier, numbers in edges.items():
        assert {tier_of(number) for number in numbers} == {tier}
    ranks = [Tier.CONTRAINDICATED, Tier.NONE, Tier.WARNING, Tier.AFFIRMING]
    assert sorted(Tier, key=lambda tier: tier.rank) == ranks


def test_a_result_is_an_ear() -> None:
    check = Check("P7", "the module is one of those", "docs/how-to/policy.md")
    finding = Finding(check, "aa", "bb", "rebuild")
    result = AttestationResult(
        tier=Tier.CONTRAINDICATED,
        vector=TrustVector(hardware=2, executables=96),
        policy_id="sha256:00",
        platform="snp",
        nonce=b"\x01\x02",
        appraised_at=datetime(2026, 11, 21, tzinfo=UTC),
        claims={"module": b"\xaa", "debug": False, "tcb.advisories": ("one",)},
        findings=(finding,),
    )
    assert not result.accepted
    claims = json.loads(json.dumps(ear(result, build="avow 1")))
    assert claims["eat_nonce"] == "0102"
    assert claims["iat"] == 1_795_219_200
    module = claims["submods"]["snp"]
    assert module["ear.status"] == "contraindicated"
    assert module["ear.trustworthiness-vector"]["hardware"] == 2
    assert module["ear.trustworthiness-vector"]["instance-identity"] == 0
    assert module["avow.claims"] == {"debug": False, "module": "aa", "tcb.advisories": ["one"]}
    assert module["avow.findings"][0]["check"] == "P7"
    assert list(module["ear.trustworthiness-vector"]) == [
        "instance-identity",
        "configuration",
        "executables",
        "file-system",
        "hardware",
        "runtime-opaque",
        "storage-opaque",
        "sourced-data",
    ]
