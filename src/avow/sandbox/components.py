"""Components: programs that export `wasi:cli/run` and import interfaces of WASI preview 2.

WASI preview 2 is wasmtime's own here. It gives nothing by default: no folder, no variable, no
connection. Clocks it would give to everybody, so those that were not granted are put in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wasmtime import Engine, ExitTrap, Store, WasiConfig, WasmtimeError
from wasmtime.component import Component, Func, Instance, Linker

from avow.errors import (
    AvowError,
    ImportsError,
    LimitError,
    MalformedError,
    ModuleError,
    UnavailableError,
)
from avow.sandbox.extra_imports import ExtraImport
from avow.sandbox.grants import Grants
from avow.sandbox.limits import (
    COMPONENT_INSTANCES_MAX,
    COMPONENT_MEMORIES_MAX,
    TABLE_ELEMENTS_MAX,
    TABLES_MAX,
    Limits,
)
from avow.sandbox.traps import one_line, stopped

if TYPE_CHECKING:
    from avow.sandbox.program import Surroundings

# What `add_wasip2` defines, without the version.
INTERFACES: Final = frozenset(
    f"wasi:{package}/{name}"
    for package, names in {
        "cli": (
            *("environment", "exit", "stderr", "stdin", "stdout", "terminal-input"),
            *("terminal-output", "terminal-stderr", "terminal-stdin", "terminal-stdout"),
        ),
        "clocks": ("monotonic-clock", "wall-clock"),
        "filesystem": ("preopens", "types"),
        "io": ("error", "poll", "streams"),
        "random": ("insecure", "insecure-seed", "random"),
        "sockets": (
            *("instance-network", "ip-name-lookup", "network"),
            *("tcp", "tcp-create-socket", "udp", "udp-create-socket"),
        ),
    }.items()
    for name in names
)
_VERSIONED: Final = re.compile(r"(wasi:[a-z]+/[a-z0-9-]+)@0\.2\.[0-9]+")
_RUN: Final = "wasi:cli/run"

# The functions of each clock, and its grant (wasi:clocks 0.2).
_CLOCKS: Final = {
    "wasi:clocks/wall-clock": ("realtime", ("now", "resolution")),
    "wasi:clocks/monotonic-clock": (
        "monotonic",
        ("now", "resolution", "subscribe-instant", "subscribe-duration"),
    ),
}
_MODULES_ONLY: Final = {
    "sealed": "a sealed folder",
    "tcp": "a TCP connection",
    "listen": "a TCP port",
    "evidence": "evidence",
}


def check(
    engine: Engine, component: Component, grants: Grants, extra_imports: Sequence[ExtraImport]
) -> None:
    """Raises `ImportsError` for all imports that are not there, and `MalformedError` for a grant
    that a component cannot have: none is ever silently without effect."""
    for kind, what in _MODULES_ONLY.items():
        if getattr(grants, kind):
            raise MalformedError(
                f"expected grants that a component can have, got `{kind}`: {what} is only there "
                f"for modules of WASI preview 1; build the program as one, or remove the grant"
            )
    missing = [
        f"{name} (no grant allows it)"
        for name in component.type.imports(engine)
        if _interface(name) not in INTERFACES
    ]
    if missing:
        raise ImportsError(
            f"expected interfaces of WASI 0.2, this component wants {', '.join(missing)}; build it "
            f"without them"
        )


def run(engine: Engine, component: Component, limits: Limits, surroundings: Surroundings) -> int:
    """Run a component to its end and return its exit code. Errors as of `Program.run`."""
    check(engine, component, surroundings.grants, surroundings.extra_imports)
    entry = _entry(engine, component)
    store = Store(engine)
    store.set_limits(
        memory_size=limits.memory_max_bytes,
        table_elements=TABLE_ELEMENTS_MAX,
        instances=COMPONENT_INSTANCES_MAX,
        tables=TABLES_MAX,
        memories=COMPONENT_MEMORIES_MAX,
    )
    if limits.fuel is not None:
        store.set_fuel(limits.fuel)
    store.set_wasi(_wasi(surroundings))
    linker = Linker(engine)
    linker.allow_shadowing = True
    linker.add_wasip2()
    _deny_clocks(engine, component, linker, surroundings.grants)
    try:
        instance = linker.instantiate(store, component)
    except WasmtimeError as error:
        raise _unlinked(error, limits) from error
    function = _function(store, instance, entry)
    try:
        # `run` returns a result without values (wasi:cli/run), which is a variant in Python.
        failed = getattr(function(store), "tag", "ok") == "err"
    except ExitTrap as ended:
        return int(ended.code) & 0xFF
    except WasmtimeError as error:
        raise stopped(error, limits, 0) from error
    return 1 if failed else 0


def _interface(name: str) -> str:
    match = _VERSIONED.fullmatch(name)
    return name if match is None else match[1]


def _entry(engine: Engine, component: Component) -> str:
    for name in component.type.exports(engine):
        if _interface(name) == _RUN:
            return name
    raise ModuleError(
        f"expected a component that is a program, which exports {_RUN}@0.2, got one that exports "
        f"{', '.join(component.type.exports(engine)) or 'nothing'}; build it as a command"
    )


def _function(store: Store, instance: Instance, entry: str) -> Func:
    interface = instance.get_export_index(store, entry)
    index = instance.get_export_index(store, "run", interface) if interface is not None else None
    function = instance.get_func(store, index) if index is not None else None
    if function is None:
        raise ModuleError(f"expected {entry} with a function `run`, got none; build it again")
    return function


def _wasi(surroundings: Surroundings) -> WasiConfig:
    config = WasiConfig()
    config.argv = list(surroundings.arguments)
    config.env = surroundings.variables
    config.inherit_stdin()
    config.inherit_stdout()
    config.inherit_stderr()
    for each in surroundings.grants.plain:
        try:
            config.preopen_dir(str(each.host), each.guest, False)
        except WasmtimeError as error:
            raise UnavailableError(
                f"expected a readable folder {each.host} for the grant plain:{each.guest}, got "
                f"none; create it or correct the path"
            ) from error
    return config


def _deny_clocks(engine: Engine, component: Component, linker: Linker, grants: Grants) -> None:
    for name in component.type.imports(engine):
        clock, functions = _CLOCKS.get(_interface(name), ("", ()))
        if not functions or clock in grants.clocks:
            continue
        with linker.root() as root, root.add_instance(name) as interface:
            for function in functions:
                interface.add_func(function, _denying(name, function, f"clock:{clock}"))


def _denying(interface: str, function: str, grant: str) -> Callable[..., NoReturn]:
    def deny(*arguments: Any) -> NoReturn:
        raise ImportsError(
            f"expected the program to do without {interface}#{function}, which was not granted, it "
            f"called it; allow it with `--grant {grant}`"
        )

    return deny


def _unlinked(error: WasmtimeError, limits: Limits) -> AvowError:
    reason = one_line(error)
    if "exceeds memory limits" in reason:
        return LimitError(
            f"expected a component that starts within {limits.memory_max_bytes} bytes of memory, "
            f"this one wants more ({reason}); raise --memory-max-bytes"
        )
    if "component imports" in reason:
        return ImportsError(
            f"expected imports as WASI 0.2 has them, got others ({reason}); build it again"
        )
    return ModuleError(f"expected a component that can be started, got {reason}; build it again")
