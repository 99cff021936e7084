"""The simulated disk: what it remembers, and which images a crash may leave."""

from __future__ import annotations

import random

import pytest

from avow.testing.simulated_disk import (
    SECTOR_BYTES,
    Event,
    Resize,
    SimulatedDisk,
    Sync,
    Write,
    cuts,
    durable_images,
    reordered,
)

LOG: tuple[Event, ...] = (Write(0, b"aaaa"), Sync(), Write(2, b"bbbb"), Resize(5))


def test_disk_holds_what_was_written_and_logs_it() -> None:
    disk = SimulatedDisk(b"xy")
    assert disk.write(4, b"ab") == 2
    disk.sync()
    disk.resize(5)
    assert disk.read(0, 100) == b"xy\0\0a"
    assert disk.size() == 5
    assert disk.log == [Write(4, b"ab"), Sync(), Resize(5)]
    assert disk.base == b"xy"


def test_full_disk_takes_nothing() -> None:
    disk = SimulatedDisk(bytes(4), size_max_bytes=8)
    disk.write(4, bytes(4))
    with pytest.raises(OSError, match="full"):
        disk.write(5, bytes(4))
    with pytest.raises(OSError, match="full"):
        disk.resize(9)
    assert disk.size() == 8


def test_every_byte_of_every_write_is_a_cut() -> None:
    found = [(event, done, bytes(image)) for event, done, image in cuts(b"--", LOG)]
    assert found == [
        (0, 0, b"--"),
        (0, 1, b"a-"),
        (0, 2, b"aa"),
        (0, 3, b"aaa"),
        (0, 4, b"aaaa"),
        (1, 0, b"aaaa"),
        (2, 1, b"aaba"),
        (2, 2, b"aabb"),
        (2, 3, b"aabbb"),
        (2, 4, b"aabbbb"),
        (3, 0, b"aabbb"),
    ]


def test_only_the_cuts_that_are_wanted_and_the_ends_of_events() -> None:
    found = [
        (event, done, bytes(image))
        for event, done, image in cuts(b"", LOG[:2], wanted=lambda write, end: end == 3)
    ]
    assert found == [(0, 0, b""), (0, 3, b"aaa"), (0, 4, b"aaaa"), (1, 0, b"aaaa")]


def test_what_was_synced_is_never_lost_and_the_rest_may_be() -> None:
    log: tuple[Event, ...] = (Write(0, b"a" * 1024), Sync(), Write(0, b"b" * 1024))
    rng = random.Random(1)
    images = {bytes(reordered(b"", log, rng)) for _ in range(200)}
    half = SECTOR_BYTES
    assert images == {
        first * half + second * half for first in (b"a", b"b") for second in (b"a", b"b")
    }


def test_every_sync_gives_an_image() -> None:
    assert list(durable_images(b"", LOG)) == [b"aaaa", b"aabbb"]
