"""Passwords from the terminal, standard input, a file or the environment; never from arguments."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

import click

from avow.channel.named_files import read_named_text
from avow.cli.command_error import CommandError
from avow.cli.exit_codes import ExitCode

PASSWORD_VARIABLE = "AVOW_PASSWORD"


def new_password(name: str, *, from_stdin: bool) -> str:
    """A new password, asked for twice on the terminal."""
    if from_stdin:
        return password_from_stdin()
    if not sys.stdin.isatty():
        raise CommandError(
            "expected a terminal to ask for the password, got none; use --password-stdin",
            ExitCode.USAGE,
        )
    first = ask(f"Password for {name}: ")
    if ask("Again: ") != first:
        raise CommandError(
            "expected the same password twice, got two different ones; try again", ExitCode.FAILED
        )
    return first


def password_from_stdin() -> str:
    """The first line of standard input, without its end."""
    line = sys.stdin.readline()
    if not line:
        raise CommandError(
            "expected a password on standard input, got nothing; write it there as one line",
            ExitCode.USAGE,
        )
    return line.rstrip("\r\n")


def client_password(user: str | None, *, from_stdin: bool, file: Path | None) -> str | None:
    """A client's password: standard input, file, environment, else the terminal asks for it."""
    if from_stdin:
        return password_from_stdin()
    if file is not None:
        return read_named_text(file, "password").split("\n")[0].rstrip("\r")
    if PASSWORD_VARIABLE in os.environ:
        return os.environ[PASSWORD_VARIABLE] if user is not None else None
    if user is not None and sys.stdin.isatty():
        return ask(f"Password for {user}: ") or None
    return None


def ask(prompt: str) -> str:
    """One line that is not shown."""
    try:
        return getpass.getpass(prompt)
    except EOFError as error:
        raise click.Abort() from error
