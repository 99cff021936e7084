"""Drives the real compiled core without sockets: a fake clock, seeded entropy, exact bookkeeping.

`CoreDriver` is a host in the sense of docs/spec/core-abi.md. It hands bytes to the core, takes the
bytes that the core sends, commits the journal (or withholds the commit), confirms closed
connections, and checks after every turn that the core keeps its side of the ABI. Breaking it
raises `CoreContractError`; a trap raises `CoreTrapError`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import random
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import wasmtime
from wasmtime import _ffi as ffi

import avow
from avow.broker.pump import CORE_COUNTERS
from avow.errors import AvowError, MalformedError, UnavailableError
from avow.sandbox.engine import prefer_large_pages
from avow.testing import core_abi as abi
from avow.testing.core_abi import (
    Attestation,
    AuthRequest,
    ClosedBy,
    Event,
    Input,
    Outcome,
    Rule,
    Setting,
    Transport,
)

START_MS = 1_700_000_000_000
_TURNS_MAX = 100_000


class CoreTrapError(AvowError):
    """The core trapped: whatever the input was, that must never happen."""


class CoreContractError(AvowError):
    """The core broke its ABI."""


class RestoreRefusedError(MalformedError):
    """`restore` gave an error code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the core refused the journal with code {code}; restore an intact one")
        self.code = code


_FUEL = 1 << 62


@functools.lru_cache(maxsize=2)
def _engine(counting: bool) -> wasmtime.Engine:
    configuration = wasmtime.Config()
    configuration.consume_fuel = counting
    return wasmtime.Engine(configuration)


@functools.lru_cache(maxsize=4)
def core_module(path: str | None = None, *, counting: bool = False) -> wasmtime.Module:
    """The compiled core, compiled once a process. AVOW_CORE_WASM names another file."""
    name = path or os.environ.get("AVOW_CORE_WASM")
    file = Path(name) if name else Path(avow.__file__).parent / "_native" / "broker.wasm"
    if not file.is_file():
        raise UnavailableError(f"{file} is missing: build the core first")
    return wasmtime.Module(_engine(counting), file.read_bytes())


class _Export:
    """One exported function, called without the conversions that cost most of a short call."""

    def __init__(self, store: wasmtime.Store, function: wasmtime.Func, arguments: int) -> None:
        self._context = store._context()
        self._function = ctypes.byref(function._func)
        self._values = (ffi.wasmtime_val_raw_t * max(arguments, 1))()
        self._count = max(arguments, 1)

    def __call__(self, *arguments: int) -> int:
        for index, value in enumerate(arguments):
            self._values[index].i64 = value
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        error = ffi.wasmtime_func_call_unchecked(
            self._context, self._function, self._values, self._count, ctypes.byref(trap)
        )
        if error:
            raise CoreTrapError(str(wasmtime.WasmtimeError._from_ptr(error)))
        if trap:
            raise CoreTrapError(str(wasmtime.Trap._from_ptr(trap)))
        return self._values[0].i32 & 0xFFFFFFFF


@dataclass(slots=True, eq=False)
class Connection:
    """The host's end of one connection."""

    number: int
    transport: Transport = Transport.MQTT
    received: bytearray = field(default_factory=bytearray)
    """Bytes that the core has sent and nobody has read yet."""
    sent_bytes: int = 0
    """Bytes that the core has sent in all."""
    closed: str | None = None
    """Set by the core ("close" or "abort") or by this side ("peer")."""
    paused: bool = False
    held: bool = False
    """The core still has input of before: an end by the peer is told after RESUME."""
    end_held: bool = False
    window: int | None = None
    """Bytes that the peer still takes; None is no limit. See `open_window`."""
    blocked: bool = False
    backlog: deque[bytes] = field(default_factory=deque)

    @property
    def alive(self) -> bool:
        """Neither side has closed."""
        return self.closed is None

    def read(self) -> bytes:
        """Takes all bytes that have come."""
        data = bytes(self.received)
        self.received.clear()
        return data


class CoreDriver:
    """One instance of the core and the host around it.

    `count_instructions`: wasmtime counts what the core runs, which makes it slower.
    """

    layout_versions = frozenset({abi.LAYOUT_VERSION})
    """Layouts that are accepted; all of these have the records of `abi`."""

    def __init__(
        self,
        *,
        seed: int = 1,
        now_ms: int = START_MS,
        settings: Mapping[Setting, int] | None = None,
        rules: Iterable[Rule] | None = None,
        journal: Iterable[bytes] | None = None,
        wasm: str | None = None,
        auto_commit: bool = True,
        confirm_close: bool = True,
        count_instructions: bool = False,
    ) -> None:
        self.now_ms = now_ms
        self._counting = count_instructions
        self.auto_commit = auto_commit
        self.confirm_close = confirm_close
        self.journal: list[bytes] = []
        """The committed batches, in order."""
        self.events: list[Event] = []
        self.connections: dict[int, Connection] = {}
        self.next_deadline_ms = abi.NO_DEADLINE
        self.heap_bytes = 0
        self.turns = 0
        self.one_step = False
        """A turn is one step, even when the core says MORE."""
        self.observer: Callable[[int, int, bytes], None] | None = None
        """Called with (kind, connection, bytes) for every input, when the core gets it."""
        self.waiting: tuple[int, bytes] | None = None
        """(sequence, bytes) of a journal batch whose commit is withheld."""
        self._inputs: deque[tuple[int, int, int, bytes]] = deque()
        self._free: list[int] = []
        self._sequence = 0
        self._batching = 0
        self._flags = 0
        self._start(core_module(wasm, counting=count_instructions))
        self._initialise(seed)
        if journal is not None:
            self._restore(list(journal))
        chosen = {Setting.SYS_INTERVAL_MS: 0, **(settings or {})}
        with self.batch():
            self.command(abi.settings_command(chosen.items()))
            if rules is not None:
                self.acl(rules)

    # -- the instance -----------------------------------------------------------------------

    def _start(self, module: wasmtime.Module) -> None:
        self._store = wasmtime.Store(_engine(self._counting))
        if self._counting:
            self._store.set_fuel(_FUEL)
        exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        memory = exports["memory"]
        if not isinstance(memory, wasmtime.Memory):
            raise CoreContractError("the core does not export its memory")
        self._memory = memory
        prefer_large_pages(self._store, memory)  # as in production, so that timings are comparable
        self._size = self._base = -1
        self._refresh()
        functions = {}
        for name, arguments in (
            ("layout", 0),
            ("init", 1),
            ("step", 2),
            ("commit", 1),
            ("restore", 2),
            ("snapshot", 1),
        ):
            function = exports[name]
            if not isinstance(function, wasmtime.Func):
                raise CoreContractError(f"the core does not export {name}")
            functions[name] = _Export(self._store, function, arguments)
        self._functions = functions
        self.layout = self._read_layout(self._call("layout"))

    def _refresh(self) -> None:
        size = self._memory.data_len(self._store)
        base = ctypes.addressof(self._memory.data_ptr(self._store).contents)
        if size != self._size or base != self._base:
            self._size, self._base = size, base
            self._view = memoryview((ctypes.c_ubyte * size).from_address(base)).cast("B")

    def _call(self, name: str, *arguments: int) -> int:
        try:
            result = self._functions[name](*arguments)
        except CoreTrapError as error:
            raise CoreTrapError(f"{self._panic_text()!r} in {name}{arguments}: {error}") from None
        self._refresh()
        return result

    def _panic_text(self) -> str:
        """What the core left for the host before it trapped."""
        self._refresh()
        address = self.layout["panic_address"] if hasattr(self, "layout") else 0
        if not address:
            return ""
        (length,) = struct.unpack_from("<I", self._view, address)
        raw = bytes(self._view[address + 4 : address + 4 + length])
        return raw.decode("utf-8", "replace")

    def _read_layout(self, address: int) -> dict[str, int]:
        values = struct.unpack_from(f"<{len(abi.LAYOUT_FIELDS)}I", self._view, address)
        layout = dict(zip(abi.LAYOUT_FIELDS, values, strict=True))
        expected = {
            "magic": abi.MAGIC,
            "input_record_bytes": 16,
            "output_record_bytes": 16,
            "result_bytes": 64,
        }
        for name, value in expected.items():
            if layout[name] != value:
                raise CoreContractError(f"layout: {name} is {layout[name]:#x}, not {value:#x}")
        if layout["layout_version"] not in self.layout_versions:
            raise CoreContractError(
                f"layout: layout_version is {layout['layout_version']}, "
                f"not one of {sorted(self.layout_versions)}"
            )
        if layout["layout_bytes"] < 4 * len(abi.LAYOUT_FIELDS):
            raise CoreContractError("layout: the table is too short")
        return layout

    def _initialise(self, seed: int) -> None:
        arena = self.layout["arena_address"]
        self._view[arena : arena + 32] = random.Random(seed).randbytes(32)
        code = self._call("init", arena)
        if code:
            raise CoreContractError(f"init failed with code {code}")

    def _restore(self, pieces: list[bytes]) -> None:
        """Hands over a journal; pieces larger than the arena are split further."""
        limit = self.layout["arena_bytes"]
        parts = [p[i : i + limit] for p in pieces for i in range(0, len(p), limit)] or [b""]
        arena = self.layout["arena_address"]
        for index, part in enumerate(parts):
            self._view[arena : arena + len(part)] = part
            code = self._call("restore", len(part), int(index == len(parts) - 1))
            if code:
                raise RestoreRefusedError(code)

    # -- inputs -----------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Inputs given inside are handed over together at the end, in as few turns as fit."""
        self._batching += 1
        try:
            yield
        finally:
            self._batching -= 1
        self._maybe_turn()

    def _maybe_turn(self) -> None:
        if not self._batching:
            self.turn()

    def open(
        self,
        transport: Transport = Transport.MQTT,
        *,
        allow_anonymous: bool = True,
        identity: str | None = None,
        attestation: Attestation | None = None,
        name_proven: bool = False,
    ) -> Connection:
        """A new connection, with the smallest number that is free."""
        if self._free:
            self._free.sort()
            number = self._free.pop(0)
        else:
            number = len(self.connections)
            while number in self.connections:
                number += 1
        connection = Connection(number, transport)
        self.connections[number] = connection
        information = abi.open_information(
            transport,
            allow_anonymous=allow_anonymous,
            identity=identity,
            attestation=attestation,
            name_proven=name_proven,
        )
        self._inputs.append((number, Input.OPEN, 0, information))
        self._maybe_turn()
        return connection

    def open_with(self, information: bytes) -> None:
        """An OPEN with this open information, right or wrong."""
        self._inputs.append((len(self.connections), Input.OPEN, 0, information))
        self._maybe_turn()

    def send(self, connection: Connection, data: bytes) -> None:
        """Bytes from the peer. A paused connection keeps them back until RESUME."""
        if not connection.alive or not data:
            return
        if connection.paused or connection.backlog:
            connection.backlog.append(data)
        else:
            self._queue_data(connection, data)
        self._maybe_turn()

    def _queue_data(self, connection: Connection, data: bytes) -> None:
        limit = self.layout["arena_bytes"]
        for at in range(0, len(data), limit):
            self._inputs.append((connection.number, Input.DATA, 0, data[at : at + limit]))

    def close(self, connection: Connection, by: ClosedBy = ClosedBy.PEER) -> None:
        """The connection is gone, as the network sees it."""
        if not connection.alive:
            return
        connection.closed = "peer"
        self._give_up(connection, by)
        self._maybe_turn()

    def _give_up(self, connection: Connection, by: ClosedBy) -> None:
        connection.backlog.clear()
        if connection.held and by is ClosedBy.PEER:
            connection.end_held = True
            return
        self._inputs.append((connection.number, Input.CLOSED, by, b""))

    def open_window(self, connection: Connection, window: int | None) -> None:
        """The peer takes `window` more bytes (None: everything); WRITABLE follows a BLOCKED."""
        connection.window = window
        if connection.blocked and connection.alive and window != 0:
            connection.blocked = False
            self._inputs.append((connection.number, Input.WRITABLE, 0, b""))
            self._maybe_turn()

    def command(self, blob: bytes) -> None:
        """A command of core-abi.md."""
        self._inputs.append((0, Input.COMMAND, 0, blob))
        self._maybe_turn()

    def settings(self, values: Mapping[Setting, int]) -> None:
        """SETTINGS."""
        self.command(abi.settings_command(values.items()))

    def acl(self, rules: Iterable[Rule]) -> None:
        """ACL."""
        self.command(abi.acl_command(rules))

    def auth_result(
        self,
        request: AuthRequest,
        outcome: Outcome = Outcome.SUCCESS,
        *,
        code: int = 0,
        user: str | None = None,
        data: bytes = b"",
        reason: str = "",
    ) -> None:
        """AUTH_RESULT for one request; the user name defaults to the one that was sent."""
        name = request.username if user is None else user
        self.command(
            abi.auth_result_command(
                request.connection,
                request.ticket,
                outcome,
                code=code,
                user=name,
                data=data,
                reason=reason,
            )
        )

    def auth_request(self) -> AuthRequest:
        """The one AUTH_REQUEST that waits; other events stay."""
        for index, event in enumerate(self.events):
            if isinstance(event, AuthRequest):
                del self.events[index]
                return event
        raise AssertionError(f"expected AUTH_REQUEST, the events are {self.events}")

    def disconnect(self, connection: Connection, code: int) -> None:
        """DISCONNECT."""
        self.command(abi.disconnect_command(connection.number, code))

    def drain(self) -> None:
        """DRAIN."""
        self.command(abi.DRAIN_COMMAND)

    # -- turns ------------------------------------------------------------------------------

    def turn(self) -> None:
        """Steps until nothing waits and the core does not say MORE, or a commit is withheld."""
        for _ in range(_TURNS_MAX):
            if self.waiting is not None:
                return
            count, closed = self._fill()
            self.turns += 1
            status = self._call("step", self.now_ms, count)
            if status not in (0, 1):
                raise CoreContractError(f"step gave {status}, not 0 or 1")
            self._read_result(status == 1)
            if status == 1:
                if not self.auto_commit:
                    self._closing = closed
                    return
                self._commit_batch()
            self._take_outputs(closed)
            if self.one_step or (not self._inputs and not self._flags & 1):
                return
        raise CoreContractError(f"the core said MORE for {_TURNS_MAX} turns")

    def _fill(self) -> tuple[int, set[int]]:
        """Writes as many waiting inputs as fit; gives their number and who is CLOSED by them."""
        at = arena = self.layout["arena_address"]
        end = arena + self.layout["arena_bytes"]
        record = self.layout["input_address"]
        count = 0
        closed: set[int] = set()
        while self._inputs and count < self.layout["input_capacity"]:
            number, kind, flags, data = self._inputs[0]
            if at + len(data) > end:
                if count == 0:
                    raise CoreContractError(f"an input of {len(data)} bytes is over the arena")
                break
            if number in closed and kind == Input.OPEN:
                break  # a number is used again only after CLOSED was given to a step
            self._inputs.popleft()
            self._view[at : at + len(data)] = data
            abi.INPUT_RECORD.pack_into(
                self._view, record, number, kind, flags, at if data else 0, len(data)
            )
            if kind == Input.CLOSED:
                closed.add(number)
            if self.observer is not None:
                self.observer(kind, number, data)
            at += len(data)
            record += 16
            count += 1
        return count, closed

    def _read_result(self, waits: bool) -> None:
        values = abi.RESULT_RECORD.unpack_from(self._view, self.layout["result_address"])
        sequence, address, length, _, self._flags, deadline, events_at, events_len, heap = values[
            :9
        ]
        if self._flags & ~1:
            raise CoreContractError(f"result flags {self._flags:#x} are not known")
        self.next_deadline_ms = deadline
        self.heap_bytes = heap
        if events_len:
            self._note_events(bytes(self._view[events_at : events_at + events_len]))
        if waits:
            if not length or sequence != self._sequence + 1:
                raise CoreContractError(
                    f"journal batch {sequence} of {length} bytes follows batch {self._sequence}"
                )
            self.waiting = (sequence, bytes(self._view[address : address + length]))
        elif length:
            raise CoreContractError("step gave 0 although journal bytes wait")

    def _note_events(self, raw: bytes) -> None:
        self.events += abi.decode_events(raw)

    def _commit_batch(self) -> None:
        if self.waiting is None:
            raise CoreContractError("no journal batch waits for a commit")
        sequence, data = self.waiting
        code = self._call("commit", sequence)
        if code:
            raise CoreContractError(f"commit of batch {sequence} gave {code}")
        self.journal.append(data)
        self._sequence = sequence
        self.waiting = None
        result = abi.RESULT_RECORD.unpack_from(self._view, self.layout["result_address"])
        self._flags = result[4]
        self.next_deadline_ms = result[5]

    def commit(self) -> None:
        """Commits the batch whose commit was withheld, and goes on."""
        self._commit_batch()
        self._take_outputs(self._closing)
        if self._inputs or self._flags & 1:
            self.turn()

    def commit_wrong(self, sequence: int) -> int:
        """Calls `commit` with a number of the test's choice; gives the core's code."""
        return self._call("commit", sequence)

    def _take_outputs(self, closed: set[int]) -> None:
        result = self.layout["result_address"]
        count = struct.unpack_from("<I", self._view, result + 16)[0]
        if count > self.layout["output_capacity"]:
            raise CoreContractError(f"{count} output records are more than the table holds")
        at = self.layout["output_address"]
        previous: int | None = None
        done: set[int] = set(closed)
        stalled = False
        for _ in range(count):
            number, reserved, flags, address, length = abi.OUTPUT_RECORD.unpack_from(self._view, at)
            if number != previous:
                if previous is not None:
                    done.add(previous)
                previous = number
                stalled = False
            self._check_output(number, reserved, flags, address, length, done)
            taken, stalled = self._take(self.connections[number], flags, address, length, stalled)
            out_flags = flags | (abi.BLOCKED if stalled else 0)
            abi.OUTPUT_RECORD.pack_into(self._view, at, number, 0, out_flags, address, taken)
            if flags & (abi.CLOSE | abi.ABORT):
                done.add(number)
            at += 16
        for number in closed:
            connection = self.connections.pop(number)
            if connection.alive:
                connection.closed = "peer"
            self._free.append(number)

    def _check_output(
        self, number: int, reserved: int, flags: int, address: int, length: int, done: set[int]
    ) -> None:
        if number in done:
            raise CoreContractError(
                f"an output for connection {number} after its CLOSE, after CLOSED, or not "
                "together with its other outputs"
            )
        if number not in self.connections:
            raise CoreContractError(f"an output for connection {number}, which is not open")
        if reserved or flags & ~31:
            raise CoreContractError(f"an output has flags {flags:#x}, reserved {reserved}")
        if address + length > self._size:
            raise CoreContractError("an output lies outside of linear memory")

    def _take(
        self, connection: Connection, flags: int, address: int, length: int, stalled: bool
    ) -> tuple[int, bool]:
        """Takes the bytes of one output; gives how many, and whether the peer is full."""
        if flags & abi.PAUSE:
            connection.paused = True
        if flags & abi.HOLD:
            connection.held = True
        if flags & abi.RESUME:
            connection.paused = connection.held = False
            while connection.backlog:
                self._queue_data(connection, connection.backlog.popleft())
            if connection.end_held:
                connection.end_held = False
                self._inputs.append((connection.number, Input.CLOSED, ClosedBy.PEER, b""))
        if not connection.alive:
            if connection.end_held and flags & (abi.CLOSE | abi.ABORT):
                connection.end_held = False
                self._inputs.append((connection.number, Input.CLOSED, ClosedBy.PEER, b""))
            return length, False  # our CLOSED is on its way: these bytes go nowhere
        taken = length
        if stalled:
            taken = 0
        elif connection.window is not None:
            taken = min(length, connection.window)
            connection.window -= taken
        stalled = stalled or taken < length
        connection.received += self._view[address : address + taken]
        connection.sent_bytes += taken
        if flags & abi.ABORT:
            self._closed_by_core(connection, "abort")
        elif stalled:
            connection.blocked = True
        elif flags & abi.CLOSE:
            self._closed_by_core(connection, "close")
        return taken, stalled

    def _closed_by_core(self, connection: Connection, how: str) -> None:
        connection.closed = how
        if self.confirm_close:
            self._give_up(connection, ClosedBy.CONFIRM)

    def confirm(self, connection: Connection) -> None:
        """Confirms a CLOSE by hand, where the driver was told not to do it."""
        self._give_up(connection, ClosedBy.CONFIRM)
        self._maybe_turn()

    def advance(self, milliseconds: int) -> None:
        """Moves the clock; steps at every deadline on the way, and at no other time."""
        target = self.now_ms + milliseconds
        idle = 0
        while self.next_deadline_ms <= target and self.waiting is None:
            before = self.now_ms
            self.now_ms = max(self.now_ms, self.next_deadline_ms)
            self.turn()
            idle = idle + 1 if self.now_ms == before else 0
            if idle > 8:
                raise CoreContractError(
                    f"the deadline {self.next_deadline_ms} stays in the past at {self.now_ms}"
                )
        self.now_ms = target

    # -- looking ----------------------------------------------------------------------------

    @property
    def instructions(self) -> int:
        """Wasm instructions that the core has run, where they are counted."""
        if not self._counting:
            raise ValueError("instructions are not counted: say count_instructions=True")
        return _FUEL - self._store.get_fuel()

    def counters(self) -> dict[str, int]:
        """The core's counters by name."""
        address, count = self.layout["stats_address"], self.layout["stats_count"]
        values = struct.unpack_from(f"<{count}Q", self._view, address)
        return dict(zip(CORE_COUNTERS, values, strict=False))

    def take_events(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def snapshot(self) -> list[bytes]:
        """The pieces of a snapshot of the durable state."""
        pieces: list[bytes] = []
        restart = 1
        while True:
            length = self._call("snapshot", restart)
            restart = 0
            if not length:
                return pieces
            result = abi.RESULT_RECORD.unpack_from(self._view, self.layout["result_address"])
            address = result[1]
            pieces.append(bytes(self._view[address : address + length]))
