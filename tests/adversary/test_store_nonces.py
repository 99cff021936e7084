"""No nonce is used twice under one key: not over restarts, crashes, copied disks, nor rotations.

All blocks that were ever written count, those of commits that a crash undid as well: each log of
writes is played to every point where it was durable, and the reader collects what it can reach.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable

import pytest

from avow.errors import MalformedError
from avow.sealing.store import Store
from avow.testing.simulated_disk import SimulatedDisk, durable_images, reordered
from avow.testing.store_reader import SLOT_BYTES, StoreReader
from avow.testing.store_simulation import KEY

Entropy = Callable[[int], bytes]


def repeated(disks: Iterable[SimulatedDisk]) -> list[str]:
    """What was sealed under a key and a nonce that something else was sealed under."""
    seen: dict[tuple[bytes, bytes], str] = {}
    found: list[str] = []
    for disk in disks:
        for image in durable_images(disk.base, disk.log):
            if not any(image[: 4 * SLOT_BYTES]):
                # A new store's first blocks are durable before its first root record is.
                continue
            for use in StoreReader(image, KEY).sealed():
                before = seen.setdefault((use.key, use.nonce), use.what)
                if before != use.what:
                    found.append(f"{before} and {use.what}")
    assert len(seen) > 50
    return found


def work(store: Store, rng: random.Random) -> None:
    for number in range(4):
        path = f"/files/{rng.randrange(5)}"
        if not store.exists(path):
            store.make_file(path)
        store.write(path, rng.randbytes(rng.randrange(20_000)), rng.randrange(30_000))
        if number % 2:
            store.commit()


def timelines(entropy: Entropy) -> list[SimulatedDisk]:
    """Restarts, crashes that undo commits, and two copies of one disk that both go on."""
    rng = random.Random(77)
    disks = [SimulatedDisk()]
    store = Store.create_on(disks[0], [KEY], entropy=entropy)
    work(store, rng)
    store.close()
    for _ in range(12):
        last = disks[-1]
        until = rng.randrange(len(last.log) // 2, len(last.log) + 1)
        ways: list[bytes] = [bytes(last.image)]
        if len(disks) > 1:
            ways.append(bytes(reordered(last.base, last.log, rng, until=until)))
        base = rng.choice(ways)
        # Both copies go on from the same bytes.
        for _ in range(2):
            disk = SimulatedDisk(base)
            with Store.open_on(disk, KEY, entropy=entropy) as store:
                work(store, rng)
                if rng.random() < 0.3:
                    store.rotate([KEY])
                    work(store, rng)
            disks.append(disk)
    return disks


def test_no_nonce_is_used_twice() -> None:
    assert repeated(timelines(os.urandom)) == []


def test_the_same_entropy_twice_would_be_noticed() -> None:
    def broken(count: int) -> bytes:
        return bytes(range(count))

    assert repeated(timelines(broken))


def test_an_opening_draws_again() -> None:
    """The 16 bytes of a nonce that are random are others after each opening, and only then."""
    disk = SimulatedDisk()
    Store.create_on(disk, [KEY]).close()
    prefixes = []
    for number in range(3):
        with Store.open_on(disk, KEY) as store:
            store.make_file(f"/files/{number}")
            store.write(f"/files/{number}", b"x" * 9000)
            first = store.commit()
            store.write(f"/files/{number}", b"y")
        assert first.sequence == StoreReader(disk.image, KEY).root.sequence - 1
        reader = StoreReader(disk.image, KEY)
        inode = reader.lookup(f"/files/{number}")
        assert inode.pointer is not None
        prefixes.append(inode.pointer.nonce[:16])
        assert reader.root.body_nonce[:16] == prefixes[-1]
        counters = [int.from_bytes(use.nonce[16:], "little") for use in reader.sealed()]
        assert min(counters) >= 1
    assert len(set(prefixes)) == 3


@pytest.mark.parametrize("count", [0, 15, 17, 33])
def test_too_little_entropy_is_refused(count: int) -> None:
    disk = SimulatedDisk()
    Store.create_on(disk, [KEY]).close()
    with pytest.raises(MalformedError, match="bytes"):
        Store.open_on(disk, KEY, entropy=lambda _: bytes(count))


@pytest.mark.parametrize("size_bytes", [1, 9 << 20], ids=["at a commit", "before it"])
def test_a_forked_process_seals_nothing(size_bytes: int) -> None:
    """It has the same session and the same counter, so its first nonce would be its parent's.

    More than 8 MiB are sealed as they come, before anybody commits.
    """
    disk = SimulatedDisk()
    store = Store.create_on(disk, [KEY])
    before = len(disk.log)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            # There is nothing to seal yet, so this is no harm.
            store.commit()
            store.make_file("/files/forked")
            store.write("/files/forked", bytes(size_bytes))
            if size_bytes == 1:
                store.commit()
        except MalformedError as error:
            code = 0 if len(disk.log) == before and "forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    store.make_file("/files/parent")
    store.commit()
    store.close()
