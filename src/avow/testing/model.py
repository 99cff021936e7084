"""A small model of an MQTT broker, against which the simulation checks the real core.

The model gets the same packets in the same order as the core. It does not know how the core
works: for each session it writes down which messages have to arrive, and leaves open what the
specification leaves open (when they come, and whether messages of QoS 0 survive).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from avow.testing.mqtt import (
    Connect,
    Disconnect,
    Filter,
    Publish,
    Pubrel,
    Subscribe,
    ToServer,
    Unsubscribe,
    Will,
)
from avow.testing.mqtt_properties import Properties, Property

FOREVER_S = 0xFFFFFFFF
PROTECTED = "p/"
"""Topics that begin so are for attested connections only."""


def matches(wanted: str, topic: str) -> bool:
    """Section 4.7, for filters and topics that are valid."""
    if topic.startswith("$") and wanted[:1] in ("#", "+"):
        return False
    levels = topic.split("/")
    parts = wanted.split("/")
    for index, part in enumerate(parts):
        if part == "#":
            return True
        if index == len(levels) or part not in ("+", levels[index]):
            return False
    return len(parts) == len(levels)


@dataclass(frozen=True, slots=True)
class Message:
    """One application message; `number` is its place in the order of all."""

    number: int
    publisher: str
    topic: str
    payload: bytes
    qos: int


@dataclass(slots=True)
class Delivery:
    """A message that belongs to a session. `needed`: it has to arrive in the end."""

    message: Message
    qos: int
    retained: bool
    needed: bool


@dataclass(slots=True)
class Subscription:
    """One subscription of a session."""

    qos: int
    no_local: bool


@dataclass(slots=True)
class Session:
    """One session from its start to its end."""

    client_id: str
    number: int
    expiry_s: int
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    open_qos2: set[int] = field(default_factory=set)
    """Packet identifiers of the client's QoS 2 messages before PUBREL."""
    deliveries: list[Delivery] = field(default_factory=list)
    connection: int | None = None
    ended: bool = False
    attested: bool = False
    """What the connection that it has, or had last, has proven."""
    kept_shared: bool = True
    """It never left a shared subscription."""
    ends_at_ms: int | None = None


def may_have(session: Session, topic: str) -> bool:
    """The access rules of the simulation."""
    return session.attested or not topic.startswith(PROTECTED)


@dataclass(slots=True)
class ExpectedWill:
    """A will that has to be published in this time; `certain` unless a crash came between."""

    client_id: str
    payload: bytes
    from_ms: int
    certain: bool = True


@dataclass(slots=True)
class SharedDelivery:
    """A message for one of the sessions of a group.

    `members` were there when it was published. Who joins later can get it too, from one of them
    that has gone.
    """

    filter: str
    message: Message
    members: list[Session]


@dataclass(slots=True)
class _Wire:
    """What the model knows of one connection."""

    session: Session | None = None
    will: Will | None = None
    finished: bool = False
    attested: bool = False


@dataclass(slots=True)
class _DelayedWill:
    session: Session
    will: Will
    at_ms: int


class ModelBroker:
    """The model. Inputs: `packet`, `closed`, `time`, `crash`; the rest is to look at."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.sessions: dict[str, Session] = {}
        self.past: list[Session] = []
        self.retained: dict[str, Message] = {}
        self.wills: list[ExpectedWill] = []
        self.shared: list[SharedDelivery] = []
        self.session_present: dict[int, bool] = {}
        """By connection: what the CONNACK has to say."""
        self._wires: dict[int, _Wire] = {}
        self._delayed: list[_DelayedWill] = []
        self._numbers = 0

    # -- inputs -----------------------------------------------------------------------------

    def opened(self, connection: int, *, attested: bool = False) -> None:
        """A new network connection."""
        self._wires[connection] = _Wire(attested=attested)
        self.session_present.pop(connection, None)

    def packet(self, connection: int, packet: Connect | ToServer) -> None:
        """The core has got this packet whole."""
        wire = self._wires[connection]
        if wire.finished:
            return
        if isinstance(packet, Connect):
            self._connect(connection, wire, packet)
            return
        session = wire.session
        if session is None:
            return
        if isinstance(packet, Publish):
            self._publish(session, packet)
        elif isinstance(packet, Pubrel):
            session.open_qos2.discard(packet.packet_id)
        elif isinstance(packet, Subscribe):
            for one in packet.filters:
                self._subscribe(session, one)
        elif isinstance(packet, Unsubscribe):
            for wanted in packet.filters:
                left = session.subscriptions.pop(str(wanted), None)
                for delivery in session.deliveries:
                    if delivery.retained and matches(str(wanted), delivery.message.topic):
                        delivery.needed = False
                if left is not None and str(wanted).startswith("$share/"):
                    session.kept_shared = False
            self._loosen(session)
        elif isinstance(packet, Disconnect):
            if packet.code == 0:
                wire.will = None
            self._end_connection(connection, wire)

    def closed(self, connection: int) -> None:
        """The core was told that the connection is gone."""
        wire = self._wires[connection]
        if not wire.finished:
            self._end_connection(connection, wire)

    def time(self, now_ms: int) -> None:
        """The clock of the core."""
        self.now_ms = now_ms
        for delayed in [d for d in self._delayed if d.at_ms <= now_ms]:
            self._delayed.remove(delayed)
            self._publish_will(delayed.session.client_id, delayed.will, delayed.at_ms)
        for session in list(self.sessions.values()):
            if session.ends_at_ms is not None and session.ends_at_ms <= now_ms:
                self._end_session(session)

    def crash(self) -> None:
        """The core was restored from its journal: connections are gone, durable sessions stay.

        Whether the wills of the broken connections are published is left open (3.1.2.5).
        """
        for connection, wire in list(self._wires.items()):
            if wire.finished:
                continue
            if wire.will is not None and wire.session is not None:
                expected = ExpectedWill(wire.session.client_id, wire.will.payload, self.now_ms)
                expected.certain = False
                self.wills.append(expected)
                wire.will = None
            self._end_connection(connection, wire)
        for delayed in self._delayed:
            expected = ExpectedWill(delayed.session.client_id, delayed.will.payload, delayed.at_ms)
            expected.certain = False
            self.wills.append(expected)
        self._delayed.clear()
        for session in self.sessions.values():
            for delivery in session.deliveries:
                if delivery.qos == 0:
                    delivery.needed = False

    # -- looking ----------------------------------------------------------------------------

    def session_of(self, connection: int) -> Session | None:
        """The session of the last CONNECT of a connection."""
        wire = self._wires.get(connection)
        return wire.session if wire is not None else None

    def all_sessions(self, client_id: str) -> list[Session]:
        """Every session that a client had."""
        current = self.sessions.get(client_id)
        past = [session for session in self.past if session.client_id == client_id]
        return [*past, current] if current is not None else past

    def next_moment_ms(self, client_id: str) -> int | None:
        """When a will of this client is due or its session ends."""
        moments = [d.at_ms for d in self._delayed if d.session.client_id == client_id]
        session = self.sessions.get(client_id)
        if session is not None and session.ends_at_ms is not None:
            moments.append(session.ends_at_ms)
        return min(moments, default=None)

    # -- what they do -----------------------------------------------------------------------

    def _connect(self, connection: int, wire: _Wire, packet: Connect) -> None:
        client_id = str(packet.client_id)
        old = self.sessions.get(client_id)
        expiry_s = self._expiry(packet)
        if old is not None and old.connection is not None:
            self._take_over(old, packet.clean_start)
        old = self.sessions.get(client_id)
        if old is not None and packet.clean_start:
            self._end_session(old)
            old = None
        if old is None:
            self._numbers += 1
            session = Session(client_id, self._numbers, expiry_s)
            self.sessions[client_id] = session
        else:
            session = old
        self._delayed = [d for d in self._delayed if d.session is not session]
        session.expiry_s = expiry_s
        session.connection = connection
        session.attested = wire.attested
        if not wire.attested:
            for delivery in session.deliveries:
                if delivery.message.topic.startswith(PROTECTED):
                    delivery.needed = False
        session.ends_at_ms = None
        wire.session = session
        wire.will = packet.will
        self.session_present[connection] = old is not None

    @staticmethod
    def _expiry(packet: Connect) -> int:
        if packet.version != 5:
            return 0 if packet.clean_start else FOREVER_S
        properties = packet.properties
        if not isinstance(properties, Properties):
            return 0
        return properties.integer(Property.SESSION_EXPIRY_INTERVAL) or 0

    def _take_over(self, session: Session, clean_start: bool) -> None:
        connection = session.connection
        if connection is not None:
            self._end_connection(connection, self._wires[connection])

    def _end_connection(self, connection: int, wire: _Wire) -> None:
        wire.finished = True
        session = wire.session
        if session is None:
            return
        session.connection = None
        will, wire.will = wire.will, None
        delay_s = self._delay(will) if will is not None else 0
        if will is not None and (delay_s == 0 or session.expiry_s == 0):
            self._publish_will(session.client_id, will, self.now_ms)
        elif will is not None:
            wait_s = min(delay_s, session.expiry_s)
            self._delayed.append(_DelayedWill(session, will, self.now_ms + wait_s * 1000))
        if session.expiry_s == 0:
            self._end_session(session)
        elif session.expiry_s != FOREVER_S:
            session.ends_at_ms = self.now_ms + session.expiry_s * 1000

    @staticmethod
    def _delay(will: Will) -> int:
        if not isinstance(will.properties, Properties):
            return 0
        return will.properties.integer(Property.WILL_DELAY_INTERVAL) or 0

    def _end_session(self, session: Session) -> None:
        for delayed in [d for d in self._delayed if d.session is session]:
            self._delayed.remove(delayed)
            self._publish_will(session.client_id, delayed.will, self.now_ms)
        session.ended = True
        self.past.append(session)
        del self.sessions[session.client_id]

    def _publish_will(self, client_id: str, will: Will, at_ms: int) -> None:
        """Wills have topics of their own that only the watcher of the simulation sees."""
        self.wills.append(ExpectedWill(client_id, will.payload, at_ms))

    def _publish(self, session: Session, packet: Publish) -> None:
        if packet.qos == 2 and packet.packet_id is not None:
            if packet.packet_id in session.open_qos2:
                return  # sent again before PUBREL: no new message [MQTT-4.3.3-10]
            session.open_qos2.add(packet.packet_id)
        self._numbers += 1
        message = Message(self._numbers, session.client_id, packet.text, packet.payload, packet.qos)
        if packet.retain:
            self._replaced(message)
            if packet.payload:
                self.retained[message.topic] = message
            else:
                self.retained.pop(message.topic, None)
        self._route(message)

    def _replaced(self, message: Message) -> None:
        """A subscription that waits for what the topic retained gets the new value instead."""
        old = self.retained.get(message.topic)
        for session in self.sessions.values():
            for delivery in session.deliveries:
                if delivery.retained and delivery.message is old:
                    delivery.needed = False
            for wanted, subscription in session.subscriptions.items():
                if matches(wanted, message.topic):
                    qos = min(subscription.qos, message.qos)
                    session.deliveries.append(Delivery(message, qos, True, False))

    def _route(self, message: Message) -> None:
        groups: dict[str, list[Session]] = {}
        for session in self.sessions.values():
            granted = -1
            for wanted, subscription in session.subscriptions.items():
                if wanted.startswith("$share/"):
                    if matches(wanted.split("/", 2)[2], message.topic):
                        groups.setdefault(wanted, []).append(session)
                    continue
                if subscription.no_local and session.client_id == message.publisher:
                    continue
                if matches(wanted, message.topic) and may_have(session, message.topic):
                    granted = max(granted, subscription.qos)
            if granted >= 0:
                qos = min(granted, message.qos)
                session.deliveries.append(Delivery(message, qos, False, qos > 0))
        for wanted, members in groups.items():
            self.shared.append(SharedDelivery(wanted, message, members))
            for member in members:
                member.deliveries.append(Delivery(message, message.qos, False, False))

    def _subscribe(self, session: Session, one: Filter) -> None:
        wanted = str(one.filter)
        existed = wanted in session.subscriptions
        session.subscriptions[wanted] = Subscription(one.qos, one.no_local)
        if wanted.startswith("$share/"):
            for shared in self.shared:
                if shared.filter == wanted and session not in shared.members:
                    message = shared.message
                    session.deliveries.append(Delivery(message, message.qos, False, False))
        if wanted.startswith("$share/"):
            return
        if existed:
            # What is still to come of the retained messages comes by the new terms, once.
            self._renewed(session, wanted, one.qos)
        if one.retain_handling == 2 or (one.retain_handling == 1 and existed):
            return
        for topic, message in self.retained.items():
            if matches(wanted, topic):
                qos = min(one.qos, message.qos)
                # Whether No Local is about retained messages too, the text leaves open.
                own = one.no_local and message.publisher == session.client_id
                needed = qos > 0 and not own and may_have(session, topic)
                session.deliveries.append(Delivery(message, qos, True, needed))

    def _renewed(self, session: Session, wanted: str, qos: int) -> None:
        for delivery in session.deliveries:
            if delivery.retained and matches(wanted, delivery.message.topic):
                delivery.needed = False
        for topic, message in self.retained.items():
            if matches(wanted, topic):
                session.deliveries.append(Delivery(message, min(qos, message.qos), True, False))

    def _loosen(self, session: Session) -> None:
        """After UNSUBSCRIBE a server may drop what it has not begun to send (3.10.4)."""
        kept = [w for w in session.subscriptions if not w.startswith("$share/")]
        for delivery in session.deliveries:
            if not any(matches(w, delivery.message.topic) for w in kept):
                delivery.needed = False
