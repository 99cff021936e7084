"""Measures how long a program takes to start, and what interrupting it by epochs would cost.

    python -m bench.start [--rounds N] [--json FILE]

The program is a generated module of about 1 MB that returns at once. Times are medians, from the
module's bytes to the end of its run: with its code compiled, and with its code from the sealed
store; then the same as the command `avow run`, beside an empty Python. The loops run with wasmtime
as avow configures it, and with its epochs and its fuel switched on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wasmtime import Engine, Func, Instance, Module, Store, wat2wasm

from avow.sandbox.compiled_cache import CompiledCache
from avow.sandbox.engine_settings import configured, program_settings
from avow.sandbox.grants import Grants
from avow.sandbox.limits import Limits
from avow.sandbox.program import Surroundings, load
from avow.sealing.store import Store as SealedStore

_KEY: Final = bytes(range(32))
_FUNCTIONS: Final = 4000
_ITERATIONS: Final = 50_000_000
TARGET_MS: Final = 30.0

# A loop over memory, which has nothing else to do, and one that computes.
_LOOPS: Final = {
    "memory": "(i64.load (i32.wrap_i64 (i64.and (local.get $n) (i64.const 0xfff8))))",
    "compute": "(i64.mul (local.get $sum) (i64.const 6364136223846793005))",
}


def large_module() -> bytes:
    """About 1 MB of code that is not all the same, and a `_start` that returns."""
    functions = []
    for number in range(_FUNCTIONS):
        lines = "".join(
            f"(local.set 1 (i32.add (i32.mul (local.get 0) (i32.const {number * 31 + step}))"
            f" (i32.load offset={(number * 4 + step * 64) % 60000}"
            f" (i32.and (local.get 1) (i32.const 1023)))))"
            for step in range(13)
        )
        functions.append(
            f"(func $f{number} (param i32) (result i32) (local i32) {lines}"
            f" (if (local.get 1) (then (local.set 1"
            f" (call $f{(number + 1) % _FUNCTIONS} (local.get 1)))))"
            f" (local.get 1))"
        )
    text = "".join(functions)
    return bytes(
        wat2wasm(f"""(module (memory (export "memory") 2) (global $never (mut i32) (i32.const 0))
          {text}
          (func (export "_start")
            (if (global.get $never) (then (drop (call $f0 (i32.const 1)))))))""")
    )


def _ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def starts(folder: Path, content: bytes, rounds: int) -> dict[str, float]:
    """Milliseconds, by what was done."""
    surroundings = Surroundings(("app",), Grants())
    found: dict[str, list[float]] = {}

    def run(cache: CompiledCache | None) -> None:
        load(content, cache=cache).start(surroundings).exit_code()

    SealedStore.create(folder / "store", [_KEY]).close()
    with SealedStore.open(folder / "store", _KEY) as store:
        run(CompiledCache(store, print))
    for _ in range(rounds):
        found.setdefault("compiled", []).append(_ms(lambda: run(None)))
        began = time.perf_counter()
        with SealedStore.open(folder / "store", _KEY) as store:
            opened = time.perf_counter()
            # The store's own cache of blocks is empty: everything is read and decrypted.
            run(CompiledCache(store, print))
            ended = time.perf_counter()
        found.setdefault("store opened", []).append((opened - began) * 1000)
        found.setdefault("from the store", []).append((ended - opened) * 1000)
    return {name: statistics.median(times) for name, times in found.items()}


def commands(folder: Path, content: bytes, rounds: int) -> dict[str, float]:
    """Milliseconds of whole processes."""
    (folder / "app.wasm").write_bytes(content)
    key = folder / "key"
    key.write_text(_KEY.hex() + "\n")
    key.chmod(0o600)
    avow = [sys.executable, "-m", "avow", "run", str(folder / "app.wasm")]
    stored = [*avow, "--store", str(folder / "store"), "--key", f"file:{key}"]
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, command in (
            ("python that does nothing", [sys.executable, "-c", "pass"]),
            ("avow run, from the store", stored),
        ):
            began = time.perf_counter()
            subprocess.run(command, check=True)
            found.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(times) for name, times in found.items()}


def loops(rounds: int) -> dict[str, dict[str, float]]:
    """Nanoseconds an iteration: by loop, and by how it could be interrupted."""
    found: dict[str, dict[str, float]] = {}
    for name, body in _LOOPS.items():
        text = f"""(module (memory 1) (func (export "run") (param $n i64) (result i64)
          (local $sum i64)
          (loop $l
            (local.set $sum (i64.add (local.get $n) {body}))
            (br_if $l (i64.ne (local.tee $n (i64.sub (local.get $n) (i64.const 1)))
              (i64.const 0))))
          (local.get $sum)))"""
        ways = {way: _loop(text, way) for way in ("none", "epochs", "fuel")}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, work in ways.items():
                times[way].append(_ms(work) * 1e6 / _ITERATIONS)
        found[name] = {way: min(each) for way, each in times.items()}
    return found


def _loop(text: str, way: str) -> Callable[[], object]:
    config = configured(
        program_settings(Limits(fuel=1 if way == "fuel" else None), component=False)
    )
    if way == "epochs":
        # Not among the settings that avow allows itself; this is to see what it would cost.
        config.epoch_interruption = True
    engine = Engine(config)
    store = Store(engine)
    if way == "epochs":
        store.set_epoch_deadline(1)
    if way == "fuel":
        store.set_fuel(1 << 62)
    function = Instance(store, Module(engine, text), []).exports(store)["run"]
    assert isinstance(function, Func)
    return lambda: function(store, _ITERATIONS)


def main(arguments: list[str] | None = None) -> int:
    """0 whether the target is reached or missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    content = large_module()
    with tempfile.TemporaryDirectory(prefix="avow-bench-") as temporary:
        folder = Path(temporary)
        times = starts(folder, content, chosen.rounds) | commands(folder, content, chosen.rounds)
    interrupting = loops(chosen.rounds)
    print(f"a module of {len(content):,} bytes, medians of {chosen.rounds}, {os.cpu_count()} cores")
    for name, value in times.items():
        verdict = ""
        if name == "from the store":
            verdict = f"  target {TARGET_MS:g}: {'reached' if value < TARGET_MS else 'missed'}"
        print(f"  {name:<28}{value:8.1f} ms{verdict}")
    print("loops, ns an iteration (least of the rounds)")
    for name, ways in interrupting.items():
        shown = "  ".join(f"{way} {value:.3f}" for way, value in ways.items())
        print(f"  {name:<10}{shown}  epochs cost {ways['epochs'] / ways['none']:.2f} times")
    if chosen.json:
        chosen.json.write_text(json.dumps({"ms": times, "loops_ns": interrupting}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
