"""A host that puts a sealed store back to what it was, with real stores and each kind of anchor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from avow.errors import AvowError, DamagedError, RolledBackError, UntrustedError
from avow.sealing import anchor as freshness
from avow.sealing.anchor import (
    Anchor,
    CounterAnchor,
    Remembered,
    Root,
    Step,
    begin_fresh,
    open_fresh,
    read_note,
)
from avow.sealing.store import Store
from avow.sealing.witness import public_bytes, store_key
from avow.sealing.witness_client import WitnessAnchor
from avow.sealing.witness_service import Witness, WitnessMemory
from tests.unit.sealing.anchor_world import Chip, Crashed, Power
from tests.unit.sealing.test_witness_client import PLACE, WITNESS, Wire

KEY = bytes(range(1, 33))
CONTAINER = "store.avow"
KINDS = pytest.mark.parametrize("kind", ["counter", "witness"])


@dataclass
class Machine:
    """The host's disk, and an anchor that it does not have."""

    folder: Path
    kind: str
    chip: Chip = field(default_factory=Chip)
    wire: Wire | None = None

    def anchor(self, store: Store) -> Anchor:
        if self.wire is None:
            return CounterAnchor(self.chip, "the counter")
        key = store_key(read_note(store).secret, store.root.store_id)
        return WitnessAnchor(
            PLACE, public_bytes(WITNESS), key, store.root.store_id, connect=self.wire.connect
        )

    def make(self) -> None:
        store = Store.create(self.folder / "store", [KEY])
        fresh = begin_fresh(store, self.anchor(store))
        store.make_file("/files/log")
        fresh.close()
        store.close()

    @contextmanager
    def opened(self, accept: int | None = None) -> Iterator[tuple[Store, freshness.Freshness]]:
        store = Store.open(self.folder / "store", KEY)
        try:
            fresh = open_fresh(store, self.anchor(store), accept_rollback=accept)
            yield store, fresh
            fresh.close()
            store.close()
        except BaseException:
            store.abandon()
            raise

    def work(self, line: bytes) -> None:
        with self.opened() as (store, _):
            store.write("/files/log", line, store.stat("/files/log").size_bytes)

    def log(self) -> bytes:
        with self.opened() as (store, _):
            return store.read("/files/log")

    def copy(self, name: str) -> None:
        shutil.copyfile(self.folder / "store" / CONTAINER, self.folder / name)

    def put_back(self, name: str) -> None:
        shutil.copyfile(self.folder / name, self.folder / "store" / CONTAINER)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    memories: list[WitnessMemory] = []

    def make(kind: str) -> Machine:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        machine = Machine(folder, kind)
        if kind == "witness":
            memories.append(WitnessMemory(folder / "witness.db"))
            machine.wire = Wire(Witness(memories[-1], WITNESS))
        machine.make()
        return machine

    yield make
    for memory in memories:
        memory.close()


@KINDS
def test_every_older_container(machines: Callable[[str], Machine], kind: str) -> None:
    machine = machines(kind)
    for number in range(4):
        machine.copy(f"old {number}")
        machine.work(b"%d" % number)
    machine.copy("newest")
    for number in range(4):
        machine.put_back(f"old {number}")
        with pytest.raises(RolledBackError, match="--accept-rollback"):
            machine.log()
    machine.put_back("newest")
    assert machine.log() == b"0123"


@KINDS
def test_the_check_is_what_refuses(
    machines: Callable[[str], Machine], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it an old store opens, as it would without an anchor; the advance is the second
    defence, which holds alone."""
    machine = machines(kind)
    machine.copy("old")
    machine.work(b"paid")
    machine.put_back("old")
    monkeypatch.setattr(freshness, "check_fresh", lambda *given: False)
    with pytest.raises(RolledBackError):
        machine.log()
    monkeypatch.setattr(freshness.Freshness, "advance", lambda self: None)
    monkeypatch.setattr(freshness.Freshness, "close", lambda self: None)
    assert machine.log() == b""


@KINDS
def test_newest_root_records_destroyed(machines: Callable[[str], Machine], kind: str) -> None:
    """Both copies of it: the one before opens, and is older."""
    machine = machines(kind)
    machine.work(b"paid")
    path = machine.folder / "store" / CONTAINER
    content = bytearray(path.read_bytes())
    sequences = [
        int.from_bytes(content[at * 4096 + 32 : at * 4096 + 40], "little") for at in range(4)
    ]
    for at in range(4):
        if sequences[at] == max(sequences):
            content[at * 4096 : (at + 1) * 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(RolledBackError):
        machine.log()


@KINDS
def test_an_owner_restores_a_backup(machines: Callable[[str], Machine], kind: str) -> None:
    machine = machines(kind)
    machine.work(b"a")
    machine.copy("backup")
    machine.work(b"b")
    machine.put_back("backup")
    with Store.open(machine.folder / "store", KEY, read_only=True) as store:
        sequence = store.root.sequence
    with pytest.raises(RolledBackError, match=f"--accept-rollback {sequence}`"):
        machine.log()
    with pytest.raises(RolledBackError), machine.opened(sequence + 1):
        pass
    with machine.opened(sequence) as (store, _):
        assert store.read("/files/log") == b"a"
    machine.work(b"c")
    assert machine.log() == b"ac"
    # The same words again, for the same backup: it was accepted once.
    machine.put_back("backup")
    with pytest.raises(RolledBackError):
        machine.log()


@KINDS
def test_two_copies_that_both_run(machines: Callable[[str], Machine], kind: str) -> None:
    machine = machines(kind)
    machine.copy("copy")
    other = Machine(machine.folder / "other", kind, machine.chip, machine.wire)
    (other.folder / "store").mkdir(parents=True)
    shutil.copyfile(machine.folder / "copy", other.folder / "store" / CONTAINER)
    with machine.opened() as (store, fresh):
        with pytest.raises(RolledBackError):
            other.work(b"other")
        store.write("/files/log", b"one")
        fresh.advance()
    assert machine.log() == b"one"


@KINDS
def test_a_branch_that_was_prepared(machines: Callable[[str], Machine], kind: str) -> None:
    """A copy of a store that runs is started beside it and stopped before it can advance: it then
    holds the value that the first one takes next, without what the first one has committed."""
    machine = machines(kind)
    other = Machine(machine.folder / "other", kind, machine.chip, machine.wire)
    (other.folder / "store").mkdir(parents=True)
    with suppress(Crashed), machine.opened() as (store, fresh):
        shutil.copyfile(machine.folder / "store" / CONTAINER, other.folder / "store" / CONTAINER)
        copied = Store.open(other.folder / "store", KEY)
        with pytest.raises(Crashed):
            open_fresh(_Powered(copied, Power(1)), other.anchor(copied))
        for _ in range(20):
            copied.write("/files/log", b"prepared")
            copied.commit()
        copied.abandon()
        store.write("/files/log", b"paid")
        fresh.advance()
        shutil.copyfile(machine.folder / "store" / CONTAINER, machine.folder / "newest")
        value, sequence = store.root.anchor, store.root.sequence
        raise Crashed
    shutil.copyfile(other.folder / "store" / CONTAINER, machine.folder / "store" / CONTAINER)
    with Store.open(machine.folder / "store", KEY, read_only=True) as prepared:
        assert prepared.root.anchor == value
        assert prepared.root.sequence > sequence
    with pytest.raises(RolledBackError, match="branch"):
        machine.log()
    machine.put_back("newest")
    assert machine.log() == b"paid"


@KINDS
def test_cut_between_commit_and_anchor(machines: Callable[[str], Machine], kind: str) -> None:
    """Each step on a real store: whatever is on the disk then, opens, and nothing older does."""
    for step in range(12):
        machine = machines(kind)
        machine.work(b"a")
        machine.copy("old")
        machine.work(b"b")
        power = Power(step)
        store = Store.open(machine.folder / "store", KEY)
        try:
            fresh = open_fresh(
                _Powered(store, power),
                _PoweredAnchor(machine.anchor(store), power),
            )
            store.write("/files/log", b"c", 2)
            fresh.advance()
            fresh.close()
        except Crashed:
            pass
        store.abandon()
        machine.copy("after")
        machine.put_back("old")
        with pytest.raises(RolledBackError):
            machine.log()
        machine.put_back("after")
        assert machine.log() in (b"ab", b"abc")
    assert machine.log() == b"abc"


class _Powered:
    """A store whose commits may be the last."""

    def __init__(self, store: Store, power: Power) -> None:
        self._store = store
        self._power = power

    @property
    def root(self) -> Root:
        return self._store.root

    def commit(self, *, anchor: int | None = None) -> Root:
        self._power.step()
        root = self._store.commit(anchor=anchor)
        self._power.step()
        return root

    def exists(self, path: str) -> bool:
        return self._store.exists(path)

    def make_file(self, path: str) -> None:
        self._store.make_file(path)

    def read(self, path: str) -> bytes:
        return self._store.read(path)

    def write(self, path: str, data: bytes) -> None:
        self._store.write(path, data)


class _PoweredAnchor:
    """An anchor whose advances may be the last."""

    def __init__(self, anchor: Anchor, power: Power) -> None:
        self.name = anchor.name
        self._anchor = anchor
        self._power = power

    def read(self) -> Remembered | None:
        return self._anchor.read()

    def begin(self) -> Remembered:
        return self._anchor.begin()

    def advance(self, step: Step, root: Root) -> None:
        self._power.step()
        self._anchor.advance(step, root)
        self._power.step()

    def accept(self, step: Step, root: Root) -> None:
        self._anchor.accept(step, root)

    def close(self) -> None:
        self._anchor.close()


def test_a_host_that_answers_for_the_witness(machines: Callable[[str], Machine]) -> None:
    """Old answers, answers about another store, its own: the store does not open."""
    machine = machines("witness")
    assert machine.wire is not None
    answers: list[bytes] = []

    def record(answer: bytes) -> bytes:
        answers.append(answer)
        return answer

    machine.wire.change = record
    machine.copy("old")
    machine.work(b"a")
    machine.put_back("old")
    for old in list(answers):
        machine.wire.change = lambda answer, old=old: old  # type: ignore[misc]
        with pytest.raises(UntrustedError):
            machine.log()
    for cut in (0, 100, 207):
        machine.wire.change = lambda answer, cut=cut: answer[:cut]  # type: ignore[misc]
        with pytest.raises(AvowError):
            machine.log()


def test_the_anchors_secret_cannot_be_swapped(machines: Callable[[str], Machine]) -> None:
    """It lies in the store; a host that changes the container makes damage."""
    machine = machines("witness")
    path = machine.folder / "store" / CONTAINER
    content = bytearray(path.read_bytes())
    for slot in range(4, len(content) // 4096):
        content[slot * 4096 + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        machine.log()
