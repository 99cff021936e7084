"""A store with an id, for anchors that know it by that."""

from __future__ import annotations

from dataclasses import dataclass

from tests.unit.sealing.anchor_world import Disk, FakeRoot, FakeStore, Power

STORE_ID = bytes(range(16))


@dataclass(frozen=True)
class IdentifiedRoot(FakeRoot):
    store_id: bytes = STORE_ID


class IdentifiedStore(FakeStore):
    """`root_id` may be changed before it is used."""

    def __init__(
        self, disk: Disk, power: Power | None = None, root: FakeRoot | None = None
    ) -> None:
        super().__init__(disk, power, root)
        self.root_id = STORE_ID

    @property
    def root(self) -> IdentifiedRoot:
        plain = super().root
        return IdentifiedRoot(plain.sequence, plain.digest, plain.anchor, self.root_id)
