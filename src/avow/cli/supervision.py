"""A program that runs, from outside: its time, its commits, and signals as native programs have.

WebAssembly that computes cannot be interrupted without making all of it slower, so what has to end
before it ends by itself ends with the whole process. The sealed store survives that at any moment;
here it is committed first, so that nothing that the program wrote is lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn, Protocol

import click

from avow.cli.command_error import CommandError, operation_errors, storage_errors
from avow.cli.exit_codes import ExitCode
from avow.errors import AvowError
from avow.sandbox.limits import Limits, timed_out
from avow.sandbox.program import Running

# What a shell, a terminal or a service manager sends to end a program.
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
COMMIT_INTERVAL_S: Final = 2.0


class Keeper(Protocol):
    """Keeps what a program has written."""

    def commit(self) -> object:
        """Called now and then while the program runs."""

    def keep(self) -> object:
        """Called when the process is about to end while the program still runs."""


class _SignalledError(BaseException):
    """A signal came that ends a program. Not an ordinary exception: nothing may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def native_signals() -> None:
    """Ctrl-C ends this process at once, as it does a native one. Ignored signals stay ignored."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def supervise(start: Callable[[], Running], limits: Limits, keeper: Keeper) -> int:
    """Start a program, wait for its end, return its exit code. Raises what `Program.run` raises.

    Does not return, but ends the process, when a signal or the time limit ends the program, or its
    store fails while it runs.
    """
    try:
        # From before its first instruction: whatever it has written is kept when a signal comes.
        with _raising():
            running = start()
            _wait(running, limits, keeper)
    except _SignalledError as signalled:
        native_signals()
        _reported(keeper.keep)
        die_by(signalled.number)
    except AvowError as error:
        end_at_once(error, keeper)
    return running.exit_code()


def end_at_once(error: AvowError, keeper: Keeper) -> NoReturn:
    """Say what is wrong, and end the process with a program still running in another thread.

    It may be called from any thread, such as the one that keeps the anchor.
    """
    if threading.current_thread() is threading.main_thread():
        native_signals()
    code = _reported(lambda: _raise(error))
    # What cannot be kept any more for the same reason was said already.
    _reported(keeper.keep, said=type(error))
    _flush()
    os._exit(code)


def die_by(number: int) -> NoReturn:
    """End as a native program ends by this signal: a shell sees 128 and its number."""
    _flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # Not reached, unless the signal is one that ends nothing.
    os._exit(128 + number)


def _wait(running: Running, limits: Limits, keeper: Keeper) -> None:
    seconds = limits.run_timeout_s
    deadline_s = None if seconds is None else time.monotonic() + seconds
    while True:
        left_s = COMMIT_INTERVAL_S if deadline_s is None else deadline_s - time.monotonic()
        if left_s <= 0:
            if running.wait(0):
                return
            raise timed_out(limits)
        if running.wait(min(COMMIT_INTERVAL_S, left_s)):
            return
        keeper.commit()


@contextmanager
def _raising() -> Iterator[None]:
    """In here the signals that end a program raise."""

    def ended(number: int, frame: FrameType | None) -> NoReturn:
        raise _SignalledError(number)

    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ended)
    yield
    native_signals()


def _reported(call: Callable[[], object], said: type[AvowError] | None = None) -> int:
    """The exit code of what `call` raises, after saying it on standard error, unless it is an error
    of a kind that was `said`; 0 for nothing."""
    try:
        with operation_errors(), storage_errors():
            call()
    except CommandError as error:
        if said is None or not isinstance(error.__cause__, said):
            click.echo(f"avow: {error.sentence}", err=True)
        return error.code
    return ExitCode.OK


def _raise(error: AvowError) -> NoReturn:
    raise error


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
