"""MQTT 5 publish properties, from `NAME=VALUE` to paho's objects and on to JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from avow.errors import MalformedError

# The names of section 2.2.2.2 of MQTT 5.0 in small letters, with the attribute that paho uses.
PUBLISH_PROPERTIES: Mapping[str, str] = {
    "content-type": "ContentType",
    "correlation-data": "CorrelationData",
    "message-expiry-interval": "MessageExpiryInterval",
    "payload-format-indicator": "PayloadFormatIndicator",
    "response-topic": "ResponseTopic",
    "user-property": "UserProperty",
}

_U32_MAX = 2**32 - 1


def new_properties(packet_type: int) -> Properties:
    """Empty properties for a packet of `PacketTypes`."""
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def publish_properties(assignments: Sequence[str]) -> Properties | None:
    """Properties of a PUBLISH from `NAME=VALUE` texts, `user-property=KEY=VALUE` among them.

    Raises `MalformedError`.
    """
    if not assignments:
        return None
    properties = new_properties(PacketTypes.PUBLISH)
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in PUBLISH_PROPERTIES:
            raise MalformedError(
                f"expected NAME=VALUE with one of the names {', '.join(PUBLISH_PROPERTIES)}, got "
                f"{assignment!r}; correct it"
            )
        setattr(properties, PUBLISH_PROPERTIES[name], _CONVERSIONS.get(name, str)(value))
    return properties


def _user_property(value: str) -> list[tuple[str, str]]:
    key, equals, text = value.partition("=")
    if not equals:
        raise MalformedError(
            f"expected user-property=KEY=VALUE, got user-property={value}; add the value"
        )
    return [(key, text)]


def _bounded(longest: int) -> Callable[[str], int]:
    def convert(value: str) -> int:
        if not value.isascii() or not value.isdigit() or int(value) > longest:
            raise MalformedError(
                f"expected a number from 0 to {longest}, got {value!r}; correct the property"
            )
        return int(value)

    return convert


_CONVERSIONS: Mapping[str, Callable[[str], Any]] = {
    "correlation-data": str.encode,
    "message-expiry-interval": _bounded(_U32_MAX),
    "payload-format-indicator": _bounded(1),
    "user-property": _user_property,
}


def property_of(properties: Properties | None, name: str) -> Any:
    """The value of one property, or None when the packet has none of this name."""
    return None if properties is None else getattr(properties, name, None)


def properties_as_json(properties: Properties | None) -> dict[str, Any]:
    """All properties that a received PUBLISH has, under their names in small letters."""
    found: dict[str, Any] = {}
    for name, attribute in {
        **PUBLISH_PROPERTIES,
        "subscription-identifier": "SubscriptionIdentifier",
        "topic-alias": "TopicAlias",
    }.items():
        value = property_of(properties, attribute)
        if value is None:
            continue
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        if name == "user-property":
            value = [{key: text} for key, text in value]
        found[name] = value
    return found
