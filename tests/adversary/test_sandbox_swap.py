"""Somebody who owns the disk swaps the program between its measurement and its start."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from wasmtime import Module, wat2wasm

from avow.sandbox import engine_settings
from avow.sandbox.limits import Limits

TIMEOUT_S = 60

# Runs `avow run` with an accomplice inside: as soon as the program's bytes are hashed, `evil.wasm`
# takes the place of the file. How often the file is opened is printed, and what was measured.
ACCOMPLICE = """
import hashlib, os, sys
import avow.cli.run_program
import avow.sandbox.program as program
from avow.cli import run

opened = 0

def audit(event, arguments):
    global opened
    if event == "open" and str(arguments[0]).endswith("good.wasm"):
        opened += 1

sys.addaudithook(audit)
sha256 = hashlib.sha256

def swapping(data=b"", **options):
    digest = sha256(data, **options)
    if data == GOOD and os.path.exists("evil.wasm"):
        os.rename("evil.wasm", "good.wasm")
    return digest

GOOD = open("good.wasm", "rb").read()
opened = 0
hashlib.sha256 = swapping
load = program.load

def noting(*arguments, **options):
    loaded = load(*arguments, **options)
    print(loaded.sha256.hex(), flush=True)
    return loaded

avow.cli.run_program.load = noting
code = run(["run", *sys.argv[1:]])
print(opened, flush=True)
sys.exit(code)
"""


def exits_with(code: int) -> bytes:
    return bytes(
        wat2wasm(f"""(module
          (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const {code}))))""")
    )


GOOD, EVIL = exits_with(11), exits_with(66)


@pytest.mark.parametrize("options", [(), ("--store", "data", "--key", "file:key")])
def test_what_runs_is_what_was_measured(tmp_path: Path, options: tuple[str, ...]) -> None:
    for _ in range(2):  # the second time, with a store, the compiled code is there already
        (tmp_path / "good.wasm").write_bytes(GOOD)
        (tmp_path / "evil.wasm").write_bytes(EVIL)
        finished = subprocess.run(
            [sys.executable, "-c", ACCOMPLICE, "good.wasm", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert finished.returncode == 11, finished.stderr
        # It was swapped indeed, and in time.
        assert (tmp_path / "good.wasm").read_bytes() == EVIL
        measured, opened = finished.stdout.split()
        assert measured == hashlib.sha256(GOOD).hexdigest()
        assert opened == "1"


def test_code_compiled_elsewhere_is_no_program(tmp_path: Path) -> None:
    """The very code that avow would make itself: it is not what anybody measured."""
    settings = engine_settings.program_settings(Limits(), component=False)
    compiled = Module(engine_settings.engine_for(settings), EVIL).serialize()
    (tmp_path / "app.cwasm").write_bytes(compiled)
    finished = subprocess.run(
        [sys.executable, "-m", "avow", "run", "app.cwasm"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert finished.returncode == 100
    assert "avow compiles every program itself" in finished.stderr
