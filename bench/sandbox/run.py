"""Measures what the sandbox and sealed files cost.

python -m bench sandbox                   # everything, against the targets
python -m bench sandbox --quick           # a look
python -m bench sandbox --only kernels    # kernels, sqlite, files; repeatable
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avow.errors import AvowError
from bench import report
from bench.report import Row, Sample, median
from bench.run import RESULTS, machine
from bench.sandbox import kernels
from bench.sandbox.cipher import cipher_mb_s
from bench.sandbox.compiling import OPTIMISED, SOURCES, compiled
from bench.sandbox.quiet import quietest
from bench.sandbox.ways import (
    NATIVE,
    PLAIN,
    SEALED,
    Native,
    PlainWasi,
    ProgramError,
    Sealed,
    Way,
    run,
    seconds,
)
from examples.sandbox.programs import ROOT, SQLITE_FLAGS, sqlite_sources

WASM = "Wasm"
CIPHER = "AES-256-GCM"
KERNELS_MEAN_MAX = 1.3
# Sealed over plain WASI, and over native.
SQLITE_MAX: Mapping[str, tuple[float, float]] = {
    "insert": (1.5, 3.0),
    "sequential": (1.5, 3.0),
    "random": (2.0, 3.0),
}
# Megabytes a second; or the share of AES-256-GCM alone, if that is less.
FILES_MIN: Mapping[str, float] = {"first": 400.0, "write": 400.0, "read": 600.0}
CIPHER_SHARE_MIN = 0.7
FILES_PARTS = ("first", "write", "durable", "read")
# The one switch that differs from the example's: SQLite's own default, as published and everywhere.
_ROWS_FLAGS = tuple(flag for flag in SQLITE_FLAGS if "DEFAULT_SYNCHRONOUS" not in flag)


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. `kernel_size` replaces the size of each kernel."""

    rounds: int = 5
    kernels: tuple[str, ...] = tuple(kernels.SIZES)
    kernel_size: str | None = None
    kernel_ms: int = 100
    rows: tuple[int, ...] = (1_000, 10_000, 50_000, 100_000, 175_000)
    file_mib: int = 256
    call_bytes: tuple[int, ...] = (65_536, 4_096)


QUICK = Size(rounds=1, kernel_size="MEDIUM", kernel_ms=10, rows=(1_000, 10_000), file_mib=32)


class Suite:
    """All measurements and what came of them."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder = folder
        self.size = size
        self.rows: list[Row] = []
        self.samples: list[Sample] = []
        self.failures: list[str] = []

    def kernels(self) -> None:
        """Thirty numeric kernels: Wasm over native, and the geometric mean of that."""
        ratios = []
        for name in self.size.kernels:
            with self._broken_is_noted(f"kernel {name}"):
                ratios.append(self._kernel(name))
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            row = Row("kernels", f"geometric mean of {len(ratios)} kernels", "ms", NATIVE, None)
            row.ratio, row.bound = mean, KERNELS_MEAN_MAX
            row.verdict = "reached" if mean <= KERNELS_MEAN_MAX else "missed"
            self.rows.append(row)

    def _kernel(self, name: str) -> float:
        size = self.size.kernel_size or kernels.SIZES[name]
        ways: Mapping[str, Way] = {
            NATIVE: Native(self.folder / "run"),
            WASM: PlainWasi(self.folder / "run"),
        }
        found: dict[str, kernels.Timed] = {}
        scenario = f"kernel_{name}"
        for number in range(self.size.rounds):
            for kind, way in ways.items():
                program = kernels.build(name, way.target, size)
                printed, waited = self._quietest(way, program, [str(self.size.kernel_ms)])
                found[kind] = kernels.parse(printed)
                values = {"ms": found[kind].median_s * 1000, "waited": waited}
                self._sample(scenario, kind, number, values)
            kernels.check_same(name, found[NATIVE], found[WASM])
        row = self._compared(scenario, f"{name}, {size.lower()}", "ms", WASM, NATIVE)
        assert row.ratio is not None
        return row.ratio

    def sqlite(self) -> None:
        """Rows of 1,000 bytes: inserted in one transaction, read in order, read by random keys."""
        sources = sqlite_sources()
        include = sources.relative_to(ROOT).as_posix()
        files = [SOURCES / "rows.c", sources / "sqlite3.c"]
        flags = ["-O3", *_ROWS_FLAGS, "-I", include]
        programs = {target: compiled("rows", target, files, flags) for target in ("native", "wasm")}
        for count in self.size.rows:
            scenario = f"sqlite_{count}"
            with self._broken_is_noted(scenario):
                self._in_turns(scenario, programs, ["/rows.db", str(count)])
                for part, (over_plain, over_native) in SQLITE_MAX.items():
                    title = f"SQLite, {count:,} rows, {part}"
                    self._compared(scenario, title, part, SEALED, PLAIN, over_plain)
                    self._compared(scenario, title, part, SEALED, NATIVE, over_native)

    def _in_turns(
        self, scenario: str, programs: Mapping[str, Path], arguments: Sequence[str]
    ) -> None:
        for number in range(self.size.rounds):
            for kind, made in ((NATIVE, Native), (PLAIN, PlainWasi), (SEALED, Sealed)):
                way = made(self.folder / "run")
                printed, waited = self._quietest(way, programs[way.target], arguments)
                values = {part: 1000 * taken for part, taken in seconds(printed).items()}
                self._sample(scenario, kind, number, {**values, "waited": waited})

    def _quietest(self, way: Way, program: Path, arguments: Sequence[str]) -> tuple[str, float]:
        """What it prints in an empty folder, and the share of the time that others disturbed."""

        def once() -> str:
            with self._empty_folder():
                return run(way, program, arguments)

        return quietest(once, repeats=2 if self.size.rounds > 1 else 0)

    def files(self) -> None:
        """One file from its beginning to its end, written and read, in large and small calls."""
        programs = {
            target: compiled("files", target, [SOURCES / "files.c"], OPTIMISED)
            for target in ("native", "wasm")
        }
        for number in range(self.size.rounds):
            self._sample("cipher", CIPHER, number, {"mb_s": cipher_mb_s(self.size.file_mib)})
        cipher = median(self._samples("cipher", CIPHER), "mb_s") or 0.0
        total = self.size.file_mib * 1.048576
        for call in self.size.call_bytes:
            scenario = f"files_{call}"
            with self._broken_is_noted(scenario):
                arguments = ["/large", str(self.size.file_mib), str(call)]
                self._in_turns(scenario, programs, arguments)
                for sample in self._samples(scenario):
                    for part in FILES_PARTS:
                        sample.values[f"{part}_mb_s"] = total / (sample.values[part] / 1000)
                for part in FILES_PARTS:
                    self._files_row(scenario, f"files, {call:,} bytes a call, {part}", part, cipher)

    def _files_row(self, scenario: str, title: str, part: str, cipher: float) -> None:
        for other in (PLAIN, NATIVE):
            row = self._compared(scenario, title, f"{part}_mb_s", SEALED, other)
            row.ceiling = cipher
            if other == PLAIN and part in FILES_MIN and row.avow is not None:
                row.bound = min(FILES_MIN[part], CIPHER_SHARE_MIN * cipher)
                row.verdict = "reached" if row.avow >= row.bound else "missed"

    @contextmanager
    def _empty_folder(self) -> Iterator[None]:
        folder = self.folder / "run"
        folder.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def _broken_is_noted(self, what: str) -> Iterator[None]:
        """Whatever breaks is remembered, and the other measurements go on."""
        try:
            yield
        except (AvowError, ProgramError, kernels.OtherResultError, OSError, ValueError) as error:
            self.failures.append(f"{what}: {error}")
            print(f"  broken: {error}", file=sys.stderr)

    def _sample(self, scenario: str, kind: str, number: int, values: dict[str, float]) -> None:
        self.samples.append(Sample(scenario, kind, "", number, values))
        shown = " ".join(f"{name} {value:,.2f}" for name, value in values.items())
        print(f"  {scenario} {kind}: {shown}", file=sys.stderr)

    def _samples(self, scenario: str, kind: str | None = None) -> list[Sample]:
        return [
            sample
            for sample in self.samples
            if sample.scenario == scenario and kind in (None, sample.broker)
        ]

    def _compared(
        self,
        scenario: str,
        title: str,
        metric: str,
        kind: str,
        other: str,
        maximum: float | None = None,
    ) -> Row:
        """One line of the table."""
        value = median(self._samples(scenario, kind), metric)
        beside = median(self._samples(scenario, other), metric)
        row = Row(scenario, title, metric, other, value, beside)
        for way in (kind, other):
            waited = median(self._samples(scenario, way), "waited") or 0.0
            if waited > report.DISTURBED:
                row.notes.append(f"{way}: the processors were not ours alone ({waited:.0%})")
        if value is not None and beside:
            row.ratio = value / beside
            if maximum is not None:
                row.bound = maximum
                row.verdict = "reached" if row.ratio <= maximum else "missed"
        self.rows.append(row)
        return row


MEASUREMENTS: Mapping[str, Callable[[Suite], None]] = {
    "kernels": Suite.kernels,
    "sqlite": Suite.sqlite,
    "files": Suite.files,
}


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench sandbox",
        description="Measures what the sandbox and sealed files cost.",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", action="append", choices=MEASUREMENTS, help="one measurement (repeatable)"
    )
    parser.add_argument("--kernel", action="append", choices=kernels.SIZES, metavar="KERNEL")
    parser.add_argument("--rows", action="append", type=int, help="rows for SQLite (repeatable)")
    parser.add_argument("--quick", action="store_true", help="one short round, smaller sizes")
    parser.add_argument("--folder", type=Path, help="where files lie (a temporary folder)")
    parser.add_argument("--json", type=Path, help="where the results go (bench/results/...)")
    return parser.parse_args(arguments)


def write_json(path: Path, suite: Suite) -> None:
    """Everything that was measured."""
    document: dict[str, Any] = {
        "machine": machine(),
        "settings": dataclasses.asdict(suite.size),
        "rows": [dataclasses.asdict(row) for row in suite.rows],
        "failures": suite.failures,
        "samples": [dataclasses.asdict(sample) for sample in suite.samples],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """0 whether targets are reached or missed, 1 when a run broke."""
    chosen = _arguments(arguments)
    size = QUICK if chosen.quick else Size(rounds=chosen.rounds)
    if chosen.kernel:
        size = dataclasses.replace(size, kernels=tuple(chosen.kernel))
    if chosen.rows:
        size = dataclasses.replace(size, rows=tuple(chosen.rows))
    with tempfile.TemporaryDirectory(prefix="avow-bench-", dir=chosen.folder) as folder:
        suite = Suite(Path(folder), size)
        for name, measure in MEASUREMENTS.items():
            if chosen.only is None or name in chosen.only:
                print(f"== {name}", file=sys.stderr)
                measure(suite)
    print(report.table(suite.rows))
    path = chosen.json or RESULTS / time.strftime("sandbox-%Y%m%d-%H%M%S.json", time.gmtime())
    write_json(path, suite)
    print(f"\n{path}")
    for failure in suite.failures:
        print(f"broken: {failure}", file=sys.stderr)
    return 1 if suite.failures else 0
