"""What one call of WASI from WebAssembly costs: avow's host functions and wasmtime's own.

    python -m bench.wasi_call [--calls N] [--rounds N]

A module calls one function in a loop; the time of the same loop without the call is taken off.
Printed are medians of interleaved rounds, in nanoseconds a call. avow reads a sealed file, wasmtime
a plain one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wasmtime import Engine, Func, Linker, Memory, Module, Store, WasiConfig

from avow.sandbox.wasi import MODULE, SealedDirectory, Wasi
from avow.sealing.store import Store as SealedStore

_IMPORTS = {
    "clock_time_get": ("i32 i64 i32", "(i32.const 1) (i64.const 1) (i32.const 64)"),
    "fd_tell": ("i32 i32", "(global.get $fd) (i32.const 64)"),
    "fd_pread": (
        "i32 i32 i32 i64 i32",
        "(global.get $fd) (i32.const 16) (i32.const 1) (i64.const 7) (i32.const 64)",
    ),
}
# Rights of a file to be read: fd_read, fd_seek and fd_tell; symbolic links are followed.
_OPEN = """(call $path_open (i32.const 3) (i32.const 1) (i32.const 32) (i32.const 4) (i32.const 0)
    (i64.const 38) (i64.const 0) (i32.const 0) (i32.const 64))"""


def _module() -> str:
    loops = {"nothing": "(i32.const 0)"}
    imports = [
        f'(import "{MODULE}" "path_open"'
        " (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))"
    ]
    for name, (kinds, values) in _IMPORTS.items():
        imports.append(f'(import "{MODULE}" "{name}" (func ${name} (param {kinds}) (result i32)))')
        loops[name] = f"(call ${name} {values})"
    # A call that fails ends the loop at once, and the caller sees its errno.
    functions = [
        f"""(func (export "{name}") (param $left i32) (result i32) (local $errno i32)
          (block $out (loop $again
            (br_if $out (local.tee $errno {body}))
            (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1))))))
          (local.get $errno))"""
        for name, body in loops.items()
    ]
    return f"""(module {" ".join(imports)} (memory (export "memory") 1)
        (global $fd (mut i32) (i32.const 0))
        (data (i32.const 16) "\\80\\00\\00\\00\\01\\00\\00\\00") (data (i32.const 32) "file")
        (func (export "open") (result i32) (local $errno i32)
          (local.set $errno {_OPEN}) (global.set $fd (i32.load (i32.const 64)))
          (local.get $errno))
        {" ".join(functions)})"""


def _instance(store: Store, linker: Linker, engine: Engine) -> tuple[dict[str, Func], Memory]:
    exports = linker.instantiate(store, Module(engine, _module())).exports(store)
    functions = {}
    for name in ("open", "nothing", *_IMPORTS):
        function = exports[name]
        assert isinstance(function, Func)
        functions[name] = function
    memory = exports["memory"]
    assert isinstance(memory, Memory)
    return functions, memory


@contextmanager
def _avow(folder: Path) -> Iterator[Callable[[str, int], int]]:
    """Runs a loop over a new sealed store."""
    engine = Engine()
    with SealedStore.create(folder / "store", [os.urandom(32)]) as sealed:
        sealed.make_file("/files/file")
        sealed.write("/files/file", bytes(4096))
        with Wasi(
            arguments=["bench"],
            entropy=os.urandom(32),
            directories=[SealedDirectory("/", "/files")],
            store=sealed,
            clocks=["monotonic"],
        ) as wasi:
            store, linker = Store(engine), Linker(engine)
            wasi.define(linker)
            functions, memory = _instance(store, linker, engine)
            wasi.attach(store, memory)
            yield _runner(store, functions)


@contextmanager
def _wasmtime(folder: Path) -> Iterator[Callable[[str, int], int]]:
    """Runs a loop over wasmtime's WASI and a plain folder."""
    engine = Engine()
    (folder / "file").write_bytes(bytes(4096))
    store, linker = Store(engine), Linker(engine)
    wasi = WasiConfig()
    wasi.preopen_dir(os.fspath(folder), "/")
    store.set_wasi(wasi)
    linker.define_wasi()
    functions, _memory = _instance(store, linker, engine)
    yield _runner(store, functions)


def _runner(store: Store, functions: dict[str, Func]) -> Callable[[str, int], int]:
    def run(name: str, calls: int) -> int:
        started = time.perf_counter_ns()
        errno = functions[name](store, calls)
        elapsed = time.perf_counter_ns() - started
        if errno != 0:
            raise SystemExit(f"{name} failed with errno {errno}")
        return elapsed

    if functions["open"](store) != 0:
        raise SystemExit("the file could not be opened")
    return run


def measure(calls: int, rounds: int) -> dict[tuple[str, str], float]:
    """Nanoseconds a call by function and side ("avow", "wasmtime"): medians of `rounds`."""
    samples: dict[tuple[str, str], list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        _avow(Path(folder)) as avow,
        _wasmtime(Path(folder)) as wasmtime,
    ):
        for _ in range(rounds):
            for side, run in (("avow", avow), ("wasmtime", wasmtime)):
                bare = run("nothing", calls)
                for name in _IMPORTS:
                    # wasmtime's own file calls take microseconds: fewer of them say as much.
                    count = calls if side == "avow" else max(1, calls // 20)
                    each = run(name, count) / count - bare / calls
                    samples.setdefault((name, side), []).append(each)
    return {key: statistics.median(values) for key, values in samples.items()}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description="Measure one call of WASI into the host.")
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    medians = measure(options.calls, options.rounds)
    print(f"{'ns a call':<16}{'avow':>8}{'wasmtime':>10}")
    for name in _IMPORTS:
        print(f"{name:<16}{medians[name, 'avow']:>8.0f}{medians[name, 'wasmtime']:>10.0f}")


if __name__ == "__main__":
    main()
