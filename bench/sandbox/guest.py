"""Runs a program over wasmtime's own WASI and a plain folder: what avow is compared with.

python -m bench.sandbox.guest MODULE FOLDER ARGUMENT...

The engine is the one that `avow run` uses, so that the difference is the files. FOLDER is `/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from wasmtime import ExitTrap, Func, Linker, Module, Store, WasiConfig

from avow.sandbox.engine_settings import engine_for, program_settings
from avow.sandbox.limits import Limits


def main(arguments: list[str]) -> int:
    """The program's exit code."""
    module, folder, *rest = arguments
    engine = engine_for(program_settings(Limits(), component=False))
    linker = Linker(engine)
    linker.define_wasi()
    store = Store(engine)
    wasi = WasiConfig()
    wasi.argv = [Path(module).stem, *rest]
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.preopen_dir(folder, "/")
    store.set_wasi(wasi)
    instance = linker.instantiate(store, Module.from_file(engine, module))
    start = instance.exports(store)["_start"]
    if not isinstance(start, Func):
        print(f"{module} has no function _start", file=sys.stderr)
        return 2
    try:
        start(store)
    except ExitTrap as exit_trap:
        return int(exit_trap.code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
