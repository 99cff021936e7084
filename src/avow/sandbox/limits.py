"""How much of the machine a program in the sandbox may take, and which trap means which limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from avow.errors import AvowError, LimitError, MalformedError, TrapError

MIB: Final = 1 << 20

PAGE_BYTES: Final = 64 << 10
MEMORY_BYTES_MAX: Final = 4 << 30
STACK_BYTES_MIN: Final = 64 << 10
STACK_BYTES_MAX: Final = 1 << 30
STACK_BYTES_DEFAULT: Final = 8 * MIB
RUN_TIMEOUT_S_MAX: Final = 10 * 366 * 86_400
# Whoever makes a module says how long its compilation takes. So long at least, where there is a
# limit at all: what runs for a second may well be large.
COMPILE_TIMEOUT_S: Final = 120.0
FUEL_MAX: Final = (1 << 63) - 1

# Memories and tables of one program. A component is several modules, each with its own.
MEMORIES_MAX: Final = 1
COMPONENT_MEMORIES_MAX: Final = 16
INSTANCES_MAX: Final = 1
COMPONENT_INSTANCES_MAX: Final = 256
TABLES_MAX: Final = 8
COMPONENT_TABLES_MAX: Final = 64
# Of each table; one takes 8 bytes of the host's memory, which no limit of a memory counts.
TABLE_ELEMENTS_MAX: Final = 1_000_000

# Behind the stack that WebAssembly may use: for the functions that it calls.
HOST_STACK_BYTES: Final = 2 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one run.

    `memory_max_bytes`: of each linear memory, and of all objects that are collected (WebAssembly's
    structs, arrays and exceptions). `stack_max_bytes`: of calls in each other.
    `run_timeout_s`: from the start of the program, None for ever; with it, compiling is limited too
    (`compile_timeout_s`). `fuel`: about one unit an
    instruction, always the same for the same program and input; None unlimited, and without cost.
    """

    memory_max_bytes: int = MEMORY_BYTES_MAX
    stack_max_bytes: int = STACK_BYTES_DEFAULT
    run_timeout_s: float | None = None
    fuel: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("memory_max_bytes", PAGE_BYTES, MEMORY_BYTES_MAX),
            ("stack_max_bytes", STACK_BYTES_MIN, STACK_BYTES_MAX),
            ("run_timeout_s", 0.001, RUN_TIMEOUT_S_MAX),
            ("fuel", 1, FUEL_MAX),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise MalformedError(
                    f"expected {name} from {least} to {most}, got {value}; correct the value"
                )

    def overridden(self, given: Mapping[str, Any]) -> Limits:
        """With those of `given` that are not None in place of these."""
        return replace(self, **{name: v for name, v in given.items() if v is not None})

    def measured(self) -> dict[str, int | float | None]:
        """By name, for the measured configuration: 60 and 60.0 are one."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        seconds = values["run_timeout_s"]
        if seconds is not None and seconds == int(seconds):
            values["run_timeout_s"] = int(seconds)
        return values


def compile_timeout_s(limits: Limits) -> float | None:
    """How long the compilation may take: None for ever, as for the program itself."""
    return None if limits.run_timeout_s is None else max(limits.run_timeout_s, COMPILE_TIMEOUT_S)


def compiled_too_long(limits: Limits) -> LimitError:
    """The error for a module that takes longer to compile than it may."""
    return LimitError(
        f"expected the module to compile within {compile_timeout_s(limits):g} s, but it did "
        "not; raise --timeout-s if it needs longer, and beware: some modules are made to "
        "compile forever"
    )


def timed_out(limits: Limits) -> LimitError:
    """The error for a program that ran longer than it may."""
    return LimitError(
        f"expected the program to end within {limits.run_timeout_s:g} s, but it did not and "
        "was stopped; raise --timeout-s if it needs longer"
    )


_LIMIT_TRAPS: Final = {
    "STACK_OVERFLOW": (
        "expected nested calls to fit in {stack_max_bytes} bytes of stack, but they did "
        "not; raise --stack-max-bytes unless this is endless recursion"
    ),
    "GC_HEAP_FULL": (
        "expected the program's objects to fit in {memory_max_bytes} bytes, but they did "
        "not; raise --memory-max-bytes if it needs more"
    ),
    "OUT_OF_FUEL": (
        "expected the program to end with {fuel} units of fuel, but it used them up; raise "
        "--fuel if it needs more"
    ),
}


def error_of_trap(
    code: str, message: str, limits: Limits, memory_bytes: int, refused: str = ""
) -> AvowError:
    """What a trap is called: `code` is wasmtime's name of it, `memory_bytes` the memory then, and
    `refused` the last grant that the program would have needed.

    A memory that cannot grow is no trap: `memory.grow` returns -1, and nearly every program then
    stops itself. So a trap with nearly all memory in use is said to be that.
    """
    sentence = _LIMIT_TRAPS.get(code)
    if sentence is not None:
        return LimitError(sentence.format_map(limits.measured()))
    if memory_bytes >= limits.memory_max_bytes - limits.memory_max_bytes // 8:
        return LimitError(
            f"expected the program to fit in {limits.memory_max_bytes} bytes of memory, but "
            f"it stopped itself ({message}) with {memory_bytes} in use; raise "
            "--memory-max-bytes if it needs more"
        )
    if refused:
        return TrapError(
            f"expected the program to go on without {refused}, but it ended itself when "
            f"that was refused ({message}); grant it with `--grant`, or use a program that "
            "does not need it"
        )
    return TrapError(
        "expected a program that keeps to the rules of WebAssembly, got one that was "
        f"stopped: {message}; this is a bug in the program: report it to its author"
    )
