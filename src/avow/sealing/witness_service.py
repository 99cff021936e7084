"""The witness's side: what it remembers, durable, and the service that is asked for it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from avow.errors import (
    AvowError,
    DamagedError,
    InUseError,
    StorageError,
    UnavailableError,
)
from avow.sealing.keys import read_key_file, write_key_file
from avow.sealing.witness import (
    CHALLENGE_BYTES,
    REQUEST_BYTES,
    Answer,
    Kind,
    Record,
    State,
    Status,
    StoreName,
    decide,
    encode_greeting,
    open_request,
    public_bytes,
    sign_answer,
)

KEY_NAME: Final = "witness.key"
STATE_NAME: Final = "witness.db"
_FILE_MODE: Final = 0o600
STORES_MAX: Final = 10_000
CONNECTIONS_MAX: Final = 256
# One message, once it has begun; and until the next one of who has no store here yet.
MESSAGE_TIMEOUT_S: Final = 5.0
# Stores keep their connections from one advance to the next.
IDLE_TIMEOUT_S: Final = 3600.0
# Strangers of one address beyond this part of all are the first to go.
_SHARE: Final = 8
# Addresses that stores have come from, which go last.
_HOSTS_KNOWN_MAX: Final = 4096
# One line about strangers in so many seconds.
_NOTE_EVERY_S: Final = 10.0

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS stores "
    "(key BLOB PRIMARY KEY, id BLOB NOT NULL, record BLOB NOT NULL) WITHOUT ROWID"
)
_TABLES: Final = "SELECT name FROM sqlite_master WHERE name = 'stores'"
# sequence, anchor, digest, branch, acceptances.
_RECORD: Final = struct.Struct("<Q Q 32s 32s Q")


class WitnessMemory:
    """What a witness remembers: SQLite, with every change on the disk before it is told."""

    def __init__(self, path: Path, *, begun: bool = False) -> None:
        """`begun`: it was there before, so an empty one is refused: it has been lost.

        Raises `InUseError`, `DamagedError`, `UnavailableError` and `StorageError`.
        """
        self._path = path
        _make_private(path)
        with self._failures():
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            with self._failures():
                # Nobody else may change it meanwhile.
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
                # Not WAL: behind the first damage in it SQLite takes it for its end, and what came
                # after, told to stores long ago, would be forgotten without a word.
                self._database.execute("PRAGMA journal_mode = TRUNCATE")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute("BEGIN EXCLUSIVE")
                if begun and self._database.execute(_TABLES).fetchone() is None:
                    raise _lost(path)
                self._database.execute(_SCHEMA)
                self._database.execute("COMMIT")
                found = self._database.execute("PRAGMA quick_check(1)").fetchone()
                if found != ("ok",):
                    raise DamagedError(
                        f"expected the witness's memory {path} to be intact, got: {found}; "
                        "do not restore it from a backup: start with a new folder, and "
                        "have the owners accept their stores"
                    )
        except BaseException:
            self._database.close()
            raise

    def __len__(self) -> int:
        with self._failures():
            (count,) = self._database.execute("SELECT count(*) FROM stores").fetchone()
        return int(count)

    def load(self, key: bytes) -> Record | None:
        """What is remembered of the store with this public key."""
        with self._failures():
            row = self._database.execute(
                "SELECT record FROM stores WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        if not isinstance(row[0], bytes) or len(row[0]) != _RECORD.size:
            raise DamagedError(
                f"expected {_RECORD.size} bytes for the store {key.hex()[:16]} in "
                f"{self._path}, got another length; start with a new folder, and have the "
                "owners accept their stores"
            )
        *state, acceptances = _RECORD.unpack(row[0])
        return Record(State(*state), acceptances)

    def keep(self, name: StoreName, record: Record) -> None:
        """Remembers; it is on the disk when this returns."""
        state = record.state
        packed = _RECORD.pack(
            state.sequence, state.anchor, state.digest, state.branch, record.acceptances
        )
        with self._failures():
            self._database.execute(
                "INSERT INTO stores VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET record = ?",
                (name.key, name.store_id, packed, packed),
            )

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise InUseError(
                    f"expected the witness's memory {self._path} to be free, got one that "
                    "another process has open; stop the other `avow witness`, or use "
                    "another folder"
                ) from error
            if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise DamagedError(
                    f"expected the witness's memory {self._path} to be intact, got: "
                    f"{error}; start with a new folder, and have the owners accept their "
                    "stores"
                ) from error
            raise StorageError(
                f"expected the witness's memory {self._path} to work, got: {error}; check the disk"
            ) from error


def open_state(
    folder: Path, entropy: Callable[[int], bytes] = os.urandom
) -> tuple[WitnessMemory, Ed25519PrivateKey]:
    """The memory and the signing key in `folder`; both are made when neither is there.

    A key without its memory is refused, and a memory without its key: somebody lost the other, and
    a witness that forgot must not speak as the one that knew.
    """
    state, key_file = folder / STATE_NAME, folder / KEY_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"expected to make the folder {folder}, got {error.strerror}; choose another"
        ) from error
    begun = key_file.exists()
    if begun and not state.exists():
        raise _lost(state)
    memory = WitnessMemory(state, begun=begun)
    try:
        if not key_file.exists():
            if len(memory):
                raise UnavailableError(
                    f"expected the key {KEY_NAME} beside {state}, got none; restore it, or "
                    "start with a new folder"
                )
            write_key_file(key_file, entropy(32))
        return memory, Ed25519PrivateKey.from_private_bytes(read_key_file(key_file))
    except BaseException:
        memory.close()
        raise


def _make_private(path: Path) -> None:
    """The memory, made if it is not there, is its owner's alone, whatever the umask is and whatever
    an earlier release left; SQLite gives its journal the same mode."""
    try:
        # Before SQLite has it open: to close any descriptor of a file ends a process's locks on it.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            os.fchmod(descriptor, _FILE_MODE)
        finally:
            os.close(descriptor)
        journal = path.with_name(f"{path.name}-journal")
        if journal.exists():
            journal.chmod(_FILE_MODE)
    except OSError as error:
        raise StorageError(
            f"expected to make the witness's memory {path} readable for its owner only, got "
            f"{error.strerror}; check who owns the file"
        ) from error


def _lost(state: Path) -> UnavailableError:
    return UnavailableError(
        f"expected the memory {state} that belongs to the key beside it, got none: this "
        "witness has lost what it knew; remove the key too, and have the owners accept "
        "their stores with the new witness"
    )


@dataclass(frozen=True, slots=True)
class Event:
    """Something that an operator wants to know of: `what` happened, to which store; `host` is whose
    connection it was (`neighbourhood`), where that was a stranger's."""

    what: str
    store: str = ""
    store_id: str = ""
    sequence: int = 0
    anchor: int = 0
    reason: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer's bytes, and whether its store is remembered."""

    content: bytes
    remembered: bool


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What strangers may use up. Of times the unit is seconds.

    `connections_max` stores may be connected; as many others may be about to say who they are. Of
    these the one goes for a newcomer that has been silent for longest, from the address with the
    most.
    """

    connections_max: int = CONNECTIONS_MAX
    message_timeout_s: float = MESSAGE_TIMEOUT_S
    idle_timeout_s: float = IDLE_TIMEOUT_S


class Witness:
    """Answers requests, one after the other."""

    def __init__(
        self,
        memory: WitnessMemory,
        key: Ed25519PrivateKey,
        *,
        stores_max: int = STORES_MAX,
        note: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """`note` is told of what an operator should see."""
        self._memory = memory
        self._key = key
        self._stores_max = stores_max
        self._note = note
        self.public_key = public_bytes(key)

    def respond(self, content: bytes, challenge: bytes, number: int) -> Reply:
        """The answer to the `number`th request of a connection; what it changed is durable.

        Raises `MalformedError` and `UntrustedError` for requests that get no answer, and
        `StorageError` when nothing can be remembered any more.
        """
        request = open_request(content, challenge, self.public_key, number)
        before = self._memory.load(request.store.key)
        answer = decide(before, request)
        if before is None and answer.record is not None and len(self._memory) >= self._stores_max:
            answer = Answer(Status.FULL, None)
        if answer.record is not None and answer.record != before:
            self._memory.keep(request.store, answer.record)
        what = ""
        if request.kind is not Kind.READ and answer.status is not Status.DONE:
            what = f"refused ({answer.status.name.lower()})"
        elif before is None and answer.record is not None:
            what = "new store"
        elif request.kind is Kind.ACCEPT and answer.record != before:
            what = "rollback accepted"
        if what:
            self._note(
                Event(
                    what,
                    request.store.key.hex(),
                    request.store.store_id.hex(),
                    request.state.sequence,
                    request.state.anchor,
                )
            )
        signed = sign_answer(answer, request, self._key, challenge)
        return Reply(signed, answer.record is not None)


class WitnessService:
    """Connections from stores, over TCP."""

    def __init__(
        self,
        witness: Witness,
        limits: ServiceLimits,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        note: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._witness = witness
        self._limits = limits
        self._entropy = entropy
        self._note = note
        # Those whose store is remembered, and those who have not shown one.
        self._stores: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], str] = {}
        # Where stores that are remembered have come from, the newest last.
        self._hosts_known: dict[str, None] = {}
        self._let_go = 0
        self._noted_at_s = -_NOTE_EVERY_S
        # Of the first, who waits for its next request, the longest first.
        self._idle: dict[asyncio.Task[None], None] = {}
        self._failed: asyncio.Future[None] | None = None

    async def serve(
        self, host: str, port: int, *, ready: Callable[[int], None], stop: asyncio.Event
    ) -> None:
        """Until `stop` is set; `ready` gets the port. Raises `UnavailableError` when it cannot
        listen, and `StorageError` when the memory fails: then it must not go on."""
        self._failed = asyncio.get_running_loop().create_future()
        try:
            # One request at a time is all that a connection may have waiting.
            server = await asyncio.start_server(
                self._accept, host, port, limit=REQUEST_BYTES, backlog=64
            )
        except OSError as error:
            raise UnavailableError(
                f"expected to listen on {host}:{port}, got {error.strerror or error}; choose "
                f"another address"
            ) from error
        stopping = asyncio.ensure_future(stop.wait())
        try:
            ready(server.sockets[0].getsockname()[1])
            ends: set[asyncio.Future[Any]] = {stopping, self._failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
        finally:
            stopping.cancel()
            self._failed.cancel()
            server.close()
            connections = self._stores | self._strangers.keys()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._strangers) >= self._limits.connections_max:
            self._make_room()
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._strangers[task] = neighbourhood(writer.get_extra_info("peername"))
        task.add_done_callback(self._forget)

    def _make_room(self) -> None:
        """Ends the connection of a stranger, so that whoever comes is heard: a store says at once
        who it is, and is none any more."""
        crowds = Counter(self._strangers.values())
        host, most = crowds.most_common(1)[0]
        if most <= max(1, self._limits.connections_max // _SHARE):
            unknown = [each for each in self._strangers.values() if each not in self._hosts_known]
            host = next(iter(unknown), host)
        longest = next(task for task, where in self._strangers.items() if where == host)
        self._forget(longest)
        longest.cancel()
        self._let_go += 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._noted_at_s >= _NOTE_EVERY_S:
            self._note(
                Event(
                    "strangers let go",
                    reason=f"{self._let_go}, the last from {host}: the limit of connections "
                    "that say nothing was reached",
                )
            )
            self._noted_at_s, self._let_go = now_s, 0

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._strangers.pop(task, None)
        self._stores.discard(task)
        self._idle.pop(task, None)

    def _welcome(self, task: asyncio.Task[None]) -> None:
        """A connection has shown a store that is remembered. Where there are as many as there may
        be, the one that was idle for longest ends: its store connects again when it has to."""
        if task in self._stores:
            return
        host = self._strangers.pop(task)
        self._hosts_known.pop(host, None)
        self._hosts_known[host] = None
        if len(self._hosts_known) > _HOSTS_KNOWN_MAX:
            del self._hosts_known[next(iter(self._hosts_known))]
        self._stores.add(task)
        if len(self._stores) > self._limits.connections_max:
            # Where all are busy it is this one, after its answer.
            longest = next(iter(self._idle), task)
            self._forget(longest)
            longest.cancel()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
        except (StorageError, DamagedError) as error:
            if self._failed is not None and not self._failed.done():
                self._failed.set_exception(error)
        except AvowError as error:
            host = neighbourhood(writer.get_extra_info("peername"))
            self._note(Event("request refused", reason=f"{error}; it came from {host}", host=host))
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            # Gone, or too slow; a store comes again.
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limits = self._limits
        task = asyncio.current_task()
        assert task is not None
        challenge = self._entropy(CHALLENGE_BYTES)
        writer.write(encode_greeting(challenge))
        number = 0
        while True:
            begun = await self._next(task, reader)
            async with asyncio.timeout(limits.message_timeout_s):
                content = begun + await reader.readexactly(REQUEST_BYTES - 1)
            number += 1
            reply = self._witness.respond(content, challenge, number)
            if reply.remembered:
                self._welcome(task)
            writer.write(reply.content)
            async with asyncio.timeout(limits.message_timeout_s):
                await writer.drain()

    async def _next(self, task: asyncio.Task[None], reader: asyncio.StreamReader) -> bytes:
        """The first byte of a request. Only who has a store here may take long."""
        if task not in self._stores:
            async with asyncio.timeout(self._limits.message_timeout_s):
                return await reader.readexactly(1)
        self._idle[task] = None
        try:
            async with asyncio.timeout(self._limits.idle_timeout_s):
                return await reader.readexactly(1)
        finally:
            self._idle.pop(task, None)


def neighbourhood(peer: Any) -> str:
    """Whose a connection may be: an IPv4 address, or the 64 bits of an IPv6 address that one
    customer has at least."""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (ValueError, TypeError, IndexError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return f"{ipaddress.ip_network((int(address) >> 64 << 64, 64))}"
    return str(address)


def run_service(
    service: WitnessService,
    host: str,
    port: int,
    *,
    ready: Callable[[int], None],
    signals: tuple[int, ...] = (),
) -> None:
    """`serve` in an event loop of its own, until one of `signals` comes."""

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        await service.serve(host, port, ready=ready, stop=stop)

    asyncio.run(run())
