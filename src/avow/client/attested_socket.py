"""A TLS connection that carries nothing before the server's evidence was accepted.

The handshake of this socket is two: TLS 1.3, then the exchange of docs/spec/attested-channel.md in
it. There is no way around the second: every other call makes the handshake first, and after a
refusal the socket is closed and stays so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from OpenSSL import SSL

from avow.channel.attestation import OneAtATime
from avow.channel.conversation import run_client_exchange
from avow.channel.exchange import CONTEXT_BYTES, ClientExchange, ClientSettings, Outcome
from avow.channel.issuer import Issuer
from avow.channel.psk import require_key
from avow.channel.session import check_handshake, facts_of
from avow.channel.tls import reason_of
from avow.client.connection_errors import peer_error
from avow.client.openssl_context import certificate_error
from avow.client.tls_socket import RECORD_BYTES, Bytes, TlsSocket
from avow.errors import AvowError, UnavailableError


@dataclass(frozen=True, slots=True)
class Attestation:
    """What a client asks of servers and shows of itself. Any number of connections may share it.

    `issuer` is started, and there exactly when the settings have an identity; so is `attester`, for
    measuring another configuration.
    """

    settings: ClientSettings
    issuer: Issuer | None = None
    attester: OneAtATime | None = None


class AttestedSocket(TlsSocket):
    """Shaped like `ssl.SSLSocket`; see `TlsSocket`. `host` is the name that errors show.

    `pre_shared_key` says that `tls` offers such a key instead of being content with a certificate.
    """

    def __init__(
        self,
        sock: socket.socket,
        tls: SSL.Connection,
        *,
        host: str,
        attestation: Attestation,
        pre_shared_key: bool = False,
    ) -> None:
        super().__init__(sock, tls)
        self._host = host
        self._attestation = attestation
        self._pre_shared_key = pre_shared_key
        self._negotiated = False
        self._exchange: ClientExchange | None = None
        self._outcome: Outcome | None = None
        self._failure: AvowError | None = None
        # The exchange's last frame: it waits for the first bytes of MQTT, to go out with them.
        self._unsent = b""
        self._sending_first = threading.Lock()

    @property
    def outcome(self) -> Outcome | None:
        """What the server has shown; None until the handshake has succeeded."""
        return self._outcome

    @property
    def failure(self) -> AvowError | None:
        """Why the server was refused, or refused us."""
        return self._failure

    def do_handshake(self) -> None:
        """TLS, and the exchange, which takes up to 10 s, whatever the timeout is.

        Raises `UntrustedPeerError`, `DeniedPeerError`, `MalformedPeerError` and
        `UnavailablePeerError`, which are avow's errors, with a `finding` where a check failed, and
        `ConnectionError`s too; besides `TimeoutError` and other `OSError`s. The socket is closed
        then, except after `ssl.SSLWantReadError` and its kin.
        """
        if self._failure is not None:
            raise self._failure
        if self._outcome is not None:
            return
        self.negotiate()
        with self._fails_for_good(), self._lock:
            self._outcome = self._attest()

    def negotiate(self) -> None:
        """TLS alone: for looking at it before the exchange. Raises as `do_handshake` does."""
        if not self._negotiated:
            with self._fails_for_good():
                self._negotiate()
            self._negotiated = True

    @contextmanager
    def _fails_for_good(self) -> Iterator[None]:
        try:
            yield
        except AvowError as error:
            self._failure = peer_error(error)
            self.close()
            raise self._failure from error
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.close()
            raise

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """See `TlsSocket`; makes the handshake first."""
        self.do_handshake()
        # Whoever reads before writing must not wait for a peer that waits for us.
        self._send_kept()
        return super().recv(bufsize, flags)

    def send(self, data: Bytes, flags: int = 0) -> int:
        """See `TlsSocket`; makes the handshake first."""
        self.do_handshake()
        if self._unsent and len(data):
            with self._sending_first:
                if kept := self._unsent:
                    piece = memoryview(data).cast("B")[: RECORD_BYTES - len(kept)]
                    # All in one record, which is taken whole or not at all.
                    sent = super().send(kept + piece.tobytes(), flags) - len(kept)
                    self._unsent = b""
                    return sent
        return super().send(data, flags)

    def shutdown(self, how: int) -> None:
        """See `TlsSocket`."""
        self._send_kept()
        super().shutdown(how)

    def close(self) -> None:
        """See `TlsSocket`."""
        with contextlib.suppress(OSError):
            self._send_kept()
        super().close()

    def _send_kept(self) -> None:
        if self._unsent and self.fileno() >= 0:
            with self._sending_first:
                if kept := self._unsent:
                    super().send(kept)
                    self._unsent = b""

    def _keep(self, frame: bytes) -> None:
        self._unsent = frame

    def _negotiate(self) -> None:
        try:
            if self._exchange is None:
                self._until_done(self._greet)
                # While the server answers.
                self._exchange = self._new_exchange()
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            reason = str(error.args[-1])
            if self._pre_shared_key:
                raise self._no_tls(reason) from error
            raise certificate_error(self._tls, self._host) or self._no_tls(reason) from error
        if self._pre_shared_key:
            require_key(self._tls)
        check_handshake(self._tls, external_psk=self._pre_shared_key)

    def _greet(self) -> None:
        """Sends the ClientHello."""
        with contextlib.suppress(SSL.WantReadError):
            self._tls.do_handshake()

    def _new_exchange(self) -> ClientExchange:
        return ClientExchange(
            lambda: facts_of(self._tls, "client", external_psk=self._pre_shared_key),
            self._attestation.settings,
            context=os.urandom(CONTEXT_BYTES),
            now=datetime.now(UTC),
        )

    def _attest(self) -> Outcome:
        exchange = self._exchange or self._new_exchange()
        try:
            return run_client_exchange(
                self._tls, exchange, issuer=self._attestation.issuer, keep_last=self._keep
            )
        except UnavailableError as error:
            if isinstance(error.__cause__, SSL.Error):
                # In TLS 1.3 a server refuses a client's certificate only after the handshake.
                raise self._no_tls(reason_of(error.__cause__)) from error
            raise

    def _no_tls(self, reason: str) -> UnavailableError:
        return UnavailableError(
            f"expected TLS 1.3 with {self._host}, got {reason!r}; check the port, and whether the "
            f"server wants a client certificate (--cert, --key) or a pre-shared key (--psk)"
        )
