"""A short run of the fuzzer with a fixed seed; `make fuzz` runs longer ones."""

from __future__ import annotations

import pytest

from avow.testing.fuzzing import CoreFuzzer, replay


@pytest.mark.parametrize("seed", [1, 2])
def test_a_short_run_finds_nothing(seed: int) -> None:
    fuzzer = CoreFuzzer(seed)
    for number in range(300):
        failure = fuzzer.round()
        assert failure is None, f"seed {seed}, round {number}: {failure}"


def test_a_recording_can_be_replayed() -> None:
    fuzzer = CoreFuzzer(3)
    fuzzer.round()
    replay(fuzzer.recording())
