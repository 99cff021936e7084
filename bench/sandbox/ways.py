"""The ways in which a program is run: natively, in a sandbox over plain files, over sealed ones."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from examples.sandbox.programs import ROOT

NATIVE, PLAIN, SEALED = "native", "plain WASI", "sealed"
PATIENCE_S = 600.0


class ProgramError(Exception):
    """A measured program failed; the message holds what it said."""


class Way(Protocol):
    """One way. `folder` is a directory that belongs to it and is `/` for the program."""

    @property
    def target(self) -> str: ...

    def command(self, program: Path, arguments: Sequence[str]) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Native:
    """As a process of this machine, in a folder of its own."""

    folder: Path
    target: str = "native"

    def command(self, program: Path, arguments: Sequence[str]) -> list[str]:
        """Absolute names are below the folder."""
        return [str(program), *(self._inside(each) for each in arguments)]

    def _inside(self, argument: str) -> str:
        return str(self.folder / argument[1:]) if argument.startswith("/") else argument


@dataclass(frozen=True, slots=True)
class PlainWasi:
    """In avow's engine, with wasmtime's own WASI over a plain folder."""

    folder: Path
    target: str = "wasm"

    def command(self, program: Path, arguments: Sequence[str]) -> list[str]:
        """A process of its own, as with `avow run`."""
        module = "bench.sandbox.guest"
        return [sys.executable, "-m", module, str(program), str(self.folder), *arguments]


@dataclass(frozen=True, slots=True)
class Sealed:
    """`avow run` with a sealed store, which keeps the compiled module too."""

    folder: Path
    target: str = "wasm"

    def command(self, program: Path, arguments: Sequence[str]) -> list[str]:
        """The owner's key lies beside the store: this is a measurement."""
        key = self.folder / "owner.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_text(secrets.token_hex(32) + "\n")
        store = ["--store", str(self.folder / "store"), "--key", f"file:{key}"]
        clock = ["--grant", "clock:monotonic"]
        return [sys.executable, "-m", "avow", "run", str(program), *store, *clock, "--", *arguments]


def run(way: Way, program: Path, arguments: Sequence[str]) -> str:
    """What the program printed. Raises ProgramError when its exit code is not 0."""
    command = way.command(program, arguments)
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}".strip()[-500:]
        raise ProgramError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done.stdout


def seconds(output: str) -> Mapping[str, float]:
    """What the programs print: a name and seconds a line."""
    return {name: float(value) for name, value in map(str.split, output.splitlines())}
