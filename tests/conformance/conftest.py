"""Fixtures of the conformance tests: the compiled core under a fake clock."""

from __future__ import annotations

import pytest

from avow.testing.core_driver import CoreDriver


@pytest.fixture
def core() -> CoreDriver:
    """A core with its default settings, without `$SYS` messages."""
    return CoreDriver()
