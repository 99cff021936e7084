"""Whole frames over a TLS connection, until a deadline. For both sides of provisioning."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable
from typing import Final, TypeVar

from OpenSSL import SSL

from avow.channel import provisioning_checks as checks
from avow.channel.provisioning_messages import (
    HEADER_BYTES,
    FrameType,
    decode_header,
    frame_bytes,
)
from avow.channel.tls import reason_of
from avow.errors import UnavailableError

_PIECE_BYTES: Final = 16 * 1024

T = TypeVar("T")


class ProvisioningStream:
    """Reads and writes `tls`, over the non-blocking descriptor `fd`, until `end_s` on `clock`.

    Raises `UnavailableError`: PR4 when the time is over, and for a connection that is lost.
    """

    def __init__(
        self,
        fd: int,
        tls: SSL.Connection,
        end_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fd = fd
        self._tls = tls
        self._end_s = end_s
        self._clock = clock

    def handshake(self) -> None:
        """TLS."""
        self._until_done(self._tls.do_handshake)

    def read_frame(self, expected: tuple[FrameType, ...]) -> bytes:
        """A whole frame, and nothing after it. Raises `MalformedError` at the header of others, so
        that nothing is stored for a length that cannot be."""
        header = self._read(HEADER_BYTES)
        _, length = decode_header(header, expected)
        return header + self._read(frame_bytes(length) - HEADER_BYTES)

    def write(self, content: bytes) -> None:
        """All of it."""
        rest = memoryview(content)
        while rest:
            piece = rest[:_PIECE_BYTES]
            rest = rest[self._until_done(lambda piece=piece: self._tls.send(piece)) :]  # type: ignore[misc]

    def end(self) -> None:
        """Says that nothing follows, if that is possible at once."""
        with contextlib.suppress(SSL.Error):
            self._tls.shutdown()

    def _read(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            size = min(_PIECE_BYTES, count - len(content))
            content += self._until_done(lambda size=size: self._tls.recv(size))  # type: ignore[misc]
        return bytes(content)

    def _until_done(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except SSL.WantReadError:
                self._wait(select.POLLIN)
            except SSL.WantWriteError:
                self._wait(select.POLLOUT)
            except SSL.Error as error:
                raise UnavailableError(
                    f"expected the connection to last until the end of the provisioning, got "
                    f"{reason_of(error)!r}; provision again"
                ) from error

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._fd, events)
        left_s = self._end_s - self._clock()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise UnavailableError.at(
                checks.IN_TIME,
                expected="the whole message in time",
                actual="the end of the time",
                advice="provision again; if this persists, check the network between the two",
            )
