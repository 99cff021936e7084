"""The pages on which a new user begins."""

from __future__ import annotations

import pytest

from tests.pages.running import DOCS, Reader


def test_platforms_of_this_machine(reader: Reader) -> None:
    (printed,) = reader.run((DOCS / "platforms/index.md").read_text())
    assert "simulated" in printed


@pytest.mark.openssl
def test_quick_start(reader: Reader) -> None:
    printed = reader.run((DOCS / "quick-start.md").read_text())
    assert "room/door open\n" in printed
    assert "room/door closed\n" in printed
    assert printed.count("room/door locked\n") == 2
    assert any("SIMULATED" in output and "accepted" in output for output in printed)
