"""The pump over TLS: sessions taken over after pyOpenSSL's handshake."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import threading

import pytest
from OpenSSL import SSL

from avow.broker.pump import Transport
from avow.errors import UnavailableError

from .conftest import (
    CLOSED,
    PumpFactory,
    RunningPump,
    TlsSide,
    huge_pattern,
    receive_exactly,
    tcp_pair,
)


@pytest.mark.parametrize("message", [b"x", b"hello", bytes(range(128, 256)) * 700])
def test_echoes_bytes(running: RunningPump, tls_side: TlsSide, message: bytes) -> None:
    with tls_side.connect(running) as client:
        for _ in range(5):
            client.sendall(message)
            assert receive_exactly(client, len(message)) == message


def test_session_outlives_its_python_object(running: RunningPump, tls_side: TlsSide) -> None:
    client, server_side, tls = tls_side.pair()
    with client:
        running.add(server_side, tls)
        del tls
        gc.collect()
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"


def test_fifty_megabytes_each_way(running: RunningPump, tls_side: TlsSide) -> None:
    chunk = bytes(range(128, 256)) * 4096
    with tls_side.connect(running) as client:
        for _ in range(100):
            client.sendall(chunk)
            assert receive_exactly(client, len(chunk)) == chunk


def test_many_small_pieces_become_few_records(running: RunningPump, tls_side: TlsSide) -> None:
    message = b"M" + bytes(128 + index % 100 for index in range(900))
    with tls_side.connect(running) as client:
        client.sendall(message)
        # One `recv` of an SSL socket returns at most one record.
        assert client.recv(65536) == message


def test_slow_reader_does_not_delay_another(running: RunningPump, tls_side: TlsSide) -> None:
    length = 16 << 20
    with (
        tls_side.connect(running, receive_buffer_bytes=65536) as slow,
        tls_side.connect(running) as quick,
    ):
        slow.sendall(b"H" + struct.pack("<I", length))
        for index in range(200):
            message = b"x%d" % index
            quick.sendall(message)
            assert receive_exactly(quick, len(message)) == message
        assert running.pump.stats()["pump_sends_blocked"] >= 1
        assert receive_exactly(slow, length) == huge_pattern(length)


def test_plaintext_that_openssl_holds_already(running: RunningPump, tls_side: TlsSide) -> None:
    client, server_side, tls = tls_side.pair()
    with client:
        client.sendall(b"decide by the first byte")
        assert tls.recv(1, socket.MSG_PEEK) == b"d"
        assert tls.pending() == 24
        running.add(server_side, tls)
        assert receive_exactly(client, 24) == b"decide by the first byte"


def test_ciphertext_that_waits_in_the_socket(running: RunningPump, tls_side: TlsSide) -> None:
    client, server_side, tls = tls_side.pair()
    with client:
        client.sendall(b"early")
        running.add(server_side, tls)
        assert receive_exactly(client, 5) == b"early"


def test_handshake_made_over_memory(running: RunningPump, tls_side: TlsSide) -> None:
    """Such a connection may have received application data together with the handshake."""
    plain, server_side = tcp_pair()
    plain.settimeout(20)
    answers: list[bytes] = []

    def be_client() -> None:
        with tls_side.client.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"with the handshake")
            answers.append(receive_exactly(client, 18))

    thread = threading.Thread(target=be_client)
    thread.start()
    tls = SSL.Connection(tls_side.server, None)
    tls.set_accept_state()
    while True:
        try:
            tls.do_handshake()
            finished = True
        except SSL.WantReadError:
            finished = False
        with contextlib.suppress(SSL.WantReadError):
            server_side.sendall(tls.bio_read(65536))
        if finished:
            break
        tls.bio_write(server_side.recv(65536))
    running.add(server_side, tls)
    thread.join(20)
    assert answers == [b"with the handshake"]


def test_close_sends_everything_and_a_close_notify(running: RunningPump, tls_side: TlsSide) -> None:
    length = 4 << 20
    with tls_side.connect(running) as client:
        client.sendall(b"H" + struct.pack("<I", length))
        assert receive_exactly(client, 1) == huge_pattern(1)
        client.sendall(b"C")
        assert receive_exactly(client, length) == huge_pattern(length)[1:] + b"C"
        # Without a close_notify this would raise ssl.SSLEOFError.
        assert client.recv(1) == b""
    assert running.expect(CLOSED).body[4] == 3


def test_close_notify_of_the_peer_is_its_end(running: RunningPump, tls_side: TlsSide) -> None:
    client = tls_side.connect(running)
    client.sendall(b"hello")
    assert receive_exactly(client, 5) == b"hello"
    client.unwrap().close()
    assert running.expect(CLOSED).body[4] == 0


def test_end_without_close_notify(running: RunningPump, tls_side: TlsSide) -> None:
    client = tls_side.connect(running)
    client.sendall(b"hello")
    assert receive_exactly(client, 5) == b"hello"
    client.close()
    assert running.expect(CLOSED).body[4] == 0


def test_forged_record_ends_only_its_own_connection(
    running: RunningPump, tls_side: TlsSide
) -> None:
    with tls_side.connect(running) as other:
        forger = tls_side.connect(running)
        with socket.socket(fileno=forger.detach()) as plain:
            plain.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
            assert running.expect(CLOSED).body[4] == 1
        other.sendall(b"untouched")
        assert receive_exactly(other, 9) == b"untouched"


def test_pause_and_resume(running: RunningPump, tls_side: TlsSide) -> None:
    with tls_side.connect(running) as client:
        client.sendall(b"P")
        assert receive_exactly(client, 1) == b"P"
        client.sendall(b"held back")
        with tls_side.connect(running) as other:
            other.sendall(b"another")
            assert receive_exactly(other, 7) == b"another"
        running.expect(CLOSED)
        running.pump.command(b"R" + struct.pack("<I", 0))
        assert receive_exactly(client, 9) == b"held back"


def test_stop_says_goodbye(start_pump: PumpFactory, tls_side: TlsSide) -> None:
    running = start_pump()
    with tls_side.connect(running) as client:
        running.pump.stop()
        assert client.recv(1) == b""
    running.join()


def test_refused_session_still_belongs_to_python(running: RunningPump, tls_side: TlsSide) -> None:
    running.pump.stop()
    running.join()
    client, server_side, tls = tls_side.pair()
    with client, server_side:
        with pytest.raises(UnavailableError, match="stopped"):
            running.pump.add(
                server_side.fileno(), transport=Transport.MQTT, allow_anonymous=True, tls=tls
            )
        assert tls.get_protocol_version_name() == client.version()


def test_large_buffers_are_given_back_when_idle(start_pump: PumpFactory, tls_side: TlsSide) -> None:
    """After much traffic and a quiet second the session works on with fresh memory BIOs."""
    running = start_pump()
    message = bytes(range(128, 256)) * 512
    with tls_side.connect(running) as client:
        for renewed in range(2):
            client.sendall(message)
            assert receive_exactly(client, len(message)) == message
            waiting = threading.Event()
            while running.pump.stats()["pump_tls_buffers_renewed"] == renewed:
                assert not waiting.wait(0.05)
        client.sendall(b"small")
        assert receive_exactly(client, 5) == b"small"
