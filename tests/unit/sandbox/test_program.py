"""Programs: what is one, what it may import, where it is stopped, and that the right bytes run."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from avow.errors import (
    AvowError,
    ImportsError,
    LimitError,
    MalformedError,
    ModuleError,
    TrapError,
    UnavailableError,
)
from avow.sandbox.extra_imports import ExtraImport, GuestMemory
from avow.sandbox.grants import Grants, parse_grants
from avow.sandbox.limits import Limits
from avow.sandbox.program import Kind, Surroundings, check_imports, kind_of, load

NOTHING = Grants()


def module(body: str) -> bytes:
    return bytes(wat2wasm(f"(module {body})"))


def start(body: str) -> bytes:
    """A program with a memory of one page and a table of two."""
    return module(f"""
        (type $void (func))
        (memory (export "memory") 1)
        (table 2 funcref)
        (func $wants (param i32))
        (elem (i32.const 0) func $wants)
        (func (export "_start") {body})""")


def run(
    content: bytes,
    limits: Limits | None = None,
    grants: Grants = NOTHING,
    extra: tuple[ExtraImport, ...] = (),
) -> int:
    running = load(content, limits=limits).start(
        Surroundings(arguments=("app",), grants=grants, extra_imports=extra)
    )
    return running.exit_code()


def test_a_program_that_returns_ends_with_0() -> None:
    assert run(start("")) == 0


def test_a_reactor_is_initialised() -> None:
    assert run(module('(func (export "_initialize"))')) == 0
    with pytest.raises(TrapError):
        run(module('(func (export "_initialize") unreachable)'))
    # What has both is a command.
    both = '(func (export "_start") unreachable) (func (export "_initialize"))'
    with pytest.raises(TrapError):
        run(module(both))


@pytest.mark.parametrize(
    "body",
    [
        "(drop (i32.load (i32.const 65533)))",
        "(drop (i32.load8_u (i32.const 65536)))",
        "(drop (i32.load8_u (i32.const -1)))",
        "(drop (i32.load offset=4294967295 (i32.const -1)))",
        "(drop (v128.load (i32.const 65521)))",
        "(i32.store (i32.const 65533) (i32.const 1))",
        "(i64.store offset=65529 (i32.const 0) (i64.const 1))",
        "(i32.store8 offset=4294967295 (i32.const -1) (i32.const 1))",
        "(memory.fill (i32.const 1) (i32.const 0) (i32.const 65536))",
        "(memory.copy (i32.const 0) (i32.const 65535) (i32.const 2))",
        # The page that memory.grow was refused is not there, nor is one behind what it gave.
        "(drop (memory.grow (i32.const 65536))) (drop (i32.load8_u (i32.const 65536)))",
        "(drop (memory.grow (i32.const 1))) (drop (i32.load8_u (i32.const 131072)))",
        "(call_indirect (type $void) (i32.const 2))",
        "(call_indirect (type $void) (i32.const -1))",
        "(call_indirect (type $void) (i32.const 1))",
        "(call_indirect (type $void) (i32.const 0))",
        "(drop (table.get (i32.const 2)))",
        "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
        "(drop (i32.trunc_f32_s (f32.const nan)))",
        "unreachable",
    ],
)
def test_what_is_forbidden_traps(body: str) -> None:
    with pytest.raises(TrapError, match="was stopped: "):
        run(start(body))


def test_the_edges_are_inside() -> None:
    assert run(start("(drop (i32.load (i32.const 65532)))")) == 0
    grown = "(drop (memory.grow (i32.const 1))) (i32.store8 (i32.const 131071) (i32.const 1))"
    assert run(start(grown)) == 0


LOADS = {
    **dict.fromkeys(("i32.load8_s", "i32.load8_u", "i64.load8_s", "i64.load8_u"), 1),
    **dict.fromkeys(("i32.load16_s", "i32.load16_u", "i64.load16_s", "i64.load16_u"), 2),
    **dict.fromkeys(("i32.load", "f32.load", "i64.load32_s", "i64.load32_u"), 4),
    **dict.fromkeys(("i64.load", "f64.load", "v128.load8x8_s", "v128.load32x2_u"), 8),
    **{f"v128.load{bits}_splat": bits // 8 for bits in (8, 16, 32, 64)},
    **{f"v128.load{bits}_zero": bits // 8 for bits in (32, 64)},
    "v128.load": 16,
}
STORES = {
    **{f"{kind}.store8": 1 for kind in ("i32", "i64")},
    **{f"{kind}.store16": 2 for kind in ("i32", "i64")},
    **dict.fromkeys(("i32.store", "f32.store", "i64.store32"), 4),
    **dict.fromkeys(("i64.store", "f64.store"), 8),
    "v128.store": 16,
}


def access(name: str, address: int, offset: int) -> str:
    """One load or store; what is stored is 0."""
    zero = "v128.const i64x2 0 0" if name.startswith("v128") else f"{name[:3]}.const 0"
    if name in STORES:
        return f"({name} offset={offset} (i32.const {address}) ({zero}))"
    return f"(drop ({name} offset={offset} (i32.const {address})))"


def test_every_access_at_the_edge_is_inside() -> None:
    names = {**LOADS, **STORES}.items()
    inside = [
        access(name, 65536 - width, 0) + access(name, 0, 65536 - width) for name, width in names
    ]
    assert run(start("".join(inside))) == 0


@pytest.mark.parametrize("name", [*LOADS, *STORES])
def test_every_access_beyond_the_edge_traps(name: str) -> None:
    width = {**LOADS, **STORES}[name]
    for address, offset in ((65537 - width, 0), (1, 65536 - width), (-1, 2**32 - 1)):
        with pytest.raises(TrapError, match="out of bounds memory access"):
            run(start(access(name, address, offset)))


RECURSION = module('(func $f (export "_start") (call $f))')
LOOP = module('(func (export "_start") (loop $l (br $l)))')
GROWING = module("""
    (memory (export "memory") 1)
    (func (export "_start")
      (loop $l
        (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
        (br $l)))""")


def test_endless_recursion() -> None:
    with pytest.raises(LimitError, match="--stack-max-bytes"):
        run(RECURSION, Limits(stack_max_bytes=64 << 10))
    # As large as it may be: the thread has that much.
    with pytest.raises(LimitError, match="--stack-max-bytes"):
        run(RECURSION, Limits(stack_max_bytes=64 << 20))


def test_fuel() -> None:
    with pytest.raises(LimitError, match="--fuel"):
        run(LOOP, Limits(fuel=100_000))
    assert run(start("nop"), Limits(fuel=100)) == 0
    with pytest.raises(LimitError, match="--fuel"):
        run(start("(loop $l nop (br $l))"), Limits(fuel=1))


def test_memory() -> None:
    with pytest.raises(LimitError, match="--memory-max-bytes"):
        run(GROWING, Limits(memory_max_bytes=1 << 20))
    with pytest.raises(LimitError, match="starts within"):
        run(module('(memory 17) (func (export "_start"))'), Limits(memory_max_bytes=1 << 20))
    refused = """
        (if (i32.ne (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))
        (if (i32.ne (memory.grow (i32.const 15)) (i32.const 1)) (then unreachable))"""
    assert run(start(refused), Limits(memory_max_bytes=1 << 20)) == 0


OBJECTS = """
    (type $a (array (mut i64)))
    (type $n (struct (field (ref null $n)) (field (ref null $a))))
    (global $g (mut (ref null $n)) (ref.null $n))
    (memory (export "memory") 1)
    (func $keep (export "_start")
      (loop $l
        (global.set $g
          (struct.new $n (global.get $g) (array.new_default $a (i32.const 1000))))
        (br $l)))"""


@pytest.mark.parametrize("when", ["", "(start $keep)"])
def test_objects_that_are_collected_are_memory_too(when: str) -> None:
    with pytest.raises(LimitError, match="--memory-max-bytes"):
        run(module(OBJECTS + when), Limits(memory_max_bytes=1 << 20))


def test_a_program_without_a_memory_is_told_what_it_lacks() -> None:
    text = """(import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
      (func (export "_start") (drop (call $yield)))"""
    with pytest.raises(
        ModuleError, match="exports its memory as `memory`, got one that calls WASI"
    ):
        run(module(text))


def test_tables() -> None:
    """What they take is the host's memory as well: of an element 8 bytes."""
    grow = "(if (i32.ne (table.grow $t (ref.null func) (i32.const {})) (i32.const {})) {})"
    text = '(table $t 0 funcref) (func (export "_start") {})'
    stop = "(then unreachable)"
    most = grow.format(1_000_000, 0, stop) + grow.format(1, -1, stop)
    assert run(module(text.format(most))) == 0
    with pytest.raises(ModuleError, match="fewer tables"):
        run(module('(table 1000001 funcref) (func (export "_start"))'))
    with pytest.raises(ModuleError, match="fewer tables"):
        run(module("(table 1 funcref)" * 9 + '(func (export "_start"))'))


def test_a_start_function_is_limited_too() -> None:
    body = '(func $f (loop $l (br $l))) (start $f) (func (export "_start"))'
    with pytest.raises(LimitError, match="--fuel"):
        run(module(body), Limits(fuel=1000))


def test_all_missing_imports_are_named() -> None:
    content = module("""
        (import "env" "f" (func))
        (import "env" "memory" (memory 1))
        (import "wasi_unstable" "fd_write" (func))
        (import "wasi_snapshot_preview1" "fd_wirte" (func))
        (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
        (import "avow_evidence" "attest" (func))
        (func (export "_start") unreachable)""")
    with pytest.raises(ImportsError) as refused:
        run(content)
    said = str(refused.value)
    for name in (
        "env.f (no grant allows it)",
        "env.memory (no grant allows it)",
        "wasi_unstable.fd_write (no grant allows it)",
        "wasi_snapshot_preview1.fd_wirte (no grant allows it)",
        "avow_evidence.attest (`--grant evidence` allows it)",
    ):
        assert name in said
    assert "sched_yield" not in said


@pytest.mark.parametrize(
    "body",
    [
        r'(import "env" "f\n\1b[2J" (func)) (func (export "_start"))',
        r'(func (export "f\n\1b[2J")) (func (export "f\n\1b[2J"))',
    ],
    ids=["import", "export"],
)
def test_names_in_a_module_command_no_terminal(body: str) -> None:
    with pytest.raises(AvowError, match=r"\\x1b\[2J") as refused:
        run(module(body))
    assert str(refused.value).isprintable()


def test_an_import_of_another_type_is_refused() -> None:
    body = '(import "wasi_snapshot_preview1" "proc_exit" (func (param i64)))'
    with pytest.raises(ImportsError, match="proc_exit"):
        run(module(f'{body} (func (export "_start"))'))


def seen_by(body: str, grants: Grants = NOTHING) -> list[object]:
    """Runs `body`, which may call $peek(address, length) and $poke(address, length)."""
    seen: list[object] = []

    def peek(memory: GuestMemory, address: int, length: int) -> int:
        seen.append(memory.read(address, length))
        return 7

    def poke(memory: GuestMemory, address: int, length: int) -> int:
        memory.write(address, b"x" * min(length, 1 << 20))
        return 0

    extra = tuple(
        ExtraImport("avow_evidence", name, ("i32", "i32"), function)
        for name, function in (("peek", peek), ("poke", poke))
    )
    imports = "".join(
        f'(import "avow_evidence" "{n}" (func ${n} (param i32 i32) (result i32)))'
        for n in ("peek", "poke")
    )
    content = module(f'{imports} (memory (export "memory") 1) (func (export "_start") {body})')
    run(content, grants=grants, extra=extra)
    return seen


WITH_EVIDENCE = Grants(evidence=True)


def test_extra_imports_need_their_grant() -> None:
    with pytest.raises(ImportsError, match="--grant evidence"):
        seen_by("")
    body = """
        (drop (call $poke (i32.const 1) (i32.const 2)))
        (if (i32.ne (call $peek (i32.const 0) (i32.const 4)) (i32.const 7)) (then unreachable))"""
    assert seen_by(body, WITH_EVIDENCE) == [b"\0xx\0"]


@pytest.mark.parametrize("name", ["peek", "poke"])
@pytest.mark.parametrize(
    ("address", "length"), [(65536, 1), (65535, 2), (-1, 1), (0, 65537), (-16, 32), (1, -1)]
)
def test_a_pointer_outside_of_the_memory_ends_the_program(
    name: str, address: int, length: int
) -> None:
    body = f"(drop (call ${name} (i32.const {address}) (i32.const {length})))"
    with pytest.raises(TrapError, match="memory of 65536 bytes"):
        seen_by(body, WITH_EVIDENCE)


def test_what_an_extra_import_raises_comes_out() -> None:
    def fail(memory: GuestMemory) -> int:
        raise MalformedError("from within")

    extra = (ExtraImport("avow_verify", "verify", (), fail),)
    content = module("""
        (import "avow_verify" "verify" (func $v (result i32)))
        (memory (export "memory") 1)
        (func (export "_start") (drop (call $v)))""")
    with pytest.raises(MalformedError, match="from within"):
        run(content, grants=WITH_EVIDENCE, extra=extra)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "got nothing"),
        (b"\0asm", "version bytes"),
        (b"\0asm\x02\0\0\0", "version bytes 02000000"),
        (b"\0asm\x0c\0\x01\0", "version bytes 0c000100"),
        (b"#!/bin/sh\n", "10 bytes, first 23212f62"),
        (b'\n(module (func (export "_start")))', "its text format"),
        (b"\x7fELF" + bytes(60), "compiled code"),
    ],
)
def test_no_program(content: bytes, said: str) -> None:
    with pytest.raises(ModuleError, match=said):
        load(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0asm\x01\0\0\0\xff", "expected a valid WebAssembly module"),
        (b"\0asm\x0d\0\x01\0\xff", "expected a valid WebAssembly component"),
        (start("")[:-1], "expected a valid WebAssembly module"),
        (start("") + b"\0", "expected a valid WebAssembly module"),
        (module('(memory 1 1 shared) (func (export "_start"))'), "without threads"),
        (module("(memory i64 1)"), "64-bit memories"),
        (module(""), "exports the function `_start`"),
        (module('(func (export "_start") (param i32))'), "without parameters"),
        (module('(func (export "_start") (result i32) i32.const 0)'), "without parameters"),
        (module('(memory (export "_start") 1)'), "exports the function `_start`"),
    ],
)
def test_no_good_program(content: bytes, said: str) -> None:
    with pytest.raises(ModuleError, match=said):
        run(content)


def test_a_module_that_takes_too_long_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few thousand bytes can keep a compiler busy for minutes; without a limit, so be it."""
    limits, done = Limits(run_timeout_s=0.001), threading.Event()
    # With a limit it is compiled elsewhere, and errors come here all the same.
    assert load(start(""), limits=limits).kind is Kind.MODULE
    with pytest.raises(ModuleError, match="expected a valid WebAssembly module"):
        load(start("")[:-1], limits=limits)
    monkeypatch.setattr("avow.sandbox.limits.COMPILE_TIMEOUT_S", 0.01)
    monkeypatch.setattr("avow.sandbox.program.Module", lambda engine, content: done.wait(20))
    try:
        with pytest.raises(LimitError, match=r"compile within 0\.01 s"):
            load(start(""), limits=limits)
    finally:
        done.set()


def test_what_is_hashed_is_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's buffer may change at any time, even between the two: both are of one copy."""
    good, bad = start("nop"), start("unreachable")
    buffer = bytearray(good)
    digest = hashlib.sha256

    def swapping(data: bytes) -> object:
        found = digest(data)
        buffer[:] = bad
        return found

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", swapping)
        program = load(buffer)
    assert buffer == bad
    assert program.sha256 == digest(good).digest()
    running = program.start(Surroundings(arguments=("app",), grants=NOTHING))
    assert running.exit_code() == 0


COMMAND = """(component
  (core module $m (func (export "run") (result i32) {body}))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.3" (instance $r)))"""


def component(body: str) -> bytes:
    return bytes(wat2wasm(COMMAND.format(body=body)))


def test_a_component() -> None:
    assert kind_of(component("i32.const 0")) is Kind.COMPONENT
    assert run(component("i32.const 0")) == 0
    assert run(component("i32.const 1")) == 1
    with pytest.raises(TrapError, match="unreachable"):
        run(component("unreachable"))
    with pytest.raises(LimitError, match="--fuel"):
        run(component("(loop $l (br $l)) i32.const 0"), Limits(fuel=1000))


def test_a_component_has_limits() -> None:
    recursive = COMMAND.replace('(func (export "run")', '(func $f (export "run")')
    with pytest.raises(LimitError, match="--stack-max-bytes"):
        run(bytes(wat2wasm(recursive.format(body="call $f"))), Limits(stack_max_bytes=1 << 16))
    large = COMMAND.replace("(core module $m ", "(core module $m (memory 17) ")
    content = bytes(wat2wasm(large.format(body="i32.const 0")))
    with pytest.raises(LimitError, match="--memory-max-bytes"):
        run(content, Limits(memory_max_bytes=1 << 20))


CLOCK = """(component
  (import "wasi:clocks/{clock}@0.2.1" (instance $clock
    (export "resolution" (func {result}))))
  (core module $m
    (import "c" "r" (func $r {core}))
    {memory}
    (func (export "run") (result i32) {call} i32.const 0))
  {given}
  (core instance $c (export "r" (func $core)))
  (core instance $i (instantiate $m (with "c" (instance $c))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.3" (instance $r)))"""
MONOTONIC = CLOCK.format(
    clock="monotonic-clock",
    result="(result u64)",
    core="(result i64)",
    memory="",
    call="(drop (call $r))",
    given='(core func $core (canon lower (func $clock "resolution")))',
)


def test_a_component_gets_no_clock_that_was_not_granted() -> None:
    content = bytes(wat2wasm(MONOTONIC))
    with pytest.raises(ImportsError, match="clock:monotonic"):
        run(content)
    with pytest.raises(ImportsError, match="clock:monotonic"):
        run(content, grants=Grants(clocks=frozenset({"realtime"})))
    assert run(content, grants=Grants(clocks=frozenset({"monotonic"}))) == 0
    # Not called, not missed.
    assert run(bytes(wat2wasm(MONOTONIC.replace("(drop (call $r))", "")))) == 0


def test_imports_of_a_component_are_named() -> None:
    text = COMMAND.replace(
        "(component",
        '(component (import "wasi:http/types@0.2.0" (instance))'
        ' (import "a:b/c" (instance)) (import "wasi:io/poll@0.3.0" (instance))',
        1,
    )
    with pytest.raises(ImportsError) as refused:
        run(bytes(wat2wasm(text.format(body="i32.const 0"))))
    for name in ("a:b/c", "wasi:io/poll@0.3.0"):
        assert f"{name} (no grant allows it)" in str(refused.value)
    assert "wasi:http" not in str(refused.value)


def test_a_program_does_not_choose_how_long_the_message_is() -> None:
    many = "".join(f'(import "env" "f{number}" (func))' for number in range(1000))
    long = f'(import "env" "{"x" * 50_000}" (func))'
    with pytest.raises(ImportsError, match=r"env\.f0 \(.*env\.f31 \(.* and 968 more; "):
        check_imports(module(f'{many}(func (export "_start"))'), NOTHING)
    for content in (
        module(f'{long}(func (export "_start"))'),
        bytes(wat2wasm(f'(component (import "a:b/{"c" * 50_000}" (instance)))')),
    ):
        with pytest.raises(ImportsError, match="…") as refused:
            check_imports(content, NOTHING)
        assert len(str(refused.value)) < 500


def test_imports_are_judged_without_compiling() -> None:
    """By the same words as afterwards. The code of neither is valid, so nobody has compiled it."""
    broken = module('(import "env" "f" (func)) (func (export "_start"))')[:-1] + b"\x0a"
    with pytest.raises(ImportsError, match=r"env\.f \(no grant allows it\)"):
        check_imports(broken, NOTHING)
    clock = module('(import "wasi_snapshot_preview1" "clock_time_get" (func))')
    check_imports(clock, NOTHING)
    check_imports(bytes(wat2wasm(COMMAND.format(body="i32.const 0"))), NOTHING)
    text = COMMAND.replace("(component", '(component (import "a:b/c" (instance))', 1)
    with pytest.raises(ImportsError, match=r"a:b/c \(no grant allows it\)"):
        check_imports(bytes(wat2wasm(text.format(body="i32.const 0"))), NOTHING)


def test_atomic_instructions_on_a_memory_of_its_own() -> None:
    """No thread is needed for them; a wait would be for another one, which there is not."""
    body = """
        (i32.store (i32.const 8) (i32.const 40))
        (drop (i32.atomic.rmw.add (i32.const 8) (i32.const 2)))
        (atomic.fence)
        (if (i32.ne (i32.atomic.load (i32.const 8)) (i32.const 42)) (then unreachable))
        (if (memory.atomic.notify (i32.const 8) (i32.const 1)) (then unreachable))"""
    assert run(start(body)) == 0
    wait = "(drop (memory.atomic.wait32 (i32.const 8) (i32.const 0) (i64.const -1)))"
    with pytest.raises(TrapError, match="atomic wait on non-shared memory"):
        run(start(wait))


def test_a_library() -> None:
    assert load(module('(func (export "_initialize"))')).is_library
    assert not load(start("")).is_library
    assert not load(component("i32.const 0")).is_library


def test_a_program_that_ends_itself_after_a_refusal() -> None:
    text = """
        (import "wasi_snapshot_preview1" "clock_time_get"
          (func $clock (param i32 i64 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
          (if (call $clock (i32.const 1) (i64.const 0) (i32.const 0)) (then unreachable)))"""
    with pytest.raises(TrapError, match="ended itself when that was refused") as stopped:
        run(module(text))
    assert "without clock:monotonic" in str(stopped.value)
    assert "this is a bug" not in str(stopped.value)
    assert run(module(text), grants=parse_grants(["clock:monotonic"], folder=Path("/"))) == 0


def test_a_component_that_is_no_program() -> None:
    with pytest.raises(ModuleError, match="wasi:cli/run"):
        run(bytes(wat2wasm("(component)")))


def test_a_grant_that_a_component_cannot_have_is_refused() -> None:
    grants = parse_grants(["evidence"], folder=Path("/"))
    with pytest.raises(MalformedError, match="`evidence`"):
        run(component("i32.const 0"), grants=grants)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    grants = parse_grants(["plain:/in=absent"], folder=tmp_path)
    with pytest.raises(AvowError, match="for /in cannot be opened"):
        run(component("i32.const 0"), grants=grants)


def test_a_stack_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    program = load(start(""))
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(UnavailableError, match="--stack-max-bytes"):
        program.start(Surroundings(arguments=("app",), grants=NOTHING))
