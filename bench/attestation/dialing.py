"""Ways to connect to a broker, up to CONNACK: by `ssl`, by avow's client, and by it with evidence.

The latter two are the sockets that paho-mqtt and aiomqtt are given, so that their ratio is what a
program pays for knowing what it talks to.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from OpenSSL import SSL

from avow.channel.exchange import CONTEXT_BYTES, ClientExchange, ClientSettings, Outcome
from avow.channel.judge import Judge
from avow.channel.session import facts_of
from avow.client.attested_context import AttestedContext
from avow.client.attested_socket import Attestation, AttestedSocket
from avow.client.openssl_context import client_context, expect_server
from avow.client.options import ClientTls
from avow.client.tls_socket import TlsSocket
from avow.errors import AvowError
from avow.policy.policy_file import parse_policy
from avow.tee.platforms import verifiers
from bench.brokers import HOST
from bench.tls_session import Session, open_socket

# MQTT 3.1.1, section 3.1: a clean session without a client identifier; the answer is section 3.2.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"
_CONNACK = b"\x20\x02\x00\x00"

# Which broker it is does not matter here: to verify and to judge costs the same.
_POLICY = """\
version = 1
name = "bench"
module = "any"
runtime = "any"
configuration = "any"
evidence_age_s = { min = -60, max = 60 }
"""
_POLICIES = {
    "simulated": 'unsafe_simulated = true\nplatform = "simulated"\n',
    "tpm": 'platform = "tpm"\ndebug = false\nmodule_measured = true\n'
    'tpm = {{ ak = "{ak}", ak_origin = "owner", pcr = "any" }}\n',
}


class DialError(Exception):
    """A connection did not come about; the message says at what."""


class Stream(Protocol):
    """A connection that has shaken hands."""

    def read(self, size: int, /) -> bytes: ...

    def write(self, content: bytes, /) -> int | None: ...

    def close(self) -> None: ...


@functools.cache
def settings(platform: str, ak: str = "") -> ClientSettings:
    """Every verifier, and a policy that accepts any broker on `platform`; on a TPM only the one
    with the attestation key `ak` (see `attestation_key`)."""
    policy = parse_policy(_POLICY + _POLICIES[platform].format(ak=ak), name="bench")
    return ClientSettings(Judge(verifiers(), policy))


def attestation_key(authority: Path, port: int) -> str:
    """What the broker's TPM signs with, in hexadecimal digits; empty if it has none.

    Errors: DialError.
    """
    way = Attested(authority, ClientSettings(Judge(verifiers(), policy=None)))
    stream = way.connect(port)
    stream.close()
    outcome = stream.outcome if isinstance(stream, AttestedSocket) else None
    claims = {} if outcome is None or outcome.verified is None else outcome.verified.claims
    key = claims.get("tpm.ak", b"")
    return key.hex() if isinstance(key, bytes) else ""


def attest(session: Session, settings: ClientSettings) -> Outcome:
    """The exchange, to its end. Errors: AvowError, and those of Session."""
    exchange = ClientExchange(
        facts_of(session.tls, "client"),
        settings,
        context=os.urandom(CONTEXT_BYTES),
        now=datetime.now(UTC),
    )
    session.write(exchange.to_send())
    while (outcome := exchange.outcome) is None:
        exchange.receive(session.read(exchange.needed))
        if content := exchange.to_send():
            session.write(content)
    return outcome


def greet(stream: Stream) -> None:
    """CONNECT and CONNACK."""
    stream.write(_CONNECT)
    answer = b""
    while len(answer) < len(_CONNACK):
        piece = stream.read(len(_CONNACK) - len(answer))
        if not piece:
            raise DialError("the broker closed the connection instead of a CONNACK")
        answer += piece
    if answer != _CONNACK:
        raise DialError(f"the broker answered {answer.hex()} to a CONNECT")


class StandardLibrary:
    """By `ssl`."""

    def __init__(self, authority: Path) -> None:
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3

    def connect(self, port: int) -> Stream:
        """To CONNACK. Errors: DialError."""
        with _as_dial_errors():
            sock = open_socket(HOST, port)
            return _greeted(self._context.wrap_socket(sock, server_hostname=HOST))


class Plain:
    """By avow's own client, without evidence."""

    def __init__(self, authority: Path) -> None:
        self._context = client_context(ClientTls(authority), datetime.now(UTC))

    def connect(self, port: int) -> Stream:
        """To CONNACK. Errors: DialError."""
        with _as_dial_errors():
            sock = open_socket(HOST, port)
            tls = SSL.Connection(self._context, sock)
            tls.set_connect_state()
            expect_server(tls, HOST)
            stream = TlsSocket(sock, tls)
            stream.do_handshake()
            return _greeted(stream)


class Attested:
    """By avow's own client, with evidence."""

    def __init__(self, authority: Path, settings: ClientSettings) -> None:
        self._context = AttestedContext.of(Attestation(settings), ClientTls(authority))

    def connect(self, port: int) -> Stream:
        """To CONNACK. Errors: DialError."""
        with _as_dial_errors():
            sock = open_socket(HOST, port)
            return _greeted(self._context.wrap_socket(sock, server_hostname=HOST))


@contextlib.contextmanager
def _as_dial_errors() -> Iterator[None]:
    try:
        yield
    except (AvowError, OSError, SSL.Error) as error:
        raise DialError(str(error) or type(error).__name__) from error


def _greeted(stream: Stream) -> Stream:
    try:
        greet(stream)
    except BaseException:
        stream.close()
        raise
    return stream
