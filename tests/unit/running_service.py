"""A service around a pump that only pretends, in a thread of its own."""

from __future__ import annotations

import hashlib
import io
import json
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from avow.broker import service as service_module
from avow.broker.commands import CommandKind
from avow.broker.config import Configuration, Listener, Log
from avow.broker.logs import make_log
from avow.broker.prepared import LoadJudge, prepare
from avow.broker.service import Control, Controls, Service
from avow.channel.attestation import ServerAttestation
from avow.errors import AvowError
from avow.sandbox.engine import LoadedCore

PATIENCE_S = 20.0
JOURNAL = b"journal so far"


def event(kind: int, body: bytes) -> bytes:
    """An event of the core."""
    return struct.pack("<IB3x", 8 + len(body), kind) + body


def string(text: str) -> bytes:
    """A string of an event."""
    return struct.pack("<I", len(text.encode())) + text.encode()


def connected(connection: int, client: str) -> bytes:
    """CONNECTED."""
    return event(2, struct.pack("<IBBH", connection, 5, 0, 60) + string(client) + string("alice"))


def disconnected(connection: int, client: str, *, by: int = 0, flags: int = 1) -> bytes:
    """DISCONNECTED."""
    head = struct.pack("<IBBBxI", connection, 0x87, by, flags, 0)
    return event(3, head + string(client) + string("alice") + string("a reason"))


DRAINED = event(5, b"")


class FakePump:
    """Takes everything over and reports what the test says."""

    def __init__(self, core: object, **settings: Any) -> None:
        self.settings = settings
        self.batches: queue.SimpleQueue[bytes | AvowError | None] = queue.SimpleQueue()
        self.commands: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.added: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self.numbers = iter(range(1000))
        self.drains = True
        self.closed = False

    def run(self) -> bytes | None:
        batch = self.batches.get()
        if isinstance(batch, AvowError):
            raise batch
        return batch

    def command(self, blob: bytes) -> None:
        self.commands.put(blob)
        if blob[0] == CommandKind.DRAIN and self.drains:
            self.batches.put(DRAINED)

    def add(self, fd: int, **settings: Any) -> int:
        self.added.put((fd, settings))
        return next(self.numbers)

    def stop(self) -> None:
        self.batches.put(None)

    def stats(self) -> dict[str, int]:
        return {"clients_connected": 2}

    def journal_snapshot(self) -> bytes:
        return JOURNAL

    def close(self) -> None:
        self.closed = True


class FakeCore:
    sha256 = hashlib.sha256(b"core").digest()


class Running:
    """A service in a thread of its own, and ways to see what it does."""

    def __init__(
        self,
        reread: Callable[[], Configuration],
        *,
        load_judge: LoadJudge | None = None,
        attest: Callable[[bytes], ServerAttestation] | None = None,
    ) -> None:
        """`attest` makes the attestation from the configuration's digest."""
        prepared = prepare(reread(), datetime.now(UTC), load_judge=load_judge)
        self.controls: Controls = queue.SimpleQueue()
        self.stream = io.StringIO()
        self.written = threading.Condition()
        self.service = Service(
            prepared,
            cast(LoadedCore, FakeCore()),
            reread=reread,
            controls=self.controls,
            log=make_log(Log(level="debug"), self),  # type: ignore[arg-type]
            attestation=None if attest is None else attest(prepared.digest),
            load_judge=load_judge,
        )
        self.pump = cast(FakePump, self.service._pump)
        self.failure: AvowError | None = None
        self.thread = threading.Thread(target=self._serve)

    def write(self, text: str) -> None:
        with self.written:
            self.stream.write(text)
            self.written.notify_all()

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def _serve(self) -> None:
        try:
            self.service.serve()
        except AvowError as error:
            self.failure = error

    def lines(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in found if line["event"] == name]

    def line(self, name: str, count: int = 1) -> dict[str, Any]:
        with self.written:
            assert self.written.wait_for(lambda: len(self.lines(name)) >= count, PATIENCE_S)
        return self.lines(name)[count - 1]

    def connect(self) -> socket.socket:
        port = self.line("listening")["port"]
        return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)

    def ended(self) -> None:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        assert self.pump.closed


def use_fake_pump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every service of this test has a `FakePump`."""
    monkeypatch.setattr(service_module, "Pump", FakePump)


def one_listener(**keys: Any) -> Configuration:
    """A plain listener at a free port."""
    return Configuration(listeners=[Listener(url="mqtt://127.0.0.1:0")], **keys)


@contextmanager
def running(
    reread: Callable[[], Configuration] = one_listener, **settings: Any
) -> Iterator[Running]:
    """Starts one, and stops it at the end."""
    made = Running(reread, **settings)
    made.service.open()
    made.thread.start()
    try:
        yield made
    finally:
        made.controls.put(Control.STOP)
        made.ended()
