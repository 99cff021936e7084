"""Commands for the core, to the byte: `docs/spec/core-abi.md`, section "Commands"."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from avow.errors import MalformedError


class CommandKind(enum.IntEnum):
    """The first byte of a command."""

    SETTINGS = 1
    ACL = 2
    AUTH_RESULT = 3
    DISCONNECT = 4
    DRAIN = 5
    RESPONSE_PREFIX = 6
    VERSION_TEXT = 7
    CONFIGURATION_CHANGES = 8
    WEB_ORIGINS = 9
    WEB_HOSTS = 10


class AuthOutcome(enum.IntEnum):
    """What the core shall do with a client that asked to log in."""

    CONTINUE = 0
    SUCCESS = 1
    REFUSE = 2


class ReasonCode(enum.IntEnum):
    """The reason codes that the host gives (MQTT 5.0, section 2.4)."""

    SUCCESS = 0x00
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_BUSY = 0x89
    BAD_AUTHENTICATION_METHOD = 0x8C


class AclEffect(enum.IntEnum):
    """What a rule does."""

    DENY = 0
    ALLOW = 1


class AclAccess(enum.IntFlag):
    """What a rule is about."""

    PUBLISH = 1
    SUBSCRIBE = 2


class AclPrincipal(enum.IntEnum):
    """Whom a rule is for."""

    ANYONE = 0
    NAMED_USER = 1
    ANONYMOUS = 2


@dataclass(frozen=True, slots=True)
class AclEntry:
    """One rule as the core takes it."""

    effect: AclEffect
    access: AclAccess
    principal: AclPrincipal
    user: str
    pattern: str
    module: bytes | None = None
    """Only for clients that have proven to be the module with this SHA-256 (32 bytes)."""
    tier_rank_min: int | None = None
    """Only for clients with evidence that is at least so good: 1 none, 2 warning, 3 affirming."""


def settings_command(values: Mapping[int, int]) -> bytes:
    """SETTINGS from values by key."""
    body = b"".join(struct.pack("<HQ", key, value) for key, value in values.items())
    return bytes([CommandKind.SETTINGS]) + body


def acl_command(entries: Iterable[AclEntry]) -> bytes:
    """ACL: replaces all rules."""
    rules = [
        struct.pack("<BBB", entry.effect, entry.access, entry.principal)
        + _conditions(entry)
        + _string(entry.user.encode())
        + _string(entry.pattern.encode())
        for entry in entries
    ]
    return struct.pack("<BI", CommandKind.ACL, len(rules)) + b"".join(rules)


def auth_result_command(
    connection: int,
    ticket: int,
    outcome: AuthOutcome,
    *,
    code: ReasonCode = ReasonCode.SUCCESS,
    user: str = "",
    data: bytes = b"",
    reason: str = "",
) -> bytes:
    """AUTH_RESULT: the answer to the event AUTH_REQUEST with the same connection and ticket."""
    head = struct.pack("<BIIBB", CommandKind.AUTH_RESULT, connection, ticket, outcome, code)
    return head + _string(user.encode()) + _string(data) + _string(reason.encode())


def disconnect_command(connection: int, code: ReasonCode) -> bytes:
    """DISCONNECT of one client."""
    return struct.pack("<BIB", CommandKind.DISCONNECT, connection, code)


def drain_command() -> bytes:
    """DRAIN: the orderly end of all connections."""
    return bytes([CommandKind.DRAIN])


def response_prefix_command(prefix: str) -> bytes:
    """RESPONSE_PREFIX: what response information starts with."""
    return bytes([CommandKind.RESPONSE_PREFIX]) + _string(prefix.encode())


def version_text_command(text: str) -> bytes:
    """VERSION_TEXT for `$SYS/broker/version`."""
    return bytes([CommandKind.VERSION_TEXT]) + _string(text.encode())


def configuration_changes_command() -> bytes:
    """CONFIGURATION_CHANGES: everybody who was admitted so far is disconnected, before the commands
    after this one."""
    return bytes([CommandKind.CONFIGURATION_CHANGES])


def web_origins_command(origins: Iterable[str]) -> bytes:
    """WEB_ORIGINS: the web pages that may open a WebSocket, beside those of the same origin."""
    return bytes([CommandKind.WEB_ORIGINS]) + _string("\n".join(origins).encode())


def web_hosts_command(hosts: Iterable[str]) -> bytes:
    """WEB_HOSTS: names that clients of WebSocket listeners know the server by."""
    return bytes([CommandKind.WEB_HOSTS]) + _string("\n".join(hosts).encode())


def _conditions(entry: AclEntry) -> bytes:
    flags = (1 if entry.module is not None else 0) | (2 if entry.tier_rank_min is not None else 0)
    rank = b"" if entry.tier_rank_min is None else bytes([entry.tier_rank_min])
    return bytes([flags]) + (entry.module or b"") + rank


def _string(content: bytes) -> bytes:
    if len(content) > 0xFFFF:
        raise MalformedError(
            f"expected at most 65535 bytes for the core, got {len(content)}; shorten the text"
        )
    return struct.pack("<H", len(content)) + content
