"""One attested connection for the sake of looking: nothing of MQTT is sent over it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from avow.channel.address import Address
from avow.client.attested_context import AttestedContext
from avow.client.attested_socket import Attestation
from avow.client.connection import network_errors
from avow.client.options import ClientTls, ConnectOptions
from avow.errors import AvowError


@dataclass(frozen=True, slots=True)
class Inspected:
    """What TLS said, and how the exchange in it ended.

    `certificate` is the server's, in DER; None with a pre-shared key. `failure` is why the exchange
    failed, None when it succeeded.
    """

    tls_version: str
    cipher_suite: str | None
    group: str | None
    certificate: bytes | None
    failure: AvowError | None


def inspect_server(address: Address, tls: ClientTls, attestation: Attestation) -> Inspected:
    """Connects and runs the exchange; its failure is part of the answer.

    Raises `UnavailableError` or `UntrustedError` when there is no TLS to speak over.
    """
    context = AttestedContext.of(attestation, tls)
    options = ConnectOptions(address)
    with network_errors(options):
        sock = socket.create_connection((address.host, address.port), options.timeout_s)
        attested = context.wrap_socket(
            sock, server_hostname=address.host, do_handshake_on_connect=False
        )
        with attested:
            attested.negotiate()
            failure: AvowError | None = None
            try:
                attested.do_handshake()
            except AvowError as error:
                failure = error
            return Inspected(
                tls_version=attested.version(),
                cipher_suite=attested.cipher(),
                group=attested.group(),
                certificate=attested.getpeercert(),
                failure=failure,
            )
