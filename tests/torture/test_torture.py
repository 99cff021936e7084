"""A share of the faults in every run of the tests; `make torture` makes as many as asked for."""

from __future__ import annotations

from pathlib import Path

from tests.torture.faults import Kind
from tests.torture.harness import Torture

FAULTS = 500


def test_nothing_acknowledged_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    torture = Torture(tmp_path, seed=20261121)
    lines = list(torture.run(FAULTS))
    assert len(lines) == FAULTS
    # Every kind did what it is for at least once, or the run would prove little.
    happened = set(torture.happened)
    for kind in (Kind.FULL, Kind.SYNC, Kind.WRITE):
        assert f"{kind.name}: stopped by itself" in happened
    for kind in (Kind.KILL, Kind.CUT, Kind.POWER, Kind.SHORT):
        assert f"{kind.name}: killed" in happened
    assert "FLIP: damage reported" in happened
    assert "OLD: refused" in happened
