"""The tests beside the core's own sources, run by the pinned compiler."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "core" / "src"


@pytest.mark.parametrize("name", ["bytes.zig", "hash.zig"])
def test_zig(name: str, tmp_path: Path) -> None:
    source = SOURCES / name
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "test", str(source), "-O", "ReleaseSafe"),
            *("--cache-dir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    tests = source.read_text().count('\ntest "')
    assert f"All {tests} tests passed" in done.stderr
