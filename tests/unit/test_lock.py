"""The lock files fit pyproject.toml, name a hash for everything, and are what is used."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from avow.runtime.installation import installation
from avow.runtime.manifest import PACKAGE
from requirements.lock import FOLDER, wanted

ROOT = FOLDER.parent
SETS = wanted(ROOT / "pyproject.toml")
# A line goes on behind a backslash; then come the hashes.
_ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;]+)(?: ; ([^\\]+?))? \\$")
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def locked(name: str) -> Mapping[str, str]:
    """Versions by name. Every line has to be one that pip checks."""
    versions: dict[str, str] = {}
    hashes: dict[str, int] = {}
    last = ""
    for line in (FOLDER / f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        if entry := _ENTRY.match(line):
            last = canonicalize_name(entry[1])
            marker = Requirement(f"{last} ; {entry[3]}").marker if entry[3] else None
            if marker is None or marker.evaluate() or last not in versions:
                versions[last] = entry[2]
            hashes.setdefault(last, 0)
        else:
            assert _HASH.match(line), line
            hashes[last] += 1
    assert versions
    assert all(hashes.values())
    return versions


@pytest.mark.parametrize("name", SETS)
def test_lock_fits_what_is_required(name: str) -> None:
    versions = locked(name)
    for each in SETS[name]:
        requirement = Requirement(each)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (each, version)


def test_a_version_is_the_same_wherever_it_stands() -> None:
    together: dict[str, str] = {}
    for name in SETS:
        for package, version in locked(name).items():
            assert together.setdefault(package, version) == version, package


def test_what_runs_is_what_is_locked() -> None:
    """The closure that is measured is whole, and of these versions."""
    versions = locked("tpm")
    for part in installation(PACKAGE).distributions:
        assert versions[part.name] == part.version == importlib.metadata.version(part.name)


def test_no_lock_names_a_host() -> None:
    assert set(SETS) == {path.stem for path in FOLDER.glob("*.txt")}
    for name in SETS:
        text = (FOLDER / f"{name}.txt").read_text()
        assert "://" not in text
        assert "--index" not in text


def _installs() -> Iterator[tuple[str, str]]:
    for path in (
        ROOT / "Makefile",
        ROOT / ".ci/run",
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
    ):
        for line in path.read_text().splitlines():
            if re.match(r"\s*(\$\(PIP\)|pip|\S*python3? -m pip) install", line):
                yield path.relative_to(ROOT).as_posix(), line.strip()


def test_avow_is_installed_by_hashes_everywhere() -> None:
    """What a page installs besides (a client's library, a compiler for programs) is not avow."""
    found = list(_installs())
    own = [each for each in found if re.search(r"requirements/|[ '\"]\.(\[|'|\"|$)", each[1])]
    assert {"Makefile", "README.md", "docs/quick-start.md"} <= {name for name, _ in own}
    for name, line in own:
        assert "--require-hashes" in line or "--no-deps --no-build-isolation" in line, (name, line)
