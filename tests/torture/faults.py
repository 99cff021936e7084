"""A disk over a real file that fails where a plan says: it is what the broker's process sees."""

from __future__ import annotations

import enum
import errno
import os
import random
import signal
from dataclasses import dataclass

SECTOR_BYTES = 512


class Kind(enum.Enum):
    """What goes wrong."""

    KILL = "SIGKILL while it works"
    CUT = "SIGKILL after some bytes of a write"
    POWER = "power loss: some sectors since the last sync are lost"
    FULL = "no space left from some write on"
    SYNC = "fdatasync fails"
    WRITE = "a write fails"
    SHORT = "writes take a few bytes at a time"
    READ = "a read fails"
    FLIP = "a bit is flipped while the broker is down"
    OLD = "an old copy is put in place while the broker is down"


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault. `at` counts calls of the kind that is hit; `seed` is for what is random in it."""

    kind: Kind
    at: int
    seed: int


class FaultyDisk:
    """The interface `avow.sealing.store.Disk` over the file `fd`."""

    def __init__(self, fd: int, plan: Plan) -> None:
        self._fd = fd
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._calls = 0
        self._unsynced: list[tuple[int, bytes]] = []

    def _hit(self, *kinds: Kind) -> bool:
        if self._plan.kind not in kinds:
            return False
        self._calls += 1
        if self._plan.kind is Kind.FULL:
            return self._calls >= self._plan.at
        return self._calls == self._plan.at

    def read(self, offset: int, length: int) -> bytes:
        """May fail."""
        if self._hit(Kind.READ):
            raise OSError(errno.EIO, "planned failure of a read")
        return os.pread(self._fd, length, offset)

    def write(self, offset: int, data: bytes) -> int:
        """May be cut, refused, or be in memory only until the next sync."""
        if self._hit(Kind.CUT):
            os.pwrite(self._fd, data[: self._random.randint(0, len(data))], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        if self._hit(Kind.FULL):
            raise OSError(errno.ENOSPC, "planned end of space")
        if self._hit(Kind.WRITE):
            raise OSError(errno.EIO, "planned failure of a write")
        if self._plan.kind is Kind.SHORT:
            data = data[: max(1, self._random.randint(1, len(data)))]
        if self._plan.kind is Kind.POWER:
            before = os.pread(self._fd, len(data), offset)
            self._unsynced.append((offset, before.ljust(len(data), b"\0")))
        return os.pwrite(self._fd, data, offset)

    def sync(self) -> None:
        """May fail, or be what never happens any more."""
        if self._hit(Kind.SYNC):
            raise OSError(errno.EIO, "planned failure of fdatasync")
        if self._hit(Kind.POWER):
            self._lose()
            os.kill(os.getpid(), signal.SIGKILL)
        self._unsynced.clear()

    def _lose(self) -> None:
        """Puts back what sectors held before; the newest first, as they may overlap."""
        for offset, before in reversed(self._unsynced):
            for start in range(0, len(before), SECTOR_BYTES):
                if self._random.random() < 0.5:
                    os.pwrite(self._fd, before[start : start + SECTOR_BYTES], offset + start)

    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._fd).st_size

    def resize(self, size: int) -> None:
        """New bytes are zero."""
        if self._plan.kind is Kind.FULL and self._calls >= self._plan.at:
            raise OSError(errno.ENOSPC, "planned end of space")
        os.ftruncate(self._fd, size)
