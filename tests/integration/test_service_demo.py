"""`make demo`: it ends by itself, within a minute, with every expectation met."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from avow.sandbox import artefacts

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"
DEMO_MAX_S = 60.0


def test_demo() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO)], capture_output=True, text=True, timeout=DEMO_MAX_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert hashlib.sha256(artefacts.core_path().read_bytes()).hexdigest() in done.stdout
    assert "FAIL" not in done.stdout
    assert done.stdout.count("  ok   ") == 9
    assert "messages a second" in done.stdout
