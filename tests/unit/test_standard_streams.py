"""What commands print, while signals come."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import termios
import threading
from types import FrameType
from typing import NoReturn

import pytest

from avow.cli.standard_streams import OutputFile

# Less than OutputFile keeps back, so that it is written by `flush`; more than is left in the pipe.
LINE = b"a line of many bytes\n" * 350
ROOM_BYTES = 4096


class StoppedError(Exception):
    """What the signal raises, as Ctrl-C raises KeyboardInterrupt."""


def waiting_bytes(reader: int) -> int:
    """How much is in a pipe."""
    number = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, number)
    return number[0]


def test_what_is_written_when_a_signal_comes_is_not_written_again() -> None:
    reader, writer = os.pipe()
    capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    filled = os.write(writer, bytes(capacity - ROOM_BYTES))
    received = bytearray()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise StoppedError

    def signal_then_read() -> None:
        # Closed whatever happens here: a write that nobody reads would wait for ever.
        with open(reader, "rb", buffering=0) as pipe:
            # A part of the line is in the pipe and the rest has no room: the write has begun and
            # cannot have ended.
            while waiting_bytes(reader) == filled:
                pass
            # This thread gets it, so the write goes on, and Python sees it when that returns.
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            while part := pipe.read(capacity):
                received.extend(part)

    before = signal.signal(signal.SIGUSR1, stop)
    other = threading.Thread(target=signal_then_read)
    try:
        output = OutputFile(writer)
        output.write(LINE)
        other.start()
        with pytest.raises(StoppedError):
            output.flush()
        output.flush()
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(writer)
        other.join()
    assert received[filled:] == LINE
