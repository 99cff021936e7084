"""The readers of evidence on inputs that are always the same; `make fuzz` looks for new ones."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from avow.errors import MalformedError, UntrustedError
from avow.testing.evidence_fuzzing import Target
from avow.testing.evidence_targets import targets
from tests.fuzz.known_targets import known_targets

ROOT = Path(__file__).resolve().parents[2]
INPUTS = 600
# Far more than any of them needs: 3 ms and 1 MB.
INPUT_S_MAX = 1.0
INPUT_MEMORY_MAX = 32 * 1024 * 1024


def try_all(known: dict[str, Target], seed: int) -> None:
    for target in known.values():
        for content in target.inputs(seed, INPUTS):
            started_s = time.process_time()
            try:
                target.run(content)
            except BaseException as error:
                error.add_note(f"target {target.name}, input {content.hex()}")
                raise
            taken_s = time.process_time() - started_s
            assert taken_s < INPUT_S_MAX, f"target {target.name}, input {content.hex()}"


def test_nothing_but_errors_of_avow_comes_out() -> None:
    try_all(targets(None), 1)


@pytest.mark.vectors
def test_the_same_from_real_evidence() -> None:
    known = {
        name: target
        for name, target in known_targets().items()
        if name in ("snp", "sgx", "tdx", "nitro", "psa", "cca", "azure-hcl", "snp-certificate")
    }
    try_all(known, 2)


def test_each_target_reads_its_first_seed() -> None:
    """Otherwise the fuzzer would only ever see the door of a parser."""
    for target in targets(None).values():
        assert target.run(target.seeds[0]), target.name


def test_memory_is_bounded() -> None:
    """As far as Python hands it out. A small input that announces much is the way to try it."""
    known = targets(None)
    tracemalloc.start()
    try:
        for target in known.values():
            for content in target.inputs(3, 60):
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                target.run(content)
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < INPUT_MEMORY_MAX, (target.name, content.hex())
    finally:
        tracemalloc.stop()


def test_what_counts_as_a_finding() -> None:
    def raising(error: BaseException) -> Target:
        def parse(content: bytes) -> None:
            raise error

        return Target("planted", parse, [b"seed"])

    assert not raising(MalformedError("expected this, got that")).run(b"")
    for error in (
        KeyError("x"),
        UntrustedError("not of a parser"),
        MalformedError("an escape \x1b[2J"),
        MalformedError("x" * 5000),
    ):
        with pytest.raises((KeyError, UntrustedError, AssertionError)):
            raising(error).run(b"")


def test_atheris_finds_a_planted_mistake() -> None:
    """And says how to have it again."""
    found = _fuzz("--seconds", "20", "--seed", "1", "--target", "planted")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "KeyError: 'planted'" in found.stdout
    lines = found.stdout.splitlines()
    (again,) = [line for line in lines if line.startswith("run it again with: ")]
    (digits,) = [line for line in lines if line.startswith("input: ")]
    file = Path(ROOT, again.split()[-1])
    assert file.read_bytes().hex() == digits.removeprefix("input: ")
    for given in (str(file), file.read_bytes().hex()):
        repeated = _fuzz("--target", "planted", "--input", given)
        assert repeated.returncode == 1
        assert "KeyError: 'planted'" in repeated.stderr
    file.unlink()


def test_an_endless_reader_is_found_as_well() -> None:
    found = _fuzz("--seconds", "1", "--seed", "2", "--target", "planted-endless")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "takes too long" in found.stdout
    Path(ROOT, found.stdout.split("--input ")[1].split()[0]).unlink()


def _fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
