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

_OUTPUT: Final = 1
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
    sys.stdout = _text(OutputFile(_OUTPUT), sys.stdout, "strict")
    sys.stderr = _text(io.BufferedWriter(_Error()), sys.stderr, "backslashreplace")


def drop_output() -> None:
    """Nobody reads standard output any more, as after `| head`, or it cannot be written.

    Python flushes once more at its end and must find somewhere to write to.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _text(buffer: io.BufferedWriter, given: TextIO | None, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        buffer,
        encoding=getattr(given, "encoding", None),
        errors=getattr(given, "errors", None) or errors,
        line_buffering=buffer.fileno() == _ERROR or os.isatty(buffer.fileno()),
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
            f"expected to read {self._what}, got: {error.strerror}; check where it comes from",
            ExitCode.FAILED,
        )


class OutputFile(io.BufferedWriter):
    """A descriptor that is written to. Raises `CommandError` where that cannot be.

    A pipe that nobody reads is the caller's to judge. Not the file below is extended but the
    buffer: a Ctrl-C between the two would leave in the buffer what the file has already.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(io.FileIO(descriptor, "w", closefd=False))

    def write(self, data: ReadableBuffer, /) -> int:
        """As `io.BufferedWriter` has it."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def flush(self) -> None:
        """As `io.BufferedWriter` has it."""
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CommandError:
        drop_output()
        return CommandError(
            f"expected to write to standard output, got: {error.strerror}; the output is "
            "incomplete: check where it goes, and run the command again",
            ExitCode.FAILED,
        )


class _Error(io.FileIO):
    """Standard error. What cannot be written to it is dropped: nobody could be told, and the exit
    code has to be that of what happened."""

    def __init__(self) -> None:
        super().__init__(_ERROR, "w", closefd=False)

    def write(self, data: ReadableBuffer, /) -> int:
        """As `io.FileIO` has it."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError:
            return memoryview(data).nbytes
