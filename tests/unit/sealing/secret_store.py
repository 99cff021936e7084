"""A store with files, for anchors that keep their secret in it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.unit.sealing.anchor_world import Disk, FakeRoot, FakeStore, Power

STORE_ID = bytes(range(16))


@dataclass(frozen=True)
class IdentifiedRoot(FakeRoot):
    store_id: bytes = STORE_ID


class SecretStore(FakeStore):
    """`files` are what is in it, kept over its lives."""

    def __init__(
        self,
        disk: Disk,
        power: Power | None = None,
        root: FakeRoot | None = None,
        files: dict[str, bytes] | None = None,
    ) -> None:
        super().__init__(disk, power, root)
        self.files = {} if files is None else files
        self.root_id = STORE_ID

    @property
    def root(self) -> IdentifiedRoot:
        plain = super().root
        return IdentifiedRoot(plain.sequence, plain.digest, plain.anchor, self.root_id)

    def exists(self, path: str) -> bool:
        return path in self.files

    def make_file(self, path: str) -> None:
        assert path not in self.files
        self.files[path] = b""

    def read(self, path: str) -> bytes:
        return self.files[path]

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = data
