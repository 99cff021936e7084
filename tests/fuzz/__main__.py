"""Fuzzes the compiled core with mutated packet streams, and all that reads evidence.

    python -m tests.fuzz --seconds 60                  both for a minute, from a random seed
    python -m tests.fuzz --seconds 60 --seed 5         the same again
    python -m tests.fuzz --replay FILE                 a crash file of the core
    python -m tests.fuzz --seconds 60 --target NAME    one reader of evidence alone
    python -m tests.fuzz --target NAME --input FILE    one input, from a file or as hex digits

For the core: a round opens several connections at once, feeds each a stream made from valid packets
and broken at random, and closes them. After each round two well-behaved clients must be able to
work, and from time to time all memory must have come back. A failure is written to a file that
replays it.

The readers of evidence (`avow.testing.evidence_targets`) run beside it in a process of their own,
each for its share of the time: `tests/fuzz/evidence.py`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

from avow.testing.fuzzing import CoreFuzzer, replay
from tests.fuzz.known_targets import known_targets

CRASHES = Path("build/fuzz-crashes")


def main(arguments: list[str] | None = None) -> int:
    """Command line of the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=None, help="instead of a time")
    parser.add_argument("--replay", type=Path, default=None)
    parser.add_argument("--target", default=None, help="one reader of evidence")
    parser.add_argument("--input", default=None, help="a file or hex digits for the target")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        replay(options.replay.read_bytes())
        print("the file did not fail")
        return 0
    if options.input is not None:
        parsed = known_targets()[options.target].run(_content(options.input))
        print("it was parsed" if parsed else "it was refused as it has to be")
        return 0
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    if options.target is not None:
        return _evidence(options, seed).wait()
    if options.rounds is not None:
        return _core(options, seed)
    beside = _evidence(options, seed)
    core = _core(options, seed)
    return core or beside.wait()


def _content(given: str) -> bytes:
    return Path(given).read_bytes() if Path(given).is_file() else bytes.fromhex(given)


def _evidence(options: argparse.Namespace, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.fuzz.evidence", "--seed", str(seed)]
    command += ["--seconds", str(options.seconds)]
    command += ["--target", options.target] if options.target else []
    return subprocess.Popen(command)


def _core(options: argparse.Namespace, seed: int) -> int:
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
