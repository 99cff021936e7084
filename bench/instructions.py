"""How many Wasm instructions the core runs for a message, beside those of another build.

    python -m bench instructions [OTHER.wasm]

wasmtime counts them (as fuel), so that the figures are the same on every machine, however loaded it
is. What the processor's caches cost is not in them. Every answer of the core is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

from avow.errors import AvowError
from avow.testing.core_abi import LAYOUT_VERSION, Setting
from avow.testing.core_driver import Connection, CoreDriver
from avow.testing.mqtt import (
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    StreamDecoder,
    Subscribe,
)

_VERSION = 4
_PAYLOAD = b"x" * 64
# Messages of one call, each by another publisher or all by one, as the scenario says.
_MESSAGES = 32
# The first rounds grow lists and fill the cache of matches, as in a broker that has run a while.
_WARM_UP_ROUNDS = 10
_ROUNDS = 20

Round = Callable[[int], None]


class InstructionsError(Exception):
    """The core sent something else than was expected."""


class _Counted(CoreDriver):
    """A core of this build or of an earlier one: 2 has the same records as 3, but other events."""

    layout_versions = frozenset({2, LAYOUT_VERSION})

    def _note_events(self, raw: bytes) -> None:
        pass


class Core:
    """A core whose instructions are counted, and clients of it."""

    def __init__(self, wasm: str | None) -> None:
        self.driver = _Counted(
            wasm=wasm,
            settings={
                Setting.QUEUED_BYTES_MAX: 1 << 30,
                Setting.QUEUED_MESSAGES_MAX: 1 << 20,
                Setting.PERSIST_SESSIONS: 0,
            },
            count_instructions=True,
        )
        self._names = 0

    def client(self, *filters: Filter) -> Connection:
        """A client that has subscribed to these."""
        self._names += 1
        connection = self.driver.open()
        name = Connect(f"client-{self._names:05}", version=_VERSION).encode()
        self.exchange(connection, name, b"\x20\x02\x00\x00")
        for one in filters:
            request = Subscribe(1, [one]).encode(_VERSION)
            self.exchange(connection, request, b"\x90\x03\x00\x01" + bytes((one.qos,)))
        return connection

    def exchange(self, connection: Connection, sent: bytes, expected: bytes) -> None:
        """Sends, and takes exactly this answer."""
        self.driver.send(connection, sent)
        self.expect(connection, expected)

    def expect(self, connection: Connection, expected: bytes) -> None:
        """Takes exactly these bytes."""
        if (came := connection.read()) != expected:
            raise InstructionsError(
                f"client {connection.number} got {len(came)} bytes, not the "
                f"{len(expected)} expected"
            )


def _publish(topic: str, qos: int = 0, number: int = 0, *, retain: bool = False) -> bytes:
    packet = Publish(topic, _PAYLOAD, qos, number if qos else None, retain=retain)
    return packet.encode(_VERSION)


def _pairs(core: Core, qos: int) -> Round:
    """So many pairs; each publisher sends one message in a call."""
    topics = [f"site/{index:02}/state" for index in range(_MESSAGES)]
    pairs = [(core.client(), core.client(Filter(topic, qos)), topic) for topic in topics]

    def one_round(number: int) -> None:
        identifier = number + 1
        with core.driver.batch():
            for publisher, _, topic in pairs:
                core.driver.send(publisher, _publish(topic, qos, identifier))
        for _, subscriber, topic in pairs:
            if qos == 0:
                core.expect(subscriber, _publish(topic))
        if qos:
            _acknowledge(core, pairs, qos, identifier)

    return one_round


def _acknowledge(
    core: Core, pairs: list[tuple[Connection, Connection, str]], qos: int, identifier: int
) -> None:
    """Both halves of every exchange, each step of all pairs in one call."""
    given: dict[Connection, int] = {}
    for publisher, subscriber, topic in pairs:
        packets = StreamDecoder(_VERSION).feed(subscriber.read())
        if len(packets) != 1 or not isinstance(packets[0], Publish) or packets[0].text != topic:
            raise InstructionsError(f"expected one PUBLISH on {topic}, {packets} came")
        given[subscriber] = packets[0].packet_id or 0
        first = Puback(identifier) if qos == 1 else Pubrec(identifier)
        core.expect(publisher, first.encode(_VERSION))
    with core.driver.batch():
        for publisher, subscriber, _ in pairs:
            known = given[subscriber]
            answer = Puback(known) if qos == 1 else Pubrec(known)
            core.driver.send(subscriber, answer.encode(_VERSION))
            if qos == 2:
                core.driver.send(publisher, Pubrel(identifier).encode(_VERSION))
    if qos == 1:
        return
    with core.driver.batch():
        for publisher, subscriber, _ in pairs:
            core.expect(publisher, Pubcomp(identifier).encode(_VERSION))
            core.expect(subscriber, Pubrel(given[subscriber]).encode(_VERSION))
            core.driver.send(subscriber, Pubcomp(given[subscriber]).encode(_VERSION))


def _fan_out(core: Core, subscribers: int, *, at_once: int = _MESSAGES) -> Round:
    """One publisher, so many messages in one piece."""
    publisher = core.client()
    readers = [core.client(Filter("site/fan/out")) for _ in range(subscribers)]
    piece = _publish("site/fan/out") * at_once

    def one_round(_: int) -> None:
        core.driver.send(publisher, piece)
        for reader in readers:
            core.expect(reader, piece)

    return one_round


def _retained(core: Core) -> Round:
    publisher = core.client()
    reader = core.client(Filter("retained/#"))
    topics = [f"retained/{index:02}" for index in range(_MESSAGES)]

    def one_round(_: int) -> None:
        core.driver.send(publisher, b"".join(_publish(topic, retain=True) for topic in topics))
        core.expect(reader, b"".join(_publish(topic) for topic in topics))

    return one_round


def _shared(core: Core) -> Round:
    publisher = core.client()
    members = [core.client(Filter("$share/group/shared/topic")) for _ in range(4)]

    def one_round(_: int) -> None:
        core.driver.send(publisher, _publish("shared/topic") * _MESSAGES)
        for member in members:
            core.expect(member, _publish("shared/topic") * (_MESSAGES // len(members)))

    return one_round


def _not_cached(core: Core) -> Round:
    """Every topic is a new one."""
    publisher = core.client()
    reader = core.client(Filter("fresh/+/state"))

    def one_round(number: int) -> None:
        topics = [f"fresh/{number:04}-{index:02}/state" for index in range(_MESSAGES)]
        piece = b"".join(_publish(topic) for topic in topics)
        core.driver.send(publisher, piece)
        core.expect(reader, piece)

    return one_round


def _no_match(core: Core) -> Round:
    publisher = core.client()
    core.client(Filter("somebody/else"))
    return lambda _: core.driver.send(publisher, _publish("nobody/here") * _MESSAGES)


def _ping(core: Core) -> Round:
    client = core.client()
    return lambda _: core.exchange(
        client, Pingreq().encode(_VERSION) * _MESSAGES, b"\xd0\x00" * _MESSAGES
    )


def _connect(core: Core) -> Round:
    def one_round(_: int) -> None:
        for _ in range(_MESSAGES):
            client = core.client()
            core.driver.send(client, Disconnect().encode(_VERSION))

    return one_round


# Name, what is set up, and deliveries (or packets, connections) of one round.
_SCENARIOS: dict[str, tuple[Callable[[Core], Round], int]] = {
    "QoS 0, 1:1": (lambda core: _pairs(core, 0), _MESSAGES),
    "QoS 1, 1:1": (lambda core: _pairs(core, 1), _MESSAGES),
    "QoS 2, 1:1": (lambda core: _pairs(core, 2), _MESSAGES),
    "QoS 0, 1:1, one at a time": (lambda core: _fan_out(core, 1, at_once=1), 1),
    "QoS 0, 1:1, in one piece": (lambda core: _fan_out(core, 1), _MESSAGES),
    "QoS 0, 1:20": (lambda core: _fan_out(core, 20), 20 * _MESSAGES),
    "QoS 0, 1:200": (lambda core: _fan_out(core, 200), 200 * _MESSAGES),
    "retained": (_retained, _MESSAGES),
    "shared": (_shared, _MESSAGES),
    "a topic of its own": (_not_cached, _MESSAGES),
    "nobody subscribes": (_no_match, _MESSAGES),
    "PINGREQ": (_ping, _MESSAGES),
    "CONNECT to the end": (_connect, _MESSAGES),
}


def count(wasm: str | None) -> Iterator[tuple[str, float]]:
    """Instructions for one delivery (packet, connection), by scenario."""
    for name, (prepare, deliveries) in _SCENARIOS.items():
        core = Core(wasm)
        one_round = prepare(core)
        for number in range(_WARM_UP_ROUNDS):
            one_round(number)
        before = core.driver.instructions
        for number in range(_WARM_UP_ROUNDS, _WARM_UP_ROUNDS + _ROUNDS):
            one_round(number)
        yield name, (core.driver.instructions - before) / (_ROUNDS * deliveries)


def main(argv: list[str]) -> int:
    """Errors: exit code 1 when a core is missing, or sends something unexpected."""
    parser = argparse.ArgumentParser(prog="python -m bench instructions", description=__doc__)
    parser.add_argument("other", nargs="?", help="the broker.wasm of another build")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        mine = dict(count(None))
        other = dict(count(arguments.other)) if arguments.other else {}
    except (InstructionsError, AvowError, OSError) as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        json.dump({"this": mine, "other": other}, sys.stdout)
        return 0
    for name, value in mine.items():
        beside = f"{other[name]:12,.1f} {value / other[name]:8.3f}" if name in other else ""
        print(f"{name:28} {value:12,.1f}{beside}")
    return 0
