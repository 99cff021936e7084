"""Guessing from many addresses at once does not keep a user waiting."""

from __future__ import annotations

import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from avow.broker.users import add_user, new_user
from avow.testing.mqtt import Connack, Connect, Packet, StreamDecoder
from tests.integration.service_process import PATIENCE_S, service, write

ADDRESSES = 500
LOGINS = 5
LOGIN_MAX_S = 1.0
GUESS = Connect(client_id="guess", username="alice", password=b"wrong").encode()
LOGIN = Connect(client_id="alice", username="alice", password=b"correct horse").encode()


class Flood:
    """One login at a time from each address: a wrong password, again as soon as it is refused."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._stopping = threading.Event()
        self.waiting = 0
        self.refused = 0
        self.all_sent = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        for number in range(ADDRESSES):
            self._guess(f"127.7.{number // 250}.{number % 250 + 1}")
        self.all_sent.set()
        while not self._stopping.is_set():
            for key, _ in self._selector.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                with suppress(OSError):
                    sock.recv(100)
                self._selector.unregister(sock)
                sock.close()
                self.refused += 1
                self.waiting -= 1
                self._guess(key.data)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _guess(self, address: str) -> None:
        sock = socket.create_connection(
            ("127.0.0.1", self._port), PATIENCE_S, source_address=(address, 0)
        )
        sock.sendall(GUESS)
        self._selector.register(sock, selectors.EVENT_READ, address)
        self.waiting += 1


def login_s(port: int, address: str) -> float:
    """How long a user's login takes, in seconds."""
    started_s = time.monotonic()
    with socket.create_connection(
        ("127.0.0.1", port), PATIENCE_S, source_address=(address, 0)
    ) as sock:
        sock.sendall(LOGIN)
        decoder = StreamDecoder(5)
        packets: list[Packet] = []
        while not packets:
            content = sock.recv(1000)
            assert content, "the broker closed the connection"
            packets = decoder.feed(content)
    (answer,) = packets
    assert isinstance(answer, Connack)
    assert answer.code == 0
    return time.monotonic() - started_s


def test_a_login_among_500_addresses_that_guess_takes_less_than_a_second(tmp_path: Path) -> None:
    add_user(tmp_path / "users", new_user("alice", "correct horse"))
    config = write(
        tmp_path / "avow.toml",
        """
password_file = "users"
[login]
failure_delay_s = 0.0
failure_delay_max_s = 0.0
[[listeners]]
url = "mqtt://127.0.0.1:0"
""",
    )
    with service("--config", str(config)) as running:
        flood = Flood(running.port())
        with flood.running():
            assert flood.all_sent.wait(PATIENCE_S)
            # Nearly all of them wait for their first check, and are as new as the user is.
            times_s = []
            for number in range(LOGINS):
                times_s.append(login_s(running.port(), f"127.9.0.{number + 1}"))
                assert flood.waiting > ADDRESSES - 10
            assert flood.refused > 0
        assert statistics.median(times_s) < LOGIN_MAX_S, times_s
