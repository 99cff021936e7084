"""`avow provision`: an owner attests a running node, and only then hands it its secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from avow.channel.named_files import read_named_file, readable_by_others
from avow.channel.provisioning import parse_place
from avow.channel.provisioning_checks import COMPLETE, IN_TIME, MESSAGE, USED
from avow.channel.provisioning_file import load_secrets
from avow.channel.provisioning_messages import Taken
from avow.channel.provisioning_owner import (
    OwnerKey,
    hand_over,
    new_owner_key,
    parse_owner_key,
)
from avow.cli.command_error import CommandError, configuration_errors, operation_errors
from avow.cli.exit_codes import ExitCode
from avow.client.wiring import judge_of
from avow.errors import AvowError, DeniedError, MalformedError
from avow.evidence.appraisal import AttestationResult
from avow.policy import load_policy
from avow.tee.simulated import NOTHING_IS_PROTECTED

_FILE = click.Path(path_type=Path, dir_okay=False)


def _make_key(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Writes a new key, says what a configuration names it by, and ends."""
    if value is None or ctx.resilient_parsing:
        return
    key = new_owner_key()
    try:
        handle = os.open(value, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.pem())
    except OSError as error:
        raise CommandError(
            f"expected to write a new file {value}, got {error.strerror!r}; name another one",
            ExitCode.FAILED,
        ) from error
    click.echo(_named(key))
    ctx.exit()


@click.command()
@click.option(
    "--new-owner-key",
    type=_FILE,
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_make_key,
    help="Make an owner's key in a new FILE, print its line for the configuration, and exit.",
)
@click.argument("node", metavar="NODE")
@click.argument("secrets", type=_FILE, metavar="SECRETS")
@click.option(
    "--policy",
    type=_FILE,
    required=True,
    metavar="FILE",
    help=(
        "The policy that the node's evidence has to satisfy before it gets anything; see `avow "
        "policy`."
    ),
)
@click.option(
    "--owner-key",
    type=_FILE,
    metavar="FILE",
    help="The owner's private key, PEM.  [default: `owner_key` in SECRETS]",
)
@click.option(
    "--endorsements",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=(
        "A folder with what vendors and owners publish about their hardware: certificates, "
        "collateral, revocation lists."
    ),
)
def provision(
    node: str, secrets: Path, policy: Path, owner_key: Path | None, endorsements: Path | None
) -> int:
    """Hand the secrets that the file SECRETS names to the broker or program at NODE.

    \b
    avow provision broker.example:8899 --policy policy.toml secrets.toml

    NODE is host:port, the `listen` of its table [provisioning]. It gets nothing before its evidence
    satisfies the policy, and accepts secrets only from the owner that its configuration names.

    Exit 0: the node took the secrets. 1: it could not be reached, or cannot use them. 2: wrong
    files. 3: refused, by the policy or by the node. 4: the evidence could not be judged.
    """
    with configuration_errors():
        host, port = parse_place(node, lowest_port=1)
        judge = judge_of(load_policy(policy), endorsements)
        file = load_secrets(secrets)
        owner = _owner_key(owner_key or file.owner_key)
    for source in file.sources:
        if readable_by_others(source):
            click.echo(f"avow: other users can read {source}; chmod 600 it", err=True)
    with operation_errors(), _only_denials_are_refusals():
        done = hand_over(host, port, owner, judge, file.secrets, datetime.now(UTC), attested=_tell)
    click.echo(_summary(done.taken))
    return ExitCode.OK


@contextmanager
def _only_denials_are_refusals() -> Iterator[None]:
    """A node that cannot use what it got has not refused anybody, and its evidence was judged."""
    try:
        yield
    except DeniedError:
        raise
    except AvowError as error:
        if error.finding is not None and error.finding.check in (USED, COMPLETE, IN_TIME, MESSAGE):
            raise CommandError(str(error), ExitCode.FAILED) from error
        raise


def _tell(node: AttestationResult) -> None:
    click.echo(f"node: {node.platform}, {node.tier.label}, by policy {node.policy_id}")
    if node.platform == "simulated":
        click.echo(f"avow: {NOTHING_IS_PROTECTED}", err=True)


def _summary(taken: Taken) -> str:
    parts = [
        f"{what} {', '.join(names)}"
        for what, names in (("keys", taken.keys), ("files", taken.files))
        if names
    ]
    return "taken: " + "; ".join(parts)


def _owner_key(path: Path | None) -> OwnerKey:
    if path is None:
        raise MalformedError(
            "expected the owner's key, got none; name its file with --owner-key or `owner_key` in "
            "the file of secrets"
        )
    content = read_named_file(path, "owner key")
    if readable_by_others(path):
        raise MalformedError(
            f"expected an owner's key that nobody else can read, got {path}, which everybody "
            f"can read; `chmod 600 {path}`, and consider making a new one"
        )
    return parse_owner_key(content, str(path))


def _named(key: OwnerKey) -> str:
    return f'owner = "sha256:{key.digest.hex()}"'
