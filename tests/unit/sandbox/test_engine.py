"""The broker's core: which one is hosted, and that exactly the measured bytes are compiled."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import astuple, replace

import pytest
from wasmtime import wat2wasm

from avow.errors import MalformedError
from avow.sandbox.engine import (
    INPUT_RECORD_BYTES,
    LAYOUT_MAGIC,
    LAYOUT_VERSION,
    OUTPUT_RECORD_BYTES,
    RESULT_BYTES,
    Layout,
    load,
)

PAGE_BYTES = 65536
LAYOUT = Layout(
    magic=LAYOUT_MAGIC,
    layout_version=LAYOUT_VERSION,
    layout_bytes=60,
    input_address=4096,
    input_capacity=16,
    input_record_bytes=INPUT_RECORD_BYTES,
    arena_address=8192,
    arena_bytes=8192,
    output_address=16384,
    output_capacity=16,
    output_record_bytes=OUTPUT_RECORD_BYTES,
    result_address=20480,
    result_bytes=RESULT_BYTES,
    stats_address=24576,
    stats_count=4,
)
FUNCTIONS = """
  (func (export "layout") (result i32) (i32.const {address}))
  (func (export "init") (param i32) (result i32) (i32.const 7))
  (func (export "step") (param i64 i32) (result i32) (i32.const 0))
  (func (export "commit") (param i64) (result i32) (i32.const 0))
  (func (export "restore") (param i32 i32) (result i32) (i32.const 0))
  (func (export "snapshot") (param i32) (result i32) (i32.const 0))"""
MEMORY = '(memory (export "memory") 1)'


def core(
    layout: Layout = LAYOUT, *, address: int = 64, text: str = FUNCTIONS, more: str = ""
) -> bytes:
    """A module with all that a core has, and which does nothing."""
    table = "".join(f"\\{byte:02x}" for byte in struct.pack("<15I", *astuple(layout)))
    body = text.replace("{address}", str(address))
    return bytes(wat2wasm(f'(module {more} {MEMORY} (data (i32.const 64) "{table}") {body})'))


def test_a_core() -> None:
    content = core()
    loaded = load(content)
    assert loaded.sha256 == hashlib.sha256(content).digest()
    assert (loaded.layout, loaded.layout_address) == (LAYOUT, 64)
    assert loaded.call("init", 0) == 7


def test_what_is_hashed_is_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the buffer may change it as soon as it was hashed."""
    good, evil = core(), core(text=FUNCTIONS.replace("i32.const 7", "i32.const 8"))
    assert len(good) == len(evil)
    buffer, digest = bytearray(good), hashlib.sha256

    def swapping(data: bytes) -> object:
        found = digest(data)
        buffer[:] = evil
        return found

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", swapping)
        loaded = load(buffer)
    assert buffer == evil
    assert loaded.sha256 == digest(good).digest()
    assert loaded.call("init", 0) == 7


def test_it_is_measured_before_any_of_it_runs() -> None:
    class RefusedError(Exception):
        pass

    seen: list[bytes] = []

    def refuse(sha256: bytes) -> None:
        seen.append(sha256)
        raise RefusedError

    content = core(text=FUNCTIONS + "(func $s unreachable) (start $s)")
    with pytest.raises(RefusedError):
        load(content, measure=refuse)
    assert seen == [hashlib.sha256(content).digest()]
    with pytest.raises(MalformedError, match="expected a core that starts within"):
        load(content)


TEXT = f"(module {MEMORY} {FUNCTIONS.replace('{address}', '0')})"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with nothing"),
        (TEXT.encode(), "binary format"),
        (b"\x7fELF" + bytes(60), "begins with 7f454c46"),
        (core()[:-1], "got one that is not"),
        (core(more='(import "env" "now" (func))'), "wants env.now"),
        (core(more='(import "env" "memory" (memory 1))'), "got one that is not|wants env.memory"),
        (core(text=FUNCTIONS.replace('"commit"', '"commits"')), "exports the function `commit`"),
        (
            core(text=FUNCTIONS.replace("(param i64 i32)", "(param i32 i32)")),
            "the core's export `step`",
        ),
        (bytes(wat2wasm(f"(module {FUNCTIONS.replace('{address}', '0')})")), "as `memory`"),
        (core(address=PAGE_BYTES - 59), "table at 65477 lies outside"),
        (core(address=-1), "lies outside"),
        (core(more="(table 1 funcref)" * 5), "expected a core that starts within"),
    ],
)
def test_what_is_no_core(content: bytes, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        load(content)


@pytest.mark.parametrize(
    "layout",
    [
        replace(LAYOUT, magic=LAYOUT_MAGIC + 1),
        replace(LAYOUT, layout_version=LAYOUT_VERSION + 1),
        replace(LAYOUT, layout_bytes=59),
        replace(LAYOUT, input_record_bytes=INPUT_RECORD_BYTES + 1),
        replace(LAYOUT, output_record_bytes=OUTPUT_RECORD_BYTES - 1),
        replace(LAYOUT, result_bytes=RESULT_BYTES + 1),
        replace(LAYOUT, input_address=PAGE_BYTES - 255),
        replace(LAYOUT, input_capacity=0),
        replace(LAYOUT, arena_address=PAGE_BYTES - 8191),
        replace(LAYOUT, arena_bytes=2**32 - 1),
        replace(LAYOUT, output_address=2**32 - 16),
        replace(LAYOUT, output_capacity=2**32 - 1),
        replace(LAYOUT, result_address=PAGE_BYTES - RESULT_BYTES + 1),
        replace(LAYOUT, stats_address=PAGE_BYTES - 31),
        replace(LAYOUT, stats_count=0),
    ],
)
def test_layouts_that_are_none(layout: Layout) -> None:
    """The pump believes these numbers: they are checked before it gets them."""
    with pytest.raises(MalformedError, match="the core's "):
        load(core(layout))


def test_regions_may_end_with_the_memory() -> None:
    layout = replace(
        LAYOUT,
        input_address=PAGE_BYTES - 256,
        arena_address=PAGE_BYTES - 8192,
        output_address=PAGE_BYTES - 256,
        result_address=PAGE_BYTES - RESULT_BYTES,
        stats_address=PAGE_BYTES - 32,
    )
    assert load(core(layout)).layout == layout


def test_memory_has_a_limit() -> None:
    with pytest.raises(MalformedError, match="within 65535 bytes"):
        load(core(), memory_max_bytes=PAGE_BYTES - 1)


@pytest.mark.parametrize(
    ("address", "length"), [(PAGE_BYTES, 1), (-1, 1), (0, -1), (1, PAGE_BYTES)]
)
def test_what_lies_outside_is_not_read(address: int, length: int) -> None:
    loaded = load(core())
    assert loaded.read(PAGE_BYTES - 1, 1) == b"\0"
    with pytest.raises(MalformedError, match="name bytes in its memory"):
        loaded.read(address, length)
