"""What signals do to a command: end a client in an orderly way, tell a service."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_PIECE_BYTES: Final = 64


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """In here SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_end_at_once() -> Iterator[None]:
    """In here Ctrl-C and SIGTERM end the process, as they end a native one.

    Handlers of Python's wait for a call into native code, however long that is. For calls that
    may be cut off at any moment.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def signals_told(numbers: Collection[int], tell: Callable[[int], None]) -> Iterator[None]:
    """In here each of these signals calls `tell` with its number, from a thread of its own.

    Not from a handler: Python runs those in the main thread, when that gets to it. A signal that
    comes just before the main thread blocks would be seen only when something else wakes it, and a
    service that waits for work would not end. The descriptor, however, is written to at once.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def read() -> None:
        while piece := reader.recv(_PIECE_BYTES):
            for number in piece:
                # Signals of others are written to the descriptor as well.
                if number in numbers:
                    tell(number)

    thread = threading.Thread(target=read, name="signals", daemon=True)
    thread.start()
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _told_elsewhere) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        writer.close()
        thread.join()
        reader.close()


def _told_elsewhere(number: int, frame: FrameType | None) -> None:
    """A handler has to be there, or the signal would end the process."""


@contextmanager
def thread_failures(tell: Callable[[threading.ExceptHookArgs], None]) -> Iterator[None]:
    """In here `tell` hears of every thread that dies of an exception, in that thread."""
    before = threading.excepthook
    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before
