"""All targets, with seeds of real evidence where the folder is, and two with a planted mistake."""

from __future__ import annotations

import os
from pathlib import Path

from avow.testing.evidence_fuzzing import Target
from avow.testing.evidence_targets import targets

_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "vectors"


def known_targets() -> dict[str, Target]:
    """By name; the planted ones show that the fuzzer finds something."""
    folder = Path(os.environ.get("AVOW_VECTORS") or _BESIDE)
    vectors = folder if (folder / "README.md").is_file() else None
    return targets(vectors) | {
        name: Target(name, parse, [b"evidence"])
        for name, parse in (("planted", _planted), ("planted-endless", _endless))
    }


def _planted(content: bytes) -> None:
    if content[:2] == b"ev" and content[8:10] == b"\0\0":
        raise KeyError("planted")


def _endless(content: bytes) -> None:
    while content[:2] == b"ev" and content[8:10] == b"\0\0":
        content = bytes(content)
