"""What the fuzzer of the core does in one round, and how a failure is recorded and replayed."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable

from avow.errors import AvowError
from avow.testing import websocket as ws
from avow.testing.core_abi import (
    CONFIGURATION_CHANGES_COMMAND,
    Attestation,
    AuthRequest,
    Outcome,
    Rule,
    Setting,
    Transport,
    auth_result_command,
)
from avow.testing.core_driver import Connection, CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Auth,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Properties,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
    Will,
    frame,
)
from avow.testing.mqtt_properties import KINDS, Kind, PropertyValue

TOPICS = (
    "a",
    "a/b",
    "a/b/c",
    "$SYS/x",
    "$SYS/broker/connection/a/state",
    "/",
    "x" * 300,
    "\ufeff",
    "ä/€/😀",
)
FILTERS = (*TOPICS, "#", "a/#", "+/b", "+/+/+", "$share/g/a/#", "$SYS/#", "a/+/c", "//#")
INTERESTING = (0x00, 0x01, 0x02, 0x7F, 0x80, 0x81, 0xC0, 0xED, 0xF5, 0xFE, 0xFF)
SETTLE_ROUNDS = 25
# Tables grow to their size in the first rounds and stay there; a leak goes on growing.
WARM_ROUNDS = 100
HEAP_SLACK_BYTES = 64 * 1024
PROVEN = bytes(range(32))
RULES = (
    Rule(False, "denied/#"),
    # What some connections have proven and others have not: the same sessions lose and gain it.
    Rule(True, "a/b", module=PROVEN, rank_min=2),
    Rule(False, "a/b"),
    Rule(True, "$SYS/#"),
    Rule(True, "#"),
)
LIMITS = {
    Setting.MAXIMUM_PACKET_BYTES: 1 << 16,
    Setting.RECEIVE_MAXIMUM: 8,
    Setting.QUEUED_BYTES_MAX: 1 << 20,
    Setting.QUEUED_MESSAGES_MAX: 100,
    Setting.SUBSCRIPTIONS_MAX: 50,
    Setting.TOPIC_LEVELS_MAX: 20,
    Setting.RETAINED_MESSAGES_MAX: 50,
    Setting.MEMORY_BUDGET_BYTES: 64 << 20,
    Setting.SESSION_EXPIRY_MAX_S: 30,
    Setting.WILL_DELAY_MAX_S: 20,
}


class Grammar:
    """Makes packets that are valid, or nearly."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def text(self) -> str:
        """A string."""
        return self.chance.choice(["", "a", "b" * 200, "ä€😀", *TOPICS])

    def data(self) -> bytes:
        """Binary data."""
        return self.chance.randbytes(self.chance.choice([0, 1, 5, 130, 3000]))

    def value(self, kind: Kind) -> PropertyValue:
        """A value of this type."""
        number = self.chance.choice([0, 1, 2, 10, 255])
        if kind is Kind.STRING:
            return self.text()
        if kind is Kind.PAIR:
            return (self.text(), self.text())
        if kind is Kind.BINARY:
            return self.data()
        if kind is Kind.FOUR_BYTES:
            return self.chance.choice([0, 1, 30, 2**31, 2**32 - 1])
        if kind is Kind.VARIABLE:
            return self.chance.choice([0, 1, 127, 128, 268435455])
        return number

    def properties(self, *fitting: Property) -> Properties:
        """Some properties, mostly ones that fit."""
        items: list[tuple[int, PropertyValue]] = []
        for _ in range(self.chance.choice([0, 0, 0, 1, 2, 5])):
            pool = fitting if fitting and self.chance.random() < 0.9 else tuple(Property)
            one = self.chance.choice(pool)
            items.append((one, self.value(KINDS[one])))
        return Properties(items)

    def connect(self, version: int) -> bytes:
        """CONNECT."""
        p = Property
        will = None
        if self.chance.random() < 0.4:
            will = Will(
                self.chance.choice(TOPICS),
                self.data(),
                self.chance.randrange(3),
                self.chance.random() < 0.3,
                self.properties(p.WILL_DELAY_INTERVAL, p.USER_PROPERTY, p.CONTENT_TYPE),
            )
        return Connect(
            self.chance.choice(["", "a", "b", "c", "d", "ä", "x" * 100]),
            version,
            self.chance.random() < 0.5,
            self.chance.choice([0, 0, 1, 60, 65535]),
            bridge=version != 5 and self.chance.random() < 0.3,
            username=self.chance.choice([None, None, None, "u"]),
            will=will,
            properties=self.properties(
                p.SESSION_EXPIRY_INTERVAL,
                p.RECEIVE_MAXIMUM,
                p.MAXIMUM_PACKET_SIZE,
                p.TOPIC_ALIAS_MAXIMUM,
                p.USER_PROPERTY,
                p.AUTHENTICATION_METHOD,
            ),
        ).encode()

    def packet(self, version: int) -> bytes:
        """Any packet that follows a CONNECT."""
        makers: tuple[Callable[[int], bytes], ...] = (
            self._publish,
            self._publish,
            self._publish,
            self._acknowledgement,
            self._subscribe,
            self._unsubscribe,
            self._rare,
        )
        return self.chance.choice(makers)(version)

    def _packet_id(self) -> int:
        return self.chance.choice([1, 2, 3, 7, 65535, 0])

    def _publish(self, version: int) -> bytes:
        p = Property
        qos = self.chance.randrange(3)
        topic = self.chance.choice([*TOPICS, ""])
        return Publish(
            topic,
            self.data(),
            qos,
            self._packet_id() if qos else None,
            self.chance.random() < 0.2,
            self.chance.random() < 0.1,
            self.properties(
                p.TOPIC_ALIAS, p.USER_PROPERTY, p.MESSAGE_EXPIRY_INTERVAL, p.CORRELATION_DATA
            ),
        ).encode(version)

    def _acknowledgement(self, version: int) -> bytes:
        kind = self.chance.choice([Puback, Pubrec, Pubrel, Pubcomp])
        code = self.chance.choice([0, 0, 0, 0x10, 0x80, 0x92])
        return kind(self._packet_id(), code, self.properties(Property.REASON_STRING)).encode(
            version
        )

    def _subscribe(self, version: int) -> bytes:
        filters = [
            Filter(
                self.chance.choice(FILTERS),
                self.chance.choice([0, 1, 2, 2, 3]),
                self.chance.random() < 0.1,
                self.chance.random() < 0.3,
                self.chance.choice([0, 0, 1, 2, 3]) if version == 5 else 0,
            )
            for _ in range(self.chance.choice([1, 1, 2, 10]))
        ]
        properties = self.properties(Property.SUBSCRIPTION_IDENTIFIER, Property.USER_PROPERTY)
        return Subscribe(self._packet_id(), filters, properties).encode(version)

    def _unsubscribe(self, version: int) -> bytes:
        filters = self.chance.choices(FILTERS, k=self.chance.choice([1, 1, 3]))
        return Unsubscribe(self._packet_id(), filters, self.properties()).encode(version)

    def _rare(self, version: int) -> bytes:
        dice = self.chance.random()
        if dice < 0.4:
            return Pingreq().encode()
        if dice < 0.6:
            return Disconnect(self.chance.choice([0, 4, 0x80]), self.properties()).encode(version)
        if dice < 0.8:
            return Auth(self.chance.choice([0, 0x18, 0x19]), self.properties()).encode(version)
        return frame(self.chance.randrange(16), self.chance.randrange(16), self.data()[:200])

    def mutate(self, raw: bytes) -> bytes:
        """The same bytes with a few wrong ones, missing ones or surplus ones."""
        data = bytearray(raw)
        for _ in range(self.chance.choice([0, 0, 1, 1, 2, 6])):
            at = self.chance.randrange(len(data)) if data else 0
            dice = self.chance.random()
            if dice < 0.5 and data:
                data[at] = self.chance.choice([*INTERESTING, self.chance.randrange(256)])
            elif dice < 0.65 and data:
                data[at] ^= 1 << self.chance.randrange(8)
            elif dice < 0.8:
                del data[at : at + self.chance.choice([1, 1, 2, 20])]
            elif dice < 0.95:
                data[at:at] = self.chance.randbytes(self.chance.choice([1, 1, 2, 20]))
            else:
                data[at:at] = data[self.chance.randrange(at + 1) : at]
        return bytes(data)


class CoreFuzzer:
    """A core that lives through many rounds of hostile connections."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.packets = 0
        self._grammar = Grammar(self.chance)
        self._script: list[tuple[str, int, str]] = []
        self._base = 0
        self._rounds = 0
        self._start()

    def _start(self) -> None:
        self.core = CoreDriver(settings=LIMITS)
        self.core.acl(RULES)
        self._good = [connected(self.core, "good 1"), connected(self.core, "good 2", version=4)]
        for client in self._good:
            client.subscribe("good/#", qos=2)

    def round(self) -> str | None:
        """One round. Gives what is wrong, or None."""
        self._rounds += 1
        self._script = []
        try:
            self._attack()
            self._check_good()
            if self._rounds % SETTLE_ROUNDS == 0:
                self._settle()
        except (AssertionError, AvowError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def recording(self) -> bytes:
        """The last round, for `replay`."""
        return zlib.compress(json.dumps(self._script).encode())

    def _attack(self) -> None:
        connections: list[tuple[Connection, bytes]] = []
        for _ in range(self.chance.randrange(1, 6)):
            transport = self.chance.choice([0, 0, 0, 1])
            proof = self.chance.choice([b"", b"\x01", b"\x03"])
            connection = perform(self.core, self._note("open", transport, proof), {})
            assert connection is not None
            connections.append((connection, self._stream(Transport(transport))))
        at = dict.fromkeys((c.number for c, _ in connections), 0)
        while connections:
            with self.core.batch():
                for connection, data in list(connections):
                    self._feed(connection, data, at)
                    if at[connection.number] >= len(data) or not connection.alive:
                        connections.remove((connection, data))
            self._answer()
            if self.chance.random() < 0.05:
                perform(self.core, self._note("advance", self.chance.choice([1, 900]), b""), {})
        everything = dict(self.core.connections)
        good = {client.connection.number for client in self._good}
        for number in [n for n in everything if n not in good]:
            perform(self.core, self._note("close", number, b""), everything)

    def _answer(self) -> None:
        """The host answers most requests for authentication, and sends odd commands."""
        for event in self.core.take_events():
            if isinstance(event, AuthRequest) and self.chance.random() < 0.8:
                outcome = self.chance.choice(list(Outcome))
                command = auth_result_command(
                    event.connection,
                    event.ticket,
                    outcome,
                    code=self.chance.choice([0x00, 0x80, 0x87, 0x93, 0xFF]),
                    user=self._grammar.text()[:100],
                    data=self._grammar.data(),
                    reason=self._grammar.text(),
                )
                perform(self.core, self._note("command", 0, command), {})
        if self.chance.random() < 0.02:
            kind = self.chance.choice([0, 3, 4, 8, 255])
            # Without a body the one that says that the configuration changes ends everybody.
            least = 1 if bytes((kind,)) == CONFIGURATION_CHANGES_COMMAND else 0
            command = bytes((kind,)) + self.chance.randbytes(self.chance.randrange(least, 20))
            perform(self.core, self._note("command", 0, command), {})

    def _feed(self, connection: Connection, data: bytes, at: dict[int, int]) -> None:
        start = at[connection.number]
        size = self.chance.choice([1, 7, 100, 4000, len(data)])
        known = {connection.number: connection}
        if self.chance.random() < 0.05:
            perform(self.core, self._note("window", connection.number, b"0"), known)
        note = self._note("data", connection.number, data[start : start + size])
        perform(self.core, note, known)
        at[connection.number] = start + size

    def _stream(self, transport: Transport) -> bytes:
        version = self.chance.choice([3, 4, 5, 5])
        packets = [self._grammar.connect(version)]
        packets += [self._grammar.packet(version) for _ in range(self.chance.randrange(12))]
        self.packets += len(packets)
        wrong = self.chance.choice([0.0, 0.1, 0.3, 1.0])
        packets = [self._broken(p) if self.chance.random() < wrong else p for p in packets]
        if transport is Transport.MQTT:
            return b"".join(packets)
        framed = [ws.client_frame(ws.BINARY, packet) for packet in packets]
        framed.insert(0, ws.WebSocketClient().upgrade())
        if self.chance.random() < 0.3:
            opcode = self.chance.choice([ws.PING, ws.PONG, ws.CLOSE, ws.TEXT, 3, 15])
            odd = ws.client_frame(opcode, self._grammar.data()[:130])
            framed.insert(self.chance.randrange(1, len(framed) + 1), odd)
        raw = b"".join(framed)
        return self._broken(raw) if self.chance.random() < 0.3 else raw

    def _broken(self, raw: bytes) -> bytes:
        return self._grammar.mutate(raw)

    def _note(self, what: str, number: int, data: bytes) -> tuple[str, int, str]:
        note = (what, number, data.hex())
        self._script.append(note)
        return note

    def _check_good(self) -> None:
        check_good(self._good)

    def _settle(self) -> None:
        """Sessions expire, retained messages are cleared: the heap must be where it was."""
        self.core.advance(120_000)
        for client in self._good:
            client.pump()
            client.inbox.clear()
        cleaner = connected(self.core, "cleaner", attestation=Attestation(3, PROVEN))
        cleaner.subscribe("#", "$SYS/#")
        for packet in cleaner.received():
            if packet.retain:
                cleaner.send(Publish(packet.text, b"", retain=True))
        cleaner.received()
        cleaner.disconnect()
        for client in self._good:
            client.pump()
            client.inbox.clear()
        counters = self.core.counters()
        assert counters["sessions"] == len(self._good), f"sessions stay: {counters}"
        assert counters["connections_open"] == len(self._good), f"connections stay: {counters}"
        assert counters["retained"] == 0, f"retained messages stay: {counters}"
        if self._rounds <= WARM_ROUNDS:
            self._base = self.core.heap_bytes
        assert self.core.heap_bytes <= self._base + HEAP_SLACK_BYTES, (
            f"the heap grew from {self._base} to {self.core.heap_bytes}: {counters}"
        )


def check_good(clients: list[FakeClient]) -> None:
    """Well-behaved clients reach each other with every QoS, and nothing else reaches them."""
    for client in clients:
        client.ping()
    for qos in range(3):
        clients[0].publish("good/x", b"payload", qos)
        for client in clients:
            client.expect_publish("good/x", b"payload", qos)
    for client in clients:
        client.expect_nothing()


def perform(
    core: CoreDriver, note: tuple[str, int, str], connections: dict[int, Connection]
) -> Connection | None:
    """Carries out one line of a recording."""
    what, number, data = note
    if what == "open":
        proof = Attestation(bytes.fromhex(data)[0], PROVEN) if data else None
        return core.open(Transport(number), attestation=proof)
    if what == "advance":
        core.advance(number)
        return None
    if what == "command":
        core.command(bytes.fromhex(data))
        return None
    connection = connections.get(number)
    if connection is None or not connection.alive:
        return None
    if what == "data":
        core.send(connection, bytes.fromhex(data))
    elif what == "window":
        core.open_window(connection, 0)
    else:
        core.close(connection)
    return None


def replay(recording: bytes) -> None:
    """Carries out a recording against a fresh core; raises what the core does wrong."""
    fuzzer = CoreFuzzer(0)
    for note in json.loads(zlib.decompress(recording)):
        perform(fuzzer.core, tuple(note), fuzzer.core.connections)
    check_good(fuzzer._good)
