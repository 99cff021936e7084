"""What commands print, while signals come."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from avow.cli.standard_streams import OutputFile

# More than a pipe holds.
PIPE_BYTES = 4 << 20
# write(2) as /proc/PID/task/TID/syscall shows the call that a thread waits in: x86-64 and AArch64.
WRITE = {"x86_64": 1, "aarch64": 64}[os.uname().machine]


class StoppedError(Exception):
    """What the signal raises, as Ctrl-C raises KeyboardInterrupt."""


def test_what_is_written_when_a_signal_comes_is_not_written_again() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = os.write(writer, bytes(PIPE_BYTES))
    os.set_blocking(writer, True)
    main = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    waits = f"{WRITE} {writer:#x} "

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise StoppedError

    def signal_then_read() -> None:
        while not main.read_text().startswith(waits):
            pass
        # This thread gets it, so the write goes on, and Python sees the signal when it returns.
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        left = filled
        while left:
            left -= len(os.read(reader, left))

    before = signal.signal(signal.SIGUSR1, stop)
    other = threading.Thread(target=signal_then_read, daemon=True)
    try:
        output = OutputFile(writer)
        output.write(b"a line\n")
        other.start()
        with pytest.raises(StoppedError):
            output.flush()
        output.flush()
    finally:
        signal.signal(signal.SIGUSR1, before)
    other.join()
    os.close(writer)
    assert os.read(reader, PIPE_BYTES) == b"a line\n"
    os.close(reader)
