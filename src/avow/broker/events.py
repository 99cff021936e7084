"""Events from the core, decoded: `docs/spec/core-abi.md`, section "Events"."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from avow.errors import MalformedError, counted

# The versions of MQTT by the number that the core gives them.
PROTOCOLS: Final = {3: "3.1", 4: "3.1.1", 5: "5.0"}


class EventKind(enum.IntEnum):
    """The byte after an event's length."""

    AUTH_REQUEST = 1
    CONNECTED = 2
    DISCONNECTED = 3
    COMMAND_FAILED = 4
    DRAINED = 5
    REFUSED = 6


class AuthFlag(enum.IntFlag):
    """What an AUTH_REQUEST has and is."""

    USER_NAME = 1
    PASSWORD = 2
    METHOD = 4
    REAUTHENTICATION = 8
    CONTINUATION = 16


class EndedBy(enum.IntEnum):
    """Who ended a connection."""

    CLIENT = 0
    BROKER = 1
    NETWORK = 2


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """A client wants to log in, goes on with an exchange, or authenticates again."""

    connection: int
    ticket: int
    protocol: int
    flags: AuthFlag
    client: str
    user: str
    password: bytes = field(repr=False)
    method: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Connected:
    """A client has been accepted. `keep_alive_s` is the one in force."""

    connection: int
    protocol: int
    session_present: bool
    clean_start: bool
    keep_alive_s: int
    client: str
    user: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection has ended. `accepted`: it had a successful CONNACK; before that `client` and
    `user` are what the CONNECT claimed, if one came. `told`: what the host said, or was told by
    another event, was the reason. `refusals` were not reported one by one."""

    connection: int
    code: int
    by: EndedBy
    accepted: bool
    told: bool
    refusals: int
    client: str
    user: str
    text: str


class Action(enum.IntEnum):
    """What was refused."""

    PUBLISH = 1
    SUBSCRIBE = 2
    WILL = 3
    KEPT_WILL = 4


class Cause(enum.IntEnum):
    """Why, where the reason code is 0x87 (not authorized)."""

    REASON_CODE = 0
    RULE = 1
    NO_RULE = 2
    RESERVED_TOPIC = 3


@dataclass(frozen=True, slots=True)
class Refused:
    """Something on a connection was refused. `rule` counts from 1 where `cause` is RULE; before
    this one `unreported` were refused that no event told of. Long texts are cut off."""

    connection: int
    action: Action
    code: int
    cause: Cause
    rule: int
    unreported: int
    client: str
    user: str
    topic: str


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """The core could not do what it was told."""

    command: int
    text: str


@dataclass(frozen=True, slots=True)
class Drained:
    """After DRAIN: the last connection is gone."""


Event = AuthRequest | Connected | Disconnected | Refused | CommandFailed | Drained

Value = TypeVar("Value", bound=enum.IntEnum)

_HEAD = struct.Struct("<IB3x")
_LENGTH = struct.Struct("<I")


class _Body:
    """Reads the fields of one event in order."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0

    def fixed(self, form: str) -> tuple[int, ...]:
        try:
            values: tuple[int, ...] = struct.unpack_from(form, self._content, self._at)
        except struct.error as error:
            raise _malformed(f"an event body of {counted(len(self._content), 'byte')}") from error
        self._at += struct.calcsize(form)
        return values

    def bytes(self) -> bytes:
        (length,) = self.fixed("<I")
        end = self._at + length
        if end > len(self._content):
            raise _malformed("a string that ends after its event")
        value = bytes(self._content[self._at : end])
        self._at = end
        return value

    def text(self) -> str:
        try:
            return self.bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed("a string that is not UTF-8") from error

    def end(self) -> None:
        if self._at != len(self._content):
            left = counted(len(self._content) - self._at, "byte")
            raise _malformed(f"{left} after the last field")


def decode_events(blob: bytes) -> Iterator[Event]:
    """All events of one turn, in order. Raises `MalformedError`: core and host do not match."""
    view = memoryview(blob)
    at = 0
    while at < len(view):
        if len(view) - at < _HEAD.size:
            raise _malformed("the beginning of an event")
        length, kind = _HEAD.unpack_from(view, at)
        if length < _HEAD.size or at + length > len(view):
            raise _malformed(f"an event of {length} bytes")
        yield _decode(kind, _Body(view[at + _HEAD.size : at + length]))
        at += length


def _decode(kind: int, body: _Body) -> Event:
    event: Event
    match kind:
        case EventKind.AUTH_REQUEST:
            connection, ticket, protocol, flags, _ = body.fixed("<IIBBH")
            event = AuthRequest(
                connection,
                ticket,
                protocol,
                AuthFlag(flags),
                client=body.text(),
                user=body.text(),
                password=body.bytes(),
                method=body.text(),
                data=body.bytes(),
            )
        case EventKind.CONNECTED:
            connection, protocol, flags, keep_alive_s = body.fixed("<IBBH")
            event = Connected(
                connection,
                protocol,
                bool(flags & 1),
                bool(flags & 2),
                keep_alive_s,
                client=body.text(),
                user=body.text(),
            )
        case EventKind.DISCONNECTED:
            connection, code, by, flags, refusals = body.fixed("<IBBBxI")
            event = Disconnected(
                connection,
                code,
                _known(EndedBy, by),
                bool(flags & 1),
                bool(flags & 2),
                refusals,
                client=body.text(),
                user=body.text(),
                text=body.text(),
            )
        case EventKind.REFUSED:
            connection, action, code, cause, rule, unreported = body.fixed("<IBBBxII")
            event = Refused(
                connection,
                _known(Action, action),
                code,
                _known(Cause, cause),
                rule,
                unreported,
                client=body.text(),
                user=body.text(),
                topic=body.text(),
            )
        case EventKind.COMMAND_FAILED:
            (command,) = body.fixed("<I")
            event = CommandFailed(command, text=body.text())
        case EventKind.DRAINED:
            event = Drained()
        case _:
            raise _malformed(f"the event kind {kind}")
    body.end()
    return event


def _known(values: type[Value], number: int) -> Value:
    try:
        return values(number)
    except ValueError as error:
        raise _malformed(f"{values.__name__} {number}") from error


def _malformed(what: str) -> MalformedError:
    return MalformedError(
        f"expected events of layout version 3 from the core, got {what}; "
        f"install core and package from one build"
    )
