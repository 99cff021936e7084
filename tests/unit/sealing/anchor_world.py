"""A store and anchors that may crash before and after every step, and what is left of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from avow.errors import RolledBackError
from avow.sealing.anchor import NO_BRANCH, Anchor, CounterAnchor, Remembered, Root, Step
from avow.sealing.witness import Kind, Record, Request, State, Status, StoreName, decide


@dataclass(frozen=True)
class FakeRoot:
    sequence: int
    digest: bytes
    anchor: int


class Crashed(BaseException):
    """The power went."""


@dataclass
class Power:
    """Goes at the `fails_at`th step: half of the steps are before something, half after."""

    fails_at: int = -1
    steps: int = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps - 1 == self.fails_at:
            raise Crashed


@dataclass
class Disk:
    """All roots that were ever durable; a host may put back any of them."""

    roots: list[FakeRoot] = field(
        default_factory=lambda: [FakeRoot(1, hashlib.sha256(b"1").digest(), 0)]
    )
    files: dict[bytes, dict[str, bytes]] = field(default_factory=dict)


class FakeStore:
    """What `open_fresh` needs of a store, on a disk."""

    def __init__(self, disk: Disk, power: Power | None = None, root: FakeRoot | None = None):
        self._disk = disk
        self._power = power or Power()
        self._root = disk.roots[-1] if root is None else root
        self.files = dict(disk.files.get(self._root.digest, {}))

    @property
    def root(self) -> FakeRoot:
        return self._root

    def exists(self, path: str) -> bool:
        return path in self.files

    def make_file(self, path: str) -> None:
        assert path not in self.files
        self.files[path] = b""

    def read(self, path: str) -> bytes:
        return self.files[path]

    def write(self, path: str, data: bytes) -> None:
        assert path in self.files
        self.files[path] = data

    def commit(self, *, anchor: int | None = None) -> FakeRoot:
        self._power.step()
        value = self._root.anchor if anchor is None else anchor
        made = b"%d" % len(self._disk.roots)
        digest = hashlib.sha256(self._root.digest + made).digest()
        self._root = FakeRoot(self._root.sequence + 1, digest, value)
        self._disk.roots.append(self._root)
        self._disk.files[digest] = dict(self.files)
        self._power.step()
        return self._root


@dataclass
class Chip:
    """A counter and a hash as a TPM has them: the first number is whatever was counted before."""

    value: int | None = None
    branch: bytes = NO_BRANCH
    highest: int = 41
    power: Power = field(default_factory=Power)

    def read(self) -> tuple[int, bytes] | None:
        return None if self.value is None else (self.value, self.branch)

    def begin(self) -> tuple[int, bytes]:
        self.branch = NO_BRANCH
        self.extend(bytes(32))
        self.power.step()
        self.value = self.highest = self.highest + 1
        self.power.step()
        return self.value, self.branch

    def extend(self, nonce: bytes) -> bytes:
        self.power.step()
        self.branch = hashlib.sha256(self.branch + nonce).digest()
        self.power.step()
        return self.branch

    def increment(self) -> int:
        assert self.value is not None
        self.power.step()
        self.value = self.highest = self.value + 1
        self.power.step()
        return self.value

    def close(self) -> None:
        pass


@dataclass
class Notebook:
    """A witness's memory, by the witness's own rules, without the bytes between."""

    record: Record | None = None
    power: Power = field(default_factory=Power)


class NotebookAnchor:
    """As `WitnessAnchor`, for one store."""

    name = "the notebook"

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._known = b""

    def read(self) -> Remembered | None:
        record = self._notebook.record
        self._known = bytes(32) if record is None else record.state.digest
        if record is None:
            return None
        state = record.state
        return Remembered(state.anchor, state.branch, state.sequence, state.digest)

    def begin(self) -> Remembered:
        return Remembered(0, NO_BRANCH)

    def advance(self, step: Step, root: Root) -> None:
        self._change(Kind.ADVANCE, State(root.sequence, step.to, root.digest, step.branch))

    def accept(self, step: Step, root: Root) -> None:
        self._change(Kind.ACCEPT, State(root.sequence, step.to, root.digest, step.branch))

    def close(self) -> None:
        pass

    def _change(self, kind: Kind, state: State) -> None:
        self._notebook.power.step()
        request = Request(kind, 1, bytes(32), StoreName(bytes(32), bytes(16)), self._known, state)
        answer = decide(self._notebook.record, request)
        if answer.status is not Status.DONE:
            raise RolledBackError(f"the notebook says {answer.status.name}")
        self._notebook.record = answer.record
        self._known = state.digest
        self._notebook.power.step()


@dataclass
class World:
    """One disk and one anchor, over many lives."""

    kind: str
    disk: Disk = field(default_factory=Disk)
    chip: Chip = field(default_factory=Chip)
    notebook: Notebook = field(default_factory=Notebook)

    def live(self, power: Power | None = None, root: FakeRoot | None = None) -> Life:
        """A process that starts, with the newest root on the disk or another one."""
        power = power or Power()
        self.chip.power = self.notebook.power = power
        anchor: Anchor = (
            CounterAnchor(self.chip, "the chip")
            if self.kind == "counter"
            else NotebookAnchor(self.notebook)
        )
        return Life(FakeStore(self.disk, power, root), anchor)

    @property
    def memory(self) -> int:
        """The anchor's value."""
        if self.kind == "counter":
            return self.chip.value or 0
        return 0 if self.notebook.record is None else self.notebook.record.state.anchor


@dataclass
class Life:
    store: FakeStore
    anchor: Anchor


def kinds() -> Iterator[str]:
    """Of anchors."""
    yield from ("counter", "notebook")
