"""The service's log: lines for people on a terminal, JSON lines otherwise, on standard error.

No thread that serves waits for whoever reads the log. Lines go into a queue of bounded size, and
one thread writes them; where the reader stops reading, lines are dropped and counted, and the count
is written when it goes on. Lines that strangers can cause, which are those with a peer, are
limited in rate, each kind by itself and each address within its kind: none can drown the others.

Strangers choose names and words that get into lines. No character of theirs acts on a terminal or
ends a line: what is not printable is written as an escape, and what is very long is cut off.
"""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from avow.broker.config import Log
from avow.channel.address import source_of
from avow.errors import counted

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# What may wait for a reader. Errors have a share of their own: what explains the rest of the log
# must not be dropped for it.
QUEUE_BYTES_MAX: Final = 1 << 20
QUEUE_BYTES_FOR_ERRORS: Final = 64 << 10
# How long an orderly end waits for a reader that does not read.
CLOSE_TIMEOUT_S: Final = 1.0

# Lines about strangers. A broker to which a fleet comes back is quiet after some seconds of it, and
# the figures go on counting.
KIND_BURST: Final = 200
KIND_PER_S: Final = 20.0
SOURCE_BURST: Final = 100
SOURCE_PER_S: Final = 10.0
SUMMARY_INTERVAL_S: Final = 10.0
# Kinds and addresses whose rates are remembered; the one that was longest quiet is forgotten.
REMEMBERED_MAX: Final = 4096

# What a line shows of one value. No sentence of avow's own is as long.
VALUE_CHARACTERS_MAX: Final = 4096


class Lines(Protocol):
    """Where whole lines go. The names are those of levels, as structlog calls them."""

    def info(self, line: str) -> None:
        """One line, without its end."""

    def error(self, line: str) -> None:
        """One line that should not be dropped."""


class StreamLines:
    """Writes whole lines at once. A reader of the log that has gone away ends nobody."""

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


class QueuedLines:
    """Writes whole lines to the descriptor `fd` in a thread of its own, from `start` to `close`.

    The descriptor is written to directly: a thread that waits within one of Python's streams would
    keep the process from ending.
    """

    def __init__(self, fd: int, report: Callable[[int], None]) -> None:
        """`report` is called by that thread: with the number of lines that were dropped, as soon as
        others are taken again, and from time to time with 0."""
        self._fd = fd
        self._report = report
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._unsaid = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def close(self) -> None:
        """Writes what waits, as far as the reader takes it in a moment."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_S)

    def msg(self, line: str) -> None:
        """One line. Never waits."""
        self._put(line, QUEUE_BYTES_MAX)

    def urgent(self, line: str) -> None:
        """One line that may use the share for errors."""
        self._put(line, QUEUE_BYTES_MAX + QUEUE_BYTES_FOR_ERRORS)

    debug = info = warning = msg
    error = critical = urgent

    def _put(self, line: str, bytes_max: int) -> None:
        content = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._bytes + len(content) > bytes_max:
                self.dropped += 1
                self._unsaid += 1
                return
            self._lines.append(content)
            self._bytes += len(content)
            self._changed.notify()

    def _write_all(self) -> None:
        report_at_s = time.monotonic() + SUMMARY_INTERVAL_S
        while True:
            with self._changed:
                while not self._lines and not self._closing and time.monotonic() < report_at_s:
                    self._changed.wait(report_at_s - time.monotonic())
                content = self._lines[0] if self._lines else None
                if content is None and self._closing:
                    return
            unsaid = 0
            if content is not None:
                if not self._write(content):
                    return
                with self._changed:
                    self._lines.popleft()
                    self._bytes -= len(content)
                    unsaid, self._unsaid = self._unsaid, 0
            now_s = time.monotonic()
            if unsaid or now_s >= report_at_s:
                report_at_s = now_s + SUMMARY_INTERVAL_S
                self._report(unsaid)

    def _write(self, content: bytes) -> bool:
        """False when nobody will ever read what comes."""
        while content:
            try:
                content = content[os.write(self._fd, content) :]
            except BlockingIOError:
                # Somebody has made the descriptor non-blocking, for themselves too.
                time.sleep(0.01)
            except OSError:
                return self._lose()
        return True

    def _lose(self) -> bool:
        with self._changed:
            self.dropped += len(self._lines)
            self._lines.clear()
            self._bytes = 0
        return False


class _Bucket:
    """Tokens for lines: as many as `burst` at once, `per_s` in the long run."""

    __slots__ = ("_at_s", "_tokens")

    def __init__(self, burst: float, now_s: float) -> None:
        self._tokens = burst
        self._at_s = now_s

    def take(self, burst: float, per_s: float, now_s: float) -> bool:
        self._tokens = min(burst, self._tokens + (now_s - self._at_s) * per_s)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class StrangerLimit:
    """Which lines about strangers are written. A kind is an event with its code or check."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[tuple[str, ...], _Bucket] = OrderedDict()
        self._left_out: Counter[str] = Counter()
        self._since_s = 0.0
        self.total_left_out = 0

    def __call__(self, logger: object, method: str, event: EventDict) -> EventDict:
        """A processor of structlog: raises `structlog.DropEvent` for what is too much."""
        peer = event.get("peer")
        if not isinstance(peer, str):
            return event
        # A code that the client has said is not one of ours: it could choose another each time.
        code = "" if event.get("by") == "client" else event.get("code", "")
        # Of a machine's own users all have one address: where it is known whose it is, that counts.
        source = str(event.get("owner", source_of(peer)))
        if not self.take(str(event["event"]), str(event.get("check", code)), source):
            raise structlog.DropEvent
        return event

    def take(self, name: str, detail: str, source: str) -> bool:
        """Whether a line is written: its event, its code or check, and whose doing it is."""
        kind = (name, detail)
        now_s = self._clock()
        with self._lock:
            # The source first: its surplus must not use up what the kind has for all.
            if self._bucket((*kind, source), SOURCE_BURST, SOURCE_PER_S, now_s) and (
                self._bucket(kind, KIND_BURST, KIND_PER_S, now_s)
            ):
                return True
            if not self._left_out:
                self._since_s = now_s
            self._left_out[name] += 1
            self.total_left_out += 1
            return False

    def _bucket(self, key: tuple[str, ...], burst: float, per_s: float, now_s: float) -> bool:
        bucket = self._buckets.pop(key, None) or _Bucket(burst, now_s)
        self._buckets[key] = bucket
        if len(self._buckets) > REMEMBERED_MAX:
            self._buckets.popitem(last=False)
        return bucket.take(burst, per_s, now_s)

    def summary(self) -> tuple[dict[str, int], float]:
        """What was left out since the last summary, by the line's name, and in how many seconds."""
        with self._lock:
            counts, self._left_out = dict(self._left_out), Counter()
            return counts, self._clock() - self._since_s


@dataclass(frozen=True, slots=True)
class OpenLog:
    """A log that is being written, and what became of lines that are not in it."""

    log: FilteringBoundLogger
    counters: Callable[[], Mapping[str, int]]


@contextmanager
def open_log(settings: Log, stream: TextIO) -> Iterator[OpenLog]:
    """A log to the descriptor of `stream` that never holds up whoever writes to it."""
    limit = StrangerLimit()

    def report(dropped: int) -> None:
        if dropped:
            log.error("log lines dropped", count=dropped, reason="nobody read the log")
        left_out, seconds = limit.summary()
        if left_out:
            log.warning("log lines left out", count=left_out, seconds=round(seconds, 1))

    try:
        fd = stream.fileno()
    except OSError:
        # No file, but memory: it takes lines at once.
        yield OpenLog(make_log(settings, stream, limit=limit), dict)
        return
    lines = QueuedLines(fd, report)
    log = make_log(settings, stream, lines=lines, limit=limit)
    lines.start()
    try:
        yield OpenLog(
            log,
            lambda: {
                "log_lines_dropped": lines.dropped,
                "log_lines_left_out": limit.total_left_out,
            },
        )
    finally:
        report(0)
        lines.close()


def make_log(
    settings: Log, stream: TextIO, *, lines: Lines | None = None, limit: Processor | None = None
) -> FilteringBoundLogger:
    """A logger for `stream`, or for `lines` of its form. Nothing global is configured.

    `limit` may drop lines: see `StrangerLimit`.
    """
    form: Literal["human", "json"]
    if settings.format == "auto":
        form = "human" if stream.isatty() else "json"
    else:
        form = settings.format
    processors: list[Processor] = [] if limit is None else [limit]
    processors += [structlog.processors.add_log_level, _cut_off]
    if form == "human":
        processors += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _quote,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                pad_event_to=24,
                exception_formatter=_traceback,
            ),
        ]
    else:
        processors += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(_json_line),
        ]
    log: Any = structlog.wrap_logger(
        StreamLines(stream) if lines is None else lines,
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        context_class=dict,
    )
    bound: FilteringBoundLogger = log.bind()
    return bound


class _Quoted:
    """A text as Python would write it, for a renderer that shows texts as they are."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _cut_off(logger: object, method: str, event: EventDict) -> EventDict:
    """A processor: no value longer than a line can show."""
    for name, value in event.items():
        if isinstance(value, str) and len(value) > VALUE_CHARACTERS_MAX:
            event[name] = f"{value[:VALUE_CHARACTERS_MAX]}… ({counted(len(value), 'character')})"
    return event


def _quote(logger: object, method: str, event: EventDict) -> EventDict:
    """A processor for lines that people read: a terminal acts on none of their characters.

    Texts with spaces are quoted by the renderer, and all that are not texts are shown by `repr`.
    """
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = escaped(value) if name == "event" else _Quoted(value)
    return event


def _traceback(stream: TextIO, exc_info: Any) -> None:
    """Without the default's local variables, secrets among them; a message in it stays below the
    line that it belongs to."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.writelines(f"\n  {escaped(line)}" for line in text.getvalue().strip("\n").split("\n"))


def _json_line(event: EventDict, **options: Any) -> str:
    """JSON for terminals too: letters of all scripts as they are, all else as escapes."""
    return escaped(json.dumps(event, ensure_ascii=False, default=str))


def escaped(text: str) -> str:
    """`text` with `\\uXXXX` (RFC 8259, section 7) for each character that is not printable: line
    ends and commands to terminals, marks that turn the direction, halves of a surrogate pair."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    number = ord(character)
    if number < 1 << 16:
        return f"\\u{number:04x}"
    number -= 1 << 16
    return f"\\u{0xD800 | number >> 10:04x}\\u{0xDC00 | number & 0x3FF:04x}"
