"""A disk whose machine goes on when a process dies, and which forgets when the power fails.

What was written is read at once, by the next process too, and is durable only after a sync. A sync
that fails loses what it should have written, as Linux does: it is still read, and never written.
"""

from __future__ import annotations

import errno
import random

from avow.testing.simulated_disk import Resize, SimulatedDisk, reordered


class CrashingDisk:
    """The interface `avow.sealing.store.Disk`. ``image``: what a process reads.

    `dies_in` is after how many operations the process is killed: a write is then cut anywhere, and
    everything fails until `restart`. `fails` has the share of operations that fail, by their names;
    `failing_syncs` which of the next syncs do, from 1.
    """

    def __init__(self, rng: random.Random, *, size_max_bytes: int | None = None) -> None:
        self._rng = rng
        self._durable = b""
        self._seen = SimulatedDisk(size_max_bytes=size_max_bytes)
        self.dies_in: int | None = None
        self.fails: dict[str, float] = {}
        self.failing_syncs: list[int] = []

    @property
    def image(self) -> bytearray:
        """The content, as the machine has it now."""
        return self._seen.image

    def restart(self, *, power: bool) -> None:
        """Another process begins; after a power failure with what the disk kept."""
        self.dies_in, self.fails, self.failing_syncs = None, {}, []
        if power:
            self._restart_with(bytes(reordered(self._durable, self._seen.log, self._rng)))

    def read(self, offset: int, length: int) -> bytes:
        """What was written, whether it is durable or not."""
        self._step("read")
        return self._seen.read(offset, length)

    def write(self, offset: int, data: bytes) -> int:
        """All of it; or a part, when the process dies in it."""
        if self.dies_in == 1 and data:
            self._seen.write(offset, data[: self._rng.randrange(len(data))])
        self._step("write")
        return self._seen.write(offset, data)

    def sync(self) -> None:
        """What was written is durable, or lost when this fails."""
        try:
            self._step("sync")
            self.failing_syncs = [left - 1 for left in self.failing_syncs]
            if 0 in self.failing_syncs:
                raise OSError(errno.EIO, "the sync that fails")
        except OSError:
            if self.dies_in is None:
                self._lose()
            raise
        self._durable = bytes(self.image)
        self._seen.log.clear()

    def size(self) -> int:
        """Bytes."""
        self._step("size")
        return self._seen.size()

    def resize(self, size: int) -> None:
        """New bytes are zero."""
        self._step("resize")
        self._seen.resize(size)

    def _step(self, name: str) -> None:
        if self.dies_in is not None:
            self.dies_in = max(0, self.dies_in - 1)
            if self.dies_in == 0:
                raise OSError(errno.EIO, "the process was killed")
        if self._rng.random() < self.fails.get(name, 0.0):
            raise OSError(self._rng.choice((errno.EIO, errno.ENOSPC)), f"the {name} that fails")

    def _lose(self) -> None:
        """Some of what was not durable is now; the rest only when it is written again."""
        self._durable = bytes(reordered(self._durable, self._seen.log, self._rng))
        self._seen.log.clear()
        # The size is kept beside the content, and is tried again.
        self._seen.log.append(Resize(len(self.image)))

    def _restart_with(self, image: bytes) -> None:
        self._durable = image
        self._seen = SimulatedDisk(image, size_max_bytes=self._seen.size_max_bytes)
