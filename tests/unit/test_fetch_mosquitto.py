"""The mirror that the bench takes packages from is the one that apt is set to, in both forms."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.fetch_mosquitto import SOURCES, FetchError, mirror_of

OTHERS = (
    "deb http://mirror.example/debian-security bookworm-security main\n"
    "deb http://packages.example/broker bookworm main\n"
)
ONE_LINE = "# a comment\ndeb [arch=amd64] http://mirror.example/pub/debian bookworm main contrib\n"
DEB822 = """\
Types: deb deb-src
URIs: http://mirror.example/pub/debian/
Suites: bookworm bookworm-updates
Components: main
Architectures: amd64
"""


@pytest.mark.parametrize(("name", "content"), [("a.list", ONE_LINE), ("a.sources", DEB822)])
def test_mirror_is_that_of_apt(name: str, content: str, tmp_path: Path) -> None:
    """Read by apt itself, from a folder of its own."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (tmp_path / folder).mkdir(parents=True)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "0.list").write_text(OTHERS)
    (parts / name).write_text(content)
    settings = {
        "APT::Architecture": "amd64",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": parts,
        "Dir::State": tmp_path / "state",
        "Dir::Cache": tmp_path / "cache",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    said = subprocess.run(
        [SOURCES[0], *options, *SOURCES[1:]], capture_output=True, text=True, check=True
    )
    assert mirror_of(said.stdout) == "http://mirror.example/pub/debian"


def test_without_a_mirror_there_is_a_sentence() -> None:
    with pytest.raises(FetchError, match="--mirror URL"):
        mirror_of("'http://mirror.example/debian-security/dists/x/InRelease' x_InRelease 0 ")
