"""How `avow sub` writes messages and how `avow pub` reads properties."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes

from avow.client.message_format import CONVERSIONS, as_json, compile_format, raw, verbose
from avow.client.properties import new_properties, properties_as_json, publish_properties
from avow.errors import MalformedError

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def message(payload: bytes = b"21.5") -> MQTTMessage:
    made = MQTTMessage(mid=7, topic="home/küche".encode())
    made.payload = payload
    made.qos = 1
    made.retain = True
    properties = new_properties(PacketTypes.PUBLISH)
    properties.ContentType = "text/plain"
    properties.CorrelationData = b"\x01\x02"
    properties.MessageExpiryInterval = 60
    properties.ResponseTopic = "reply"
    properties.UserProperty = [("a", "1"), ("a", "2")]
    properties.SubscriptionIdentifier = [3, 4]
    made.properties = properties
    return made


def test_raw_and_verbose() -> None:
    assert raw(message(b"\xff\0"), WHEN) == b"\xff\0"
    assert verbose(message(), WHEN) == "home/küche 21.5".encode()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("%t: %p", "home/küche: 21.5"),
        ("%x %X %l", "32312e35 32312E35 4"),
        ("%q%r%m%%", "117%"),
        ("%I", "2026-01-02T03:04:05.678+00:00"),
        ("%U", "1767323045.678000"),
        ("%C|%D|%E|%R|%S|%P", "text/plain|\x01\x02|60|reply|3 4|a:1 a:2"),
        ("a\\tb\\n\\\\", "a\tb\n\\"),
        ("", ""),
    ],
)
def test_format(template: str, expected: str) -> None:
    assert compile_format(template)(message(), WHEN) == expected.encode()


@pytest.mark.parametrize("template", ["%z", "%", "\\q", "end\\"])
def test_unknown_conversions_are_named(template: str) -> None:
    with pytest.raises(MalformedError, match="expected one of"):
        compile_format(template)


def test_missing_properties_are_empty() -> None:
    bare = MQTTMessage(mid=1, topic=b"t")
    assert compile_format("[%C%D%E%R%S%P]")(bare, WHEN) == b"[]"


def test_json() -> None:
    assert json.loads(as_json(message(), WHEN)) == {
        "time": "2026-01-02T03:04:05.678+00:00",
        "topic": "home/küche",
        "qos": 1,
        "retain": True,
        "payload_bytes": 4,
        "payload": "21.5",
        "properties": {
            "content-type": "text/plain",
            "correlation-data": "AQI=",
            "message-expiry-interval": 60,
            "response-topic": "reply",
            "user-property": [{"a": "1"}, {"a": "2"}],
            "subscription-identifier": [3, 4],
        },
    }


def test_json_of_bytes_and_of_json() -> None:
    assert json.loads(as_json(message(b"\xff"), WHEN))["payload_base64"] == "/w=="
    parsed = compile_format("%J")
    assert json.loads(parsed(message(b'{"a": [1]}'), WHEN))["payload"] == {"a": [1]}
    assert json.loads(parsed(message(b"{"), WHEN))["payload"] == "{"


def test_every_conversion_has_a_meaning() -> None:
    for letter, (meaning, render) in CONVERSIONS.items():
        assert meaning
        assert isinstance(render(message(), WHEN), bytes), letter


def test_publish_properties() -> None:
    properties = publish_properties(
        [
            "content-type=text/plain",
            "correlation-data=a=b",
            "message-expiry-interval=5",
            "payload-format-indicator=1",
            "response-topic=r",
            "user-property=k=v=w",
            "user-property=k=",
        ]
    )
    assert properties_as_json(properties) == {
        "content-type": "text/plain",
        "correlation-data": "YT1i",
        "message-expiry-interval": 5,
        "payload-format-indicator": 1,
        "response-topic": "r",
        "user-property": [{"k": "v=w"}, {"k": ""}],
    }
    assert publish_properties([]) is None


@pytest.mark.parametrize(
    "assignment",
    [
        "content-type",
        "colour=red",
        "user-property=k",
        "message-expiry-interval=x",
        "message-expiry-interval=-1",
        "message-expiry-interval=4294967296",
        "payload-format-indicator=2",
    ],
)
def test_properties_that_cannot_be(assignment: str) -> None:
    with pytest.raises(MalformedError):
        publish_properties([assignment])
