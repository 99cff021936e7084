"""An MQTT client for tests that is synchronous and deterministic: it talks to a `CoreDriver`.

Every packet that the core sends is decoded strictly and waits in `inbox` until the test expects
it. A failed expectation raises AssertionError with what came instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import TypeVar

from avow.testing.core_abi import Attestation, ClosedBy, Setting, Transport
from avow.testing.core_driver import Connection, CoreDriver
from avow.testing.mqtt import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Packet,
    Pingreq,
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
)
from avow.testing.mqtt_properties import Property
from avow.testing.websocket import WebSocketClient

P = TypeVar("P", bound=Packet)

# With these settings nothing differs from MQTT's defaults: a CONNACK has five bytes.
TERSE = {
    Setting.MAXIMUM_PACKET_BYTES: 268_435_460,
    Setting.RECEIVE_MAXIMUM: 65_535,
    Setting.TOPIC_ALIAS_MAXIMUM: 0,
}


class FakeClient:
    """One client over one network connection; `reconnect` makes the next connection."""

    def __init__(
        self,
        core: CoreDriver,
        client_id: str = "",
        *,
        version: int = 5,
        bridge: bool = False,
        transport: Transport = Transport.MQTT,
        allow_anonymous: bool = True,
        identity: str | None = None,
        attestation: Attestation | None = None,
        open_now: bool = True,
    ) -> None:
        self.core = core
        self.client_id = client_id
        self.version = version
        self.bridge = bridge
        self.transport = transport
        self.allow_anonymous = allow_anonymous
        self.identity = identity
        self.attestation = attestation
        self._packet_id = 0
        if open_now:
            self.open()

    # -- the connection ---------------------------------------------------------------------

    def open(self) -> FakeClient:
        """Opens a network connection; what came on an earlier one is forgotten."""
        self.inbox: deque[Packet] = deque()
        self.aliases: dict[int, str] = {}
        self._decoder = StreamDecoder(self.version)
        self.connection: Connection = self.core.open(
            self.transport,
            allow_anonymous=self.allow_anonymous,
            identity=self.identity,
            attestation=self.attestation,
        )
        self.websocket: WebSocketClient | None = None
        if self.transport is Transport.WEBSOCKET:
            self.websocket = WebSocketClient()
            self.core.send(self.connection, self.websocket.upgrade())
            self.pump()
            assert self.websocket.upgraded, "the core did not accept the WebSocket upgrade"
        return self

    def drop(self, by: ClosedBy = ClosedBy.PEER) -> None:
        """The network connection breaks without a DISCONNECT."""
        self.core.close(self.connection, by)

    def send(self, *packets: ToServer | Connect | bytes) -> None:
        """Sends packets (or raw bytes) together."""
        data = b"".join(self._encode(packet) for packet in packets)
        if self.websocket is not None:
            data = self.websocket.binary(data)
        self.core.send(self.connection, data)

    def _encode(self, packet: ToServer | Connect | bytes) -> bytes:
        if isinstance(packet, bytes):
            return packet
        if isinstance(packet, Connect):
            return packet.encode()
        return packet.encode(self.version)

    def pump(self) -> None:
        """Decodes what has come so far into the inbox."""
        data = self.connection.read()
        if self.websocket is not None:
            data = self.websocket.feed(data)
        for packet in self._decoder.feed(data):
            if isinstance(packet, Publish):
                self._resolve_alias(packet)
            self.inbox.append(packet)

    def _resolve_alias(self, packet: Publish) -> None:
        alias = packet.props.integer(Property.TOPIC_ALIAS)
        if alias is None:
            return
        if packet.topic:
            self.aliases[alias] = packet.text
        else:
            assert alias in self.aliases, f"topic alias {alias} was never set"
            packet.topic = self.aliases[alias]

    @property
    def sizes(self) -> list[int]:
        """Sizes in bytes of all packets that came on this connection."""
        self.pump()
        return self._decoder.sizes

    @property
    def pending(self) -> bool:
        """Packets wait in the inbox."""
        self.pump()
        return bool(self.inbox)

    @property
    def closed(self) -> str | None:
        """How the connection ended, if it did."""
        return self.connection.closed

    # -- expectations -----------------------------------------------------------------------

    def receive(self) -> Packet:
        """The next packet."""
        self.pump()
        assert self.inbox, f"expected a packet, nothing came (connection: {self.closed or 'open'})"
        return self.inbox.popleft()

    def expect(self, kind: type[P]) -> P:
        """The next packet, which is of this type."""
        packet = self.receive()
        assert isinstance(packet, kind), f"expected {kind.__name__}, got {packet}"
        return packet

    def expect_nothing(self) -> None:
        """Nothing came, and the connection is open."""
        self.pump()
        assert not self.inbox, f"expected nothing, got {list(self.inbox)}"
        assert self._decoder.pending == 0, "half a packet came"
        assert self.closed is None, f"the connection was closed ({self.closed})"

    def expect_close(self, code: int | Collection[int] | None = None) -> None:
        """The core closed the connection. MQTT 5: with DISCONNECT and this code (None: without).

        Several codes may be right where the specification leaves the choice.
        """
        if code is not None and self.version == 5:
            packet = self.expect(Disconnect)
            codes = (code,) if isinstance(code, int) else tuple(code)
            assert packet.code in codes, f"expected DISCONNECT {codes}, got {packet.code:#04x}"
        self.pump()
        assert not self.inbox, f"expected the end, got {list(self.inbox)}"
        assert self.closed in ("close", "abort"), "expected the core to close the connection"

    def expect_close_of_websocket(self, code: int) -> None:
        """DISCONNECT with this code; a Close frame may follow it, then the end."""
        self.expect_close(code)
        assert self.websocket is not None
        assert [opcode for opcode, _ in self.websocket.control] in ([], [0x8])

    def expect_refused(self, code: int | Collection[int]) -> None:
        """The core refused a CONNECT: CONNACK with one of these codes, then the end (4.13.1)."""
        packet = self.expect(Connack)
        codes = (code,) if isinstance(code, int) else tuple(code)
        assert packet.code in codes, f"expected CONNACK {codes}, got {packet.code:#04x}"
        self.expect_close()

    def received(self) -> list[Publish]:
        """All PUBLISH packets that wait; any other packet is an error."""
        self.pump()
        packets = []
        while self.inbox:
            packets.append(self.expect(Publish))
        return packets

    # -- conversations ----------------------------------------------------------------------

    def connect_packet(
        self,
        *,
        clean_start: bool = True,
        keep_alive_s: int = 0,
        username: str | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        properties: Properties | None = None,
    ) -> Connect:
        """A CONNECT of this client."""
        return Connect(
            client_id=self.client_id,
            version=self.version,
            bridge=self.bridge,
            clean_start=clean_start,
            keep_alive_s=keep_alive_s,
            username=username,
            password=password,
            will=will,
            properties=properties or Properties(),
        )

    def connect(
        self,
        *,
        clean_start: bool = True,
        keep_alive_s: int = 0,
        username: str | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        properties: Properties | None = None,
        code: int = 0,
    ) -> Connack:
        """CONNECT and its CONNACK, which has this code; a refusal closes the connection."""
        self.send(
            self.connect_packet(
                clean_start=clean_start,
                keep_alive_s=keep_alive_s,
                username=username,
                password=password,
                will=will,
                properties=properties,
            )
        )
        connack = self.expect(Connack)
        assert connack.code == code, f"expected CONNACK {code:#04x}, got {connack}"
        if code:
            self.expect_close()
        return connack

    def reconnect(
        self, *, clean_start: bool = False, properties: Properties | None = None
    ) -> Connack:
        """Drops the connection if it is open, and connects again."""
        if self.connection.alive:
            self.drop()
        self.open()
        return self.connect(clean_start=clean_start, properties=properties)

    def next_packet_id(self) -> int:
        """A packet identifier that was not used just before."""
        self._packet_id = self._packet_id % 65535 + 1
        return self._packet_id

    def subscribe(
        self,
        *filters: str | Filter,
        qos: int = 0,
        properties: Properties | None = None,
        codes: Sequence[int] | None = None,
    ) -> Suback:
        """SUBSCRIBE and its SUBACK; by default every subscription is granted as asked.

        PUBLISH packets that come before the SUBACK stay in the inbox (3.8.4 allows that).
        """
        wanted = [f if isinstance(f, Filter) else Filter(f, qos) for f in filters]
        packet_id = self.next_packet_id()
        self.send(Subscribe(packet_id, wanted, properties or Properties()))
        suback = self.take(Suback)
        assert suback.packet_id == packet_id
        expected = [f.qos for f in wanted] if codes is None else list(codes)
        assert suback.codes == expected, f"expected SUBACK {expected}, got {suback.codes}"
        return suback

    def unsubscribe(self, *filters: str, codes: Sequence[int] | None = None) -> Unsuback:
        """UNSUBSCRIBE and its UNSUBACK; by default every filter was subscribed."""
        packet_id = self.next_packet_id()
        self.send(Unsubscribe(packet_id, filters))
        unsuback = self.take(Unsuback)
        assert unsuback.packet_id == packet_id
        if self.version == 5:
            expected = [0] * len(filters) if codes is None else list(codes)
            assert unsuback.codes == expected, f"expected {expected}, got {unsuback.codes}"
        return unsuback

    def take(self, kind: type[P]) -> P:
        """The first packet of this type; PUBLISH packets before it are left in the inbox."""
        self.pump()
        for index, packet in enumerate(self.inbox):
            if isinstance(packet, kind):
                del self.inbox[index]
                return packet
            assert isinstance(packet, Publish), f"expected {kind.__name__}, got {packet}"
        raise AssertionError(f"expected {kind.__name__}, nothing came ({self.closed or 'open'})")

    def publish(
        self,
        topic: str | bytes,
        payload: bytes = b"",
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties | None = None,
        code: int | None = None,
    ) -> int | None:
        """PUBLISH and the whole exchange of its QoS; gives the reason code of PUBACK or PUBREC.

        `code` is what PUBACK or PUBREC must say; None accepts 0x00 and 0x10.
        """
        packet_id = self.next_packet_id() if qos else None
        fields = properties or Properties()
        self.send(Publish(topic, payload, qos, packet_id, retain, False, fields))
        if packet_id is None:
            return None
        answer: Puback | Pubrec = self.take(Puback) if qos == 1 else self.take(Pubrec)
        assert answer.packet_id == packet_id, f"expected identifier {packet_id}, got {answer}"
        allowed = (0x00, 0x10) if code is None else (code,)
        assert answer.code in allowed, f"expected reason code {allowed}, got {answer}"
        if qos == 2 and answer.code < 0x80:
            self.send(Pubrel(packet_id))
            pubcomp = self.take(Pubcomp)
            assert (pubcomp.packet_id, pubcomp.code) == (packet_id, 0)
        return answer.code

    def expect_publish(
        self,
        topic: str | None = None,
        payload: bytes | None = None,
        qos: int | None = None,
        *,
        retain: bool | None = None,
        dup: bool | None = None,
        acknowledge: bool = True,
    ) -> Publish:
        """The next packet, a PUBLISH with these fields; the whole exchange of its QoS follows."""
        packet = self.expect(Publish)
        for name, wanted in (
            ("topic", topic),
            ("payload", payload),
            ("qos", qos),
            ("retain", retain),
            ("dup", dup),
        ):
            got = getattr(packet, name)
            assert wanted is None or got == wanted, f"expected {name} {wanted!r}, got {packet}"
        if acknowledge:
            self.acknowledge(packet)
        return packet

    def acknowledge(self, packet: Publish) -> None:
        """PUBACK, or PUBREC, PUBREL and PUBCOMP."""
        if packet.packet_id is None:
            return
        if packet.qos == 1:
            self.send(Puback(packet.packet_id))
            return
        self.send(Pubrec(packet.packet_id))
        pubrel = self.take(Pubrel)
        assert pubrel.packet_id == packet.packet_id
        self.send(Pubcomp(packet.packet_id))

    def ping(self) -> None:
        """PINGREQ and PINGRESP; PUBLISH packets in between stay in the inbox."""
        self.send(Pingreq())
        self.take(Pingresp)

    def disconnect(self, code: int = 0, properties: Properties | None = None) -> None:
        """DISCONNECT, after which this side closes the network connection."""
        self.send(Disconnect(code, properties or Properties()))
        self.pump()
        assert not self.inbox, f"expected nothing after DISCONNECT, got {list(self.inbox)}"
        if self.connection.alive:
            self.drop()


def connected(
    core: CoreDriver,
    client_id: str = "",
    *,
    version: int = 5,
    bridge: bool = False,
    clean_start: bool = True,
    keep_alive_s: int = 0,
    will: Will | None = None,
    properties: Properties | None = None,
    transport: Transport = Transport.MQTT,
    identity: str | None = None,
    attestation: Attestation | None = None,
) -> FakeClient:
    """A client that has connected."""
    client = FakeClient(
        core,
        client_id,
        version=version,
        bridge=bridge,
        transport=transport,
        identity=identity,
        attestation=attestation,
    )
    client.connect(
        clean_start=clean_start, keep_alive_s=keep_alive_s, will=will, properties=properties
    )
    return client
