"""A disk of a host that lies: about what was read, written and kept, and about how much of it.

It stands between a store and an honest `SimulatedDisk`. Which lie is told when comes from a seed,
so a failure can be played again. `told` has what was told, for the message of a failing test.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from avow.testing.simulated_disk import SimulatedDisk

SLOT_BYTES: Final = 4096
_ERRORS: Final = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EAGAIN, errno.EBADF, errno.EPERM)


class LyingDisk:
    """The interface `avow.sealing.store.Disk`; every call lies with the probability `rate`.

    `lies` are the names of the lies that may be told; all of them by default.
    """

    def __init__(
        self,
        honest: SimulatedDisk,
        rng: random.Random,
        *,
        rate: float = 0.05,
        lies: Sequence[str] | None = None,
    ) -> None:
        self.honest = honest
        self.rate = rate
        self.told: list[str] = []
        self._rng = rng
        self._lies = set(READ_LIES) | set(WRITE_LIES) | set(OTHER_LIES) if lies is None else {*lies}
        self._old = bytes(honest.image)

    def remember(self) -> None:
        """What is on the disk now is what stale reads give from now on."""
        self._old = bytes(self.honest.image)

    def read(self, offset: int, length: int) -> bytes:
        """The honest answer, or a lie about it."""
        data = self.honest.read(offset, length)
        lie = self._chosen(READ_LIES)
        if lie is None:
            return data
        self.told.append(f"{lie} read of {length} at {offset}")
        return READ_LIES[lie](self, offset, length, data)

    def write(self, offset: int, data: bytes) -> int:
        """Writes honestly, or pretends to."""
        lie = self._chosen(WRITE_LIES)
        if lie is None:
            return self.honest.write(offset, data)
        self.told.append(f"{lie} write of {len(data)} at {offset}")
        return WRITE_LIES[lie](self, offset, data)

    def sync(self) -> None:
        """Syncs, or fails to. A sync that pretends is what `reordered` images are for."""
        if self._other("failing sync"):
            raise OSError(errno.EIO, "the lying disk does not sync")
        self.honest.sync()

    def size(self) -> int:
        """The honest size or any other."""
        size = self.honest.size()
        if self._other("wrong size"):
            return self._rng.choice(
                (0, 1, size - 1, size + 1, size + SLOT_BYTES, size // 2, 1 << 40, (1 << 63) - 1, -5)
            )
        if self._other("failing size"):
            raise self._error()
        return size

    def resize(self, size: int) -> None:
        """Resizes honestly, not at all, or fails."""
        if self._other("failing resize"):
            raise self._error()
        if self._other("pretended resize"):
            return
        self.honest.resize(size)

    def _chosen(self, kinds: Mapping[str, object]) -> str | None:
        if self._rng.random() >= self.rate:
            return None
        names = sorted(self._lies & set(kinds))
        return self._rng.choice(names) if names else None

    def _other(self, lie: str) -> bool:
        told = lie in self._lies and self._rng.random() < self.rate
        if told:
            self.told.append(lie)
        return told

    def _error(self) -> OSError:
        number = self._rng.choice(_ERRORS)
        return OSError(number, "an error out of the blue")

    # What follows are the lies, each by its name in the tables below.

    def _short_read(self, offset: int, length: int, data: bytes) -> bytes:
        return data[: self._rng.randrange(len(data) + 1)]

    def _long_read(self, offset: int, length: int, data: bytes) -> bytes:
        more = self._rng.choice((1, 16, SLOT_BYTES, 1 << 20))
        return data.ljust(length, b"\0") + self._rng.randbytes(more)

    def _flipped_read(self, offset: int, length: int, data: bytes) -> bytes:
        changed = bytearray(data)
        if changed:
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    def _stale_read(self, offset: int, length: int, data: bytes) -> bytes:
        return self._old[offset : offset + length].ljust(len(data), b"\0")

    def _swapped_read(self, offset: int, length: int, data: bytes) -> bytes:
        """Another place of the same disk: of another file, level or time."""
        slots = max(1, len(self.honest.image) // SLOT_BYTES)
        other = self._rng.randrange(slots) * SLOT_BYTES + offset % SLOT_BYTES
        return self.honest.read(other, length).ljust(len(data), b"\0")

    def _random_read(self, offset: int, length: int, data: bytes) -> bytes:
        return self._rng.randbytes(length)

    def _zero_read(self, offset: int, length: int, data: bytes) -> bytes:
        return bytes(len(data))

    def _failing_read(self, offset: int, length: int, data: bytes) -> bytes:
        raise self._error()

    def _short_write(self, offset: int, data: bytes) -> int:
        return self.honest.write(offset, data[: self._rng.randrange(1, len(data) + 1)])

    def _nothing_written(self, offset: int, data: bytes) -> int:
        return 0

    def _long_write(self, offset: int, data: bytes) -> int:
        self.honest.write(offset, data)
        return len(data) + self._rng.choice((1, SLOT_BYTES, 1 << 40))

    def _negative_write(self, offset: int, data: bytes) -> int:
        return -self._rng.choice((1, 4095, 4096, 1 << 40))

    def _lost_write(self, offset: int, data: bytes) -> int:
        return len(data)

    def _flipped_write(self, offset: int, data: bytes) -> int:
        return self.honest.write(offset, self._flipped_read(offset, len(data), data))

    def _misplaced_write(self, offset: int, data: bytes) -> int:
        slots = max(1, len(self.honest.image) // SLOT_BYTES)
        return self.honest.write(self._rng.randrange(slots) * SLOT_BYTES, data)

    def _failing_write(self, offset: int, data: bytes) -> int:
        raise self._error()

    def _half_failing_write(self, offset: int, data: bytes) -> int:
        """Fails after it wrote a part."""
        self.honest.write(offset, data[: self._rng.randrange(len(data))])
        raise self._error()


READ_LIES: Final[dict[str, Callable[[LyingDisk, int, int, bytes], bytes]]] = {
    "short": LyingDisk._short_read,
    "long": LyingDisk._long_read,
    "flipped": LyingDisk._flipped_read,
    "stale": LyingDisk._stale_read,
    "swapped": LyingDisk._swapped_read,
    "random": LyingDisk._random_read,
    "zero": LyingDisk._zero_read,
    "failing": LyingDisk._failing_read,
}
WRITE_LIES: Final[dict[str, Callable[[LyingDisk, int, bytes], int]]] = {
    "shortened": LyingDisk._short_write,
    "refused": LyingDisk._nothing_written,
    "overlong": LyingDisk._long_write,
    "negative": LyingDisk._negative_write,
    "lost": LyingDisk._lost_write,
    "garbled": LyingDisk._flipped_write,
    "misplaced": LyingDisk._misplaced_write,
    "broken": LyingDisk._failing_write,
    "half broken": LyingDisk._half_failing_write,
}
OTHER_LIES: Final = (
    "failing sync",
    "wrong size",
    "failing size",
    "failing resize",
    "pretended resize",
)
