"""Core modules: commands of WASI preview 1 (`_start`), and reactors (`_initialize`).

Source: https://github.com/WebAssembly/WASI, legacy/application-abi.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from wasmtime import (
    Engine,
    Func,
    FuncType,
    Instance,
    Linker,
    Memory,
    Module,
    Store,
    Trap,
    WasmtimeError,
)

from avow.errors import AvowError, ImportsError, LimitError, ModuleError, StorageError
from avow.sandbox.engine_settings import limited_store
from avow.sandbox.extra_imports import ExtraImport
from avow.sandbox.grants import Grants
from avow.sandbox.limits import (
    INSTANCES_MAX,
    MEMORIES_MAX,
    TABLES_MAX,
    Limits,
)
from avow.sandbox.traps import import_name, is_limit, listed, one_line, stopped
from avow.sandbox.wasi import FUNCTIONS, MODULE, Wasi

if TYPE_CHECKING:
    from avow.sandbox.program import Surroundings

# In the order in which they are looked for: what has `_start` is a command, whatever else it has.
LIBRARY_ENTRY: Final = "_initialize"
_ENTRIES: Final = ("_start", LIBRARY_ENTRY)
# Functions that avow knows, by module, and the grant that allows them.
GRANTED_MODULES: Final = {"avow_evidence": "evidence", "avow_verify": "evidence"}


def check(module: Module, grants: Grants, extra_imports: Sequence[ExtraImport]) -> None:
    """Raises `ImportsError` that names the imports that nobody would answer."""
    check_names([(each.module, each.name or "") for each in module.imports], grants, extra_imports)


def check_names(
    imports: Sequence[tuple[str, str]], grants: Grants, extra_imports: Sequence[ExtraImport]
) -> None:
    """The same for imports by module and name, whatever their types."""
    offered = {(each.module, each.name): each for each in extra_imports}
    missing: list[str] = []
    for place in imports:
        if place in offered and (offered[place].grant != "evidence" or grants.evidence):
            continue
        if place[0] == MODULE and place[1] in FUNCTIONS:
            continue
        name = import_name(f"{place[0]}.{place[1]}")
        grant = offered[place].grant if place in offered else GRANTED_MODULES.get(place[0])
        if grant is None:
            missing.append(f"{name} (no grant allows it)")
        elif grant == "evidence" and grants.evidence:
            missing.append(f"{name} (granted, but only `--attest` offers it)")
        else:
            missing.append(f"{name} (`--grant {grant}` allows it)")
    if missing:
        raise ImportsError(
            "expected imports that exist and are granted, got "
            f"{listed(missing)}; grant them, or build the module for "
            "wasm32-wasi preview 1 without them"
        )


def entry_of(module: Module) -> str:
    """The export to call. Raises `ModuleError` when there is none, or of another type."""
    exports = {each.name: each.type for each in module.exports}
    for name in _ENTRIES:
        kind = exports.get(name)
        if isinstance(kind, FuncType):
            if kind.params or kind.results:
                raise ModuleError(
                    f"expected `{name}` without parameters and results, got one with them; build "
                    f"the module for WASI preview 1"
                )
            return name
    raise ModuleError(
        "expected a program, which exports the function `_start` (or `_initialize`), got a module "
        "with neither; build it as a command for WASI preview 1"
    )


def run(engine: Engine, module: Module, limits: Limits, surroundings: Surroundings) -> int:
    """Run a module to its end and return its exit code, 0 to 255. Errors as of `Program.run`."""
    check(module, surroundings.grants, surroundings.extra_imports)
    entry = entry_of(module)
    store = limited_store(
        engine, limits, instances=INSTANCES_MAX, memories=MEMORIES_MAX, tables=TABLES_MAX
    )
    linker = Linker(engine)
    for each in surroundings.extra_imports:
        each.define(linker)
    memory: Memory | None = None
    with Wasi.of(surroundings) as wasi:
        wasi.define(linker)
        try:
            instance = linker.instantiate(store, module)
            memory = _memory_of(store, instance)
            if memory is not None:
                wasi.attach(store, memory)
            function = instance.exports(store)[entry]
            if isinstance(function, Func):
                function(store)
        except (Trap, WasmtimeError) as error:
            # `proc_exit` ends a program from within a call, which looks like this too.
            if wasi.exit_code is None:
                report_damage(wasi)
                in_use = 0 if memory is None else memory.data_len(store)
                raise _error_of(error, limits, in_use, wasi.last_refused) from error
        report_damage(wasi)
        return (wasi.exit_code or 0) & 0xFF


def _memory_of(store: Store, instance: Instance) -> Memory | None:
    memory = instance.exports(store).get("memory")
    return memory if isinstance(memory, Memory) else None


def report_damage(wasi: Wasi) -> None:
    """Raises `DamagedError` when the program met a damaged file, whatever it made of that, and what
    a function of avow's raised that it called.

    A full disk is the program's own affair, as everywhere. One that failed is reported by the last
    commit, which then fails too.
    """
    wasi.check_callbacks()
    try:
        wasi.check_store()
    except StorageError:
        return


def _error_of(
    error: Trap | WasmtimeError, limits: Limits, memory_bytes: int, refused: str
) -> AvowError:
    if isinstance(error, Trap) or is_limit(error):
        return stopped(error, limits, memory_bytes, refused)
    return _unlinked(error, limits)


def _unlinked(error: WasmtimeError, limits: Limits) -> AvowError:
    reason = one_line(error)
    if "exceeds memory limits" in reason:
        return LimitError(
            f"expected a module that starts within {limits.memory_max_bytes} bytes of "
            f"memory, got one that needs more ({reason}); raise --memory-max-bytes"
        )
    if "incompatible import type" in reason:
        return ImportsError(
            f"expected imports of the types that WASI preview 1 gives them, got others ({reason}); "
            f"build the module again"
        )
    if "shared memory" in reason:
        return ModuleError(
            "expected a program without threads, got one with a shared memory; build it again "
            "without threads"
        )
    # What the vault says of a call of WASI (vault/src/wasi/functions.zig).
    if "has to export its memory" in reason:
        return ModuleError(
            "expected a module that exports its memory as `memory`, got one that calls WASI "
            "without that; build it as a command for WASI preview 1"
        )
    return ModuleError(
        f"expected a module that can be started, got {reason}; build it again with fewer tables, "
        f"memories or exports"
    )
