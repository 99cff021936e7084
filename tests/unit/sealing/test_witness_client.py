"""The store's side of a witness, over links in memory: what it refuses, and what it puts right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from avow.errors import MalformedError, RolledBackError, UnavailableError, UntrustedError
from avow.sealing.anchor import Remembered, Step
from avow.sealing.witness import (
    ANSWER_BYTES,
    GREETING_BYTES,
    encode_greeting,
    public_bytes,
    public_key_text,
    store_key,
)
from avow.sealing.witness_client import Endpoint, WitnessAnchor, parse_endpoint
from avow.sealing.witness_service import Event, Witness, WitnessMemory
from tests.unit.sealing.anchor_world import FakeRoot

STORE_ID = bytes(range(16))
KEY = store_key(bytes(range(32)), STORE_ID)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PLACE = Endpoint("witness.example", 7420)
D = [bytes([number]) * 32 for number in range(16)]


@dataclass
class Wire:
    """A witness without a network. Faults are taken from the front, one for each exchange."""

    witness: Witness
    faults: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    connections: int = 0
    change: Callable[[bytes], bytes] = lambda answer: answer
    greeting: Callable[[bytes], bytes] = lambda greeting: greeting

    def connect(self, endpoint: Endpoint, timeout_s: float) -> WireLink:
        assert endpoint == PLACE
        assert 0 < timeout_s <= 5
        if self.faults and self.faults[0] == "refused":
            self.faults.pop(0)
            raise ConnectionRefusedError(111, "Connection refused")
        self.connections += 1
        return WireLink(self, self.connections.to_bytes(32, "little"))


class WireLink:
    def __init__(self, wire: Wire, challenge: bytes) -> None:
        self._wire = wire
        self._challenge = challenge
        self._number = 0
        self._waiting = wire.greeting(encode_greeting(challenge))
        self._patient = False
        self.closed = False

    def send(self, content: bytes, timeout_s: float) -> None:
        assert not self.closed
        fault = self._wire.faults.pop(0) if self._wire.faults else ""
        if fault == "lost request":
            raise BrokenPipeError(32, "Broken pipe")
        if fault == "nothing comes":
            self._waiting, self._patient = b"", True
            return
        self._number += 1
        answer = self._wire.witness.respond(content, self._challenge, self._number).content
        if fault == "lost answer":
            raise ConnectionResetError(104, "Connection reset by peer")
        self._waiting += self._wire.change(answer)

    def receive(self, count: int, timeout_s: float) -> bytes:
        assert not self.closed
        if len(self._waiting) < count:
            if self._patient:
                threading.Event().wait(timeout_s)
            raise TimeoutError(110, "timed out")
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    memory = WitnessMemory(tmp_path / "witness.db")
    wire = Wire(Witness(memory, WITNESS))
    wire.witness._note = wire.events.append
    yield wire
    memory.close()


def anchor(wire: Wire) -> WitnessAnchor:
    return WitnessAnchor(PLACE, public_bytes(WITNESS), KEY, STORE_ID, connect=wire.connect)


def root(sequence: int, value: int) -> FakeRoot:
    return FakeRoot(sequence, D[sequence], value)


def step(value: int, nonce: int = 0) -> Step:
    """To `value`, from a branch that says so."""
    return Step(value, value.to_bytes(32, "little"), bytes([nonce]) * 32)


def known(value: int, sequence: int) -> Remembered:
    return Remembered(value, step(value).branch, sequence, D[sequence])


def remembered(wire: Wire) -> Remembered | None:
    return anchor(wire).read()


def test_one_connection_for_all(wire: Wire) -> None:
    store = anchor(wire)
    assert store.read() is None
    for number in range(1, 8):
        store.advance(step(number), root(number + 1, number))
        assert store.read() == known(number, number + 1)
    assert wire.connections == 1
    assert [event.what for event in wire.events] == ["new store"]


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_a_kept_connection_that_ended(wire: Wire, fault: str) -> None:
    """It was idle for long: asked again on a new one, once, and nothing happens twice."""
    store = anchor(wire)
    store.advance(step(1), root(2, 1))
    wire.faults = [fault]
    store.advance(step(2), root(3, 2))
    assert wire.connections == 2
    assert remembered(wire) == known(2, 3)


def test_a_kept_connection_that_is_dead(wire: Wire) -> None:
    """Nobody says that it ended: there is time left for another one."""
    store = WitnessAnchor(
        PLACE, public_bytes(WITNESS), KEY, STORE_ID, connect=wire.connect, timeout_s=0.4
    )
    store.advance(step(1), root(2, 1))
    wire.faults = ["nothing comes"]
    store.advance(step(2), root(3, 2))
    assert wire.connections == 2
    assert remembered(wire) == known(2, 3)


def test_nobody_there(wire: Wire) -> None:
    wire.faults = ["refused"]
    with pytest.raises(UnavailableError, match=r"within 5 s, got: Connection refused"):
        anchor(wire).read()


def test_all_connections_fail(wire: Wire) -> None:
    store = anchor(wire)
    store.read()
    wire.faults = ["lost request", "refused"]
    with pytest.raises(UnavailableError, match="`avow witness` runs there"):
        store.advance(step(1), root(2, 1))


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_goes_on_where_nobody_said_what_happened(wire: Wire, fault: str) -> None:
    """The store has committed more meanwhile, so it is another root that is advanced with."""
    store = anchor(wire)
    store.advance(step(1), root(2, 1))
    wire.faults = [fault, "refused"]
    with pytest.raises(UnavailableError):
        store.advance(step(2), root(3, 2))
    store.advance(step(2), root(4, 2))
    assert remembered(wire) == known(2, 4)
    wire.faults = [fault, "refused"]
    with pytest.raises(UnavailableError):
        store.advance(step(3), root(5, 3))
    store.advance(step(3), root(5, 3))
    assert remembered(wire) == known(3, 5)


def test_of_two_copies_one_goes_on(wire: Wire) -> None:
    one, other = anchor(wire), anchor(wire)
    one.advance(step(1), root(2, 1))
    other.read()
    one.advance(step(2), root(3, 2))
    with pytest.raises(RolledBackError, match="another copy of the store was changed meanwhile"):
        other.advance(step(2), FakeRoot(3, D[9], 2))
    one.advance(step(3), root(4, 3))
    assert [event.what for event in wire.events] == ["new store", "refused (conflict)"]


def test_a_copy_does_not_mistake_the_others_root_for_its_own(wire: Wire) -> None:
    """Also not after an answer was lost."""
    one, other = anchor(wire), anchor(wire)
    one.advance(step(1), root(2, 1))
    other.read()
    one.advance(step(2), root(3, 2))
    wire.faults = ["lost request", "refused"]
    with pytest.raises(UnavailableError):
        other.advance(step(2), FakeRoot(3, D[9], 2))
    with pytest.raises(RolledBackError):
        other.advance(step(2), FakeRoot(4, D[10], 2))


def test_never_backwards(wire: Wire) -> None:
    store = anchor(wire)
    store.advance(step(5), root(9, 5))
    for older in (root(8, 6), root(10, 4), FakeRoot(9, D[11], 6)):
        with pytest.raises(RolledBackError):
            store.advance(step(older.anchor), older)
    store.accept(step(6), root(3, 6))
    assert remembered(wire) == known(6, 3)
    assert wire.events[-1].what == "rollback accepted"


def test_a_witness_that_forgot(wire: Wire, tmp_path: Path) -> None:
    store = anchor(wire)
    store.advance(step(1), root(2, 1))
    store.close()
    memory = WitnessMemory(tmp_path / "other.db")
    wire.witness = Witness(memory, WITNESS)
    with pytest.raises(RolledBackError, match="it knows no such store"):
        store.advance(step(2), root(3, 2))
    memory.close()


def test_full(wire: Wire, tmp_path: Path) -> None:
    memory = WitnessMemory(tmp_path / "small.db")
    wire.witness = Witness(memory, WITNESS, stores_max=1)
    store = anchor(wire)
    store.advance(step(1), root(2, 1))
    key = store_key(b"\x01" * 32, STORE_ID)
    late = WitnessAnchor(PLACE, public_bytes(WITNESS), key, STORE_ID, connect=wire.connect)
    assert late.read() is None
    with pytest.raises(UnavailableError, match="--stores-max"):
        late.advance(step(1), root(2, 1))
    assert len(memory) == 1
    store.advance(step(2), root(3, 2))
    memory.close()


def test_another_witness(wire: Wire) -> None:
    store = anchor(wire)
    store.advance(step(1), root(2, 1))
    store.close()
    impostor = Ed25519PrivateKey.generate()
    wire.witness._key = impostor
    with pytest.raises(UntrustedError, match="signed by the witness"):
        store.read()
    # An honest witness with a key of its own refuses what was signed for another.
    wire.witness.public_key = public_bytes(impostor)
    with pytest.raises(UntrustedError):
        store.read()


def test_repeated_answers(wire: Wire) -> None:
    """On the same connection and on another one."""
    answers: list[bytes] = []

    def keep(answer: bytes) -> bytes:
        answers.append(answer)
        return answer

    wire.change = keep
    store = anchor(wire)
    store.advance(step(1), root(2, 1))
    store.read()
    for old in list(answers):
        wire.change = lambda answer, old=old: old  # type: ignore[misc]
        with pytest.raises(UntrustedError, match="or repeats an old answer"):
            store.read()
        with pytest.raises(UntrustedError):
            anchor(wire).read()


def test_answers_for_another_store(wire: Wire) -> None:
    key = store_key(b"\x01" * 32, STORE_ID)
    other = WitnessAnchor(PLACE, public_bytes(WITNESS), key, STORE_ID, connect=wire.connect)
    answers: list[bytes] = []
    wire.change = lambda answer: answers.append(answer) or answer  # type: ignore[func-returns-value]
    other.advance(step(1), root(2, 1))
    wire.change = lambda answer: answers[-1]
    with pytest.raises(UntrustedError):
        anchor(wire).read()


@pytest.mark.parametrize("length", [0, 1, ANSWER_BYTES - 1])
def test_answers_that_end(wire: Wire, length: int) -> None:
    wire.change = lambda answer: answer[:length]
    with pytest.raises(UnavailableError, match="timed out"):
        anchor(wire).read()


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n".ljust(GREETING_BYTES), b""])
def test_no_witness_at_all(wire: Wire, greeting: bytes) -> None:
    wire.greeting = lambda honest: greeting
    with pytest.raises((UntrustedError, UnavailableError)):
        anchor(wire).read()


def test_an_error_ends_the_connection(wire: Wire) -> None:
    """Nothing that comes late can be taken for the answer to the next request."""
    store = anchor(wire)
    store.read()
    wire.change = lambda answer: bytes(ANSWER_BYTES)
    with pytest.raises(UntrustedError):
        store.read()
    wire.change = lambda answer: answer
    assert store.read() is None
    assert wire.connections == 2


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.7:7420", Endpoint("192.0.2.7", 7420)),
        ("witness.example:1", Endpoint("witness.example", 1)),
        ("[2001:db8::7]:7420", Endpoint("2001:db8::7", 7420)),
        ("localhost:0", Endpoint("localhost", 0)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":1", "host:65536", "host:-1", "host:1x", "2001:db8::7:1", "a b:1"),
        *("host:1 ", "[::1]", "host:\u0661", "user@host:1", "host:1#x"),
        *("a..b:1", ".host:1", f"{'a' * 64}.example:1", "h\u00e9..:1"),
    ],
)
def test_no_endpoints(text: str) -> None:
    with pytest.raises(MalformedError, match="HOST:PORT"):
        parse_endpoint(text)


def test_a_witness_with_another_key_is_named(wire: Wire) -> None:
    """It greets, cannot check the signature, and ends the connection without an answer."""
    wire.faults = ["lost answer", "lost answer"]
    asked = anchor(wire)
    with pytest.raises(UnavailableError, match="another key") as caught:
        asked.read()
    assert public_key_text(public_bytes(WITNESS)) in str(caught.value)
    # A connection that was of use before ended for another reason.
    wire.faults = []
    asked.read()
    asked._timeout_s = 0.2
    wire.faults = ["lost answer", "nothing comes"]
    with pytest.raises(UnavailableError, match="to answer within"):
        asked.read()
