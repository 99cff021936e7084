"""Whoever is shown something that has not begun yet has a clock that is behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from avow.evidence.validity import advice_at

BEGINS = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize("early_s", [1, 86_400 * 365 * 20])
def test_what_has_not_begun(early_s: int) -> None:
    said = advice_at(BEGINS - timedelta(seconds=early_s), BEGINS, "renew it")
    assert said.startswith("set this machine's clock")
    assert "renew" not in said
    assert f"{BEGINS - timedelta(seconds=early_s):%Y-%m-%d %H:%M}" in said


@pytest.mark.parametrize("late_s", [0, 1, 10_000_000])
def test_what_has_ended(late_s: int) -> None:
    assert advice_at(BEGINS + timedelta(seconds=late_s), BEGINS, "renew it") == "renew it"
