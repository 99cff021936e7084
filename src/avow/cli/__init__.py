"""The command `avow`. Arguments, exit codes and the wiring of rooms; nothing else lives here.

Each command is imported when it is used: `avow pub` in a shell loop must not load an engine.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from avow import __version__
from avow.cli import exit_codes
from avow.cli.command_error import CommandError
from avow.cli.exit_codes import ExitCode
from avow.cli.standard_streams import open_standard_streams

# Name, module and attribute, and the line that the help of `avow` shows.
_COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "broker": ("avow.cli.broker", "broker", "Run the MQTT broker."),
    "run": (
        "avow.cli.run_program",
        "run",
        "Run a WebAssembly program with only what you grant.",
    ),
    "user": ("avow.cli.user", "user", "Add, remove and list the broker's users."),
    "measure": ("avow.cli.measure", "measure", "Print the SHA-256 digests of what would run."),
    "policy": ("avow.cli.policy", "policy", "Make, explain and check policies."),
    "tee": ("avow.cli.tee", "tee", "List this machine's platforms, and say why others are absent."),
    "enrol": ("avow.cli.enrol", "enrol", "Certify the attestation key of a machine's TPM."),
    "attest": (
        "avow.cli.attest",
        "attest",
        "Write evidence about this machine's broker to a file.",
    ),
    "verify": ("avow.cli.verify", "verify", "Judge the evidence in a file by a policy."),
    "store": ("avow.cli.store", "store", "Inspect, fill and check sealed stores."),
    "provision": ("avow.cli.provision", "provision", "Hand secrets to an attested node."),
    "witness": (
        "avow.cli.witness",
        "witness",
        "Remember the newest state of other machines' stores.",
    ),
    "pub": ("avow.cli.pub", "pub", "Publish messages."),
    "sub": ("avow.cli.sub", "sub", "Subscribe and print messages."),
    "inspect": ("avow.cli.inspect", "inspect", "Show the evidence that a broker gives."),
    "proxy": ("avow.cli.proxy", "proxy", "Give this machine's MQTT clients attested connections."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is run or its own help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's lines, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes, from where they are defined."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code.value), code.meaning) for code in ExitCode])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="avow")
def cli() -> None:
    """A trusted MQTT broker whose core is one measured WebAssembly module."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    try:
        result: Any = cli.main(args=arguments, prog_name="avow", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.UsageError as error:
        _show_usage_error(error)
        return ExitCode.USAGE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("avow: interrupted", err=True)
        return ExitCode.FAILED
    except CommandError as error:
        click.echo(f"avow: {error.sentence}", err=True)
        return error.code
    return result if isinstance(result, int) else ExitCode.OK


def main() -> None:
    """The console script."""
    open_standard_streams()
    sys.exit(run())


def _show_usage_error(error: click.UsageError) -> None:
    path = error.ctx.command_path if error.ctx is not None else "avow"
    sentence = error.format_message().rstrip(".")
    click.echo(f"avow: {sentence[:1].lower()}{sentence[1:]}; see `{path} --help`", err=True)


__all__ = ["cli", "exit_codes", "main", "run"]
