"""The pump's start and end: what it refuses to load, the journal, traps, stopping."""

from __future__ import annotations

import ctypes
import hashlib
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from wasmtime import Config, Engine, wat2wasm

from avow import artefacts
from avow.broker.pump import CoreTrapError, Pump, Transport
from avow.errors import MalformedError, UnavailableError
from avow.sandbox import engine

from .conftest import (
    CLOSED,
    OPENED,
    PumpFactory,
    RunningPump,
    build_toy_core,
    huge_pattern,
    receive_exactly,
    tcp_pair,
)

ROOT = Path(__file__).resolve().parents[3]


def test_digest_is_that_of_the_compiled_bytes(toy_core: bytes) -> None:
    assert engine.load(toy_core).sha256 == hashlib.sha256(toy_core).digest()


def test_refuses_what_is_no_module() -> None:
    with pytest.raises(MalformedError, match="valid WebAssembly"):
        engine.load(b"\0asm\x01\0\0\0\xff")


def test_refuses_imports() -> None:
    module = wat2wasm('(module (import "env" "leak" (func)) (memory (export "memory") 1))')
    with pytest.raises(MalformedError, match=r"env\.leak"):
        engine.load(bytes(module))


def test_refuses_a_module_without_the_exports() -> None:
    with pytest.raises(MalformedError, match="`layout`"):
        engine.load(bytes(wat2wasm('(module (memory (export "memory") 1))')))


def test_refuses_an_export_of_another_type() -> None:
    module = wat2wasm(
        '(module (memory (export "memory") 1)'
        ' (func (export "layout") (result i32) i32.const 0)'
        ' (func (export "init") (result i32) i32.const 0))'
    )
    with pytest.raises(MalformedError, match="`init`"):
        engine.load(bytes(module))


def test_memory_is_limited(toy_core: bytes) -> None:
    with pytest.raises(MalformedError, match="65536 bytes"):
        engine.load(toy_core, memory_max_bytes=65536)


def test_refuses_another_layout_version(tmp_path: Path) -> None:
    source = Path(__file__).with_name("toy_core.zig").read_text()
    changed = source.replace("const LAYOUT_VERSION = 3;", "const LAYOUT_VERSION = 4;")
    assert changed != source
    (tmp_path / "toy_core.zig").write_text(changed)
    module = build_toy_core(tmp_path / "toy_core.zig", tmp_path / "toy.wasm")
    with pytest.raises(MalformedError, match=r"layout_version .* should be 3, it is 4"):
        engine.load(module)


def test_memory_that_moves_when_it_grows(toy_core: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where little address space is reserved (some TEEs), growing moves the memory."""

    def small_reservation() -> Config:
        config = Config()
        config.memory_reservation = 1 << 20
        config.memory_reservation_for_growth = 0
        return config

    monkeypatch.setattr(engine, "engine_for", lambda settings: Engine(small_reservation()))
    core = engine.load(toy_core)
    before = ctypes.addressof(core.memory.data_ptr(core.store).contents)
    running = RunningPump(core)
    with running.connect() as client:
        for index in range(40):
            message = b"G%d" % index
            client.sendall(message)
            assert receive_exactly(client, len(message)) == message
    running.close()
    assert ctypes.addressof(core.memory.data_ptr(core.store).contents) != before


def test_missing_artefact_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(artefacts, "_NATIVE_DIRECTORY", tmp_path)
    for find, name in (
        (artefacts.core_path, "broker.wasm"),
        (artefacts.pump_path, "libavow_pump.so"),
    ):
        with pytest.raises(UnavailableError, match=rf"{name}, got no such file; .*make build"):
            find()


def test_refuses_short_entropy(toy_core: bytes) -> None:
    with pytest.raises(MalformedError, match="32 bytes"):
        Pump(engine.load(toy_core), entropy=b"short")


def test_journal_is_safe_before_the_answer_is_seen(running: RunningPump) -> None:
    with running.connect() as client:
        expected = b""
        for index in range(200):
            record = b"record %d;" % index
            expected += record
            client.sendall(b"J" + record)
            assert receive_exactly(client, len(record) + 1) == b"J" + record
            assert running.pump.journal_snapshot() == expected


def test_journal_is_compacted_through_a_snapshot(start_pump: PumpFactory) -> None:
    running = start_pump(compaction_min_bytes=10_000)
    last = b"Z" * 2500
    with running.connect() as client:
        for filler in (b"A", b"B", b"C", b"D"):
            client.sendall(b"J" + filler * 2400)
            receive_exactly(client, 2401)
        assert len(running.pump.journal_snapshot()) == 9600
        client.sendall(b"J" + last)
        receive_exactly(client, 2501)
        # The toy core's whole state is its last record; compaction follows the answer.
        client.sendall(b"x")
        receive_exactly(client, 1)
    assert running.pump.journal_snapshot() == last
    assert running.pump.stats()["pump_journal_compactions"] == 1


def test_trap_ends_loudly_with_the_journal_intact(running: RunningPump) -> None:
    with running.connect() as client:
        client.sendall(b"Jkept")
        receive_exactly(client, 5)
        client.sendall(b"T")
        assert running.next_event() is None
    assert running.trap is not None
    assert "unreachable" in running.trap.trap_message
    assert running.trap.journal_bytes == 4
    assert running.pump.journal_snapshot() == b"kept"
    with pytest.raises(CoreTrapError):
        running.pump.run()
    left, right = socket.socketpair()
    with left, right, pytest.raises(UnavailableError, match="stopped"):
        running.pump.add(right.fileno(), transport=Transport.MQTT, allow_anonymous=True)


@pytest.mark.parametrize(("breach", "reason"), [(b"V", "outside of memory"), (b"N", "never was")])
def test_broken_contract_is_like_a_trap(running: RunningPump, breach: bytes, reason: str) -> None:
    with running.connect() as client:
        client.sendall(breach)
        assert running.next_event() is None
    assert running.trap is not None
    assert "broke its contract" in running.trap.trap_message
    assert reason in running.trap.trap_message


def test_stop_flushes_then_ends(running: RunningPump) -> None:
    length = 16 << 20
    with running.connect() as client:
        client.sendall(b"H" + struct.pack("<I", length))
        assert receive_exactly(client, 1) == huge_pattern(1)
        running.pump.stop()
        assert receive_exactly(client, length - 1) == huge_pattern(length)[1:]
        assert client.recv(1) == b""
    assert running.expect(CLOSED).connection == 0
    assert running.next_event() is None
    running.join()


def test_stop_does_not_wait_for_ever(start_pump: PumpFactory) -> None:
    running = start_pump(drain_timeout_s=0.1)
    with running.connect() as stuck:
        stuck.sendall(b"H" + struct.pack("<I", 64 << 20))
        assert receive_exactly(stuck, 1) == huge_pattern(1)
        running.pump.stop()
        assert running.expect(CLOSED).body[4] == 2
        assert running.next_event() is None


def test_nothing_is_taken_after_stop(running: RunningPump) -> None:
    running.pump.stop()
    running.join()
    client, server_side = tcp_pair()
    with client, server_side:
        with pytest.raises(UnavailableError, match="stopped"):
            running.pump.add(server_side.fileno(), transport=Transport.MQTT, allow_anonymous=True)
        with pytest.raises(UnavailableError, match="stopped"):
            running.pump.command(b"x")
        # What was refused still belongs to the caller.
        server_side.sendall(b"mine")
        assert receive_exactly(client, 4) == b"mine"
    assert running.pump.run() is None


def test_closed_pump_refuses_everything_in_words(running: RunningPump) -> None:
    running.close()
    for attempt in (running.pump.stats, running.pump.journal_snapshot):
        with pytest.raises(UnavailableError, match="closed"):
            attempt()
    assert running.pump.run() is None
    running.pump.stop()


def test_close_frees_every_descriptor(toy_core: bytes, tmp_path: Path) -> None:
    """In a process of its own: what earlier tests left is closed at any time."""
    (tmp_path / "toy.wasm").write_bytes(toy_core)
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from avow.sandbox import engine
        from tests.unit.pump.conftest import RunningPump
        core = engine.load(Path(sys.argv[1]).read_bytes())
        before = sorted(os.listdir("/proc/self/fd"))
        running = RunningPump(core)
        clients = [running.connect() for _ in range(10)]
        print(len(os.listdir("/proc/self/fd")) - len(before))
        for client in clients:
            client.close()
        running.close()
        assert sorted(os.listdir("/proc/self/fd")) == before
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "toy.wasm")],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 20


def test_connections_that_never_reached_the_core_are_closed(toy_core: bytes) -> None:
    pump = Pump(engine.load(toy_core), entropy=bytes(32))
    client, server_side = tcp_pair()
    with client:
        client.settimeout(5)
        pump.add(server_side.detach(), transport=Transport.MQTT, allow_anonymous=True)
        pump.close()
        assert client.recv(1) == b""


def test_signal_handler_of_the_main_thread_runs_and_may_stop(tmp_path: Path) -> None:
    """In a process of its own, because only a main thread gets signals."""
    module = build_toy_core(Path(__file__).with_name("toy_core.zig"), tmp_path / "toy.wasm")
    assert module
    script = textwrap.dedent(
        """
        import os, signal, sys
        from avow.broker.pump import Pump
        from avow.sandbox import engine
        pump = Pump(engine.load(open(sys.argv[1], "rb").read()), entropy=bytes(32))
        signal.signal(signal.SIGTERM, lambda number, frame: pump.stop())
        print("ready", flush=True)
        assert pump.run() is None
        pump.close()
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "toy.wasm")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0


def test_many_threads_hand_in_at_once(running: RunningPump) -> None:
    clients: list[socket.socket] = []
    lock = threading.Lock()

    def hand_in() -> None:
        for _ in range(50):
            client, server_side = socket.socketpair()
            client.settimeout(20)
            running.pump.add(server_side.detach(), transport=Transport.MQTT, allow_anonymous=True)
            with lock:
                clients.append(client)
            client.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"

    threads = [threading.Thread(target=hand_in) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {running.expect(OPENED).connection for _ in range(400)} == set(range(400))
    for client in clients:
        client.close()
