"""`python -m tests.torture --faults N`: the fault harness by hand and for `make torture`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.clients import ViolationError
from tests.torture.harness import Torture


def main() -> int:
    """Exit code 1 when the broker lost, doubled or invented something."""
    parser = argparse.ArgumentParser(description="Faults against a broker that keeps its state.")
    parser.add_argument("--faults", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run that failed")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    started = time.monotonic()
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(Path(folder), seed)
        try:
            for number, line in enumerate(torture.run(options.faults), 1):
                if number % 50 == 0:
                    print(line, flush=True)
        except ViolationError as error:
            print(f"violated: {error}", file=sys.stderr)
            return 1
    for what, count in sorted(torture.happened.items()):
        print(f"{count:>6}  {what}")
    print(f"{options.faults} faults in {time.monotonic() - started:.0f} s: nothing lost or doubled")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
