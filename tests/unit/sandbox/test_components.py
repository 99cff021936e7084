"""Components as a whole: what wasmtime passes on between a component and the functions of avow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from avow.sandbox.grants import parse_grants
from avow.sandbox.program import Surroundings, load
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
    (type $codes (enum "access" "exist" "io" "no-entry" "invalid"))
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
    (export "[method]descriptor.is-same-object" (func (param "self" (borrow $d))
      (param "other" (borrow $d)) (result bool)))))
  (alias export $types "descriptor" (type $descriptor))
  (import "wasi:filesystem/preopens@0.2.1" (instance $preopens
    (alias outer 1 $descriptor (type $outer))
    (export "descriptor" (type $d (eq $outer)))
    (export "get-directories" (func (result (list (tuple (own $d) string)))))))
  (core module $memory
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 1024))
    (data (i32.const 16) "ab")
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $free (i32.add (global.get $free) (i32.const 256)))
      (global.get $free)))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $m))
  (alias core export $memory "realloc" (core func $realloc))
  (core func $directories (canon lower (func $preopens "get-directories")
    (memory $m) (realloc $realloc)))
  (core func $rename (canon lower (func $types "[method]descriptor.rename-at") (memory $m)))
  (core func $link (canon lower (func $types "[method]descriptor.link-at") (memory $m)))
  (core func $same (canon lower (func $types "[method]descriptor.is-same-object")))
  (core func $after (canon lower (func $clock "subscribe-duration")))
  (core func $poll_ (canon lower (func $poll "poll") (memory $m) (realloc $realloc)))
  (core module $program
    (import "memory" "memory" (memory 1))
    (import "host" "directories" (func $directories (param i32)))
    (import "host" "rename" (func $rename (param i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "link" (func $link (param i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "same" (func $same (param i32 i32) (result i32)))
    (import "host" "after" (func $after (param i64) (result i32)))
    (import "host" "poll" (func $poll (param i32 i32 i32)))
    (global $d (mut i32) (i32.const 0))
    (global $e (mut i32) (i32.const 0))
    (func (export "run") (result i32)
      (call $directories (i32.const 64))
      (global.set $d (i32.load (i32.load (i32.const 64))))
      (global.set $e (i32.load offset=12 (i32.load (i32.const 64))))
      {body}))
  (core instance $p (instantiate $program (with "memory" (instance $memory))
    (with "host" (instance (export "directories" (func $directories))
      (export "rename" (func $rename)) (export "link" (func $link)) (export "same" (func $same))
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", [KEY]) as made:
        for name in ("d", "e"):
            made.make_directory(f"/files/{name}")
        yield made


def run(store: Store, body: str) -> int:
    program = load(wat2wasm(COMPONENT.replace("{body}", body)))
    grants = parse_grants(["sealed:/d", "sealed:/e", "clock:monotonic"], folder=Path("/"))
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
