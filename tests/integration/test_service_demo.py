"""`make demo`: it ends by itself, within a minute, with every expectation met."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from avow import artefacts

ROOT = Path(__file__).resolve().parents[2]
DEMO_MAX_S = 60.0


def test_demo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        capture_output=True,
        text=True,
        timeout=DEMO_MAX_S,
        check=False,
        cwd=ROOT,
    )
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert done.stderr == ""
    assert hashlib.sha256(artefacts.core_path().read_bytes()).hexdigest() in said
    assert "FAIL" not in said
    assert said.count("  ok   ") == 18
    refusals = re.findall(r"  ok   refused, (.*?): check (\w+) \(", said)
    assert refusals == [
        ("another module", "P4"),
        ("a relayed connection", "C15"),
        ("stripped evidence", "C11"),
    ]
    assert said.splitlines()[0].startswith("SIMULATED TEE")
    assert "messages a second" in said
