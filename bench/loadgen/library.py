"""Compiles the load generator and gives it to Python.

The loop is a shared library so that TLS handshakes can be made by pyOpenSSL, and the connections
then be served by the OpenSSL inside `cryptography` without its headers: the library gets the
addresses of the few functions that it calls.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "bench"
STEP_BITS = 6
# The stamp, and what is sure to fit the buffer into which the loop receives.
PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_MAX = 24, 256 * 1024


class LoadgenError(Exception):
    """The generator could not be built, or a run broke; the message says at what."""


class Role(IntEnum):
    IDLE = 0
    SUBSCRIBER = 1
    PUBLISHER = 2


class TlsFunctions(ctypes.Structure):
    _fields_ = [
        ("ssl_read", ctypes.c_void_p),
        ("ssl_write", ctypes.c_void_p),
        ("ssl_get_error", ctypes.c_void_p),
        ("bio_read", ctypes.c_void_p),
        ("bio_write", ctypes.c_void_p),
    ]


class LoadConfig(ctypes.Structure):
    """Field for field `Config` in generator.zig."""

    _fields_ = [
        ("level", ctypes.c_uint32),
        ("qos", ctypes.c_uint32),
        ("payload_bytes", ctypes.c_uint32),
        ("window", ctypes.c_uint32),
        ("backlog", ctypes.c_uint32),
        ("concurrency", ctypes.c_uint32),
        ("groups", ctypes.c_uint32),
        ("capacity", ctypes.c_uint32),
        ("spin", ctypes.c_uint32),
        ("address", ctypes.c_uint32),
        ("port", ctypes.c_uint32),
        ("durable", ctypes.c_uint32),
        ("rate", ctypes.c_double),
        ("clock", ctypes.c_void_p),
        ("functions", TlsFunctions),
        ("prefix", ctypes.c_char * 32),
    ]


class LoadResult(ctypes.Structure):
    """Field for field `Result` in generator.zig."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "elapsed_ns",
            "cpu_ns",
            "idle_ns",
            "turns",
            "published",
            "received",
            "acknowledged",
            "lost",
            "duplicates",
            "disordered",
            "misrouted",
            "stalls",
            "established",
            "late_ns_max",
        )
    ]


def build(destination: Path = BUILD) -> Path:
    """The compiled library, built when its sources have changed."""
    sources = sorted(HERE.glob("*.zig"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    library = destination / f"libloadgen-{digest}.so"
    if library.exists():
        return library
    destination.mkdir(parents=True, exist_ok=True)
    unfinished = destination / f"{library.stem}.{os.getpid()}.so"
    command = [sys.executable, "-m", "ziglang", "build-lib", "-dynamic", "-OReleaseFast"]
    command += ["-fstrip", str(HERE / "loadgen.zig"), f"-femit-bin={unfinished}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=destination)
    if done.returncode != 0:
        raise LoadgenError(f"the load generator does not compile:\n{done.stderr}")
    unfinished.replace(library)
    return library


def load(path: Path) -> ctypes.CDLL:
    """Loads the library; calls release the interpreter lock."""
    library = ctypes.CDLL(str(path))
    handle = ctypes.c_void_p
    library.loadgen_create.argtypes = [ctypes.POINTER(LoadConfig)]
    library.loadgen_create.restype = handle
    library.loadgen_destroy.argtypes = [handle]
    library.loadgen_destroy.restype = None
    library.loadgen_open.argtypes = [handle, ctypes.c_uint32, ctypes.c_uint32]
    library.loadgen_adopt.argtypes = [handle, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int32]
    library.loadgen_adopt.argtypes += [handle, handle, handle]
    for name in ("establish", "run", "drain"):
        getattr(library, f"loadgen_{name}").argtypes = [handle, ctypes.c_uint64]
    library.loadgen_report.argtypes = [handle, ctypes.POINTER(LoadResult)]
    library.loadgen_report.restype = None
    library.loadgen_histogram.argtypes = [handle]
    library.loadgen_histogram.restype = ctypes.POINTER(ctypes.c_uint64)
    library.loadgen_histogram_buckets.restype = ctypes.c_uint32
    library.loadgen_reflect.argtypes = [ctypes.c_int32, ctypes.c_int32]
    library.loadgen_reflect.argtypes += [ctypes.POINTER(TlsFunctions)]
    library.loadgen_error.argtypes = [handle]
    library.loadgen_error.restype = ctypes.c_char_p
    library.loadgen_bucket.argtypes = [ctypes.c_uint64]
    library.loadgen_bucket.restype = ctypes.c_uint64
    library.loadgen_account.argtypes = [
        ctypes.POINTER(ctypes.c_uint64),
        ctypes.c_size_t,
        ctypes.c_uint64,
        ctypes.POINTER(ctypes.c_uint64),
    ]
    return library


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the messages of one publisher at one subscriber."""

    received: int
    duplicates: int
    disordered: int
    missing: int


def account(library: ctypes.CDLL, numbers: Sequence[int], published: int) -> Account:
    """Runs sequence numbers, in order of arrival, through the generator's accounting."""
    totals = (ctypes.c_uint64 * 4)()
    array = (ctypes.c_uint64 * max(1, len(numbers)))(*numbers)
    if library.loadgen_account(array, len(numbers), published, totals) != 0:
        raise LoadgenError("out of memory")
    return Account(*totals)


def bucket_middle_ns(bucket: int) -> float:
    """The middle of a histogram bucket; the inverse of `bucketOf` in histogram.zig."""
    steps = 1 << STEP_BITS
    if bucket < 2 * steps:
        return float(bucket)
    shift = bucket // steps - 1
    low = (steps + bucket % steps) << shift
    return low + (1 << shift) / 2


def percentile_ns(buckets: Sequence[int], share: float) -> float | None:
    """The latency below which `share` (0..1) of the recorded messages lie; None without any."""
    total = sum(buckets)
    if total == 0:
        return None
    wanted, seen = share * total, 0
    for bucket, count in enumerate(buckets):
        seen += count
        if count and seen >= wanted:
            return bucket_middle_ns(bucket)
    raise AssertionError("the counts do not add up")


def address_of(pointer: Any) -> int:
    """The number behind a pointer of the OpenSSL bindings."""
    from cryptography.hazmat.bindings._rust import _openssl

    return int(_openssl.ffi.cast("uintptr_t", pointer))


def tls_functions() -> TlsFunctions:
    """The addresses of the OpenSSL functions inside `cryptography`."""
    from cryptography.hazmat.bindings._rust import _openssl

    names = ("SSL_read", "SSL_write", "SSL_get_error", "BIO_read", "BIO_write")
    addresses = (address_of(_openssl.ffi.addressof(_openssl.lib, name)) for name in names)
    return TlsFunctions(*addresses)


class Generator:
    """One load: connections are added, established, and then run for a while.

    `host` is an IPv4 address. Errors: LoadgenError.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        *,
        host: str,
        port: int,
        capacity: int,
        groups: int = 0,
        level: int = 4,
        qos: int = 0,
        payload_bytes: int = 64,
        window: int = 1,
        backlog: int = 10_000,
        concurrency: int = 64,
        rate: float = 0.0,
        spin: bool = False,
        with_tls: bool = False,
        durable: bool = False,
        prefix: str = "load",
    ) -> None:
        if not PAYLOAD_BYTES_MIN <= payload_bytes <= PAYLOAD_BYTES_MAX:
            raise LoadgenError(
                f"a payload has {PAYLOAD_BYTES_MIN} to {PAYLOAD_BYTES_MAX} bytes, "
                f"not {payload_bytes}"
            )
        config = LoadConfig(
            level=level,
            qos=qos,
            payload_bytes=payload_bytes,
            window=window,
            backlog=backlog,
            concurrency=concurrency,
            groups=groups,
            capacity=capacity,
            spin=int(spin),
            durable=int(durable),
            address=int.from_bytes(socket.inet_aton(host), sys.byteorder),
            port=port,
            rate=rate,
            clock=ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p),
            functions=tls_functions() if with_tls else TlsFunctions(),
            prefix=prefix.encode(),
        )
        self._library = library
        self._sessions: list[Any] = []
        self._handle: int | None = library.loadgen_create(ctypes.byref(config))
        if self._handle is None:
            raise LoadgenError("the generator could not be created: out of memory or descriptors")

    def _check(self, status: int) -> None:
        if status != 0:
            raise LoadgenError(self._library.loadgen_error(self._handle).decode())

    def open(self, role: Role, group: int = 0) -> None:
        """Adds a plain connection."""
        self._check(self._library.loadgen_open(self._handle, role, group))

    def adopt(self, session: Any, sock: socket.socket, role: Role, group: int = 0) -> None:
        """Adds a TLS connection after its handshake: a pyOpenSSL connection on memory BIOs."""
        sock.setblocking(False)
        pointers = (session._ssl, session._into_ssl, session._from_ssl)
        self._sessions.append(session)
        self._check(
            self._library.loadgen_adopt(
                self._handle, role, group, sock.detach(), *map(address_of, pointers)
            )
        )

    def establish(self, timeout_s: float = 30.0) -> None:
        """Connects, greets and subscribes all connections added so far."""
        self._check(self._library.loadgen_establish(self._handle, int(timeout_s * 1e9)))

    def run(self, duration_s: float) -> None:
        """Publishes; counters and histogram begin anew."""
        self._check(self._library.loadgen_run(self._handle, int(duration_s * 1e9)))

    def drain(self, quiet_s: float = 1.0) -> None:
        """Waits until everything has come, or nothing came for `quiet_s`."""
        self._check(self._library.loadgen_drain(self._handle, int(quiet_s * 1e9)))

    def report(self) -> dict[str, int]:
        result = LoadResult()
        self._library.loadgen_report(self._handle, ctypes.byref(result))
        return {str(field[0]): int(getattr(result, field[0])) for field in LoadResult._fields_}

    def histogram(self) -> list[int]:
        count = self._library.loadgen_histogram_buckets()
        return list(self._library.loadgen_histogram(self._handle)[:count])

    def close(self) -> None:
        if self._handle is not None:
            self._library.loadgen_destroy(self._handle)
            self._handle = None
            self._sessions.clear()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
