"""Numbers in messages stand with the right form of their noun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import avow
from avow.errors import counted

SOURCES = Path(avow.__file__).parent
# A number that the program has counted, and a plural that is always one.
ALWAYS_PLURAL = re.compile(
    r"\{(?:len\([^{}]*\)|count|total)(?::,)?\} (?:bytes|characters|files|keys|stores|fields|rules|"
    r"users|clients|listeners|messages|connections)\b"
)


@pytest.mark.parametrize(("number", "said"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_one_is_no_plural(number: int, said: str) -> None:
    assert counted(number, "file") == said


def test_messages_use_it() -> None:
    assert ALWAYS_PLURAL.search('f"wrote {len(found)} files"')
    assert ALWAYS_PLURAL.search('f"{count:,} bytes"')
    wrong = []
    for path in SOURCES.rglob("*.py"):
        text = path.read_text()
        assert "(s)" not in re.sub(r'""".*?"""', "", text, flags=re.DOTALL), path
        if "testing" not in path.parts:
            wrong += [f"{path.name}: {found[0]}" for found in ALWAYS_PLURAL.finditer(text)]
    assert wrong == []
