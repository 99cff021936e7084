"""The binding of the pump: sockets in, events out; everything between happens without Python.

The native side is pump/src; `_Setup` below mirrors `Setup` in pump/src/loop.zig field by field.
While `run` works the GIL is released, so other threads accept, shake hands and verify.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.bindings._rust import _openssl
from wasmtime import _ffi as wasmtime_ffi

from avow import artefacts
from avow.broker.journal import FRESH_NAME, NAME, PATH, Journal, restore
from avow.errors import AvowError, MalformedError, UnavailableError
from avow.sandbox.engine import LoadedCore
from avow.sealing import library as vault
from avow.sealing.callback_fence import CallbackFence

if TYPE_CHECKING:
    from OpenSSL import SSL

_INTERFACE_VERSION: Final = 2
_ENTROPY_BYTES: Final = 32
_IDENTITY_MAX_BYTES: Final = 0xFFFF
_COMPACTION_MIN_BYTES: Final = 64 << 20
_MESSAGE_BYTES: Final = 1024

_STATUS_STOPPED: Final = 0
_STATUS_EVENTS: Final = 1
_STATUS_INTERRUPTED: Final = 2
_STATUS_STORAGE_FAILED: Final = 4

_OPEN_ANONYMOUS: Final = 1
_OPEN_IDENTITY: Final = 2
_OPEN_ATTESTED: Final = 4
_OPEN_NAME_PROVEN: Final = 8

CORE_COUNTERS: Final = (
    "connections_open",
    "clients_connected",
    "clients_maximum",
    "sessions",
    "sessions_expired",
    "subscriptions",
    "shared_subscriptions",
    "retained",
    "messages_received",
    "messages_sent",
    "publish_received",
    "publish_sent",
    "publish_dropped",
    "publish_bytes_received",
    "publish_bytes_sent",
    "bytes_received",
    "bytes_sent",
    "connects_accepted",
    "connects_refused",
    "heap_bytes",
    "heap_bytes_maximum",
    "stored_messages",
    "stored_bytes",
    "inflight",
    "queued",
    "protocol_errors",
    "steps",
    "journal_bytes",
    "connack_sent",
    "acl_denied",
)
"""The core's counters by index (docs/spec/core-abi.md)."""


class Transport(enum.IntEnum):
    """What the plaintext of a connection is."""

    MQTT = 0
    WEBSOCKET = 1


@dataclass(frozen=True, slots=True)
class Attested:
    """What the peer of a connection has proven: how good its evidence was found (1 none, 2 warning,
    3 affirming) and the SHA-256 of the module that its runtime measured (32 bytes), if any."""

    tier_rank: int
    module: bytes | None = None


class CoreTrapError(AvowError):
    """The core trapped or broke its contract; it is not called again. The journal is intact.

    ``trap_message`` says what happened; ``journal_bytes`` is the length of the journal, which
    `Pump.journal_snapshot` still returns.
    """

    def __init__(self, trap_message: str, journal_bytes: int) -> None:
        super().__init__(
            f"expected the core to run without a trap, got {trap_message}; its journal of "
            f"{journal_bytes} bytes is intact: restart the broker, and report this"
        )
        self.trap_message = trap_message
        self.journal_bytes = journal_bytes


class _Setup(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "interface_version",
            "context",
            "memory",
            "step",
            "commit",
            "snapshot",
            "call",
            "memory_data",
            "memory_data_size",
            "failure_message",
            "failure_delete",
            "trap_message",
            "trap_delete",
            "bytes_delete",
            "layout_address",
            "ssl_read",
            "ssl_write",
            "ssl_get_error",
            "ssl_pending",
            "ssl_shutdown",
            "ssl_free",
            "ssl_set_bio",
            "err_clear_error",
            "bio_new",
            "bio_free",
            "bio_s_mem",
            "bio_read",
            "bio_write",
            "bio_get_mem_data",
            "clock_gettime",
            "idle_timeout_ms",
            "drain_timeout_ms",
            "compaction_min_bytes",
            "vault_store",
            "vault_write",
            "vault_commit",
            "vault_make",
            "vault_rename",
            "journal_directory",
            "journal_inode",
            "journal_bytes",
            "durability",
            "interval_ms",
            "name",
            "name_bytes",
            "fresh_name",
            "fresh_name_bytes",
        )
    ]


_WASMTIME_FUNCTIONS: Final = {
    "call": "wasmtime_func_call_unchecked",
    "memory_data": "wasmtime_memory_data",
    "memory_data_size": "wasmtime_memory_data_size",
    "failure_message": "wasmtime_error_message",
    "failure_delete": "wasmtime_error_delete",
    "trap_message": "wasm_trap_message",
    "trap_delete": "wasm_trap_delete",
    "bytes_delete": "wasm_byte_vec_delete",
}

_OPENSSL_FUNCTIONS: Final = {
    "ssl_read": "SSL_read",
    "ssl_write": "SSL_write",
    "ssl_get_error": "SSL_get_error",
    "ssl_pending": "SSL_pending",
    "ssl_shutdown": "SSL_shutdown",
    "ssl_free": "SSL_free",
    "ssl_set_bio": "SSL_set_bio",
    "err_clear_error": "ERR_clear_error",
    "bio_new": "BIO_new",
    "bio_free": "BIO_free",
    "bio_s_mem": "BIO_s_mem",
    "bio_read": "BIO_read",
    "bio_write": "BIO_write",
    "bio_get_mem_data": "BIO_get_mem_data",
}


class Pump:
    """Moves bytes between sockets and one core. One thread calls `run` in a loop; all other
    methods may be called from any thread.

    ``entropy``: 32 random bytes for the core. ``idle_timeout_s``: a connection without traffic in
    either direction is closed after it (0: never). ``drain_timeout_s``: how long a closing
    connection, or a stopping pump, may take to hand over its last bytes. ``journal``: read back
    first, and kept from then on; without one the journal lives in memory.
    Raises MalformedError when the core refuses to start, UnavailableError when the native library
    is absent or of another version, and what `avow.broker.journal.restore` raises.
    """

    def __init__(
        self,
        engine: LoadedCore,
        *,
        entropy: bytes,
        idle_timeout_s: float = 0,
        drain_timeout_s: float = 10,
        compaction_min_bytes: int = _COMPACTION_MIN_BYTES,
        journal: Journal | None = None,
    ) -> None:
        self._handle: int | None = None
        if len(entropy) != _ENTROPY_BYTES:
            raise MalformedError(
                f"expected {_ENTROPY_BYTES} bytes of entropy for the core, got "
                f"{len(entropy)}; report this"
            )
        self._library = _load_library()
        self._core = engine
        self._running = threading.Lock()
        # Re-entrant, because a signal handler may call `stop` in the middle of another call.
        self._calls = threading.RLock()
        engine.write(engine.layout.arena_address, entropy)
        outcome = engine.call("init", engine.layout.arena_address)
        engine.write(engine.layout.arena_address, bytes(_ENTROPY_BYTES))
        if outcome != 0:
            raise MalformedError(f"expected 0 from the core's init, got {outcome}")
        self._journal = journal
        if journal is not None:
            restore(journal, engine)
        setup = _describe(engine)
        self._commit: Any = None
        self._commit_fence = CallbackFence()
        if journal is not None:
            _describe_journal(setup, journal)
            if journal.commit is not None:
                # Kept, for the pump calls it as long as it lives.
                self._commit = _COMMIT(functools.partial(self._commit_elsewhere, journal.commit))
                setup.vault_commit = _address(self._commit)
        setup.idle_timeout_ms = round(idle_timeout_s * 1000)
        setup.drain_timeout_ms = round(drain_timeout_s * 1000)
        setup.compaction_min_bytes = compaction_min_bytes
        reason = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self._handle = self._library.avow_pump_create(ctypes.byref(setup), reason, len(reason))
        if self._handle is None:
            raise UnavailableError(
                f"the pump could not start: {reason.value.decode('utf-8', 'replace')}"
            )
        names = self._library.avow_pump_counter_names().decode().split()
        self._counter_names = tuple(f"pump_{name}" for name in names)

    def add(
        self,
        fd: int,
        *,
        transport: Transport,
        allow_anonymous: bool,
        identity: str | None = None,
        attested: Attested | None = None,
        tls: SSL.Connection | None = None,
    ) -> int:
        """Take over a connected stream socket, for TLS after the handshake; return its number.

        The caller has detached ``fd`` and must not touch it or ``tls`` again. ``identity`` was
        proven by TLS and becomes the user name; ``attested`` was proven by evidence.
        The context of ``tls`` has no information, message or key log callback: OpenSSL would call
        it from the pump's thread, perhaps after Python has freed it. Those of `avow.channel.psk`
        may be there: OpenSSL calls them for a ClientHello only, and there is none after the
        handshake. When this raises, both still belong to the caller: UnavailableError when the pump
        has stopped or is overrun, MalformedError when ``identity`` is too long.
        """
        name = b"" if identity is None else identity.encode()
        if len(name) > _IDENTITY_MAX_BYTES:
            raise MalformedError(
                f"expected an identity of at most {_IDENTITY_MAX_BYTES} bytes, got "
                f"{len(name)}; use a shorter name"
            )
        flags = (_OPEN_ANONYMOUS if allow_anonymous else 0) | (
            0 if identity is None else _OPEN_IDENTITY
        )
        flags |= 0 if tls is None else _OPEN_NAME_PROVEN
        proof = b""
        if attested is not None:
            flags |= _OPEN_ATTESTED
            proof = struct.pack("<B32s", attested.tier_rank, attested.module or b"")
        information = struct.pack("<BBH", transport, flags, len(name)) + name + proof
        with self._calls:
            handle = self._open_handle()
            session = (0, 0, 0) if tls is None else _hand_over(tls)
            number: int = self._library.avow_pump_add(
                handle, fd, *session, information, len(information)
            )
        if number < 0:
            if tls is not None:
                _take_back(tls)
            raise _refused(number)
        if tls is not None:
            _forget(tls)
        return number

    def command(self, blob: bytes) -> None:
        """Queue a command of docs/spec/core-abi.md for the next turn; commands keep their order.

        Raises MalformedError when it is larger than the core's arena, UnavailableError when the
        pump has stopped or is overrun.
        """
        with self._calls:
            outcome: int = self._library.avow_pump_command(self._open_handle(), blob, len(blob))
        if outcome < 0:
            raise _refused(outcome)

    def run(self) -> bytes | None:
        """Work until the core has events for the host and return their bytes; None when stopped.

        Signal handlers of Python run between two turns when the main thread is in here. Raises
        CoreTrapError when the core trapped, and StorageError or DamagedError when the journal could
        not be made safe, then and at every later call.
        """
        events = ctypes.c_void_p()
        events_bytes = ctypes.c_size_t()
        with self._running:
            handle = self._handle
            if handle is None:
                return None
            while True:
                status = self._library.avow_pump_run(
                    handle, ctypes.byref(events), ctypes.byref(events_bytes)
                )
                if status == _STATUS_EVENTS:
                    return ctypes.string_at(events.value or 0, events_bytes.value)
                if status == _STATUS_STOPPED:
                    return None
                if status == _STATUS_STORAGE_FAILED and self._journal is not None:
                    self._commit_fence.check()
                    code = self._library.avow_pump_storage_code(handle)
                    raise self._journal.store.error(code, "the journal")
                if status != _STATUS_INTERRUPTED:
                    raise CoreTrapError(self._message(handle), self._journal_bytes(handle))

    def stop(self) -> None:
        """Make `run` flush what can be flushed, close everything and return None.

        Callable from a signal handler, and without effect when the pump is closed.
        """
        with self._calls:
            if self._handle is not None:
                self._library.avow_pump_stop(self._handle)

    def stats(self) -> dict[str, int]:
        """The core's counters by name as of its last step, and the pump's own as ``pump_*``."""
        core_values = (ctypes.c_uint64 * self._core.layout.stats_count)()
        pump_values = (ctypes.c_uint64 * len(self._counter_names))()
        with self._calls:
            handle = self._open_handle()
            self._library.avow_pump_core_counters(handle, core_values, len(core_values))
            self._library.avow_pump_counters(handle, pump_values, len(pump_values))
        named = dict(zip(CORE_COUNTERS, core_values, strict=False))
        return named | dict(zip(self._counter_names, pump_values, strict=True))

    def journal_snapshot(self) -> bytes:
        """All journal records since the start or the last compaction."""
        if self._journal is not None:
            return self._journal.store.read(PATH)
        while True:
            with self._calls:
                handle = self._open_handle()
                length = self._journal_bytes(handle)
                buffer = ctypes.create_string_buffer(max(1, length))
                known = self._library.avow_pump_journal(handle, buffer, length)
            # It may have grown, or been compacted, in between.
            if known <= length:
                return buffer.raw[:known]

    def close(self) -> None:
        """Stop, wait until `run` has returned in its thread, and free everything.

        For an orderly end call `stop` first and go on calling `run` until it returns None: a pump
        that nobody runs cannot flush. Afterwards `run` returns None and all else is refused.
        """
        self.stop()
        with self._running, self._calls:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._library.avow_pump_destroy(handle)

    def _commit_elsewhere(self, commit: Callable[[], object], store: int, now_ns: int) -> int:
        """Called by the pump, in whose frames no exception may be. Whatever happens, what it does
        not say to be durable is not."""
        with self._commit_fence:
            commit()
            return 0
        return -1

    def _open_handle(self) -> int:
        if self._handle is None:
            raise UnavailableError("the pump is closed: make a new one")
        return self._handle

    def _message(self, handle: int) -> str:
        buffer = ctypes.create_string_buffer(_MESSAGE_BYTES)
        length = self._library.avow_pump_message(handle, buffer, len(buffer))
        return buffer.raw[:length].decode("utf-8", "replace")

    def _journal_bytes(self, handle: int) -> int:
        return int(self._library.avow_pump_journal(handle, ctypes.create_string_buffer(1), 0))


def _refused(code: int) -> AvowError:
    if code == -1:
        return UnavailableError(
            "the pump has stopped and takes nothing more; start the broker again"
        )
    if code == -2:
        return UnavailableError("too many commands wait for the pump; try again later")
    if code == -3:
        return MalformedError("a command may not be larger than the core's arena: split it")
    return UnavailableError("the pump found no memory")


def _load_library() -> Any:
    path = artefacts.pump_path()
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be loaded ({error}): rebuild it") from error
    handle, pointer, size = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("interface_version", ctypes.c_uint64, []),
        ("create", ctypes.c_void_p, [pointer, ctypes.c_char_p, size]),
        ("destroy", None, [handle]),
        ("add", ctypes.c_int64, [handle, ctypes.c_int, size, size, size, ctypes.c_char_p, size]),
        ("command", ctypes.c_int64, [handle, ctypes.c_char_p, size]),
        ("run", ctypes.c_int, [handle, pointer, pointer]),
        ("stop", None, [handle]),
        ("storage_code", ctypes.c_int64, [handle]),
        ("message", size, [handle, ctypes.c_char_p, size]),
        ("journal", size, [handle, ctypes.c_char_p, size]),
        ("core_counters", size, [handle, pointer, size]),
        ("counters", size, [handle, pointer, size]),
        ("counter_names", ctypes.c_char_p, []),
    ):
        function = getattr(library, f"avow_pump_{name}")
        function.restype = result
        function.argtypes = arguments
    version = library.avow_pump_interface_version()
    if version != _INTERFACE_VERSION:
        raise UnavailableError(
            f"expected interface version {_INTERFACE_VERSION} in {path}, got {version}; "
            "rebuild it with `make build` or `pip install .`"
        )
    return library


def _describe(core: LoadedCore) -> _Setup:
    """Addresses of the core's handles and of all foreign functions that the pump calls.

    The handles live as long as ``core``, which the pump keeps.
    """
    setup = _Setup(interface_version=_INTERFACE_VERSION, layout_address=core.layout_address)
    context: Any = core.store._context()
    setup.context = ctypes.cast(context, ctypes.c_void_p).value
    setup.memory = ctypes.addressof(core.memory._memory)
    for name in ("step", "commit", "snapshot"):
        setattr(setup, name, ctypes.addressof(core.functions[name]._func))
    for field, symbol in _WASMTIME_FUNCTIONS.items():
        setattr(setup, field, _address(getattr(wasmtime_ffi.dll, symbol)))
    for field, symbol in _OPENSSL_FUNCTIONS.items():
        pointer = _openssl.ffi.addressof(_openssl.lib, symbol)
        setattr(setup, field, int(_openssl.ffi.cast("uintptr_t", pointer)))
    setup.clock_gettime = _address(ctypes.CDLL(None).clock_gettime)
    return setup


# The commit of pump/src/journal.zig's `Vault`.
_COMMIT: Final = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint64)
_NAME_BYTES: Final = NAME.encode()
_FRESH_NAME_BYTES: Final = FRESH_NAME.encode()


def _describe_journal(setup: _Setup, journal: Journal) -> None:
    """The vault's functions, and the file that the pump appends to.

    The store stays open as long as the pump; the names are constants.
    """
    library = vault.load()
    setup.vault_store = journal.store.handle
    for field in ("write", "commit", "make", "rename"):
        setattr(setup, f"vault_{field}", _address(getattr(library, f"avow_store_{field}")))
    setup.journal_directory = journal.directory_inode
    setup.journal_inode = journal.inode
    setup.journal_bytes = journal.size_bytes
    setup.durability = journal.durability
    setup.interval_ms = journal.interval_ms
    for field, name in (("name", _NAME_BYTES), ("fresh_name", _FRESH_NAME_BYTES)):
        setattr(setup, field, ctypes.cast(ctypes.c_char_p(name), ctypes.c_void_p).value)
        setattr(setup, f"{field}_bytes", len(name))


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _hand_over(tls: SSL.Connection) -> tuple[int, int, int]:
    """Make OpenSSL read and write memory instead of the socket; return SSL and both BIOs.

    pyOpenSSL has no public way to its SSL object, hence the private attributes. A connection whose
    handshake was made over memory keeps its BIOs: they may hold bytes that have arrived already.
    """
    lib, ffi = _openssl.lib, _openssl.ffi
    private: Any = tls
    ssl, bio_in, bio_out = private._ssl, private._into_ssl, private._from_ssl
    if bio_in is None:
        bio_in, bio_out = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
        if ffi.NULL in (bio_in, bio_out):
            raise UnavailableError("OpenSSL found no memory for a connection's buffers")
        lib.SSL_set_bio(ssl, bio_in, bio_out)
        private._into_ssl, private._from_ssl = bio_in, bio_out
    # 34 KiB of record buffers are only held while a record is in them.
    lib.SSL_set_mode(ssl, lib.SSL_MODE_RELEASE_BUFFERS)
    lib.SSL_set_options(ssl, lib.SSL_OP_NO_RENEGOTIATION)
    # The pump frees the SSL object, perhaps before the call that hands it over has returned.
    ffi.gc(ssl, None)
    ssl_address, in_address, out_address = (
        int(ffi.cast("uintptr_t", pointer)) for pointer in (ssl, bio_in, bio_out)
    )
    return ssl_address, in_address, out_address


def _take_back(tls: SSL.Connection) -> None:
    """The pump refused: pyOpenSSL frees the SSL object after all."""
    private: Any = tls
    private._ssl = _openssl.ffi.gc(private._ssl, _openssl.lib.SSL_free)


def _forget(tls: SSL.Connection) -> None:
    """From here on no use of ``tls`` can reach what belongs to the pump."""
    private: Any = tls
    private._ssl = private._into_ssl = private._from_ssl = None
