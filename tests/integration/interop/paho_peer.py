"""paho-mqtt as a test wants it: steps wait for their acknowledgement, messages come in a queue."""

from __future__ import annotations

import queue
import ssl
from types import TracebackType
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.integration.interop.endpoint import Endpoint

WAIT_S = 20.0


def connect_properties(**values: Any) -> Properties:
    """Properties of a CONNECT by paho's names."""
    return _properties(PacketTypes.CONNECT, values)


def publish_properties(**values: Any) -> Properties:
    """Properties of a PUBLISH by paho's names."""
    return _properties(PacketTypes.PUBLISH, values)


def _properties(packet: int, values: dict[str, Any]) -> Properties:
    make: Any = Properties  # paho does not declare its types
    properties: Properties = make(packet)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


class PahoPeer:
    """A connected client; leaving the `with` block disconnects it in an orderly way."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        identifier: str = "",
        clean: bool = True,
        properties: Properties | None = None,
        will: tuple[str, bytes] | None = None,
        window: int | None = None,
    ) -> None:
        v5 = version == MQTTProtocolVersion.MQTTv5
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=identifier,
            clean_session=None if v5 else clean,
            protocol=version,
            transport="websockets" if endpoint.websocket else "tcp",
            reconnect_on_failure=False,
        )
        if endpoint.encrypted:
            self.client.tls_set_context(ssl.create_default_context(cafile=str(endpoint.ca)))
        if will is not None:
            self.client.will_set(will[0], will[1], qos=1)
        if window is not None:
            self.client.max_inflight_messages_set(window)
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.session_present = False
        self._answers: queue.Queue[tuple[str, int, list[ReasonCode]]] = queue.Queue()
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._on_subscribe
        start: dict[str, Any] = {"clean_start": clean, "properties": properties} if v5 else {}
        self.client.connect(endpoint.host, endpoint.port, keepalive=30, **start)
        self.client.loop_start()
        (self.connect_code,) = self._answer("connect", 0)

    def __enter__(self) -> PahoPeer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.client.is_connected():
            self.client.disconnect()
            self._answer("disconnect", 0)
        self.client.loop_stop()

    def subscribe(self, topic: str, qos: int = 0, **options: Any) -> list[int]:
        """Subscribes, waits for SUBACK and returns its reason codes."""
        if options:
            chosen = SubscribeOptions(qos=qos, **options)
            _, number = self.client.subscribe(topic, options=chosen)
        else:
            _, number = self.client.subscribe(topic, qos)
        return [code.value for code in self._answer("subscribe", number or 0)]

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Publishes and waits until it is sent (QoS 0) or acknowledged to the end."""
        sent = self.client.publish(topic, payload, qos, retain, properties)
        sent.wait_for_publish(WAIT_S)
        assert sent.is_published(), f"no acknowledgement of {topic} within {WAIT_S} s"

    def receive(self) -> paho.MQTTMessage:
        """The next message."""
        return self.messages.get(timeout=WAIT_S)

    def break_off(self) -> None:
        """Closes the socket without DISCONNECT."""
        self.client.loop_stop()
        socket = self.client.socket()
        assert socket is not None
        socket.close()

    def _answer(self, kind: str, number: int) -> list[ReasonCode]:
        answer = self._answers.get(timeout=WAIT_S)
        assert answer[:2] == (kind, number), f"expected {kind} {number}, got {answer}"
        return answer[2]

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self.session_present = flags.session_present
        self._answers.put(("connect", 0, [code]))

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._answers.put(("disconnect", 0, [code]))

    def _on_subscribe(
        self,
        client: paho.Client,
        userdata: Any,
        number: int,
        codes: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        self._answers.put(("subscribe", number, codes))

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self.messages.put(message)
