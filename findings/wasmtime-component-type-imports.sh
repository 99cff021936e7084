#!/usr/bin/env bash
# wasmtime (Python) leaves an import of a type bound with "eq" out of Component.type.imports, though one bound
# with "sub resource" is there. Whoever lists a component's imports from it does not see them all.
# Component Model, Explainer, "Import and Export Definitions": an import descriptor may be (type (eq ...)) as well
# as (type (sub resource)), and both are imports of the component.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check wasmtime==50.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from wasmtime import Engine, component

engine = Engine()


def imports(text: str) -> list[str]:
    return list(component.Component(engine, text).type.imports(engine))


print("wasmtime", version("wasmtime"))
print("expected: ['r', 'f'] for both")
resource = imports('(component (import "r" (type (sub resource))) (import "f" (func)))')
equal = imports('(component (type $t (record (field "x" u32))) (import "r" (type (eq $t))) (import "f" (func)))')
print("(type (sub resource)):", resource)
print("(type (eq ...)):      ", equal)
sys.exit(0 if resource == ["r", "f"] and equal == ["f"] else 1)
PYTHON
