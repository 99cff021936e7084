"""MQTT 5.0 properties for tests: the table of section 2.2.2.2, an encoder and a strict decoder.

The encoder writes what it is told, in the order it is told, so that a test can also make a
property list that the specification forbids. The decoder accepts nothing that is not allowed.

Source: MQTT Version 5.0, OASIS Standard, sections 1.5 and 2.2.2.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from avow.errors import MalformedError

PropertyValue = int | str | bytes | tuple[str, str]


class PacketType(enum.IntEnum):
    """Control packet types (2.1.2); WILL stands for the Will Properties of a CONNECT."""

    WILL = 0
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


class Kind(enum.Enum):
    """Data types of section 1.5 that a property value can have."""

    BYTE = enum.auto()
    TWO_BYTES = enum.auto()
    FOUR_BYTES = enum.auto()
    VARIABLE = enum.auto()
    STRING = enum.auto()
    PAIR = enum.auto()
    BINARY = enum.auto()


class Property(enum.IntEnum):
    """Property identifiers (Table 2-4)."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


_P = Property
_T = PacketType

KINDS: dict[Property, Kind] = {
    _P.PAYLOAD_FORMAT_INDICATOR: Kind.BYTE,
    _P.MESSAGE_EXPIRY_INTERVAL: Kind.FOUR_BYTES,
    _P.CONTENT_TYPE: Kind.STRING,
    _P.RESPONSE_TOPIC: Kind.STRING,
    _P.CORRELATION_DATA: Kind.BINARY,
    _P.SUBSCRIPTION_IDENTIFIER: Kind.VARIABLE,
    _P.SESSION_EXPIRY_INTERVAL: Kind.FOUR_BYTES,
    _P.ASSIGNED_CLIENT_IDENTIFIER: Kind.STRING,
    _P.SERVER_KEEP_ALIVE: Kind.TWO_BYTES,
    _P.AUTHENTICATION_METHOD: Kind.STRING,
    _P.AUTHENTICATION_DATA: Kind.BINARY,
    _P.REQUEST_PROBLEM_INFORMATION: Kind.BYTE,
    _P.WILL_DELAY_INTERVAL: Kind.FOUR_BYTES,
    _P.REQUEST_RESPONSE_INFORMATION: Kind.BYTE,
    _P.RESPONSE_INFORMATION: Kind.STRING,
    _P.SERVER_REFERENCE: Kind.STRING,
    _P.REASON_STRING: Kind.STRING,
    _P.RECEIVE_MAXIMUM: Kind.TWO_BYTES,
    _P.TOPIC_ALIAS_MAXIMUM: Kind.TWO_BYTES,
    _P.TOPIC_ALIAS: Kind.TWO_BYTES,
    _P.MAXIMUM_QOS: Kind.BYTE,
    _P.RETAIN_AVAILABLE: Kind.BYTE,
    _P.USER_PROPERTY: Kind.PAIR,
    _P.MAXIMUM_PACKET_SIZE: Kind.FOUR_BYTES,
    _P.WILDCARD_SUBSCRIPTION_AVAILABLE: Kind.BYTE,
    _P.SUBSCRIPTION_IDENTIFIER_AVAILABLE: Kind.BYTE,
    _P.SHARED_SUBSCRIPTION_AVAILABLE: Kind.BYTE,
}

_MESSAGE = frozenset(
    {
        _P.PAYLOAD_FORMAT_INDICATOR,
        _P.MESSAGE_EXPIRY_INTERVAL,
        _P.CONTENT_TYPE,
        _P.RESPONSE_TOPIC,
        _P.CORRELATION_DATA,
        _P.USER_PROPERTY,
    }
)
_REASON = frozenset({_P.REASON_STRING, _P.USER_PROPERTY})

ALLOWED: dict[PacketType, frozenset[Property]] = {
    _T.WILL: _MESSAGE | {_P.WILL_DELAY_INTERVAL},
    _T.CONNECT: frozenset(
        {
            _P.SESSION_EXPIRY_INTERVAL,
            _P.AUTHENTICATION_METHOD,
            _P.AUTHENTICATION_DATA,
            _P.REQUEST_PROBLEM_INFORMATION,
            _P.REQUEST_RESPONSE_INFORMATION,
            _P.RECEIVE_MAXIMUM,
            _P.TOPIC_ALIAS_MAXIMUM,
            _P.USER_PROPERTY,
            _P.MAXIMUM_PACKET_SIZE,
        }
    ),
    _T.CONNACK: _REASON
    | {
        _P.SESSION_EXPIRY_INTERVAL,
        _P.ASSIGNED_CLIENT_IDENTIFIER,
        _P.SERVER_KEEP_ALIVE,
        _P.AUTHENTICATION_METHOD,
        _P.AUTHENTICATION_DATA,
        _P.RESPONSE_INFORMATION,
        _P.SERVER_REFERENCE,
        _P.RECEIVE_MAXIMUM,
        _P.TOPIC_ALIAS_MAXIMUM,
        _P.MAXIMUM_QOS,
        _P.RETAIN_AVAILABLE,
        _P.MAXIMUM_PACKET_SIZE,
        _P.WILDCARD_SUBSCRIPTION_AVAILABLE,
        _P.SUBSCRIPTION_IDENTIFIER_AVAILABLE,
        _P.SHARED_SUBSCRIPTION_AVAILABLE,
    },
    _T.PUBLISH: _MESSAGE | {_P.SUBSCRIPTION_IDENTIFIER, _P.TOPIC_ALIAS},
    _T.PUBACK: _REASON,
    _T.PUBREC: _REASON,
    _T.PUBREL: _REASON,
    _T.PUBCOMP: _REASON,
    _T.SUBSCRIBE: frozenset({_P.SUBSCRIPTION_IDENTIFIER, _P.USER_PROPERTY}),
    _T.SUBACK: _REASON,
    _T.UNSUBSCRIBE: frozenset({_P.USER_PROPERTY}),
    _T.UNSUBACK: _REASON,
    _T.PINGREQ: frozenset(),
    _T.PINGRESP: frozenset(),
    _T.DISCONNECT: _REASON | {_P.SESSION_EXPIRY_INTERVAL, _P.SERVER_REFERENCE},
    _T.AUTH: _REASON | {_P.AUTHENTICATION_METHOD, _P.AUTHENTICATION_DATA},
}

# Values that are a Protocol Error although their type is right (sections 3.1 to 3.3).
_NOT_ZERO = frozenset(
    {
        _P.RECEIVE_MAXIMUM,
        _P.MAXIMUM_PACKET_SIZE,
        _P.TOPIC_ALIAS,
        _P.SUBSCRIPTION_IDENTIFIER,
    }
)
_ZERO_OR_ONE = frozenset(
    {
        _P.PAYLOAD_FORMAT_INDICATOR,
        _P.REQUEST_PROBLEM_INFORMATION,
        _P.REQUEST_RESPONSE_INFORMATION,
        _P.MAXIMUM_QOS,
        _P.RETAIN_AVAILABLE,
        _P.WILDCARD_SUBSCRIPTION_AVAILABLE,
        _P.SUBSCRIPTION_IDENTIFIER_AVAILABLE,
        _P.SHARED_SUBSCRIPTION_AVAILABLE,
    }
)

VARIABLE_MAX = 268_435_455
"""Largest Variable Byte Integer (1.5.5)."""


def encode_variable(value: int) -> bytes:
    """Variable Byte Integer in its shortest form (1.5.5)."""
    if not 0 <= value <= VARIABLE_MAX:
        raise ValueError(f"a Variable Byte Integer is 0 to {VARIABLE_MAX}, not {value}")
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        if not value:
            out.append(low)
            return bytes(out)
        out.append(low | 0x80)


def encode_binary(data: bytes) -> bytes:
    """Binary Data (1.5.6)."""
    return struct.pack(">H", len(data)) + data


def encode_string(text: str | bytes) -> bytes:
    """UTF-8 Encoded String (1.5.4); bytes are taken as they are, ill-formed ones too."""
    return encode_binary(text.encode("utf-8") if isinstance(text, str) else text)


def encode_property(identifier: int, value: PropertyValue) -> bytes:
    """One property; an identifier outside the table is written with the type of the value."""
    head = encode_variable(identifier)
    kind = KINDS.get(Property(identifier)) if identifier in KINDS else None
    if isinstance(value, tuple):
        return head + encode_string(value[0]) + encode_string(value[1])
    if isinstance(value, str | bytes):
        return head + encode_string(value)
    if kind is Kind.TWO_BYTES:
        return head + struct.pack(">H", value)
    if kind is Kind.FOUR_BYTES:
        return head + struct.pack(">I", value)
    if kind is Kind.VARIABLE:
        return head + encode_variable(value)
    return head + bytes((value,))


@dataclass(slots=True)
class Properties:
    """An ordered list of (identifier, value); identifiers may repeat."""

    items: list[tuple[int, PropertyValue]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, PropertyValue]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, identifier: object) -> bool:
        return any(known == identifier for known, _ in self.items)

    def all(self, identifier: int) -> list[PropertyValue]:
        """Every value of one property, in order."""
        return [value for known, value in self.items if known == identifier]

    def get(self, identifier: int) -> PropertyValue | None:
        """The first value of one property, or None."""
        for known, value in self.items:
            if known == identifier:
                return value
        return None

    def integer(self, identifier: int) -> int | None:
        """The first value of a numeric property, or None when it is absent."""
        value = self.get(identifier)
        if value is not None and not isinstance(value, int):
            raise TypeError(f"property {identifier:#x} is not a number: {value!r}")
        return value

    @property
    def user(self) -> list[tuple[str, str]]:
        """The User Properties, in order."""
        return [v for v in self.all(Property.USER_PROPERTY) if isinstance(v, tuple)]

    def encode(self) -> bytes:
        """Property Length and properties."""
        body = b"".join(encode_property(identifier, value) for identifier, value in self.items)
        return encode_variable(len(body)) + body


def props(**named: PropertyValue | Iterable[PropertyValue]) -> Properties:
    """Properties by lower-case name; a list gives the property several times.

    props(session_expiry_interval=10, user_property=[("a", "1"), ("a", "2")])
    """
    items: list[tuple[int, PropertyValue]] = []
    for name, value in named.items():
        identifier = Property[name.upper()]
        if isinstance(value, int | str | bytes | tuple):
            items.append((identifier, value))
        else:
            items.extend((identifier, one) for one in value)
    return Properties(items)


class Reader:
    """Reads the data types of section 1.5 from one packet; never beyond its end."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return self.end - self.at

    def take(self, length: int) -> bytes:
        """Exactly `length` bytes."""
        if self.left < length:
            raise MalformedError(f"expected {length} bytes, {self.left} are left in the packet")
        start = self.at
        self.at += length
        return self.data[start : self.at]

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def two_bytes(self) -> int:
        """Two Byte Integer (1.5.2)."""
        return int.from_bytes(self.take(2), "big")

    def four_bytes(self) -> int:
        """Four Byte Integer (1.5.3)."""
        return int.from_bytes(self.take(4), "big")

    def variable(self) -> int:
        """Variable Byte Integer; longer than needed is an error [MQTT-1.5.5-1]."""
        value = 0
        for position in range(4):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * position)
            if not byte & 0x80:
                if byte == 0 and position > 0:
                    raise MalformedError("a Variable Byte Integer is longer than needed")
                return value
        raise MalformedError("a Variable Byte Integer has more than four bytes")

    def binary(self) -> bytes:
        """Binary Data (1.5.6)."""
        return self.take(self.two_bytes())

    def string(self) -> str:
        """UTF-8 Encoded String, well-formed and without U+0000 [MQTT-1.5.4-1] [MQTT-1.5.4-2]."""
        raw = self.binary()
        try:
            text = raw.decode("utf-8", "strict")
        except UnicodeDecodeError as error:
            raise MalformedError(f"ill-formed UTF-8: {raw!r}") from error
        if "\0" in text:
            raise MalformedError(f"a string holds U+0000: {text!r}")
        return text

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def finish(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise MalformedError(f"{self.left} bytes are left after the packet's last field")


def _value(reader: Reader, kind: Kind) -> PropertyValue:
    if kind is Kind.BYTE:
        return reader.byte()
    if kind is Kind.TWO_BYTES:
        return reader.two_bytes()
    if kind is Kind.FOUR_BYTES:
        return reader.four_bytes()
    if kind is Kind.VARIABLE:
        return reader.variable()
    if kind is Kind.STRING:
        return reader.string()
    if kind is Kind.PAIR:
        return (reader.string(), reader.string())
    return reader.binary()


def decode_properties(reader: Reader, packet: PacketType) -> Properties:
    """Property Length and properties of one packet; anything forbidden raises MalformedError."""
    length = reader.variable()
    if length == 0:
        return Properties()
    body = Reader(reader.take(length))
    items: list[tuple[int, PropertyValue]] = []
    seen: set[int] = set()
    allowed = ALLOWED[packet]
    while body.left:
        identifier = body.variable()
        if identifier not in allowed:
            raise MalformedError(f"property {identifier:#04x} is not allowed in {packet.name}")
        known = Property(identifier)
        value = _value(body, KINDS[known])
        repeatable = known is Property.USER_PROPERTY or (
            known is Property.SUBSCRIPTION_IDENTIFIER and packet is PacketType.PUBLISH
        )
        if known in seen and not repeatable:
            raise MalformedError(f"{known.name} occurs twice in {packet.name}")
        seen.add(known)
        if known in _NOT_ZERO and value == 0:
            raise MalformedError(f"{known.name} is 0")
        if known in _ZERO_OR_ONE and value not in (0, 1):
            raise MalformedError(f"{known.name} is {value!r}, not 0 or 1")
        items.append((known, value))
    return Properties(items)
