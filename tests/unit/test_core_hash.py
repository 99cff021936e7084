"""The tests beside the core's hash, run by the pinned compiler: how chosen texts spread."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "core" / "src" / "hash.zig"


def test_chosen_texts_have_distinct_hashes(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "test", str(SOURCE), "-O", "ReleaseSafe"),
            *("--cache-dir", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    tests = SOURCE.read_text().count('\ntest "')
    assert f"All {tests} tests passed" in done.stderr
