"""A small, exact MQTT codec for tests, from the client's side.

Packets that a client sends can be built in any shape, deliberately wrong ones included. Packets
that a server sends are decoded strictly: whatever the specification forbids raises
MalformedError, so every test also checks the form of everything that the broker says.

Sources: MQTT Version 5.0 (OASIS Standard, 7 March 2019) and MQTT Version 3.1.1 (29 October 2014).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from avow.errors import MalformedError
from avow.testing.mqtt_properties import (
    PacketType,
    Properties,
    Property,
    Reader,
    decode_properties,
    encode_binary,
    encode_string,
    encode_variable,
    props,
)

__all__ = [
    "Auth",
    "Connack",
    "Connect",
    "Disconnect",
    "Filter",
    "Packet",
    "PacketType",
    "Pingreq",
    "Pingresp",
    "Properties",
    "Property",
    "Puback",
    "Pubcomp",
    "Publish",
    "Pubrec",
    "Pubrel",
    "StreamDecoder",
    "Suback",
    "Subscribe",
    "Unsuback",
    "Unsubscribe",
    "Will",
    "decode",
    "frame",
    "props",
]

PropertyField = Properties | bytes
"""Properties, or the bytes of a whole property field with its length, to send a wrong one."""

_CONNACK_CODES_5 = frozenset(
    {0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, *range(0x99, 0x9E), 0x9F}
)
_PUBACK_CODES = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})
_PUBREL_CODES = frozenset({0x00, 0x92})
_SUBACK_CODES = frozenset({0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2})
_UNSUBACK_CODES = frozenset({0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91})
# Table 3-10 without 0x04, which only a client sends.
_DISCONNECT_CODES = frozenset(
    {0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, *range(0x93, 0xA3)}
)
# 0x19 (re-authenticate) is the client's (Table 3-11).
_AUTH_CODES = frozenset({0x00, 0x18})


def frame(
    kind: int, flags: int, body: bytes, *, remaining_length: bytes | int | None = None
) -> bytes:
    """A control packet from its parts; `remaining_length` replaces the true one (bytes: as is)."""
    if remaining_length is None:
        length = encode_variable(len(body))
    elif isinstance(remaining_length, int):
        length = encode_variable(remaining_length)
    else:
        length = remaining_length
    return bytes((kind << 4 | flags,)) + length + body


def _field(properties: PropertyField) -> bytes:
    return properties if isinstance(properties, bytes) else properties.encode()


def _empty(properties: PropertyField) -> bool:
    return not isinstance(properties, bytes) and not len(properties)


@dataclass(slots=True)
class Will:
    """Will of a CONNECT."""

    topic: str | bytes
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    properties: PropertyField = field(default_factory=Properties)


@dataclass(slots=True)
class Connect:
    """CONNECT (3.1). `flags`, `protocol_name`, `level` and `trailing` make wrong ones.

    `bridge` is the top bit of the level, with which a broker says that it is one.
    """

    client_id: str | bytes = ""
    version: int = 5
    clean_start: bool = True
    keep_alive_s: int = 0
    username: str | bytes | None = None
    password: bytes | None = None
    will: Will | None = None
    properties: PropertyField = field(default_factory=Properties)
    flags: int | None = None
    protocol_name: bytes | None = None
    level: int | None = None
    bridge: bool = False
    header_flags: int = 0
    trailing: bytes = b""

    def connect_flags(self) -> int:
        """The Connect Flags byte that belongs to the fields (3.1.2.3)."""
        flags = 0x02 if self.clean_start else 0
        if self.will is not None:
            flags |= 0x04 | self.will.qos << 3 | (0x20 if self.will.retain else 0)
        if self.password is not None:
            flags |= 0x40
        if self.username is not None:
            flags |= 0x80
        return flags

    def encode(self) -> bytes:
        """The packet's bytes."""
        flags = self.connect_flags() if self.flags is None else self.flags
        level = self.version if self.level is None else self.level
        if self.bridge:
            level |= 0x80
        name = self.protocol_name
        if name is None:
            name = b"MQIsdp" if self.version == 3 else b"MQTT"
        out = [
            encode_binary(name),
            struct.pack(">BBH", level, flags, self.keep_alive_s),
        ]
        if self.version == 5:
            out.append(_field(self.properties))
        out.append(encode_string(self.client_id))
        if self.will is not None:
            if self.version == 5:
                out.append(_field(self.will.properties))
            out += [encode_string(self.will.topic), encode_binary(self.will.payload)]
        if self.username is not None:
            out.append(encode_string(self.username))
        if self.password is not None:
            out.append(encode_binary(self.password))
        out.append(self.trailing)
        return frame(PacketType.CONNECT, self.header_flags, b"".join(out))


@dataclass(slots=True)
class Connack:
    """CONNACK (3.2)."""

    session_present: bool
    code: int
    properties: Properties = field(default_factory=Properties)


@dataclass(slots=True)
class Publish:
    """PUBLISH (3.3), both ways."""

    topic: str | bytes
    payload: bytes = b""
    qos: int = 0
    packet_id: int | None = None
    retain: bool = False
    dup: bool = False
    properties: PropertyField = field(default_factory=Properties)

    def encode(self, version: int = 5) -> bytes:
        """The packet's bytes; a packet identifier is written whenever it is given."""
        out = encode_string(self.topic)
        if self.packet_id is not None:
            out += struct.pack(">H", self.packet_id)
        if version == 5:
            out += _field(self.properties)
        flags = (8 if self.dup else 0) | self.qos << 1 | (1 if self.retain else 0)
        return frame(PacketType.PUBLISH, flags, out + self.payload)

    @property
    def text(self) -> str:
        """The topic as text."""
        return self.topic if isinstance(self.topic, str) else self.topic.decode("utf-8")

    @property
    def props(self) -> Properties:
        """The properties; of a received packet they are never raw bytes."""
        if isinstance(self.properties, bytes):
            raise TypeError("raw property bytes of a packet to be sent have no values")
        return self.properties


@dataclass(slots=True)
class _Acknowledgement:
    """PUBACK and its like; the short forms of 3.4.2 are used where they are allowed."""

    kind: ClassVar[PacketType]
    flags: ClassVar[int] = 0

    packet_id: int
    code: int = 0
    properties: PropertyField = field(default_factory=Properties)

    def encode(self, version: int = 5) -> bytes:
        """The packet's bytes."""
        out = struct.pack(">H", self.packet_id)
        if version == 5 and (self.code or not _empty(self.properties)):
            out += bytes((self.code,))
            if not _empty(self.properties):
                out += _field(self.properties)
        return frame(self.kind, self.flags, out)


class Puback(_Acknowledgement):
    """PUBACK (3.4)."""

    kind = PacketType.PUBACK


class Pubrec(_Acknowledgement):
    """PUBREC (3.5)."""

    kind = PacketType.PUBREC


class Pubrel(_Acknowledgement):
    """PUBREL (3.6); its flags are 0b0010."""

    kind = PacketType.PUBREL
    flags = 2


class Pubcomp(_Acknowledgement):
    """PUBCOMP (3.7)."""

    kind = PacketType.PUBCOMP


@dataclass(slots=True)
class Filter:
    """One topic filter with its subscription options (3.8.3.1)."""

    filter: str | bytes
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    reserved: int = 0

    def options(self) -> int:
        """The options byte."""
        return (
            self.qos
            | (4 if self.no_local else 0)
            | (8 if self.retain_as_published else 0)
            | self.retain_handling << 4
            | self.reserved << 6
        )


@dataclass(slots=True)
class Subscribe:
    """SUBSCRIBE (3.8); its flags are 0b0010."""

    packet_id: int
    filters: Sequence[Filter]
    properties: PropertyField = field(default_factory=Properties)
    header_flags: int = 2

    def encode(self, version: int = 5) -> bytes:
        """The packet's bytes."""
        out = [struct.pack(">H", self.packet_id)]
        if version == 5:
            out.append(_field(self.properties))
        for one in self.filters:
            out += [encode_string(one.filter), bytes((one.options(),))]
        return frame(PacketType.SUBSCRIBE, self.header_flags, b"".join(out))


@dataclass(slots=True)
class Suback:
    """SUBACK (3.9)."""

    packet_id: int
    codes: list[int]
    properties: Properties = field(default_factory=Properties)


@dataclass(slots=True)
class Unsubscribe:
    """UNSUBSCRIBE (3.10); its flags are 0b0010."""

    packet_id: int
    filters: Sequence[str | bytes]
    properties: PropertyField = field(default_factory=Properties)
    header_flags: int = 2

    def encode(self, version: int = 5) -> bytes:
        """The packet's bytes."""
        out = struct.pack(">H", self.packet_id)
        if version == 5:
            out += _field(self.properties)
        out += b"".join(encode_string(one) for one in self.filters)
        return frame(PacketType.UNSUBSCRIBE, self.header_flags, out)


@dataclass(slots=True)
class Unsuback:
    """UNSUBACK (3.11); MQTT 3.1.1 has no codes."""

    packet_id: int
    codes: list[int]
    properties: Properties = field(default_factory=Properties)


@dataclass(slots=True)
class Pingreq:
    """PINGREQ (3.12)."""

    def encode(self, version: int = 5) -> bytes:
        """The packet's bytes, the same in every version."""
        return frame(PacketType.PINGREQ, 0, b"")


@dataclass(slots=True)
class Pingresp:
    """PINGRESP (3.13)."""


@dataclass(slots=True)
class Disconnect:
    """DISCONNECT (3.14)."""

    code: int = 0
    properties: PropertyField = field(default_factory=Properties)

    def encode(self, version: int = 5) -> bytes:
        """The packet's bytes, in the shortest form that says everything."""
        out = b""
        if version == 5 and (self.code or not _empty(self.properties)):
            out = bytes((self.code,))
            if not _empty(self.properties):
                out += _field(self.properties)
        return frame(PacketType.DISCONNECT, 0, out)


@dataclass(slots=True)
class Auth:
    """AUTH (3.15)."""

    code: int = 0
    properties: PropertyField = field(default_factory=Properties)

    def encode(self, version: int = 5) -> bytes:
        """The packet's bytes."""
        return frame(PacketType.AUTH, 0, bytes((self.code,)) + _field(self.properties))

    @property
    def props(self) -> Properties:
        """The properties; of a received packet they are never raw bytes."""
        if isinstance(self.properties, bytes):
            raise TypeError("raw property bytes of a packet to be sent have no values")
        return self.properties


ToServer = (
    Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Unsubscribe
    | Pingreq
    | Disconnect
    | Auth
)
Packet = (
    Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Suback
    | Unsuback
    | Pingresp
    | Disconnect
    | Auth
)


def _check(code: int, allowed: frozenset[int], packet: PacketType) -> int:
    if code not in allowed:
        raise MalformedError(f"reason code {code:#04x} does not exist for {packet.name}")
    return code


def _packet_id(reader: Reader) -> int:
    packet_id = reader.two_bytes()
    if packet_id == 0:
        raise MalformedError("a packet identifier is 0")
    return packet_id


def _decode_connack(reader: Reader, version: int) -> Connack:
    flags = reader.byte()
    if flags & 0xFE:
        raise MalformedError(f"CONNACK flags {flags:#04x}: bits 7-1 are reserved [MQTT-3.2.2-1]")
    code = reader.byte()
    if version == 5:
        _check(code, _CONNACK_CODES_5, PacketType.CONNACK)
        properties = decode_properties(reader, PacketType.CONNACK)
    else:
        _check(code, frozenset({0, 1, 2, 3, 4, 5}), PacketType.CONNACK)
        if version == 3 and flags:
            raise MalformedError("CONNACK with a session present, which MQTT 3.1 does not have")
        properties = Properties()
    if code and flags:
        raise MalformedError("CONNACK refuses and says session present [MQTT-3.2.2-6]")
    return Connack(bool(flags), code, properties)


def _decode_publish(reader: Reader, version: int, flags: int) -> Publish:
    qos = flags >> 1 & 3
    if qos == 3:
        raise MalformedError("PUBLISH with QoS 3 [MQTT-3.3.1-4]")
    if qos == 0 and flags & 8:
        raise MalformedError("PUBLISH with QoS 0 and DUP [MQTT-3.3.1-2]")
    topic = reader.string()
    if "#" in topic or "+" in topic:
        raise MalformedError(f"topic name {topic!r} has a wildcard [MQTT-3.3.2-2]")
    packet_id = _packet_id(reader) if qos else None
    properties = Properties()
    if version == 5:
        properties = decode_properties(reader, PacketType.PUBLISH)
    if not topic and Property.TOPIC_ALIAS not in properties:
        raise MalformedError("PUBLISH without a topic name and without a topic alias")
    return Publish(
        topic=topic,
        payload=reader.rest(),
        qos=qos,
        packet_id=packet_id,
        retain=bool(flags & 1),
        dup=bool(flags & 8),
        properties=properties,
    )


_ACKNOWLEDGEMENTS: dict[PacketType, tuple[type[Puback | Pubrec | Pubrel | Pubcomp], frozenset[int]]]
_ACKNOWLEDGEMENTS = {
    PacketType.PUBACK: (Puback, _PUBACK_CODES),
    PacketType.PUBREC: (Pubrec, _PUBACK_CODES),
    PacketType.PUBREL: (Pubrel, _PUBREL_CODES),
    PacketType.PUBCOMP: (Pubcomp, _PUBREL_CODES),
}


def _decode_acknowledgement(
    reader: Reader, version: int, kind: PacketType
) -> Puback | Pubrec | Pubrel | Pubcomp:
    make, codes = _ACKNOWLEDGEMENTS[kind]
    packet = make(_packet_id(reader))
    if version == 5 and reader.left:
        packet.code = _check(reader.byte(), codes, kind)
        if reader.left:
            packet.properties = decode_properties(reader, kind)
    return packet


def _decode_suback(reader: Reader, version: int) -> Suback:
    packet_id = _packet_id(reader)
    properties = Properties()
    codes = frozenset({0, 1, 2, 0x80})
    if version == 5:
        properties = decode_properties(reader, PacketType.SUBACK)
        codes = _SUBACK_CODES
    answers = [_check(code, codes, PacketType.SUBACK) for code in reader.rest()]
    if not answers:
        raise MalformedError("SUBACK without a reason code")
    return Suback(packet_id, answers, properties)


def _decode_unsuback(reader: Reader, version: int) -> Unsuback:
    packet_id = _packet_id(reader)
    if version != 5:
        return Unsuback(packet_id, [])
    properties = decode_properties(reader, PacketType.UNSUBACK)
    answers = [_check(code, _UNSUBACK_CODES, PacketType.UNSUBACK) for code in reader.rest()]
    if not answers:
        raise MalformedError("UNSUBACK without a reason code")
    return Unsuback(packet_id, answers, properties)


def _decode_disconnect(reader: Reader, version: int) -> Disconnect:
    if version != 5:
        raise MalformedError("a server of MQTT 3.1.1 never sends DISCONNECT")
    packet = Disconnect()
    if reader.left:
        packet.code = _check(reader.byte(), _DISCONNECT_CODES, PacketType.DISCONNECT)
        if reader.left:
            packet.properties = decode_properties(reader, PacketType.DISCONNECT)
            if Property.SESSION_EXPIRY_INTERVAL in packet.properties:
                raise MalformedError("a server's DISCONNECT has session expiry [MQTT-3.14.2-2]")
    return packet


def _decode_auth(reader: Reader, version: int) -> Auth:
    if version != 5:
        raise MalformedError("MQTT 3.1.1 has no AUTH")
    packet = Auth()
    if reader.left:
        packet.code = _check(reader.byte(), _AUTH_CODES, PacketType.AUTH)
        packet.properties = decode_properties(reader, PacketType.AUTH)
        if Property.AUTHENTICATION_METHOD not in packet.properties:
            raise MalformedError("AUTH without an authentication method (3.15.2.2.2)")
    return packet


def decode(kind: int, flags: int, body: bytes, version: int = 5) -> Packet:
    """One packet from a server. Raises MalformedError for everything that is not allowed."""
    reader = Reader(body)
    packet: Packet
    if kind == PacketType.PUBLISH:
        return _decode_publish(reader, version, flags)
    expected_flags = 2 if kind == PacketType.PUBREL else 0
    if flags != expected_flags:
        raise MalformedError(f"packet type {kind} has flags {flags:#x} [MQTT-2.1.3-1]")
    if kind == PacketType.CONNACK:
        packet = _decode_connack(reader, version)
    elif kind in _ACKNOWLEDGEMENTS:
        packet = _decode_acknowledgement(reader, version, PacketType(kind))
    elif kind == PacketType.SUBACK:
        packet = _decode_suback(reader, version)
    elif kind == PacketType.UNSUBACK:
        packet = _decode_unsuback(reader, version)
    elif kind == PacketType.PINGRESP:
        packet = Pingresp()
    elif kind == PacketType.DISCONNECT:
        packet = _decode_disconnect(reader, version)
    elif kind == PacketType.AUTH:
        packet = _decode_auth(reader, version)
    else:
        raise MalformedError(f"a server never sends packet type {kind}")
    reader.finish()
    return packet


class StreamDecoder:
    """Cuts the bytes from a server into packets."""

    __slots__ = ("_buffer", "sizes", "version")

    def __init__(self, version: int = 5) -> None:
        self.version = version
        self._buffer = b""
        self.sizes: list[int] = []

    @property
    def pending(self) -> int:
        """Bytes of a packet that is not yet complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Packet]:
        """All packets that `data` completes; their sizes in bytes are appended to `sizes`."""
        buffer = self._buffer + data if self._buffer else data
        packets: list[Packet] = []
        at = 0
        while len(buffer) - at >= 2:
            length, header = _remaining_length(buffer, at)
            if length < 0 or len(buffer) - at < header + length:
                break
            first = buffer[at]
            body = buffer[at + header : at + header + length]
            packets.append(decode(first >> 4, first & 0x0F, body, self.version))
            self.sizes.append(header + length)
            at += header + length
        self._buffer = buffer[at:]
        return packets


def _remaining_length(buffer: bytes, at: int) -> tuple[int, int]:
    """(length, header bytes); length -1: more bytes are needed."""
    byte = buffer[at + 1]
    if byte < 0x80:
        return byte, 2
    reader = Reader(buffer, at + 1, min(len(buffer), at + 5))
    if reader.left < 4 and all(b & 0x80 for b in buffer[at + 1 : at + 5]):
        return -1, 0
    value = reader.variable()
    return value, reader.at - at


def duplicate(packet: Publish) -> Publish:
    """The same PUBLISH with DUP, as a client sends it again after a reconnect [MQTT-3.3.1-1]."""
    return replace(packet, dup=True)
