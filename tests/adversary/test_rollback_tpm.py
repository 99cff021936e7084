"""A host that sits between avow and its TPM, and wants a store to look fresh or its key."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from avow.errors import AvowError, DeniedError, RolledBackError, UnavailableError, UntrustedError
from avow.evidence.claims import Workload
from avow.sealing.anchor import CounterAnchor, begin_fresh, open_fresh
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.nv_counter import NvCounter
from avow.tee.tpm.sealing import seal, unseal
from avow.testing.swtpm import SoftwareTpm
from tests.adversary.tpm_interposer import (
    CREATE_PRIMARY,
    NV_INCREMENT,
    NV_READ,
    NV_READ_PUBLIC,
    PCR_READ,
    UNSEAL,
    Interposer,
    code_of,
)
from tests.unit.sealing.anchor_world import Disk, FakeStore

pytestmark = pytest.mark.tpm

INDEX = 0x01800042
AUTHORISATION = bytes(range(1, 33))
SECRET = bytes(range(100, 132))
RUNS = Workload(b"m" * 32, b"r" * 32, b"c" * 32, bytes(32))


@dataclass
class Bus:
    interposer: Interposer
    device: TpmDevice

    def counter(self, authorisation: bytes = AUTHORISATION) -> NvCounter:
        return NvCounter(self.device, INDEX, authorisation)


@pytest.fixture
def bus() -> Iterator[Bus]:
    with SoftwareTpm() as tpm, Interposer(tpm) as interposer:
        device = TpmDevice(interposer.tcti, 5)
        yield Bus(interposer, device)
        device.close()


def on(code: int, change: Callable[[bytes], bytes]) -> Callable[[bytes, bytes], bytes]:
    return lambda command, answer: change(answer) if code_of(command) == code else answer


def with_value(answer: bytes, value: int) -> bytes:
    """An answer to TPM2_NV_Read with another value: header 10, parameterSize 4, TPM2B of 8."""
    if struct.unpack_from(">H", answer, 14) != (8,):
        return answer
    return answer[:16] + struct.pack(">Q", value) + answer[24:]


def test_the_bus_is_in_between(bus: Bus) -> None:
    """Else the tests below would prove nothing."""
    counter = bus.counter()
    assert counter.read() is None
    assert counter.begin()[0] == 1
    assert counter.increment() == 2
    assert len(bus.interposer.answers_to(NV_INCREMENT)) == 2
    last = bus.interposer.answers_to(NV_READ)[-1]
    assert with_value(last, 2) == last != with_value(last, 1)


def test_a_value_that_is_made_up(bus: Bus) -> None:
    counter = bus.counter()
    counter.begin()
    counter.increment()
    bus.interposer.change = on(NV_READ, lambda answer: with_value(answer, 1))
    with pytest.raises(UntrustedError, match="changes or repeats answers"):
        counter.read()


def test_an_answer_that_is_repeated(bus: Bus) -> None:
    counter = bus.counter()
    counter.begin()
    old = bus.interposer.answers_to(NV_READ)[-1]
    counter.increment()
    bus.interposer.change = on(NV_READ, lambda answer: old if len(answer) == len(old) else answer)
    with pytest.raises(UntrustedError, match="changes or repeats answers"):
        counter.read()


def test_an_answer_without_a_session(bus: Bus) -> None:
    """As to a password session: without HMAC."""
    counter = bus.counter()
    counter.begin()

    def plain(answer: bytes) -> bytes:
        parameters = answer[14:24]
        body = struct.pack(">I", len(parameters)) + parameters + struct.pack(">HBH", 0, 1, 0)
        return struct.pack(">HII", 0x8002, 10 + len(body), 0) + body

    bus.interposer.change = on(NV_READ, plain)
    with pytest.raises(AvowError):
        counter.read()


@pytest.mark.parametrize("how", ["an old answer", "a plain success"])
def test_an_increment_that_never_happens(bus: Bus, how: str) -> None:
    counter = bus.counter()
    counter.begin()
    (old,) = bus.interposer.answers_to(NV_INCREMENT)
    answer = old if how == "an old answer" else struct.pack(">HII", 0x8001, 10, 0)
    bus.interposer.swallow = lambda command: answer if code_of(command) == NV_INCREMENT else None
    with pytest.raises((UntrustedError, UnavailableError)):
        counter.increment()
    bus.interposer.swallow = lambda command: None
    bus.device.close()
    bus.device = TpmDevice(bus.interposer.tcti, 5)
    found = bus.counter().read()
    assert found is not None
    assert found[0] == 1


def test_another_index_in_its_place(bus: Bus) -> None:
    """A counter that the host made, with a value that it likes: it cannot know the secret."""
    theirs = NvCounter(bus.device, INDEX, b"\x66" * 32)
    theirs.begin()
    with pytest.raises(DeniedError, match="belongs to another store"):
        bus.counter().read()


@pytest.mark.parametrize("told", ["the other's area", "the other's name"])
@pytest.mark.parametrize("times", ["once", "always"])
def test_another_index_of_the_same_store_in_its_place(bus: Bus, told: str, times: str) -> None:
    """Here it is the counter that the store had before. Its authorisation value is the same, so
    that only its Name tells it apart."""
    before = NvCounter(bus.device, INDEX - 2, AUTHORISATION)
    before.begin()
    counter = bus.counter()
    counter.begin()
    counter.increment()
    assert counter.read() != before.read()
    theirs, ours = (index.to_bytes(4, "big") for index in (INDEX - 2, INDEX))
    public = {
        command[10:14]: answer
        for command, answer in bus.interposer.seen
        if code_of(command) == NV_READ_PUBLIC
    }
    lies: list[bytes] = []

    def lie(command: bytes, answer: bytes) -> bytes:
        asked = code_of(command) == NV_READ_PUBLIC and command[10:14] == ours
        if not asked or (lies and times == "once"):
            return answer
        # TPM2B_NAME is the last: 2 bytes of size, 34 of Name.
        whole = told == "the other's area"
        lies.append(public[theirs] if whole else answer[:-34] + public[theirs][-34:])
        return lies[-1]

    bus.interposer.change = lie
    bus.interposer.redirect = lambda command: (
        command.replace(ours, theirs) if code_of(command) == NV_READ else command
    )
    with pytest.raises(AvowError):
        counter.read()
    assert lies


def test_the_secret_never_crosses_in_clear(bus: Bus) -> None:
    counter = bus.counter()
    counter.begin()
    counter.read()
    blob, _ = seal(bus.device, SECRET, RUNS, (0, 7))
    assert unseal(bus.device, blob, RUNS) == SECRET
    assert len(bus.interposer.answers_to(UNSEAL)) == 1
    for secret in (AUTHORISATION, SECRET):
        assert secret not in bus.interposer.traffic
        assert secret[:8] not in bus.interposer.traffic


def test_a_rollback_that_the_bus_wants_to_hide(bus: Bus) -> None:
    disk = Disk()
    store = FakeStore(disk)
    begin_fresh(store, CounterAnchor(bus.counter(), "the counter"))
    old = store.root
    current = FakeStore(disk)
    open_fresh(current, CounterAnchor(bus.counter(), "the counter"))
    put_back = FakeStore(disk, root=old)
    with pytest.raises(RolledBackError):
        open_fresh(put_back, CounterAnchor(bus.counter(), "the counter"))
    bus.interposer.change = on(NV_READ, lambda answer: with_value(answer, old.anchor))
    with pytest.raises(UntrustedError):
        open_fresh(put_back, CounterAnchor(bus.counter(), "the counter"))


def test_an_increment_whose_answer_is_taken_away(bus: Bus) -> None:
    """It happened: the same process goes on, and takes it for no other copy's."""
    store = FakeStore(Disk())
    anchor = CounterAnchor(bus.counter(), "the counter")
    fresh = begin_fresh(store, anchor)
    before = store.root.anchor
    # TPM_RC_FAILURE, which has no HMAC.
    bus.interposer.change = on(NV_INCREMENT, lambda answer: struct.pack(">HII", 0x8001, 10, 0x101))
    with pytest.raises(UnavailableError):
        fresh.advance()
    bus.interposer.change = lambda command, answer: answer
    fresh.advance()
    found = bus.counter().read()
    assert found is not None
    assert found[0] == store.root.anchor == before + 1


def test_an_unsealed_secret_that_is_changed(bus: Bus) -> None:
    blob, _ = seal(bus.device, SECRET, RUNS)
    bus.interposer.change = on(
        UNSEAL, lambda answer: answer[:20] + bytes([answer[20] ^ 1]) + answer[21:]
    )
    with pytest.raises(UntrustedError, match="changes or repeats answers"):
        unseal(bus.device, blob, RUNS)


def test_pcrs_that_are_made_up(bus: Bus) -> None:
    """A policy over the host's own values would open for the host's own system."""
    bus.interposer.change = on(
        PCR_READ, lambda answer: answer[:-60] + bytes([answer[-60] ^ 1]) + answer[-59:]
    )
    with pytest.raises((UntrustedError, UnavailableError)):
        seal(bus.device, SECRET, RUNS, (0,))


def test_somebody_who_answers_in_place_of_the_tpm(bus: Bus) -> None:
    """With a storage key of his own he could open the salt; not when the right one is named."""
    blob, name = seal(bus.device, SECRET, RUNS)
    assert unseal(bus.device, blob, RUNS, parent=name) == SECRET
    with SoftwareTpm() as other:
        impostor = TpmDevice(other.tcti, 5)
        theirs, their_name = seal(impostor, b"x" * 32, RUNS)
        assert their_name != name
        for doing in (
            lambda: unseal(impostor, theirs, RUNS, parent=name),
            lambda: seal(impostor, SECRET, RUNS, parent=name),
            NvCounter(impostor, INDEX, AUTHORISATION, parent=name).begin,
        ):
            with pytest.raises(UntrustedError, match="storage key has the name"):
                doing()
        impostor.close()


def test_a_storage_key_that_is_swapped_on_the_way(bus: Bus) -> None:
    """The Name is of the key that the salt is encrypted to, whatever the answer says it is."""
    _, name = seal(bus.device, SECRET, RUNS)
    (honest,) = bus.interposer.answers_to(CREATE_PRIMARY)
    with SoftwareTpm() as other, Interposer(other) as watching:
        impostor = TpmDevice(watching.tcti, 5)
        seal(impostor, SECRET, RUNS)
        (swapped,) = watching.answers_to(CREATE_PRIMARY)
        impostor.close()
    assert swapped != honest
    bus.interposer.change = on(CREATE_PRIMARY, lambda answer: swapped)
    with pytest.raises((UntrustedError, UnavailableError)):
        seal(bus.device, SECRET, RUNS, parent=name)
    assert SECRET not in bus.interposer.traffic


def test_a_blob_of_the_hosts_own_gives_another_secret(bus: Bus) -> None:
    """It can be put there; it opens no store."""
    theirs, _ = seal(bus.device, b"x" * 32, RUNS)
    assert unseal(bus.device, theirs, RUNS) != SECRET
