"""One connection to a broker over paho-mqtt, with typed errors instead of result numbers."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from typing import Protocol as Shape

from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from avow.channel.certificate_words import certificate_advice
from avow.client.options import ConnectOptions, Protocol, client_tls_context
from avow.client.properties import new_properties
from avow.errors import (
    AvowError,
    DeniedError,
    MalformedError,
    UnavailableError,
    UntrustedError,
)

# A WebSocket URL without a path means what most brokers' documentation uses.
DEFAULT_WEBSOCKET_PATH = "/mqtt"
_SESSION_FOR_EVER = 2**32 - 1


class HasFileno(Shape):
    """A socket, or paho's wrapper around one."""

    def fileno(self) -> int:
        """The descriptor."""


def make_client(options: ConnectOptions) -> Client:
    """A client that is not connected yet. Raises `MalformedError` for impossible options."""
    address = options.address
    version = MQTTProtocolVersion.MQTTv5
    clean: dict[str, bool] = {}
    if options.protocol is Protocol.V311:
        version = MQTTProtocolVersion.MQTTv311
        clean = {"clean_session": not options.persistent}
    if options.persistent and not options.client_id:
        raise MalformedError(
            "expected a client identifier for a session that lasts, got none; name one with --id"
        )
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        protocol=version,
        transport="websockets" if address.scheme.websocket else "tcp",
        reconnect_on_failure=False,
        **clean,
    )
    client.connect_timeout = options.timeout_s
    client.on_socket_open = _send_at_once
    if address.scheme.websocket:
        client.ws_set_options(path=address.path or DEFAULT_WEBSOCKET_PATH)
    if address.scheme.encrypted:
        client.tls_set_context(_tls_context(options))
        client.tls_insecure_set(options.tls.unsafe_no_verify)
    user = options.user if options.user is not None else address.user
    if user is not None:
        client.username_pw_set(user, options.password)
    elif options.password is not None:
        raise MalformedError("expected a user name with the password, got none; add --user")
    _set_will(client, options)
    return client


def _tls_context(options: ConnectOptions) -> ssl.SSLContext:
    if options.attestation is None:
        return client_tls_context(options.tls)
    from avow.client.attested_context import AttestedContext

    return AttestedContext.of(options.attestation, options.tls)


def _send_at_once(client: Client, userdata: object, opened: HasFileno) -> None:
    """Switches Nagle's algorithm off, which paho leaves on.

    Not for speed alone: a socket that is closed while it has unread bytes is reset at once, and
    an acknowledgement that Nagle still holds back would be lost with it.
    """
    with socket.socket(fileno=os.dup(opened.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _set_will(client: Client, options: ConnectOptions) -> None:
    will = options.will
    if will is None:
        return
    properties = None
    if will.delay_s:
        if options.protocol is Protocol.V311:
            raise MalformedError(
                "expected MQTT 5 for a will delay, got an older version; leave out one of the "
                "two options"
            )
        properties = new_properties(PacketTypes.WILLMESSAGE)
        properties.WillDelayInterval = will.delay_s
    try:
        client.will_set(will.topic, will.payload, will.qos, will.retain, properties)
    except ValueError as error:
        raise MalformedError(
            f"expected a topic without wildcards for the will, got {will.topic!r}; correct it"
        ) from error


def open_connection(client: Client, options: ConnectOptions) -> None:
    """TCP, TLS and the CONNECT packet; the answer comes to `on_connect`.

    Raises `UnavailableError` or `UntrustedError`.
    """
    address = options.address
    properties = None
    clean_start: bool | Literal[3] = MQTT_CLEAN_START_FIRST_ONLY
    if options.protocol is Protocol.V5:
        properties = new_properties(PacketTypes.CONNECT)
        expiry_s = options.session_expiry_s
        if expiry_s is None and options.persistent:
            expiry_s = _SESSION_FOR_EVER
        if expiry_s is not None:
            properties.SessionExpiryInterval = expiry_s
        clean_start = not options.persistent
    with network_errors(options):
        client.connect(
            address.host,
            address.port,
            keepalive=options.keep_alive_s,
            properties=properties,
            clean_start=clean_start,
        )


@contextmanager
def network_errors(options: ConnectOptions) -> Iterator[None]:
    """Turns the errors of sockets and TLS into sentences."""
    address = options.address
    try:
        yield
    except AvowError:
        # Those of attested connections say what has to be said; they are OSErrors too.
        raise
    except ssl.SSLCertVerificationError as error:
        raise UntrustedError(
            f"expected a certificate for {address.host} from a trusted authority, got one that "
            f"fails with {error.verify_message!r}; {certificate_advice(error.verify_code)}"
        ) from error
    except ssl.SSLError as error:
        raise UnavailableError(
            f"expected TLS at {address}, got {error.reason or 'a broken handshake'!r}; "
            "check the URL, and whether the broker asks for a client certificate (--cert, "
            "--key)"
        ) from error
    except TimeoutError as error:
        raise UnavailableError(
            f"expected an answer from {address} within {options.timeout_s:g} s, got none; "
            f"check the address and the firewall"
        ) from error
    except ConnectionRefusedError as error:
        raise UnavailableError(
            f"expected a broker at {address}, got a refused connection; start it (avow broker) or "
            f"correct the URL"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UnavailableError(
            f"expected a broker at {address}, got {reason!r}; check the address"
        ) from error
    except ValueError as error:
        # paho's words for what it will not send.
        raise MalformedError(
            f"expected options that MQTT allows, got {error}; correct them"
        ) from error


def refused_connection(options: ConnectOptions, code: ReasonCode) -> DeniedError:
    """The broker's CONNACK says no."""
    return DeniedError(
        f"expected {options.address} to accept the connection, got {str(code)!r}; "
        f"check user name, password and client identifier"
    )


def lost_connection(
    options: ConnectOptions, code: ReasonCode | None, *, admitted: bool
) -> UnavailableError:
    """The connection ended before the work was done; `admitted`: after the broker's CONNACK."""
    address = options.address
    if not admitted:
        # A port for TLS or WebSocket ends a connection that begins with something else.
        return UnavailableError(
            f"expected an answer to CONNECT from {address}, got the end of the connection; see "
            f"that the port is one for {address.scheme.value}:// (a port for TLS needs mqtts:// or "
            f"wss://, one for WebSocket ws:// or wss://), and look into the broker's log"
        )
    reason = "a lost connection" if code is None or code == 0 else repr(str(code))
    return UnavailableError(
        f"expected {options.address} to keep the connection, got {reason}; try again"
    )


def is_gone(code: MQTTErrorCode) -> bool:
    """True when a turn of paho's loop says that the connection is over."""
    return code != MQTTErrorCode.MQTT_ERR_SUCCESS
