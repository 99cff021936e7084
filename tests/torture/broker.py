"""The process that the faults hit: core, pump and store as `avow broker` has them.

It has no listeners: its connections are made before. It is forked from the harness, so that a start
costs milliseconds; the core was compiled before.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from avow.artefacts import core_path
from avow.broker.journal import Durability, open_journal
from avow.broker.pump import Pump, Transport
from avow.errors import AvowError, DamagedError, RolledBackError, StorageError
from avow.sandbox.engine import LoadedCore, load
from avow.sealing.anchor import CounterAnchor, open_fresh
from avow.sealing.store import CONTAINER, Store
from tests.torture.faults import FaultyDisk, Plan

# The exit codes of `avow broker` for the same ends.
DAMAGED, ROLLED_BACK, STORAGE, OTHER = 105, 107, 108, 70
# Small, so that compactions happen all the time.
COMPACTION_MIN_BYTES = 48 << 10


class CounterFile:
    """A counter and a hash that lie where no fault reaches, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[int, bytes] | None:
        """The number and the hash; None before `begin`."""
        if not self._path.exists():
            return None
        number, _, branch = self._path.read_text().partition(" ")
        return int(number), bytes.fromhex(branch)

    def begin(self) -> tuple[int, bytes]:
        """From 1."""
        return self._write(1, bytes(32))

    def extend(self, nonce: bytes) -> bytes:
        """As a TPM does."""
        number, branch = self._known()
        return self._write(number, hashlib.sha256(branch + nonce).digest())[1]

    def increment(self) -> int:
        """One more."""
        number, branch = self._known()
        return self._write(number + 1, branch)[0]

    def _known(self) -> tuple[int, bytes]:
        known = self.read()
        assert known is not None
        return known

    def _write(self, number: int, branch: bytes) -> tuple[int, bytes]:
        # Written beside and renamed, so that a kill leaves the old or the new state.
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f"{number} {branch.hex()}")
        fresh.replace(self._path)
        return number, branch

    def close(self) -> None:
        """Holds nothing."""


def anchor(folder: Path) -> CounterAnchor:
    """The anchor of the store in `folder`."""
    return CounterAnchor(CounterFile(folder / "anchor"), "the counter in a file")


def compiled() -> LoadedCore:
    """A core for one broker; each fork has its own copy of it."""
    return load(core_path().read_bytes())


def fork_broker(
    core: LoadedCore, folder: Path, key: bytes, plan: Plan | None, links: Sequence[socket.socket]
) -> int:
    """Starts a broker with these connections; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = OTHER
    try:
        code = _run(core, folder, key, plan, links)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(
    core: LoadedCore, folder: Path, key: bytes, plan: Plan | None, links: Sequence[socket.socket]
) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if plan is None:
            store = Store.open(folder, key)
        else:
            fd = os.open(folder / CONTAINER, os.O_RDWR)
            store = Store.open_on(FaultyDisk(fd, plan), key)
        freshness = open_fresh(store, anchor(folder))
        _serve(core, store, links)
        freshness.close()
        store.close()
    except AvowError as error:
        print(f"broker: {error}", file=sys.stderr)
        kinds = {DamagedError: DAMAGED, RolledBackError: ROLLED_BACK, StorageError: STORAGE}
        return kinds.get(type(error), OTHER)
    return 0


def _serve(core: LoadedCore, store: Store, links: Sequence[socket.socket]) -> None:
    pump = Pump(
        core,
        entropy=secrets.token_bytes(32),
        compaction_min_bytes=COMPACTION_MIN_BYTES,
        journal=open_journal(store, Durability.COMMIT, 1000),
    )
    for link in links:
        pump.add(link.detach(), transport=Transport.MQTT, allow_anonymous=True)
    while pump.run() is not None:
        pass
