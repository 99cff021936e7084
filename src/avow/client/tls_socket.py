"""A TLS connection of pyOpenSSL that behaves as `ssl.SSLSocket` does.

The `ssl` module has no exporter (RFC 8446, section 7.5), to which evidence is bound, and pyOpenSSL
has neither timeouts nor the standard library's exceptions, which paho-mqtt relies on. OpenSSL works
on the descriptor itself: what `send` has taken is with the kernel, so that a caller who waits until
the socket can be written needs to know nothing of records.

OpenSSL's connections are for one thread at a time, and paho sends from any: a lock is held around
each call, never while waiting.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from OpenSSL import SSL

from avow.channel.tls import reason_of

Bytes = bytes | bytearray | memoryview

# The most that one record carries (RFC 8446, section 5.1), and so the most that one read gives.
RECORD_BYTES: Final = 16 * 1024
# What one call of `send` takes at most, so that other threads get their turn.
SEND_BYTES_MAX: Final = 1024 * 1024

T = TypeVar("T")


class TlsSocket:
    """Owns `sock` and `tls`, a connection over it that has not shaken hands yet.

    With a timeout of 0 (`setblocking(False)`) calls raise `ssl.SSLWantReadError` or
    `ssl.SSLWantWriteError` where they would wait; after the latter the next `send` has to begin
    with the same bytes. With another timeout, in seconds, they raise `TimeoutError` when it is
    over, and with None they wait.
    """

    def __init__(self, sock: socket.socket, tls: SSL.Connection) -> None:
        self._sock = sock
        self._timeout_s = sock.gettimeout()
        sock.setblocking(False)
        self._tls = tls
        self._lock = threading.Lock()
        # Held while a write waits too: OpenSSL has to get the rest of it before anything else.
        self._writing = threading.Lock()
        # What OpenSSL has encrypted and not written yet, because the kernel had no room.
        self._interrupted = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def do_handshake(self) -> None:
        """Negotiates TLS."""
        self._until_done(self._tls.do_handshake)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """1 to `bufsize` bytes; none when the peer has closed its direction in order.

        Raises `ssl.SSLEOFError` when the connection ends without that.
        """
        self._refuse_flags(flags)
        if bufsize <= 0:
            return b""
        size = min(bufsize, RECORD_BYTES)
        try:
            return self._until_done(lambda: self._tls.recv(size))
        except SSL.ZeroReturnError:
            return b""

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Like `recv`, into a buffer; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        piece = self.recv(min(nbytes or len(view), len(view)), flags)
        view[: len(piece)] = piece
        return len(piece)

    def send(self, data: Bytes, flags: int = 0) -> int:
        """Writes what the kernel takes, at least one byte, and returns how many that were."""
        self._refuse_flags(flags)
        if not len(data):
            return 0
        with self._writing:
            return self._until_done(lambda: self._write(memoryview(data).cast("B")))

    def sendall(self, data: Bytes, flags: int = 0) -> None:
        """Writes everything. For sockets that may wait."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.send(rest, flags) :]

    def read(self, length: int = RECORD_BYTES) -> bytes:
        """The same as `recv`."""
        return self.recv(length)

    def write(self, data: Bytes) -> int:
        """The same as `send`."""
        return self.send(data)

    def pending(self) -> int:
        """How many bytes are decrypted already: `select` does not see those."""
        with self._lock:
            return 0 if self._sock.fileno() < 0 else self._tls.pending()

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """True: wait for ever; False: never."""
        self._timeout_s = None if flag else 0.0

    def getblocking(self) -> bool:
        """True when calls wait."""
        return self._timeout_s != 0

    def settimeout(self, value: float | None) -> None:
        """How many seconds a call may wait; None for ever."""
        if value is not None and value < 0:
            raise ValueError(f"expected a timeout of at least 0 s, got {value}; use None to wait")
        self._timeout_s = value

    def gettimeout(self) -> float | None:
        """How many seconds a call may wait."""
        return self._timeout_s

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As of the socket below."""
        self._sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int) -> int:
        """As of the socket below."""
        return self._sock.getsockopt(level, option)

    def getpeername(self) -> Any:
        """As of the socket below."""
        return self._sock.getpeername()

    def getsockname(self) -> Any:
        """As of the socket below."""
        return self._sock.getsockname()

    def version(self) -> str:
        """The protocol's version, such as "TLSv1.3"."""
        return self._tls.get_protocol_version_name()

    def cipher(self) -> str | None:
        """The cipher suite by OpenSSL's name."""
        return self._tls.get_cipher_name()

    def group(self) -> str | None:
        """The group of the key exchange, such as "X25519MLKEM768"."""
        return self._tls.get_group_name()

    def getpeercert(self, binary_form: bool = True) -> bytes | None:
        """The server's certificate in DER. Only that form exists here."""
        if not binary_form:
            raise ValueError("expected binary_form=True, got False; parse the DER instead")
        certificate = self._tls.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            return None
        from cryptography.hazmat.primitives.serialization import Encoding

        return certificate.public_bytes(Encoding.DER)

    def shutdown(self, how: int) -> None:
        """Ends one direction or both. What the peer has sent can still be read after SHUT_WR."""
        if how != socket.SHUT_RD:
            with contextlib.suppress(SSL.ZeroReturnError):
                self._until_done(self._tls.shutdown)
        self._sock.shutdown(how)

    def close(self) -> None:
        """Says goodbye as far as the kernel takes it at once, and closes the descriptor."""
        if self._sock.fileno() < 0:
            return
        self._say_goodbye()
        with self._lock:
            # Under the lock: the number may belong to another file a moment later.
            self._sock.close()

    def _say_goodbye(self) -> None:
        with self._lock:
            if self._sock.fileno() < 0 or self._interrupted:
                return
            try:
                self._tls.shutdown()
            except SSL.Error:
                # Before or during a handshake, or the peer is gone: there is nobody to tell.
                return

    def _write(self, data: memoryview) -> int:
        """Records, until the kernel takes no more. Runs under the lock."""
        if self._interrupted and data[: len(self._interrupted)] != self._interrupted:
            # OpenSSL would send the old bytes and call them the new ones.
            raise ssl.SSLError(
                "expected the bytes of the interrupted write again, got others; "
                "after SSLWantWriteError send the same bytes first"
            )
        written = 0
        while written < min(len(data), SEND_BYTES_MAX):
            piece = data[written : written + RECORD_BYTES]
            if self._interrupted:
                piece = piece[: len(self._interrupted)]
            try:
                written += self._tls.send(piece)
            except SSL.WantWriteError:
                self._interrupted = bytes(piece)
                if written:
                    break
                raise
            self._interrupted = b""
        return written

    def _until_done(self, call: Callable[[], T]) -> T:
        """The result of `call`, made again each time that the socket is ready for it."""
        timeout_s = self._timeout_s
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                with self._lock:
                    if self._sock.fileno() < 0:
                        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                    return call()
            except SSL.WantReadError as error:
                if timeout_s == 0:
                    raise ssl.SSLWantReadError(
                        ssl.SSL_ERROR_WANT_READ, "the operation did not complete (read)"
                    ) from error
                events = select.POLLIN
            except SSL.WantWriteError as error:
                if timeout_s == 0:
                    raise ssl.SSLWantWriteError(
                        ssl.SSL_ERROR_WANT_WRITE, "the operation did not complete (write)"
                    ) from error
                events = select.POLLOUT
            except SSL.ZeroReturnError:
                raise
            except SSL.Error as error:
                raise _standard_error(error) from error
            self._wait(events, deadline_s)

    def _wait(self, events: int, deadline_s: float | None) -> None:
        poll = select.poll()
        poll.register(self._sock, events)
        patience_ms = None
        if deadline_s is not None:
            patience_ms = max(0.0, deadline_s - time.monotonic()) * 1000
        if not poll.poll(patience_ms):
            raise TimeoutError("timed out")

    def _refuse_flags(self, flags: int) -> None:
        if flags:
            raise ValueError(f"expected no flags on a TLS socket, got {flags}; drop them")


def _standard_error(error: SSL.Error) -> OSError:
    """The exception that the standard library's sockets raise in the same case."""
    if isinstance(error, SSL.SysCallError):
        number = error.args[0] if error.args else -1
        if isinstance(number, int) and number > 0:
            return OSError(number, os.strerror(number))
        return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection ended without TLS's goodbye")
    return ssl.SSLError(ssl.SSL_ERROR_SSL, reason_of(error))
