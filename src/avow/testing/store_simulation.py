"""Random work on a sealed store over a disk that lies, beside a model of what must come out.

    python -m avow.testing.store_simulation --lies loud --seeds 0:100

runs each seed and ends with 1 and the seed's story when a store returned what was never committed.
It is a program of its own so that a crash of the process is a failure that is seen.

Lies are *loud* when the store can notice them at once: too few or too many bytes, errors. Then a
commit that returned is there after the next opening, and one that failed is there wholly or not at
all. *Silent* lies, bytes that were changed, swapped, lost or old, may cost data, and may make the
store older as a whole, but never give bytes that were not committed under that sequence number.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from typing import Final

from avow.errors import (
    AvowError,
    DamagedError,
    MalformedError,
    StorageError,
    UnavailableError,
    WrongKeyError,
)
from avow.sealing.store import Store
from avow.testing.lying_disk import OTHER_LIES, READ_LIES, WRITE_LIES, LyingDisk
from avow.testing.simulated_disk import SimulatedDisk

Snapshot = dict[str, bytes | None]

KEY: Final = bytes(range(32))
LOUD: Final = frozenset(
    {"short", "long", "failing", "shortened", "refused", "overlong", "negative", "broken"}
    | {"half broken", *OTHER_LIES}
)
SILENT: Final = frozenset({*READ_LIES, *WRITE_LIES, *OTHER_LIES}) - LOUD
KINDS: Final = {"none": frozenset[str](), "loud": LOUD, "silent": SILENT, "all": LOUD | SILENT}

# What a store may answer when its disk lies.
CLEAN: Final = (StorageError, DamagedError, WrongKeyError, MalformedError, UnavailableError)

_SIZES: Final = (0, 1, 7, 100, 4095, 4096, 4097, 9000, 30_000)
_OFFSETS: Final = (0, 0, 0, 1, 4090, 4096, 8192, 85 * 4096 - 5, 85 * 4096, 500_000)
_START: Final[Snapshot] = {"/": None, "/files": None, "/journal": None, "/cache": None}


class WrongDataError(Exception):
    """The store returned what it must not. The message is the story."""


def snapshot(store: Store) -> Snapshot:
    """All paths and contents."""
    found: Snapshot = {"/": None}
    waiting = ["/"]
    while waiting:
        directory = waiting.pop()
        for entry in store.listdir(directory):
            path = f"{directory.rstrip('/')}/{entry.name}"
            if path in found:
                raise WrongDataError(f"{path} is listed twice")
            if entry.stat.kind == "directory":
                found[path] = None
                waiting.append(path)
            else:
                found[path] = store.read(path)
    return found


class Simulation:
    """One seed: sessions of random work, each over a disk that lies, and honest looks between."""

    def __init__(self, seed: int, lies: str, *, rate: float = 0.02) -> None:
        self.rng = random.Random(f"{seed} {lies}")
        self.seed = seed
        self.strict = lies in {"none", "loud"}
        self.lies = sorted(KINDS[lies])
        self.rate = rate
        self.honest = SimulatedDisk(
            size_max_bytes=self.rng.choice((None, None, 300 * 4096)) if lies != "none" else None
        )
        self.now_ns = 1
        self.story: list[str] = []
        self.committed: Snapshot = dict(_START)
        self.state: Snapshot = dict(_START)
        # Every snapshot that was ever to be committed under a sequence number.
        self.candidates: dict[int, list[Snapshot]] = {}
        self.errors = 0
        self.operations = 0

    def run(self, sessions: int = 4, operations: int = 25) -> None:
        """Raises WrongDataError."""
        with Store.create_on(self.honest, [KEY], entropy=self.entropy, clock_ns=self.clock) as made:
            sequence = made.root.sequence
        # To close commits once more where something changed.
        for number in range(1, sequence + 2):
            self.candidates[number] = [dict(_START)]
        for _ in range(sessions):
            self.session(operations)
            if not self.look():
                return

    def entropy(self, length: int) -> bytes:
        """Never the same twice in one seed."""
        return self.rng.randbytes(length)

    def clock(self) -> int:
        """Nanoseconds; always later."""
        self.now_ns += 1
        return self.now_ns

    def session(self, operations: int) -> None:
        """Opens over the lying disk and works until an error or the end."""
        disk = LyingDisk(self.honest, self.rng, rate=self.rate, lies=self.lies)
        self.state = dict(self.committed)
        self.note("open")
        store: Store | None = None
        try:
            store = Store.open_on(
                disk, KEY, entropy=self.entropy, clock_ns=self.clock, cache_bytes=1 << 16
            )
            if not self.strict:
                self.adopt(store)
            for _ in range(operations):
                self.operations += 1
                self.step(store, disk)
        except CLEAN as error:
            self.errors += 1
            self.note(f"{type(error).__name__}: {error} after {disk.told[-3:]}")
        finally:
            if store is not None:
                store.abandon()

    def adopt(self, store: Store) -> None:
        """Silent lies may have made the store older: it goes on from there."""
        found = snapshot(store)
        self.demand(
            found in self.candidates.get(store.root.sequence, []),
            f"opened with what was never committed as {store.root.sequence}",
        )
        self.state = found
        self.committed = dict(found)

    def look(self) -> bool:
        """Opens the honest disk. False when there is nothing more to be had from it."""
        try:
            store = Store.open_on(
                self.honest.copy(), KEY, entropy=self.entropy, clock_ns=self.clock, read_only=True
            )
        except CLEAN as error:
            self.demand(not self.strict, f"does not open after loud lies: {error}")
            return False
        try:
            found = snapshot(store)
            sequence = store.root.sequence
            damages = list(store.check())
        except CLEAN as error:
            self.demand(not self.strict, f"cannot be read after loud lies: {error}")
            return False
        finally:
            store.abandon()
        self.note(f"look: sequence {sequence}, {len(found)} paths, {len(damages)} damages")
        self.demand(not damages or not self.strict, f"loud lies damaged it: {damages}")
        allowed = self.candidates.get(sequence, [])
        if self.strict:
            allowed = [self.committed, *self.maybe]
        self.demand(found in allowed, "holds what was never committed")
        self.committed = found
        self.maybe = []
        return not damages

    # The snapshot of a commit that failed: it is there, or it is not.
    maybe: Sequence[Snapshot] = ()

    def step(self, store: Store, disk: LyingDisk) -> None:
        """One operation on the store and on the model."""
        weighted: list[tuple[int, Callable[[Store], None]]] = [
            (6, self.write),
            (2, self.truncate),
            (2, self.make_directory),
            (2, self.remove),
            (2, self.rename),
            (6, self.read),
            (2, self.list_names),
            (3, self.commit),
        ]
        operations = [operation for weight, operation in weighted for _ in range(weight)]
        self.rng.choice(operations)(store)
        if self.rng.random() < 0.1:
            disk.remember()

    def write(self, store: Store) -> None:
        path = self.rng.choice(self.files()) if self.rng.random() < 0.5 else self.new_path()
        if self.state.get(path, b"") is None:
            return
        data = self.rng.randbytes(self.rng.choice(_SIZES))
        offset = self.rng.choice(_OFFSETS)
        self.note(f"write {path} {len(data)} at {offset}")
        if path not in self.state:
            store.make_file(path)
            self.state[path] = b""
        store.write(path, data, offset)
        before = self.state[path] or b""
        if data:
            kept = before[:offset].ljust(offset, b"\0")
            self.state[path] = kept + data + before[offset + len(data) :]

    def truncate(self, store: Store) -> None:
        path = self.rng.choice(self.files())
        size = self.rng.choice((*_SIZES, 400_000))
        if path not in self.state:
            return
        self.note(f"truncate {path} to {size}")
        store.truncate(path, size)
        self.state[path] = (self.state[path] or b"")[:size].ljust(size, b"\0")

    def make_directory(self, store: Store) -> None:
        path = self.new_path()
        if path in self.state:
            return
        self.note(f"make directory {path}")
        store.make_directory(path)
        self.state[path] = None

    def remove(self, store: Store) -> None:
        path = self.rng.choice([*self.state])
        if path in _START or self.below(path):
            return
        self.note(f"remove {path}")
        store.remove(path)
        del self.state[path]

    def rename(self, store: Store) -> None:
        old, new = self.rng.choice([*self.state]), self.new_path()
        if old in _START or new in self.state or new.startswith(f"{old}/"):
            return
        self.note(f"rename {old} to {new}")
        store.rename(old, new)
        for path in [old, *self.below(old)]:
            self.state[new + path[len(old) :]] = self.state.pop(path)

    def read(self, store: Store) -> None:
        path = self.rng.choice(self.files())
        expected = self.state.get(path)
        if expected is None:
            return
        offset = self.rng.choice(_OFFSETS)
        length = self.rng.choice(_SIZES)
        self.note(f"read {path} {length} at {offset}")
        found = store.read(path, offset, length)
        self.demand(found == expected[offset : offset + length], f"wrong bytes of {path}")
        self.demand(store.stat(path).size_bytes == len(expected), f"wrong size of {path}")

    def list_names(self, store: Store) -> None:
        path = self.rng.choice([path for path, data in self.state.items() if data is None])
        self.note(f"list {path}")
        found = sorted(entry.name for entry in store.listdir(path))
        prefix = f"{path.rstrip('/')}/"
        expected = [inner[len(prefix) :] for inner in self.state if inner.startswith(prefix)]
        direct = sorted(name for name in expected if name and "/" not in name)
        self.demand(found == direct, f"wrong names in {path}: {found}, not {direct}")

    def commit(self, store: Store) -> None:
        self.note("commit")
        sequence = store.root.sequence
        self.candidates.setdefault(sequence + 1, []).append(dict(self.state))
        self.maybe = [dict(self.state)]
        root = store.commit()
        self.demand(root.sequence in {sequence, sequence + 1}, f"sequence {root.sequence}")
        self.committed = dict(self.state)
        self.maybe = []

    def files(self) -> list[str]:
        """Paths of all files; one that is not there when there are none."""
        return [path for path, data in self.state.items() if data is not None] or ["/files/none"]

    def below(self, path: str) -> list[str]:
        """What lies in a directory, at any depth."""
        return [inner for inner in self.state if inner.startswith(f"{path}/")]

    def new_path(self) -> str:
        """In a directory that is there; the name may be taken."""
        parents = [path for path, data in self.state.items() if data is None and path != "/"]
        name = self.rng.choice(("a", "b", "c", "é" * 20, "long" * 60, "d.txt"))
        return f"{self.rng.choice(parents)}/{name}"

    def note(self, line: str) -> None:
        """For the story."""
        self.story.append(line)

    def demand(self, right: bool, what: str) -> None:
        """Raises WrongDataError with the story."""
        if not right:
            story = "\n  ".join(self.story[-40:])
            raise WrongDataError(f"seed {self.seed}: {what}\n  {story}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the seeds; each is printed before it runs, so that a crash names it."""
    parser = argparse.ArgumentParser(prog="python -m avow.testing.store_simulation")
    parser.add_argument("--lies", choices=sorted(KINDS), default="all")
    parser.add_argument("--seeds", default="0:20", metavar="FROM:TO")
    parser.add_argument("--rate", type=float, default=0.02)
    chosen = parser.parse_args(arguments)
    start, end = (int(text) for text in chosen.seeds.split(":"))
    errors = operations = 0
    for seed in range(start, end):
        print(f"seed {seed}", flush=True)
        simulation = Simulation(seed, chosen.lies, rate=chosen.rate)
        try:
            simulation.run()
        except WrongDataError as error:
            print(error, file=sys.stderr)
            return 1
        except AvowError as error:
            story = "\n  ".join(simulation.story[-10:])
            print(f"seed {seed}: not clean: {error!r}\n  {story}", file=sys.stderr)
            return 1
        errors += simulation.errors
        operations += simulation.operations
    print(f"{end - start} seeds, {operations} operations, {errors} clean errors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
