"""paho-mqtt and aiomqtt over attested connections, and what they do when a broker changes."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiomqtt
import pytest
from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from avow.client import AttestedContext, DeniedPeerError, UntrustedPeerError
from avow.testing.attested_peer import MODULE, forward_to, stripped_answer
from tests.integration.attested_endpoint import AttestedEndpoint, attested_endpoint
from tests.integration.service_process import ServiceProcess, service

PATIENCE_S = 20.0
OTHER_MODULE = bytes(32)


@pytest.fixture(scope="module")
def broker() -> Iterator[ServiceProcess]:
    with service("--listen", "mqtt://127.0.0.1:0", "--listen", "ws://127.0.0.1:0") as running:
        yield running


@pytest.fixture
def endpoint(broker: ServiceProcess, tmp_path: Path) -> Iterator[AttestedEndpoint]:
    with attested_endpoint(tmp_path, forward_to(broker.port())) as endpoint:
        yield endpoint


@dataclass
class Paho:
    """A paho client with a thread of its own; what happens to it goes into queues."""

    client: Client
    connected: queue.SimpleQueue[bool] = field(default_factory=queue.SimpleQueue)
    failed: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)
    messages: queue.SimpleQueue[MQTTMessage] = field(default_factory=queue.SimpleQueue)
    subscribed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def paho(
    endpoint: AttestedEndpoint,
    context: AttestedContext,
    transport: Literal["tcp", "websockets"] = "tcp",
) -> Iterator[Paho]:
    client = Client(
        CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5, transport=transport
    )
    running = Paho(client)
    client.tls_set_context(context)
    client.reconnect_delay_set(1, 1)
    if transport == "websockets":
        client.ws_set_options(path="/mqtt")

    def on_connect(
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        running.connected.put(not code.is_failure)

    client.on_connect = on_connect
    client.on_connect_fail = lambda *_: running.failed.put(None)
    client.on_message = lambda _client, _userdata, message: running.messages.put(message)
    client.on_subscribe = lambda *_: running.subscribed.set()
    client.connect("localhost", endpoint.peer.port)
    client.loop_start()
    try:
        assert running.connected.get(timeout=PATIENCE_S)
        yield running
    finally:
        client.disconnect()
        client.loop_stop()


def subscribe(running: Paho, topic: str) -> None:
    running.subscribed.clear()
    running.client.subscribe(topic, 2)
    assert running.subscribed.wait(PATIENCE_S)


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
def test_paho_sends_and_receives(
    broker: ServiceProcess,
    endpoint: AttestedEndpoint,
    transport: Literal["tcp", "websockets"],
) -> None:
    if transport == "websockets":
        endpoint.peer.change(serve=forward_to(broker.port("ws")))
    context = endpoint.context()
    payloads = [b"", b"x", bytes(range(256)) * 3000]
    with paho(endpoint, context, transport) as running:
        subscribe(running, f"paho/{transport}")
        for qos in (0, 1, 2):
            for payload in payloads:
                running.client.publish(f"paho/{transport}", payload, qos)
        got = [running.messages.get(timeout=PATIENCE_S) for _ in range(9)]
        for qos in (0, 1, 2):
            assert [each.payload for each in got if each.qos == qos] == payloads
    assert context.outcome is not None


def test_paho_publishes_from_many_threads(endpoint: AttestedEndpoint) -> None:
    with paho(endpoint, endpoint.context()) as running:
        subscribe(running, "threads/#")

        def publish(name: int) -> None:
            for number in range(100):
                running.client.publish(f"threads/{name}", bytes(2000) + bytes([number]), 1)

        threads = [threading.Thread(target=publish, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        got: dict[str, list[int]] = {}
        for _ in range(400):
            message = running.messages.get(timeout=PATIENCE_S)
            got.setdefault(message.topic, []).append(message.payload[-1])
        for thread in threads:
            thread.join(PATIENCE_S)
    assert got == {f"threads/{name}": list(range(100)) for name in range(4)}


def test_paho_refuses_at_first(endpoint: AttestedEndpoint) -> None:
    endpoint.peer.run(OTHER_MODULE)
    with pytest.raises(DeniedPeerError, match="P4"), paho(endpoint, endpoint.context()):
        pass


def test_paho_attests_every_reconnect(endpoint: AttestedEndpoint) -> None:
    """Another module after the first connection is refused, and so is one that says nothing; the
    client's thread lives on, and comes back to the right one."""
    context = endpoint.context()
    with paho(endpoint, context) as running:
        first = context.outcome
        endpoint.peer.drop_all()
        assert running.connected.get(timeout=PATIENCE_S)
        assert context.outcome is not first
        for conduct, kind in (
            ({}, DeniedPeerError),
            ({"first_word": stripped_answer()}, UntrustedPeerError),
        ):
            endpoint.peer.run(OTHER_MODULE)
            endpoint.peer.change(**conduct)
            endpoint.peer.drop_all()
            while running.failed.get(timeout=PATIENCE_S) is None and not isinstance(
                context.failure, kind
            ):
                pass
            assert context.outcome is None
            assert running.connected.empty()
        endpoint.peer.change(first_word=None)
        endpoint.peer.run(MODULE)
        assert running.connected.get(timeout=PATIENCE_S)
        subscribe(running, "back")
        running.client.publish("back", b"again", 1)
        assert running.messages.get(timeout=PATIENCE_S).payload == b"again"


def test_paho_cannot_be_told_to_be_careless(endpoint: AttestedEndpoint) -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    client.tls_set_context(endpoint.context())
    with pytest.raises(ValueError, match="unsafe_no_verify"):
        client.tls_insecure_set(True)


def aio(endpoint: AttestedEndpoint, context: AttestedContext, **more: Any) -> aiomqtt.Client:
    return aiomqtt.Client("localhost", endpoint.peer.port, tls_context=context, **more)


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
def test_aiomqtt_sends_and_receives(
    broker: ServiceProcess, endpoint: AttestedEndpoint, transport: str
) -> None:
    if transport == "websockets":
        endpoint.peer.change(serve=forward_to(broker.port("ws")))
    payload = bytes(range(256)) * 3000

    async def run() -> list[object]:
        got: list[object] = []
        async with aio(
            endpoint, endpoint.context(), transport=transport, websocket_path="/mqtt"
        ) as client:
            await client.subscribe(f"aio/{transport}", 2)
            for qos in (0, 1, 2):
                await client.publish(f"aio/{transport}", payload, qos)
            async for message in client.messages:
                got.append(message.payload)
                if len(got) == 3:
                    break
        return got

    assert asyncio.run(asyncio.wait_for(run(), PATIENCE_S)) == [payload] * 3


def test_aiomqtt_attests_every_reconnect(endpoint: AttestedEndpoint) -> None:
    """The client can be used again after a refusal: aiomqtt only unlocks it after an OSError."""
    context = endpoint.context()

    async def run() -> None:
        client = aio(endpoint, context)
        async with client:
            await client.publish("a", b"b", 1)
        endpoint.peer.run(OTHER_MODULE)
        with pytest.raises(aiomqtt.MqttError, match="check P4"):
            async with client:
                pass
        failure = context.failure
        assert isinstance(failure, DeniedPeerError)
        assert failure.finding is not None
        assert failure.finding.check.number == "P4"
        endpoint.peer.run(MODULE)
        async with client:
            await client.publish("a", b"b", 1)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_aiomqtt_sees_a_connection_break(endpoint: AttestedEndpoint) -> None:
    async def run() -> None:
        async with aio(endpoint, endpoint.context()) as client:
            await client.subscribe("nothing")
            endpoint.peer.drop_all()
            async for _ in client.messages:
                pass

    with pytest.raises(aiomqtt.MqttError):
        asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
