"""What a measured process knows of itself. `boot` says it once; all other processes are none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avow.runtime.boot import Finder


@dataclass(frozen=True, slots=True)
class Sealed:
    """`finder` finds this process's modules; `environment` is the caller's, as data."""

    finder: Finder
    environment: Mapping[str, str]


_sealed: Sealed | None = None


def begin(finder: Finder, environment: Mapping[str, str]) -> None:
    """From now on this process is a measured one."""
    global _sealed
    _sealed = Sealed(finder, environment)


def sealed() -> Sealed | None:
    """What there is to know; None in a process that is not measured."""
    return _sealed


def callers_environment() -> Mapping[str, str]:
    """What the caller has in the environment, of which a measured process keeps little in its own:
    for what is handed on, as to a program in the sandbox."""
    return os.environ if _sealed is None else _sealed.environment
