"""From typed errors to one sentence on standard error and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from avow.cli.exit_codes import ExitCode
from avow.errors import (
    AvowError,
    DamagedError,
    DeniedError,
    ImportsError,
    InUseError,
    LimitError,
    ModuleError,
    RolledBackError,
    StorageError,
    TrapError,
    UntrustedError,
    WrongKeyError,
)

_OWN_CODES = {
    ModuleError: ExitCode.NOT_A_MODULE,
    ImportsError: ExitCode.UNKNOWN_IMPORTS,
    TrapError: ExitCode.TRAPPED,
    LimitError: ExitCode.LIMIT,
    WrongKeyError: ExitCode.WRONG_KEY,
    DamagedError: ExitCode.DAMAGED,
    InUseError: ExitCode.IN_USE,
    RolledBackError: ExitCode.ROLLED_BACK,
    StorageError: ExitCode.STORAGE,
}


class CommandError(Exception):
    """Ends a command with `avow: sentence` on standard error and an exit code."""

    def __init__(self, sentence: str, code: ExitCode) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


@contextmanager
def configuration_errors() -> Iterator[None]:
    """Whatever is wrong in here was written wrongly by the user: exit 2."""
    try:
        yield
    except AvowError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error


@contextmanager
def operation_errors() -> Iterator[None]:
    """Refused by the other side: exit 3; all else that goes wrong: exit 1.

    A failed check of attestation counts as in `judging_errors`.
    """
    try:
        yield
    except DeniedError as error:
        raise CommandError(str(error), ExitCode.DENIED) from error
    except AvowError as error:
        if error.finding is not None:
            with judging_errors():
                raise
        raise CommandError(str(error), ExitCode.FAILED) from error


@contextmanager
def judging_errors() -> Iterator[None]:
    """Evidence refused, by a policy or for its origin: exit 3; could not be judged: exit 4."""
    try:
        yield
    except (DeniedError, UntrustedError) as error:
        raise CommandError(str(error), ExitCode.DENIED) from error
    except AvowError as error:
        raise CommandError(str(error), ExitCode.UNJUDGED) from error


@contextmanager
def storage_errors() -> Iterator[None]:
    """Errors of stores and of the sandbox that have an exit code of their own.

    All others pass: put it inside of one of the others here.
    """
    try:
        yield
    except tuple(_OWN_CODES) as error:
        raise CommandError(str(error), _OWN_CODES[type(error)]) from error
