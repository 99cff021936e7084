"""wasi:http is there for what imports it, and every request is denied."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Variant

from avow.errors import ImportsError
from avow.sandbox import preview2_http
from avow.sandbox.component_functions import Failed
from avow.sandbox.grants import parse_grants
from avow.sandbox.program import Surroundings, load

# A program that makes a request without headers, body and options; the case of the error (its
# place in error-code of wasi:http/types) plus one is its exit code.
REQUEST = """(component
  (import "wasi:http/types@0.2.10" (instance $types
    (export "fields" (type $fields (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "outgoing-request" (type $request (sub resource)))
    (export "[constructor]outgoing-request" (func (param "headers" (own $fields))
      (result (own $request))))
    (export "[method]outgoing-request.set-authority" (func (param "self" (borrow $request))
      (param "authority" (option string)) (result (result))))))
  (alias export $types "outgoing-request" (type $request))
  (core module $m
    (import "http" "fields" (func $fields (result i32)))
    (import "http" "request" (func $request (param i32) (result i32)))
    (import "http" "authority" (func $authority (param i32 i32 i32 i32) (result i32)))
    (import "http" "drop" (func $drop (param i32)))
    (func (export "run") (result i32) (local $r i32)
      (local.set $r (call $request (call $fields)))
      (if (call $authority (local.get $r) (i32.const 0) (i32.const 0) (i32.const 0))
        (then unreachable))
      (call $drop (local.get $r))
      (i32.const 0)))
  (core module $memory (memory (export "memory") 1))
  (core instance $memory (instantiate $memory))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $made (canon lower (func $types "[constructor]outgoing-request")))
  (core func $authority (canon lower (func $types "[method]outgoing-request.set-authority")
    (memory (core memory $memory "memory"))))
  (core func $drop (canon resource.drop $request))
  (core instance $i (instantiate $m (with "http" (instance
    (export "fields" (func $fields)) (export "request" (func $made))
    (export "authority" (func $authority)) (export "drop" (func $drop))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $out (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $out)))"""


def run(text: str) -> int:
    grants = parse_grants([], folder=Path("/"))
    return load(bytes(wat2wasm(text))).start(Surroundings(("app",), grants)).exit_code()


def test_what_leads_up_to_a_request() -> None:
    assert run(REQUEST) == 0


def test_headers_and_trailers_are_other_names_of_fields() -> None:
    # wasi:http 0.2, types.wit: `type headers = fields`; componentize-js imports all three names.
    aliased = REQUEST.replace(
        """(type $fields (sub resource)))""",
        """(type $fields (sub resource)))
    (export "headers" (type $headers (eq $fields)))
    (export "trailers" (type (eq $fields)))""",
        1,
    ).replace('(param "headers" (own $fields))', '(param "headers" (own $headers))', 1)
    assert aliased.count("$headers") == 2
    assert run(aliased) == 0


def test_imports_of_other_types_are_refused() -> None:
    with pytest.raises(ImportsError, match=r"as WASI 0\.2 has them"):
        run(REQUEST.replace("(result (result))))))", "(result bool)))))", 1))


def test_imported_and_not_used() -> None:
    imported = '(component (import "wasi:http/outgoing-handler@0.2.10" (instance))'
    component = f"""{imported}
      (core module $m (func (export "run") (result i32) i32.const 0))
      (core instance $i (instantiate $m))
      (func $run (result (result)) (canon lift (core func $i "run")))
      (instance $out (export "run" (func $run)))
      (export "wasi:cli/run@0.2.0" (instance $out)))"""
    assert run(component) == 0


def test_a_request_is_denied() -> None:
    made: list[str] = []
    told: list[int] = []
    functions = preview2_http.functions(lambda kind, _: made.append(kind), lambda: told.append(1))
    handler = functions[preview2_http.HANDLER]
    denied = handler["handle"](1, None)
    assert isinstance(denied, Failed)
    assert isinstance(denied.error, Variant)
    assert denied.error.tag == "HTTP-request-denied"
    assert told == [1]
    types = functions[preview2_http.TYPES]
    assert types["[method]outgoing-body.write"](1) == Failed(None)
    types["[method]outgoing-request.body"](1)
    assert made == ["outgoing-body"]
