"""Publishes messages and waits until the broker has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from avow.client.connection import (
    lost_connection,
    make_client,
    network_errors,
    open_connection,
    refused_connection,
)
from avow.client.options import ConnectOptions
from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError

# Messages given to paho and not finished yet: enough to keep the line busy, and a bound for the
# memory when the input is faster than the broker.
OUTSTANDING_MAX = 1000


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """What all messages of one run share."""

    topic: str
    qos: int = 0
    retain: bool = False
    properties: Properties | None = None


class Publisher:
    """A connection that publishes. Use as a context manager; leaving it disconnects.

    `__enter__` raises `DeniedError`, `UnavailableError` or `UntrustedError`; so do `publish` and
    `finish` when the broker refuses a message or goes away.
    """

    def __init__(self, connect: ConnectOptions, publish: PublishOptions) -> None:
        self._connect = connect
        self._publish = publish
        self._client = make_client(connect)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._client.on_disconnect = self._on_disconnect
        self._changed = threading.Condition()
        self._connected = False
        self._outstanding = 0
        self._failure: AvowError | None = None
        self._leaving = False

    def __enter__(self) -> Publisher:
        open_connection(self._client, self._connect)
        self._client.loop_start()
        try:
            self._wait(lambda: self._connected, self._connect.timeout_s)
        except AvowError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, payload: bytes) -> None:
        """Hands one message over; waits while too many are unfinished."""
        self._wait(lambda: self._outstanding < OUTSTANDING_MAX, None)
        with self._changed:
            self._outstanding += 1
        with network_errors(self._connect):
            info = self._client.publish(
                self._publish.topic,
                payload,
                self._publish.qos,
                self._publish.retain,
                self._publish.properties,
            )
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            raise MalformedError(
                f"expected a message that can be published, got {info.rc.name}; make it "
                "smaller, or send fewer at a time"
            )

    def finish(self) -> None:
        """Returns when the broker has everything: written for QoS 0, acknowledged for 1 and 2."""
        self._wait(lambda: self._outstanding == 0, None)

    def _wait(self, ready: Callable[[], bool], timeout_s: float | None) -> None:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._failure is None and not ready():
                patience_s = None if deadline_s is None else deadline_s - time.monotonic()
                if patience_s is not None and patience_s <= 0:
                    raise UnavailableError(
                        f"expected an answer from {self._connect.address} within {timeout_s:g} s, "
                        f"got none; check that it speaks MQTT, and whether the port is one for "
                        f"WebSocket (ws:// or wss://)"
                    )
                self._changed.wait(patience_s)
            if self._failure is not None:
                raise self._failure

    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        with self._changed:
            if code.is_failure:
                self._fail(refused_connection(self._connect, code))
            self._connected = not code.is_failure
            self._changed.notify_all()

    def _on_publish(
        self,
        client: Client,
        userdata: object,
        number: int,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        with self._changed:
            self._outstanding -= 1
            if code.is_failure:
                self._fail(
                    DeniedError(
                        "expected the broker to accept a message for "
                        f"{self._publish.topic!r}, got {str(code)!r}; ask the broker's "
                        "operator for permission to publish there"
                    )
                )
            self._changed.notify_all()

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        with self._changed:
            if not self._leaving:
                self._fail(lost_connection(self._connect, code, admitted=self._connected))
            self._changed.notify_all()

    def _fail(self, failure: AvowError) -> None:
        """The first failure is the one that explains the others."""
        if self._failure is None:
            self._failure = failure


def publish_all(connect: ConnectOptions, publish: PublishOptions, payloads: Iterable[bytes]) -> int:
    """Publishes every payload over one connection and returns their number."""
    count = 0
    with Publisher(connect, publish) as publisher:
        for payload in payloads:
            publisher.publish(payload)
            count += 1
        publisher.finish()
    return count
