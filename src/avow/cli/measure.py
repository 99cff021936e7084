"""`avow measure`: what exactly would run."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import click

from avow import __version__, artefacts
from avow.broker.config import Configuration
from avow.cli.app_options import ProgramCommand, app_options, effective_app, read_module
from avow.cli.command_error import configuration_errors, storage_errors
from avow.cli.configuration_options import configuration_of, configuration_options
from avow.cli.exit_codes import ExitCode
from avow.cli.program_store import store_options
from avow.cli.program_trust import trust_options
from avow.cli.references import ReferenceValues, broker_references
from avow.runtime.manifest import measurement, runtime_manifest, wrong_code
from avow.runtime.sealed import sealed


@click.group(invoke_without_command=True)
@click.option(
    "--reference",
    is_flag=True,
    help="Like `avow measure broker --reference`, for a broker without options.",
)
@click.pass_context
def measure(context: click.Context, reference: bool) -> int:
    """Print the SHA-256 digests of what would run."""
    if context.invoked_subcommand is None:
        if not reference:
            raise click.UsageError("expected broker, app, runtime or --reference, got nothing")
        _print_references(Configuration(), as_json=False)
    elif reference:
        raise click.UsageError("expected --reference after the name of the command")
    return ExitCode.OK


@measure.command("broker")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "--reference",
    is_flag=True,
    help="Print what a policy names: module, runtime and configuration. The options listed after "
    "this one are part of the configuration: give those that the broker is started with.",
)
@configuration_options
def measure_broker(as_json: bool, reference: bool, **configured: Any) -> int:
    """Print the SHA-256 of the broker's core, or all its reference values.

    Two builds of the same sources give the same digest, in whatever folder they are made.
    """
    if reference:
        with configuration_errors():
            configuration = configuration_of(configured)
        _print_references(configuration, as_json=as_json)
        return ExitCode.OK
    if any(configured.values()):
        raise click.UsageError("expected --reference with these options, got none; add it")
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


def _print_references(configuration: Configuration, *, as_json: bool) -> None:
    with configuration_errors():
        values = broker_references(configuration).printable()
    _print_values(values, as_json=as_json)


def _print_values(values: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"version": __version__, **values}))
        return
    for name, value in values.items():
        click.echo(f"{name:<13}  {value}")


@measure.command("runtime")
def measure_runtime() -> int:
    """Print the runtime's manifest, whose SHA-256 is the claim `runtime`.

    A line for each part: name, version, SHA-256 of its files. Compare two of them with diff to see
    why evidence names another runtime. If files were altered, standard error names each, and the
    exit code is 1.
    """
    with configuration_errors():
        if sealed() is None:
            click.echo(runtime_manifest().text, nl=False)
            return ExitCode.OK
        found = measurement()
        wrong = [*found.wrong, *wrong_code()]
    click.echo(found.manifest.text, nl=False)
    for sentence in wrong:
        click.echo(f"avow: {sentence}", err=True)
    return ExitCode.FAILED if wrong else ExitCode.OK


@measure.command("app", cls=ProgramCommand)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@app_options
@store_options
@trust_options
def measure_app(as_json: bool, **given: Any) -> int:
    """Print the values that a policy names for a program that `avow run` runs with these options.

    Module: the program's bytes. Runtime: avow itself. Configuration: the program's grants, the keys
    of its store, and the roots that its judgements trust.
    """
    with configuration_errors(), storage_errors():
        app = effective_app(given)
        digest = hashlib.sha256(read_module(app.module)).digest()
        values = ReferenceValues(digest, runtime_manifest().digest, app.configuration).printable()
    _print_values(values, as_json=as_json)
    return ExitCode.OK
