"""Rounds of traffic, each with one fault, on one store that lives through all of them."""

from __future__ import annotations

import collections
import functools
import os
import random
import secrets
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from avow.errors import DamagedError
from avow.sandbox.engine import LoadedCore
from avow.sealing.anchor import begin_fresh
from avow.sealing.store import Store
from tests.torture import broker
from tests.torture.clients import Ledger, Publisher, Subscriber, ViolationError
from tests.torture.faults import Kind, Plan

ROUND_TIMEOUT_S = 10.0
DRAIN_EVERY = 10


class Torture:
    """One store under `folder`, two clients, and any number of faults."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.happened: collections.Counter[str] = collections.Counter()
        self._random = random.Random(seed)
        self._folder = folder
        self._store = folder / "state"
        self._old = folder / "old"
        self._key = secrets.token_bytes(32)
        self._core: LoadedCore = broker.compiled()
        self._ledger = Ledger()
        self._publisher = Publisher(self._ledger)
        self._subscriber = Subscriber(self._ledger)
        with Store.create(self._store, [self._key]) as store:
            begin_fresh(store, broker.anchor(self._store)).close()

    def run(self, faults: int) -> Iterator[str]:
        """Makes the faults; yields a line for each. Raises `ViolationError` with the seed."""
        self._in_words(self._calm_round, 0)
        kinds = list(Kind)
        for number in range(1, faults + 1):
            kind = kinds[number % len(kinds)]
            said = self._in_words(functools.partial(self._fault, kind), number)
            self.happened[f"{kind.name}: {said}"] += 1
            if number % DRAIN_EVERY == 0:
                self._in_words(self._drain, number)
            yield f"{number}: {kind.value}: {said}"
        self._in_words(self._drain, faults)
        self._in_words(self._check_store, faults)

    def _in_words(self, step: Callable[[], str], number: int) -> str:
        try:
            return step()
        except ViolationError as error:
            raise ViolationError(f"seed {self.seed}, fault {number}: {error}") from error

    def _fault(self, kind: Kind) -> str:
        if kind is Kind.FLIP:
            return self._flip()
        if kind is Kind.OLD:
            return self._put_old_back()
        at = self._random.choice((1, 2, 3, 4, 6, 9, 14, 20, 40, 80))
        plan = Plan(kind, at, self._random.getrandbits(32))
        accepted = len(self._ledger.acknowledged)
        wanted = self._random.randint(0, 120)
        with self._broker(plan) as process:
            code = self._traffic(process, lambda: self._acknowledged_since(accepted) >= wanted)
            if code is None:
                os.kill(process, signal.SIGKILL)
                code = _wait(process)
        if code not in {-signal.SIGKILL, broker.STORAGE}:
            raise ViolationError(f"{plan} ended the broker with {code}")
        return "killed" if code < 0 else "stopped by itself"

    def _acknowledged_since(self, before: int) -> int:
        return len(self._ledger.acknowledged) - before

    def _calm_round(self) -> str:
        with self._broker(None) as process:
            code = self._traffic(process, lambda: self._acknowledged_since(0) >= 20)
            if code is not None:
                raise ViolationError(f"without a fault the broker ended with {code}")
            os.kill(process, signal.SIGKILL)
            _wait(process)
        return "calm"

    def _drain(self) -> str:
        """Everything that was accepted arrives; then the books have to agree."""
        with self._broker(None) as process:
            code = self._traffic(process, self._quiet, publish=False)
            if code is not None:
                raise ViolationError(f"without a fault the broker ended with {code}")
            os.kill(process, signal.SIGKILL)
            _wait(process)
        if problems := self._ledger.problems():
            raise ViolationError("; ".join(problems[:5]))
        if self._subscriber.last_retained < self._ledger.retained_acknowledged:
            raise ViolationError(
                f"the retained message should be {self._ledger.retained_acknowledged} or newer, it "
                f"is {self._subscriber.last_retained}"
            )
        return "drained"

    def _quiet(self) -> bool:
        return self._publisher.idle and all(
            self._ledger.delivered[number] for number in self._ledger.acknowledged
        )

    def _flip(self) -> str:
        """On a copy: what is read back is right, or it is an error that names the place."""
        copy = self._folder / "flipped"
        self._copy(self._store, copy)
        path = copy / "store.avow"
        content = bytearray(path.read_bytes())
        bit = self._random.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        before = _journal(self._store, self._key)
        try:
            after = _journal(copy, self._key)
        except DamagedError as error:
            if "/" not in str(error) and "root" not in str(error) and "inode" not in str(error):
                raise ViolationError(f"damage without a place: {error}") from error
            return "damage reported"
        if after != before:
            raise ViolationError(f"bit {bit} of the container changed the journal unnoticed")
        return "harmless or repaired"

    def _put_old_back(self) -> str:
        """A copy from before the last start is refused; the present one goes on."""
        if not self._old.exists():
            self._copy(self._store, self._old)
        self._calm_start()
        trial = self._folder / "trial"
        self._copy(self._store, trial)
        shutil.copyfile(self._old / "store.avow", trial / "store.avow")
        process = broker.fork_broker(self._core, trial, self._key, None, [])
        code = _wait(process)
        if code != broker.ROLLED_BACK:
            raise ViolationError(f"an old copy was not refused: the broker ended with {code}")
        self._copy(self._store, self._old)
        return "refused"

    def _calm_start(self) -> None:
        with self._broker(None) as process:
            self._traffic(process, lambda: self._publisher.connected)
            os.kill(process, signal.SIGKILL)
            _wait(process)

    def _check_store(self) -> str:
        with Store.open(self._store, self._key) as store:
            damages = list(store.check())
        if damages:
            raise ViolationError(f"the store is damaged in the end: {damages[0]}")
        return "whole"

    def _copy(self, source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)

    @contextmanager
    def _broker(self, plan: Plan | None) -> Iterator[int]:
        """A broker with both clients connected, most of the time."""
        clients = [self._publisher, self._subscriber]
        if self._subscriber.subscribed and plan is not None and self._random.random() < 0.3:
            clients = [self._publisher]
        pairs = [socket.socketpair() for _ in clients]
        process = broker.fork_broker(
            self._core, self._store, self._key, plan, [theirs for _, theirs in pairs]
        )
        for client, (ours, theirs) in zip(clients, pairs, strict=True):
            theirs.close()
            client.attach(ours)
        try:
            yield process
        except BaseException:
            _kill(process)
            raise
        finally:
            self._publisher.lost()
            self._subscriber.lost()

    def _traffic(
        self, process: int, done: Callable[[], bool], *, publish: bool = True
    ) -> int | None:
        """Until `done`, or until the broker has ended: then its exit code."""
        end = time.monotonic() + ROUND_TIMEOUT_S
        clients = (self._publisher, self._subscriber)
        while not done():
            if publish and self._subscriber.subscribed:
                self._publisher.publish()
            links = {client.link: client for client in clients if client.link is not None}
            if self._publisher.link is None or not links:
                return _ended(process)
            waiting = [link for link, client in links.items() if client.waits_to_send]
            left_s = max(0.0, end - time.monotonic())
            ready, writable, _ = select.select(list(links), waiting, [], left_s)
            if not ready and not writable:
                os.kill(process, signal.SIGKILL)
                _wait(process)
                raise ViolationError("the broker stopped answering")
            for link in writable:
                links[link].flush()
            for link in ready:
                links[link].readable()
        return None


def _journal(folder: Path, key: bytes) -> bytes:
    """The journal's bytes; the store is left as it was."""
    store = Store.open(folder, key, read_only=True)
    try:
        return store.read("/journal/records-1")
    finally:
        store.abandon()


def _ended(process: int) -> int:
    """The exit code of a broker that has closed a connection of a client that did nothing wrong."""
    descriptor = os.pidfd_open(process)
    try:
        if not select.select([descriptor], [], [], ROUND_TIMEOUT_S)[0]:
            os.kill(process, signal.SIGKILL)
            _wait(process)
            raise ViolationError("the broker closed a connection, and went on")
    finally:
        os.close(descriptor)
    return _wait(process)


def _kill(process: int) -> None:
    """A broker that a violation has left behind, if it is still there."""
    try:
        os.kill(process, signal.SIGKILL)
        _wait(process)
    except (ProcessLookupError, ChildProcessError):
        pass


def _wait(process: int) -> int:
    """The exit code; minus the signal where one ended it."""
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)
