"""aiomqtt against the broker: the asyncio client that users have, over every transport."""

from __future__ import annotations

import asyncio
import ssl

import aiomqtt
import pytest

from tests.integration.interop.endpoint import Endpoint

WAIT_S = 20.0


def client(
    endpoint: Endpoint,
    version: aiomqtt.ProtocolVersion = aiomqtt.ProtocolVersion.V5,
    will: aiomqtt.Will | None = None,
) -> aiomqtt.Client:
    """A client that is not connected yet."""
    return aiomqtt.Client(
        endpoint.host,
        endpoint.port,
        protocol=version,
        will=will,
        transport="websockets" if endpoint.websocket else "tcp",
        tls_context=ssl.create_default_context(cafile=str(endpoint.ca))
        if endpoint.encrypted
        else None,
        timeout=WAIT_S,
    )


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
def test_publish_and_subscribe(
    endpoint: Endpoint, topic: str, version: aiomqtt.ProtocolVersion
) -> None:
    async def walk() -> None:
        async with client(endpoint, version) as subscriber, client(endpoint, version) as publisher:
            await subscriber.subscribe(f"{topic}/#", qos=2)
            for qos in (0, 1, 2):
                await publisher.publish(f"{topic}/{qos}", bytes([qos]) * 1000, qos=qos)
            for qos in (0, 1, 2):
                message = await anext(subscriber.messages)
                assert str(message.topic) == f"{topic}/{qos}"
                assert (message.payload, message.qos) == (bytes([qos]) * 1000, qos)

    asyncio.run(asyncio.wait_for(walk(), WAIT_S))


def test_many_publishers_at_once(endpoint: Endpoint, topic: str) -> None:
    count = 20

    async def publish(number: int) -> None:
        async with client(endpoint) as publisher:
            for turn in range(10):
                await publisher.publish(f"{topic}/{number}", str(turn), qos=1)

    async def walk() -> None:
        seen: dict[str, list[int]] = {}
        async with client(endpoint) as subscriber:
            await subscriber.subscribe(f"{topic}/+", qos=1)
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    group.create_task(publish(number))
            for _ in range(count * 10):
                message = await anext(subscriber.messages)
                assert isinstance(message.payload, bytes)
                seen.setdefault(str(message.topic), []).append(int(message.payload))
        assert seen == {f"{topic}/{number}": list(range(10)) for number in range(count)}

    asyncio.run(asyncio.wait_for(walk(), 2 * WAIT_S))


def test_retained_message(endpoint: Endpoint, topic: str) -> None:
    async def walk() -> None:
        async with client(endpoint) as one:
            await one.publish(topic, b"kept", qos=1, retain=True)
        async with client(endpoint) as two:
            await two.subscribe(topic, qos=1)
            message = await anext(two.messages)
            assert (message.payload, message.retain) == (b"kept", True)
            await two.publish(topic, b"", qos=1, retain=True)

    asyncio.run(asyncio.wait_for(walk(), WAIT_S))
