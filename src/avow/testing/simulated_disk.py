"""A disk in memory that remembers every write, and what it may hold after the power failed.

Nothing is ordered between two syncs: a disk may have any subset of what was written since the last
one, in units of 512 bytes, and when the process dies while it writes, any part of the last write.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that went to the disk."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """The disk, a file, was made longer or shorter."""

    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """All before it is durable."""


Event = Write | Resize | Sync


def apply(image: bytearray, event: Event) -> None:
    """Does to `image` what the event did to the disk."""
    if isinstance(event, Write):
        end = event.offset + len(event.data)
        if end > len(image):
            image.extend(bytes(end - len(image)))
        image[event.offset : end] = event.data
    elif isinstance(event, Resize):
        if event.size > len(image):
            image.extend(bytes(event.size - len(image)))
        else:
            del image[event.size :]


class SimulatedDisk:
    """The interface `avow.sealing.store.Disk`, with a log.

    `log` has every event since `base`, the content that it started with. A disk of `size_max_bytes`
    is full there, as one of a fixed size is.
    """

    def __init__(self, base: bytes = b"", *, size_max_bytes: int | None = None) -> None:
        self.base = base
        self.image = bytearray(base)
        self.log: list[Event] = []
        self.size_max_bytes = size_max_bytes

    def read(self, offset: int, length: int) -> bytes:
        """What was written, short at the end of the disk."""
        return bytes(self.image[offset : offset + length])

    def write(self, offset: int, data: bytes) -> int:
        """All of it, or none when the disk is full."""
        self._check_room(offset + len(data))
        self._do(Write(offset, bytes(data)))
        return len(data)

    def sync(self) -> None:
        """Marks what came before as durable."""
        self._do(Sync())

    def size(self) -> int:
        """Bytes."""
        return len(self.image)

    def resize(self, size: int) -> None:
        """New bytes are zero."""
        self._check_room(size)
        self._do(Resize(size))

    def copy(self) -> SimulatedDisk:
        """Another disk with the same content and an empty log: somebody copied it."""
        return SimulatedDisk(bytes(self.image), size_max_bytes=self.size_max_bytes)

    def _check_room(self, size: int) -> None:
        if self.size_max_bytes is not None and size > max(self.size_max_bytes, len(self.image)):
            raise OSError(errno.ENOSPC, "the simulated disk is full")

    def _do(self, event: Event) -> None:
        apply(self.image, event)
        self.log.append(event)


def durable_images(base: bytes, log: Sequence[Event]) -> Iterator[bytes]:
    """What is on the disk at each sync, and at the end."""
    image = bytearray(base)
    for event in log:
        apply(image, event)
        if isinstance(event, Sync):
            yield bytes(image)
    yield bytes(image)


def cuts(
    base: bytes, log: Sequence[Event], *, wanted: Callable[[Write, int], bool] | None = None
) -> Iterator[tuple[int, int, bytearray]]:
    """The process dies while it writes: every prefix of the log, cut at every byte of each write.

    Yields the index of the event that was cut, the bytes of it that were written, and the image,
    which is the same object each time: copy it before it is changed. With `wanted`, only the cuts
    after so many bytes of a write for which it says yes, and those at the end of each event.
    """
    image = bytearray(base)
    yield 0, 0, image
    for number, event in enumerate(log):
        if not isinstance(event, Write):
            apply(image, event)
            yield number, 0, image
            continue
        done = 0
        for end in range(1, len(event.data)):
            if wanted is None or wanted(event, end):
                apply(image, Write(event.offset + done, event.data[done:end]))
                done = end
                yield number, end, image
        apply(image, Write(event.offset + done, event.data[done:]))
        yield number, len(event.data), image


def reordered(
    base: bytes, log: Sequence[Event], rng: random.Random, *, until: int | None = None
) -> bytearray:
    """The power fails before event `until` (default: the end): one of the images there may be.

    All until the last sync is there. Of what came after it, each sector is there or not, and a
    change of size happened or not, all by `rng`; some of the images leave out nearly all, some
    nearly none.
    """
    log = log[: len(log) if until is None else until]
    last_sync = max((at for at, event in enumerate(log) if isinstance(event, Sync)), default=-1)
    image = bytearray(base)
    for event in log[: last_sync + 1]:
        apply(image, event)
    share = rng.choice((0.05, 0.3, 0.5, 0.7, 0.95))
    whole = rng.random() < 0.3
    unsynced: list[Event] = []
    for event in log[last_sync + 1 :]:
        unsynced += [event] if whole else _sectors(event)
    for event in unsynced:
        if rng.random() < share:
            apply(image, event)
    return image


def _sectors(event: Event) -> list[Event]:
    if not isinstance(event, Write):
        return [event]
    pieces: list[Event] = []
    at = 0
    while at < len(event.data):
        end = min(len(event.data), at + SECTOR_BYTES - (event.offset + at) % SECTOR_BYTES)
        pieces.append(Write(event.offset + at, event.data[at:end]))
        at = end
    return pieces
