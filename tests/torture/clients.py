"""A publisher and a subscriber that keep their half of a session over every crash of the broker.

They are clients as MQTT 3.1.1 section 4.4 wants them: after a reconnect what was not acknowledged
is sent again. What the broker has acknowledged, and what the subscriber's application got, is
written down; `Ledger.problems` compares.
"""

from __future__ import annotations

import collections
import socket
from dataclasses import dataclass, field

from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    StreamDecoder,
    Suback,
    Subscribe,
    duplicate,
)

VERSION = 4
INFLIGHT_MAX = 40
SUBSCRIBED_AGAIN_EVERY = 10


class ViolationError(AssertionError):
    """The broker did what it must never do."""


@dataclass(slots=True)
class Ledger:
    """What was promised and what came, by message number."""

    qos: dict[int, int] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    delivered: collections.Counter[int] = field(default_factory=collections.Counter)
    retained_sent: int = 0
    retained_acknowledged: int = 0

    def problems(self) -> list[str]:
        """Sentences about lost and doubled messages; for when everything has been delivered."""
        found = [
            f"message {number} (QoS {self.qos[number]}) was acknowledged and is lost"
            for number in sorted(self.acknowledged)
            if not self.delivered[number]
        ]
        found += [
            f"message {number} (QoS 2) was delivered {count} times"
            for number, count in sorted(self.delivered.items())
            if self.qos[number] == 2 and count > 1
        ]
        return found


class Client:
    """One network connection at a time; the session state outlives it."""

    name = ""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.link: socket.socket | None = None
        self.connected = False
        self.had_session = False
        self._decoder = StreamDecoder(VERSION)
        self._unsent = b""

    def attach(self, link: socket.socket) -> None:
        """A new connection: CONNECT goes out at once."""
        link.setblocking(False)
        self.link = link
        self.connected = False
        self._decoder = StreamDecoder(VERSION)
        self._unsent = b""
        self.send(Connect(self.name, VERSION, clean_start=False))

    def send(
        self, packet: Connect | Publish | Puback | Pubrec | Pubrel | Pubcomp | Subscribe
    ) -> None:
        """Into the socket; what a dead broker does not take any more is dropped."""
        if self.link is None:
            return
        data = packet.encode() if isinstance(packet, Connect) else packet.encode(VERSION)
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Sends what the socket takes by now."""
        if self.link is None:
            return
        try:
            while self._unsent:
                self._unsent = self._unsent[self.link.send(self._unsent) :]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.lost()

    @property
    def waits_to_send(self) -> bool:
        """Whether `flush` has something to do."""
        return self.link is not None and bool(self._unsent)

    def lost(self) -> None:
        """The connection is gone."""
        if self.link is not None:
            self.link.close()
        self.link = None
        self.connected = False

    def readable(self) -> None:
        """Reads what is there and answers it."""
        if self.link is None:
            return
        try:
            data = self.link.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if not data:
            self.lost()
            return
        for packet in self._decoder.feed(data):
            if isinstance(packet, Connack):
                self._connack(packet)
            else:
                self.handle(packet)

    def _connack(self, packet: Connack) -> None:
        if packet.code:
            raise ViolationError(f"{self.name} was refused with code {packet.code}")
        if self.had_session and not packet.session_present:
            raise ViolationError(f"the broker has lost the session of {self.name}")
        self.had_session = True
        self.connected = True
        self.resume()

    def resume(self) -> None:
        """Sends again what was under way."""
        raise NotImplementedError

    def handle(self, packet: Packet) -> None:
        """Everything but CONNACK."""
        raise NotImplementedError


class Publisher(Client):
    """Publishes numbered messages of QoS 1 and 2, and a retained one that counts up."""

    name = "publisher"

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._inflight: dict[int, tuple[int, Publish | Pubrel]] = {}
        self._next_packet_id = 0
        self._next_number = 0

    @property
    def idle(self) -> bool:
        """Everything is acknowledged."""
        return not self._inflight

    def publish(self) -> None:
        """As many as may be under way."""
        while self.connected and len(self._inflight) < INFLIGHT_MAX:
            self._next_number += 1
            number = self._next_number
            if number % 16 == 0:
                self.ledger.retained_sent = number
                self._put(number, Publish("last", b"%d" % number, 1, retain=True))
            else:
                qos = 1 + number % 2
                self.ledger.qos[number] = qos
                self._put(number, Publish(f"t/{number % 5}", b"%d " % number + b"x" * 50, qos))

    def _put(self, number: int, packet: Publish) -> None:
        while True:
            self._next_packet_id = self._next_packet_id % 0xFFFF + 1
            if self._next_packet_id not in self._inflight:
                break
        packet.packet_id = self._next_packet_id
        self._inflight[self._next_packet_id] = (number, packet)
        self.send(packet)

    def resume(self) -> None:
        """[MQTT-4.4.0-1]: in the order in which they were sent."""
        for _, packet in list(self._inflight.values()):
            self.send(duplicate(packet) if isinstance(packet, Publish) else packet)

    def handle(self, packet: Packet) -> None:
        """PUBACK, PUBREC and PUBCOMP."""
        if not isinstance(packet, Puback | Pubrec | Pubcomp):
            raise ViolationError(f"the publisher got {packet}")
        entry = self._inflight.get(packet.packet_id)
        if entry is None:
            # A PUBREC or PUBCOMP may be answered twice after a reconnect.
            if isinstance(packet, Pubrec):
                self.send(Pubrel(packet.packet_id))
            return
        number, _ = entry
        if isinstance(packet, Pubrec):
            self._accepted(number)
            release = Pubrel(packet.packet_id)
            self._inflight[packet.packet_id] = (number, release)
            self.send(release)
        else:
            self._accepted(number)
            del self._inflight[packet.packet_id]

    def _accepted(self, number: int) -> None:
        if number in self.ledger.qos:
            self.ledger.acknowledged.add(number)
        else:
            self.ledger.retained_acknowledged = max(number, self.ledger.retained_acknowledged)


class Subscriber(Client):
    """Takes everything; its application sees a QoS 2 message when its identifier is new (4.3.3)."""

    name = "subscriber"

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.subscribed = False
        self._received: set[int] = set()
        self.last_retained = 0

    def resume(self) -> None:
        """Nothing of ours is under way but the first SUBSCRIBE."""
        if not self.subscribed:
            self.send(Subscribe(1, [Filter("t/#", 2), Filter("last", 1)]))

    def handle(self, packet: Packet) -> None:
        """PUBLISH and PUBREL, and the one SUBACK."""
        match packet:
            case Suback():
                self.subscribed = True
            case Publish():
                self._message(packet)
            case Pubrel():
                self._received.discard(packet.packet_id)
                self.send(Pubcomp(packet.packet_id))
            case _:
                raise ViolationError(f"the subscriber got {packet}")

    def _message(self, packet: Publish) -> None:
        assert packet.packet_id is not None
        if packet.text == "last":
            self.last_retained = max(self.last_retained, int(packet.payload))
            self.send(Puback(packet.packet_id))
            return
        number = int(packet.payload.split()[0])
        if packet.qos == 1:
            self.ledger.delivered[number] += 1
            self.send(Puback(packet.packet_id))
            if number % SUBSCRIBED_AGAIN_EVERY == 0:
                # What is retained comes once more, long after its first delivery was over.
                self.send(Subscribe(1, [Filter("last", 1)]))
            return
        if packet.packet_id not in self._received:
            self._received.add(packet.packet_id)
            self.ledger.delivered[number] += 1
        self.send(Pubrec(packet.packet_id))
