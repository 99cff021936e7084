"""The log holds nobody up, and strangers do not fill it."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import pytest

from avow.broker import logs
from avow.broker.config import Log
from avow.broker.logs import (
    KIND_BURST,
    KIND_PER_S,
    QUEUE_BYTES_MAX,
    SOURCE_BURST,
    OpenLog,
    StrangerLimit,
    make_log,
    open_log,
)
from avow.channel.address import source_of

PATIENCE_S = 20.0
PADDING = "x" * 1000


class Pipe:
    """A pipe whose reader reads when it is told to. It stands for standard error."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def fileno(self) -> int:
        return self.writing

    def isatty(self) -> bool:
        return False

    def lines(self) -> Iterator[dict[str, Any]]:
        with os.fdopen(self.reading, "rb", closefd=False) as content:
            for line in content:
                yield json.loads(line)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for fd in (made.reading, made.writing):
        with suppress(OSError):
            os.close(fd)


@contextmanager
def opened_for(pipe: Pipe) -> Iterator[OpenLog]:
    with open_log(Log(), cast(TextIO, pipe)) as opened:
        yield opened


@contextmanager
def promptly() -> Iterator[None]:
    """What is inside must not wait for anybody."""
    late = threading.Timer(PATIENCE_S, lambda: os._exit(99))
    late.start()
    yield
    late.cancel()


def test_a_reader_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed(
    pipe: Pipe,
) -> None:
    read: list[dict[str, Any]] = []
    with opened_for(pipe) as opened, promptly():
        count = 3 * QUEUE_BYTES_MAX // len(PADDING)
        for number in range(count):
            opened.log.info("line", number=number, padding=PADDING)
        dropped = opened.counters()["log_lines_dropped"]
        assert 0 < dropped < count
        # Errors still have room.
        opened.log.error("important")
        assert opened.counters()["log_lines_dropped"] == dropped
        reader = threading.Thread(target=lambda: read.extend(pipe.lines()))
        reader.start()
    os.close(pipe.writing)
    reader.join(PATIENCE_S)
    numbers = [line["number"] for line in read if line["event"] == "line"]
    assert len(numbers) == count - dropped
    assert numbers == sorted(numbers)
    events = [line["event"] for line in read]
    assert events.index("important") > max(
        place for place, event in enumerate(events) if event == "line"
    )
    # More than once where the writing thread found room before the last line was dropped.
    said = [line for line in read if line["event"] == "log lines dropped"]
    assert sum(line["count"] for line in said) == dropped
    assert {line["level"] for line in said} == {"error"}


def test_an_end_does_not_wait_for_a_reader_for_ever(
    monkeypatch: pytest.MonkeyPatch, pipe: Pipe
) -> None:
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT_S", 0.01)
    with promptly(), opened_for(pipe) as opened:
        for _ in range(200):
            opened.log.info("line", padding=PADDING)
    os.close(pipe.reading)


def test_a_reader_that_has_gone_ends_nobody(pipe: Pipe) -> None:
    os.close(pipe.reading)
    with promptly(), opened_for(pipe) as opened:
        opened.log.info("nobody hears this")
        opened.log.info("nor this")


class Clock:
    """Time that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Limited:
    """A log with a limit, and what is in it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.limit = StrangerLimit(self.clock)
        self.stream = io.StringIO()
        self.log = make_log(Log(), self.stream, limit=self.limit)

    def count(self, event: str) -> int:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return sum(line["event"] == event for line in lines)


def test_one_stranger_has_a_share_of_its_kind() -> None:
    made = Limited()
    for number in range(1000):
        made.log.info("client connected", peer=f"192.0.2.1:{number}")
    assert made.count("client connected") == SOURCE_BURST
    made.log.info("client connected", peer="192.0.2.2:1")
    assert made.count("client connected") == SOURCE_BURST + 1
    assert made.limit.summary() == ({"client connected": 1000 - SOURCE_BURST}, 0.0)
    assert made.limit.summary()[0] == {}
    assert made.limit.total_left_out == 1000 - SOURCE_BURST


def test_many_strangers_do_not_drown_another_kind() -> None:
    made = Limited()
    for number in range(2000):
        made.log.info("client connected", peer=f"10.0.{number // 250}.{number % 250}:1")
    assert made.count("client connected") == KIND_BURST
    made.log.info("login failed", peer="10.0.0.1:1")
    assert made.count("login failed") == 1


def test_a_kind_is_an_event_with_its_code_or_check() -> None:
    made = Limited()
    for _ in range(1000):
        made.log.info("connection refused", peer="192.0.2.1:1", code="0x82")
    made.log.info("connection refused", peer="192.0.2.1:1", code="0x87")
    made.log.info("attestation refused", peer="192.0.2.1:1", check="E7")
    assert made.count("connection refused") == SOURCE_BURST + 1
    assert made.count("attestation refused") == 1


def test_a_client_makes_no_kinds() -> None:
    """Of the codes of DISCONNECT it can choose another one each time."""
    made = Limited()
    for number in range(1000):
        code = f"0x{0x80 + number % 32:02x}"
        made.log.info("client disconnected", peer="192.0.2.1:1", by="client", code=code)
    assert made.count("client disconnected") == SOURCE_BURST


def test_users_of_one_machine_are_several_sources() -> None:
    made = Limited()
    for _ in range(1000):
        made.log.info("refused", peer="127.0.0.1:1", owner="user 1000")
    made.log.info("refused", peer="127.0.0.1:2", owner="user 1001")
    assert made.count("refused") == SOURCE_BURST + 1


def test_lines_flow_again_in_time() -> None:
    made = Limited()
    for _ in range(1000):
        made.log.info("client connected", peer="192.0.2.1:1")
    made.clock.now_s += 2
    before = made.count("client connected")
    for _ in range(1000):
        made.log.info("client connected", peer="192.0.2.1:1")
    assert 0 < made.count("client connected") - before <= 2 * KIND_PER_S
    assert made.limit.summary()[1] == 2.0


def test_lines_about_nobody_are_not_limited() -> None:
    made = Limited()
    for _ in range(1000):
        made.log.info("reloaded")
    assert made.count("reloaded") == 1000


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "REMEMBERED_MAX", 10)
    made = Limited()
    for number in range(1000):
        made.log.info("client connected", peer=f"192.0.2.{number}:1")
    assert len(made.limit._buckets) <= 11


def test_what_was_left_out_is_said(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    monkeypatch.setattr(logs, "SUMMARY_INTERVAL_S", 0.05)
    with opened_for(pipe) as opened:
        for _ in range(SOURCE_BURST + 7):
            opened.log.info("client connected", peer="192.0.2.1:1")
        lines = pipe.lines()
        said = next(line for line in lines if line["event"] == "log lines left out")
        assert said["count"] == {"client connected": 7}
        assert opened.counters()["log_lines_left_out"] == 7


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("192.0.2.1:1883", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:1883", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::1]:9", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:9", "fe80::/64"),
        ("[::1]:9", "::/64"),
        ("unknown:0", "unknown"),
    ],
)
def test_an_ipv6_site_is_one_source(peer: str, source: str) -> None:
    assert source_of(peer) == source
