"""`avow measure`: what exactly would run."""

from __future__ import annotations

import hashlib
import json

import click

from avow import __version__
from avow.cli.command_error import configuration_errors
from avow.cli.exit_codes import ExitCode
from avow.sandbox import artefacts


@click.group()
def measure() -> None:
    """Print the SHA-256 of a measured module."""


@measure.command("broker")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def measure_broker(as_json: bool) -> int:
    """Print the SHA-256 of the broker's core.

    Two builds of the same sources give the same digest, in whatever folder they are made.
    """
    with configuration_errors():
        path = artefacts.core_path()
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if as_json:
        description = {
            "module": "broker",
            "sha256": digest,
            "bytes": len(content),
            "path": str(path),
            "version": __version__,
        }
        click.echo(json.dumps(description))
    else:
        click.echo(digest)
    return ExitCode.OK
