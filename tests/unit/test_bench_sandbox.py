"""The bench of the sandbox measures what it says: same sources, same results, right arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report import Row, Sample
from bench.sandbox import kernels, quiet
from bench.sandbox.page import joined, page
from bench.sandbox.run import WASM, Size, Suite
from bench.sandbox.ways import NATIVE, PLAIN, SEALED


def test_every_kernel_is_there() -> None:
    sources = {path.stem for path in kernels.FOLDER.glob("*.c")} - {"main"}
    assert sources == set(kernels.SIZES)
    assert len(kernels.SIZES) == 30


def test_a_kernel_is_run_both_ways_and_compared(tmp_path: Path) -> None:
    suite = Suite(tmp_path, Size(rounds=1, kernels=("gemm",), kernel_size="MINI", kernel_ms=0))
    suite.kernels()
    assert not suite.failures
    assert {sample.broker for sample in suite.samples} == {NATIVE, WASM}
    one, mean = suite.rows
    assert one.ratio is not None
    assert mean.ratio == pytest.approx(one.ratio)
    assert mean.verdict in ("reached", "missed")


def test_a_file_is_written_and_read_all_three_ways(tmp_path: Path) -> None:
    suite = Suite(tmp_path, Size(rounds=1, file_mib=1, call_bytes=(65_536,)))
    suite.files()
    assert not suite.failures
    by_way = {sample.broker: sample.values for sample in suite.samples if "read" in sample.values}
    assert set(by_way) == {NATIVE, PLAIN, SEALED}
    for values in by_way.values():
        # Milliseconds, and megabytes a second out of them.
        assert values["read_mb_s"] == pytest.approx(1048.576 / values["read"])
        assert 0 < values["write"] <= values["durable"]
    judged = {row.metric: row.verdict for row in suite.rows if row.verdict}
    assert set(judged) == {"first_mb_s", "write_mb_s", "read_mb_s"}


def test_other_results_are_found() -> None:
    with pytest.raises(kernels.OtherResultError, match="gemm: expected the checksum 2"):
        kernels.check_same("gemm", kernels.Timed((1.0,), 2.0), kernels.Timed((1.0,), 2.00001))
    nan = float("nan")
    with pytest.raises(kernels.OtherResultError):
        kernels.check_same("gemm", kernels.Timed((1.0,), nan), kernels.Timed((1.0,), nan))


def test_what_a_kernel_prints() -> None:
    assert kernels.parse("0.5\n0.25\n1\nchecksum 3e2\n") == kernels.Timed((0.5, 0.25, 1.0), 300.0)
    assert kernels.Timed((0.5, 0.25, 1.0), 3.0).median_s == 0.5
    for other in ("checksum 3\n", "0.5\n", "0.5\nresult 3\n"):
        with pytest.raises(ValueError, match="times and a checksum"):
            kernels.parse(other)


def _row(suite: Suite, sealed: float, beside: float, maximum: float | None) -> Row:
    suite.samples += [
        Sample("x", SEALED, "", 0, {"ms": sealed}),
        Sample("x", PLAIN, "", 0, {"ms": beside}),
    ]
    return suite._compared("x", "x", "ms", SEALED, PLAIN, maximum)


def test_ratios_are_judged(tmp_path: Path) -> None:
    assert _row(Suite(tmp_path, Size()), 15, 10, 1.5).verdict == "reached"
    row = _row(Suite(tmp_path, Size()), 16, 10, 1.5)
    assert (row.verdict, row.ratio) == ("missed", 1.6)
    assert _row(Suite(tmp_path, Size()), 16, 10, None).verdict == ""


def _result_row(scenario: str, title: str, peer: str, **more: float) -> dict[str, object]:
    values = {"avow": 30.0, "peer_value": 20.0, "ratio": 1.5, "ceiling": 4000.0}
    names = {"scenario": scenario, "title": title, "peer": peer}
    return {**names, "notes": [], **values, **more}


def test_the_quietest_attempt_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the kernel says before and after each attempt, in seconds.
    waited = iter([0.0, 50.0, 50.0, 50.0, 50.0, 90.0])
    monkeypatch.setattr(quiet, "_waited_s", lambda: next(waited))
    attempts = iter("abc")
    assert quiet.quietest(lambda: next(attempts), repeats=2) == ("b", 0.0)
    assert next(attempts) == "c"


def test_disturbed_runs_are_noted(tmp_path: Path) -> None:
    suite = Suite(tmp_path, Size())
    suite.samples.append(Sample("x", SEALED, "", 0, {"ms": 1.0, "waited": 0.5}))
    suite.samples.append(Sample("x", PLAIN, "", 0, {"ms": 1.0, "waited": 0.01}))
    (note,) = suite._compared("x", "x", "ms", SEALED, PLAIN).notes
    assert note == "sealed: the processors were not ours alone (50%)"


def test_a_page_is_made_of_a_result() -> None:
    rows = [_result_row("kernel_gemm", "gemm, large", NATIVE), _result_row("kernels", "", NATIVE)]
    for scenario, title in (("sqlite_9", "SQLite, 9 rows, insert"), ("files_8", "files, read")):
        rows.append(_result_row(scenario, title, PLAIN, peer_value=500.0, ratio=0.06))
        rows.append(_result_row(scenario, title, NATIVE))
    machine = {"cpu": "one", "cores": 2, "kernel": "6", "python": "3"}
    result = {"machine": machine, "rounds": {"file": 3, "kernel": 5}, "rows": rows}
    made = page(result)
    assert "Rounds: file 3, kernel 5." in made
    assert "| gemm, large | 20.00 | 30.00 | 1.50 |" in made
    assert "The geometric mean is 1.50," in made
    assert "| 9 rows, insert | 20.00 | 500 | 30.00 | 0.06 | 1.50 |" in made
    assert "| read | 20.00 | 500 | 30.00 |" in made
    assert "other work" not in made
    rows[0]["notes"] = ["disturbed"]
    assert "other work" in page(result)


def test_a_later_result_replaces_what_it_measured() -> None:
    old = [_result_row("kernel_gemm", "old", NATIVE), _result_row("kernels", "old", NATIVE)]
    kept = _result_row("files_8", "kept", NATIVE)
    new = [_result_row("kernel_lu", "new", NATIVE), _result_row("kernels", "new", NATIVE)]
    first = {"rows": [*old, kept], "settings": {"rounds": 3}, "machine": 1}
    made = joined([first, {"rows": new, "settings": {"rounds": 5}, "machine": 2}])
    assert made["rows"] == [kept, *new]
    assert made["machine"] == 1
    assert made["rounds"] == {"file": 3, "kernel": 5}


def test_a_broken_run_is_a_failure_and_no_figure(tmp_path: Path) -> None:
    suite = Suite(tmp_path, Size(rounds=1, kernels=("none",), kernel_size="MINI"))
    suite.kernels()
    assert suite.failures
    assert not suite.rows
