"""A reader of pages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.pages.running import Reader, install


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout with avow in its `.venv`, one for all processes of this run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return install(shared / "reader")


@pytest.fixture
def reader(installed: Path, tmp_path: Path) -> Reader:
    """One who begins with an empty folder and an empty home."""
    return Reader(installed, tmp_path)
