"""What wasmtime says when it stops a program, in one line, and which of avow's errors that is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Final

from wasmtime import Trap, WasmtimeError

from avow.errors import AvowError
from avow.sandbox.limits import Limits, error_of_trap

_LINE_MAX: Final = 300
_NAME_MAX: Final = 200
_LISTED_MAX: Final = 32
# Where a number does not say it: a component's errors are only text, and so is this of a module.
_GC_HEAP_FULL: Final = "GC heap out of memory"
_CODES: Final = {
    _GC_HEAP_FULL: "GC_HEAP_FULL",
    "call stack exhausted": "STACK_OVERFLOW",
    "all fuel consumed by WebAssembly": "OUT_OF_FUEL",
}
_NUMBER: Final = re.compile(r"^\d+: +")


def one_line(error: WasmtimeError | Trap) -> str:
    """The causes that wasmtime names, the innermost last, without the list of frames."""
    text = error.message if isinstance(error, Trap) else str(error)
    head, caused, causes = text.partition("Caused by:")
    lines = [_NUMBER.sub("", line.strip()) for line in (causes if caused else head).splitlines()]
    joined = ": ".join(line for line in lines if line)
    if caused and not head.startswith("error while executing"):
        joined = f"{head.strip().splitlines()[0]}: {joined}"
    return printable(joined)[:_LINE_MAX]


def printable(text: str) -> str:
    """A text in which there may be what a program chose: nothing of it begins a line of a log or
    commands a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def import_name(text: str) -> str:
    """A name that a program chose, for a message: printable, and not longer than one reads."""
    return printable(text if len(text) <= _NAME_MAX else f"{text[:_NAME_MAX]}…")


def listed(items: Iterable[str]) -> str:
    """Some of what a program names, each once, and how many more: it chooses how many."""
    different = dict.fromkeys(items)
    more = len(different) - _LISTED_MAX
    shown = ", ".join(itertools.islice(different, _LISTED_MAX))
    return f"{shown} and {more} more" if more > 0 else shown


def is_limit(error: WasmtimeError) -> bool:
    """Whether an error that is no trap says that a running program has reached a limit."""
    return _GC_HEAP_FULL in str(error)


def stopped(
    error: WasmtimeError | Trap, limits: Limits, memory_bytes: int, refused: str = ""
) -> AvowError:
    """The error for a program that was stopped with `memory_bytes` of memory in use, after it was
    `refused` a grant."""
    reason = one_line(error)
    code = ""
    if isinstance(error, Trap):
        code = "" if error.trap_code is None else error.trap_code.name
    else:
        code = next((code for text, code in _CODES.items() if text in reason), "")
    return error_of_trap(code, reason, limits, memory_bytes, refused)
