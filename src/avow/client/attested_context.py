"""What paho-mqtt and aiomqtt are given in place of an `ssl.SSLContext`.

    from avow.client import AttestedContext

    context = AttestedContext("policy.toml", cafile="ca.pem")
    client.tls_set_context(context)                     # paho-mqtt
    aiomqtt.Client("host", 8883, tls_context=context)   # aiomqtt

Every connection, each reconnect too, is attested anew before a byte of MQTT is sent.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from OpenSSL import SSL

from avow.channel.exchange import Outcome
from avow.client.attested_socket import Attestation, AttestedSocket
from avow.client.connection_errors import peer_error
from avow.client.openssl_context import client_context, expect_server
from avow.client.options import ClientTls
from avow.client.wiring import AttestationFiles, attestation_of
from avow.errors import AvowError

if TYPE_CHECKING:
    # paho and aiomqtt ask type checkers for one. At run time it is none, on purpose: whatever else
    # takes an SSLContext (asyncio's transports, urllib) would speak TLS without any evidence, and
    # refuses this instead.
    _Shape = ssl.SSLContext
else:
    _Shape = object


class AttestedContext(_Shape):
    """Makes `AttestedSocket`s. May be shared by clients and threads.

    `policy` is the file of what is accepted. With `tee` ("auto", "tpm", ...) this program shows the
    evidence of the platform that it runs on as well. `endorsements` is a folder of what hardware
    vendors say. The rest is as usual with TLS: without `cafile` the system's authorities count, and
    `certfile` may hold the key too. `psk` is a file with one line `identity:key`, the key in
    hexadecimal digits: both sides know it, and nobody needs a certificate.

    Raises `MalformedError`, `UnavailableError` or `UntrustedError` for files that will not do.
    """

    _attestation: Attestation
    _tls: ClientTls
    _context: SSL.Context

    def __init__(
        self,
        policy: str | Path,
        *,
        tee: str | None = None,
        endorsements: str | Path | None = None,
        cafile: str | Path | None = None,
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        psk: str | Path | None = None,
        unsafe_no_verify: bool = False,
    ) -> None:
        files = AttestationFiles(Path(policy), tee, _path(endorsements))
        tls = ClientTls(
            _path(cafile), _path(certfile), _path(keyfile), unsafe_no_verify, _path(psk)
        )
        self._prepare(attestation_of(files), tls)

    @classmethod
    def of(cls, attestation: Attestation, tls: ClientTls) -> Self:
        """The context for an attestation that is put together already."""
        context = object.__new__(cls)
        context._prepare(attestation, tls)
        return context

    def attesting(self, attestation: Attestation) -> AttestedContext:
        """The same TLS with another attestation; nothing is read again."""
        context = object.__new__(type(self))
        context._attestation = attestation
        context._tls = self._tls
        context._context = self._context
        context._latest = None
        return context

    def _prepare(self, attestation: Attestation, tls: ClientTls) -> None:
        self._attestation = attestation
        self._tls = tls
        self._context = client_context(tls, datetime.now(UTC))
        self._latest: AttestedSocket | None = None

    def close(self) -> None:
        """Ends what makes this program's own evidence, if it shows any; no connection is made
        after that. For programs that go on without."""
        if self._attestation.issuer is not None:
            self._attestation.issuer.stop()

    @property
    def outcome(self) -> Outcome | None:
        """What the server of the latest connection has shown; None if it was not accepted."""
        return None if self._latest is None else self._latest.outcome

    @property
    def failure(self) -> AvowError | None:
        """Why the latest connection was refused: paho's and aiomqtt's own errors have no findings.

        None when it was not, or when the network and not attestation was the reason.
        """
        return None if self._latest is None else self._latest.failure

    @property
    def check_hostname(self) -> bool:
        """True unless made with `unsafe_no_verify`. paho reads it, and `tls_insecure_set` sets it:
        what was not made unsafe cannot become so."""
        return not self._tls.unsafe_no_verify

    @check_hostname.setter
    def check_hostname(self, value: bool) -> None:
        if not value and not self._tls.unsafe_no_verify:
            raise ValueError(
                "expected the server's certificate to be verified, got verification turned "
                "off; pass unsafe_no_verify=True to AttestedContext if you mean it"
            )

    def wrap_socket(  # type: ignore[override]
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: Any = None,
    ) -> AttestedSocket:
        """An attested connection over a connected `sock`, which it owns from now on.

        The handshake is made here only if `do_handshake_on_connect` says so. Raises `ValueError`
        for what does not go together with attestation.
        """
        if server_side or session is not None:
            raise ValueError(
                "expected a client's new connection, got a server's or a saved session; "
                "connect without a session, as a resumed one proves nothing"
            )
        host = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        if host is None and self.check_hostname:
            raise ValueError("expected server_hostname, got none; pass the server's name")
        try:
            attested = self._attested(sock, host)
        except AvowError as error:
            sock.close()
            raise peer_error(error) from error
        self._latest = attested
        if do_handshake_on_connect:
            attested.do_handshake()
        return attested

    def _attested(self, sock: socket.socket, host: str | None) -> AttestedSocket:
        with contextlib.suppress(OSError):
            # Not a TCP socket: then it has no such delay either. An exchange is a dialogue, and
            # neither paho nor aiomqtt switches Nagle's algorithm off.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = SSL.Connection(self._context, sock)
        connection.set_connect_state()
        if host is not None:
            expect_server(connection, host)
        return AttestedSocket(
            sock,
            connection,
            host=host or "the server",
            attestation=self._attestation,
            pre_shared_key=self._tls.psk is not None,
        )


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)
