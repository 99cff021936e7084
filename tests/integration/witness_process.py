"""`avow witness` in a process of its own, for those who need one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_witness(state: Path, listen: str = "127.0.0.1:0") -> Iterator[str]:
    """Gives what `--anchor` takes."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "avow", "witness", "--json"),
            *("--listen", listen, "--state", str(state)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            yield f"witness:{said['address']}#{said['key']}"
        finally:
            process.terminate()
            process.communicate(timeout=20)
