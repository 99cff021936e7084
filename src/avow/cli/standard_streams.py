"""Standard input, output and error as a command needs them: there, and with errors in words."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Final, TextIO

from avow.cli.command_error import CommandError
from avow.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_ERROR: Final = 2


def open_standard_streams() -> None:
    """What of them was closed is opened, and what a command cannot write becomes a sentence.

    Without them the next file that is opened would get their numbers: a store, into which a program
    would then print. As for a native program, to use one of them is EBADF.
    """
    for number, unusable in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, unusable)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(InputFile(0, "standard input")))
    sys.stdout = _writer(sys.stdout, 1)
    sys.stderr = _writer(sys.stderr, _ERROR)


def drop_output() -> None:
    """Nobody reads standard output any more, as after `| head`, or it cannot be written.

    Python flushes once more at its end and must find somewhere to write to.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _writer(given: TextIO | None, number: int) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Output(number, "w", closefd=False))
    errors = "backslashreplace" if number == _ERROR else "strict"
    return io.TextIOWrapper(
        buffer,
        encoding=getattr(given, "encoding", None),
        errors=getattr(given, "errors", None) or errors,
        line_buffering=number == _ERROR or os.isatty(number),
    )


class InputFile(io.FileIO):
    """A file that is read, by its path or its descriptor. `what`: as a user knows it.

    Raises `CommandError` where it cannot be opened, or not be read to its end.
    """

    def __init__(self, file: str | int, what: str) -> None:
        self._what = what
        try:
            super().__init__(file, closefd=isinstance(file, str))
        except OSError as error:
            raise self._unreadable(error) from error

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """As `io.FileIO` has it."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> CommandError:
        return CommandError(
            f"expected to read {self._what}, got: {error.strerror}", ExitCode.FAILED
        )


class _Output(io.FileIO):
    """Standard output or error. Raises `CommandError` where output cannot be written.

    What cannot be written to standard error is dropped: nobody could be told, and the exit code has
    to be that of what happened. A pipe that nobody reads is the caller's to judge.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        """As `io.FileIO` has it."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.fileno() == _ERROR:
                return memoryview(data).nbytes
            drop_output()
            raise CommandError(
                f"expected to write to standard output, got: {error.strerror}; what was printed "
                f"is not complete",
                ExitCode.FAILED,
            ) from error
