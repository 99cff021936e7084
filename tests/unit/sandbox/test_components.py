"""Components as a whole: what wasmtime passes on between a component and the functions of avow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from avow.errors import (
    DamagedError,
    ImportsError,
    LimitError,
    MalformedError,
    ModuleError,
    TrapError,
)
from avow.sandbox.grants import parse_grants
from avow.sandbox.program import Surroundings, load
from avow.sandbox.wasi import Wasi
from avow.sealing.store import Store

KEY = bytes(range(32))

# Each interface as far as it is used here. `memory` has the paths "a" at 16 and "b" at 17.
COMPONENT = """(component
  (import "wasi:io/poll@0.2.1" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "poll" (func (param "in" (list (borrow $p))) (result (list u32))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.1" (instance $clock
    (alias outer 1 $pollable (type $outer))
    (export "pollable" (type $p (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (import "wasi:filesystem/types@0.2.1" (instance $types
    (export "descriptor" (type $d (sub resource)))
    (type $codes (enum
      "access" "would-block" "already" "bad-descriptor" "busy" "deadlock" "quota" "exist"
      "file-too-large" "illegal-byte-sequence" "in-progress" "interrupted" "invalid" "io"
      "is-directory" "loop" "too-many-links" "message-size" "name-too-long" "no-device"
      "no-entry" "no-lock" "insufficient-memory" "insufficient-space" "not-directory"
      "not-empty" "not-recoverable" "unsupported" "no-tty" "no-such-device" "overflow"
      "not-permitted" "pipe" "read-only" "invalid-seek" "text-file-busy" "cross-device"))
    (export "error-code" (type $code (eq $codes)))
    (type $following (flags "symlink-follow"))
    (export "path-flags" (type $follow (eq $following)))
    (export "[method]descriptor.rename-at" (func (param "self" (borrow $d))
      (param "old-path" string) (param "new-descriptor" (borrow $d)) (param "new-path" string)
      (result (result (error $code)))))
    (export "[method]descriptor.link-at" (func (param "self" (borrow $d))
      (param "old-path-flags" $follow) (param "old-path" string)
      (param "new-descriptor" (borrow $d)) (param "new-path" string)
      (result (result (error $code)))))
    (type $opening (flags "create" "directory" "exclusive" "truncate"))
    (export "open-flags" (type $open (eq $opening)))
    (type $wanting (flags "read" "write" "file-integrity-sync" "data-integrity-sync"
      "requested-write-sync" "mutate-directory"))
    (export "descriptor-flags" (type $wanted (eq $wanting)))
    (export "[method]descriptor.open-at" (func (param "self" (borrow $d))
      (param "path-flags" $follow) (param "path" string) (param "open-flags" $open)
      (param "flags" $wanted) (result (result (own $d) (error $code)))))
    (export "[method]descriptor.write" (func (param "self" (borrow $d))
      (param "buffer" (list u8)) (param "offset" u64) (result (result u64 (error $code)))))
    (export "[method]descriptor.read" (func (param "self" (borrow $d)) (param "length" u64)
      (param "offset" u64) (result (result (tuple (list u8) bool) (error $code)))))
    (export "[method]descriptor.is-same-object" (func (param "self" (borrow $d))
      (param "other" (borrow $d)) (result bool)))))
  (alias export $types "descriptor" (type $descriptor))
  (import "wasi:filesystem/preopens@0.2.1" (instance $preopens
    (alias outer 1 $descriptor (type $outer))
    (export "descriptor" (type $d (eq $outer)))
    (export "get-directories" (func (result (list (tuple (own $d) string)))))))
  (core module $memory
    (memory (export "memory") 64)
    (data (i32.const 16) "ab")
    (global $free (mut i32) (i32.const 1024))
    ;; What is small lies one behind the other, what is large always at 2 MiB.
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (if (i32.gt_u (local.get 3) (i32.const 256)) (then (return (i32.const 0x200000))))
      (global.set $free (i32.add (global.get $free) (i32.const 256)))
      (global.get $free)))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $m))
  (alias core export $memory "realloc" (core func $realloc))
  (core func $directories (canon lower (func $preopens "get-directories")
    (memory $m) (realloc $realloc)))
  (core func $rename (canon lower (func $types "[method]descriptor.rename-at") (memory $m)))
  (core func $link (canon lower (func $types "[method]descriptor.link-at") (memory $m)))
  (core func $open (canon lower (func $types "[method]descriptor.open-at") (memory $m)))
  (core func $write (canon lower (func $types "[method]descriptor.write") (memory $m)))
  (core func $read (canon lower (func $types "[method]descriptor.read")
    (memory $m) (realloc $realloc)))
  (core func $drop (canon resource.drop $descriptor))
  (core func $same (canon lower (func $types "[method]descriptor.is-same-object")))
  (core func $after (canon lower (func $clock "subscribe-duration")))
  (core func $poll_ (canon lower (func $poll "poll") (memory $m) (realloc $realloc)))
  (core module $program
    (import "memory" "memory" (memory 1))
    (import "host" "directories" (func $directories (param i32)))
    (import "host" "rename" (func $rename (param i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "link" (func $link (param i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "open" (func $open (param i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i64 i32)))
    (import "host" "read" (func $read (param i32 i64 i64 i32)))
    (import "host" "drop" (func $drop (param i32)))
    (import "host" "same" (func $same (param i32 i32) (result i32)))
    (import "host" "after" (func $after (param i64) (result i32)))
    (import "host" "poll" (func $poll (param i32 i32 i32)))
    (global $d (mut i32) (i32.const 0))
    (global $e (mut i32) (i32.const 0))
    (global $i (mut i32) (i32.const 0))
    (global $round (mut i32) (i32.const 0))
    (func (export "run") (result i32)
      (call $directories (i32.const 64))
      (global.set $d (i32.load (i32.load (i32.const 64))))
      (global.set $e (i32.load offset=12 (i32.load (i32.const 64))))
      {body}))
  (core instance $p (instantiate $program (with "memory" (instance $memory))
    (with "host" (instance (export "directories" (func $directories))
      (export "rename" (func $rename)) (export "link" (func $link)) (export "same" (func $same))
      (export "open" (func $open)) (export "write" (func $write)) (export "read" (func $read))
      (export "drop" (func $drop))
      (export "after" (func $after)) (export "poll" (func $poll_))))))
  (func $run (result (result)) (canon lift (core func $p "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.1" (instance $r)))"""

A, B = "(i32.const 16) (i32.const 1)", "(i32.const 17) (i32.const 1)"
RENAMES = f"(call $rename (global.get $d) {A} (global.get $e) {B} (i32.const 80))"
LINKS = f"(call $link (global.get $d) (i32.const 0) {A} (global.get $e) {B} (i32.const 80))"
FAILED = "(i32.load8_u (i32.const 80))"
POLLS = """
  (i32.store (i32.const 96) (call $after (i64.const 1000000000000000)))
  (i32.store (i32.const 100) (call $after (i64.const 1)))
  (call $poll (i32.const 96) (i32.const 2) (i32.const 80))
  ;; One is ready, and that is the second.
  (i32.or (i32.ne (i32.load (i32.const 84)) (i32.const 1))
    (i32.ne (i32.load (i32.load (i32.const 80))) (i32.const 1)))"""

# Opens "a" for reading and writing, and makes it if it is not there. The handle is at 84.
OPENS = f"""(call $open (global.get $d) (i32.const 1) {A} (i32.const 1) (i32.const 3)
  (i32.const 80))"""
# In each of 32 rounds another 64 KiB at 1 MiB are written, read to 2 MiB, and compared.
WRITES_AND_READS = f"""{OPENS}
  (loop $rounds
    (global.set $i (i32.const 0))
    (loop $fill
      (i32.store offset=0x100000 (global.get $i)
        (i32.mul (i32.add (global.get $i) (global.get $round)) (i32.const 0x9e3779b1)))
      (br_if $fill (i32.lt_u
        (global.set $i (i32.add (global.get $i) (i32.const 4))) (global.get $i)
        (i32.const 0x10000))))
    (call $write (i32.load (i32.const 84)) (i32.const 0x100000) (i32.const 0x10000)
      (i64.extend_i32_u (i32.shl (global.get $round) (i32.const 16))) (i32.const 88))
    (call $read (i32.load (i32.const 84)) (i64.const 0x10000)
      (i64.extend_i32_u (i32.shl (global.get $round) (i32.const 16))) (i32.const 112))
    (if (i32.ne (i32.load (i32.const 120)) (i32.const 0x10000)) (then (return (i32.const 1))))
    (global.set $i (i32.const 0))
    (loop $compare
      (if (i32.ne (i32.load offset=0x100000 (global.get $i))
          (i32.load (i32.add (i32.load (i32.const 116)) (global.get $i))))
        (then (return (i32.const 1))))
      (br_if $compare (i32.lt_u
        (global.set $i (i32.add (global.get $i) (i32.const 4))) (global.get $i)
        (i32.const 0x10000))))
    (br_if $rounds (i32.lt_u
      (global.set $round (i32.add (global.get $round) (i32.const 1))) (global.get $round)
      (i32.const 32))))
  (i32.const 0)"""
WRITES_TOO_MUCH = f"""{OPENS}
  (call $write (i32.load (i32.const 84)) (i32.const 0) (i32.const 0x380000) (i64.const 0)
    (i32.const 88))
  (i32.const 0)"""
OPENS_AND_DROPS = f"""(loop $again
    {OPENS}
    (if {FAILED} (then (return (i32.const 1))))
    (call $drop (i32.load (i32.const 84)))
    (br_if $again (i32.lt_u
      (global.set $i (i32.add (global.get $i) (i32.const 1))) (global.get $i)
      (i32.const 4200))))
  (i32.const 0)"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", [KEY]) as made:
        for name in ("d", "e"):
            made.make_directory(f"/files/{name}")
        yield made


def run(store: Store | None, body: str, text: str = COMPONENT, kind: str = "sealed") -> int:
    program = load(wat2wasm(text.replace("{body}", body)))
    folders = {"sealed": ["sealed:/d", "sealed:/e"], "plain": ["plain:/d=/usr", "plain:/e=/usr"]}
    grants = parse_grants([*folders[kind], "clock:monotonic"], folder=Path("/"))
    return program.start(Surroundings(("app",), grants, store=store)).exit_code()


def test_renaming_from_folder_to_folder(store: Store) -> None:
    store.make_file("/files/d/a")
    assert run(store, RENAMES + FAILED) == 0
    assert [each.name for each in store.listdir("/files/e")] == ["b"]
    assert run(store, RENAMES + FAILED) == 1


def test_linking_from_folder_to_folder(store: Store) -> None:
    store.make_file("/files/d/a")
    assert run(store, LINKS + FAILED) == 0
    assert store.stat("/files/e/b").links == 2
    assert run(store, LINKS + FAILED) == 1


def test_comparing_two_descriptors(store: Store) -> None:
    # 0, success, for what is the same.
    same = "(i32.eqz (call $same (global.get $d) (global.get ${})))"
    assert run(store, same.format("d")) == 0
    assert run(store, same.format("e")) == 1


def test_waiting_for_several(store: Store) -> None:
    assert run(store, POLLS) == 0


def test_bytes_come_through_whole(store: Store) -> None:
    assert run(store, WRITES_AND_READS) == 0
    written = store.read("/files/d/a")
    words = struct.unpack("<524288I", written)
    for at in range(0, len(words), 1021):
        in_round, round_number = at % 0x4000, at // 0x4000
        assert words[at] == (in_round * 4 + round_number) * 0x9E3779B1 & 0xFFFFFFFF


def test_more_than_wasmtime_passes_on(store: Store) -> None:
    with pytest.raises(LimitError, match="2 MiB in one call"):
        run(store, WRITES_TOO_MUCH)


def test_what_is_dropped_is_closed(store: Store) -> None:
    # There are 4096 descriptors.
    assert run(store, OPENS_AND_DROPS) == 0


def test_plain_folders_are_read_only_as_for_modules() -> None:
    read_only = "(i32.ne (i32.load8_u (i32.const 81)) (i32.const 33))"
    assert run(None, RENAMES + read_only, kind="plain") == 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # A number in the place of a handle, another handle, another name, another resource.
        ('(param "in" (list (borrow $p)))', '(param "in" (list u32))'),
        ('(param "when" u64)', '(param "when" s64)'),
        ('"[method]descriptor.write"', '"[method]descriptor.wrote"'),
        (
            '(export "pollable" (type $p (sub',
            '(export "other" (type $o (sub resource))) (export "pollable" (type $p (sub',
        ),
        ('"read-only"', '"read-more"'),
    ],
    ids=["number", "sign", "function", "resource", "code"],
)
def test_other_types_are_refused(store: Store, right: str, wrong: str) -> None:
    text = COMPONENT.replace(right, wrong)
    assert text != COMPONENT
    with pytest.raises(ImportsError, match=r"as WASI 0\.2 has them"):
        run(store, "(i32.const 0)", text)


@pytest.mark.parametrize(
    "body",
    [
        "(call $same (global.get $d) (i32.const 999))",
        "(call $same (global.get $d) (i32.const -1))",
        "(call $same (call $after (i64.const 1)) (global.get $d))",
        "(call $drop (call $after (i64.const 1))) (i32.const 0)",
        "(call $drop (global.get $d)) (call $drop (global.get $d)) (i32.const 0)",
        "(call $drop (global.get $d)) (call $same (global.get $d) (global.get $e))",
        "(call $poll (i32.const 0) (i32.const 1) (i32.const 80)) (i32.const 0)",
        "(call $poll (i32.const 0) (i32.const -1) (i32.const 80)) (i32.const 0)",
        "(call $poll (i32.const 0) (i32.const 0) (i32.const 80)) (i32.const 0)",
        "(call $write (global.get $d) (i32.const 0) (i32.const -1) (i64.const 0) (i32.const 80))"
        " (i32.const 0)",
        "(call $read (global.get $d) (i64.const 1) (i64.const 0) (i32.const -4)) (i32.const 0)",
    ],
    ids=lambda body: str(body)[:40],
)
def test_handles_and_lengths_that_are_forged(store: Store, body: str) -> None:
    with pytest.raises(TrapError):
        run(store, body)


EXITS = """(component
  (import "wasi:cli/exit@0.2.1" (instance $exit (export "exit" (func (param "status" (result))))))
  (import "wasi:clocks/monotonic-clock@0.2.1" (instance $clock
    (export "now" (func (result u64)))))
  (core func $exit (canon lower (func $exit "exit")))
  (core func $now (canon lower (func $clock "now")))
  (core module $m
    (import "host" "exit" (func $exit (param i32)))
    (import "host" "now" (func $now (result i64)))
    (func $begin {start})
    (start $begin)
    (func (export "run") (result i32) {run} (i32.const 0)))
  (core instance $i (instantiate $m
    (with "host" (instance (export "exit" (func $exit)) (export "now" (func $now))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.3" (instance $r)))"""


def exits(start: str, run: str, *arguments: str) -> int:
    program = load(wat2wasm(EXITS.replace("{start}", start).replace("{run}", run)))
    grants = parse_grants([], folder=Path("/"))
    return program.start(Surroundings(("app", *arguments), grants)).exit_code()


def test_it_may_end_while_it_starts() -> None:
    for status in (0, 1):
        call = f"(call $exit (i32.const {status}))"
        assert exits(call, "(unreachable)") == status
        assert exits("", f"{call} (unreachable)") == status


def test_what_it_is_refused_while_it_starts_is_told_and_not_kept_for_the_next() -> None:
    for start, run in (("(drop (call $now))", ""), ("", "(drop (call $now))")):
        with pytest.raises(ImportsError, match="clock:monotonic"):
            exits(start, run)
        with pytest.raises(TrapError, match="unreachable"):
            exits("", "(unreachable)")


def test_one_that_is_too_large_to_start() -> None:
    modules = "(core module $e)" + "(core instance (instantiate $e))" * 257
    text = (
        EXITS.replace("{start}", "")
        .replace("{run}", "")
        .replace("(core func", modules + "(core func", 1)
    )
    with pytest.raises(ModuleError, match="instance count"):
        load(wat2wasm(text)).start(
            Surroundings(("app",), parse_grants([], folder=Path("/")))
        ).exit_code()


def test_arguments_that_are_not_utf_8() -> None:
    with pytest.raises(MalformedError, match="UTF-8"):
        exits("", "", "\udcff")


def test_what_was_damaged_is_told_whatever_the_program_made_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(wasi: Wasi) -> None:
        raise DamagedError("block 1")

    monkeypatch.setattr(Wasi, "check_store", damaged)
    for body in ("(i32.const 0)", "(unreachable)"):
        with pytest.raises(DamagedError, match="block 1"):
            run(store, body)
