"""Thirty numeric kernels, native and in the sandbox."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.sandbox.compiling import OPTIMISED, SOURCES, compiled

FOLDER = SOURCES / "kernels"

# Published sizes: LARGE, or MEDIUM where that takes seconds.
SIZES: Mapping[str, str] = {
    "2mm": "LARGE",
    "3mm": "LARGE",
    "adi": "MEDIUM",
    "atax": "LARGE",
    "bicg": "LARGE",
    "cholesky": "LARGE",
    "correlation": "LARGE",
    "covariance": "LARGE",
    "deriche": "LARGE",
    "doitgen": "LARGE",
    "durbin": "LARGE",
    "fdtd-2d": "LARGE",
    "floyd-warshall": "MEDIUM",
    "gemm": "LARGE",
    "gemver": "LARGE",
    "gesummv": "LARGE",
    "gramschmidt": "LARGE",
    "heat-3d": "LARGE",
    "jacobi-1d": "LARGE",
    "jacobi-2d": "LARGE",
    "lu": "LARGE",
    "ludcmp": "LARGE",
    "mvt": "LARGE",
    "nussinov": "MEDIUM",
    "seidel-2d": "MEDIUM",
    "symm": "LARGE",
    "syr2k": "LARGE",
    "syrk": "LARGE",
    "trisolv": "LARGE",
    "trmm": "LARGE",
}

# Both sides add up in the same order, so the sums differ by the C library's functions at most.
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Timed:
    """One process's runs of one kernel."""

    seconds: tuple[float, ...]
    checksum: float

    @property
    def median_s(self) -> float:
        """The median of the runs."""
        return statistics.median(self.seconds)


class OtherResultError(Exception):
    """The same source computed other numbers in the sandbox than outside."""


def build(name: str, target: str, size: str) -> Path:
    """A kernel as an executable. `size`: MINI, MEDIUM or LARGE."""
    sources = [FOLDER / f"{name}.c", FOLDER / "main.c"]
    flags = [*OPTIMISED, f"-DSIZE_{size}"]
    return compiled(f"kernel-{name}-{size.lower()}", target, sources, flags, ["-lm"])


def parse(output: str) -> Timed:
    """What `kernels/main.c` prints. Raises ValueError for anything else."""
    *runs, last = output.split("\n")[:-1]
    word, _, value = last.partition(" ")
    if word != "checksum" or not runs:
        raise ValueError(f"a kernel should print times and a checksum, it printed {output!r}")
    return Timed(tuple(map(float, runs)), float(value))


def check_same(name: str, native: Timed, sandboxed: Timed) -> None:
    """Raises OtherResultError when the checksums differ."""
    if not math.isfinite(native.checksum) or not math.isclose(
        native.checksum, sandboxed.checksum, rel_tol=_SAME
    ):
        raise OtherResultError(
            f"{name}: expected the checksum {native.checksum}, got {sandboxed.checksum} from Wasm"
        )
