"""A process that is killed, another that goes on, and then the power fails: nothing is lost.

What a process has written and not synced is there for the next one, and gone after a power failure.
"""

from __future__ import annotations

import itertools
import random

import pytest

from avow.errors import StorageError, WrongKeyError
from avow.sealing.store import Store
from avow.testing.crashing_disk import CrashingDisk
from avow.testing.store_crashes import CrashSimulation
from avow.testing.store_reader import StoreReader
from avow.testing.store_simulation import KEY, Snapshot, WrongDataError, snapshot

PATH = "/files/a"
NEXT_KEY = bytes(range(1, 33))


def written(disk: CrashingDisk, rng: random.Random) -> list[Snapshot]:
    """A store of two commits, so that the third finds slots that were freed."""
    states = []
    with Store.create_on(disk, [KEY], entropy=rng.randbytes) as store:
        store.make_file(PATH)
        for _ in range(2):
            store.write(PATH, rng.randbytes(20_000))
            store.commit()
            states.append(snapshot(store))
    return states


def commit_until(disk: CrashingDisk, rng: random.Random, dies_in: int | None) -> Snapshot | None:
    """The state of a commit that was begun; None when the store did not even open."""
    disk.dies_in = dies_in
    store: Store | None = None
    state: Snapshot | None = None
    try:
        store = Store.open_on(disk, KEY, entropy=rng.randbytes)
        store.write(PATH, rng.randbytes(20_000))
        state = snapshot(store)
        store.commit()
    except StorageError:
        pass
    finally:
        if store is not None:
            store.abandon()
    return state


def found(disk: CrashingDisk) -> Snapshot:
    with Store.open_on(disk, KEY, read_only=True) as store:
        assert list(store.check()) == []
        return snapshot(store)


@pytest.mark.parametrize("dies_in", [*range(8, 20), None])
def test_killed_and_then_without_power(dies_in: int | None) -> None:
    for seed in range(8):
        rng = random.Random(f"{dies_in} {seed}")
        disk = CrashingDisk(rng)
        states = written(disk, rng)
        begun = [commit_until(disk, rng, dies_in)]
        disk.restart(power=False)
        begun.append(commit_until(disk, rng, rng.choice((*range(8, 20), None))))
        disk.restart(power=True)
        assert found(disk) in [states[-1], *begun]


@pytest.mark.parametrize("number", [1, 2], ids=["blocks", "root"])
def test_a_sync_failed_and_then_without_power(number: int) -> None:
    """Linux forgets what a sync could not write, and another process still reads it."""
    for seed in range(20):
        rng = random.Random(f"{number} {seed}")
        disk = CrashingDisk(rng)
        states = written(disk, rng)
        store = Store.open_on(disk, KEY, entropy=rng.randbytes)
        store.write(PATH, rng.randbytes(20_000))
        states.append(snapshot(store))
        disk.failing_syncs = [number]
        with pytest.raises(StorageError):
            store.commit()
        store.abandon()
        disk.restart(power=False)
        state = commit_until(disk, rng, rng.choice((*range(8, 20), None)))
        disk.restart(power=True)
        assert found(disk) in [*states[1:], state]


def test_what_an_opening_has_found_stays() -> None:
    """Whoever was told of a root may tell others: a freshness anchor, for one."""
    undurable = 0
    for seed, dies_in in itertools.product(range(3), range(8, 20)):
        rng = random.Random(f"{seed} {dies_in}")
        disk = CrashingDisk(rng)
        written(disk, rng)
        before = StoreReader(disk.image, KEY).root
        commit_until(disk, rng, dies_in)
        disk.restart(power=False)
        store = Store.open_on(disk, KEY, entropy=rng.randbytes)
        root = store.root
        store.abandon()
        disk.restart(power=True)
        assert StoreReader(disk.image, KEY).root.digest == root.digest
        undurable += root.sequence != before.sequence
    assert undurable


def test_a_bad_copy_of_the_root_is_repaired_by_opening() -> None:
    rng = random.Random(1)
    disk = CrashingDisk(rng)
    written(disk, rng)
    place = StoreReader(disk.image, KEY).root.sequence % 2 * 4096
    for copy in (place, place + 8192):
        disk.image[copy + 2000] ^= 1
        with Store.open_on(disk, KEY) as store:
            assert store.root.damaged_copies == 1
        with Store.open_on(disk, KEY, read_only=True) as store:
            assert store.root.damaged_copies == 0


def test_a_rotation_that_was_cut_leaves_the_key_from_before() -> None:
    """One record of the four may be torn: that is no damage, whichever key is tried."""
    outcomes: set[str | bytes] = set()
    for dies_in in range(1, 40):
        rng = random.Random(dies_in)
        disk = CrashingDisk(rng)
        states = written(disk, rng)
        store = Store.open_on(disk, KEY, entropy=rng.randbytes)
        disk.dies_in = dies_in
        try:
            store.rotate([NEXT_KEY])
        except StorageError:
            outcomes.add("cut")
        store.abandon()
        disk.restart(power=False)
        for key in (KEY, NEXT_KEY):
            try:
                with Store.open_on(disk, key, read_only=True) as again:
                    assert snapshot(again) == states[-1]
                    outcomes.add(key)
            except WrongKeyError:
                outcomes.add("wrong key")
    assert outcomes == {"cut", "wrong key", KEY, NEXT_KEY}


def test_long_random_work() -> None:
    """More of it: `python -m avow.testing.store_crashes --seeds 0:1000`."""
    crashes = 0
    for seed in (2, 14, 33):
        simulation = CrashSimulation(seed)
        simulation.run()
        crashes += simulation.crashes
    assert crashes > 3


def test_lost_work_would_be_noticed() -> None:
    simulation = CrashSimulation(1)
    simulation.run(sessions=1)
    simulation.committed.nodes["/files/never"] = simulation.committed.nodes["/files"]
    with pytest.raises(WrongDataError, match="never"):
        simulation.look()
