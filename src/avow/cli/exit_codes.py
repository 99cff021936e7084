"""The exit codes of every avow command. This is the only place that defines them."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a finished command says to the shell."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DENIED = 3
    UNJUDGED = 4
    INTERNAL = 70
    NOT_A_MODULE = 100
    UNKNOWN_IMPORTS = 101
    TRAPPED = 102
    LIMIT = 103
    WRONG_KEY = 104
    DAMAGED = 105
    IN_USE = 106
    ROLLED_BACK = 107
    STORAGE = 108

    @property
    def meaning(self) -> str:
        """One line for the help and the docs."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the operation failed, or the other side could not be reached",
    ExitCode.USAGE: "wrong usage or configuration; nothing was started",
    ExitCode.DENIED: "refused: by a policy, or by the other side (login, publish, subscribe)",
    ExitCode.UNJUDGED: "evidence could not be judged: it is malformed, or something is missing",
    ExitCode.INTERNAL: "a bug in avow, such as a trap in the core; please report it",
    ExitCode.NOT_A_MODULE: "not a WebAssembly module or component that can be run",
    ExitCode.UNKNOWN_IMPORTS: "the module wants imports that are unknown or were not granted",
    ExitCode.TRAPPED: "the program did something that WebAssembly forbids, and was stopped",
    ExitCode.LIMIT: "the program was stopped at a limit: time, fuel, memory or stack",
    ExitCode.WRONG_KEY: "the store does not open with this key",
    ExitCode.DAMAGED: "the store is damaged; the message names the file and the place",
    ExitCode.IN_USE: "another process has the store open",
    ExitCode.ROLLED_BACK: "the store is older than its freshness anchor says",
    ExitCode.STORAGE: "the disk is full, or failed to read or write",
}


def table() -> str:
    """All codes with their meanings, a line each."""
    return "\n".join(f"{code.value:>3}  {code.meaning}" for code in ExitCode)
