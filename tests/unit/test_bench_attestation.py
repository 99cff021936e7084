"""The attestation bench: a short run of everything, and what it says of peers that refuse."""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bench.attestation import run
from bench.attestation.connecting import connect_in_turns, flood
from bench.attestation.dialing import (
    Attested,
    DialError,
    Plain,
    StandardLibrary,
    Stream,
    greet,
    settings,
)
from bench.attestation.measured_brokers import Tee
from bench.attestation.verifying import MOCK, cases, time_ms
from bench.brokers import make_certificate

ROOT = Path(__file__).resolve().parents[2]
RUN_MAX_S = 240.0


def test_a_short_run_measures_everything(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "attestation", "--quick", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=RUN_MAX_S,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    assert content["failures"] == []
    rows = {(row["scenario"], row["metric"], row["peer"]): row for row in content["rows"]}
    connect = rows["connect", "ms", "plain TLS"]
    assert connect["bound"] == 2.0
    assert connect["ratio"] == pytest.approx(connect["avow"] / connect["peer_value"])
    assert rows["slow_simulated", "refused", ""]["avow"] == 0
    # 64 clients at five quotes a second: without batches it would be five.
    assert rows["slow_simulated", "rate", ""]["avow"] > 25
    assert {name for name, metric, _ in rows if metric == "first_ms"} >= {
        "verify_simulated_software",
        "verify_tpm_mock, ecdsa",
    }
    assert rows["pairs32", "rate", "plain TLS"]["bound"] == 0.98
    assert all(row["verdict"] for row in content["rows"] if row["bound"] is not None)
    for title in ("a connection, to CONNACK", "simulated, 5 quotes a second", "verify nitro"):
        assert title in done.stdout


def test_a_broker_that_does_not_start_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SIMULATED", Tee("nonsense"))
    # Not for the other tests of this process.
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    path = tmp_path / "results.json"
    assert run.main(["--quick", "--only", "connect", "--json", str(path)]) == 1
    content = json.loads(path.read_text())
    assert content["rows"] == []
    (failure,) = content["failures"]
    assert "avow ended at once" in failure
    assert "nonsense" in failure


def test_mocks_stand_in_for_absent_evidence() -> None:
    found = list(cases(None))
    assert [case.platform for case in found] == [
        "sgx",
        "tdx",
        "snp",
        "nitro",
        "tpm",
        "tpm",
        "simulated",
    ]
    assert all(case.source.startswith(MOCK) for case in found[:-1])
    for case in found:
        assert min(time_ms(case, 1).values()) > 0


class _Way:
    """Connects; every tenth time it is refused."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._numbers = itertools.count(1)

    def connect(self, port: int) -> Stream:
        if next(self._numbers) % self._every == 0:
            raise DialError("busy")
        return _Said(b"")


def test_refusals_are_counted() -> None:
    found = flood(_Way(10), 1, clients=2, warmup_s=0.0, seconds=0.05)
    assert set(found.refused) == {"busy"}
    values = found.values()
    assert values["refused"] == len(found.refused) > 0
    assert values["rate"] == len(found.took_ms) / 0.05
    assert values["p50_ms"] <= values["p99_ms"]


def test_nobody_served_is_no_rate() -> None:
    values = flood(_Way(1), 1, clients=1, warmup_s=0.0, seconds=0.01).values()
    assert values["rate"] == 0
    assert values["refused"] > 0


def test_a_refusal_ends_the_comparison() -> None:
    with pytest.raises(DialError, match="busy"):
        connect_in_turns({"a": _Way(3)}, 1, 5)
    assert set(connect_in_turns({"a": _Way(9), "b": _Way(9)}, 1, 5)) == {"a", "b"}


class _Said:
    """A connection on which the broker says this."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, size: int, /) -> bytes:
        piece, self._content = self._content[:size], self._content[size:]
        return piece

    def write(self, content: bytes, /) -> int:
        return len(content)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("said", [b"", b"\x20\x02\x00", b"\x20\x02\x00\x05"])
def test_only_an_accepted_connect_counts(said: bytes) -> None:
    with pytest.raises(DialError):
        greet(_Said(said))
    greet(_Said(b"\x20\x02\x00\x00"))


def test_a_port_where_nobody_listens_is_said(tmp_path: Path) -> None:
    authority = make_certificate(tmp_path).ca
    ways = (
        StandardLibrary(authority),
        Plain(authority),
        Attested(authority, settings("simulated")),
    )
    for way in ways:
        with pytest.raises(DialError, match="refused"):
            way.connect(1)
