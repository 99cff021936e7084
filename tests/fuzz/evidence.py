"""Drives all that reads evidence with atheris: coverage of `avow` says which inputs are new.

    python -m tests.fuzz.evidence --seconds 60 [--seed N] [--target NAME]

`python -m tests.fuzz` starts it, in a process of its own, because the code has to be instrumented
while it is imported. Every target then runs in a child of its own, which ends with its time, at a
finding, at an input that takes too long, or when it has taken too much memory.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import mmap
import os
import random
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import atheris  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from avow.testing.evidence_fuzzing import Target

CRASHES = Path("build/fuzz-crashes")
# Less time than this finds nothing: then fewer targets have a turn.
TARGET_S_MIN = 1.0
INPUT_TIMEOUT_S = 5
MEMORY_MB_MAX = 1024
# More than the largest message of an exchange.
INPUT_BYTES_MAX = 70_000
# What a child needs before its first input.
START_S = 0.1
# Longer ones have to be given as a file: a command line has an end.
HEX_SHOWN_MAX = 4096

_RUNS = re.compile(r"^(\d+) runs$", re.MULTILINE)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--target", default=None)
    options = parser.parse_args(arguments)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        find_targets = _instrumented()
    known: dict[str, Target] = find_targets()
    end_s = time.monotonic() + options.seconds
    chosen = [known[options.target]] if options.target else _chosen(known, options)
    failed = inputs = 0
    for done, target in enumerate(chosen):
        share_s = (end_s - time.monotonic()) / (len(chosen) - done)
        status, runs = _fuzz(target, max(0.1, share_s - START_S), options.seed)
        failed += status
        inputs += runs
    print(f"{len(chosen)} readers of evidence, {inputs} inputs, {failed or 'no'} failures")
    return 1 if failed else 0


def _instrumented() -> Callable[[], dict[str, Target]]:
    with atheris.instrument_imports(include=["avow"]):
        from tests.fuzz.known_targets import known_targets
    return known_targets


def _chosen(known: dict[str, Target], options: Any) -> list[Target]:
    """All targets but the planted ones, or as many as there is time for."""
    names = [name for name in known if not name.startswith("planted")]
    fitting = max(1, min(len(names), int(options.seconds / TARGET_S_MIN)))
    return [known[name] for name in sorted(random.Random(options.seed).sample(names, fitting))]


def _fuzz(target: Target, seconds: float, seed: int) -> tuple[int, int]:
    """Runs one target in a child: 1 for a finding, and how many inputs it had."""
    now = mmap.mmap(-1, 4 + INPUT_BYTES_MAX)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        child = os.fork()
        if child == 0:
            _in_child(target, seconds, seed, Path(folder), now)
        in_time = _ended(child, seconds + INPUT_TIMEOUT_S)
        if not in_time:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        said = log.read_text(errors="replace")
    match = _RUNS.search(said)
    if status == 0 and match:
        return 0, int(match[1])
    content = now[4 : 4 + int.from_bytes(now[:4], "big")]
    print(f"{target.name}: {_reason(said) if in_time else 'an input that takes too long'}")
    CRASHES.mkdir(parents=True, exist_ok=True)
    file = CRASHES / f"{target.name}-{hashlib.sha256(content).hexdigest()[:16]}"
    file.write_bytes(content)
    if len(content) <= HEX_SHOWN_MAX // 2:
        print(f"input: {content.hex()}")
    print(f"run it again with: python -m tests.fuzz --target {target.name} --input {file}")
    sys.stdout.flush()
    return 1, 0


def _ended(child: int, patience_s: float) -> bool:
    """Waits for the end of a child: libFuzzer's own limit of time does not end Python."""
    descriptor = os.pidfd_open(child)
    try:
        return bool(select.select([descriptor], [], [], patience_s)[0])
    finally:
        os.close(descriptor)


def _reason(said: str) -> str:
    """The exception, or what libFuzzer says instead of one."""
    found = re.findall(r"=== Uncaught Python exception: ===\n([^=]+)", said)
    if not found:
        found = re.findall(r"ERROR: (libFuzzer: .*)", said)
    return found[0].strip() if found else said[-2000:]


def _in_child(target: Target, seconds: float, seed: int, folder: Path, now: mmap.mmap) -> NoReturn:
    """Never returns: a finding or the end of the time ends the process. `now` has the input."""
    output = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(target.seeds):
        (corpus / f"{number}").write_bytes(content)

    def mutate(content: bytes, size_max: int, number: int) -> bytes:
        chance = random.Random(number)
        if chance.random() < 0.5:
            # Looked up here: it is another one once fuzzing has begun.
            return bytes(atheris.Mutate(content, size_max))
        return target.mutated(content, chance)[:size_max]

    runs = 0
    end_s = time.monotonic() + seconds

    def run(content: bytes) -> None:
        nonlocal runs
        if time.monotonic() > end_s:
            os.write(1, f"{runs} runs\n".encode())
            os._exit(0)
        runs += 1
        now[: 4 + len(content)] = len(content).to_bytes(4, "big") + content
        target.run(content)

    options = (
        f"-seed={seed % 2**32 or 1}",
        # Kept by the parent: what libFuzzer does about it does not end Python.
        "-timeout=1000000",
        f"-rss_limit_mb={MEMORY_MB_MAX}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={folder}/",
        "-verbosity=0",
        str(corpus),
    )
    try:
        atheris.Setup(["fuzz", *options], run, custom_mutator=mutate)
        atheris.Fuzz()
    finally:
        # After a finding, or when it could not be set up.
        os._exit(2)


if __name__ == "__main__":
    sys.exit(main())
