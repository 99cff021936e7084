"""A line on standard error while something takes long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

import click

PATIENCE_S: Final = 2.0
_MEBIBYTE: Final = 1 << 20


class Progress:
    """What was done until now. `add` is cheap: call it for every piece."""

    def __init__(self, what: str, total_bytes: int | None = None) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._done_bytes = 0

    def add(self, size_bytes: int) -> None:
        """So many bytes more are done."""
        self._done_bytes += size_bytes

    def line(self, elapsed_s: float) -> str:
        """What is shown after so many seconds."""
        parts = [f"{elapsed_s:.0f} s"]
        if self._done_bytes:
            done = f"{self._done_bytes / _MEBIBYTE:,.0f}"
            if self._total_bytes:
                done += f" of {self._total_bytes / _MEBIBYTE:,.0f}"
            parts.append(f"{done} MiB")
        return f"avow: {self._what}: {', '.join(parts)}"


@contextmanager
def progress(
    what: str, total_bytes: int | None = None, *, every_s: float = PATIENCE_S
) -> Iterator[Progress]:
    """Says every two seconds what is going on; says nothing when it is over before that.

    A thread does it, because one call into the vault may take long. A terminal shows one line that
    changes; a file gets a line each time.
    """
    shown = Progress(what, total_bytes)
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(shown, over, every_s, sys.stderr), daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        over.set()
        thread.join()


def _show(shown: Progress, over: threading.Event, every_s: float, stream: TextIO) -> None:
    start = time.monotonic()
    terminal = stream.isatty()
    said = False
    while not over.wait(every_s):
        line = shown.line(time.monotonic() - start)
        click.echo(f"\r\x1b[K{line}" if terminal else line, file=stream, nl=not terminal)
        said = True
    if said and terminal:
        click.echo("\r\x1b[K", file=stream, nl=False)
