"""Whether anything else wanted the processors during a measurement.

Linux counts the time in which something was ready to run and had to wait (PSI, "some" of
/proc/pressure/cpu). A measured program never waits for itself when there are two processors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.report import DISTURBED

_PRESSURE = Path("/proc/pressure/cpu")

T = TypeVar("T")


def _waited_s() -> float:
    """Since the system started; 0 where the kernel does not count."""
    try:
        first = _PRESSURE.read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(first.rpartition("total=")[2]) / 1e6


def share_waited(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and in which share of its time something had to wait for a processor."""
    start_s, waited_s = time.monotonic(), _waited_s()
    found = work()
    return found, (_waited_s() - waited_s) / max(time.monotonic() - start_s, 1e-9)


def quietest(work: Callable[[], T], *, repeats: int) -> tuple[T, float]:
    """The quietest of the attempts: again, at most `repeats` times, while it was disturbed."""
    best = share_waited(work)
    for _ in range(repeats):
        if best[1] <= DISTURBED:
            break
        best = min(best, share_waited(work), key=lambda found: found[1])
    return best
