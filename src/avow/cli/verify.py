"""`avow verify`: judges evidence in a file by a policy."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from avow.channel.named_files import read_named_file
from avow.cli.command_error import CommandError, configuration_errors, judging_errors
from avow.cli.exit_codes import ExitCode
from avow.cli.nonce import NONCE, TIME
from avow.cli.reports import render_json, render_text
from avow.errors import AvowError, MalformedError, counted
from avow.evidence.claims import Role, decode_claims
from avow.evidence.envelope import decode_evidence
from avow.evidence.origin import (
    DOCUMENT_BINDER,
    ENVELOPE,
    Expectation,
    Verified,
    verify_evidence,
)
from avow.policy import denied, load_policy
from avow.tee.simulated import NOTHING_IS_PROTECTED

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("evidence", type=_FILE, metavar="EVIDENCE")
@click.option(
    "--policy", type=_FILE, required=True, metavar="FILE", help="The policy: what is acceptable."
)
@click.option(
    "--nonce",
    type=NONCE,
    metavar="HEX",
    help="The nonce that you gave to `avow attest`: it shows that the evidence is not an old one.",
)
@click.option(
    "--unsafe-any-nonce",
    is_flag=True,
    help="Do not check how old the evidence is: it may be from another day and another machine.",
)
@click.option(
    "--time",
    "moment",
    type=TIME,
    metavar="ISO8601",
    help="Judge as of this instant, such as 2026-11-21T09:30:00Z.  [default: now]",
)
@click.option(
    "--endorsements",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=(
        "A folder with what vendors publish about their hardware: certificates, revocation "
        "lists, collateral."
    ),
)
@click.option(
    "--program",
    is_flag=True,
    help="EVIDENCE comes from a program under `avow run --attest`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an EAR's claims as JSON.")
def verify(
    evidence: Path,
    policy: Path,
    nonce: bytes | None,
    unsafe_any_nonce: bool,
    moment: datetime | None,
    endorsements: Path | None,
    program: bool,
    as_json: bool,
) -> int:
    """Judge evidence that `avow attest` wrote, or that a program made.

    Exit 0: accepted. 3: refused, by the policy or because its origin is not proven. 4: it could not
    be judged.
    """
    if (nonce is None) is not unsafe_any_nonce:
        raise click.UsageError(
            "expected the --nonce that you gave to `avow attest`, or --unsafe-any-nonce if "
            f"freshness does not matter, got {'neither' if nonce is None else 'both'}; give "
            "one of the two"
        )
    with configuration_errors():
        rules = load_policy(policy)
        content = read_named_file(evidence, "evidence")
    now = datetime.now(UTC) if moment is None else moment
    try:
        check_is_evidence(content, evidence)
        role = Role.PROGRAM if program else Role.DOCUMENT
        verified = verify_document(content, nonce, now, endorsements, role=role)
    except AvowError as error:
        if as_json:
            click.echo(error_json(error), nl=False)
        with judging_errors():
            raise
    result = rules.appraise(verified)
    click.echo(render_json(result) if as_json else render_text(result), nl=False)
    if result.platform == "simulated":
        click.echo(f"avow: {NOTHING_IS_PROTECTED}", err=True)
    if nonce is None:
        click.echo(
            f"avow: freshness was not checked; the nonce in the evidence is {verified.nonce.hex()}",
            err=True,
        )
    if not result.accepted:
        raise CommandError(str(denied(result)), ExitCode.DENIED)
    return ExitCode.OK


def check_is_evidence(content: bytes, path: Path) -> None:
    """Raises `MalformedError`, at E1, that names the file and the command that writes one."""
    try:
        decode_evidence(content)
    except MalformedError as error:
        raise MalformedError.at(
            ENVELOPE,
            expected=f"evidence of avow in {path}",
            actual=f"{counted(len(content), 'byte')} of something else",
            advice="check that this is the right file, and that it was copied unchanged; "
            "`avow attest --nonce HEX -o FILE` writes evidence on the machine that you "
            "want to judge",
        ) from error


def verify_document(
    content: bytes,
    nonce: bytes | None,
    now: datetime,
    endorsements: Path | None,
    *,
    role: Role = Role.DOCUMENT,
) -> Verified:
    """The claims of evidence in a file, of role DOCUMENT or PROGRAM; without `nonce`, its own is
    taken.

    Raises an `AvowError`.
    """
    from avow.tee.platforms import load_endorsements, verifiers

    if nonce is None:
        nonce = decode_claims(decode_evidence(content).claims).nonce
    known = None if endorsements is None else load_endorsements(endorsements)
    expectation = Expectation(nonce, role, b"", DOCUMENT_BINDER)
    return verify_evidence(content, expectation, verifiers(known), now)


def error_json(error: AvowError) -> str:
    """What could not be judged, and why, as a JSON object."""
    finding = error.finding
    content: dict[str, object] = {"judged": False, "error": str(error)}
    if finding is not None:
        content["finding"] = {
            "check": finding.check.number,
            "title": finding.check.title,
            "expected": finding.expected,
            "actual": finding.actual,
            "advice": finding.advice,
        }
    return json.dumps(content, indent=2) + "\n"
