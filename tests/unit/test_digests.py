"""The list of digests is of this version and, where the sources are the same, of this build."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import avow
from docs.digests import ABSENT, PAGE, PYTHONS, Runtime, natives, page, sources

ROOT = Path(__file__).resolve().parents[2]
_SHA256 = "`[0-9a-f]{64}`"


def rows(text: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_list_is_of_this_version() -> None:
    text = PAGE.read_text()
    assert text.startswith(f"# Digests of avow {avow.__version__}\n")
    found = {row[0]: row[1:] for row in rows(text)}
    assert {"`broker.wasm`", "`libavow_pump.so`", "`libavow_vault.so`"} <= set(found)
    for minor in PYTHONS:
        (row,) = (row for name, row in found.items() if re.fullmatch(rf"{minor}(\.\d+)?", name))
        assert len(row) == 2
        assert all(re.fullmatch(_SHA256, cell) or " " in cell for cell in row)


def test_every_python_that_avow_is_for_is_in_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert tuple(named) == PYTHONS


def test_where_the_sources_are_the_same_so_is_what_is_built() -> None:
    text = PAGE.read_text()
    (made_of,) = re.findall(r"native sources with the SHA-256 `([0-9a-f]{64})`", text)
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows(text) if ".so" in row[0]}
    listed |= {row[0].strip("`"): row[1].strip("`") for row in rows(text) if ".wasm" in row[0]}
    if made_of == sources():
        assert listed == dict(natives())
    else:
        # Between two releases the sources go on; a release has a list of its own.
        assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(), "run `make digests`"


def test_a_python_that_is_not_here_is_said() -> None:
    text = page({"broker.wasm": "0" * 64}, [Runtime("3.13", ABSENT, ABSENT)])
    assert ["3.13", ABSENT, ABSENT] in rows(text)
