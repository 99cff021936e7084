"""A store and its anchor: every crash between the two, and every older store put back."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from avow.errors import AvowError, MalformedError, RolledBackError, UnavailableError
from avow.sealing import anchor as anchor_module
from avow.sealing.anchor import (
    CounterAnchor,
    Freshness,
    Note,
    Remembered,
    Root,
    Step,
    begin_fresh,
    check_fresh,
    open_fresh,
)
from avow.sealing.lateness import AnchorBack, AnchorLate, Notice
from tests.unit.sealing.anchor_world import (
    Chip,
    Crashed,
    Disk,
    FakeRoot,
    FakeStore,
    Life,
    NotebookAnchor,
    Power,
    World,
    kinds,
)

KINDS = pytest.mark.parametrize("kind", list(kinds()))
D1, D2 = b"\x01" * 32, b"\x02" * 32


def begun(kind: str) -> World:
    world = World(kind)
    life = world.live()
    begin_fresh(life.store, life.anchor).advance()
    return world


def a_life(life: Life) -> None:
    """Opens, works with a few commits, advances, closes."""
    fresh = open_fresh(life.store, life.anchor)
    life.store.commit()
    fresh.advance()
    life.store.commit()
    fresh.close()


@KINDS
def test_lives_follow_each_other(kind: str) -> None:
    world = begun(kind)
    for _ in range(3):
        a_life(world.live())
        assert world.memory == world.disk.roots[-1].anchor


@KINDS
def test_every_crash_is_survived(kind: str) -> None:
    """And two of them, one after the other: the second while the first is put right."""
    power = Power()
    a_life(begun(kind).live(power))
    assert power.steps > 10
    for first, second in itertools.product(range(power.steps), range(-1, power.steps)):
        world = begun(kind)
        with pytest.raises(Crashed):
            a_life(world.live(Power(first)))
        if second >= 0:
            with pytest.raises(Crashed):
                a_life(world.live(Power(second)))
        a_life(world.live())
        assert world.memory == world.disk.roots[-1].anchor


@KINDS
def test_every_crash_of_the_beginning(kind: str) -> None:
    """Nobody can tell it from a copy of the store from then, so the owner, who was there just now,
    is told what to write."""
    power = Power()
    life = World(kind).live(power)
    begin_fresh(life.store, life.anchor)
    refused = 0
    for step in range(power.steps):
        world = World(kind)
        life = world.live(Power(step))
        with pytest.raises(Crashed):
            begin_fresh(life.store, life.anchor)
        life = world.live()
        try:
            open_fresh(life.store, life.anchor)
        except RolledBackError:
            refused += 1
            open_fresh(life.store, life.anchor, accept_rollback=life.store.root.sequence)
        a_life(world.live())
    assert 0 < refused < power.steps


@KINDS
def test_every_older_store_is_refused(kind: str) -> None:
    """Whatever was durable before the anchor's last advance, also after any crash."""
    power = Power()
    a_life(begun(kind).live(power))
    for step in range(power.steps + 1):
        world = begun(kind)
        a_life(world.live())
        if step < power.steps:
            with pytest.raises(Crashed):
                a_life(world.live(Power(step)))
        old = [root for root in world.disk.roots if root.anchor < world.memory]
        assert len(old) >= 5
        for root in old:
            life = world.live(root=root)
            with pytest.raises(RolledBackError):
                open_fresh(life.store, life.anchor)
        a_life(world.live())


@KINDS
def test_what_two_advances_do_not_protect(kind: str) -> None:
    """Between two advances, a witness sees nothing and a counter nothing: as documented."""
    world = begun(kind)
    life = world.live()
    open_fresh(life.store, life.anchor)
    at_advance = life.store.root
    life.store.commit()
    life.store.commit()
    other = world.live(root=at_advance)
    open_fresh(other.store, other.anchor)


@KINDS
def test_two_copies_cannot_both_go_on(kind: str) -> None:
    world = begun(kind)
    root = world.disk.roots[-1]
    one, other = world.live(root=root), world.live(root=root)
    first = open_fresh(one.store, one.anchor)
    one_only = world.live(root=root)
    with pytest.raises(RolledBackError):
        open_fresh(one_only.store, one_only.anchor)
    # The other was opened at the same time: it has read the anchor before the first went on.
    second = Freshness(other.store, other.anchor)
    other.anchor.read()
    if isinstance(other.anchor, NotebookAnchor):
        other.anchor._known = root.digest
    with pytest.raises(RolledBackError):
        second.advance()
    first.advance()


@KINDS
def test_an_owner_accepts_by_name(kind: str) -> None:
    world = begun(kind)
    a_life(world.live())
    old = world.disk.roots[2]
    assert old.anchor < world.memory
    life = world.live(root=old)
    with pytest.raises(RolledBackError) as caught:
        open_fresh(life.store, life.anchor)
    assert f"--accept-rollback {old.sequence}" in str(caught.value)
    for wrong in (old.sequence - 1, old.sequence + 1, 0):
        with pytest.raises(RolledBackError):
            open_fresh(life.store, life.anchor, accept_rollback=wrong)
    open_fresh(life.store, life.anchor, accept_rollback=old.sequence)
    accepted = life.store.root
    # Said once, it holds once: neither the same old store nor the one that was left behind opens.
    for root in (old, world.disk.roots[3]):
        again = world.live(root=root)
        with pytest.raises(RolledBackError):
            open_fresh(again.store, again.anchor)
    again = world.live(root=accepted)
    with pytest.raises(MalformedError, match="leave it out"):
        open_fresh(again.store, again.anchor, accept_rollback=accepted.sequence)
    a_life(world.live(root=accepted))


@KINDS
def test_every_crash_while_an_old_store_is_accepted(kind: str) -> None:
    def old_life(power: Power) -> tuple[World, Life]:
        world = begun(kind)
        a_life(world.live())
        return world, world.live(power, root=world.disk.roots[2])

    power = Power()
    _, life = old_life(power)
    open_fresh(life.store, life.anchor, accept_rollback=life.store.root.sequence)
    for step in range(power.steps):
        world, life = old_life(Power(step))
        before = life.store.root
        with pytest.raises(Crashed):
            open_fresh(life.store, life.anchor, accept_rollback=before.sequence)
        life = world.live(root=life.store.root)
        try:
            open_fresh(life.store, life.anchor)
        except RolledBackError:
            open_fresh(life.store, life.anchor, accept_rollback=life.store.root.sequence)
        a_life(world.live(root=life.store.root))


@KINDS
def test_an_anchor_that_forgot(kind: str) -> None:
    """Cleared, put back, or another one: fails closed, and can be begun anew by name."""
    world = begun(kind)
    a_life(world.live())
    world.chip.value = world.notebook.record = None
    life = world.live()
    with pytest.raises(RolledBackError, match="another anchor, or it was rolled back or cleared"):
        open_fresh(life.store, life.anchor)
    open_fresh(life.store, life.anchor, accept_rollback=life.store.root.sequence)
    a_life(world.live())


@KINDS
def test_a_store_from_before_its_anchor(kind: str) -> None:
    world = begun(kind)
    first = world.disk.roots[0]
    assert first.anchor == 0
    for forgotten in (False, True):
        if forgotten:
            world.chip.value = world.notebook.record = None
        life = world.live(root=first)
        with pytest.raises(RolledBackError, match="--accept-rollback 1"):
            open_fresh(life.store, life.anchor)


@KINDS
def test_a_beginning_is_for_new_stores(kind: str) -> None:
    world = begun(kind)
    for root in (world.disk.roots[0], world.disk.roots[-1]):
        life = world.live(root=root)
        with pytest.raises(RolledBackError, match="expected a new store"):
            begin_fresh(life.store, life.anchor)


def test_without_an_anchor() -> None:
    disk = Disk()
    fresh = open_fresh(FakeStore(disk), None)
    fresh.commit()
    fresh.poll()
    fresh.close()
    assert not fresh.every_commit
    assert {root.anchor for root in disk.roots} == {0}


def test_an_anchored_store_without_its_anchor() -> None:
    world = begun("counter")
    life = world.live()
    sequence = life.store.root.sequence
    with pytest.raises(RolledBackError, match="name the anchor, or give it up for good"):
        open_fresh(life.store, None)
    open_fresh(life.store, None, accept_rollback=sequence)
    assert life.store.root.anchor == 0
    open_fresh(life.store, None)


BEFORE, NONCE = b"\x0b" * 32, b"\x0c" * 32
BRANCH = Step(0, BEFORE, NONCE).branch
OTHER = b"\x0d" * 32


@pytest.mark.parametrize(
    ("root", "noted", "remembered", "ahead"),
    [
        # In step, and with a step that was noted and not taken.
        (FakeRoot(9, D1, 5), 5, Remembered(5, BRANCH), False),
        (FakeRoot(9, D1, 5), 6, Remembered(5, BEFORE), False),
        (FakeRoot(9, D1, 5), 5, Remembered(5, BRANCH, 9, D1), False),
        (FakeRoot(12, D1, 5), 5, Remembered(5, BRANCH, 9, D2), False),
        # A crash came between; a counter may have half of it.
        (FakeRoot(9, D1, 6), 6, Remembered(5, BEFORE), True),
        (FakeRoot(9, D1, 6), 6, Remembered(5, BRANCH), True),
        (FakeRoot(12, D1, 6), 6, Remembered(5, BEFORE, 9, D2), True),
        # Behind; too far ahead; nothing known.
        (FakeRoot(9, D1, 4), 4, Remembered(5, BRANCH), None),
        (FakeRoot(9, D1, 4), 5, Remembered(5, BRANCH), None),
        (FakeRoot(9, D1, 7), 7, Remembered(5, BRANCH), None),
        (FakeRoot(9, D1, 0), 0, None, None),
        (FakeRoot(9, D1, 1), 1, None, None),
        (FakeRoot(9, D1, 2), 2, None, None),
        # Another branch.
        (FakeRoot(9, D1, 5), 5, Remembered(5, OTHER), None),
        (FakeRoot(9, D1, 5), 5, Remembered(5, BEFORE), None),
        (FakeRoot(9, D1, 5), 6, Remembered(5, BRANCH), None),
        (FakeRoot(9, D1, 6), 6, Remembered(5, OTHER), None),
        (FakeRoot(9, D1, 5), 9, Remembered(5, BRANCH), None),
        (FakeRoot(12, D1, 5), 5, Remembered(5, OTHER, 9, D2), None),
        # The right branch, and not the commit that is remembered, or one after it.
        (FakeRoot(9, D1, 5), 5, Remembered(5, BRANCH, 9, D2), None),
        (FakeRoot(8, D1, 5), 5, Remembered(5, BRANCH, 9, D1), None),
        (FakeRoot(9, D1, 6), 6, Remembered(5, BEFORE, 9, D1), None),
        (FakeRoot(8, D1, 6), 6, Remembered(5, BEFORE, 9, D2), None),
    ],
)
def test_table(
    root: FakeRoot, noted: int, remembered: Remembered | None, ahead: bool | None
) -> None:
    note = Note(bytes(32), Step(noted, BEFORE, NONCE))
    if ahead is not None:
        assert check_fresh(root, note, remembered, "it") is ahead
        return
    with pytest.raises(RolledBackError) as caught:
        check_fresh(root, note, remembered, "it")
    assert f"sequence {root.sequence}" in str(caught.value)
    assert f"--accept-rollback {root.sequence}" in str(caught.value)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_interval() -> None:
    world = begun("counter")
    life, clock = world.live(), Clock()
    fresh = open_fresh(life.store, life.anchor, interval_s=10, clock=clock)
    at_open = world.memory
    life.store.commit()
    clock.now_s += 9.9
    fresh.poll()
    assert world.memory == at_open
    assert fresh.due_in_s() == pytest.approx(0.1)
    clock.now_s += 0.1
    fresh.poll()
    assert world.memory == at_open + 1
    clock.now_s += 100
    fresh.poll()
    assert world.memory == at_open + 1, "nothing was committed since"
    fresh.commit()
    assert world.memory == at_open + 1
    fresh.close()
    assert world.memory == at_open + 2


def test_every_commit() -> None:
    world = begun("notebook")
    life = world.live()
    fresh = open_fresh(life.store, life.anchor, interval_s=0)
    assert fresh.every_commit
    for _ in range(3):
        root = fresh.commit()
        assert world.notebook.record is not None
        assert world.notebook.record.state.digest == root.digest == life.store.root.digest


class Unreachable(CounterAnchor):
    """A counter that does not answer for a while: before it counts, or after."""

    def __init__(self, chip: Chip) -> None:
        super().__init__(chip, "the chip")
        self.failure: Callable[[], AvowError] | None = None
        self.asked = threading.Semaphore(0)

    def advance(self, step: Step, root: Root) -> None:
        self.asked.release()
        if self.failure is not None:
            raise self.failure()
        super().advance(step, root)


def unavailable() -> AvowError:
    return UnavailableError("no answer")


def test_goes_on_after_a_failure() -> None:
    """One advance is one value, however often it is tried."""
    world = begun("counter")
    anchor = Unreachable(world.chip)
    store = world.live().store
    fresh = open_fresh(store, anchor)
    before = world.memory
    anchor.failure = unavailable
    for _ in range(3):
        with pytest.raises(UnavailableError):
            fresh.advance()
        store.commit()
    assert store.root.anchor == before + 1
    anchor.failure = None
    fresh.advance()
    assert world.memory == before + 1


@dataclass
class Deaf(Chip):
    """Its answers are lost: what it was asked for is done, and nobody knows."""

    lost: list[str] = field(default_factory=list)

    def extend(self, nonce: bytes) -> bytes:
        done = super().extend(nonce)
        self._lose("extend")
        return done

    def increment(self) -> int:
        done = super().increment()
        self._lose("increment")
        return done

    def _lose(self, command: str) -> None:
        if command in self.lost:
            self.lost.remove(command)
            raise UnavailableError("no answer")


@pytest.mark.parametrize("lost", [["extend"], ["increment"], ["extend", "increment"]])
def test_a_counter_whose_answers_were_lost(lost: list[str]) -> None:
    """The same process goes on, as one that starts would: it was no other copy that counted."""
    world = World("counter", chip=Deaf())
    life = world.live()
    fresh = begin_fresh(life.store, life.anchor)
    assert isinstance(world.chip, Deaf)
    for number in (1, 2):
        before = world.memory
        world.chip.lost = list(lost)
        for _ in lost:
            with pytest.raises(UnavailableError):
                fresh.advance()
        life.store.commit()
        fresh.advance()
        assert world.memory == before + 1, number
    a_life(world.live())


def test_every_commit_waits_for_an_anchor_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A witness that is restarted ends no program, with whatever interval; one that stays away
    does, when the time is over."""
    monkeypatch.setattr(anchor_module, "RETRY_S", 0.001)
    world, clock = begun("counter"), Clock()
    anchor = Unreachable(world.chip)
    fresh = open_fresh(world.live().store, anchor, interval_s=0, clock=clock)
    before = world.memory
    left = [3]

    def away(for_ever: bool) -> AvowError:
        clock.now_s += anchor_module.GRACE_S / 10
        left[0] -= 1
        if not left[0] and not for_ever:
            anchor.failure = None
        return unavailable()

    anchor.failure = lambda: away(False)
    assert fresh.commit().anchor == world.memory == before + 1
    left[0] = 0
    anchor.failure = lambda: away(True)
    with pytest.raises(UnavailableError):
        fresh.commit()
    assert left[0] == -10


def test_a_commit_that_fails_moves_no_anchor() -> None:
    world = begun("counter")
    power = Power()
    life = world.live(power)
    fresh = open_fresh(life.store, life.anchor)
    before = world.memory
    power.fails_at = power.steps
    with pytest.raises(Crashed):
        fresh.advance()
    assert world.memory == before
    fresh.advance()
    assert world.memory == before + 1


@pytest.mark.parametrize(
    ("failure", "grace_s"),
    [(unavailable, 0.0), (lambda: RolledBackError("a copy has gone on"), 3600.0)],
)
def test_background_tells_once(failure: Callable[[], AvowError], grace_s: float) -> None:
    world = begun("counter")
    anchor = Unreachable(world.chip)
    store = world.live().store
    fresh = open_fresh(store, anchor, interval_s=0.01)
    anchor.failure = failure
    told: list[AvowError] = []
    done = threading.Event()

    def failed(error: AvowError) -> None:
        told.append(error)
        done.set()

    with fresh.in_background(failed, grace_s=grace_s):
        store.commit()
        assert done.wait(10)
    assert len(told) == 1


def test_background_says_when_the_anchor_is_late_and_when_it_is_back() -> None:
    """At once, with the time that is left, and each of them once however often it is tried."""
    world = begun("counter")
    anchor = Unreachable(world.chip)
    store = world.live().store
    fresh = open_fresh(store, anchor, interval_s=0.01)
    notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
    failures: list[AvowError] = []
    with fresh.in_background(failures.append, told=notices.put, grace_s=600):
        anchor.failure = lambda: UnavailableError("expected a chip, got none; mend it")
        store.commit()
        late = notices.get(timeout=10)
        assert isinstance(late, AnchorLate)
        assert (late.reason, late.left_s) == ("expected a chip, got none; mend it", 600)
        assert late.anchor in str(late)
        assert "600 s" in str(late)
        for _ in range(5):
            assert anchor.asked.acquire(timeout=10)
        anchor.failure = None
        back = notices.get(timeout=10)
        assert isinstance(back, AnchorBack)
        assert 0 < back.away_s < 60
    assert notices.empty()
    assert not failures


def test_a_commit_that_waits_for_its_anchor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avow.sealing.anchor.RETRY_S", 0.0)
    world = begun("counter")
    anchor = Unreachable(world.chip)
    fresh = open_fresh(world.live().store, anchor, interval_s=0)
    said: list[Notice] = []
    with fresh.in_background(lambda error: None, told=said.append):
        left = [True, True]

        def three_times() -> AvowError:
            if not left:
                anchor.failure = None
            else:
                left.pop()
            return unavailable()

        anchor.failure = three_times
        fresh.commit()
    assert [type(each) for each in said] == [AnchorLate, AnchorBack]


def test_background_tells_of_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: a store must not go on as if its anchor were kept."""
    faults: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda caught: faults.append(caught.exc_type))
    world = begun("counter")
    anchor = Unreachable(world.chip)
    store = world.live().store
    fresh = open_fresh(store, anchor, interval_s=0.01)
    told: list[AvowError] = []
    done = threading.Event()

    def failed(error: AvowError) -> None:
        told.append(error)
        done.set()

    def fault() -> AvowError:
        raise ValueError("a mistake")

    anchor.failure = fault
    with fresh.in_background(failed):
        store.commit()
        assert done.wait(10)
    assert [str(each) for each in told] == [
        "expected the store's anchor to be kept up to date, got ValueError('a mistake'); "
        "report this"
    ]
    assert faults == [ValueError]


def test_background_advances() -> None:
    world = begun("counter")
    store = world.live().store
    advanced = threading.Event()

    class Told(CounterAnchor):
        def advance(self, step: Step, root: Root) -> None:
            super().advance(step, root)
            advanced.set()

    fresh = open_fresh(store, Told(world.chip, "the chip"), interval_s=0.01)
    advanced.clear()
    before = world.memory
    failures: list[AvowError] = []
    with fresh.in_background(failures.append):
        store.commit()
        assert advanced.wait(10)
    assert world.memory > before
    assert not failures


def test_counter_that_was_faked_to_have_counted() -> None:
    """The answer to counting is read again, not believed."""

    class Lying(Chip):
        def increment(self) -> int:
            assert self.value is not None
            return self.value

    for chip in (Lying(5, BEFORE), Chip(5, OTHER), Chip(6, OTHER), Chip(7, BRANCH), Chip(5, NONCE)):
        with pytest.raises(RolledBackError, match="from 5 to 6"):
            CounterAnchor(chip, "the chip").advance(Step(6, BEFORE, NONCE), FakeRoot(1, D1, 6))
    with pytest.raises(RolledBackError, match="no counter"):
        CounterAnchor(Chip(), "the chip").advance(Step(1, BEFORE, NONCE), FakeRoot(1, D1, 1))
    CounterAnchor(Chip(5, BRANCH), "it").advance(Step(6, BEFORE, NONCE), FakeRoot(1, D1, 6))
