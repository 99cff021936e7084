"""Functions beside WASI that a module can import, given as ordinary Python callables.

Whoever wires avow together hands them in, so that this room need not know what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from wasmtime import Caller, FuncType, Linker, Memory, ValType

from avow.errors import TrapError

_TYPES: Final[dict[str, Callable[[], ValType]]] = {"i32": ValType.i32, "i64": ValType.i64}


class GuestMemory:
    """The linear memory of the module that calls, for the time of the call."""

    def __init__(self, caller: Caller) -> None:
        memory = caller.get("memory")
        if not isinstance(memory, Memory):
            raise TrapError(
                "expected a program that exports its `memory`, which the functions that it "
                "imports need, got one that does not; link it again with that export"
            )
        self._caller, self._memory = caller, memory

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes. Raises `TrapError`, which ends the program, outside of it."""
        self._check(address, length)
        return bytes(self._memory.read(self._caller, address, address + length))

    def write(self, address: int, data: bytes) -> None:
        """Put `data` there. Raises `TrapError`, which ends the program, outside of it."""
        self._check(address, len(data))
        self._memory.write(self._caller, data, address)

    def _check(self, address: int, length: int) -> None:
        size = self._memory.data_len(self._caller)
        if address < 0 or length < 0 or address + length > size:
            raise TrapError(
                f"expected an address inside of the program's memory of {size} bytes, got "
                f"{length} bytes at {address}; this is a bug in the program: report it to its "
                "author"
            )


@dataclass(frozen=True, slots=True)
class ExtraImport:
    """One function: `parameters` are "i32" or "i64" and reach `function` as unsigned numbers.

    `function` gets the memory and them, and returns an i32 from 0. What it raises ends the program.
    `grant` is the one that a program needs for it.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    function: Callable[..., int]
    grant: str = "evidence"

    def define(self, linker: Linker) -> None:
        """Make it importable."""
        masks = [(1 << int(kind[1:])) - 1 for kind in self.parameters]

        def call(caller: Caller, *arguments: Any) -> int:
            numbers = [a & mask for a, mask in zip(arguments, masks, strict=True)]
            return int(self.function(GuestMemory(caller), *numbers))

        kinds = [_TYPES[each]() for each in self.parameters]
        signature = FuncType(kinds, [ValType.i32()])
        linker.define_func(self.module, self.name, signature, call, access_caller=True)
