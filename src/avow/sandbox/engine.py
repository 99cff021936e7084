"""Load a core: measure exactly the bytes that are compiled, refuse what it must not have, limit it.

The contract with the core is docs/spec/core-abi.md. Memory checks stay on: wasmtime does them with
guard pages around a reservation of 4 GiB, which costs nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

from wasmtime import (
    Func,
    Instance,
    Memory,
    Module,
    Store,
    Trap,
    WasmtimeError,
)

from avow.errors import MalformedError
from avow.sandbox.engine_settings import CORE_SETTINGS, engine_for

# WebAssembly core specification, 5.5.16.
_MODULE: Final = b"\0asm\x01\0\0\0"
LAYOUT_MAGIC: Final = 0x574F5641  # "AVOW", little-endian
LAYOUT_VERSION: Final = 3
INPUT_RECORD_BYTES: Final = 16
OUTPUT_RECORD_BYTES: Final = 16
RESULT_BYTES: Final = 64

_EXPORTED_FUNCTIONS: Final = ("layout", "init", "step", "commit", "restore", "snapshot")
_MEMORY_MAX_BYTES: Final = 2 << 30
# What wasmtime reserves for a 32-bit memory (Config.memory_reservation's default on 64-bit hosts).
_RESERVATION_BYTES: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout table of a core, in the order in which it lies in memory (u32 each)."""

    magic: int
    layout_version: int
    layout_bytes: int
    input_address: int
    input_capacity: int
    input_record_bytes: int
    arena_address: int
    arena_bytes: int
    output_address: int
    output_capacity: int
    output_record_bytes: int
    result_address: int
    result_bytes: int
    stats_address: int
    stats_count: int


_LAYOUT: Final = struct.Struct(f"<{len(fields(Layout))}I")


@dataclass(frozen=True, slots=True)
class LoadedCore:
    """One instance of a core, not yet initialised; it belongs to one pump or driver.

    ``sha256`` is the digest (32 bytes) of exactly the bytes that were compiled. ``layout_address``
    and ``layout`` come from the core and have been checked against its memory.
    """

    sha256: bytes
    store: Store
    memory: Memory
    functions: dict[str, Func]
    layout_address: int
    layout: Layout

    def call(self, name: str, *arguments: int) -> int:
        """Call an export. Raises wasmtime.Trap when the core traps."""
        result = self.functions[name](self.store, *arguments)
        return int(result) & 0xFFFFFFFF

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes out of linear memory. Raises MalformedError for a range outside of it."""
        if address < 0 or length < 0 or address + length > self.memory.data_len(self.store):
            raise MalformedError(
                "expected the core to name bytes in its memory of "
                f"{self.memory.data_len(self.store)}, got {length} at address {address}; "
                "rebuild the core"
            )
        return bytes(self.memory.read(self.store, address, address + length))

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes into linear memory."""
        self.memory.write(self.store, data, address)


def load(
    wasm_bytes: bytes | bytearray | memoryview,
    *,
    memory_max_bytes: int = _MEMORY_MAX_BYTES,
    measure: Callable[[bytes], None] | None = None,
) -> LoadedCore:
    """Compile and instantiate a core, and check that it is one this version of avow can host.

    ``memory_max_bytes`` bounds its linear memory. ``measure`` is called with the digest of exactly
    the bytes that were compiled, before any of their code runs; what it raises ends the loading.
    Raises MalformedError when the bytes are no module, when it has imports, lacks an export, or has
    another layout.
    """
    # An immutable copy of our own: what is hashed is what is compiled, whoever holds the argument.
    module_bytes = bytes(wasm_bytes)
    digest = hashlib.sha256(module_bytes).digest()
    if not module_bytes.startswith(_MODULE):
        # The text format would be compiled as well, from other bytes than those that were hashed.
        raise MalformedError(
            "expected a core that is a WebAssembly module in its binary format, got one "
            f"that begins with {module_bytes[:8].hex() or 'nothing'}; rebuild it"
        )
    engine = engine_for(CORE_SETTINGS)
    try:
        module = Module(engine, module_bytes)
    except WasmtimeError as error:
        raise MalformedError(
            "expected a core that is a valid WebAssembly module, got one that is not "
            f"({error}): rebuild it"
        ) from error
    imports = [f"{item.module}.{item.name}" for item in module.imports]
    if imports:
        raise MalformedError(
            f"expected a core without imports, got one that wants {', '.join(imports)}; "
            "build it for wasm32-freestanding"
        )
    if measure is not None:
        measure(digest)
    store = Store(engine)
    store.set_limits(memory_size=memory_max_bytes, instances=1, memories=1, tables=4)
    try:
        instance = Instance(store, module, [])
    except (WasmtimeError, Trap) as error:
        raise MalformedError(
            f"expected a core that starts within {memory_max_bytes} bytes of memory, got a "
            f"failure ({error})"
        ) from error
    return _resolve(store, instance, digest)


def _resolve(store: Store, instance: Instance, digest: bytes) -> LoadedCore:
    exports = instance.exports(store)
    memory = exports.get("memory")
    if not isinstance(memory, Memory):
        raise MalformedError(
            "expected a core that exports its linear memory as `memory`, "
            "got one that does not; rebuild it"
        )
    functions: dict[str, Func] = {}
    for name in _EXPORTED_FUNCTIONS:
        function = exports.get(name)
        if not isinstance(function, Func):
            raise MalformedError(
                f"expected a core that exports the function `{name}`, got "
                "one that does not; rebuild it"
            )
        _check_type(store, name, function)
        functions[name] = function
    prefer_large_pages(store, memory)
    address = int(functions["layout"](store)) & 0xFFFFFFFF
    layout = _layout(store, memory, address)
    return LoadedCore(digest, store, memory, functions, address, layout)


def prefer_large_pages(store: Store, memory: Memory) -> None:
    """Ask the kernel for large pages: a core with a million subscriptions is bound by translations.

    Only advice, so a kernel that does not take it changes nothing. It is given for the whole
    reservation, since memory grows inside of it later (madvise(2), MADV_HUGEPAGE).
    """
    address = ctypes.addressof(memory.data_ptr(store).contents)
    start = ctypes.c_void_p(address // mmap.PAGESIZE * mmap.PAGESIZE)
    length = ctypes.c_size_t(_RESERVATION_BYTES)
    ctypes.CDLL(None).madvise(start, length, mmap.MADV_HUGEPAGE)


_TYPES: Final = {
    "layout": ((), ("i32",)),
    "init": (("i32",), ("i32",)),
    "step": (("i64", "i32"), ("i32",)),
    "commit": (("i64",), ("i32",)),
    "restore": (("i32", "i32"), ("i32",)),
    "snapshot": (("i32",), ("i32",)),
}


def _check_type(store: Store, name: str, function: Func) -> None:
    """The pump calls without checks of its own, so the signatures have to be right before."""
    kind = function.type(store)
    found = (tuple(map(str, kind.params)), tuple(map(str, kind.results)))
    if found != _TYPES[name]:
        raise MalformedError(
            f"expected the type {_TYPES[name]} of the core's export `{name}`, got {found}; "
            "rebuild core and package together"
        )


def _layout(store: Store, memory: Memory, address: int) -> Layout:
    memory_bytes = memory.data_len(store)
    if address + _LAYOUT.size > memory_bytes:
        raise MalformedError(f"the core's layout table at {address} lies outside of its memory")
    layout = Layout(*_LAYOUT.unpack(memory.read(store, address, address + _LAYOUT.size)))
    expected = {
        "magic": LAYOUT_MAGIC,
        "layout_version": LAYOUT_VERSION,
        "input_record_bytes": INPUT_RECORD_BYTES,
        "output_record_bytes": OUTPUT_RECORD_BYTES,
        "result_bytes": RESULT_BYTES,
    }
    for name, value in expected.items():
        if getattr(layout, name) != value:
            raise MalformedError(
                f"{name} of the core's layout should be {value}, it is {getattr(layout, name)}: "
                "rebuild core and package together"
            )
    if layout.layout_bytes < _LAYOUT.size:
        raise MalformedError(
            f"expected {_LAYOUT.size} bytes of the core's layout table, got "
            f"{layout.layout_bytes}; rebuild core and package together"
        )
    regions = (
        ("input table", layout.input_address, layout.input_capacity * INPUT_RECORD_BYTES),
        ("arena", layout.arena_address, layout.arena_bytes),
        ("output table", layout.output_address, layout.output_capacity * OUTPUT_RECORD_BYTES),
        ("result record", layout.result_address, RESULT_BYTES),
        ("counters", layout.stats_address, layout.stats_count * 8),
    )
    for name, start, length in regions:
        if length == 0 or start + length > memory_bytes:
            raise MalformedError(f"the core's {name} is empty or lies outside of its memory")
    return layout
