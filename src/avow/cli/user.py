"""`avow user`: the broker's password file."""

from __future__ import annotations

from pathlib import Path

import click

from avow.broker.config_file import Overrides, load_configuration
from avow.broker.users import add_user, check_name, new_user, read_users, remove_user
from avow.channel.provisioning import provisioned_name
from avow.cli.command_error import CommandError, configuration_errors
from avow.cli.exit_codes import ExitCode
from avow.cli.secrets_input import new_password

DEFAULT_FILE = Path("avow.users")

_FILE = click.Path(path_type=Path, dir_okay=False)
_file_option = click.option(
    "--file",
    "file",
    type=_FILE,
    metavar="FILE",
    help=f"The users' file.  [default: that of --config, else {DEFAULT_FILE}]",
)
_config_option = click.option(
    "--config",
    "config",
    type=_FILE,
    metavar="FILE",
    help="Use the users' file that this avow.toml names.",
)


@click.group()
def user() -> None:
    """Add, remove and list the broker's users.

    A running broker reads the file again on SIGHUP.
    """


@user.command()
@click.argument("name")
@_file_option
@_config_option
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
def add(name: str, file: Path | None, config: Path | None, password_stdin: bool) -> int:
    """Add NAME, or change its password. The terminal asks for the password."""
    path = _users_file(file, config)
    with configuration_errors():
        check_name(name)
        if path.exists():
            read_users(path)
    password = new_password(name, from_stdin=password_stdin)
    with configuration_errors():
        new = add_user(path, new_user(name, password))
    click.echo(f"added {name} to {path}" if new else f"changed the password of {name} in {path}")
    return ExitCode.OK


@user.command()
@click.argument("name")
@_file_option
@_config_option
def remove(name: str, file: Path | None, config: Path | None) -> int:
    """Remove NAME."""
    path = _users_file(file, config)
    with configuration_errors():
        found = remove_user(path, name)
    if not found:
        raise CommandError(
            f"expected the user {name!r} in {path}, got no such user; see `avow user list`",
            ExitCode.FAILED,
        )
    click.echo(f"removed {name} from {path}")
    return ExitCode.OK


@user.command("list")
@_file_option
@_config_option
def list_users(file: Path | None, config: Path | None) -> int:
    """Print the names of all users, one a line."""
    with configuration_errors():
        for name in sorted(read_users(_users_file(file, config))):
            click.echo(name)
    return ExitCode.OK


def _users_file(file: Path | None, config: Path | None) -> Path:
    if file is not None:
        return file
    if config is None:
        return DEFAULT_FILE
    with configuration_errors():
        path = load_configuration(config, Overrides()).password_file
    if path is None:
        raise CommandError(
            f"expected the key `password_file` in {config}, got none; add it or use --file",
            ExitCode.USAGE,
        )
    if provisioned_name(path) is not None:
        raise CommandError(
            f"expected a file as `password_file` in {config}, got {str(path)!r}; use --file, and "
            f"hand that file over with `avow provision`",
            ExitCode.USAGE,
        )
    return path
