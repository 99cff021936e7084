"""A run names failures as they come, counts what it leaves out, and lets signals reach programs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
SETTINGS = """
[pytest]
markers =
    disk: needs a disk (apt-get install disk)
    tape: needs a tape
"""
TESTS = """
import signal
import subprocess

import pytest

def test_signals():
    status = ["grep", "SigIgn", "/proc/self/status"]
    ignored = int(subprocess.check_output(status, text=True).split()[1], 16)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        assert not ignored & 1 << number - 1, number

def test_wrong():
    assert 1 == 2

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_never_starts(broken):
    pass

@pytest.mark.disk
@pytest.mark.parametrize("number", range(2))
def test_of_disks(number):
    pass

@pytest.mark.disk
@pytest.mark.tape
def test_of_both():
    pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_failures_are_named_and_what_is_left_out_is_counted(tmp_path: Path, workers: str) -> None:
    (tmp_path / "conftest.py").write_bytes(CONFTEST.read_bytes())
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [
            # As nohup and a script's `&` start it.
            *("sh", "-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh"),
            *(sys.executable, "-m", "pytest", "-n", workers, "-m", "not (disk or tape)"),
            "--tb=short",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    running, _, summary = done.stdout.partition("= ERRORS =")
    assert "1 failed, 1 passed, " in summary
    assert "FAILED test_it.py::test_wrong - assert 1 == 2\n" in running
    assert "FAILED test_it.py::test_never_starts - RuntimeError: no fixture\n" in running
    said = re.search(r"^=+ left out: 3 =+\n((?: .*\n)+)", summary, re.MULTILINE)
    assert said is not None, summary
    assert said[1].splitlines() == [
        "   2 disk: needs a disk (apt-get install disk)",
        "       2 test_it.py",
        "   1 disk: needs a disk (apt-get install disk); tape: needs a tape",
        "       1 test_it.py",
    ]
