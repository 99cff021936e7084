"""The pump over plain sockets: bytes, back-pressure, and how connections end."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from avow.broker.pump import Transport
from avow.errors import MalformedError

from .conftest import (
    CLOSED,
    COMMAND,
    DEADLINE,
    OPENED,
    SAID,
    PumpFactory,
    RunningPump,
    huge_pattern,
    receive_exactly,
    tcp_pair,
)

REASON_PEER, REASON_FAILURE, REASON_DEADLINE, REASON_CONFIRMED = 0, 1, 2, 3


def closed_reason(running: RunningPump) -> int:
    return running.expect(CLOSED).body[4]


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("message", [b"x", b"hello", bytes(range(128, 256)) * 700])
def test_echoes_bytes(running: RunningPump, unix: bool, message: bytes) -> None:
    with running.connect(unix=unix) as client:
        client.sendall(message)
        assert receive_exactly(client, len(message)) == message


def test_open_information_reaches_the_core(running: RunningPump) -> None:
    client, server_side = tcp_pair()
    with client:
        number = running.pump.add(
            server_side.detach(),
            transport=Transport.WEBSOCKET,
            allow_anonymous=False,
            identity="zoë",
        )
        opened = running.expect(OPENED)
        assert opened.connection == number
        assert opened.body[4:] == bytes([1, 2]) + struct.pack("<H", 4) + "zoë".encode()


def test_refuses_an_identity_that_does_not_fit(running: RunningPump) -> None:
    client, server_side = tcp_pair()
    with client, server_side, pytest.raises(MalformedError, match="65535"):
        running.pump.add(
            server_side.fileno(),
            transport=Transport.MQTT,
            allow_anonymous=True,
            identity="x" * 65536,
        )


def test_bytes_that_arrived_before_the_pump_took_over(running: RunningPump) -> None:
    client, server_side = tcp_pair()
    with client:
        client.settimeout(5)
        client.sendall(b"early")
        running.add(server_side)
        assert receive_exactly(client, 5) == b"early"


def test_more_pieces_than_one_system_call_takes(running: RunningPump) -> None:
    message = b"M" + bytes(128 + index % 100 for index in range(5000))
    with running.connect() as client:
        client.sendall(message)
        assert receive_exactly(client, len(message)) == message


def test_hundred_megabytes_through_one_connection(running: RunningPump) -> None:
    chunk = bytes(range(128, 256)) * 8192
    with running.connect() as client, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.sendall, chunk * 100)
        for _ in range(100):
            assert receive_exactly(client, len(chunk)) == chunk
        sending.result()
    assert running.pump.stats()["pump_received_bytes"] == 100 * len(chunk)


def test_slow_reader_does_not_delay_another(running: RunningPump) -> None:
    length = 32 << 20
    with running.connect() as slow, running.connect() as quick:
        slow.sendall(b"H" + struct.pack("<I", length))
        for index in range(200):
            message = b"x%d" % index
            quick.sendall(message)
            assert receive_exactly(quick, len(message)) == message
        assert running.pump.stats()["pump_sends_blocked"] >= 1
        assert receive_exactly(slow, length) == huge_pattern(length)


def test_memory_that_grows_and_may_move(running: RunningPump) -> None:
    with running.connect() as client:
        for index in range(50):
            message = b"G%d" % index
            client.sendall(message)
            assert receive_exactly(client, len(message)) == message


def test_pause_holds_bytes_back_until_resume(running: RunningPump) -> None:
    with running.connect() as client:
        client.sendall(b"P")
        assert receive_exactly(client, 1) == b"P"
        # The toy core traps on DATA from a paused connection.
        client.sendall(b"held back")
        with running.connect() as other:
            other.sendall(b"another")
            assert receive_exactly(other, 7) == b"another"
        assert closed_reason(running) == REASON_PEER
        running.pump.command(b"R" + struct.pack("<I", 0))
        assert running.expect(COMMAND).body[:1] == b"R"
        assert receive_exactly(client, 9) == b"held back"


def test_close_flushes_and_survives_unread_input(running: RunningPump) -> None:
    """Closing with unread input would reset the connection and destroy what was sent."""
    length = 8 << 20
    with running.connect() as client:
        client.sendall(b"H" + struct.pack("<I", length))
        assert receive_exactly(client, 1) == huge_pattern(1)
        client.sendall(b"C")
        client.settimeout(0.2)
        unread = 0
        try:
            for _ in range(64):
                unread += client.send(b"\x80" * 4096)
        except TimeoutError:
            pass
        assert unread > 0
        client.settimeout(20)
        received = receive_exactly(client, length)
        assert received[: length - 1] == huge_pattern(length)[1:]
        assert received[-1:] == b"C"
        while client.recv(65536):
            pass
    assert closed_reason(running) == REASON_CONFIRMED


def test_abort_closes_at_once(running: RunningPump) -> None:
    with running.connect() as client:
        client.sendall(b"A")
        assert closed_reason(running) == REASON_CONFIRMED
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) in (b"", b"A")


def test_half_closed_peer_gets_the_answers_to_its_last_bytes(running: RunningPump) -> None:
    with running.connect() as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert receive_exactly(client, 10) == b"last words"
        assert client.recv(1) == b""
        assert closed_reason(running) == REASON_PEER


def test_reset_by_the_peer_is_a_failure(running: RunningPump) -> None:
    client = running.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert closed_reason(running) == REASON_FAILURE


def test_number_is_reused_only_after_closed(running: RunningPump) -> None:
    with running.connect() as first:
        first.sendall(b"1")
        assert receive_exactly(first, 1) == b"1"
    assert closed_reason(running) == REASON_PEER
    with running.connect() as second, running.connect() as third:
        # The toy core traps on an OPEN for a number that is in use.
        for client in (second, third):
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
    assert {running.expect(CLOSED).connection for _ in range(2)} == {0, 1}


def test_commands_keep_their_order(running: RunningPump) -> None:
    for index in range(3000):
        running.pump.command(struct.pack("<I", index) + b"-" * (index % 300))
    for index in range(3000):
        assert running.expect(COMMAND).body == struct.pack("<I", index) + b"-" * (index % 300)


def test_command_larger_than_the_arena_is_refused(running: RunningPump) -> None:
    arena_bytes = 256 << 10
    running.pump.command(b"-" * arena_bytes)
    assert len(running.expect(COMMAND).body) == arena_bytes
    with pytest.raises(MalformedError, match="arena"):
        running.pump.command(b"-" * (arena_bytes + 1))


def test_deadline_of_the_core_wakes_it(running: RunningPump) -> None:
    with running.connect() as client:
        started = time.monotonic()
        client.sendall(b"D" + struct.pack("<I", 80))
        running.expect(DEADLINE)
        assert time.monotonic() - started >= 0.075


def test_idle_connection_is_closed(start_pump: PumpFactory) -> None:
    running = start_pump(idle_timeout_s=0.1)
    with running.connect() as idle:
        assert idle.recv(1) == b""
        assert closed_reason(running) == REASON_DEADLINE


def test_close_that_the_peer_never_takes_is_given_up(start_pump: PumpFactory) -> None:
    running = start_pump(drain_timeout_s=0.1)
    with running.connect() as stuck:
        stuck.sendall(b"K" + struct.pack("<I", 64 << 20))
        assert receive_exactly(stuck, 1) == huge_pattern(1)
        assert closed_reason(running) == REASON_DEADLINE


def test_python_threads_run_while_the_pump_waits(running: RunningPump) -> None:
    with running.connect():
        assert sum(range(100_000)) == 4999950000
        assert threading.active_count() >= 2


def test_thousands_of_connections(running: RunningPump) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 20_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    count = min(3000, (wanted - 200) // 2)
    clients = []
    try:
        for _ in range(count):
            client, server_side = socket.socketpair()
            client.settimeout(20)
            running.pump.add(server_side.detach(), transport=Transport.MQTT, allow_anonymous=True)
            clients.append(client)
        for index, client in enumerate(clients):
            client.sendall(b"x%d" % index)
        for index, client in enumerate(clients):
            message = b"x%d" % index
            assert receive_exactly(client, len(message)) == message
        assert running.pump.stats()["pump_connections_open"] == count
        assert {running.expect(OPENED).connection for _ in clients} == set(range(count))
    finally:
        for client in clients:
            client.close()
    assert {running.expect(CLOSED).connection for _ in clients} == set(range(count))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_event_carries_its_bytes(running: RunningPump) -> None:
    with running.connect() as client:
        client.sendall(b"Espeak")
        assert running.expect(SAID).body == b"speak"
