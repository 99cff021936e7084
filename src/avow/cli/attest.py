"""`avow attest`: evidence in a file, about the broker that this installation would run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from avow.cli.command_error import CommandError, configuration_errors, operation_errors
from avow.cli.configuration_options import configuration_of, configuration_options
from avow.cli.exit_codes import ExitCode
from avow.cli.nonce import NONCE
from avow.cli.references import broker_references
from avow.errors import counted
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.origin import DOCUMENT_BINDER
from avow.evidence.report_data import batch
from avow.evidence.roles import Attester
from avow.tee.simulated import NOTHING_IS_PROTECTED


@click.command()
@click.option(
    "--tee",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="The platform that vouches; `avow tee` lists those of this machine.",
)
@click.option(
    "--nonce",
    type=NONCE,
    required=True,
    metavar="HEX",
    help="64 random hexadecimal digits that the verifier chose for this evidence.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Where to write the evidence (CBOR).",
)
@configuration_options
def attest(tee: str, nonce: bytes, output: Path, **configured: Any) -> int:
    """Write evidence about the broker that would run here.

    `avow verify` judges it. It is evidence about a machine, not about a connection: on an attested
    connection the peer shows evidence that is bound to that connection.
    """
    from avow.tee.platforms import open_attester

    with configuration_errors():
        values = broker_references(configuration_of(configured))
        attester = open_attester(tee)
    with operation_errors():
        evidence = _document(attester, values.workload(), nonce)
    try:
        output.write_bytes(evidence)
    except OSError as error:
        raise CommandError(
            f"expected to write {output}, got {error.strerror}; name another file",
            ExitCode.FAILED,
        ) from error
    if attester.platform == "simulated":
        click.echo(f"avow: {NOTHING_IS_PROTECTED}", err=True)
    click.echo(
        f"wrote {counted(len(evidence), 'byte')} of evidence from {attester.platform} to {output}"
    )
    return ExitCode.OK


def _document(attester: Attester, workload: Workload, nonce: bytes) -> bytes:
    attester.measure(workload)
    claims = Claims(
        nonce=nonce,
        role=Role.DOCUMENT,
        workload=workload,
        key=b"",
        issued_at_s=int(time.time()),
    )
    report_data, (path,) = batch([(claims, DOCUMENT_BINDER)])
    report = attester.quote(report_data)
    return Evidence(attester.platform, report, claims.encoded(), path).encoded()
