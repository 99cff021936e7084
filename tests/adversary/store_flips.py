"""Flips each byte of a small container that says something, once.

A program, so that a crash of the process is seen.

Prints how many flips cost nothing and how many were refused; ends with 1 when one gave other data.
"""

from __future__ import annotations

import sys

from avow.errors import DamagedError
from avow.sealing.store import Store
from avow.testing.simulated_disk import SimulatedDisk
from avow.testing.store_reader import SLOT_BYTES, StoreReader
from avow.testing.store_simulation import KEY, snapshot
from tests.adversary.store_scene import REFUSED, small_store

ROOT_BYTES = 4 * SLOT_BYTES


class FlippedDisk(SimulatedDisk):
    """A disk one byte of which is another one, until `restore`."""

    def flip(self, at: int) -> None:
        self.image[at] ^= 1 << at % 8


def main() -> int:
    """0 when every flip was right data or refused in the right words."""
    disk = FlippedDisk(bytes(small_store(commits=1).image))
    used = StoreReader(disk.image, KEY).used
    whole = Store.open_on(disk, KEY, read_only=True)
    expected, root = snapshot(whole), whole.root
    whole.abandon()
    right = refused = repaired = 0
    # What lies behind the last slot in use is room to grow.
    for at in range(root.slots * SLOT_BYTES):
        if at >= ROOT_BYTES and at // SLOT_BYTES not in used and at % 16:
            # In free slots, some bytes will do.
            continue
        disk.flip(at)
        try:
            store = Store.open_on(disk, KEY, read_only=True)
            try:
                # What no block of a file is can only matter to the root; now and then, all is read.
                look = at // SLOT_BYTES in used or at % 16 == 0
                found = snapshot(store) if look else expected
                copies = store.root.damaged_copies
                digest = store.root.digest
            finally:
                store.abandon()
        except REFUSED as error:
            refused += 1
            if at < ROOT_BYTES or at // SLOT_BYTES not in used:
                print(f"byte {at}: refused without need: {error}", file=sys.stderr)
                return 1
            if not isinstance(error, DamagedError) or "block" not in str(error):
                print(f"byte {at}: refused in other words: {error!r}", file=sys.stderr)
                return 1
        else:
            right += 1
            repaired += copies
            if found != expected or digest != root.digest or at // SLOT_BYTES in used:
                print(f"byte {at}: gave other data, or was not noticed", file=sys.stderr)
                return 1
            newest = at < ROOT_BYTES and at // SLOT_BYTES % 2 == root.sequence % 2
            if newest and copies != 1:
                print(f"byte {at}: {copies} damaged copies were reported", file=sys.stderr)
                return 1
        disk.flip(at)
    print(f"{right} right, {refused} refused, {repaired} copies reported")
    return 0


if __name__ == "__main__":
    sys.exit(main())
