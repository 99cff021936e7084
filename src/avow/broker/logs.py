"""The service's log: lines for people on a terminal, JSON lines otherwise, on standard error."""

from __future__ import annotations

import logging
import threading
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from avow.broker.config import Log

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class LineWriter:
    """Writes whole lines. A reader of the log that has gone away does not end the broker."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.lost_lines = 0

    def msg(self, line: str) -> None:
        """One line, at once."""
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except OSError:
                self.lost_lines += 1

    debug = info = warning = error = critical = msg


def make_log(settings: Log, stream: TextIO) -> FilteringBoundLogger:
    """A logger for `stream`. Nothing global is configured."""
    form: Literal["human", "json"]
    if settings.format == "auto":
        form = "human" if stream.isatty() else "json"
    else:
        form = settings.format
    processors: list[Processor] = [structlog.processors.add_log_level]
    if form == "human":
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                pad_event_to=24,
                # The default shows local variables where `rich` is installed: secrets among them.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    log: Any = structlog.wrap_logger(
        LineWriter(stream),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        context_class=dict,
    )
    bound: FilteringBoundLogger = log.bind()
    return bound
