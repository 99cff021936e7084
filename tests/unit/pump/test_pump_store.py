"""The pump over a sealed store: nothing leaves before it is durable, and what fails is said."""

from __future__ import annotations

import errno
import functools
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from avow import artefacts
from avow.broker.journal import (
    DIRECTORY,
    FRESH_NAME,
    PATH,
    Durability,
    Journal,
    open_journal,
)
from avow.broker.pump import Pump, Transport
from avow.errors import AvowError, DamagedError, MalformedError, StorageError
from avow.sandbox import engine
from avow.sealing.store import Store
from avow.testing.core_driver import CoreDriver
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Packet,
    Puback,
    Publish,
    StreamDecoder,
    Suback,
    Subscribe,
)
from avow.testing.simulated_disk import SimulatedDisk, Sync, Write, apply

KEY = bytes(range(32))
WAIT_S = 20
SMALL = 1 << 16


class WaitingDisk(SimulatedDisk):
    """Once told to, its next sync waits until it is allowed, or fails."""

    def __init__(self, base: bytes = b"") -> None:
        super().__init__(base)
        self.hold = False
        self.failing = 0
        self.entered = threading.Event()
        self.allowed = threading.Event()

    def sync(self) -> None:
        if self.hold:
            self.entered.set()
            assert self.allowed.wait(WAIT_S)
        if self.failing:
            raise OSError(self.failing, os.strerror(self.failing))
        super().sync()


class Broker:
    """A core, a pump and a store, without the service around them."""

    def __init__(
        self,
        disk: SimulatedDisk,
        durability: Durability = Durability.COMMIT,
        *,
        commit: Callable[[Store], object] | None = None,
        interval_ms: int = 3_600_000,
        **more: int,
    ) -> None:
        self.disk = disk
        make = Store.create_on if not disk.image else None
        self.store = make(disk, [KEY]) if make is not None else Store.open_on(disk, KEY)
        own = None if commit is None else functools.partial(commit, self.store)
        self.journal: Journal = open_journal(self.store, durability, interval_ms, commit=own)
        core = engine.load(artefacts.core_path().read_bytes())
        self.pump = Pump(core, entropy=bytes(32), journal=self.journal, **more)
        self.failure: queue.Queue[AvowError | ZeroDivisionError | None] = queue.Queue()
        self.sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self.pump.run() is not None:
                pass
        except (AvowError, ZeroDivisionError) as error:
            self.failure.put(error)
        else:
            self.failure.put(None)

    def close(self) -> None:
        """Orderly, but for the store."""
        self.pump.close()
        self._thread.join(WAIT_S)
        self.store.abandon()
        for each in self.sockets:
            each.close()


class Client:
    """A client of MQTT 3.1.1. Its session stays, unless it has a keep alive."""

    def __init__(self, broker: Broker, name: str, *, keep_alive_s: int = 0) -> None:
        self._socket, theirs = socket.socketpair()
        broker.sockets.append(self._socket)
        self._socket.settimeout(WAIT_S)
        self._decoder = StreamDecoder(4)
        self._packets: list[Packet] = []
        broker.pump.add(theirs.detach(), transport=Transport.MQTT, allow_anonymous=True)
        connect = Connect(name, 4, clean_start=keep_alive_s != 0, keep_alive_s=keep_alive_s)
        self._socket.sendall(connect.encode())
        connack = self.receive()
        assert isinstance(connack, Connack)
        assert connack.code == 0
        self.present = connack.session_present

    def send(self, packet: Publish | Subscribe | Puback) -> None:
        self._socket.sendall(packet.encode(4))

    def move(self, process: socket.socket) -> None:
        """Its end of the connection is then in another process."""
        socket.send_fds(process, [b"c"], [self._socket.fileno()])
        self._socket.close()

    def send_all(self, data: bytes) -> None:
        """Bytes that are more than a socket takes at once; for a thread of its own."""
        self._socket.sendall(data)

    def receive(self) -> Packet:
        while not self._packets:
            data = self._socket.recv(1 << 16)
            assert data, "the broker closed the connection"
            self._packets = list(self._decoder.feed(data))
        return self._packets.pop(0)

    def nothing_came(self) -> bool:
        """Whether nothing has come by now."""
        self._socket.setblocking(False)
        try:
            return not self._packets and not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(WAIT_S)


@pytest.fixture
def start() -> Iterator[Callable[..., Broker]]:
    started: list[Broker] = []

    def make(
        disk: SimulatedDisk, durability: Durability = Durability.COMMIT, **more: Any
    ) -> Broker:
        started.append(Broker(disk, durability, **more))
        return started[-1]

    yield make
    for broker in started:
        broker.close()


def subscribed(broker: Broker) -> Client:
    client = Client(broker, "client")
    client.send(Subscribe(1, [Filter("a", 1)]))
    assert isinstance(client.receive(), Suback)
    return client


def test_acknowledgement_waits_for_the_disk(start: Callable[..., Broker]) -> None:
    disk = WaitingDisk()
    broker = start(disk)
    client = subscribed(broker)
    disk.hold = True
    client.send(Publish("a", b"x", 1, 7))
    assert disk.entered.wait(WAIT_S)
    assert client.nothing_came()
    disk.allowed.set()
    # Its own message comes back to it, and the acknowledgement.
    assert {type(client.receive()) for _ in range(2)} == {Puback, Publish}


# Both ends of so many connections are more descriptors than a process may have open, 1,024 on
# Debian: the clients' ends are here. Says when it is ready and when all have sent PINGREQ, then how
# many PINGRESP came.
SPEAKERS = """
import socket
import sys

test = socket.socket(fileno=0)
test.send(b"r")
clients = []
while True:
    _, given, _, _ = socket.recv_fds(test, 1, 1)
    if not given:
        break
    clients.append(socket.socket(fileno=given[0]))
for client in clients:
    client.settimeout(float(sys.argv[1]))
    client.sendall(bytes.fromhex("c000"))
test.send(b"s")
answered = sum(client.recv(2) == bytes.fromhex("d000") for client in clients)
test.send(answered.to_bytes(2, "little"))
"""


def test_clients_that_spoke_while_the_disk_was_slow_are_not_taken_for_dead(
    start: Callable[..., Broker],
) -> None:
    """More of them than the kernel reports at once."""
    disk = WaitingDisk()
    broker = start(disk)
    slow = subscribed(broker)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-c", SPEAKERS, str(WAIT_S)]
    with ours, subprocess.Popen(command, stdin=theirs.fileno()):
        theirs.close()
        ours.settimeout(WAIT_S)
        assert ours.recv(1) == b"r"
        for number in range(600):
            Client(broker, f"c{number}", keep_alive_s=2).move(ours)
        disk.hold = True
        slow.send(Publish("a", b"x", 1, 7))
        assert disk.entered.wait(WAIT_S)
        ours.send(b"s")
        assert ours.recv(1) == b"s"
        # Nothing happens until one and a half times their keep alive is over.
        assert not disk.allowed.wait(3.1)
        disk.allowed.set()
        assert int.from_bytes(ours.recv(2), "little") == 600


@pytest.mark.parametrize("durability", [Durability.INTERVAL, Durability.NONE])
def test_without_it_an_acknowledgement_does_not_wait(
    start: Callable[..., Broker], durability: Durability
) -> None:
    disk = WaitingDisk()
    broker = start(disk, durability)
    client = subscribed(broker)
    syncs = len(disk.log)
    client.send(Publish("a", b"x", 1, 7))
    assert {type(client.receive()) for _ in range(2)} == {Puback, Publish}
    assert len(disk.log) == syncs


def test_interval_commits_by_itself(start: Callable[..., Broker]) -> None:
    disk = WaitingDisk()
    broker = start(disk, Durability.INTERVAL, interval_ms=20)
    disk.hold = True
    disk.allowed.set()
    subscribed(broker)
    assert disk.entered.wait(WAIT_S)
    broker.pump.stop()
    assert broker.failure.get(timeout=WAIT_S) is None
    assert broker.store.root.sequence > 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_failing_disk_stops_the_pump(start: Callable[..., Broker], code: int) -> None:
    disk = WaitingDisk()
    broker = start(disk)
    client = subscribed(broker)
    disk.failing = code
    client.send(Publish("a", b"x", 1, 7))
    assert isinstance(broker.failure.get(timeout=WAIT_S), StorageError)
    assert client.nothing_came()
    # And it stays so, with the same words.
    with pytest.raises(StorageError):
        broker.pump.run()


def test_commit_can_be_more_than_the_stores(start: Callable[..., Broker]) -> None:
    """An anchor that refuses stops the pump with its own error, before anything leaves."""
    refusing = threading.Event()

    def commit(store: Store) -> None:
        if refusing.is_set():
            raise MalformedError("the anchor said no")
        store.commit()

    broker = start(SimulatedDisk(), commit=commit)
    client = subscribed(broker)
    refusing.set()
    client.send(Publish("a", b"x", 1, 7))
    failure = broker.failure.get(timeout=WAIT_S)
    assert isinstance(failure, MalformedError)
    assert "the anchor said no" in str(failure)
    assert client.nothing_came()


def test_commit_that_dies_of_a_bug_acknowledges_nothing(start: Callable[..., Broker]) -> None:
    """An exception cannot cross the pump's frames; what it leaves must not read as success."""
    buggy = threading.Event()

    def commit(store: Store) -> None:
        if buggy.is_set():
            raise ZeroDivisionError("a bug")
        store.commit()

    broker = start(SimulatedDisk(), commit=commit)
    client = subscribed(broker)
    buggy.set()
    client.send(Publish("a", b"x", 1, 7))
    assert isinstance(broker.failure.get(timeout=WAIT_S), ZeroDivisionError)
    assert client.nothing_came()


def test_compaction_leaves_one_small_journal(start: Callable[..., Broker]) -> None:
    disk = SimulatedDisk()
    broker = start(disk, compaction_min_bytes=SMALL)
    client = subscribed(broker)
    for number in range(1, 200):
        client.send(Publish("a", bytes(1000), 1, number))
        for _ in range(2):
            packet = client.receive()
            if isinstance(packet, Publish):
                assert packet.packet_id is not None
                client.send(Puback(packet.packet_id))
    stats = broker.pump.stats()
    assert stats["pump_journal_compactions"] >= 1
    assert [entry.name for entry in broker.store.listdir(DIRECTORY)] == ["records-1"]
    assert broker.store.stat(PATH).size_bytes < 2 * SMALL
    broker.close()
    again = start(SimulatedDisk(bytes(disk.image)))
    assert Client(again, "client").present


def test_journal_does_not_grow_from_restart_to_restart(start: Callable[..., Broker]) -> None:
    """Each life of a broker may add less than what it would compact by itself."""
    disk = SimulatedDisk()
    for _ in range(4):
        broker = start(disk, compaction_min_bytes=SMALL)
        client = Client(broker, "client")
        for number in range(1, 41):
            client.send(Publish("a", bytes(1000), 1, number, retain=True))
            assert isinstance(client.receive(), Puback)
        size_bytes = broker.store.stat(PATH).size_bytes
        broker.close()
        disk = SimulatedDisk(bytes(disk.image))
    assert size_bytes < 2 * SMALL


class AskingDisk(SimulatedDisk):
    """Notes with each sync what was known outside when it began."""

    def __init__(self) -> None:
        super().__init__()
        self.ask: Callable[[], int] = int
        self.known: list[int] = []

    def sync(self) -> None:
        self.known.append(self.ask())
        super().sync()


def retaining(broker: Broker, values: int, size: int) -> Client:
    """A client of a broker with that many retained values."""
    client = Client(broker, "client")
    for number in range(values):
        client.send(Publish(f"r/{number}", bytes(size), 1, 1 + number, retain=True))
        assert isinstance(client.receive(), Puback)
    return client


def test_broker_goes_on_while_it_compacts(start: Callable[..., Broker]) -> None:
    """Nothing is acknowledged during a sync: none has all of the snapshot to make durable."""
    disk = SimulatedDisk()
    broker = start(disk, compaction_min_bytes=17 << 20)
    client = retaining(broker, 64, 250_000)
    before = len(disk.log)
    number = 0
    while not broker.pump.stats()["pump_journal_compactions"]:
        number += 1
        client.send(Publish("r/0", bytes(250_000 if number < 20 else 10), 1, 9, retain=True))
        assert isinstance(client.receive(), Puback)
    waiting = largest = 0
    for event in disk.log[before:]:
        if isinstance(event, Write):
            waiting += len(event.data)
        elif isinstance(event, Sync):
            largest, waiting = max(largest, waiting), 0
    assert largest < 6 << 20
    assert broker.store.stat(PATH).size_bytes > 15_000_000


def test_crash_at_any_time_of_a_compaction_loses_nothing(start: Callable[..., Broker]) -> None:
    disk = AskingDisk()
    broker = start(disk, compaction_min_bytes=3 << 20)
    client = retaining(broker, 16, 160_000)
    acknowledged, begun = 0, len(disk.known)
    disk.ask = lambda: acknowledged
    burst = b"".join(
        Publish(f"s/{number}", bytes(30_000), 1, 1 + number, retain=True).encode(4)
        for number in range(60)
    )
    sending = threading.Thread(target=client.send_all, args=(burst,), daemon=True)
    sending.start()
    while acknowledged < 60:
        assert isinstance(client.receive(), Puback)
        acknowledged += 1
    sending.join(WAIT_S)
    assert broker.pump.stats()["pump_journal_compactions"] == 1
    image, syncs, halves = bytearray(), 0, 0
    for event in disk.log:
        apply(image, event)
        if not isinstance(event, Sync):
            continue
        syncs += 1
        if syncs <= begun or syncs % 3:
            continue
        with Store.open_on(SimulatedDisk(bytes(image)), KEY, read_only=True) as store:
            halves += store.exists(f"{DIRECTORY}/{FRESH_NAME}")
            core = CoreDriver(journal=[store.read(PATH)])
            assert core.counters()["retained"] >= 16 + disk.known[syncs - 1]
    assert halves >= 2


def test_half_a_compaction_is_removed() -> None:
    disk = SimulatedDisk()
    store = Store.create_on(disk, [KEY])
    open_journal(store, Durability.COMMIT, 1)
    store.make_file(f"{DIRECTORY}/{FRESH_NAME}")
    store.close()
    with Store.open_on(SimulatedDisk(bytes(disk.image)), KEY) as store:
        open_journal(store, Durability.COMMIT, 1)
        assert [entry.name for entry in store.listdir(DIRECTORY)] == ["records-1"]


def test_damage_names_file_and_record(start: Callable[..., Broker]) -> None:
    disk = SimulatedDisk()
    broker = start(disk)
    client = subscribed(broker)
    for number in range(1, 400):
        client.send(Publish("b", bytes(64), 1, number, retain=True))
        assert isinstance(client.receive(), Puback)
    broker.close()
    image = bytes(disk.image)
    sound = Store.open_on(SimulatedDisk(image), KEY)
    length = len(sound.read(PATH))
    sound.abandon()
    assert length > 3 * 4096
    damaged = [
        image[: slot * 4096]
        + bytes(1 ^ byte for byte in image[slot * 4096 :][:1])
        + image[slot * 4096 + 1 :]
        for slot in range(4, len(image) // 4096)
    ]
    hit = [other for other in damaged if _opens(other) and not _reads(other)]
    assert len(hit) >= 3
    for other in (hit[0], hit[-1]):
        with pytest.raises(DamagedError, match=f"{PATH}.* record"):
            start(SimulatedDisk(other))


def _opens(image: bytes) -> bool:
    try:
        with Store.open_on(SimulatedDisk(image), KEY, read_only=True) as store:
            store.stat(PATH)
    except DamagedError:
        return False
    return True


def _reads(image: bytes) -> bool:
    with Store.open_on(SimulatedDisk(image), KEY, read_only=True) as store:
        try:
            store.read(PATH)
        except DamagedError:
            return False
    return True


def test_foreign_records_are_refused() -> None:
    disk = SimulatedDisk()
    with Store.create_on(disk, [KEY]) as store:
        open_journal(store, Durability.COMMIT, 1)
        store.write(PATH, b"\xff\0\0\0\0")
    with pytest.raises(MalformedError, match="records of version 1"):
        Broker(SimulatedDisk(bytes(disk.image)))
