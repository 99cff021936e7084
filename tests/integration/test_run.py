"""`avow run` from outside: exit codes, streams, signals, limits, grants and messages."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmtime import wat2wasm

TIMEOUT_S = 60

# Reads descriptor 0 to its end and writes it to 1, then ends with the number of arguments.
CAT = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (func (export "_start") (local $n i32) (local $at i32)
    (block $end
      (loop $next
        (i32.store (i32.const 0) (i32.const 1024))
        (i32.store (i32.const 4) (i32.const 65536))
        (br_if $end (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if $end (i32.eqz (local.tee $n (i32.load (i32.const 8)))))
        (local.set $at (i32.const 1024))
        (loop $rest
          (i32.store (i32.const 0) (local.get $at))
          (i32.store (i32.const 4) (local.get $n))
          (br_if $end (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
          (local.set $n (i32.sub (local.get $n) (i32.load (i32.const 8))))
          (br_if $rest (local.get $n)))
        (br $next)))
    (drop (call $args (i32.const 0) (i32.const 4)))
    (call $exit (i32.load (i32.const 0)))))"""

# Writes "x" to 1 and then computes for ever.
LOOP = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\\08\\00\\00\\00\\01\\00\\00\\00x")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
    (loop $l (br $l))))"""


def exits_with(code: int) -> str:
    return f"""(module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const {code}))))"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "cat": CAT,
        "loop": LOOP,
        "recursion": '(module (func $f (export "_start") (call $f)))',
        "trap": '(module (func (export "_start") unreachable))',
        "imports": '(module (import "env" "f" (func)) (func (export "_start")))',
    }.items():
        (tmp_path / f"{name}.wasm").write_bytes(wat2wasm(text))
    return tmp_path


def avow_run(
    folder: Path, *arguments: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "avow", "run", *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_library_does_not_look_like_success(folder: Path) -> None:
    library = '(module (memory (export "memory") 1) (func (export "_initialize")))'
    (folder / "library.wasm").write_bytes(wat2wasm(library))
    finished = avow_run(folder, "library.wasm")
    assert finished.returncode == 0
    assert "library.wasm is a library (a reactor)" in sentence(finished)
    finished = avow_run(folder, "library.wasm", "--", "in.png", "out.json")
    assert finished.returncode == 100
    assert "reads no arguments" in sentence(finished)


def test_imports_are_refused_before_anything_is_compiled(folder: Path) -> None:
    """Code that no compiler takes is not reached."""
    broken = bytearray(wat2wasm('(module (import "env" "f" (func)) (func (export "_start")))'))
    broken[-1] ^= 0xFF
    (folder / "broken.wasm").write_bytes(broken)
    finished = avow_run(folder, "broken.wasm")
    assert finished.returncode == 101
    assert "env.f" in sentence(finished)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run that is going on, with pipes, and is gone afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", "avow", "run", *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def sentence(finished: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on standard error."""
    said = finished.stderr.decode()
    assert said.startswith("avow: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(("asked", "code"), [(0, 0), (1, 1), (125, 125), (256 + 3, 3), (-1, 255)])
def test_the_exit_code_is_the_programs(folder: Path, asked: int, code: int) -> None:
    (folder / "exit.wasm").write_bytes(wat2wasm(exits_with(asked)))
    finished = avow_run(folder, "exit.wasm")
    assert (finished.returncode, finished.stdout, finished.stderr) == (code, b"", b"")


def test_streams_carry_every_byte(folder: Path) -> None:
    data = bytes(range(256)) * 2000 + b"\xff\x00\r\n"
    finished = avow_run(folder, "cat.wasm", given=data)
    assert finished.stdout == data
    assert finished.returncode == 1


def test_arguments_behind_the_dashes_are_the_programs(folder: Path) -> None:
    finished = avow_run(folder, "cat.wasm", "--", "--store", "-h", "--", "")
    assert finished.returncode == 5
    finished = avow_run(folder, "cat.wasm", "word")
    assert finished.returncode == 2
    assert "write the program's arguments after `--`" in sentence(finished)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("trap.wasm",), 102, "unreachable"),
        (("imports.wasm",), 101, "env.f (no grant allows it)"),
        (("recursion.wasm",), 103, "--stack-max-bytes"),
        (("loop.wasm", "--fuel", "10000"), 103, "--fuel"),
        (("loop.wasm", "--timeout-s", "0.2"), 103, "--timeout-s"),
        (("cat.wasm", "--memory-max-bytes", "65536"), 103, "--memory-max-bytes"),
        (("absent.wasm",), 100, "absent.wasm"),
        (("text.wat",), 100, "text format"),
        (("cat.wasm", "--grant", "sealed:/a"), 2, "--store"),
        (("cat.wasm", "--grant", "clock:x"), 2, "clock:x"),
        (("cat.wasm", "--key", "file:k"), 2, "--store"),
        (("cat.wasm", "--anchor", "tpm:0x01800042"), 2, "--store"),
        (("cat.wasm", "--new-store"), 2, "--store"),
        (
            ("cat.wasm", "--grant", "provisioned:/run/secrets"),
            2,
            "expected an owner for the grant provisioned:/run/secrets",
        ),
        (("cat.wasm", "--fuel", "0"), 2, "fuel from 1"),
        (("cat.wasm", "--grant", "plain:/in=absent"), 2, "absent"),
        ((), 2, "a module or --app"),
    ],
)
def test_one_sentence_and_a_code(
    folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    (folder / "text.wat").write_text("(module)")
    finished = avow_run(folder, *arguments)
    assert finished.returncode == code, finished.stderr
    assert said in sentence(finished)


def test_a_store_without_a_key_gets_the_two_lines_that_make_one(folder: Path) -> None:
    finished = avow_run(folder, "cat.wasm", "--store", "data")
    assert finished.returncode == 2
    said = finished.stderr.decode().splitlines()
    assert said[0].startswith("avow: expected --key SOURCE with --store")
    assert [line.split()[:3] for line in said[1:]] == [
        ["avow", "store", "init"],
        ["avow", "run", "--store"],
    ]


def test_a_blocked_program_is_stopped_at_its_time(folder: Path) -> None:
    with started(folder, "cat.wasm", "--timeout-s", "0.2") as process:
        assert process.wait(TIMEOUT_S) == 103


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_program_that_computes(folder: Path, number: signal.Signals) -> None:
    with started(folder, "loop.wasm") as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == -number
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_signals_end_a_program_that_waits(folder: Path) -> None:
    with started(folder, "cat.wasm") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"y")
        process.stdin.flush()
        assert process.stdout.read(1) == b"y"
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == -signal.SIGTERM


def test_an_ignored_signal_stays_ignored(folder: Path) -> None:
    """As under nohup: what the caller ignores does not end the program."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-m', 'avow', 'run', 'cat.wasm'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"y")
        process.stdin.flush()
        assert process.stdout.read(1) == b"y"
        process.send_signal(signal.SIGHUP)
        process.stdin.write(b"z")
        process.stdin.flush()
        assert process.stdout.read(1) == b"z"
        process.stdin.close()
        assert process.wait(TIMEOUT_S) == 1


def test_an_app_file_is_all_that_is_needed(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "app.toml").write_text('module = "../cat.wasm"\nargs = ["a", "b"]\n')
    assert avow_run(folder, "--app", "below/app.toml").returncode == 3
    assert avow_run(folder, "--app", "below/app.toml", "--", "c").returncode == 4
    assert avow_run(folder, "cat.wasm", "--app", "below/app.toml").returncode == 3
    finished = avow_run(folder, "loop.wasm", "--app", "below/app.toml")
    assert finished.returncode == 2
    assert "one module" in sentence(finished)


def test_limits_of_the_command_line_replace_those_of_the_file(folder: Path) -> None:
    (folder / "app.toml").write_text('module = "loop.wasm"\n[limits]\nfuel = 100\n')
    assert b"100 units" in avow_run(folder, "--app", "app.toml").stderr
    assert b"200 units" in avow_run(folder, "--app", "app.toml", "--fuel", "200").stderr


def measured(folder: Path, *arguments: str) -> dict[str, str]:
    finished = subprocess.run(
        [sys.executable, "-m", "avow", "measure", "app", *arguments],
        cwd=folder,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
        text=True,
    )
    lines = [line.split() for line in finished.stdout.splitlines()]
    return {line[0]: line[1] for line in lines}


def test_measuring(folder: Path) -> None:
    (folder / "app.toml").write_text('module = "cat.wasm"\ngrants = ["env:A=1"]\n')
    found = measured(folder, "--app", "app.toml")
    content = (folder / "cat.wasm").read_bytes()
    assert found["module"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert found == measured(folder, "cat.wasm", "--grant", "env:A=1")
    other = measured(folder, "cat.wasm", "--grant", "env:A=1", "--", "x")
    assert other["configuration"] != found["configuration"]
    assert other["module"] == found["module"]


def test_a_failing_anchor_ends_the_process_from_its_own_thread(folder: Path) -> None:
    """With the program still computing: said once, kept, and gone with the error's code."""
    code = """
import threading
from avow.cli.supervision import end_at_once
from avow.errors import RolledBackError

class Keeper:
    def commit(self): ...
    def keep(self):
        print("kept", flush=True)
        raise RolledBackError("older still")

threading.Thread(target=end_at_once, args=(RolledBackError("older"), Keeper())).start()
threading.Event().wait()
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert finished.returncode == 107
    assert finished.stdout == b"kept\n"
    assert finished.stderr == b"avow: older\n"


PIPE = 64


def test_a_closed_pipe_is_an_error_for_the_program(folder: Path) -> None:
    """Preview 1 has an errno for it (64) and no signals."""
    text = LOOP.replace("(drop (call $write", "(call $exit (call $write").replace(
        "(memory ",
        '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory ',
        1,
    )
    (folder / "writes.wasm").write_bytes(wat2wasm(text))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stream:
        finished = subprocess.run(
            [sys.executable, "-m", "avow", "run", "writes.wasm"],
            cwd=folder,
            stdout=stream,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert finished.returncode == PIPE
