"""200 seeds of the simulation. AVOW_SEEDS=N runs N; a failure prints the command to repeat it."""

from __future__ import annotations

import os

import pytest

from avow.testing.simulation import run_seeds

SEEDS = int(os.environ.get("AVOW_SEEDS", "200"))
CHUNK = 25
STEPS = 2000


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_seeds(first: int) -> None:
    failures = run_seeds(first, min(CHUNK, SEEDS - first), STEPS, 1)
    assert not failures, "\n\n".join(failures)
