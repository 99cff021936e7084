"""The options of `avow broker` that matter to the measured configuration, for other commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from avow.broker.config import Configuration
from avow.broker.config_file import Overrides, load_configuration

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_DURABILITY = click.Choice(["commit", "interval", "none"])
_ONLY_ITS_KIND = "As for `avow broker`; only its kind matters, such as file."

# Of the files named by these, only whether they are there is measured.
_ONLY_ITS_NAME = "As for `avow broker`; its contents do not matter."

_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option("--config", type=_FILE, metavar="FILE", help="As for `avow broker`."),
    click.option("--listen", multiple=True, metavar="URL", help="As for `avow broker`."),
    click.option("--cert", type=_FILE, metavar="FILE", help=_ONLY_ITS_NAME),
    click.option("--key", type=_FILE, metavar="FILE", help=_ONLY_ITS_NAME),
    click.option("--client-ca", type=_FILE, metavar="FILE", help="As for `avow broker`."),
    click.option("--psk-file", type=_FILE, metavar="FILE", help=_ONLY_ITS_NAME),
    click.option("--client-policy", type=_FILE, metavar="FILE", help="As for `avow broker`."),
    click.option("--password-file", type=_FILE, metavar="FILE", help=_ONLY_ITS_NAME),
    click.option("--allow-anonymous", is_flag=True, default=False, help="As for `avow broker`."),
    click.option(
        "--store", type=_FOLDER, metavar="DIR", help="As for `avow broker`; it is not opened."
    ),
    click.option("--store-key", metavar="SOURCE", help=_ONLY_ITS_KIND),
    click.option("--also-key", metavar="SOURCE", help=_ONLY_ITS_KIND),
    click.option("--durability", type=_DURABILITY, help="As for `avow broker`."),
    click.option("--anchor", metavar="ANCHOR", help="As for `avow broker`; it is not contacted."),
)

NAMES = (
    "config",
    "listen",
    "cert",
    "key",
    "client_ca",
    "psk_file",
    "client_policy",
    "password_file",
    "allow_anonymous",
    "store",
    "store_key",
    "also_key",
    "durability",
    "anchor",
)


def configuration_options(command: Command) -> Command:
    """Adds the options to a command, which gets them by the names of `NAMES`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def configuration_of(arguments: dict[str, Any]) -> Configuration:
    """The configuration that `avow broker` would run with. Raises an `AvowError`."""
    given = {name: arguments[name] for name in NAMES if name != "config"}
    given["allow_anonymous"] = True if given["allow_anonymous"] else None
    return load_configuration(arguments["config"], Overrides(**given))
