"""SCRAM-SHA-256 (RFC 5802, RFC 7677) as MQTT 5.0's enhanced authentication, section 4.12.

The messages travel in Authentication Data: client-first in CONNECT (or the first AUTH of a
re-authentication), server-first and client-final in AUTH, server-final in CONNACK (or the last
AUTH). The mathematics and the messages are `scramp`'s.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from scramp import ScramException, ScramMechanism  # type: ignore[import-untyped]

from avow.errors import DeniedError, MalformedError

MECHANISM = "SCRAM-SHA-256"
# RFC 7677 asks for 4,096 at least. A client pays for them at each login, so a microcontroller sets
# the bound; the file is the only place where they matter, and it is readable for its owner only.
ITERATIONS = 60_000

_ITERATIONS_MIN = 4096
_ITERATIONS_MAX = 10_000_000
_SALT_BYTES = 32
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """What a SCRAM server knows of a password (RFC 5802, section 3).

    As text it has the form of RFC 5803: `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, in
    base64.
    """

    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    iterations: int

    def __str__(self) -> str:
        parts = (self.salt, self.stored_key, self.server_key)
        salt, stored, server = (base64.b64encode(part).decode() for part in parts)
        return f"{MECHANISM}${self.iterations}:{salt}${stored}:{server}"


def make_verifier(password: str) -> ScramVerifier:
    """A verifier with a fresh salt. Raises `MalformedError` when SASLprep forbids the password."""
    try:
        salt, stored_key, server_key, iterations = ScramMechanism(MECHANISM).make_auth_info(
            password, iteration_count=ITERATIONS, salt=secrets.token_bytes(_SALT_BYTES)
        )
    except ScramException as error:
        raise MalformedError(
            "expected a password of printable characters (SASLprep, RFC 4013), got some "
            "that are not; choose another password"
        ) from error
    return ScramVerifier(salt, stored_key, server_key, iterations)


def parse_verifier(text: str) -> ScramVerifier:
    """The verifier that `str` wrote. Raises `MalformedError`."""
    problem = MalformedError(
        "expected SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey, got something else; "
        "write it with `avow user add`"
    )
    try:
        mechanism, cost, keys = text.split("$")
        count, salt_text = cost.split(":")
        salt, stored_key, server_key = (
            base64.b64decode(part, validate=True) for part in (salt_text, *keys.split(":"))
        )
        iterations = int(count)
    except (ValueError, binascii.Error) as error:
        raise problem from error
    if (
        mechanism != MECHANISM
        or not _ITERATIONS_MIN <= iterations <= _ITERATIONS_MAX
        or len(salt) < 12
        or len(stored_key) != _KEY_BYTES
        or len(server_key) != _KEY_BYTES
    ):
        raise problem
    return ScramVerifier(salt, stored_key, server_key, iterations)


class DecoyVerifiers:
    """Verifiers for users that do not exist, so that an exchange does not reveal who does.

    The salt of a name stays the same while the process lives, as a real one would.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def for_name(self, name: str) -> ScramVerifier:
        """A verifier that no password fits."""
        salt = hmac.digest(self._key, name.encode(), hashlib.sha256)
        return ScramVerifier(
            salt, secrets.token_bytes(_KEY_BYTES), secrets.token_bytes(_KEY_BYTES), ITERATIONS
        )


class ScramExchange:
    """The server's side of one exchange: `first`, then `final`. Each raises `DeniedError`."""

    def __init__(self, find: Callable[[str], ScramVerifier]) -> None:
        self.user = ""
        self._find = find
        self._server = ScramMechanism(MECHANISM).make_server(self._look_up)

    def first(self, data: bytes) -> bytes:
        """server-first for client-first; afterwards `user` is the name that the client claims."""
        try:
            self._server.set_client_first(_text(data))
            return str(self._server.get_server_first()).encode()
        except ScramException as error:
            raise _refused(error) from error

    def final(self, data: bytes) -> bytes:
        """server-final for client-final: the client has proven that it knows the password."""
        try:
            self._server.set_client_final(_text(data))
            return str(self._server.get_server_final()).encode()
        except ScramException as error:
            raise _refused(error) from error

    def _look_up(self, name: str) -> tuple[bytes, bytes, bytes, int]:
        self.user = name
        verifier = self._find(name)
        return verifier.salt, verifier.stored_key, verifier.server_key, verifier.iterations


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DeniedError(
            "expected a SCRAM message in UTF-8, got other bytes; try again"
        ) from error


def _refused(error: ScramException) -> DeniedError:
    return DeniedError(f"expected a valid SCRAM-SHA-256 exchange, got: {error}; try again")
