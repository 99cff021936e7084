"""What a client is asked to do, as values: addresses, credentials, TLS, session, will."""

from __future__ import annotations

import enum
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from avow.channel.address import Address
from avow.channel.named_files import read_named_file
from avow.errors import MalformedError

if TYPE_CHECKING:
    # A plain connection needs none of what this loads.
    from avow.client.attested_socket import Attestation


class Protocol(enum.StrEnum):
    """The versions of MQTT, as users write them."""

    V5 = "5"
    V311 = "311"


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How the server is verified and who the client is.

    Without `cafile` the system's authorities count. `unsafe_no_verify` accepts any server. `psk` is
    a file with one pre-shared key, in place of certificates; for attested connections only.
    """

    cafile: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    unsafe_no_verify: bool = False
    psk: Path | None = None


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when the client disappears."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    delay_s: int = 0


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """One connection. `session_expiry_s` None: the session ends with the connection."""

    address: Address
    protocol: Protocol = Protocol.V5
    client_id: str = ""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    keep_alive_s: int = 60
    persistent: bool = False
    session_expiry_s: int | None = None
    tls: ClientTls = field(default_factory=ClientTls)
    # What the server has to show before it gets a byte of MQTT, and what we show it.
    attestation: Attestation | None = None
    will: Will | None = None
    timeout_s: float = 10.0


def client_tls_context(tls: ClientTls) -> ssl.SSLContext:
    """Raises `UnavailableError` or `MalformedError` that names the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.unsafe_no_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.cafile is None:
        context.load_default_certs()
    else:
        content = read_named_file(tls.cafile, "CA certificate")
        try:
            context.load_verify_locations(cadata=content.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise MalformedError(
                f"expected PEM certificates, got something else in {tls.cafile}; correct --cafile"
            ) from error
    if tls.certificate is not None:
        _load_client_certificate(context, tls.certificate, tls.key)
    elif tls.key is not None:
        raise MalformedError("expected --cert with --key, got none; name the certificate's file")
    return context


def _load_client_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    read_named_file(certificate, "client certificate")
    if key is not None:
        read_named_file(key, "private key")
    try:
        # The empty passphrase keeps OpenSSL from asking on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        place = certificate if key is None else f"{certificate} and {key}"
        raise MalformedError(
            f"expected a PEM certificate and its unencrypted private key, got something else in "
            f"{place}; name the two files that belong together with --cert and --key"
        ) from error
