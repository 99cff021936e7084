"""Ways to connect to a broker, up to CONNACK: by `ssl`, by pyOpenSSL, and attested by pyOpenSSL.

The plain and the attested connection share every line but the exchange, so that their ratio is that
of the exchange. `ssl`, which is written in C, shows what of the time is the client's Python.
"""

from __future__ import annotations

import functools
import os
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from OpenSSL import SSL

from avow.channel.exchange import CONTEXT_BYTES, ClientExchange, ClientSettings, Outcome
from avow.channel.judge import Judge
from avow.channel.session import facts_of
from avow.errors import AvowError
from avow.policy.policy_file import parse_policy
from avow.tee.platforms import verifiers
from bench.brokers import HOST
from bench.tls_session import Session, client_context, open_socket

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


@functools.cache
def settings(platform: str, ak: str = "") -> ClientSettings:
    """Every verifier, and a policy that accepts any broker on `platform`; on a TPM only the one
    with the attestation key `ak` (see `attestation_key`)."""
    policy = parse_policy(_POLICY + _POLICIES[platform].format(ak=ak), name="bench")
    return ClientSettings(Judge(verifiers(), policy))


def attestation_key(authority: Path, port: int) -> str:
    """What the broker's TPM signs with, in hexadecimal digits; empty if it has none.

    Errors: AvowError, and those of Session.
    """
    session = Session(client_context(authority), HOST, port)
    try:
        outcome = attest(session, ClientSettings(Judge(verifiers(), policy=None)))
    finally:
        session.close()
    key = b"" if outcome.verified is None else outcome.verified.claims.get("tpm.ak", b"")
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
    """Connects by `ssl`."""

    def __init__(self, authority: Path) -> None:
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3

    def connect(self, port: int) -> None:
        """To CONNACK, and away. Errors: DialError."""
        try:
            sock = open_socket(HOST, port)
            with self._context.wrap_socket(sock, server_hostname=HOST) as stream:
                greet(stream)
        except OSError as error:
            raise DialError(str(error)) from error


class PyOpenSsl:
    """Connects by pyOpenSSL; attested, if there are settings for it."""

    def __init__(self, authority: Path, settings: ClientSettings | None = None) -> None:
        self._context = client_context(authority)
        self._settings = settings

    def connect(self, port: int) -> None:
        """To CONNACK, and away. Errors: DialError."""
        try:
            session = Session(self._context, HOST, port)
            try:
                if self._settings is not None:
                    attest(session, self._settings)
                greet(session)
            finally:
                session.close()
        except (AvowError, OSError, SSL.Error) as error:
            raise DialError(str(error) or type(error).__name__) from error
