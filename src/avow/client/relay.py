"""Copies bytes between two sockets, both ways, until both directions have ended.

Each direction holds at most one piece that the other side has not taken yet, and reads no further
meanwhile: a slow reader slows its writer down, as without anybody in between.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from dataclasses import dataclass
from typing import Final, Protocol

# The most that is taken from one side before the other side gets it.
PIECE_BYTES: Final = 256 * 1024
# One read: of a TLS socket it gives one record.
READ_BYTES: Final = 64 * 1024
# When one direction has ended, how long the other may stay silent: a peer that is gone for good
# does not always say so.
LINGER_S: Final = 30.0


class Stream(Protocol):
    """What `socket.socket` and `TlsSocket` have in common here."""

    def recv(self, bufsize: int, flags: int = ...) -> bytes:
        """Bytes, or none at the end."""

    def send(self, data: memoryview, flags: int = ...) -> int:
        """How many bytes were taken."""

    def shutdown(self, how: int) -> None:
        """Ends one direction."""

    def setblocking(self, flag: bool) -> None:
        """False: never wait."""

    def fileno(self) -> int:
        """The descriptor."""


@dataclass(slots=True)
class Ended:
    """How a relay ended: bytes to the server and back, and why, where it was an error."""

    up_bytes: int
    down_bytes: int
    error: OSError | None = None


class _Direction:
    """One way. `reader_waits` and `writer_waits` are what to wait for at its two ends."""

    def __init__(self, reader: Stream, writer: Stream) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting = memoryview(b"")
        self._at_end = False
        self.ended = False
        self.count = 0
        self.reader_waits = 0
        self.writer_waits = 0

    @property
    def ready(self) -> bool:
        """True when it can go on without waiting."""
        return not (self.ended or self.reader_waits or self.writer_waits)

    def move(self) -> None:
        """Reads one piece and writes it, as far as neither end has to be waited for."""
        if self.ended:
            return
        self.reader_waits = self.writer_waits = 0
        if not self._waiting and not self._at_end:
            self._read()
        try:
            while self._waiting:
                taken = self._writer.send(self._waiting)
                self.count += taken
                self._waiting = self._waiting[taken:]
            if self._at_end:
                _end_writing(self._writer)
                self.ended = True
        except ssl.SSLWantReadError:
            self.writer_waits = select.POLLIN
        except (BlockingIOError, ssl.SSLWantWriteError):
            self.writer_waits = select.POLLOUT

    def _read(self) -> None:
        pieces: list[bytes] = []
        size = 0
        try:
            while size < PIECE_BYTES:
                piece = self._reader.recv(READ_BYTES)
                if not piece:
                    self._at_end = True
                    break
                pieces.append(piece)
                size += len(piece)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.reader_waits = select.POLLIN
        except ssl.SSLWantWriteError:
            self.reader_waits = select.POLLOUT
        self._waiting = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def relay(local: Stream, remote: Stream) -> Ended:
    """Runs until both directions have ended or one broke. Closes neither."""
    local.setblocking(False)
    remote.setblocking(False)
    up, down = _Direction(local, remote), _Direction(remote, local)
    try:
        while True:
            up.move()
            down.move()
            if up.ended and down.ended:
                return Ended(up.count, down.count)
            if up.ready or down.ready:
                continue
            patience_s = LINGER_S if up.ended or down.ended else None
            if not _wait(
                (local, up.reader_waits | down.writer_waits),
                (remote, up.writer_waits | down.reader_waits),
                patience_s,
            ):
                return Ended(up.count, down.count, TimeoutError("half of it stayed silent"))
    except OSError as error:
        return Ended(up.count, down.count, error)


def _end_writing(stream: Stream) -> None:
    try:
        stream.shutdown(socket.SHUT_WR)
    except OSError as error:
        # It has closed both directions already, which is no less than what it is to be told.
        if error.errno != errno.ENOTCONN:
            raise


def _wait(first: tuple[Stream, int], second: tuple[Stream, int], patience_s: float | None) -> bool:
    """False when the time is up. Errors of a socket wake it too, whatever it is waited for."""
    poll = select.poll()
    for stream, events in (first, second):
        if events:
            poll.register(stream, events)
    return bool(poll.poll(None if patience_s is None else patience_s * 1000))
