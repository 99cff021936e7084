"""Random work over a disk that lies: right data or a clean error, and the process lives.

The work is done by `python -m avow.testing.store_simulation`, so that a crash of the process fails
the test. A failure names its seed, which plays it again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from avow.testing import store_simulation
from avow.testing.store_simulation import KINDS, Simulation, WrongDataError

SEEDS = {"none": 20, "loud": 120, "silent": 120, "all": 60}


def run(lies: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", store_simulation.__name__, "--lies", lies, *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("lies", sorted(KINDS))
def test_right_data_or_a_clean_error(lies: str) -> None:
    done = run(lies, "--seeds", f"0:{SEEDS[lies]}")
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-4000:]
    found = re.search(r"(\d+) operations, (\d+) clean errors", done.stdout)
    assert found is not None
    operations, errors = map(int, found.groups())
    # The simulation did something, and the lies were noticed.
    assert operations > 10 * SEEDS[lies]
    assert (errors > SEEDS[lies] / 4) == (lies != "none")


def test_wrong_data_would_be_noticed() -> None:
    simulation = Simulation(1, "none")
    simulation.run(sessions=1)
    (path,) = [path for path, data in simulation.committed.items() if data][:1]
    simulation.committed[path] = b"something else"
    with pytest.raises(WrongDataError, match="never committed"):
        simulation.look()
