"""Components: programs that export `wasi:cli/run` and import interfaces of WASI preview 2.

What they get is avow's own (`preview2`), but for the variables, the arguments, the exit and random
bytes, which are wasmtime's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from wasmtime import Engine, ExitTrap, Store, WasiConfig, WasmtimeError
from wasmtime.component import (
    Component,
    ComponentInstanceType,
    EnumType,
    Func,
    FuncType,
    Instance,
    Linker,
    ResourceType,
    ResultType,
)

from avow.errors import (
    AvowError,
    ImportsError,
    LimitError,
    MalformedError,
    ModuleError,
)
from avow.sandbox import preview2_http
from avow.sandbox.commands import report_damage
from avow.sandbox.component_functions import Failed, HostFunctions
from avow.sandbox.engine_settings import limited_store
from avow.sandbox.extra_imports import ExtraImport
from avow.sandbox.grants import Grants
from avow.sandbox.limits import (
    COMPONENT_INSTANCES_MAX,
    COMPONENT_MEMORIES_MAX,
    Limits,
)
from avow.sandbox.preview2 import RESOURCES, Preview2
from avow.sandbox.traps import import_name, listed, one_line, stopped
from avow.sandbox.wasi import Wasi
from avow.sandbox.wasi_calls import WasiCalls

if TYPE_CHECKING:
    from avow.sandbox.program import Surroundings

# What is defined, without the version.
INTERFACES: Final = frozenset(
    f"wasi:{package}/{name}"
    for package, names in {
        "cli": (
            *("environment", "exit", "stderr", "stdin", "stdout", "terminal-input"),
            *("terminal-output", "terminal-stderr", "terminal-stdin", "terminal-stdout"),
        ),
        "clocks": ("monotonic-clock", "wall-clock"),
        "filesystem": ("preopens", "types"),
        # avow's own: imported by what never uses it, and denied to what does.
        "http": ("outgoing-handler", "types"),
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
# How wasmtime says that an import is not what is offered.
_IMPORTS: Final = "component imports"
# How it stops a component that hands over more than 128 MiB, where it counts 48 bytes for a byte.
_TOO_MUCH: Final = "fuel allocated for hostcalls has been exhausted"
# What stays wasmtime's: these have nothing to do with files, streams and waiting.
_WITHOUT_FILES: Final = frozenset(
    {
        "wasi:cli/environment",
        "wasi:cli/exit",
        "wasi:random/insecure",
        "wasi:random/insecure-seed",
        "wasi:random/random",
    }
)


def check(
    engine: Engine, component: Component, grants: Grants, extra_imports: Sequence[ExtraImport]
) -> None:
    """Raises `ImportsError` for all imports that are not there, and `MalformedError` for a grant
    that a component cannot have: none is ever silently without effect."""
    if grants.evidence:
        raise MalformedError(
            "expected grants that a component can have, got `evidence`, which only modules "
            "of WASI preview 1 can use; build the program as such a module, or remove the "
            "grant"
        )
    check_names(list(component.type.imports(engine)))
    _check_types(engine, component)


def check_names(imports: Sequence[str]) -> None:
    """Raises `ImportsError` that names the imports that nobody answers, whatever their types."""
    missing = [
        f"{import_name(name)} (no grant allows it)"
        for name in imports
        if _interface(name) not in INTERFACES
    ]
    if missing:
        raise ImportsError(
            "expected interfaces of WASI 0.2 that are granted, got imports of "
            f"{listed(missing)}; grant them, or build the component without them"
        )


def _check_types(engine: Engine, component: Component) -> None:
    """Raises `ImportsError` for functions that are not of WASI 0.2, or of other types.

    wasmtime compares them with its own definitions. avow's, which take their place, believe the
    types: a stream in the place of a folder would be taken for one. Nothing of the component runs
    here, as no instance may be made.
    """
    linker = Linker(engine)
    linker.add_wasip2()
    if any(_interface(name) in preview2_http.INTERFACES for name in component.type.imports(engine)):
        linker.add_wasi_http()
    store = Store(engine)
    store.set_limits(instances=0)
    try:
        linker.instantiate(store, component)
    except WasmtimeError as error:
        reason = one_line(error)
        if _IMPORTS in reason:
            raise ImportsError(
                f"expected imports as WASI 0.2 has them, got others ({reason}); build it again"
            ) from error


def run(engine: Engine, component: Component, limits: Limits, surroundings: Surroundings) -> int:
    """Run a component to its end and return its exit code. Errors as of `Program.run`."""
    check(engine, component, surroundings.grants, surroundings.extra_imports)
    entry = _entry(engine, component)
    store = limited_store(
        engine, limits, instances=COMPONENT_INSTANCES_MAX, memories=COMPONENT_MEMORIES_MAX
    )
    store.set_wasi(_wasi(surroundings))
    linker = Linker(engine)
    linker.allow_shadowing = True
    linker.add_wasip2()
    with Wasi.of(surroundings) as wasi:
        grants = surroundings.grants
        preview2 = Preview2(
            WasiCalls(wasi),
            grants.clocks,
            endpoints=[(each.host, each.port) for each in grants.tcp],
            listeners=[(each.host, each.port) for each in grants.listen],
            on_denied=surroundings.denied,
        )
        functions = HostFunctions()
        _define(engine, component, linker, preview2, functions)
        try:
            return _run_linked(linker, store, component, entry, limits)
        except WasmtimeError as error:
            if functions.raised is not None:
                raise functions.raised from error
            raise _stopped(error, limits, wasi.last_refused) from error
        finally:
            # What the program met of damage counts more than what it made of that.
            report_damage(wasi)


def _run_linked(
    linker: Linker, store: Store, component: Component, entry: str, limits: Limits
) -> int:
    try:
        # Modules in it may have functions that run at once, which may call `exit` as well.
        instance = linker.instantiate(store, component)
        function = _function(store, instance, entry)
        # `run` returns a result without values (wasi:cli/run), which is a variant in Python.
        failed = getattr(function(store), "tag", "ok") == "err"
    except ExitTrap as ended:
        return int(ended.code) & 0xFF
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
        f"{listed(map(import_name, component.type.exports(engine))) or 'nothing'}; build it as "
        f"a command"
    )


def _function(store: Store, instance: Instance, entry: str) -> Func:
    interface = instance.get_export_index(store, entry)
    index = instance.get_export_index(store, "run", interface) if interface is not None else None
    function = instance.get_func(store, index) if index is not None else None
    if function is None:
        raise ModuleError(f"expected {entry} with a function `run`, got none; build it again")
    return function


def _wasi(surroundings: Surroundings) -> WasiConfig:
    grants, variables = surroundings.grants, surroundings.variables
    for text in (
        *surroundings.arguments,
        *(each for pair in variables for each in pair),
        *(each.guest for each in grants.sealed),
        *(each.guest for each in grants.plain),
        *grants.provisioned,
    ):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise MalformedError(
                "expected arguments, variables and folders in UTF-8, the only text that a "
                f"component has, got {text!r}; rename it, or build the program as a module"
            ) from error
    config = WasiConfig()
    config.argv = list(surroundings.arguments)
    config.env = variables
    return config


def _define(
    engine: Engine,
    component: Component,
    linker: Linker,
    preview2: Preview2,
    functions: HostFunctions,
) -> None:
    """A whole interface at a time, for each that is imported: their resources belong together."""
    offered = preview2.functions()
    for name, imported in component.type.imports(engine).items():
        interface = imported.ty
        if _interface(name) in _WITHOUT_FILES or not isinstance(interface, ComponentInstanceType):
            continue
        own = offered.get(_interface(name), {})
        with linker.root() as root, root.add_instance(name) as defined:
            for export, item in interface.exports(engine).items():
                kind: object = item.ty
                if isinstance(kind, ResourceType):
                    resource = preview2_http.ALIASES.get(export, export)
                    host = ResourceType.host(RESOURCES[resource])
                    defined.add_resource(export, host, lambda store, rep: preview2.drop(rep))
                elif isinstance(kind, FuncType):
                    function = own.get(export) or _refusing(name, export, kind)
                    functions.add(defined, export, kind, function)


def _refusing(interface: str, name: str, kind: FuncType) -> Callable[..., Any]:
    """What is not there says no, with the error that programs expect if there is one."""
    result = kind.result
    codes = result.err if isinstance(result, ResultType) else None

    def refuse(*arguments: Any) -> Failed:
        if isinstance(codes, EnumType) and "access-denied" in codes.names:
            return Failed("access-denied")
        raise ImportsError(
            f"expected the program to do without {interface}#{name}, got a call of it; avow "
            "has no UDP sockets: build the program without them"
        )

    return refuse


def _stopped(error: WasmtimeError, limits: Limits, refused: str) -> AvowError:
    reason = one_line(error)
    if "exceeds memory limits" in reason:
        return LimitError(
            f"expected a component that starts within {limits.memory_max_bytes} bytes of "
            f"memory, got one that needs more ({reason}); raise --memory-max-bytes"
        )
    if "resource limit exceeded" in reason or "exceeds table limits" in reason:
        return ModuleError(
            f"expected a component that can be started, got {reason}; build it again with fewer "
            f"modules, tables and memories"
        )
    if _TOO_MUCH in reason:
        return LimitError(
            "expected at most 2 MiB in one call of a component, got more, which wasmtime "
            "does not pass on; write in smaller pieces"
        )
    return stopped(error, limits, 0, refused)
