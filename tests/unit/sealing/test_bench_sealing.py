"""The bench of sealed stores: a short run, and its verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import sealing
from bench.sealing import AES, COMMITS, RAW, READ, SYNCS, WRITE, Size

MEASURED = {AES: 1000.0, WRITE: 500.0, READ: 500.0, COMMITS: 10.0, RAW: 2000.0, SYNCS: 20.0}


def test_a_short_run_measures_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sealing, "QUICK", Size(rounds=2, file_bytes=1 << 20, commits=3))
    path = tmp_path / "results.json"
    arguments = ["--quick", "--json", str(path), "--folder", str(tmp_path)]
    assert sealing.main(arguments) == 0
    content = json.loads(path.read_text())
    assert len(content["samples"]) == 2
    assert all(value > 0 for sample in content["samples"] for value in sample.values())
    assert "sequential read" in capsys.readouterr().out
    # Nothing is left of the stores.
    assert list(tmp_path.iterdir()) == [path]


def test_targets_are_the_rate_or_the_share_of_the_cipher() -> None:
    write, read, *others = sealing.rows([MEASURED])
    assert (write.bound, write.verdict) == (400, "reached")
    assert (read.bound, read.verdict) == (600, "missed")
    slow = sealing.rows([{**MEASURED, AES: 700.0}])
    assert slow[1].bound == pytest.approx(490)
    assert slow[1].verdict == "reached"
    assert [row.verdict for row in others] == ["", ""]


def test_medians_are_over_rounds() -> None:
    samples = [{**MEASURED, WRITE: value} for value in (1.0, 900.0, 450.0)]
    assert sealing.rows(samples)[0].avow == 450


def test_a_folder_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sealing.main(["--quick", "--folder", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
