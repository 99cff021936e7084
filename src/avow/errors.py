"""The one small tree of errors. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self


def counted(number: int, noun: str) -> str:
    """A number with its noun, as in `1 byte` and `2 bytes`, for messages."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is checked about a peer. `number` is the one in docs/reference/checks.md."""

    number: str
    title: str
    source: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a check failed, for programs; the error's message says the same for people."""

    check: Check
    expected: str
    actual: str
    advice: str


class AvowError(Exception):
    """Base of every error that avow raises on purpose. `finding` is there when a check failed."""

    finding: Finding | None = None

    @classmethod
    def at(cls, check: Check, *, expected: str, actual: str, advice: str) -> Self:
        """The error for a failed check, with one message in the one form that all checks have."""
        error = cls(
            f"check {check.number} ({check.title}): expected {expected}, got {actual}; {advice}"
        )
        error.finding = Finding(check, expected, actual, advice)
        return error


class MalformedError(AvowError):
    """Bytes, a file or a configuration do not have the form that their format demands."""


@contextmanager
def well_formed(check: Check, what: str, *, advice: str) -> Iterator[None]:
    """Names `check` as what failed when a parser in here raises `MalformedError`.

    Parsers know what is wrong with bytes, not whose check that is. An error that has a finding
    already keeps it.
    """
    try:
        yield
    except MalformedError as error:
        if error.finding is not None:
            raise
        raise MalformedError.at(
            check, expected=f"a well-formed {what}", actual=f"other bytes ({error})", advice=advice
        ) from error


class UntrustedError(AvowError):
    """Something is well-formed but its origin or integrity could not be proven."""


class DeniedError(AvowError):
    """A policy, a credential or an access rule says no."""


class UnavailableError(AvowError):
    """A resource that is needed is absent, occupied, exhausted or has stopped."""


class WrongKeyError(DeniedError):
    """A sealed store has no slot for the key that was given."""


class DamagedError(UntrustedError):
    """Stored bytes are not those that were committed. The message names the file and the place."""


class RolledBackError(UntrustedError):
    """A whole store is older than what its freshness anchor remembers."""


class InUseError(UnavailableError):
    """A store, or another thing for one process at a time, is held by another process."""


class StorageError(UnavailableError):
    """The disk failed: it is full, or reading, writing or making durable was refused."""


class ModuleError(MalformedError):
    """Bytes are no WebAssembly module or component that the sandbox can run."""


class ImportsError(DeniedError):
    """A module wants imports that nobody granted or that do not exist. All of them are named."""


class TrapError(AvowError):
    """A program in the sandbox did what WebAssembly forbids, and was stopped."""


class LimitError(AvowError):
    """A program in the sandbox was stopped at a limit: time, fuel, memory or stack."""
