"""A small sealed store for attacks, and what an opening of changed bytes comes to."""

from __future__ import annotations

import random
from typing import Final

from avow.errors import DamagedError, MalformedError, StorageError, WrongKeyError
from avow.sealing.store import Store
from avow.testing.simulated_disk import SimulatedDisk
from avow.testing.store_simulation import KEY, Snapshot, snapshot

NAME: Final = "a-name-that-nobody-may-see"
CONTENT: Final = b"a content that nobody may see. " * 200

REFUSED: Final = (DamagedError, WrongKeyError, MalformedError, StorageError)


def small_store(commits: int = 2) -> SimulatedDisk:
    """A few files, and as many commits after the first."""
    disk = SimulatedDisk()
    rng = random.Random(7)
    times = iter(range(1_700_000_000 * 10**9, 1 << 63))
    with Store.create_on(disk, [KEY], entropy=rng.randbytes, clock_ns=lambda: next(times)) as store:
        store.make_file(f"/files/{NAME}")
        for _ in range(commits):
            store.write(f"/files/{NAME}", CONTENT)
            store.commit()
    return disk


def contents(image: bytes | bytearray) -> Snapshot:
    """All that is in a container. Raises one of `REFUSED`, or something worse."""
    store = Store.open_on(SimulatedDisk(bytes(image)), KEY, read_only=True)
    try:
        return snapshot(store)
    finally:
        store.abandon()
