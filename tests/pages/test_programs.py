"""The sandbox's pages."""

from __future__ import annotations

import pytest

from tests.pages.running import DOCS, Reader


def test_run(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/run.md").read_text())
    assert any("configuration  sha256:" in each for each in printed)


def test_programs(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/programs.md").read_text())
    assert any("green\n" in each for each in printed)
    assert "hello, argument\n" in printed
    assert printed[-1].endswith("sensors: 1, lines refused: 0\n")


def test_sqlite(reader: Reader) -> None:
    (printed,) = reader.run((DOCS / "how-to/sqlite.md").read_text())
    assert printed.endswith("1|2\n")


@pytest.mark.openssl
def test_attested_programs(reader: Reader) -> None:
    printed = reader.run((DOCS / "how-to/attested-programs.md").read_text())
    assert printed[-1].startswith("accepted: ")
