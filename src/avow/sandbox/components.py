"""Components: programs that export `wasi:cli/run` and import interfaces of WASI preview 2.

WASI preview 2 is wasmtime's own here. It gives nothing by default: no folder, no variable, no
connection. Clocks it would give to everybody, so those that were not granted are put in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wasmtime import Engine, ExitTrap, Store, WasiConfig, WasmtimeError
from wasmtime.component import (
    Component,
    ComponentInstanceType,
    EnumType,
    Func,
    FuncType,
    Instance,
    Linker,
    ResourceAny,
    ResourceType,
    ResultType,
    Variant,
)

from avow.errors import (
    AvowError,
    ImportsError,
    LimitError,
    MalformedError,
    ModuleError,
    UnavailableError,
)
from avow.sandbox.commands import report_damage
from avow.sandbox.engine_settings import limited_store
from avow.sandbox.extra_imports import ExtraImport
from avow.sandbox.grants import Grants
from avow.sandbox.limits import (
    COMPONENT_INSTANCES_MAX,
    COMPONENT_MEMORIES_MAX,
    Limits,
)
from avow.sandbox.preview2 import RESOURCES, Failed, Preview2
from avow.sandbox.traps import one_line, stopped
from avow.sandbox.wasi import Wasi
from avow.sandbox.wasi_calls import WasiCalls

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
# What stays wasmtime's in any case: these have nothing to do with files, streams and waiting.
_WITHOUT_FILES: Final = frozenset(
    {
        "wasi:cli/environment",
        "wasi:cli/exit",
        "wasi:random/insecure",
        "wasi:random/insecure-seed",
        "wasi:random/random",
    }
)

# The functions of each clock, and its grant (wasi:clocks 0.2).
_CLOCKS: Final = {
    "wasi:clocks/wall-clock": ("realtime", ("now", "resolution")),
    "wasi:clocks/monotonic-clock": (
        "monotonic",
        ("now", "resolution", "subscribe-instant", "subscribe-duration"),
    ),
}
_MODULES_ONLY: Final = {
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
    store = limited_store(
        engine, limits, instances=COMPONENT_INSTANCES_MAX, memories=COMPONENT_MEMORIES_MAX
    )
    store.set_wasi(_wasi(surroundings))
    linker = Linker(engine)
    linker.allow_shadowing = True
    linker.add_wasip2()
    if not surroundings.grants.sealed:
        _deny_clocks(engine, component, linker, surroundings.grants)
        return _run_linked(linker, store, component, entry, limits)
    with Wasi.of(surroundings) as wasi:
        preview2 = Preview2(WasiCalls(wasi), surroundings.grants.clocks)
        _define_sealed(engine, component, linker, preview2)
        try:
            return _run_linked(linker, store, component, entry, limits)
        finally:
            # What the program met of damage counts more than what it made of that.
            report_damage(wasi)


def _run_linked(
    linker: Linker, store: Store, component: Component, entry: str, limits: Limits
) -> int:
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


def _define_sealed(
    engine: Engine, component: Component, linker: Linker, preview2: Preview2
) -> None:
    """All that has to do with files, streams and waiting, over the vault's preview 1.

    A whole interface at a time, for each that is imported: their resources belong together.
    """
    functions = preview2.functions()
    for name, imported in component.type.imports(engine).items():
        interface = imported.ty
        if _interface(name) in _WITHOUT_FILES or not isinstance(interface, ComponentInstanceType):
            continue
        own = functions.get(_interface(name), {})
        with linker.root() as root, root.add_instance(name) as defined:
            for export, item in interface.exports(engine).items():
                kind: object = item.ty
                if isinstance(kind, ResourceType):
                    host = ResourceType.host(RESOURCES[export])
                    defined.add_resource(export, host, lambda store, rep: preview2.drop(rep))
                elif isinstance(kind, FuncType):
                    defined.add_func(export, _answering(name, export, kind, own.get(export)))


def _answering(
    interface: str, name: str, kind: FuncType, function: Callable[..., Any] | None
) -> Callable[..., Any]:
    """`function` with its results as wasmtime wants them: a result whose two cases cannot be told
    apart by their Python types is a `Variant`. Without a function: what says no."""
    result = kind.result
    tagged = isinstance(result, ResultType) and result._tagged()
    codes: list[str] = []
    if isinstance(result, ResultType) and isinstance(result.err, EnumType):
        codes = result.err.names

    def answer(store: Any, *arguments: Any) -> Any:
        # All of them, even if nobody asks for them: a handle that was lent has to be given back.
        numbers = [_numbered(store, each) for each in arguments]
        if function is not None:
            value = function(*numbers)
        elif "access-denied" in codes:
            value = Failed("access-denied")
        else:
            raise ImportsError(
                f"expected the program to do without {interface}#{name}, it called it; beside "
                f"sealed folders there are no sockets for components: build it as a module of "
                f"preview 1"
            )
        if isinstance(value, Failed):
            return Variant("err", value.error) if tagged else value.error
        return Variant("ok", value) if tagged else value

    return answer


def _numbered(store: Any, argument: Any) -> Any:
    if isinstance(argument, ResourceAny):
        return argument.to_host(store).rep
    if isinstance(argument, list):
        return [_numbered(store, each) for each in argument]
    return argument


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
