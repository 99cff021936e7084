"""A program for the sandbox: measured, compiled, and run with nothing but what was granted.

What is measured is what runs: `load` takes one immutable copy of the bytes, hashes it and compiles
it, or finds what was compiled from bytes with that hash in the sealed store.
"""

from __future__ import annotations

import enum
import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wasmtime import Engine, Module, WasmtimeError
from wasmtime.component import Component

from avow.errors import AvowError, ModuleError, UnavailableError, counted
from avow.sandbox import commands, components
from avow.sandbox.compiled_cache import CompiledCache, compile_or_find, key_of
from avow.sandbox.engine_settings import engine_for, program_settings
from avow.sandbox.extra_imports import ExtraImport
from avow.sandbox.grants import Grants
from avow.sandbox.imports import component_imports, core_imports
from avow.sandbox.limits import (
    HOST_STACK_BYTES,
    Limits,
    compile_timeout_s,
    compiled_too_long,
)
from avow.sandbox.traps import one_line

if TYPE_CHECKING:
    from avow.sealing.store import Store

_MAGIC: Final = b"\0asm"
# WebAssembly core specification, 5.5.16; component model, Binary.md (version 13, layer 1).
_MODULE_VERSION: Final = b"\x01\0\0\0"
_COMPONENT_VERSION: Final = b"\x0d\0\x01\0"
_ELF: Final = b"\x7fELF"


class Kind(enum.Enum):
    """What the bytes of a program are."""

    MODULE = "module"
    COMPONENT = "component"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All that a program gets from outside.

    `arguments`: the first is its own name. `environment`: that of avow, of which it sees what is
    granted. `store`: where its sealed folders are. `denied` is told, in a sentence, of each thing
    that the program wanted and was not granted, once. `extra_imports`: functions beside WASI.
    `keep_up`: called with each commit that the program asks for, before it goes on.
    `provisioned`: the files of its owner, which it sees in the folders that are granted for them.
    """

    arguments: tuple[str, ...]
    grants: Grants
    environment: Mapping[str, str] = field(default_factory=dict)
    store: Store | None = None
    denied: Callable[[str], None] = lambda sentence: None
    extra_imports: tuple[ExtraImport, ...] = ()
    keep_up: Callable[[], object] | None = None
    provisioned: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def variables(self) -> list[tuple[str, str]]:
        """The environment that the program sees."""
        seen: list[tuple[str, str]] = []
        for each in self.grants.variables:
            value = self.environment.get(each.name) if each.value is None else each.value
            if value is not None:
                seen.append((each.name, value))
        return seen


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is compiled and can be run, once or more often.

    `sha256` is the digest (32 bytes) of exactly the bytes that were compiled. `from_cache`: the
    compiled code came out of the sealed store.
    """

    sha256: bytes
    kind: Kind
    limits: Limits
    from_cache: bool
    _engine: Engine
    _code: Any

    @property
    def is_library(self) -> bool:
        """A reactor: of it only `_initialize` is run, and nobody reads its arguments."""
        return self.kind is Kind.MODULE and commands.entry_of(self._code) == commands.LIBRARY_ENTRY

    def check(self, grants: Grants, extra_imports: tuple[ExtraImport, ...] = ()) -> None:
        """Raises `ImportsError`, which names all imports that nobody would answer, and
        `DeniedError` for a grant that a program of this kind cannot have."""
        if self.kind is Kind.MODULE:
            commands.check(self._code, grants, extra_imports)
        else:
            components.check(self._engine, self._code, grants, extra_imports)

    def run(self, surroundings: Surroundings) -> int:
        """Run it to its end in this thread and return its exit code, 0 to 255.

        The thread needs `stack_max_bytes` of stack and some more: use `start`. Raises `LimitError`,
        `TrapError`, `ImportsError`, and what an extra import raises.
        """
        if self.kind is Kind.MODULE:
            return commands.run(self._engine, self._code, self.limits, surroundings)
        return components.run(self._engine, self._code, self.limits, surroundings)

    def start(self, surroundings: Surroundings) -> Running:
        """Run it in a thread of its own, with as much stack as it may use."""
        return Running(lambda: self.run(surroundings), self.limits)


class Running:
    """A program that runs in a thread of its own, until it ends or the process does."""

    def __init__(self, run: Callable[[], int], limits: Limits) -> None:
        self._ended = threading.Event()
        self._outcome: int | BaseException | None = None
        before = threading.stack_size(limits.stack_max_bytes + HOST_STACK_BYTES)
        try:
            # A daemon: nothing but the end of the process stops WebAssembly that never returns.
            thread = threading.Thread(target=self._work, args=(run,), name="program", daemon=True)
            thread.start()
        except RuntimeError as error:
            raise UnavailableError(
                f"expected a thread with {limits.stack_max_bytes} bytes of stack for the program, "
                f"got none ({error}); lower --stack-max-bytes or free memory"
            ) from error
        finally:
            threading.stack_size(before)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, after waiting for that at most `timeout_s`."""
        return self._ended.wait(timeout_s)

    def exit_code(self) -> int:
        """The exit code of a program that has ended. Raises what `Program.run` raises."""
        self._ended.wait()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome or 0

    def _work(self, run: Callable[[], int]) -> None:
        try:
            self._outcome = run()
        except AvowError as error:
            self._outcome = error
        except BaseException as error:
            # Shown by the thread's own hook as well; here so that nobody waits for ever.
            self._outcome = error
            raise
        finally:
            self._ended.set()


def check_imports(
    content: bytes, grants: Grants, extra_imports: tuple[ExtraImport, ...] = ()
) -> None:
    """Raises `ImportsError` as `Program.check` will, for imports that exist nowhere or are not
    granted: before anything is compiled, which takes long where a program is large."""
    if kind_of(content) is Kind.MODULE:
        commands.check_names(core_imports(content), grants, extra_imports)
    else:
        components.check_names(component_imports(content))


def load(
    content: bytes | bytearray | memoryview,
    *,
    limits: Limits | None = None,
    cache: CompiledCache | None = None,
) -> Program:
    """The program that `content` is: a module or a component, told by its first eight bytes.

    Raises `ModuleError` for all else, compiled code and text among it.
    """
    limits = Limits() if limits is None else limits
    # An immutable copy of our own: what is hashed is what is compiled, whoever holds the argument.
    module_bytes = bytes(content)
    sha256 = hashlib.sha256(module_bytes).digest()
    kind = kind_of(module_bytes)
    settings = program_settings(limits, component=kind is Kind.COMPONENT)
    engine = engine_for(settings)
    made: type[Module] | type[Component] = Module if kind is Kind.MODULE else Component
    try:
        code, from_cache = compile_or_find(
            lambda: _in_time(lambda: made(engine, module_bytes), limits),
            lambda compiled: made.deserialize(engine, compiled),
            cache,
            key_of(sha256, settings, kind.value),
        )
    except WasmtimeError as error:
        raise ModuleError(
            f"expected a valid WebAssembly {kind.value}, got one that is not ({one_line(error)}); "
            f"build it again, without 64-bit memories"
        ) from error
    return Program(sha256, kind, limits, from_cache, engine, code)


def _in_time(make: Callable[[], Module | Component], limits: Limits) -> Module | Component:
    """What `make` compiles, in a thread that is left alone when it takes too long: nothing stops
    the compiler but the end of the process."""
    timeout_s = compile_timeout_s(limits)
    if timeout_s is None:
        return make()
    outcome: Future[Module | Component] = Future()

    def work() -> None:
        try:
            outcome.set_result(make())
        except WasmtimeError as error:
            outcome.set_exception(error)
        except BaseException as error:
            # Shown by the thread's own hook as well, as in `Running`.
            outcome.set_exception(error)
            raise

    threading.Thread(target=work, name="compiler", daemon=True).start()
    try:
        return outcome.result(timeout_s)
    except FutureTimeoutError as error:
        raise compiled_too_long(limits) from error


def kind_of(content: bytes) -> Kind:
    """What the first bytes say. Raises `ModuleError` for what is no binary WebAssembly."""
    head = content[:8]
    if head == _MAGIC + _MODULE_VERSION:
        return Kind.MODULE
    if head == _MAGIC + _COMPONENT_VERSION:
        return Kind.COMPONENT
    if head.startswith(_ELF):
        raise ModuleError(
            "expected a WebAssembly module or component, got compiled code (ELF); avow "
            "compiles every program itself: give the .wasm file"
        )
    if content.lstrip()[:1] == b"(":
        raise ModuleError(
            "expected a WebAssembly module or component in its binary format, got its text format; "
            "convert it with wat2wasm or `wasm-tools parse`"
        )
    if head.startswith(_MAGIC):
        raise ModuleError(
            f"expected a WebAssembly module (version 1) or component (version 13, layer 1), got "
            f"version bytes {head[4:].hex()}; build it with other tools"
        )
    got = f"{counted(len(content), 'byte')}, first {head.hex()}" if content else "nothing"
    raise ModuleError(f"expected a WebAssembly module or component, got {got}; give the .wasm file")
