"""The 64 bytes that avow asks a TEE to sign, and the tree that lets one signature serve many.

A leaf is `SHA-512("avow evidence v1" || SHA-512(claims) || binder)`, for claims as encoded and a
binder of 64 bytes. Two nodes are joined as `SHA-512("avow evidence v1 tree" || left || right)`; a
node without a partner moves up as it is, so with one leaf the root is that leaf. Leaves and nodes
have preimages of 144 and of 149 bytes: neither can be taken for the other. The root is the report
data.

`ReportData` can be made in this module only. Whatever else calls a TEE has no way to have it sign
bytes of its choosing: no component is an oracle that quotes what a caller says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from avow.errors import MalformedError
from avow.evidence.claims import Claims

REPORT_DATA_BYTES: Final = 64
BINDER_BYTES: Final = 64
# 65,536 leaves in one batch are far more than may wait.
PATH_STEPS_MAX: Final = 16

_LEAF: Final = b"avow evidence v1"
_NODE: Final = b"avow evidence v1 tree"
_MAKING: Final = object()


class ReportData:
    """64 bytes that came about by the rule above. Attesters take this and nothing else."""

    __slots__ = ("content",)

    def __init__(self, content: bytes, making: object) -> None:
        if making is not _MAKING:
            raise TypeError("expected report data to be made by avow.evidence, got other bytes")
        self.content: Final = content


@dataclass(frozen=True, slots=True)
class Step:
    """One step from a leaf to the root: the sibling (64 bytes), and whether it is the left one."""

    sibling: bytes
    sibling_is_left: bool


Path = tuple[Step, ...]


def leaf(claims: bytes, binder: bytes) -> bytes:
    """The leaf (64 bytes) for encoded claims and a binder of 64 bytes."""
    if len(binder) != BINDER_BYTES:
        raise MalformedError(
            f"expected a binder of {BINDER_BYTES} bytes, got {len(binder)}; report this"
        )
    return hashlib.sha512(_LEAF + hashlib.sha512(claims).digest() + binder).digest()


def root_of(leaf_digest: bytes, path: Path) -> bytes:
    """The root (64 bytes) that `path` leads to from a leaf."""
    node = leaf_digest
    for step in path:
        node = _join(step.sibling, node) if step.sibling_is_left else _join(node, step.sibling)
    return node


def batch(requests: Sequence[tuple[Claims, bytes]]) -> tuple[ReportData, list[Path]]:
    """The report data for several (claims, binder), and the path of each; at least one is given.

    Raises `MalformedError` for more than 65,536, or for a binder of another size.
    """
    if not 0 < len(requests) <= 2**PATH_STEPS_MAX:
        raise MalformedError(
            f"expected 1 to {2**PATH_STEPS_MAX} requests in a batch, got {len(requests)}; split it"
        )
    level = [leaf(claims.encoded(), binder) for claims, binder in requests]
    paths: list[list[Step]] = [[] for _ in requests]
    places = list(range(len(requests)))
    while len(level) > 1:
        for request, place in enumerate(places):
            sibling = place ^ 1
            if sibling < len(level):
                paths[request].append(Step(level[sibling], sibling < place))
        level = [
            _join(level[index], level[index + 1]) if index + 1 < len(level) else level[index]
            for index in range(0, len(level), 2)
        ]
        places = [place // 2 for place in places]
    return ReportData(level[0], _MAKING), [tuple(path) for path in paths]


def _join(left: bytes, right: bytes) -> bytes:
    return hashlib.sha512(_NODE + left + right).digest()
