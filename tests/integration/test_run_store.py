"""`avow run` with a sealed store: what is kept, when, under which key, and its compiled code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmtime import wat2wasm

from avow.errors import DamagedError
from avow.sandbox.grants import ALL_OF_THE_STORE, Grants
from avow.sandbox.program import Surroundings, load
from avow.sealing.store import CONTAINER, Store
from tests.integration.test_run import TIMEOUT_S, avow_run, sentence, started

KEY = "ab" * 32
OPENED = ("--store", "data", "--key", "file:key")

# Opens `name` in the first granted folder (or makes it), writes ten bytes, and goes on as asked.
WRITER = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_sync" (func $sync (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\40\\00\\00\\00\\0a\\00\\00\\00")
  (data (i32.const 16) "name")
  (data (i32.const 32) "\\48\\00\\00\\00\\01\\00\\00\\00")
  (data (i32.const 64) "0123456789")
  (func (export "_start") (local $errno i32)
    (local.set $errno (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4)
      (i32.const 1) (i64.const 0x60) (i64.const 0) (i32.const 0) (i32.const 128)))
    (if (local.get $errno) (then (call $exit (local.get $errno))))
    (local.set $errno
      (call $write (i32.load (i32.const 128)) (i32.const 0) (i32.const 1) (i32.const 132)))
    (if (local.get $errno) (then (call $exit (local.get $errno))))
    (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 136)))
    AND_THEN))"""
ENDS = {
    "returns": "",
    "exits": "(call $exit (i32.const 9))",
    "traps": "unreachable",
    "loops": "(loop $l (br $l))",
    "waits": "(drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 136)))",
}
ROFS = 69


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "key").chmod(0o600)
    for name, body in ENDS.items():
        text = WRITER.replace("AND_THEN", body)
        (tmp_path / f"{name}.wasm").write_bytes(wat2wasm(text))
    return tmp_path


def kept(folder: Path, path: str = "/files/name") -> bytes | None:
    """What the store has there, read by its key in this process."""
    with Store.open(folder / "data", bytes.fromhex(KEY), read_only=True) as store:
        return store.read(path) if store.exists(path) else None


# Ends with the errno of writing to 1, or of reading from 0.
STREAM = """(module
  (import "wasi_snapshot_preview1" "NAME" (func $do (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (data (i32.const 0) "\\08\\00\\00\\00\\05\\00\\00\\00print")
  (func (export "_start")
    (call $exit (call $do (i32.const FD) (i32.const 0) (i32.const 1) (i32.const 16)))))"""


@pytest.mark.parametrize(("name", "fd", "closed"), [("fd_read", 0, "<&-"), ("fd_write", 1, ">&-")])
def test_no_closed_stream_becomes_the_store(folder: Path, name: str, fd: int, closed: str) -> None:
    """The store would be the next file that is opened, and get the free number."""
    text = STREAM.replace("NAME", name).replace("FD", str(fd))
    (folder / "stream.wasm").write_bytes(wat2wasm(text))
    assert avow_run(folder, "returns.wasm", *OPENED).returncode == 0
    size_bytes = (folder / "data" / CONTAINER).stat().st_size
    command = [sys.executable, "-m", "avow", "run", "stream.wasm", *OPENED]
    finished = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        check=False,
    )
    # EBADF, as for a native program.
    assert finished.returncode == 8
    assert (folder / "data" / CONTAINER).stat().st_size == size_bytes


@pytest.mark.parametrize(("name", "code"), [("returns", 0), ("exits", 9), ("traps", 102)])
def test_what_was_written_is_kept_however_the_program_ends(
    folder: Path, name: str, code: int
) -> None:
    assert avow_run(folder, f"{name}.wasm", *OPENED).returncode == code
    assert kept(folder) == b"0123456789"


@pytest.mark.parametrize(
    ("name", "number"),
    [("loops", signal.SIGTERM), ("waits", signal.SIGTERM), ("loops", signal.SIGQUIT)],
)
def test_a_signal_keeps_it_too(folder: Path, name: str, number: signal.Signals) -> None:
    with started(folder, f"{name}.wasm", *OPENED) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"8"
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == -number
    assert kept(folder) == b"0123456789"


@pytest.mark.parametrize("name", ["loops", "waits"])
def test_a_time_limit_keeps_it_too(folder: Path, name: str) -> None:
    with started(folder, f"{name}.wasm", *OPENED, "--timeout-s", "0.3") as process:
        assert process.wait(TIMEOUT_S) == 103
    assert kept(folder) == b"0123456789"


def test_a_killed_program_leaves_a_store_that_opens(folder: Path) -> None:
    with started(folder, "loops.wasm", *OPENED) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"8"
        process.kill()
        assert process.wait(TIMEOUT_S) == -signal.SIGKILL
    assert kept(folder) in (None, b"0123456789")
    assert avow_run(folder, "returns.wasm", *OPENED).returncode == 0


def test_a_long_run_is_committed_on_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any end: who kills it after the interval loses nothing that came before."""
    code = (
        "import sys; from avow.cli import supervision, run; supervision.COMMIT_INTERVAL_S = 0.05; "
        "sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", "loops.wasm", *OPENED]
    container = folder / "data" / CONTAINER
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"8"
        # Each commit writes a root record to one of the first slots.
        first = container.read_bytes()[: 4 * 4096]
        while container.read_bytes()[: 4 * 4096] == first:
            assert process.poll() is None
        process.kill()
        process.wait(TIMEOUT_S)
    assert kept(folder) == b"0123456789"


def test_a_first_run_makes_key_store_and_folders(folder: Path) -> None:
    finished = avow_run(
        folder,
        *("returns.wasm", "--store", "new/data", "--key", "file:new.key"),
        *("--grant", "sealed:/a/b"),
    )
    assert finished.returncode == 0
    assert b"made a new store in new/data" in finished.stderr
    assert b"made a new key in new.key" in finished.stderr
    assert (folder / "new.key").stat().st_mode & 0o777 == 0o600
    key = bytes.fromhex((folder / "new.key").read_text())
    with Store.open(folder / "new" / "data", key, read_only=True) as store:
        assert store.read("/files/a/b/name") == b"0123456789"


def test_read_only_is_read_only(folder: Path) -> None:
    refused = avow_run(folder, "returns.wasm", *OPENED, "--grant", "sealed:/x:ro")
    assert refused.returncode == 2
    assert b"sealed:/x:ro" in refused.stderr
    assert avow_run(folder, "returns.wasm", *OPENED, "--grant", "sealed:/x").returncode == 0
    with Store.open(folder / "data", bytes.fromhex(KEY)) as store:
        store.remove("/files/x/name")
    finished = avow_run(folder, "returns.wasm", *OPENED, "--grant", "sealed:/x:ro")
    assert finished.returncode == ROFS
    assert kept(folder, "/files/x/name") is None


def test_no_program_reaches_the_compiled_code(folder: Path) -> None:
    """`..` out of what was granted leads nowhere, not even from all of /files."""
    for way in ("../cache/x", "/../cache/x", "a/../../cache/x"):
        text = WRITER.replace("AND_THEN", "").replace('"name"', f'"{way}"')
        text = text.replace(
            "(i32.const 16) (i32.const 4)", f"(i32.const 16) (i32.const {len(way)})"
        )
        text = text.replace("(i32.const 32)", "(i32.const 48)").replace(
            "(data (i32.const 48)", "(data (i32.const 48)"
        )
        (folder / "out.wasm").write_bytes(wat2wasm(text))
        assert avow_run(folder, "out.wasm", *OPENED).returncode not in (0, 102)
    with Store.open(folder / "data", bytes.fromhex(KEY), read_only=True) as store:
        assert all(len(each.name) == 64 for each in store.listdir("/cache"))


def test_another_key(folder: Path) -> None:
    avow_run(folder, "returns.wasm", *OPENED)
    (folder / "key").write_text("cd" * 32 + "\n")
    finished = avow_run(folder, "returns.wasm", *OPENED)
    assert finished.returncode == 104
    sentence(finished)


def test_two_at_once(folder: Path) -> None:
    with started(folder, "waits.wasm", *OPENED) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"8"
        finished = avow_run(folder, "returns.wasm", *OPENED)
        assert finished.returncode == 106
        sentence(finished)


def test_a_damaged_store(folder: Path) -> None:
    avow_run(folder, "returns.wasm", *OPENED)
    container = folder / "data" / CONTAINER
    content = bytearray(container.read_bytes())
    for copy in range(4):
        content[copy * 4096 + 3000] ^= 1
    container.write_bytes(content)
    finished = avow_run(folder, "returns.wasm", *OPENED)
    assert finished.returncode == 105
    sentence(finished)


READER = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\40\\00\\00\\00\\0a\\00\\00\\00")
  (data (i32.const 16) "name")
  (func (export "_start")
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4)
      (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 128)))
    (drop (call $read (i32.load (i32.const 128)) (i32.const 0) (i32.const 1) (i32.const 132)))
    (call $exit (i32.load8_u (i32.const 64)))))"""


def test_a_damaged_file_is_reported_and_not_read(folder: Path) -> None:
    content = wat2wasm(READER)
    (folder / "reads.wasm").write_bytes(content)
    avow_run(folder, "returns.wasm", *OPENED)
    program = load(content)
    container = folder / "data" / CONTAINER
    good = container.read_bytes()

    def first_byte() -> int:
        with Store.open(folder / "data", bytes.fromhex(KEY), read_only=True) as store:
            surroundings = Surroundings(("a",), Grants(sealed=(ALL_OF_THE_STORE,)), store=store)
            return program.run(surroundings)

    assert first_byte() == ord("0")
    damaged: list[int] = []
    # Every slot but the roots, one at a time: whatever is damaged, no run ends with other data.
    for slot in range(4, len(good) // 4096):
        content = bytearray(good)
        content[slot * 4096 + 100] ^= 1
        container.write_bytes(content)
        try:
            assert first_byte() == ord("0")
        except DamagedError:
            damaged.append(slot)
    assert 2 <= len(damaged) < len(good) // 4096 - 4
    content = bytearray(good)
    content[damaged[-1] * 4096] ^= 1
    container.write_bytes(content)
    finished = avow_run(folder, "reads.wasm", *OPENED)
    assert finished.returncode == 105
    assert b"avow: " in finished.stderr


def test_compiled_code_is_used_again(folder: Path) -> None:
    def modified() -> list[tuple[str, int]]:
        with Store.open(folder / "data", bytes.fromhex(KEY), read_only=True) as store:
            return [(each.name, each.stat.modified_ns) for each in store.listdir("/cache")]

    avow_run(folder, "returns.wasm", *OPENED)
    first = modified()
    assert len(first) == 1
    avow_run(folder, "returns.wasm", *OPENED)
    assert modified() == first
    avow_run(folder, "returns.wasm", *OPENED, "--fuel", "100000")
    assert len(modified()) == 2


@contextmanager
def witness(folder: Path) -> Iterator[str]:
    """A running witness: what `--anchor` takes."""
    command = [sys.executable, "-m", "avow", "witness", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--state", "witness"], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def test_a_store_that_was_put_back_is_refused(folder: Path) -> None:
    with witness(folder) as anchor:
        options = ("returns.wasm", *OPENED, "--anchor", anchor)
        assert avow_run(folder, *options).returncode == 107
        assert avow_run(folder, *options, "--new-store").returncode == 0
        again = avow_run(folder, *options, "--new-store")
        assert again.returncode == 2
        assert "leave --new-store out" in sentence(again)
        container = folder / "data" / CONTAINER
        old = container.read_bytes()
        assert avow_run(folder, "exits.wasm", *options[1:]).returncode == 9
        container.write_bytes(old)
        refused = avow_run(folder, *options)
        assert refused.returncode == 107
        sequence = re.search(r"--accept-rollback (\d+)", sentence(refused))
        assert sequence is not None
        accepted = avow_run(folder, *options, "--accept-rollback", sequence[1])
        assert accepted.returncode == 0, accepted.stderr
        assert avow_run(folder, *options).returncode == 0
    # Nobody answers any more: a store that has a witness is not opened without it.
    assert avow_run(folder, *options).returncode == 1
    assert avow_run(folder, "returns.wasm", *OPENED).returncode == 107


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_an_interval_that_nobody_can_wait_for(folder: Path, seconds: str) -> None:
    assert avow_run(folder, "returns.wasm", "--anchor-interval", seconds).returncode == 2


def test_signals_move_the_anchor_on(folder: Path) -> None:
    """What was committed when the signal came is what the witness knows afterwards."""
    with witness(folder) as anchor:
        with started(folder, "loops.wasm", *OPENED, "--anchor", anchor, "--new-store") as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"8"
            old = (folder / "data" / CONTAINER).read_bytes()
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == -signal.SIGTERM
        (folder / "data" / CONTAINER).write_bytes(old)
        assert avow_run(folder, "returns.wasm", *OPENED, "--anchor", anchor).returncode == 107
