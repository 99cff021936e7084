"""Subscribes and hands every message over, until enough have come or the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, topic_matches_sub
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from avow.client.connection import (
    is_gone,
    lost_connection,
    make_client,
    open_connection,
    refused_connection,
)
from avow.client.options import ConnectOptions, Protocol
from avow.client.properties import new_properties
from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError, counted

# How long one turn of the loop waits for the network, so that a stop is seen soon.
TURN_S = 0.5
# Between two attempts to come back to a broker that went away.
RECONNECT_MIN_S = 1.0
RECONNECT_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """What to subscribe to and when to stop. `count` and `timeout_s` None: never.

    `retained` says which messages count: None all, True only retained, False only fresh ones.
    """

    filters: Sequence[str]
    qos: int = 0
    count: int | None = None
    timeout_s: float | None = None
    excluded: Sequence[str] = ()
    retained: bool | None = None
    no_local: bool = False
    retain_as_published: bool = False
    subscription_identifier: int | None = None


class Subscriber:
    """Runs in the caller's thread. A broker that goes away is looked for again."""

    def __init__(
        self,
        connect: ConnectOptions,
        request: SubscribeRequest,
        *,
        deliver: Callable[[MQTTMessage], None],
        note: Callable[[str], None],
    ) -> None:
        """`deliver` gets each message, `note` a sentence about what happens meanwhile."""
        if connect.protocol is Protocol.V311 and (
            request.no_local
            or request.retain_as_published
            or request.subscription_identifier is not None
        ):
            raise MalformedError(
                "expected MQTT 5 for --no-local, --retain-as-published and "
                "--subscription-identifier, got an older version; leave these options out"
            )
        self._connect = connect
        self._request = request
        self._deliver = deliver
        self._note = note
        self._client = make_client(connect)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_disconnect = self._on_disconnect
        self._received = 0
        self._admitted = False
        self._subscribed = False
        self._failure: AvowError | None = None
        self._end_code: ReasonCode | None = None

    def run(self) -> int:
        """Returns the number of messages when `count` or `timeout_s` is reached.

        Raises `DeniedError` when the broker refuses the connection or every subscription, and
        `UnavailableError` when it cannot be reached at first or too few messages came in time.
        """
        started_s = time.monotonic()
        deadline_s = None
        if self._request.timeout_s is not None:
            deadline_s = started_s + self._request.timeout_s
        open_connection(self._client, self._connect)
        answer_by_s = time.monotonic() + self._connect.timeout_s
        try:
            # Retained and queued messages may overtake the SUBACK: it is waited for as well.
            while not (self._enough() and self._subscribed):
                now_s = time.monotonic()
                if deadline_s is not None and now_s >= deadline_s:
                    self._check_count()
                    break
                if not self._subscribed and now_s >= answer_by_s:
                    raise UnavailableError(
                        f"expected an answer from {self._connect.address} within "
                        f"{self._connect.timeout_s:g} s, got none; check that it speaks MQTT, "
                        f"and whether the port is one for WebSocket (ws:// or wss://)"
                    )
                patience_s = TURN_S if deadline_s is None else min(TURN_S, deadline_s - now_s)
                code = self._client.loop(patience_s)
                if self._failure is not None:
                    raise self._failure
                if is_gone(code) and not self._enough():
                    self._come_back(deadline_s)
                    answer_by_s = time.monotonic() + self._connect.timeout_s
        finally:
            self._leave()
        return self._received

    def _enough(self) -> bool:
        return self._request.count is not None and self._received >= self._request.count

    def _check_count(self) -> None:
        if self._request.count is not None:
            raise UnavailableError(
                f"expected {counted(self._request.count, 'message')} within "
                f"{self._request.timeout_s:g} s, got {self._received}; wait longer with "
                "--timeout"
            )

    def _come_back(self, deadline_s: float | None) -> None:
        """Connects again, with growing pauses. A broker that never took us is not asked again."""
        if not self._subscribed:
            raise lost_connection(self._connect, self._end_code, admitted=self._admitted)
        lost = lost_connection(self._connect, self._end_code, admitted=True)
        self._note(f"{lost}; coming back")
        self._subscribed = False
        pause_s = RECONNECT_MIN_S
        while deadline_s is None or time.monotonic() + pause_s < deadline_s:
            time.sleep(pause_s)
            try:
                open_connection(self._client, self._connect)
            except UnavailableError as error:
                if error.finding is not None:
                    # It is there, and could not be judged: somebody may have to do something.
                    self._note(f"{error}; trying again")
                pause_s = min(pause_s * 2, RECONNECT_MAX_S)
            else:
                return
        self._check_count()

    def _leave(self) -> None:
        """DISCONNECT, after the acknowledgements that are still queued."""
        self._client.disconnect()
        while self._client.want_write() and not is_gone(self._client.loop_write()):
            pass

    def _on_connect(
        self,
        client: Client,
        userdata: object,
        flags: ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if code.is_failure:
            self._failure = refused_connection(self._connect, code)
            return
        self._admitted = True
        request = self._request
        if self._connect.protocol is Protocol.V311:
            client.subscribe([(name, request.qos) for name in request.filters])
            return
        subscribe = None
        if request.subscription_identifier is not None:
            subscribe = new_properties(PacketTypes.SUBSCRIBE)
            subscribe.SubscriptionIdentifier = request.subscription_identifier
        # Retained messages that nobody wants are best not sent at all [MQTT-3.3.1-11].
        handling = 2 if request.retained is False else 0
        options = [
            (
                name,
                SubscribeOptions(
                    qos=request.qos,
                    # A shared subscription with No Local is a protocol error [MQTT-3.8.3-4].
                    noLocal=request.no_local and not name.startswith("$share/"),
                    retainAsPublished=request.retain_as_published,
                    retainHandling=handling,
                ),
            )
            for name in request.filters
        ]
        client.subscribe(options, properties=subscribe)

    def _on_subscribe(
        self,
        client: Client,
        userdata: object,
        number: int,
        codes: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        refused = [
            (name, code)
            for name, code in zip(self._request.filters, codes, strict=False)
            if code.is_failure
        ]
        self._subscribed = True
        words = ", ".join(f"{str(code)!r} for {name!r}" for name, code in refused)
        if refused and len(refused) == len(codes):
            self._failure = DeniedError(
                f"expected {self._connect.address} to accept the subscription, got {words}; "
                "ask the broker's operator for permission to subscribe there"
            )
        elif refused:
            self._note(f"some subscriptions were refused: {words}")

    def _on_message(self, client: Client, userdata: object, message: MQTTMessage) -> None:
        if self._enough():
            return
        if self._request.retained is not None and bool(message.retain) != self._request.retained:
            return
        if any(topic_matches_sub(name, message.topic) for name in self._request.excluded):
            return
        self._received += 1
        self._deliver(message)

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._end_code = code
