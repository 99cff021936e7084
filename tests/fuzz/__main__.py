"""Fuzzes the compiled core with mutated packet streams.

    python -m tests.fuzz --seconds 60            for a minute, from a random seed
    python -m tests.fuzz --seconds 60 --seed 5   the same again
    python -m tests.fuzz --replay FILE           a crash file

A round opens several connections at once, feeds each a stream made from valid packets and broken
at random, and closes them. After each round two well-behaved clients must be able to work, and
from time to time all memory must have come back. A failure is written to a file that replays it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from avow.testing.fuzzing import CoreFuzzer, replay

CRASHES = Path("build/fuzz-crashes")


def main(arguments: list[str] | None = None) -> int:
    """Command line of the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None, help="instead of a time")
    parser.add_argument("--replay", type=Path, default=None)
    options = parser.parse_args(arguments)
    if options.replay is not None:
        replay(options.replay.read_bytes())
        print("the file did not fail")
        return 0
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + options.seconds
    rounds = 0
    fuzzer = CoreFuzzer(seed)
    while rounds < options.rounds if options.rounds is not None else time.monotonic() < end:
        failure = fuzzer.round()
        rounds += 1
        if failure is not None:
            CRASHES.mkdir(parents=True, exist_ok=True)
            file = CRASHES / f"core-{seed}-{rounds}.fuzz"
            file.write_bytes(fuzzer.recording())
            print(f"round {rounds}: {failure}")
            print(f"run it again with: python -m tests.fuzz --replay {file}")
            return 1
    print(f"{rounds} rounds, {fuzzer.packets} packets, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
