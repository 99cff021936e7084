"""`avow witness` as a process and as a service: what it keeps, and what it puts up with."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from avow.broker.logs import SOURCE_BURST
from avow.cli.exit_codes import ExitCode
from avow.errors import (
    AvowError,
    DamagedError,
    DeniedError,
    InUseError,
    RolledBackError,
    StorageError,
    UnavailableError,
)
from avow.sealing.anchor import Remembered, Step, begin_fresh, open_fresh
from avow.sealing.witness import (
    ANSWER_BYTES,
    GREETING_BYTES,
    REQUEST_BYTES,
    Kind,
    Record,
    Request,
    State,
    StoreName,
    decode_greeting,
    parse_public_key,
    public_bytes,
    sign_request,
    store_key,
)
from avow.sealing.witness_client import Endpoint, WitnessAnchor, parse_endpoint
from avow.sealing.witness_service import (
    Event,
    ServiceLimits,
    Witness,
    WitnessMemory,
    WitnessService,
    neighbourhood,
    open_state,
)
from tests.unit.sealing.anchor_world import Disk, FakeRoot, FakeStore

STORE_ID = bytes(range(16))
KEY = store_key(bytes(range(32)), STORE_ID)
NAME = StoreName(public_bytes(KEY), STORE_ID)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = public_bytes(WITNESS)
COMMAND = (sys.executable, "-m", "avow", "witness")
D1, D2 = b"\x01" * 32, b"\x02" * 32


def step(to: int) -> Step:
    return Step(to, to.to_bytes(32, "little"), bytes(32))


@dataclass
class Running:
    process: subprocess.Popen[str]
    endpoint: Endpoint
    key: bytes
    anchors: list[WitnessAnchor] = field(default_factory=list)

    def anchor(self, key: Ed25519PrivateKey = KEY) -> WitnessAnchor:
        self.anchors.append(WitnessAnchor(self.endpoint, self.key, key, STORE_ID))
        return self.anchors[-1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def start(state: Path, *options: str) -> Running:
    process = subprocess.Popen(
        [*COMMAND, "--listen", "127.0.0.1:0", "--json", "--state", str(state), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        _, error = process.communicate()
        pytest.fail(error)
    said = json.loads(line)
    assert said["event"] == "listening"
    return Running(process, parse_endpoint(said["address"]), parse_public_key(said["key"]))


@pytest.fixture
def started() -> Iterator[Callable[..., Running]]:
    all_of_them: list[Running] = []

    def remember(state: Path, *options: str) -> Running:
        all_of_them.append(start(state, *options))
        return all_of_them[-1]

    yield remember
    for running in all_of_them:
        for anchor in running.anchors:
            anchor.close()
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


def test_remembers_over_every_end(tmp_path: Path, started: Callable[..., Running]) -> None:
    """Of SIGTERM and of SIGKILL; the key stays the same, and so does a store that goes on."""
    disk = Disk()
    state = tmp_path / "witness"
    running = started(state)
    first_key = running.key
    fresh = begin_fresh(FakeStore(disk), running.anchor())
    fresh.close()
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        assert running.stop(number) == (0 if number != signal.SIGKILL else -number)
        running = started(state)
        assert running.key == first_key
        open_fresh(FakeStore(disk), running.anchor()).close()
        with pytest.raises(RolledBackError):
            open_fresh(FakeStore(disk, root=disk.roots[-2]), running.anchor())
    assert (state.stat().st_mode & 0o777, (state / "witness.key").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def test_goes_on_with_a_witness_that_was_restarted(
    tmp_path: Path, started: Callable[..., Running]
) -> None:
    """The store's connection is gone, and it does not mind."""
    running = started(tmp_path / "witness")
    anchor = running.anchor()
    anchor.advance(step(1), FakeRoot(2, D1, 1))
    running.stop()
    with pytest.raises(UnavailableError, match="runs there and can be reached"):
        anchor.advance(step(2), FakeRoot(3, D2, 2))
    again = started(tmp_path / "witness", "--listen", str(running.endpoint))
    assert again.endpoint == running.endpoint
    anchor.advance(step(2), FakeRoot(3, D2, 2))


def test_refuses_new_stores_where_told_so(tmp_path: Path, started: Callable[..., Running]) -> None:
    running = started(tmp_path / "witness")
    running.anchor().advance(step(1), FakeRoot(2, D1, 1))
    running.stop()
    running = started(tmp_path / "witness", "--known-only")
    running.anchor().advance(step(2), FakeRoot(3, D2, 2))
    with pytest.raises(UnavailableError, match="--known-only"):
        running.anchor(store_key(D1, STORE_ID)).advance(step(1), FakeRoot(2, D1, 1))


def test_one_at_a_time(tmp_path: Path, started: Callable[..., Running]) -> None:
    started(tmp_path / "witness")
    other = subprocess.run(
        [*COMMAND, "--state", str(tmp_path / "witness")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert other.returncode == ExitCode.IN_USE
    assert "got one that another process has open" in other.stderr
    assert other.stderr.count("\n") == 1


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*COMMAND, "--listen", f"127.0.0.1:{port}", "--state", str(tmp_path / "witness")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert result.returncode == ExitCode.FAILED
    assert "choose another address" in result.stderr


def test_what_an_operator_sees(tmp_path: Path, started: Callable[..., Running]) -> None:
    running = started(tmp_path / "witness")
    anchor = running.anchor()
    anchor.advance(step(1), FakeRoot(5, D1, 1))
    anchor.accept(step(2), FakeRoot(2, D2, 2))
    with pytest.raises(RolledBackError):
        anchor.advance(step(1), FakeRoot(1, D1, 1))
    running.process.send_signal(signal.SIGTERM)
    output, errors = running.process.communicate(timeout=20)
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["event"] for event in events] == [
        "new store",
        "rollback accepted",
        "refused (stale)",
    ]
    assert {event["store"] for event in events} == {STORE_ID.hex()}
    assert errors == ""


def noise(endpoint: Endpoint, count: int) -> None:
    """So many strangers, each with a request that is none."""
    for _ in range(count):
        with socket.create_connection((endpoint.host, endpoint.port), 20) as stranger:
            stranger.sendall(b"\1" * REQUEST_BYTES)
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(65536):
                    pass


def test_who_does_not_read_what_it_says_holds_no_store_up(
    tmp_path: Path, started: Callable[..., Running]
) -> None:
    """Nor its end. The pipe is full after some lines."""
    running = started(tmp_path / "witness")
    assert running.process.stdout is not None
    fcntl.fcntl(running.process.stdout, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    noise(running.endpoint, 80)
    running.anchor().advance(step(1), FakeRoot(2, D1, 1))
    assert running.stop() == 0


def test_strangers_do_not_fill_what_it_says(
    tmp_path: Path, started: Callable[..., Running]
) -> None:
    running = started(tmp_path / "witness")
    noise(running.endpoint, SOURCE_BURST + 30)
    running.process.send_signal(signal.SIGTERM)
    output, _ = running.process.communicate(timeout=20)
    events = [json.loads(line) for line in output.splitlines()]
    refused = [event for event in events if event["event"] == "request refused"]
    assert SOURCE_BURST <= len(refused) < SOURCE_BURST + 30
    assert "127.0.0.1" in refused[0]["reason"]
    left_out = [event for event in events if event["event"] == "lines left out"]
    assert {event["of"] for event in left_out} == {"request refused"}
    assert len(refused) + sum(event["count"] for event in left_out) == SOURCE_BURST + 30


def test_memory(tmp_path: Path) -> None:
    path = tmp_path / "witness.db"
    largest = Record(State(2**64 - 1, 2**64 - 1, D2, D1), 7)
    memory = WitnessMemory(path)
    assert memory.load(NAME.key) is None
    memory.keep(NAME, Record(State(1, 1, D1, D1)))
    memory.keep(NAME, largest)
    assert (memory.load(NAME.key), len(memory)) == (largest, 1)
    with pytest.raises(InUseError):
        WitnessMemory(path)
    memory.close()
    memory = WitnessMemory(path)
    assert memory.load(NAME.key) == largest
    memory.close()


def test_memory_is_on_the_disk_before_it_is_told(tmp_path: Path) -> None:
    """SQLite's own word for it: a commit is synced, and there is no other."""
    memory = WitnessMemory(tmp_path / "witness.db")
    (level,) = memory._database.execute("PRAGMA synchronous").fetchone()
    (mode,) = memory._database.execute("PRAGMA journal_mode").fetchone()
    assert (level, mode) == (2, "truncate")
    memory.keep(NAME, Record(State(1, 1, D1, D1)))
    assert not memory._database.in_transaction
    memory.close()


def test_memory_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "none.db").write_bytes(b"something else" * 1000)
    with pytest.raises(DamagedError):
        WitnessMemory(tmp_path / "none.db")
    path = tmp_path / "witness.db"
    memory = WitnessMemory(path)
    memory.keep(NAME, Record(State(1, 1, D1, D1)))
    memory.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE stores SET record = x'00'")
    database.close()
    memory = WitnessMemory(path)
    with pytest.raises(DamagedError, match="expected 88 bytes for the store"):
        memory.load(NAME.key)
    memory.close()
    with pytest.raises(StorageError):
        WitnessMemory(tmp_path / "no folder" / "witness.db")


def test_damage_never_turns_it_back(tmp_path: Path) -> None:
    """Whichever bit of its files flips after a kill: what it told a store, it does not take back.
    A state that nobody ever had is none that a host could put a store back to."""
    memory, _ = open_state(tmp_path)
    states = [State(n, n, bytes([n]) * 32, bytes([n + 100]) * 32) for n in range(1, 9)]
    for state in states:
        memory.keep(NAME, Record(state))
    held = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    memory.close()
    found = 0
    for name in sorted(held):
        for at in range(3, len(held[name]), 61):
            folder = tmp_path / "damaged"
            folder.mkdir()
            for each, content in held.items():
                (folder / each).write_bytes(content)
            changed = bytearray(held[name])
            changed[at] ^= 1 << at % 8
            (folder / name).write_bytes(changed)
            (folder / "witness.key").chmod(0o600)
            with contextlib.suppress(AvowError):
                damaged, _ = open_state(folder)
                with contextlib.closing(damaged):
                    record = damaged.load(NAME.key)
                    assert record is None or record.state not in states[:-1], (name, at)
                    found += record is not None and record.state == states[-1]
            shutil.rmtree(folder)
    assert found > 10


def test_a_witness_that_lost_half(tmp_path: Path) -> None:
    memory, key = open_state(tmp_path)
    memory.keep(NAME, Record(State(1, 1, D1, D1)))
    memory.close()
    memory, again = open_state(tmp_path)
    assert public_bytes(again) == public_bytes(key)
    memory.close()
    (tmp_path / "witness.key").rename(tmp_path / "kept")
    with pytest.raises(UnavailableError, match=r"expected the key witness\.key"):
        open_state(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "witness.key")
    (tmp_path / "witness.key").chmod(0o644)
    with pytest.raises(DeniedError, match="chmod 600"):
        open_state(tmp_path)
    (tmp_path / "witness.key").chmod(0o600)
    (tmp_path / "witness.db").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="this witness has lost what it knew"):
            open_state(tmp_path)
    (tmp_path / "witness.db").unlink()
    with pytest.raises(UnavailableError, match="this witness has lost what it knew"):
        open_state(tmp_path)


class Visitor:
    """Somebody who connects to a service in this process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        return reader

    async def greeted(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        reader = await self.connect()
        greeting = await reader.readexactly(GREETING_BYTES)
        return reader, self._writers[-1], decode_greeting(greeting)

    def anchor(self, key: Ed25519PrivateKey = KEY) -> WitnessAnchor:
        endpoint = Endpoint("127.0.0.1", self._port)
        return WitnessAnchor(endpoint, public_bytes(WITNESS), key, STORE_ID)

    async def leave(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(
            *(writer.wait_closed() for writer in self._writers), return_exceptions=True
        )


def serve(
    memory: WitnessMemory,
    limits: ServiceLimits,
    visit: Callable[[Visitor], Awaitable[None]],
) -> list[Event]:
    """Runs `visit` against a service in this process."""
    events: list[Event] = []
    witness = Witness(memory, WITNESS, note=events.append)
    service = WitnessService(witness, limits, note=events.append)

    async def run() -> None:
        stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            service.serve("127.0.0.1", 0, ready=port.set_result, stop=stop)
        )
        visitor = Visitor(await port)
        try:
            await asyncio.wait_for(visit(visitor), 20)
        finally:
            await visitor.leave()
            stop.set()
            await serving

    asyncio.run(run())
    return events


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[WitnessMemory]:
    opened = WitnessMemory(tmp_path / "witness.db")
    yield opened
    opened.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    """True when the witness ends the connection without another byte."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


def test_strangers(memory: WitnessMemory) -> None:
    """Noise, half a request, and a request for another connection: no answer, and it goes on."""

    async def visit(visitor: Visitor) -> None:
        reader, writer, _ = await visitor.greeted()
        writer.write(os.urandom(REQUEST_BYTES))
        assert await ended(reader)
        _, writer, _ = await visitor.greeted()
        writer.write(b"\0" * (REQUEST_BYTES - 1))
        writer.close()
        _, _, challenge = await visitor.greeted()
        reader, writer, _ = await visitor.greeted()
        request = Request(Kind.READ, 1, bytes(32), NAME)
        writer.write(sign_request(request, KEY, challenge, public_bytes(WITNESS)))
        assert await ended(reader)
        anchor = visitor.anchor()
        await asyncio.to_thread(anchor.advance, step(1), FakeRoot(2, D1, 1))
        assert await asyncio.to_thread(anchor.read) == Remembered(1, step(1).branch, 2, D1)
        anchor.close()

    events = serve(memory, ServiceLimits(), visit)
    assert [event.what for event in events] == ["request refused", "request refused", "new store"]


def test_who_is_slow_is_let_go(memory: WitnessMemory) -> None:
    """Before the first request, and within one."""

    async def visit(visitor: Visitor) -> None:
        reader, _, _ = await visitor.greeted()
        assert await ended(reader)
        reader, writer, _ = await visitor.greeted()
        writer.write(b"\x01")
        assert await ended(reader)

    serve(memory, ServiceLimits(message_timeout_s=0.05), visit)


def test_no_more_connections_than_there_may_be(memory: WitnessMemory) -> None:
    """Whoever has been silent for longest goes for who comes."""

    async def visit(visitor: Visitor) -> None:
        first, _, _ = await visitor.greeted()
        second, _, _ = await visitor.greeted()
        await visitor.greeted()
        assert await ended(first)
        await visitor.greeted()
        assert await ended(second)

    events = serve(memory, ServiceLimits(connections_max=2), visit)
    assert [event.what for event in events] == ["strangers let go"]


def test_silent_strangers_keep_no_store_from_starting(memory: WitnessMemory) -> None:
    """However many there are, and however fast they come again."""

    async def visit(visitor: Visitor) -> None:
        going_on = True

        async def flood() -> None:
            while going_on:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", visitor._port)
                    await reader.readexactly(GREETING_BYTES)
                    visitor._writers.append(writer)

        floods = [asyncio.create_task(flood()) for _ in range(4)]
        try:
            for number in range(20):
                anchor = visitor.anchor(store_key(bytes([number]) * 32, STORE_ID))
                await asyncio.to_thread(anchor.advance, step(1), FakeRoot(2, D1, 1))
                anchor.close()
        finally:
            going_on = False
            await asyncio.gather(*floods)

    events = serve(memory, ServiceLimits(connections_max=32), visit)
    whats = [event.what for event in events]
    assert whats.count("new store") == 20
    assert whats.count("strangers let go") <= 3


@pytest.mark.parametrize(
    ("peer", "whose"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        (None, ""),
    ],
)
def test_whose_a_connection_may_be(peer: object, whose: str) -> None:
    assert neighbourhood(peer) == whose


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_the_memory_is_its_owners_alone(tmp_path: Path, mask: int) -> None:
    """Whatever the umask is, and whatever the file was; SQLite's journal too."""
    folder = tmp_path / "state"
    before = os.umask(mask)
    try:
        if mask == 0o777:
            folder.mkdir()
            folder.chmod(0o755)
            (folder / "witness.db").touch()
            (folder / "witness.db").chmod(0o666)
        memory, _ = open_state(folder)
        memory.keep(NAME, Record(State(1, 1, D1, D1)))
        modes = {each.name: each.stat().st_mode & 0o777 for each in folder.iterdir()}
        memory.close()
    finally:
        os.umask(before)
    assert modes.keys() == {"witness.db", "witness.db-journal", "witness.key"}
    assert set(modes.values()) == {0o600}


def test_more_stores_than_connections(memory: WitnessMemory) -> None:
    """Each gets its turn: a connection that is idle gives way, and its store comes back on
    another. Strangers end no store's connection."""

    async def visit(visitor: Visitor) -> None:
        anchors = [visitor.anchor(store_key(bytes([n]) * 32, STORE_ID)) for n in range(4)]
        for number in range(1, 4):
            for each in anchors:
                root = FakeRoot(number + 1, D1, number)
                await asyncio.to_thread(each.advance, step(number), root)
        kept = anchors[-1]._connection
        for _ in range(4):
            await visitor.connect()
        await asyncio.to_thread(anchors[-1].advance, step(4), FakeRoot(5, D2, 4))
        assert kept is not None
        assert anchors[-1]._connection is kept
        for each in anchors:
            each.close()

    events = serve(memory, ServiceLimits(connections_max=2), visit)
    assert {event.what for event in events} == {"new store", "strangers let go"}


def test_who_is_busy_is_not_let_go(memory: WitnessMemory) -> None:
    """In the middle of a request, of which nobody can be robbed; nor does the number grow."""

    async def visit(visitor: Visitor) -> None:
        first = visitor.anchor()
        await asyncio.to_thread(first.advance, step(1), FakeRoot(2, D1, 1))
        reader, writer, challenge = await visitor.greeted()
        content = [
            sign_request(Request(Kind.READ, n, bytes(32), NAME), KEY, challenge, PUBLIC)
            for n in (1, 2)
        ]
        # The first of the two is let go for this one, which has begun another request by then.
        writer.write(content[0] + content[1][:1])
        await reader.readexactly(ANSWER_BYTES)
        late, one, other = await visitor.greeted()
        one.write(sign_request(Request(Kind.READ, 1, bytes(32), NAME), KEY, other, PUBLIC))
        await late.readexactly(ANSWER_BYTES)
        assert await ended(late)
        writer.write(content[1][1:])
        await reader.readexactly(ANSWER_BYTES)
        first.close()

    serve(memory, ServiceLimits(connections_max=1), visit)


def test_a_stranger_cannot_stay(memory: WitnessMemory) -> None:
    """Whoever asks with a key of his own, for a store that is not remembered."""

    async def visit(visitor: Visitor) -> None:
        reader, writer, challenge = await visitor.greeted()
        request = Request(Kind.READ, 1, bytes(32), NAME)
        writer.write(sign_request(request, KEY, challenge, public_bytes(WITNESS)))
        await reader.readexactly(ANSWER_BYTES)
        assert await ended(reader)

    serve(memory, ServiceLimits(message_timeout_s=0.2), visit)


def test_many_requests_at_once_on_one_connection(memory: WitnessMemory) -> None:
    """Answered in their order."""

    async def visit(visitor: Visitor) -> None:
        reader, writer, challenge = await visitor.greeted()
        for number in range(1, 51):
            request = Request(Kind.READ, number, bytes(32), NAME)
            writer.write(sign_request(request, KEY, challenge, public_bytes(WITNESS)))
        for number in range(1, 51):
            answer = await reader.readexactly(ANSWER_BYTES)
            assert int.from_bytes(answer[4:8], "little") == number

    serve(memory, ServiceLimits(), visit)


def test_a_memory_that_fails_ends_the_service(memory: WitnessMemory) -> None:
    """It must not answer what it cannot keep, nor look as if it were well."""
    memory.close()

    async def visit(visitor: Visitor) -> None:
        with pytest.raises(UnavailableError):
            await asyncio.to_thread(visitor.anchor().advance, step(1), FakeRoot(2, D1, 1))
        while True:
            try:
                await visitor.connect()
            except ConnectionRefusedError:
                return

    with pytest.raises(StorageError):
        serve(memory, ServiceLimits(), visit)


@pytest.mark.parametrize("drips", [False, True])
def test_a_witness_that_says_nothing(drips: bool) -> None:
    """Fails closed in time, also when it sends a byte now and then."""
    done = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            while drips and not done.wait(0.05):
                connection.sendall(b"A")
            done.wait()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        endpoint = Endpoint("127.0.0.1", listening.getsockname()[1])
        anchor = WitnessAnchor(endpoint, public_bytes(WITNESS), KEY, STORE_ID, timeout_s=0.2)
        try:
            with pytest.raises(UnavailableError, match=r"within 0\.2 s"):
                anchor.read()
        finally:
            done.set()
            thread.join()
