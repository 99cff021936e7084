"""The table of defences fits the sources; `python -m tests.adversary.wasi_defences` tries it."""

from __future__ import annotations

import pytest

from tests.adversary.wasi_defences import DEFENCES, ROOT, Defence, without


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.statement[:40])
def test_defence_is_there(defence: Defence) -> None:
    assert without(defence)
    assert (ROOT / "tests" / defence.missed_by).is_file()
