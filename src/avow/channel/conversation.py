"""A thin shell around `ClientExchange` for callers that may block."""

from __future__ import annotations

import queue
import select
import time
from collections.abc import Callable
from typing import NoReturn

from OpenSSL import SSL

from avow.channel.exchange import DEADLINE_S, ClientExchange, Outcome
from avow.channel.issuer import Issuer
from avow.channel.tls import reason_of
from avow.errors import AvowError, UnavailableError
from avow.evidence.envelope import Evidence


def run_client_exchange(
    connection: SSL.Connection,
    exchange: ClientExchange,
    *,
    issuer: Issuer | None = None,
    deadline_s: float = DEADLINE_S,
    keep_last: Callable[[bytes], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Runs `exchange` over a connection with a socket and a finished handshake, to its end.

    The socket may be blocking or not; it is read and written only when it is ready, so pass one
    that is non-blocking to keep the deadline exactly. `issuer` is needed when the client offers
    evidence. `keep_last` is given the last frame instead of the peer: to go out in front of the
    first bytes of MQTT, which saves a packet and a wake-up of the peer. Not one byte after the
    exchange is read. Raises as `ClientExchange.receive` does; the peer has been told then, and the
    connection has to be closed.
    """
    end_s = clock() + deadline_s
    wait = _Wait(connection, exchange, end_s, clock)
    try:
        while True:
            content = exchange.to_send()
            outcome = exchange.outcome
            if outcome is not None and keep_last is not None:
                keep_last(content)
                return outcome
            _write(connection, content, wait)
            if content:
                # The other side has to work now, and we have time.
                exchange.prepare()
            if outcome is not None:
                return outcome
            wanted = exchange.quote_wanted
            if wanted is not None:
                answers: queue.SimpleQueue[Evidence | AvowError] = queue.SimpleQueue()
                if issuer is None:
                    answers.put(_no_issuer())
                else:
                    issuer.request(wanted.claims, wanted.binder, answers.put)
                try:
                    exchange.quoted(answers.get(timeout=max(0.0, end_s - clock())))
                except queue.Empty:
                    exchange.late()
            else:
                exchange.receive(_read(connection, exchange.needed, wait))
    except AvowError:
        _farewell(connection, exchange.to_send())
        raise
    except SSL.Error as error:
        raise UnavailableError(
            f"expected the connection to last until the end of the attestation, got "
            f"{reason_of(error)!r}; connect again"
        ) from error


class _Wait:
    """Waits until the connection is ready, to the deadline at most."""

    def __init__(
        self,
        connection: SSL.Connection,
        exchange: ClientExchange,
        end_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._exchange = exchange
        self._end_s = end_s
        self._clock = clock

    def __call__(self, *, to_read: bool) -> None:
        events = select.POLLIN if to_read else select.POLLOUT
        poll = select.poll()
        poll.register(self._connection.fileno(), events)
        left_s = self._end_s - self._clock()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            self._exchange.late()

    def closed(self) -> NoReturn:
        """The connection has ended."""
        self._exchange.closed()


def _write(connection: SSL.Connection, content: bytes, wait: _Wait) -> None:
    while content:
        try:
            content = content[connection.send(content) :]
        except SSL.WantReadError:
            wait(to_read=True)
        except SSL.WantWriteError:
            wait(to_read=False)
        except (SSL.SysCallError, SSL.ZeroReturnError):
            # The peer's last words may say why: read on.
            return


def _read(connection: SSL.Connection, count: int, wait: _Wait) -> bytes:
    while True:
        try:
            return connection.recv(count)
        except SSL.WantReadError:
            wait(to_read=True)
        except SSL.WantWriteError:
            wait(to_read=False)
        except (SSL.SysCallError, SSL.ZeroReturnError):
            wait.closed()
        except SSL.Error as error:
            # After a write that failed OpenSSL gives no reason: the peer is gone.
            if not any(entry[-1] for entry in (error.args[0] if error.args else ())):
                wait.closed()
            raise


def _farewell(connection: SSL.Connection, content: bytes) -> None:
    """Tells the peer why, if that is possible at once."""
    if content:
        try:
            connection.send(content)
        except SSL.Error:
            return


def _no_issuer() -> UnavailableError:
    return UnavailableError("expected an issuer for the evidence that is offered, got none")
