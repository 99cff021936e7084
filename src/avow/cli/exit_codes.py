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

    @property
    def meaning(self) -> str:
        """One line for the help and the docs."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the operation failed, or the other side was not there",
    ExitCode.USAGE: "wrong usage or configuration: nothing was started",
    ExitCode.DENIED: "refused: by a policy, or a login, publish or subscription by the other side",
    ExitCode.UNJUDGED: "evidence could not be judged: it is malformed, or something is missing",
    ExitCode.INTERNAL: "a fault of avow itself, such as a trap in the core: please report it",
}


def table() -> str:
    """All codes with their meanings, a line each."""
    return "\n".join(f"{code.value:>3}  {code.meaning}" for code in ExitCode)
