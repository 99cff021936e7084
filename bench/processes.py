"""What a process and its children use, from /proc, and what this one may use."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    # The command name, in parentheses, may hold spaces: count from its end.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def raise_descriptor_limit() -> None:
    """This process and those that it starts may open as many files as the system lets them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended while we looked
    found = [pid]
    for member in found:
        found.extend(parents.get(member, []))
    return found


def cpu_s(pid: int) -> float:
    """User and system time of the process and its descendants."""
    total = 0
    for member in family(pid):
        fields = _fields(member)
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def wait_s(pid: int) -> float:
    """How long the threads of the process and its descendants were ready, but not on a core."""
    total_ns = 0
    for member in family(pid):
        for thread in Path(f"/proc/{member}/task").iterdir():
            try:
                total_ns += int((thread / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended while we looked
    return total_ns / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of the process and its descendants (what the kernel keeps is not in it)."""
    total = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total
