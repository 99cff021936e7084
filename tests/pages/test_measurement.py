"""Building what is measured, and measuring it into a TPM."""

from __future__ import annotations

import os
import signal

import pytest

import hatch_build
from tests.pages.running import DOCS, Reader, steps_of


def test_measurement(reader: Reader) -> None:
    installed, built, by_hand, runtime = reader.run((DOCS / "how-to/measurement.md").read_text())
    assert by_hand.split()[0] == installed.strip()
    assert installed.strip() in built
    assert "wasmtime" in runtime


def test_described_command_is_the_one_that_builds() -> None:
    by_hand = steps_of((DOCS / "how-to/measurement.md").read_text())[2]
    words = by_hand.text.replace("\\\n", " ").split("\n")[0].split()
    assert words[:3] == ["python", "-m", "ziglang"]
    assert tuple(words[3:-1]) == hatch_build.core().command


@pytest.mark.openssl
@pytest.mark.tpm
def test_tpm(reader: Reader) -> None:
    try:
        printed = reader.run((DOCS / "how-to/tpm.md").read_text())
    finally:
        process = reader.place / "work/swtpm.pid"
        if process.exists():
            os.kill(int(process.read_text()), signal.SIGTERM)
    assert "room/door locked\n" in printed
    assert any("--tee auto would take tpm" in output for output in printed)
