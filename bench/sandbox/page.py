"""Makes docs/sandbox-speed.md from a result of the bench.

python -m bench sandbox --json result.json
python -m bench.sandbox.page result.json

With more than one result, what a later one measured replaces what an earlier one did.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.sandbox.ways import NATIVE, PLAIN
from examples.sandbox.programs import ROOT

PAGE = ROOT / "docs" / "sandbox-speed.md"

_HEAD = """\
# The sandbox's speed

This page shows what WebAssembly and sealed files cost. It comes from one result of these commands,
and yours will differ:

<!-- not run: takes half an hour -->
```sh
python -m bench sandbox --json result.json
python -m bench.sandbox.page result.json
```

Measured on {cpu} ({cores} cores), Linux {kernel}, Python {python}; medians, in turns.
`bench/README.md` says how it is measured.
"""

_KERNELS = """
## Numeric kernels

Both columns have the same C sources and the same compiler. The figures are milliseconds of a run.

| kernel | native | Wasm | Wasm / native |
|---|---|---|---|
{rows}

The geometric mean is {mean:.2f}, and the target at most 1.3. Memory checks are on: wasmtime makes
them with guard pages. Stencils have the largest ratios, because their inner loops have more loads
than arithmetic.
"""

_SQLITE = """
## SQLite

SQLite inserts rows of 1,000 bytes in one transaction, reads them in order, and reads them by random
keys. It has 8 MiB of cache and its other defaults. The figures are milliseconds.

| | native | plain WASI | sealed | sealed / plain | sealed / native |
|---|---|---|---|---|---|
{rows}

The targets are at most 1.5 (inserting, in order) and 2.0 (random) against plain WASI, and 3 against
native.

*Plain WASI* is wasmtime's own implementation. It hands every file call to another thread, which
takes some 20 µs. avow's implementation is a native function in the program's thread. The fourth
column shows that difference, not the cost of sealing. The last column is the cost of sandbox and
sealing together. Random reads can be faster than native ones, because the store keeps 32 MiB of
blocks that it has already opened. Reading those needs no system call.

Programs that compare much memory pay more, because `memcmp` of Zig 0.17 for `wasm32-wasi` compares
byte by byte. A first version of this benchmark checked each row with it, and took twice as long to
read in order.
"""

_FILES = """
## One file from its beginning to its end

The file has 256 MiB, and the figures are MB/s. It is written (`first`), deleted, and written again
(`write`). `durable` is the second time up to the return of `fsync`. In `first`, the store has to
grow.

| | native | plain WASI | sealed |
|---|---|---|---|
{rows}

The targets are at least 400 (write) and 600 (read). AES-256-GCM alone, in the vault's
implementation and in the processor's cache, reaches {cipher:,.0f} MB/s. It uses AES instructions on
512 bits if the processor has them. Reads come from the kernel's memory, so the disk does not affect
them.
"""


_LOADED = """
The machine did other work at the same time, which affects single figures.
"""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _kernels(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["scenario"].startswith("kernel_"):
            shown = (_number(row["peer_value"]), _number(row["avow"]), f"{row['ratio']:.2f}")
            yield f"| {row['title']} | {' | '.join(shown)} |"


def _beside(rows: list[dict[str, Any]], prefix: str) -> Mapping[str, dict[str, dict[str, Any]]]:
    """By title, then by what it is compared with."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["scenario"].startswith(prefix):
            found.setdefault(row["title"], {})[row["peer"]] = row
    return found


def _three(title: str, by_peer: Mapping[str, dict[str, Any]]) -> list[str]:
    native, plain = by_peer[NATIVE], by_peer[PLAIN]
    return [title, *map(_number, (native["peer_value"], plain["peer_value"], native["avow"]))]


def _measurement(row: Mapping[str, Any]) -> str:
    """Which of the measurements a row belongs to: kernels, sqlite or files."""
    return str(row["scenario"]).partition("_")[0].removesuffix("s")


def joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of several: each measurement as the last one has it that has it at all."""
    rows: list[dict[str, Any]] = []
    rounds: dict[str, int] = {}
    for result in results:
        new = {_measurement(row) for row in result["rows"]}
        rows = [row for row in rows if _measurement(row) not in new] + list(result["rows"])
        rounds |= dict.fromkeys(new, int(result["settings"]["rounds"]))
    return {**results[0], "rows": rows, "rounds": rounds}


def page(result: Mapping[str, Any]) -> str:
    """The whole page. Raises KeyError when the result does not hold all measurements."""
    rows = result["rows"]
    (mean,) = (row["ratio"] for row in rows if row["scenario"] == "kernels")
    sqlite = []
    for title, by_peer in _beside(rows, "sqlite_").items():
        ratios = [f"{by_peer[peer]['ratio']:.2f}" for peer in (PLAIN, NATIVE)]
        cells = [*_three(title.removeprefix("SQLite, "), by_peer), *ratios]
        sqlite.append(f"| {' | '.join(cells)} |")
    files = [
        f"| {' | '.join(_three(title.removeprefix('files, '), by_peer))} |"
        for title, by_peer in _beside(rows, "files_").items()
    ]
    cipher = next(row["ceiling"] for row in rows if row["scenario"].startswith("files_"))
    return (
        _HEAD.format(**result["machine"])
        + f"\nRounds: {', '.join(f'{name} {n}' for name, n in sorted(result['rounds'].items()))}.\n"
        + (_LOADED if any(row["notes"] for row in rows) else "")
        + _KERNELS.format(rows="\n".join(_kernels(rows)), mean=mean)
        + _SQLITE.format(rows="\n".join(sqlite))
        + _FILES.format(rows="\n".join(files), cipher=cipher)
    )


def main(arguments: list[str]) -> int:
    """0; 2 without a result."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    PAGE.write_text(page(joined([json.loads(Path(each).read_text()) for each in arguments])))
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
