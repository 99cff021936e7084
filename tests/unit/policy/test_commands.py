"""`avow policy`, `avow attest`, `avow verify`, `avow measure broker --reference`: exit codes."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from avow.cli import run
from avow.cli.command_error import CommandError, judging_errors
from avow.cli.exit_codes import ExitCode
from avow.cli.policy_template import HARDWARE, TEMPLATES, Draft, draft
from avow.cli.references import ReferenceValues
from avow.cli.reports import claims_json, claims_text, render_json, render_text
from avow.errors import (
    AvowError,
    DeniedError,
    MalformedError,
    UnavailableError,
    UntrustedError,
    counted,
)
from avow.evidence.envelope import decode_evidence
from avow.evidence.vocabulary import ClaimValue, kind_of
from avow.policy import load_policy, parse_policy
from avow.policy.demands import DEMANDS
from avow.tee import platforms
from avow.tee.simulated import NOTHING_IS_PROTECTED
from tests.unit.policy.examples import evidence_for, lines_of, policy_for

NONCE = "5a" * 32
OTHER_NONCE = "a5" * 32

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ready(tmp_path: Path, capsys: Captured) -> Path:
    """A folder with a policy for the simulation and evidence that it accepts."""
    assert run(["policy", "init", "--broker", "--platform", "simulated"]) == 0
    assert run(["attest", "--tee", "simulated", "--nonce", NONCE, "-o", "evidence.cmw"]) == 0
    capsys.readouterr()
    return tmp_path


def verify(*arguments: str) -> int:
    """`avow verify` of the ready evidence by the ready policy."""
    return run(["verify", "evidence.cmw", "--policy", "policy.toml", *arguments])


def test_judging_errors_have_their_exit_codes() -> None:
    codes = {
        DeniedError: ExitCode.DENIED,
        UntrustedError: ExitCode.DENIED,
        MalformedError: ExitCode.UNJUDGED,
        UnavailableError: ExitCode.UNJUDGED,
        AvowError: ExitCode.UNJUDGED,
    }
    assert int(ExitCode.UNJUDGED) == 4
    for kind, code in codes.items():
        with pytest.raises(CommandError, match="sentence") as caught, judging_errors():
            raise kind("sentence")
        assert caught.value.code is code


def test_accepted(ready: Path, capsys: Captured) -> None:
    assert verify("--nonce", NONCE) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"accepted: warning\n{NOTHING_IS_PROTECTED}\n")
    assert f"nonce     {NONCE}\n" in captured.out
    assert captured.err == f"avow: {NOTHING_IS_PROTECTED}\n"


def test_accepted_as_json(ready: Path, capsys: Captured) -> None:
    assert verify("--nonce", NONCE, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["eat_nonce"] == NONCE
    appraisal = result["submods"]["simulated"]
    assert appraisal["ear.status"] == "warning"
    assert appraisal["ear.appraisal-policy-id"] == load_policy(Path("policy.toml")).policy_id
    assert appraisal["avow.findings"] == []
    assert appraisal["avow.claims"]["role"] == "document"


def test_another_nonce_is_refused(ready: Path, capsys: Captured) -> None:
    assert verify("--nonce", OTHER_NONCE) == ExitCode.DENIED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "check E4" in captured.err
    assert verify("--nonce", OTHER_NONCE, "--json") == ExitCode.DENIED
    assert json.loads(capsys.readouterr().out)["finding"]["check"] == "E4"


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b"\xa0", b"\xff" * 9000, b"0" * 70000])
def test_a_file_that_is_no_evidence(ready: Path, capsys: Captured, content: bytes) -> None:
    """The message names the file and the command that writes one."""
    Path("evidence.cmw").write_bytes(content)
    init = ["policy", "init", "--broker", "--from", "evidence.cmw", "-o", "other.toml"]
    judge = ["verify", "evidence.cmw", "--policy", "policy.toml"]
    for command in ([*judge, "--nonce", NONCE], [*judge, "--unsafe-any-nonce"], init):
        assert run(command) == ExitCode.UNJUDGED
        said = capsys.readouterr().err
        size = counted(len(content), "byte")
        assert f"expected evidence of avow in evidence.cmw, got {size} of something else" in said
        assert "`avow attest --nonce HEX -o FILE`" in said
    assert verify("--nonce", NONCE, "--json") == ExitCode.UNJUDGED
    assert json.loads(capsys.readouterr().out)["finding"]["check"] == "E1"


def test_freshness_is_asked_for(ready: Path, capsys: Captured) -> None:
    assert verify() == ExitCode.USAGE
    assert "--unsafe-any-nonce" in capsys.readouterr().err
    assert verify("--nonce", NONCE, "--unsafe-any-nonce") == ExitCode.USAGE
    assert "got both" in capsys.readouterr().err
    assert verify("--unsafe-any-nonce") == 0
    assert f"freshness was not checked; the nonce in the evidence is {NONCE}" in (
        capsys.readouterr().err
    )


def test_time_counts(ready: Path, capsys: Captured) -> None:
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert verify("--nonce", NONCE, "--time", later) == ExitCode.DENIED
    captured = capsys.readouterr()
    assert "REFUSED: contraindicated" in captured.out
    assert "check P5" in captured.err
    assert "evidence_age_s" in captured.err


@pytest.mark.parametrize(
    ("time", "word"),
    [("2026-11-21T09:30:00", "time zone"), ("soon", "instant"), ("0001-01-01T00:00:00+14:00", "")],
)
def test_times_that_are_none(ready: Path, time: str, word: str, capsys: Captured) -> None:
    assert verify("--nonce", NONCE, "--time", time) == ExitCode.USAGE
    assert word in capsys.readouterr().err


def test_refused_by_the_policy(ready: Path, capsys: Captured) -> None:
    policy = Path("policy.toml")
    lines = policy.read_text().splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("module = "))
    lines[place] = f'module = "{"00" * 32}"'
    policy.write_text("\n".join(lines))
    assert verify("--nonce", NONCE) == ExitCode.DENIED
    captured = capsys.readouterr()
    assert captured.out.startswith("REFUSED: contraindicated\n")
    assert "check P4: a claim has a value that the policy names\n" in captured.out
    assert "expected  `module` that is " + "00" * 32 in captured.out
    assert captured.err.splitlines()[-1].startswith("avow: check P4 ")
    assert verify("--nonce", NONCE, "--json") == ExitCode.DENIED
    (finding,) = json.loads(capsys.readouterr().out)["submods"]["simulated"]["avow.findings"]
    assert finding["check"] == "P4"


def test_every_changed_byte_is_refused_or_cannot_be_judged(ready: Path, capsys: Captured) -> None:
    evidence = Path("evidence.cmw")
    content = evidence.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        evidence.write_bytes(changed)
        assert verify("--nonce", NONCE) in (ExitCode.DENIED, ExitCode.UNJUDGED), place
    capsys.readouterr()


def test_what_cannot_be_judged(ready: Path, capsys: Captured) -> None:
    evidence = Path("evidence.cmw")
    content = evidence.read_bytes()
    for wrong in (b"", content[:-1], content + b"\0", b"PSA token"):
        evidence.write_bytes(wrong)
        for nonce in (["--nonce", NONCE], ["--unsafe-any-nonce"]):
            assert verify(*nonce) == ExitCode.UNJUDGED
            assert capsys.readouterr().err.count("\n") == 1
    other = dataclasses.replace(decode_evidence(content), platform="unheard")
    evidence.write_bytes(other.encoded())
    assert verify("--nonce", NONCE) == ExitCode.UNJUDGED
    assert "check E2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "none", "--policy", "policy.toml", "--nonce", NONCE], ["none"]),
        (["verify", "evidence.cmw", "--policy", "none.toml", "--nonce", NONCE], ["none.toml"]),
        (["verify", "evidence.cmw", "--nonce", NONCE], ["--policy"]),
        (["verify", "evidence.cmw", "--policy", "policy.toml", "--nonce", "5a"], ["64 hex"]),
        (["verify", "evidence.cmw", "--policy", "evidence.cmw", "--nonce", NONCE], ["evidence"]),
        (["attest", "--nonce", NONCE, "--tee", "simulated"], ["'-o'"]),
        (["attest", "-o", "x", "--tee", "simulated"], ["'--nonce'"]),
        (["attest", "-o", "x", "--tee", "simulated", "--nonce", "zz" * 32], ["64 hex"]),
        (["attest", "-o", "x", "--tee", "nothing", "--nonce", NONCE], ["nothing"]),
        (["attest", "-o", "x", "--tee", "simulated", "--nonce", NONCE, "--config", "n"], ["n"]),
        (["policy", "init"], ["--broker"]),
        (["policy", "init", "--broker", "--platform", "spn"], ["spn"]),
        (["policy", "init", "--broker", "--platform", "simulated"], ["policy.toml", "--force"]),
        (["policy", "init", "--broker", "--from", "none"], ["none"]),
        (["policy", "init", "--broker", "--endorsements", "."], ["--from"]),
        (["policy", "init", "--broker", "--config", "none"], ["none"]),
        (["policy", "explain", "none.toml"], ["none.toml"]),
        (["policy", "check", "none.toml"], ["none.toml"]),
        (["measure", "broker", "--config", "policy.toml"], ["--reference"]),
        (["measure"], ["--reference"]),
        (["measure", "--reference", "broker"], ["after the name"]),
        (["measure", "broker", "--reference", "--config", "none.toml"], ["none.toml"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_wrong_usage_is_one_sentence_and_2(
    ready: Path, arguments: list[str], words: list[str], capsys: Captured
) -> None:
    assert run(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("avow: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


@pytest.mark.parametrize(
    "command",
    [
        ["policy"],
        ["policy", "init"],
        ["policy", "explain"],
        ["policy", "check"],
        ["attest"],
        ["verify"],
        ["measure"],
        ["measure", "runtime"],
    ],
    ids=" ".join,
)
def test_each_command_has_help(command: list[str], capsys: Captured) -> None:
    assert run([*command, "--help"]) == 0
    assert "Usage: avow " + " ".join(command) in capsys.readouterr().out


def test_evidence_that_cannot_be_written(ready: Path, capsys: Captured) -> None:
    start = ["attest", "--tee", "simulated", "--nonce", NONCE, "-o", "no/such/folder/x"]
    assert run(start) == ExitCode.FAILED
    assert "no/such/folder/x" in capsys.readouterr().err
    assert run(["policy", "init", "--broker", "-o", "no/such/p.toml"]) == ExitCode.FAILED


def test_policy_can_be_replaced_and_printed(ready: Path, capsys: Captured) -> None:
    before = Path("policy.toml").read_text()
    start = ["policy", "init", "--broker", "--platform", "simulated"]
    assert run([*start, "-o", "-"]) == 0
    assert capsys.readouterr().out == before
    assert run([*start, "--listen", "mqtt://127.0.0.1:1", "--force"]) == 0
    assert Path("policy.toml").read_text() != before
    assert verify("--nonce", NONCE) == ExitCode.DENIED
    assert "`configuration`" in capsys.readouterr().err


def test_check_and_explain(ready: Path, capsys: Captured) -> None:
    assert run(["policy", "check", "policy.toml"]) == 0
    out = capsys.readouterr().out
    assert "warning: this policy accepts simulated evidence" in out
    assert f"policy is valid: {load_policy(Path('policy.toml')).policy_id}\n" in out
    assert run(["policy", "explain", "policy.toml"]) == 0
    assert "WARNING: it accepts simulated evidence" in capsys.readouterr().out


def test_reference_values_are_those_of_the_policy(ready: Path, capsys: Captured) -> None:
    assert run(["measure", "broker", "--reference", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    text = Path("policy.toml").read_text()
    assert run(["measure", "broker", "--reference"]) == 0
    printed = capsys.readouterr().out
    for name in ("module", "runtime", "configuration"):
        assert f'{name} = "{values[name]}"\n' in text
        assert f"{name:<13}  {values[name]}\n" in printed
    assert run(["measure", "--reference"]) == 0
    assert capsys.readouterr().out == printed
    assert run(["measure", "broker"]) == 0
    assert f"sha256:{capsys.readouterr().out.strip()}" == values["module"]
    assert run(["measure", "runtime"]) == 0
    assert "wasmtime " in capsys.readouterr().out


def test_without_a_platform_the_policy_is_refused_until_it_is_filled(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "detect", list)
    assert run(["policy", "init", "--broker"]) == 0
    said = capsys.readouterr()
    # `explain` refuses it, too.
    assert said.out == "wrote policy.toml\n"
    assert "fill in platform; " in said.err
    assert run(["policy", "check", "policy.toml"]) == ExitCode.USAGE
    assert "`platform`" in capsys.readouterr().err


REFERENCES = ReferenceValues(b"\xa1" * 32, b"\xa1" * 32, b"\xa1" * 32)


def test_there_is_a_template_for_every_platform() -> None:
    assert set(TEMPLATES) == set(DEMANDS)
    assert set(HARDWARE) == set(TEMPLATES) - {"simulated"}
    for lines in TEMPLATES.values():
        assert all(kind_of(line.claim) is not None for line in lines)


@pytest.mark.parametrize("name", HARDWARE)
def test_gaps_are_refused_one_by_one(name: str) -> None:
    """Each gap is refused by name; with all of them filled the policy loads and accepts."""
    made: Draft = draft(REFERENCES, [name], {})
    assert made.gaps
    text = made.text
    for gap in made.gaps:
        with pytest.raises(MalformedError, match="`any") as caught:
            parse_policy(text, name="x")
        assert f"`any[1].{gap}" in str(caught.value)
        line = next(each for each in text.splitlines() if each.startswith(f"{gap} = "))
        text = text.replace(line, f"{gap} = {lines_of(name)[gap].text}")
    assert parse_policy(text, name="x").appraise(evidence_for(name)).accepted


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_policy_from_evidence_accepts_that_evidence_and_nothing_worse(name: str) -> None:
    verified = evidence_for(name)
    made = draft(REFERENCES, [name], verified.claims)
    assert made.gaps == ()
    policy = parse_policy(made.text, name="x")
    assert policy.appraise(verified).accepted
    for claim, line in lines_of(name).items():
        if claim != "collateral.age_s":
            assert not policy.appraise(evidence_for(name, {claim: line.bad})).accepted, claim


def test_evidence_cannot_write_policy() -> None:
    changes: dict[str, ClaimValue | None] = {
        "tcb.status": 'x"\nunsafe_debug = true\n#',
        "tcb.advisories": ('"]\nnot = 1', "\x1b", "\u2028", "\\"),
    }
    made = draft(REFERENCES, ["sgx"], evidence_for("sgx", changes).claims)
    with pytest.raises(MalformedError, match=r"any\[1\]\.tcb\.status"):
        parse_policy(made.text, name="x")
    import tomllib

    (rule,) = tomllib.loads(made.text)["any"]
    assert rule["tcb"]["status"] == changes["tcb.status"]
    assert tuple(rule["tcb"]["advisories"]) == changes["tcb.advisories"]


def test_policy_from_evidence(ready: Path, capsys: Captured) -> None:
    start = ["policy", "init", "--broker", "--from", "evidence.cmw", "-o", "from.toml"]
    assert run(start) == 0
    assert load_policy(Path("from.toml")).platforms == ("simulated",)
    assert "refuses the evidence" not in capsys.readouterr().err
    other = ["attest", "--tee", "simulated", "--nonce", NONCE, "-o", "other.cmw"]
    assert run([*other, "--allow-anonymous"]) == 0
    assert run(["policy", "init", "--broker", "--from", "other.cmw", "-o", "other.toml"]) == 0
    (warning,) = (
        line for line in capsys.readouterr().err.splitlines() if "refuses the evidence" in line
    )
    assert "`configuration`" in warning
    Path("other.cmw").write_bytes(b"nothing")
    assert run(["policy", "init", "--broker", "--from", "other.cmw", "-o", "-"]) == 4


def test_reports_say_everything_and_nothing_that_a_terminal_obeys() -> None:
    changes: dict[str, ClaimValue | None] = {"nitro.module_id": "\x1b[2J", "nitro.pcr.0": b""}
    verified = evidence_for("nitro", changes)
    result = policy_for("nitro").appraise(verified)
    text = render_text(result)
    for claim in verified.claims:
        assert f"  {claim} " in text
    assert "\x1b" not in text + claims_text(verified)
    assert text.startswith("REFUSED: contraindicated\n")
    assert json.loads(render_json(result))["submods"]["nitro"]["ear.status"] == "contraindicated"
    assert claims_text(verified).startswith("not judged")
    unjudged = json.loads(claims_json(verified))
    assert unjudged["judged"] is False
    assert "accepted" not in claims_text(verified) + claims_json(verified)


def test_mitigations_are_demanded_where_the_evidence_has_them() -> None:
    """Reports of SEV-SNP before version 5 do not say them; new firmware may add to them."""
    changes: dict[str, ClaimValue | None] = {"snp.mitigations.launch": ("0", "2")}
    verified = evidence_for("snp", changes)
    made = draft(REFERENCES, ["snp"], verified.claims).text
    assert 'snp.mitigations.launch = { all_of = ["0", "2"] }\n' in made
    assert "mitigations" not in draft(REFERENCES, ["snp"], evidence_for("snp").claims).text
    policy = parse_policy(made, name="made")
    for value, accepted in ((("0", "2", "5"), True), (("0",), False), ((), False)):
        changed = evidence_for("snp", {"snp.mitigations.launch": value})
        assert policy.appraise(changed).accepted is accepted
