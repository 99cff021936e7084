"""paho-mqtt against the broker: every transport, every version, what users do with it."""

from __future__ import annotations

from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.integration.interop.endpoint import Endpoint
from tests.integration.interop.paho_peer import (
    WAIT_S,
    PahoPeer,
    connect_properties,
    publish_properties,
)

VERSIONS = pytest.mark.parametrize(
    "version",
    [MQTTProtocolVersion.MQTTv31, MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5],
    ids=["3.1", "3.1.1", "5.0"],
)
PAYLOADS = (b"", b"\x00", bytes(range(256)), b"x" * 127, b"x" * 70_000)


@VERSIONS
def test_payloads_arrive_unchanged_at_every_qos(
    endpoint: Endpoint, topic: str, version: MQTTProtocolVersion
) -> None:
    with PahoPeer(endpoint, version=version) as subscriber:
        assert subscriber.subscribe(f"{topic}/+", 2) == [2]
        with PahoPeer(endpoint, version=version) as publisher:
            for qos in (0, 1, 2):
                for payload in PAYLOADS:
                    publisher.publish(f"{topic}/{qos}", payload, qos)
        for qos in (0, 1, 2):
            for payload in PAYLOADS:
                message = subscriber.receive()
                assert (message.topic, message.qos) == (f"{topic}/{qos}", qos)
                assert message.payload == payload
        assert subscriber.messages.empty()


@VERSIONS
def test_many_messages_keep_their_order(
    endpoint: Endpoint, topic: str, version: MQTTProtocolVersion
) -> None:
    count = 500
    with PahoPeer(endpoint, version=version) as peer:
        peer.subscribe(topic, 2)
        for number in range(count):
            peer.client.publish(topic, str(number), qos=number % 3)
        received = [peer.receive() for _ in range(count)]
    for qos in (0, 1, 2):
        numbers = [int(m.payload) for m in received if m.qos == qos]
        assert numbers == list(range(qos, count, 3))


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
def test_a_burst_with_a_raised_window(
    endpoint: Endpoint, topic: str, version: MQTTProtocolVersion, qos: int
) -> None:
    """paho does not look at the server's Receive Maximum; 0: no window of its own either."""
    count = 3000
    with PahoPeer(endpoint, version=version, window=0) as peer:
        sent = [peer.client.publish(topic, str(n), qos=qos) for n in range(count)]
        for each in sent:
            each.wait_for_publish(WAIT_S)
        assert all(each.is_published() for each in sent)
        assert peer.client.is_connected()


@VERSIONS
def test_retained_message(endpoint: Endpoint, topic: str, version: MQTTProtocolVersion) -> None:
    with PahoPeer(endpoint, version=version) as peer:
        peer.publish(topic, b"kept", qos=1, retain=True)
        peer.subscribe(topic, 1)
        message = peer.receive()
        assert (message.payload, message.retain) == (b"kept", True)
        peer.publish(topic, b"", qos=1, retain=True)
        assert not peer.receive().payload
        with PahoPeer(endpoint, version=version) as late:
            late.subscribe(f"{topic}/#", 1)
            late.publish(f"{topic}/end", b"end", qos=1)
            assert late.receive().payload == b"end"


@VERSIONS
def test_will_of_a_broken_connection(
    endpoint: Endpoint, topic: str, version: MQTTProtocolVersion
) -> None:
    with PahoPeer(endpoint, version=version) as watcher:
        watcher.subscribe(topic, 1)
        PahoPeer(endpoint, version=version, will=(topic, b"gone")).break_off()
        assert watcher.receive().payload == b"gone"
        with PahoPeer(endpoint, version=version, will=(topic, b"never")):
            pass
        watcher.publish(topic, b"end", 1)
        assert watcher.receive().payload == b"end"


@VERSIONS
def test_session_waits_for_its_client(
    endpoint: Endpoint, topic: str, version: MQTTProtocolVersion
) -> None:
    v5 = version == MQTTProtocolVersion.MQTTv5
    properties = connect_properties(SessionExpiryInterval=60) if v5 else None
    name = f"waits-{topic.replace('/', '-')}"

    def peer() -> PahoPeer:
        return PahoPeer(
            endpoint, version=version, identifier=name, clean=False, properties=properties
        )

    with peer() as away:
        assert not away.session_present
        away.subscribe(topic, 2)
    with PahoPeer(endpoint, version=version) as publisher:
        for number in range(10):
            publisher.publish(topic, str(number).encode(), qos=1 + number % 2)
    with peer() as back:
        # MQTT 3.1 has no session present.
        assert back.session_present is (version != MQTTProtocolVersion.MQTTv31)
        assert sorted(int(back.receive().payload) for _ in range(10)) == list(range(10))
    with PahoPeer(endpoint, version=version, identifier=name) as fresh:
        assert not fresh.session_present


def test_properties_are_forwarded(endpoint: Endpoint, topic: str) -> None:
    sent: Any = publish_properties(
        UserProperty=[("a", "1"), ("b", "2"), ("a", "3")],
        ContentType="text/plain",
        ResponseTopic="answers/here",
        CorrelationData=b"\x00\xff",
        PayloadFormatIndicator=1,
        MessageExpiryInterval=60,
    )
    with PahoPeer(endpoint) as peer:
        peer.subscribe(topic, 1)
        peer.publish(topic, b"payload", 1, properties=sent)
        received: Any = peer.receive().properties
    forwarded, original = received.json(), sent.json()
    assert 58 <= forwarded.pop("MessageExpiryInterval") <= original.pop("MessageExpiryInterval")
    assert forwarded == original


def test_shared_subscription_gives_each_message_to_one(endpoint: Endpoint, topic: str) -> None:
    count = 100
    with PahoPeer(endpoint) as first, PahoPeer(endpoint) as second, PahoPeer(endpoint) as publisher:
        for member in (first, second):
            assert member.subscribe(f"$share/group/{topic}/#", 1) == [1]
        for number in range(count):
            publisher.publish(f"{topic}/work", str(number).encode(), 1)
        publisher.subscribe(f"{topic}/end")
        for member in (first, second):
            member.subscribe(f"{topic}/end")
        publisher.publish(f"{topic}/end", b"end")
        shares = [_until_end(member, f"{topic}/end") for member in (first, second)]
    assert sorted(shares[0] + shares[1]) == list(range(count))
    assert all(shares)


def _until_end(member: PahoPeer, end: str) -> list[int]:
    """What a member of the group got; its own subscription to `end` closes the list."""
    numbers: list[int] = []
    while True:
        message = member.receive()
        if message.payload == b"end":
            if message.topic == end:
                return numbers
            continue
        numbers.append(int(message.payload))


def test_no_local_and_retain_handling(endpoint: Endpoint, topic: str) -> None:
    with PahoPeer(endpoint) as peer, PahoPeer(endpoint) as other:
        peer.publish(topic, b"kept", 1, retain=True)
        peer.subscribe(topic, 1, noLocal=True, retainHandling=2)
        peer.publish(topic, b"own", 1)
        other.publish(topic, b"foreign", 1)
        assert peer.receive().payload == b"foreign"
        other.publish(topic, b"", 1, retain=True)


def test_client_identifier_is_assigned(endpoint: Endpoint) -> None:
    with PahoPeer(endpoint) as peer:
        assert peer.connect_code.value == 0
