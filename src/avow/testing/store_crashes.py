"""Long random work on a sealed store that is killed, loses power and fails, beside a model.

    python -m avow.testing.store_crashes --seeds 0:100

runs each seed and ends with 1 and the seed's story when something is not as the model says.
Whatever happens, the next opening finds the last commit that returned, or the one that was under
way; what an opening for writing has found is found again; the second reader reads the same; no slot
is lost and none is used twice; no nonce is used twice under one key.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from avow.errors import AvowError, DamagedError, StorageError, WrongKeyError
from avow.sealing import library
from avow.sealing.library import Result
from avow.sealing.store import Store
from avow.testing.crashing_disk import CrashingDisk
from avow.testing.store_reader import FANOUT, SLOT_BYTES, StoreReader
from avow.testing.store_simulation import WrongDataError

_LINK_KIND: Final = 3
_SIZES: Final = (0, 1, 7, 100, 4095, 4096, 4097, 9000, 30_000, 200_000)
_LARGEST: Final = FANOUT**7 * SLOT_BYTES
_EDGES: Final = (0, 4096, FANOUT * 4096, FANOUT**2 * 4096, 1 << 40, 1 << 56, _LARGEST - 9)
_TOP: Final = ("/files", "/journal", "/cache")


@dataclass
class Node:
    """A directory; or a file or a link with its blocks by number: absent ones are zero."""

    kind: str
    size: int = 0
    blocks: dict[int, bytes] = field(default_factory=dict)

    def read(self, offset: int, length: int) -> bytes:
        """What is there; shorter at the end."""
        end = min(self.size, offset + length)
        parts = []
        while offset < end:
            index, within = divmod(offset, SLOT_BYTES)
            part = self.blocks.get(index, bytes(SLOT_BYTES))[within : within + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Grows when it has to."""
        if data:
            self.size = max(self.size, offset + len(data))
        while data:
            index, within = divmod(offset, SLOT_BYTES)
            part, data = data[: SLOT_BYTES - within], data[SLOT_BYTES - within :]
            old = self.blocks.get(index, bytes(SLOT_BYTES))
            self.blocks[index] = old[:within] + part + old[within + len(part) :]
            offset += len(part)

    def resize(self, size: int) -> None:
        """What is new is zero."""
        self.size = min(self.size, size)
        count, rest = divmod(size, SLOT_BYTES)
        self.blocks = {at: block for at, block in self.blocks.items() if at < count + bool(rest)}
        if rest and count in self.blocks:
            self.blocks[count] = self.blocks[count][:rest].ljust(SLOT_BYTES, b"\0")
        self.size = size


@dataclass
class World:
    """What a store should hold: nodes by path. Two names of one file are one node."""

    nodes: dict[str, Node] = field(default_factory=lambda: {p: Node("directory") for p in _TOP})

    def copy(self) -> World:
        """Nothing shared."""
        copies = {
            id(node): Node(node.kind, node.size, dict(node.blocks)) for node in self.nodes.values()
        }
        return World({path: copies[id(node)] for path, node in self.nodes.items()})

    def of_kind(self, *kinds: str) -> list[str]:
        """Paths."""
        return [path for path, node in self.nodes.items() if node.kind in kinds]

    def below(self, path: str) -> list[str]:
        """At any depth."""
        return [inner for inner in self.nodes if inner.startswith(f"{path}/")]

    def names(self, path: str) -> list[str]:
        """In a directory."""
        return sorted(
            inner[len(path) + 1 :]
            for inner in self.below(path)
            if "/" not in inner[len(path) + 1 :]
        )

    def links(self, node: Node) -> int:
        """How many names a node has."""
        return sum(other is node for other in self.nodes.values())


class CrashSimulation:
    """One seed: sessions of work, each with its own way to end."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"crashes {seed}")
        full_at = self.rng.choice((None, None, None, 600 * SLOT_BYTES))
        self.disk = CrashingDisk(self.rng, size_max_bytes=full_at)
        self.story: list[str] = []
        self.keys = [self.rng.randbytes(32)]
        self.committed = World()
        # What a crash may leave: worlds.
        self.allowed: list[World] = [self.committed]
        self.world = self.committed.copy()
        # Removed while in use: its inode's number and its node.
        self.held: list[tuple[int, Node]] = []
        self.sealed: dict[tuple[bytes, bytes], str] = {}
        self.operations = self.crashes = 0
        self.now_ns = 0

    def run(self, sessions: int = 8, operations: int = 40) -> None:
        """Raises WrongDataError."""
        Store.create_on(self.disk, self.keys, entropy=self.rng.randbytes).close()
        for _ in range(sessions):
            self.session(self.rng.randrange(1, operations))
            self.disk.restart(power=self.rng.random() < 0.5)
            self.look()

    def open(self, *, read_only: bool) -> Store:
        """With a key that may be replaced by now."""
        for key in self.keys:
            try:
                return Store.open_on(
                    self.disk,
                    key,
                    entropy=self.rng.randbytes,
                    clock_ns=self.clock,
                    cache_bytes=0,
                    read_only=read_only,
                )
            except WrongKeyError:
                continue
        raise WrongDataError(f"seed {self.seed}: no key opens it")

    def clock(self) -> int:
        """Always later."""
        self.now_ns += 1
        return self.now_ns

    def look(self) -> None:
        """After a crash: what is there was committed, and is as the document says."""
        try:
            store = self.open(read_only=self.rng.random() < 0.5)
        except AvowError as error:
            raise self.wrong(f"it does not open: {error}") from error
        found = [world for world in self.allowed if self.differs(store, world) is None]
        if not found:
            raise self.wrong("; ".join(str(self.differs(store, each)) for each in self.allowed))
        self.committed = found[-1]
        self.allowed = [self.committed]
        damages = list(store.check())
        self.demand(not damages, f"damages {damages}")
        self.compare_reader(store)
        store.abandon()

    def compare_reader(self, store: Store) -> None:
        """The second reader finds the same slots, and nonces that are new."""
        reader, root = self.reader(), store.root
        self.demand(reader.root.digest == root.digest, "the reader found another root")
        used = root.slots - 4 - root.free_slots
        self.demand(used == len(reader.used), f"{used} slots, {len(reader.used)} reached")
        for use in reader.sealed():
            before = self.sealed.setdefault((use.key, use.nonce), use.what)
            self.demand(before == use.what, f"one nonce for {before} and {use.what}")

    def differs(self, store: Store, world: World) -> str | None:
        """Where a store is not as the world."""
        for path in ("", *world.of_kind("directory")):
            names = [entry.name for entry in store.listdir(path or "/")]
            if names != world.names(path):
                return f"{path or '/'} has {names}, not {world.names(path)}"
        for path in world.of_kind("file", "link"):
            node = world.nodes[path]
            stat = store.stat(path)
            found = (stat.kind, stat.size_bytes, stat.links)
            if found != (node.kind, node.size, world.links(node)):
                return f"{path}: {found}, not {node.kind}, {node.size}, {world.links(node)}"
            for offset, length in windows(node):
                if store.read(path, offset, length) != node.read(offset, length):
                    return f"{path}: other bytes at {offset}"
        return None

    def session(self, operations: int) -> None:
        """Works until it dies, fails or ends."""
        self.note("open")
        self.held = []
        store = self.open(read_only=False)
        # An opening for writing makes durable what it has found.
        self.world = self.committed.copy()
        self.arm()
        try:
            for _ in range(operations):
                self.operations += 1
                self.step(store)
            if self.rng.random() < 0.5:
                self.note("close")
                self.during_commit(store.close)
        except StorageError as error:
            self.crashes += 1
            self.note(f"ended: {error}")
        finally:
            store.abandon()

    def arm(self) -> None:
        """Chooses how this session ends."""
        way = self.rng.randrange(4)
        if way == 0:
            self.disk.dies_in = self.rng.choice((3, 10, 40, 150, 500))
        elif way == 1:
            self.disk.fails = {self.rng.choice(("sync", "write", "resize", "read")): 0.03}
        self.note(f"dies in {self.disk.dies_in}, fails {self.disk.fails}")

    def step(self, store: Store) -> None:
        """One operation on the store and, when it is done, on the model."""
        weighted: list[tuple[int, Callable[[Store, World], None]]] = [
            (8, self.write),
            (4, self.truncate),
            (2, self.make_directory),
            (3, self.make_many),
            (4, self.remove),
            (4, self.rename),
            (2, self.link),
            (1, self.symbolic_link),
            (2, self.hold),
            (2, self.use_held),
            (2, self.verify_held),
            (1, self.let_go),
            (3, self.verify),
            (5, self.commit),
            (1, self.compact),
            (1, self.rotate),
            (1, self.add_key),
        ]
        operation = self.rng.choice([each for weight, each in weighted for _ in range(weight)])
        world = self.world.copy()
        held = [
            (number, world.nodes[path] if path else node)
            for number, node in self.held
            for path in [next((p for p, n in self.world.nodes.items() if n is node), "")]
        ]
        before, self.held = self.held, held
        try:
            operation(store, world)
        except StorageError:
            self.held = before
            if is_broken(store):
                raise
            # It failed and goes on, so it has to be as if nothing was asked for.
            self.note("that failed, and it goes on")
            return
        self.world = world

    def write(self, store: Store, world: World) -> None:
        path = self.path_of(world, "file")
        data = self.rng.randbytes(self.rng.choice(_SIZES))
        offset = self.offset(_LARGEST - len(data))
        self.note(f"write {path} {len(data)} at {offset}")
        if path not in world.nodes:
            store.make_file(path)
            self.world.nodes[path] = Node("file")
            world.nodes[path] = Node("file")
        store.write(path, data, offset)
        world.nodes[path].write(offset, data)

    def truncate(self, store: Store, world: World) -> None:
        path = self.path_of(world, "file")
        size = self.offset(_LARGEST)
        if path in world.nodes:
            self.note(f"truncate {path} to {size}")
            store.truncate(path, size)
            world.nodes[path].resize(size)

    def make_directory(self, store: Store, world: World) -> None:
        path = self.new_path(world)
        if path not in world.nodes:
            self.note(f"make directory {path}")
            store.make_directory(path)
            world.nodes[path] = Node("directory")

    def make_many(self, store: Store, world: World) -> None:
        """So many names that the directory has several blocks."""
        above = self.rng.choice(world.of_kind("directory"))
        self.note(f"make many in {above}")
        for number in range(self.rng.choice((3, 30, 90))):
            path = f"{above}/{'n' * self.rng.choice((1, 40, 200))}{number}"
            if path not in world.nodes:
                store.make_file(path)
                self.world.nodes[path] = Node("file")
                world.nodes[path] = Node("file")

    def remove(self, store: Store, world: World) -> None:
        for _ in range(self.rng.choice((1, 1, 40))):
            left = [path for path in world.nodes if path not in _TOP and not world.below(path)]
            if left:
                path = self.rng.choice(left)
                self.note(f"remove {path}")
                store.remove(path)
                del self.world.nodes[path]
                del world.nodes[path]

    def rename(self, store: Store, world: World) -> None:
        """To a new name or over what may be replaced."""
        olds = [path for path in world.nodes if path not in _TOP]
        if not olds:
            return
        old, new = self.rng.choice(olds), self.new_path(world)
        moved, other = world.nodes[old], world.nodes.get(new)
        if new in _TOP or new == old or new.startswith(f"{old}/") or world.below(new):
            return
        if other is not None and (other.kind == "directory") != (moved.kind == "directory"):
            return
        self.note(f"rename {old} to {new}")
        store.rename(old, new)
        if other is moved:
            return
        world.nodes.pop(new, None)
        for path in [old, *world.below(old)]:
            world.nodes[new + path[len(old) :]] = world.nodes.pop(path)

    def link(self, store: Store, world: World) -> None:
        path, new = self.path_of(world, "file"), self.new_path(world)
        if path in world.nodes and new not in world.nodes:
            self.note(f"link {path} as {new}")
            above, name = new.rsplit("/", 1)
            inode, directory = store.stat(path).inode, store.stat(above).inode
            raw = name.encode()
            native(store, "link", inode, directory, raw, len(raw), self.clock())
            world.nodes[new] = world.nodes[path]

    def symbolic_link(self, store: Store, world: World) -> None:
        path = self.new_path(world)
        if path not in world.nodes:
            self.note(f"symbolic link {path}")
            above, name = path.rsplit("/", 1)
            raw, target = name.encode(), self.rng.randbytes(self.rng.randrange(1, 300))
            directory = store.stat(above).inode
            inode = native(store, "make", directory, raw, len(raw), _LINK_KIND, self.clock())
            self.world.nodes[path] = Node("link")
            world.nodes[path] = Node("link")
            native(store, "write", inode, 0, target, len(target), self.clock())
            world.nodes[path].write(0, target)

    def hold(self, store: Store, world: World) -> None:
        """Uses a file, which may then be removed or replaced."""
        path = self.path_of(world, "file")
        if path in world.nodes:
            inode = store.stat(path).inode
            self.note(f"hold {path}, {inode}")
            native(store, "retain", inode)
            self.held.append((inode, world.nodes[path]))

    def use_held(self, store: Store, world: World) -> None:
        if self.held:
            inode, node = self.rng.choice(self.held)
            data, offset = self.rng.randbytes(self.rng.choice(_SIZES)), self.offset(1 << 40)
            self.note(f"write to held {inode} {len(data)} at {offset}")
            native(store, "write", inode, offset, data, len(data), self.clock())
            node.write(offset, data)

    def verify_held(self, store: Store, world: World) -> None:
        for inode, node in self.held:
            for at, length in windows(node):
                into = ctypes.create_string_buffer(length)
                got = native(store, "read", inode, at, into, length)
                self.demand(into.raw[:got] == node.read(at, length), f"held {inode} at {at}")

    def let_go(self, store: Store, world: World) -> None:
        if self.held:
            inode, _ = self.held.pop(self.rng.randrange(len(self.held)))
            self.note(f"let go {inode}")
            native(store, "release", inode, self.clock())

    def verify(self, store: Store, world: World) -> None:
        wrong = self.differs(store, world)
        self.demand(wrong is None, str(wrong))

    def commit(self, store: Store, world: World) -> None:
        self.note("commit")
        self.during_commit(store.commit)
        if self.rng.random() < 0.3:
            fails, self.disk.fails = self.disk.fails, {}
            if self.disk.dies_in is None:
                self.compare_reader(store)
            self.disk.fails = fails

    def compact(self, store: Store, world: World) -> None:
        rewrite = self.rng.random() < 0.3
        self.note(f"compact, rewrite {rewrite}")
        self.during_commit(lambda: store.compact(rewrite=rewrite))

    def rotate(self, store: Store, world: World) -> None:
        self.note("rotate")
        if len(self.reader().root.data_keys) < 32:
            # A rotation that is cut may leave the keys from before.
            self.keys = [self.rng.randbytes(32), *self.keys]
            self.during_commit(lambda: store.rotate(self.keys[:1]))
            self.keys = self.keys[:1]

    def add_key(self, store: Store, world: World) -> None:
        if len(store.root.key_ids) < 8:
            self.note("add key")
            key = self.rng.randbytes(32)
            self.during_commit(lambda: store.add_key(key))
            self.keys.append(key)

    def reader(self) -> StoreReader:
        """Of what the machine has now; with the key that finds most."""
        readers = []
        for key in self.keys:
            # The key from before a rotation that was cut opens an older root that is not whole.
            with contextlib.suppress(WrongKeyError, DamagedError):
                readers.append(StoreReader(self.disk.image, key))
        self.demand(bool(readers), "the second reader does not open it")
        return max(readers, key=lambda reader: reader.root.sequence)

    def during_commit(self, commit: Callable[[], object]) -> None:
        """Until it has returned, both worlds may be found."""
        now = self.world.copy()
        self.allowed = [self.committed, now]
        commit()
        self.committed = now
        self.allowed = [now]

    def offset(self, largest: int) -> int:
        """Small, or around where the tree gets higher."""
        if self.rng.random() < 0.5:
            return self.rng.randrange(40_000)
        return max(0, min(largest, self.rng.choice(_EDGES) + self.rng.randrange(-9, 10)))

    def path_of(self, world: World, kind: str) -> str:
        """One that is there, or a new one."""
        found = [path for path in world.of_kind(kind) if not path.split("/")[-1].startswith("n")]
        if found and self.rng.random() < 0.7:
            return self.rng.choice(found)
        path = self.new_path(world)
        return path if path not in world.nodes else self.rng.choice(found or ["/files/only"])

    def new_path(self, world: World) -> str:
        """In a directory that is there; the name may be taken."""
        name = self.rng.choice(("a", "b", "c", "d", "é" * 20, "long" * 60))
        return f"{self.rng.choice(world.of_kind('directory'))}/{name}"

    def note(self, line: str) -> None:
        """For the story."""
        self.story.append(line)

    def demand(self, right: bool, what: str) -> None:
        """Raises WrongDataError with the story."""
        if not right:
            raise self.wrong(what)

    def wrong(self, what: str) -> WrongDataError:
        """With the story."""
        story = "\n  ".join(self.story[-60:])
        return WrongDataError(f"seed {self.seed}: {what}\n  {story}")


def windows(node: Node) -> Iterator[tuple[int, int]]:
    """Where to look at a file that may be too large to be read: its blocks, and around edges."""
    if node.size <= 1 << 20:
        yield 0, node.size + 10
        return
    for index in node.blocks:
        yield index * SLOT_BYTES, SLOT_BYTES
    for edge in (*_EDGES, node.size):
        yield max(0, edge - 100), 200


def native(store: Store, name: str, *arguments: object) -> int:
    """What the sandbox does and Python has no name for. Raises what the store would."""
    code: int = getattr(library.load(), f"avow_store_{name}")(store.handle, *arguments)
    if code < 0:
        raise store.error(code, name)
    return code


def is_broken(store: Store) -> bool:
    """Whether it does nothing more."""
    code: int = library.load().avow_store_lookup(store.handle, 1, b"files", 5)
    return code == Result.BROKEN


def main(arguments: list[str] | None = None) -> int:
    """Runs the seeds; each is printed before it runs, so that a crash names it."""
    parser = argparse.ArgumentParser(prog="python -m avow.testing.store_crashes")
    parser.add_argument("--seeds", default="0:20", metavar="FROM:TO")
    chosen = parser.parse_args(arguments)
    start, end = (int(text) for text in chosen.seeds.split(":"))
    operations = crashes = 0
    for seed in range(start, end):
        print(f"seed {seed}", flush=True)
        simulation = CrashSimulation(seed)
        try:
            simulation.run()
        except WrongDataError as error:
            print(error, file=sys.stderr)
            return 1
        except AvowError as error:
            print(simulation.wrong(f"not clean: {error!r}"), file=sys.stderr)
            return 1
        operations += simulation.operations
        crashes += simulation.crashes
    print(f"{end - start} seeds, {operations} operations, {crashes} crashes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
