"""How much memory a broker may need: what is bounded by the configuration, and what comes on top.

`memory_budget_bytes` bounds the core: all that it keeps for clients, and what its memory grows to.
The rest are terms of their own: a flood makes each of them resident, and
tests/adversary/test_memory_budget.py measures that they are not exceeded.
"""

from __future__ import annotations

from dataclasses import dataclass

from avow.broker.limits import Limits
from avow.broker.users import ARGON2_MEMORY_KIB

MIB = 1 << 20

PROCESS_BYTES = 160 * MIB
"""Python, wasmtime, OpenSSL, the compiled core, its static tables, the data plane's buffers."""
TLS_CONNECTION_BYTES = 128 << 10
"""OpenSSL's session and its buffers, and up to 68 KiB of ciphertext that the peer has not taken."""
CONNECTION_BYTES = 1 << 10
"""The data plane's entry for a connection; what the core keeps for it is in the budget."""


# How many connections the printed sum is for.
_EXAMPLE = 1000


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes, all of them at the most: when so much is free, a flood ends in refusals."""

    core: int
    process: int
    """Beside the core, without connections; the passwords that are being verified among it."""
    each: int
    """Beside the budget, for each connection."""

    def total(self, connections: int) -> int:
        """The sum with so many connections."""
        return self.core + self.process + connections * self.each


def memory_need(limits: Limits, *, tls: bool, password_workers: int) -> MemoryNeed:
    """`tls`: a listener takes TLS. `password_workers`: passwords that are verified at a time."""
    return MemoryNeed(
        core=limits.memory_budget_bytes,
        process=PROCESS_BYTES + password_workers * (ARGON2_MEMORY_KIB << 10),
        each=CONNECTION_BYTES + (TLS_CONNECTION_BYTES if tls else 0),
    )


def in_words(need: MemoryNeed) -> str:
    """One line for a person."""
    return (
        f"memory: at most {need.total(_EXAMPLE) // MIB:,} MiB with {_EXAMPLE:,} "
        f"connections: {need.core // MIB:,} for the core (limits.memory_budget_bytes), "
        f"{need.process // MIB:,} for the process, and {need.each >> 10} KiB for each "
        "connection"
    )
