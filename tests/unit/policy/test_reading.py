"""Every form of a value accepts and refuses; whatever else is in a file is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from avow.errors import MalformedError, UnavailableError
from avow.evidence.appraisal import Tier
from avow.evidence.vocabulary import KINDS, ClaimValue
from avow.policy import load_policy, parse_policy
from avow.policy.policy_file import FILE_BYTES_MAX
from tests.unit.policy.examples import evidence_for, head, policy_for, policy_of, rule_text, toml

DAY_S = 86400
A32, B32 = "a1" * 32, "b2" * 32


def sample(type_: type, size: int | None) -> tuple[ClaimValue, ClaimValue]:
    """Two values of a claim's type."""
    match type_.__name__:
        case "bool":
            return True, False
        case "int":
            return 3, 4
        case "str":
            return "one", "two"
        case "bytes":
            return b"\x01" * (size or 8), b"\x02" * (size or 8)
        case _:
            return ("one", "two"), ("one",)


PLACE = {"azure": "azure/snp"}
NOT_FREE = {"platform", "debug", "simulated", "azure.confidential_type"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_claim_can_be_named(kind: object) -> None:
    assert isinstance(kind, type(KINDS[0]))
    if kind.name in NOT_FREE:
        return
    claim = kind.name.replace("{n}", "9")
    platform = kind.platforms[0] if kind.platforms else "nitro"
    good, bad = sample(kind.type, kind.size)
    chosen = {
        "role": ("client", "server"),
        "snp.signer": ("vcek", "vlek"),
        "snp.product": ("milan", "turin"),
        "tpm.ak_origin": ("ek", "owner"),
        "cca.mec_policy": ("private", "shared"),
        "cca.lfa_policy": ("disallow", "allow"),
        "tcb.status": ("UpToDate", "Revoked"),
    }.get(claim, (good, bad))
    # In a rule of its own: then what the example says about the same claim stays.
    base = policy_for(PLACE.get(platform, platform), {claim: '"any"', **_beside(claim)})
    assert base.branches
    text = f"all = [{{ {claim} = {toml(chosen[0])} }}]\n"
    policy = policy_of(
        text + rule_text(PLACE.get(platform, platform), {claim: '"any"', **_beside(claim)})
    )
    evidence = evidence_for(PLACE.get(platform, platform), {claim: chosen[0]})
    assert policy.appraise(evidence).accepted
    other = evidence_for(PLACE.get(platform, platform), {claim: chosen[1]})
    (finding,) = policy.appraise(other).findings
    assert f"(rule `all[1].{claim}`)" in finding.expected


def _beside(claim: str) -> dict[str, str | None]:
    if claim == "tpm.ak":
        return {"collateral.crl_checked": '"any"'}
    return {}


@pytest.mark.parametrize(
    ("name", "claim", "text", "good", "bad"),
    [
        ("snp", "snp.vmpl", "[0, 1]", (0, 1), (2, 3, -1)),
        ("snp", "snp.vmpl", "{ max = 1 }", (0, 1), (2,)),
        ("snp", "snp.vmpl", "{ min = 1, max = 2 }", (1, 2), (0, 3)),
        ("snp", "snp.tcb.snp", "{ min = 22 }", (22, 23), (21,)),
        ("snp", "snp.signer", '"vcek"', ("vcek",), ("vlek", "VCEK", "")),
        ("snp", "snp.signer", '["vcek", "vlek"]', ("vcek", "vlek"), ("other",)),
        ("snp", "module", f'"sha256:{A32}"', (b"\xa1" * 32,), (b"\xb2" * 32,)),
        ("snp", "module", f'"{A32.upper()}"', (b"\xa1" * 32,), (b"\xb2" * 32,)),
        (
            "snp",
            "module",
            f'["{A32}", "sha256:{B32}"]',
            (b"\xa1" * 32, b"\xb2" * 32),
            (b"\xc3" * 32,),
        ),
        ("psa", "psa.software", '["a", "b"]', (("a", "b"), ("b", "a")), (("a",), ("a", "b", "c"))),
        ("psa", "psa.software", '{ all_of = ["a"] }', (("a",), ("b", "a")), (("b",), ())),
        (
            "psa",
            "psa.software",
            '{ all_of = ["a"], subset_of = ["a", "b"], none_of = ["b"] }',
            (("a",),),
            (("a", "b"), ("a", "c"), ()),
        ),
        ("sgx", "tcb.advisories", "[]", ((),), (("INTEL-SA-1",),)),
        ("sgx", "tcb.advisories", '{ subset_of = ["x"] }', ((), ("x",)), (("x", "y"), ("y",))),
        ("sgx", "tcb.status", '{ accept = ["UpToDate"] }', ("UpToDate",), ("OutOfDate",)),
        ("nitro", "evidence_age_s", "5", (5,), (4, 6)),
        ("tpm", "tpm.clock_safe", "true", (True,), (False,)),
    ],
)
def test_every_form_of_a_value(
    name: str,
    claim: str,
    text: str,
    good: tuple[ClaimValue, ...],
    bad: tuple[ClaimValue, ...],
) -> None:
    policy = policy_for(name, {claim: text})
    for value in good:
        assert policy.appraise(evidence_for(name, {claim: value})).accepted, value
    for value in bad:
        (finding,) = policy.appraise(evidence_for(name, {claim: value})).findings
        assert f"(rule `{claim}`)" in finding.expected


GRACED_STATUS = (
    '{ accept = ["UpToDate"], grace = ["OutOfDate", "SWHardeningNeeded"], grace_days = 30 }'
)
GRACED_ADVISORIES = '{ subset_of = ["x"], grace = ["y"], grace_days = 10 }'


def test_grace_is_counted_by_the_date_of_the_level() -> None:
    policy = policy_for("sgx", {"tcb.status": GRACED_STATUS})

    def judged(status: str, age_s: int | None) -> tuple[str, Tier]:
        changes: dict[str, ClaimValue | None] = {"tcb.status": status, "tcb.date_age_s": age_s}
        result = policy.appraise(evidence_for("sgx", changes))
        return ",".join(finding.check.number for finding in result.findings), result.tier

    assert judged("UpToDate", None) == ("", Tier.AFFIRMING)
    assert judged("OutOfDate", 30 * DAY_S) == ("", Tier.WARNING)
    assert judged("OutOfDate", 30 * DAY_S + 1) == ("P7", Tier.CONTRAINDICATED)
    assert judged("OutOfDate", None) == ("P3", Tier.CONTRAINDICATED)
    assert judged("Revoked", 0) == ("P4", Tier.CONTRAINDICATED)


def test_grace_of_advisories() -> None:
    policy = policy_for("sgx", {"tcb.advisories": GRACED_ADVISORIES})

    def judged(advisories: tuple[str, ...], age_s: int) -> str:
        changes: dict[str, ClaimValue | None] = {
            "tcb.advisories": advisories,
            "tcb.date_age_s": age_s,
        }
        findings = policy.appraise(evidence_for("sgx", changes)).findings
        return ",".join(finding.check.number for finding in findings)

    assert judged(("x", "y"), 10 * DAY_S) == ""
    assert judged(("x", "y"), 10 * DAY_S + 1) == "P7"
    assert judged(("y", "z"), 0) == "P6"
    assert judged(("x",), 99 * DAY_S) == ""


def test_unsafe_debug_is_the_only_way_to_accept_debug() -> None:
    policy = policy_for("snp", {"debug": None, "unsafe_debug": "true"})
    for debug in (True, False):
        assert policy.appraise(evidence_for("snp", {"debug": debug})).tier is Tier.WARNING


def test_keys_may_be_dotted_quoted_or_tables() -> None:
    claims = {"snp.vmpl": "0", "snp.tcb.snp": "{ min = 22 }"}
    none = dict.fromkeys(claims)
    quoted = policy_for("snp", {**none, **{f'"{name}"': text for name, text in claims.items()}})
    assert quoted.appraise(evidence_for("snp")).accepted
    (finding,) = quoted.appraise(evidence_for("snp", {"snp.tcb.snp": 21})).findings
    assert finding.check.number == "P5"
    snp = {
        claim: None for claim in evidence_for("snp").claims if claim.startswith(("snp.", "coll"))
    }
    tables = (
        rule_text("snp", snp)
        + f'[snp]\nmeasurement = "{"a1" * 48}"\nchip_id = "{"a1" * 64}"\nvmpl = 0\n'
        + "migration_agent = false\n[snp.tcb]\nbootloader = { min = 4 }\ntee = { min = 1 }\n"
        + "snp = { min = 22 }\nmicrocode = { min = 213 }\nfmc.min = 2\n"
        + "[snp.launch_tcb]\nbootloader.min = 4\n"
        + "tee.min = 1\nsnp.min = 22\nmicrocode.min = 213\nfmc.min = 2\n"
        + "[snp.platform]\nalias_check_complete = true\n"
        + "[collateral]\ncrl_checked = true\nage_s = { max = 86400 }\n"
    )
    assert policy_of(tables).appraise(evidence_for("snp")).accepted
    assert not policy_of(tables).appraise(evidence_for("snp", {"snp.tcb.tee": 0})).accepted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modul": '"x"'}, ["`modul`", "did you mean `module`?"]),
        ({"snp.vmpll": "0"}, ["`snp.vmpll`", "did you mean `snp.vmpl`?"]),
        ({"sno.vmpl": "0"}, ["`sno", "did you mean"]),
        ({"zzzzzzzzzz": "0"}, ["`zzzzzzzzzz`", "avow inspect"]),
        ({"tpm": "3"}, ["`tpm`"]),
        ({"simulated": "true"}, ["unsafe_simulated = true"]),
        ({"debug": "true"}, ["`debug`", "unsafe_debug = true"]),
        ({"debug": '"any"'}, ["`debug`", "unsafe_debug = true"]),
        ({"debug": "[false, true]"}, ["`debug`", "unsafe_debug = true"]),
        ({"unsafe_debug": "true"}, ["`unsafe_debug`", "both"]),
        ({"unsafe_debug": "false", "debug": None}, ["`unsafe_debug`", "debug = false"]),
        ({"unsafe_debug": "1", "debug": None}, ["`unsafe_debug`", "got 1"]),
        ({"module": "3"}, ["`module`", "hexadecimal digits for 32 bytes"]),
        ({"module": '"a1"'}, ["`module`", "got '1 byte'"]),
        ({"module": '"xyz"'}, ["`module`", "'xyz'"]),
        ({"module": f'"{A32[:-2]} 1"'}, ["`module`", "hexadecimal"]),
        ({"module": f'"sha256:{A32}a1"'}, ["`module`", "got '33 bytes'"]),
        ({"module": f'"sha512:{A32}"'}, ["`module`", "hexadecimal"]),
        ({"snp.measurement": f'"sha256:{A32}"'}, ["`snp.measurement`", "48 bytes"]),
        ({"module": "[]"}, ["`module`", "at least one value"]),
        ({"module": '["any"]'}, ["`module`"]),
        ({"module": '{ accept = ["a"] }'}, ["`module`", "got a table"]),
        ({"snp.signer": '["any"]'}, ["`snp.signer`", '"any"']),
        ({"snp.signer": '"vceck"'}, ["`snp.signer`", "did you mean 'vcek'?"]),
        ({"snp.signer": "true"}, ["`snp.signer`", "a text", "got true"]),
        ({"platform": '"spn"'}, ["`platform`", "did you mean 'snp'?"]),
        ({"platform": '"any"'}, ["`platform`"]),
        ({"snp.vmpl": "true"}, ["`snp.vmpl`", "whole number", "got true"]),
        ({"snp.vmpl": "0.0"}, ["`snp.vmpl`", "whole number"]),
        ({"snp.vmpl": '"0"'}, ["`snp.vmpl`", "whole number"]),
        ({"snp.vmpl": "{}"}, ["`snp.vmpl`", "`min` or `max`"]),
        ({"snp.vmpl": "{ mix = 1 }"}, ["`mix`", "did you mean"]),
        ({"snp.vmpl": "{ min = 2, max = 1 }"}, ["swap them"]),
        ({"snp.vmpl": "{ max = true }"}, ["`snp.vmpl.max`", "got true"]),
        ({"snp.migration_agent": "0"}, ["`snp.migration_agent`", "true or false"]),
        ({"snp.migration_agent": "{ min = 0 }"}, ["`snp.migration_agent`", "got a table"]),
        ({"any": "[]"}, ["`any`", "an empty list"]),
        ({"all": "[]"}, ["`all`", "an empty list"]),
        ({"any": '"any"'}, ["`any`", "a list of rules"]),
        ({"any": "[{}]"}, ["`any[1]`", "an empty table"]),
        ({"all": "[3]"}, ["`all[1]`", "got 3"]),
        ({"not": "{}"}, ["`not`", "an empty table"]),
        ({"not": "[{ snp.vmpl = 1 }]"}, ["`not`", "a list"]),
        ({"not": '{ snp.vmpl = "any" }'}, ["`not.snp.vmpl`", "leniency"]),
        ({"not": "{ unsafe_debug = true }"}, ["`not.unsafe_debug`", "leniency"]),
        ({"not": "{ any = [{ snp.vmplx = 1 }] }"}, ["`not.any[1].snp.vmplx`"]),
        ({'"snp.vmpl"': "0"}, ["`snp.vmpl`", "twice"]),
        ({"version": "1"}, ["TOML"]),
    ],
    ids=str,
)
def test_wrong_keys_and_values(changes: dict[str, str | None], words: list[str]) -> None:
    with pytest.raises(MalformedError, match=r"policy\.toml") as caught:
        policy_for("snp", changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("claim", "text", "words"),
    [
        ("tcb.status", '{ grace = ["OutOfDate"], grace_days = 3 }', ["accept"]),
        ("tcb.status", '{ accept = ["UpToDate"], grace = ["OutOfDate"] }', ["grace_days"]),
        ("tcb.status", '{ accept = ["UpToDate"], grace_days = 3 }', ["grace"]),
        ("tcb.status", '{ accept = ["UpToDate"], grace = [], grace_days = 3 }', ["grace_days"]),
        ("tcb.status", GRACED_STATUS.replace("30", "0"), ["1 to 3650"]),
        ("tcb.status", GRACED_STATUS.replace("30", "3651"), ["1 to 3650"]),
        ("tcb.status", GRACED_STATUS.replace("30", "true"), ["1 to 3650", "got true"]),
        ("tcb.status", GRACED_STATUS.replace("OutOfDate", "OutOfDat"), ["OutOfDate"]),
        ("tcb.status", '{ accept = ["any"] }', ['"any"']),
        ("tcb.status", '{ accept = "UpToDate" }', ["a list of texts"]),
        ("tcb.status", '{ acept = ["UpToDate"] }', ["did you mean `accept`?"]),
        ("tcb.advisories", '{ subset_of = ["x", "x"] }', ["once"]),
        ("tcb.advisories", '{ subset_of = "x" }', ["a list of texts"]),
        (
            "tcb.advisories",
            '{ grace = ["x"], grace_days = 3, none_of = ["y"] }',
            ["a table without it"],
        ),
        ("tcb.advisories", "{}", ["a table without it"]),
        ("tcb.advisories", '["any"]', ['the word "any" alone']),
        ("tcb.advisories", '{ subset_of = ["any"] }', ['the word "any" alone']),
        ("tcb.advisories", '"INTEL-SA-1"', ["a list of texts"]),
        ("tcb.advisories", "[1]", ["a list of texts"]),
    ],
)
def test_wrong_grace_and_lists(claim: str, text: str, words: list[str]) -> None:
    with pytest.raises(MalformedError) as caught:
        policy_for("sgx", {claim: text})
    for word in (f"`{claim}", *words):
        assert word in str(caught.value)


def test_a_digest_is_whole_where_the_size_is_open() -> None:
    with pytest.raises(MalformedError, match=r"`cca\.rim`.*'1 byte'"):
        policy_for("cca", {"cca.rim": '"sha256:a1"'})
    assert policy_for("cca", {"cca.rim": f'"sha256:{A32}"'}).appraise(evidence_for("cca")).accepted


def test_what_only_grace_makes_acceptable_warns() -> None:
    text = '{ accept = ["SWHardeningNeeded"], grace = ["UpToDate"], grace_days = 3 }'
    evidence = evidence_for("sgx", {"tcb.status": "UpToDate", "tcb.date_age_s": 0})
    result = policy_for("sgx", {"tcb.status": text}).appraise(evidence)
    assert (result.accepted, result.tier) == (True, Tier.WARNING)


def test_grace_is_no_way_to_exclude() -> None:
    with pytest.raises(MalformedError, match=r"not\.tcb\.status.*leniency"):
        policy_for("sgx", {"not": f"{{ tcb.status = {GRACED_STATUS} }}"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["`version`", "none"]),
        ("version = 1", ["`name`", "none"]),
        ("verson = 1\nname = 't'", ["`version`", "`verson`"]),
        ("version = 2\nname = 't'", ["`version`", "got 2"]),
        ("version = true\nname = 't'", ["`version`"]),
        ("version = 1\nname = ''", ["`name`"]),
        ("version = 1\nname = 3", ["`name`", "got 3"]),
        ("version = 1\nname = 't'\nunsafe_simulated = 'yes'", ["`unsafe_simulated`"]),
        ("version = 1\nname = 't'", ["`platform`", "none"]),
        ("version = ", ["TOML"]),
        ("version = 1\nname 3", ["TOML", "line 2"]),
        (f"version = 1\nname = 't'\nall = {'[' * 5000}", ["TOML"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_heads(text: str, words: list[str]) -> None:
    with pytest.raises(MalformedError, match=r"some\.toml") as caught:
        parse_policy(text, name="some.toml")
    for word in words:
        assert word in str(caught.value)


def test_simulation_is_said_twice_or_not_at_all() -> None:
    rule = rule_text("simulated")
    with pytest.raises(MalformedError, match="unsafe_simulated = true"):
        parse_policy(head() + rule, name="x")
    with pytest.raises(MalformedError, match='platform = "simulated"'):
        parse_policy(head("simulated") + rule_text("snp"), name="x")
    both = head("simulated") + "".join(f"[[any]]\n{rule_text(n)}" for n in ("simulated", "snp"))
    assert parse_policy(both, name="x").unsafe_simulated
    assert not policy_for("snp").unsafe_simulated


def test_rules_that_exclude_each_other_accept_nothing() -> None:
    with pytest.raises(MalformedError, match="exclude each other"):
        policy_for("snp", {"all": '[{ platform = "tpm" }]'})


def test_too_many_ways_and_too_deep() -> None:
    two = "[{ role = 'server' }, { role = 'client' }]"
    choices = ", ".join(f"{{ any = {two} }}" for _ in range(10))
    assert len(policy_for("snp", {"all": f"[{choices}]"}).branches) == 1024
    with pytest.raises(MalformedError, match="at most 1024 ways"):
        policy_for("snp", {"all": f"[{choices}, {{ any = {two} }}]"})
    deep = "{ role = 'client' }"
    for _ in range(12):
        deep = f"{{ not = {deep} }}"
    with pytest.raises(MalformedError, match="at most 8 deep"):
        policy_for("snp", {"not": deep})


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(UnavailableError, match="avow policy init"):
        load_policy(path)
    with pytest.raises(UnavailableError, match="no such file"):
        load_policy(tmp_path)
    text = head() + rule_text("snp")
    path.write_text(text)
    loaded = load_policy(path)
    assert loaded == policy_for("snp")
    assert loaded.policy_id == policy_for("snp").policy_id != policy_for("tpm").policy_id
    path.write_bytes(b"\xff")
    with pytest.raises(MalformedError, match=r"UTF-8.*offset 0"):
        load_policy(path)
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(MalformedError, match="at most"):
        load_policy(path)


def test_policy_id_is_the_digest_of_the_file(tmp_path: Path) -> None:
    import hashlib

    content = (head() + rule_text("snp") + "# ünïcode\r\n").encode()
    (tmp_path / "p.toml").write_bytes(content)
    wanted = "sha256:" + hashlib.sha256(content).hexdigest()
    assert load_policy(tmp_path / "p.toml").policy_id == wanted
