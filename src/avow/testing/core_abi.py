"""The core's ABI as numbers: records, commands, settings, events (docs/spec/core-abi.md)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from avow.errors import MalformedError

MAGIC = 0x574F5641
LAYOUT_VERSION = 3
NO_DEADLINE = 2**64 - 1

LAYOUT_FIELDS = (
    "magic",
    "layout_version",
    "layout_bytes",
    "input_address",
    "input_capacity",
    "input_record_bytes",
    "arena_address",
    "arena_bytes",
    "output_address",
    "output_capacity",
    "output_record_bytes",
    "result_address",
    "result_bytes",
    "stats_address",
    "stats_count",
    "panic_address",
    "panic_bytes",
)

INPUT_RECORD = struct.Struct("<IHHII")
OUTPUT_RECORD = struct.Struct("<IHHII")
RESULT_RECORD = struct.Struct("<QIIIIQIIQQQ")


class Input(enum.IntEnum):
    """Kinds of input records."""

    OPEN = 1
    DATA = 2
    CLOSED = 3
    WRITABLE = 4
    COMMAND = 5


class ClosedBy(enum.IntEnum):
    """Flags of a CLOSED input."""

    PEER = 0
    ERROR = 1
    DEADLINE = 2
    CONFIRM = 3


class Transport(enum.IntEnum):
    """Transport of a connection."""

    MQTT = 0
    WEBSOCKET = 1


CLOSE, PAUSE, RESUME, ABORT, HOLD = 1, 2, 4, 8, 16
BLOCKED, FAILED = 0x100, 0x200


class Setting(enum.IntEnum):
    """Keys of the SETTINGS command."""

    MAXIMUM_PACKET_BYTES = 1
    RECEIVE_MAXIMUM = 2
    TOPIC_ALIAS_MAXIMUM = 3
    KEEP_ALIVE_MAX_S = 4
    SESSION_EXPIRY_MAX_S = 5
    QUEUED_BYTES_MAX = 6
    QUEUED_MESSAGES_MAX = 7
    INFLIGHT_MAX = 8
    SUBSCRIPTIONS_MAX = 9
    TOPIC_LEVELS_MAX = 10
    MEMORY_BUDGET_BYTES = 11
    RETAINED_MESSAGES_MAX = 12
    SYS_INTERVAL_MS = 13
    CONNECT_TIMEOUT_MS = 14
    MAXIMUM_QOS = 15
    RETAIN_AVAILABLE = 16
    WILDCARD_AVAILABLE = 17
    SUBSCRIPTION_IDENTIFIERS_AVAILABLE = 18
    SHARED_AVAILABLE = 19
    TOPIC_ALIAS_OUT_MAXIMUM = 20
    PERSIST_SESSIONS = 21
    WILL_DELAY_MAX_S = 22
    DENIALS_EXPLAINED = 23


class Access(enum.IntFlag):
    """Access bits of an ACL rule."""

    PUBLISH = 1
    SUBSCRIBE = 2
    BOTH = 3


class Principal(enum.IntEnum):
    """Whom an ACL rule is about."""

    ANYONE = 0
    USER = 1
    ANONYMOUS = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """One ACL rule; the first that matches decides."""

    allow: bool
    pattern: str
    access: Access = Access.BOTH
    principal: Principal = Principal.ANYONE
    user: str = ""
    module: bytes | None = None
    rank_min: int | None = None

    def encode(self) -> bytes:
        """Body of the rule in an ACL command."""
        return (
            bytes((self.allow, self.access, self.principal, self._conditions()))
            + (self.module or b"")
            + (b"" if self.rank_min is None else bytes((self.rank_min,)))
            + string16(self.user)
            + string16(self.pattern)
        )

    def _conditions(self) -> int:
        return (1 if self.module is not None else 0) | (2 if self.rank_min is not None else 0)


@dataclass(frozen=True, slots=True)
class Attestation:
    """What a connection has proven: the rank of its tier (1 to 3) and its module (32 bytes)."""

    rank: int
    module: bytes = bytes(32)


class Outcome(enum.IntEnum):
    """Outcome of an AUTH_RESULT command."""

    CONTINUE = 0
    SUCCESS = 1
    REFUSE = 2


def string16(text: str | bytes) -> bytes:
    """A string of a command: u16 length and bytes."""
    raw = text.encode("utf-8") if isinstance(text, str) else text
    return struct.pack("<H", len(raw)) + raw


def settings_command(values: Iterable[tuple[int, int]]) -> bytes:
    """SETTINGS."""
    return b"\x01" + b"".join(struct.pack("<HQ", key, value) for key, value in values)


def acl_command(rules: Iterable[Rule]) -> bytes:
    """ACL: replaces all rules."""
    encoded = [rule.encode() for rule in rules]
    return b"\x02" + struct.pack("<I", len(encoded)) + b"".join(encoded)


def auth_result_command(
    connection: int,
    ticket: int,
    outcome: Outcome,
    *,
    code: int = 0,
    user: str = "",
    data: bytes = b"",
    reason: str = "",
) -> bytes:
    """AUTH_RESULT."""
    head = struct.pack("<BIIBB", 3, connection, ticket, outcome, code)
    return head + string16(user) + string16(data) + string16(reason)


def disconnect_command(connection: int, code: int) -> bytes:
    """DISCONNECT of one connection."""
    return struct.pack("<BIB", 4, connection, code)


DRAIN_COMMAND = b"\x05"


def response_prefix_command(prefix: str) -> bytes:
    """RESPONSE_PREFIX."""
    return b"\x06" + string16(prefix)


def version_text_command(text: str) -> bytes:
    """VERSION_TEXT."""
    return b"\x07" + string16(text)


CONFIGURATION_CHANGES_COMMAND = b"\x08"


def web_origins_command(*origins: str) -> bytes:
    """WEB_ORIGINS."""
    return b"\x09" + string16("\n".join(origins))


def web_hosts_command(*hosts: str) -> bytes:
    """WEB_HOSTS."""
    return b"\x0a" + string16("\n".join(hosts))


def open_information(
    transport: Transport,
    *,
    allow_anonymous: bool = True,
    identity: str | None = None,
    attestation: Attestation | None = None,
    name_proven: bool = False,
) -> bytes:
    """Open information of an OPEN input."""
    flags = (1 if allow_anonymous else 0) | (2 if identity is not None else 0)
    flags |= 8 if name_proven else 0
    proof = b""
    if attestation is not None:
        flags |= 4
        proof = bytes((attestation.rank,)) + attestation.module
    return bytes((transport, flags)) + string16(identity or "") + proof


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """The core asks the host to authenticate."""

    connection: int
    ticket: int
    version: int
    has_username: bool
    has_password: bool
    has_method: bool
    reauthentication: bool
    continuation: bool
    client_id: str
    username: str
    password: bytes
    method: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Connected:
    """A client has connected."""

    connection: int
    version: int
    session_present: bool
    clean_start: bool
    keep_alive_s: int
    client_id: str
    username: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection has ended. `by`: 0 the client's DISCONNECT, 1 the broker, 2 the network."""

    connection: int
    code: int
    by: int
    accepted: bool
    told: bool
    refusals: int
    client_id: str
    username: str
    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A publish (action 1), subscription (2), will (3) or kept will (4) was refused. `cause`: 0 see
    the code, 1 the rule, 2 no rule fits, 3 a topic of the broker's own."""

    connection: int
    action: int
    code: int
    cause: int
    rule: int
    unreported: int
    client_id: str
    username: str
    topic: str


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """A command was malformed or impossible."""

    command: int
    text: str


@dataclass(frozen=True, slots=True)
class Drained:
    """After DRAIN, the last connection is gone."""


Event = AuthRequest | Connected | Disconnected | CommandFailed | Drained | Refused


class _EventReader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise MalformedError("an event of the core ends too early")
        values: tuple[int, ...] = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return values

    def raw(self) -> bytes:
        (length,) = self.take("<I")
        if self.at + length > len(self.data):
            raise MalformedError("a string of an event is longer than the event")
        self.at += length
        return self.data[self.at - length : self.at]

    def text(self) -> str:
        return self.raw().decode("utf-8")

    def finish(self) -> None:
        if self.at != len(self.data):
            raise MalformedError(f"{len(self.data) - self.at} bytes too many in an event")


def _auth_request(reader: _EventReader) -> AuthRequest:
    connection, ticket, version, flags, zero = reader.take("<IIBBH")
    if zero:
        raise MalformedError("reserved bytes of AUTH_REQUEST are not 0")
    return AuthRequest(
        connection=connection,
        ticket=ticket,
        version=version,
        has_username=bool(flags & 1),
        has_password=bool(flags & 2),
        has_method=bool(flags & 4),
        reauthentication=bool(flags & 8),
        continuation=bool(flags & 16),
        client_id=reader.text(),
        username=reader.text(),
        password=reader.raw(),
        method=reader.text(),
        data=reader.raw(),
    )


def _connected(reader: _EventReader) -> Connected:
    connection, version, flags, keep_alive_s = reader.take("<IBBH")
    return Connected(
        connection,
        version,
        bool(flags & 1),
        bool(flags & 2),
        keep_alive_s,
        reader.text(),
        reader.text(),
    )


def _disconnected(reader: _EventReader) -> Disconnected:
    connection, code, by, flags, zero, refusals = reader.take("<IBBBBI")
    if zero or by > 2 or flags > 3:
        raise MalformedError(f"DISCONNECTED event: by {by}, flags {flags}, reserved {zero}")
    return Disconnected(
        connection,
        code,
        by,
        bool(flags & 1),
        bool(flags & 2),
        refusals,
        reader.text(),
        reader.text(),
        reader.text(),
    )


def _refused(reader: _EventReader) -> Refused:
    connection, action, code, cause, zero, rule, unreported = reader.take("<IBBBBII")
    if zero or not 1 <= action <= 4 or cause > 3 or (rule != 0) != (cause == 1):
        raise MalformedError(
            f"REFUSED event: {action}, cause {cause}, rule {rule}, reserved {zero}"
        )
    texts = reader.text(), reader.text(), reader.text()
    return Refused(connection, action, code, cause, rule, unreported, *texts)


def _event(kind: int, body: bytes) -> Event:
    reader = _EventReader(body)
    event: Event
    if kind == 1:
        event = _auth_request(reader)
    elif kind == 2:
        event = _connected(reader)
    elif kind == 3:
        event = _disconnected(reader)
    elif kind == 4:
        (command,) = reader.take("<I")
        event = CommandFailed(command, reader.text())
    elif kind == 5:
        event = Drained()
    elif kind == 6:
        event = _refused(reader)
    else:
        raise MalformedError(f"event kind {kind} is not known")
    reader.finish()
    return event


def decode_events(data: bytes) -> list[Event]:
    """All events of one turn; anything that core-abi.md does not describe is an error."""
    events = []
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise MalformedError("an event is shorter than its head")
        length, kind, zero = struct.unpack_from("<IB3s", data, at)
        if length < 8 or at + length > len(data) or zero != b"\0\0\0":
            raise MalformedError(f"an event has length {length} and reserved bytes {zero!r}")
        events.append(_event(kind, data[at + 8 : at + length]))
        at += length
    return events
