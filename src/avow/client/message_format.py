"""How a received message is written: raw, with its topic, by a format, or as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from paho.mqtt.client import MQTTMessage
from paho.mqtt.properties import Properties

from avow.client.properties import properties_as_json, property_of
from avow.errors import MalformedError

Render = Callable[[MQTTMessage, datetime], bytes]

# The conversions of --format: letter, meaning (for the help), value.
CONVERSIONS: Mapping[str, tuple[str, Render]] = {
    "%": ("a percent sign", lambda message, when: b"%"),
    "t": ("topic", lambda message, when: message.topic.encode()),
    "p": ("payload, raw", lambda message, when: bytes(message.payload)),
    "x": ("payload in hexadecimal", lambda message, when: message.payload.hex().encode()),
    "X": (
        "payload in capital hexadecimal",
        lambda message, when: message.payload.hex().upper().encode(),
    ),
    "l": ("payload length in bytes", lambda message, when: b"%d" % len(message.payload)),
    "q": ("QoS", lambda message, when: b"%d" % message.qos),
    "r": ("retain flag", lambda message, when: b"%d" % message.retain),
    "m": ("packet identifier", lambda message, when: b"%d" % message.mid),
    "I": (
        "time of arrival, ISO 8601",
        lambda message, when: when.isoformat(timespec="milliseconds").encode(),
    ),
    "U": (
        "time of arrival, Unix seconds",
        lambda message, when: f"{when.timestamp():.6f}".encode(),
    ),
    "j": ("the message as JSON", lambda message, when: as_json(message, when)),
    "J": (
        "the same, with the payload parsed as JSON",
        lambda message, when: as_json(message, when, parse_payload=True),
    ),
    "C": ("content type", lambda message, when: _property_text(message, "ContentType")),
    "D": ("correlation data", lambda message, when: _property_text(message, "CorrelationData")),
    "E": (
        "message expiry interval",
        lambda message, when: _property_text(message, "MessageExpiryInterval"),
    ),
    "R": ("response topic", lambda message, when: _property_text(message, "ResponseTopic")),
    "S": (
        "subscription identifiers",
        lambda message, when: _property_text(message, "SubscriptionIdentifier"),
    ),
    "P": ("user properties", lambda message, when: _property_text(message, "UserProperty")),
}

_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}


def raw(message: MQTTMessage, when: datetime) -> bytes:
    """The payload and nothing else."""
    return bytes(message.payload)


def verbose(message: MQTTMessage, when: datetime) -> bytes:
    """Topic and payload."""
    return message.topic.encode() + b" " + bytes(message.payload)


def as_json(message: MQTTMessage, when: datetime, *, parse_payload: bool = False) -> bytes:
    """One JSON object. A payload that is not UTF-8 is in base64, under `payload_base64`."""
    content: dict[str, Any] = {
        "time": when.isoformat(timespec="milliseconds"),
        "topic": message.topic,
        "qos": message.qos,
        "retain": bool(message.retain),
        "payload_bytes": len(message.payload),
    }
    properties = properties_as_json(_properties(message))
    if properties:
        content["properties"] = properties
    try:
        text = message.payload.decode("utf-8")
    except UnicodeDecodeError:
        content["payload_base64"] = base64.b64encode(message.payload).decode()
    else:
        content["payload"] = _parsed(text) if parse_payload else text
    return json.dumps(content, ensure_ascii=False).encode()


def compile_format(template: str) -> Render:
    """A renderer for a format such as `%t: %p`. Raises `MalformedError` for unknown conversions."""
    pieces: list[bytes | Render] = []
    characters = iter(template)
    for character in characters:
        if character == "%":
            letter = next(characters, "")
            if letter not in CONVERSIONS:
                raise MalformedError(
                    f"expected one of %{' %'.join(CONVERSIONS)} in the format, got %{letter}; "
                    f"write %% for a percent sign"
                )
            pieces.append(CONVERSIONS[letter][1])
        elif character == "\\":
            letter = next(characters, "")
            if letter not in _ESCAPES:
                raise MalformedError(
                    f"expected one of \\n \\t \\r \\0 \\\\ in the format, got \\{letter}; "
                    f"write \\\\ for a backslash"
                )
            pieces.append(_ESCAPES[letter])
        else:
            pieces.append(character.encode())

    def render(message: MQTTMessage, when: datetime) -> bytes:
        return b"".join(
            piece if isinstance(piece, bytes) else piece(message, when) for piece in pieces
        )

    return render


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _properties(message: MQTTMessage) -> Properties | None:
    return message.properties


def _property_text(message: MQTTMessage, name: str) -> bytes:
    value = property_of(_properties(message), name)
    match value:
        case None:
            return b""
        case bytes():
            return value
        case list():
            return " ".join(
                f"{item[0]}:{item[1]}" if isinstance(item, tuple) else str(item) for item in value
            ).encode()
        case _:
            return str(value).encode()
