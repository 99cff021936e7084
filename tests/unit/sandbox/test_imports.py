"""The reader of imports against wasmtime's own list of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import Config, Engine, Module, wat2wasm
from wasmtime.component import Component

from avow.sandbox.imports import component_imports, core_imports

# One of each kind that a module can import, with every form of their types.
CORE = """(module
  (type $f (func (param i32 i64 f32 f64 v128) (result i32)))
  (import "a" "function" (func (type $f)))
  (import "a" "table" (table 1 funcref))
  (import "a" "bounded table" (table 1 300 externref))
  (import "b" "typed table" (table 0 (ref null $f)))
  (import "b" "memory" (memory 1))
  (import "b" "bounded memory" (memory 1 65536))
  (import "" "" (global i64))
  (import "c" "mutable" (global (mut f64)))
  (import "c" "typed" (global (ref null $f)))
  (import "c" "tag" (tag (param i32)))
  (import "d" "last" (func))
  (func (export "_start")))"""

COMPONENT = """(component
  (import "a:b/first@1.2.3" (instance (export "f" (func (param "x" (list u8))))))
  (component $inner (import "of:another/one" (func)))
  (type $t (record (field "x" u32)))
  (import "plain" (func (param "x" u32)))
  (import "resource" (type $r (sub resource)))
  (import "equal" (type (eq $t)))
  (core module $m (import "not" "mine" (func)))
  (type $shape (component (import "z" (func))))
  (import "module" (core module (import "y" "z" (func))))
  (import "wasi:http/types@0.2.10" (instance)))"""


def engine() -> Engine:
    config = Config()
    config.wasm_component_model = True
    config.wasm_exceptions = True
    config.wasm_function_references = True
    config.wasm_multi_memory = True
    return Engine(config)


def test_of_a_module() -> None:
    content = bytes(wat2wasm(CORE))
    theirs = [(each.module, each.name) for each in Module(engine(), content).imports]
    assert core_imports(content) == theirs
    assert len(theirs) == 11


def test_of_a_component() -> None:
    content = bytes(wat2wasm(COMPONENT))
    theirs = list(Component(engine(), content).type.imports(engine()))
    # A type that equals one of the component's own is nothing that anybody has to give.
    assert sorted(component_imports(content)) == sorted([*theirs, "equal"])
    assert len(theirs) == 5


@pytest.mark.parametrize("content", [b"", b"\0asm", bytes(wat2wasm("(module)"))])
def test_nothing(content: bytes) -> None:
    assert core_imports(content) == []
    assert component_imports(content) == []


@given(st.integers(8, 200), st.integers(0, 255))
def test_what_is_not_understood_imports_nothing_or_what_stands_there(at: int, byte: int) -> None:
    """Any change gives a list of names and no error: the compiler has the last word."""
    for text, read in ((CORE, core_imports), (COMPONENT, component_imports)):
        content = bytearray(wat2wasm(text))
        content[at % len(content)] = byte
        assert isinstance(read(bytes(content)), list)
        assert isinstance(read(bytes(content[:at])), list)
