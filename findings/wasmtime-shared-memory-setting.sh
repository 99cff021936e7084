#!/usr/bin/env bash
# wasmtime (Python) with wasm_threads on compiles a module that has a shared memory of its own, and then does not
# instantiate it: shared memory is a setting apart (Config.shared_memory).
# WebAssembly threads proposal, memory types: "shared" is part of the proposal that wasm_threads turns on, and a
# module that has passed validation is expected to instantiate when its imports fit.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check wasmtime==50.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from wasmtime import Config, Engine, Instance, Module, Store, WasmtimeError

TEXT = """(module (memory 1 1 shared)
  (func (export "f") (result i32)
    i32.const 0 i32.const 5 i32.atomic.store i32.const 0 i32.atomic.load))"""


def run(**settings: bool) -> str:
    """Compiles and starts the module with these settings; what came of it."""
    config = Config()
    for name, value in settings.items():
        setattr(config, name, value)
    engine = Engine(config)
    try:
        module = Module(engine, TEXT)
    except WasmtimeError as error:
        return f"does not compile: {error}"
    store = Store(engine)
    try:
        exports = Instance(store, module, []).exports(store)
    except WasmtimeError as error:
        return f"compiles, does not start: {error}"
    return f"runs, f() is {exports['f'](store)}"


print("wasmtime", version("wasmtime"))
print("expected: what compiles with wasm_threads also starts")
alone = run(wasm_threads=True)
both = run(wasm_threads=True, shared_memory=True)
print("wasm_threads:", alone)
print("wasm_threads and shared_memory:", both)
sys.exit(0 if alone.startswith("compiles, does not start") and both == "runs, f() is 5" else 1)
PYTHON
