"""A client of the simulation: it keeps its own session state, as section 4.1 says a client does."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from avow.testing.core_abi import Transport
from avow.testing.core_driver import Connection
from avow.testing.mqtt import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    StreamDecoder,
    Suback,
    Subscribe,
    ToServer,
    Unsuback,
    Unsubscribe,
    Will,
    duplicate,
    props,
)
from avow.testing.network import Pipe
from avow.testing.websocket import WebSocketClient

PACKET_IDS = 40
"""A client uses few identifiers again and again, so that what a server forgets to free shows."""


@dataclass(slots=True, eq=False)
class Link:
    """One network connection of one client, with what was sent into it."""

    client: SimulatedClient
    connection: Connection
    up: Pipe
    down: Pipe
    decoder: StreamDecoder
    marks: list[tuple[int, Connect | ToServer]] = field(default_factory=list)
    """(end in the stream, packet) of what the core has not got yet."""
    put_bytes: int = 0
    fed_bytes: int = 0
    session_number: int = -1
    session_present: bool = False
    connected: bool = False
    leaving: bool = False
    """DISCONNECT was sent."""
    gone: bool = False
    """The core will say nothing more: it closed, or it crashed."""
    websocket: WebSocketClient | None = None
    attested: bool = False


@dataclass(slots=True)
class Received:
    """One message that reached the application."""

    session_number: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    at_ms: int
    attested: bool
    """The connection that it came on was attested."""


class SimulatedClient:
    """A well-behaved client whose network is not."""

    def __init__(self, name: str, chance: random.Random, *, version: int, expiry_s: int) -> None:
        self.name = name
        self.chance = chance
        self.version = version
        self.expiry_s = expiry_s
        self.receive_maximum = chance.choice([1, 2, 5, 20])
        self.transport = Transport.WEBSOCKET if chance.random() < 0.25 else Transport.MQTT
        self.link: Link | None = None
        self.log: list[Received] = []
        self.acknowledged: set[bytes] = set()
        self._unacknowledged: dict[int, Publish | Pubrel] = {}
        self._requests: dict[int, Subscribe | Unsubscribe] = {}
        self._received_qos2: set[int] = set()
        self._open: set[int] = set()
        self.session_number = -1
        self._clean = False
        self._packet_id = 0
        self._counter = 0

    # -- what it does -----------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """CONNACK has come, and the end has not begun."""
        link = self.link
        return link is not None and link.connected and not link.leaving

    @property
    def quiet(self) -> bool:
        """Nothing of its own waits for an acknowledgement."""
        return not self._unacknowledged and not self._requests

    def attach(self, link: Link, now_ms: int, *, clean_start: bool, will: Will | None) -> None:
        """Begins to connect over a new link."""
        self.link = link
        properties = Properties()
        if self.chance.random() < 0.3:
            self.receive_maximum = self.chance.choice([1, 2, 5, 20])
        if self.version == 5:
            properties = props(
                session_expiry_interval=self.expiry_s, receive_maximum=self.receive_maximum
            )
        if self.transport is Transport.WEBSOCKET:
            link.websocket = WebSocketClient()
            self._put(link, now_ms, link.websocket.upgrade(), None)
        connect = Connect(
            self.name,
            self.version,
            clean_start or self._clean or (self.version != 5 and self.expiry_s == 0),
            0,
            will=will,
            properties=properties,
        )
        if connect.clean_start:
            # At once, as the CONNACK may be lost [MQTT-3.1.2-4]; and until one has come, the
            # server may still have a session that this client knows nothing of [MQTT-3.2.2-4].
            self._discard()
            self._clean = True
        self.send(now_ms, connect)

    def in_session(self, number: int) -> None:
        """The core has got CONNECT. A real client knows from its own clock when a session ended."""
        if number != self.session_number:
            self.session_number = number
            self._discard()

    def _discard(self) -> None:
        """Forgets its session state."""
        self._unacknowledged.clear()
        self._received_qos2.clear()

    def send(self, now_ms: int, packet: Connect | ToServer) -> None:
        """Puts a packet into the network."""
        assert self.link is not None
        raw = packet.encode() if isinstance(packet, Connect) else packet.encode(self.version)
        if self.link.websocket is not None:
            raw = self.link.websocket.binary(raw)
        self._put(self.link, now_ms, raw, packet)

    @staticmethod
    def _put(link: Link, now_ms: int, raw: bytes, packet: Connect | ToServer | None) -> None:
        link.put_bytes += len(raw)
        if packet is not None:
            link.marks.append((link.put_bytes, packet))
        link.up.put(now_ms, raw)

    def _next_packet_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % PACKET_IDS + 1
            if self._packet_id not in self._unacknowledged and self._packet_id not in (
                self._requests
            ):
                return self._packet_id

    @property
    def may_send(self) -> bool:
        """It is connected and has identifiers left."""
        return self.connected and len(self._unacknowledged) + len(self._requests) < PACKET_IDS // 2

    def publish(self, now_ms: int, topic: str, qos: int, *, retain: bool, clear: bool) -> None:
        """A new message, whose payload nobody has used before (or an empty one)."""
        self._counter += 1
        payload = b"" if clear else f"{self.name}:{self._counter} ".encode()
        if not clear and self.chance.random() < 0.2:
            payload += bytes(self.chance.randrange(3000))
        packet_id = self._next_packet_id() if qos else None
        packet = Publish(topic, payload, qos, packet_id, retain)
        if packet_id is not None:
            self._unacknowledged[packet_id] = packet
        self.send(now_ms, packet)

    def request(self, now_ms: int, make: Subscribe | Unsubscribe) -> None:
        """SUBSCRIBE or UNSUBSCRIBE."""
        make.packet_id = self._next_packet_id()
        self._requests[make.packet_id] = make
        self.send(now_ms, make)

    def lost(self) -> None:
        """The link has ended, whoever ended it."""
        self.link = None
        self._requests.clear()
        self._open.clear()

    # -- what comes -------------------------------------------------------------------------

    def receive(self, now_ms: int, data: bytes) -> None:
        """Bytes from the network."""
        link = self.link
        assert link is not None
        if link.websocket is not None:
            data = link.websocket.feed(data)
        for packet in link.decoder.feed(data):
            self._handle(now_ms, link, packet)

    def _handle(self, now_ms: int, link: Link, packet: Packet) -> None:
        if isinstance(packet, Connack):
            self._connack(now_ms, link, packet)
            return
        if isinstance(packet, Disconnect):
            assert packet.code == 0x8E, f"{self.name} got {packet}"
            return
        assert link.connected, f"{self.name} got {packet} before CONNACK"
        if isinstance(packet, Publish):
            self._message(now_ms, link, packet)
        elif isinstance(packet, Pubrel):
            self._received_qos2.discard(packet.packet_id)
            self._open.discard(packet.packet_id)
            self.send(now_ms, Pubcomp(packet.packet_id))
        elif isinstance(packet, Suback | Unsuback):
            made = self._requests.pop(packet.packet_id, None)
            assert made is not None, f"{self.name} never asked for {packet}"
            if isinstance(packet, Suback):
                assert isinstance(made, Subscribe)
                assert packet.codes == [f.qos for f in made.filters], f"{self.name}: {packet}"
        elif not isinstance(packet, Pingresp):
            self._acknowledgement(now_ms, packet)

    def _connack(self, now_ms: int, link: Link, packet: Connack) -> None:
        assert not link.connected, f"{self.name} got a second CONNACK"
        assert packet.code == 0, f"{self.name} was refused: {packet}"
        assert packet.session_present == link.session_present, (
            f"{self.name}: session present is {packet.session_present}, "
            f"the model says {link.session_present}"
        )
        link.connected = True
        self._clean = False
        if not packet.session_present:
            self._discard()  # [MQTT-3.2.2-5]
        for waiting in list(self._unacknowledged.values()):
            again = duplicate(waiting) if isinstance(waiting, Publish) else waiting
            self.send(now_ms, again)

    def _message(self, now_ms: int, link: Link, packet: Publish) -> None:
        if packet.packet_id is not None:
            self._open.add(packet.packet_id)
            limit = self.receive_maximum if self.version == 5 else 65535
            assert len(self._open) <= limit, (
                f"{self.name}: {len(self._open)} messages are open, the maximum is {limit}"
            )
        if packet.qos == 2 and packet.packet_id is not None:
            self.send(now_ms, Pubrec(packet.packet_id))
            if packet.packet_id in self._received_qos2:
                assert packet.dup, f"{self.name}: identifier {packet.packet_id} came again"
                return
            self._received_qos2.add(packet.packet_id)
        elif packet.packet_id is not None:
            self._open.discard(packet.packet_id)
            self.send(now_ms, Puback(packet.packet_id))
        self.log.append(
            Received(
                link.session_number,
                packet.text,
                packet.payload,
                packet.qos,
                packet.retain,
                now_ms,
                link.attested,
            )
        )

    def _acknowledgement(self, now_ms: int, packet: Packet) -> None:
        assert isinstance(packet, Puback | Pubrec | Pubcomp), f"{self.name} got {packet}"
        waiting = self._unacknowledged.get(packet.packet_id)
        if isinstance(packet, Pubrec):
            assert packet.code < 0x80, f"{self.name} got {packet}"
            assert waiting is not None, f"{self.name} got {packet} for nothing"
            if isinstance(waiting, Publish):
                self.acknowledged.add(waiting.payload)
            release = Pubrel(packet.packet_id)
            # It keeps its place in the order of what is sent again [MQTT-4.6.0-4].
            self._unacknowledged.pop(packet.packet_id)
            self._unacknowledged[packet.packet_id] = release
            self.send(now_ms, release)
        elif isinstance(packet, Puback):
            assert isinstance(waiting, Publish), f"{self.name} got {packet} for {waiting}"
            assert waiting.qos == 1, f"{self.name} got {packet} for {waiting}"
            assert packet.code < 0x80, f"{self.name} got {packet}"
            self.acknowledged.add(waiting.payload)
            del self._unacknowledged[packet.packet_id]
        else:
            assert isinstance(waiting, Pubrel), f"{self.name} got {packet} for {waiting}"
            del self._unacknowledged[packet.packet_id]
