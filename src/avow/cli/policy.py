"""`avow policy`: makes, explains and checks policies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from avow.channel.named_files import read_named_file
from avow.cli.command_error import CommandError, configuration_errors, judging_errors
from avow.cli.configuration_options import configuration_of, configuration_options
from avow.cli.exit_codes import ExitCode
from avow.cli.policy_template import TEMPLATES, Draft, draft, template_of
from avow.cli.references import broker_references
from avow.cli.verify import check_is_evidence, verify_document
from avow.evidence.origin import Verified
from avow.evidence.vocabulary import ClaimValue
from avow.policy import Policy, explain, load_policy, parse_policy
from avow.policy.reading import PLATFORMS
from avow.tee.simulated import NOTHING_IS_PROTECTED

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def policy() -> None:
    """Make, explain and check policies: what evidence is acceptable."""


@policy.command("explain")
@click.argument("file", type=_FILE, metavar="FILE")
def explain_policy(file: Path) -> int:
    """Explain what a policy accepts."""
    with configuration_errors():
        click.echo(explain(load_policy(file)), nl=False)
    return ExitCode.OK


@policy.command("check")
@click.argument("file", type=_FILE, metavar="FILE")
def check_policy(file: Path) -> int:
    """Check a policy. Exit 0 if avow can use it, else 2 with the reason."""
    with configuration_errors():
        loaded = load_policy(file)
    if loaded.unsafe_simulated:
        click.echo("warning: this policy accepts simulated evidence, which protects nothing")
    click.echo(f"policy is valid: {loaded.policy_id}")
    return ExitCode.OK


@policy.command("init")
@click.option(
    "--broker",
    is_flag=True,
    required=True,
    help="Accept this release's broker. The options listed after --force are part of its "
    "configuration: give those that it is started with.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    type=click.Choice(PLATFORMS),
    help="Write a rule for this platform. May be repeated.  [default: those of this machine]",
)
@click.option(
    "--from",
    "evidence",
    type=_FILE,
    metavar="FILE",
    help="Take the platform's values from evidence that you trust, as `avow attest` writes it.",
)
@click.option(
    "--endorsements",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="With --from: a folder with what the vendors publish about the hardware.",
)
@click.option(
    "-o",
    "--output",
    default="policy.toml",
    show_default=True,
    metavar="FILE",
    help="Where to write the policy; - prints it.",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@configuration_options
def init(
    broker: bool,
    platforms: tuple[str, ...],
    evidence: Path | None,
    endorsements: Path | None,
    output: str,
    force: bool,
    **configured: Any,
) -> int:
    """Write a policy that accepts exactly this release's broker.

    avow computes module, runtime and configuration from this installation, so run this command on a
    machine that you trust. Values that only you know come from evidence (--from), or stay gaps that
    you fill in. avow refuses a policy that still has gaps.
    """
    if evidence is None and endorsements is not None:
        raise click.UsageError(
            "expected --from with --endorsements, got none; add it, or leave --endorsements out"
        )
    with configuration_errors():
        references = broker_references(configuration_of(configured))
    verified = None if evidence is None else _trusted(evidence, endorsements)
    claims = {} if verified is None else dict(verified.claims)
    made = draft(references, _templates(platforms, verified), claims)
    if not made.gaps:
        # What is complete has to load; what has gaps must not.
        with configuration_errors():
            loaded = parse_policy(made.text, name=output)
        if verified is not None:
            _warn_of_refusals(loaded, verified)
    if output == "-":
        click.echo(made.text, nl=False)
    else:
        _write(Path(output), made.text, force=force)
    _report(made, output)
    return ExitCode.OK


def _trusted(evidence: Path, endorsements: Path | None) -> Verified:
    with configuration_errors():
        content = read_named_file(evidence, "evidence")
    with judging_errors():
        check_is_evidence(content, evidence)
        return verify_document(content, None, datetime.now(UTC), endorsements)


def _templates(platforms: tuple[str, ...], verified: Verified | None) -> list[str]:
    from avow.tee.platforms import detect

    claims: Mapping[str, ClaimValue] = {} if verified is None else verified.claims
    chosen = list(dict.fromkeys(platforms))
    if verified is not None and verified.platform not in chosen:
        chosen.append(verified.platform)
    if not chosen:
        chosen = [
            found.platform for found in detect() if found.present and found.platform != "simulated"
        ]
    return [name for name in (template_of(each, claims) for each in chosen) if name in TEMPLATES]


def _warn_of_refusals(loaded: Policy, verified: Verified) -> None:
    """What the new policy has against the evidence that it was made from, but for its age."""
    for finding in loaded.appraise(verified).findings:
        if "`evidence_age_s`" not in finding.expected:
            click.echo(
                f"avow: the policy refuses the evidence that it was made from: expected "
                f"{finding.expected}, got {finding.actual}; {finding.advice}",
                err=True,
            )


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL), 0o644
        )
        with contextlib.closing(os.fdopen(descriptor, "w", encoding="utf-8")) as file:
            file.write(text)
    except FileExistsError as error:
        raise CommandError(
            f"expected no file at {path}, got one; name another with -o, or replace it with "
            "--force",
            ExitCode.USAGE,
        ) from error
    except OSError as error:
        raise CommandError(
            f"expected to write {path}, got {error.strerror}; name another file", ExitCode.FAILED
        ) from error


def _report(made: Draft, output: str) -> None:
    if "unsafe_simulated = true" in made.text:
        click.echo(f"avow: {NOTHING_IS_PROTECTED}", err=True)
    if output != "-":
        read = "" if made.gaps else f"; `avow policy explain {output}` says what it accepts"
        click.echo(f"wrote {output}{read}")
    if made.gaps:
        click.echo(
            f"avow: fill in {', '.join(made.gaps)}; avow refuses the policy without these "
            "values. To take them from evidence that you trust, which `avow attest` writes, "
            "run the same command with `--force --from FILE`",
            err=True,
        )
