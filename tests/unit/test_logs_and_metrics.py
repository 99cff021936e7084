"""Lines of the log and figures for Prometheus."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import struct
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import pytest

from avow.broker.config import Log, Metrics
from avow.broker.logs import VALUE_CHARACTERS_MAX, make_log
from avow.broker.metrics import CONNECTIONS_MAX, GAUGES, CountersCollector, MetricsServer
from avow.broker.pump import CORE_COUNTERS
from avow.errors import UnavailableError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_where_nobody_looks() -> None:
    stream = io.StringIO()
    make_log(Log(), stream).info("listening", url="mqtt://127.0.0.1:1883", port=1883)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["port"]) == ("listening", "info", 1883)
    assert line["timestamp"].endswith("Z")


def test_words_on_a_terminal() -> None:
    stream = Terminal()
    make_log(Log(), stream).warning("login failed", user="alice")
    assert "login failed" in stream.getvalue()
    assert "alice" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_level_and_format_can_be_chosen() -> None:
    stream = Terminal()
    log = make_log(Log(format="json", level="warning"), stream)
    log.info("unimportant")
    log.warning("important")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["important"]


def test_a_name_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    make_log(Log(), stream).info("client connected", client='x"}\n{"event":"forged"}')
    assert len(stream.getvalue().splitlines()) == 1
    human = Terminal()
    make_log(Log(), human).info("client connected", client="x\nforged \x1b[2J")
    assert len(human.getvalue().splitlines()) == 1
    assert "\x1b[2J" not in human.getvalue()


# What a stranger can call itself: ends of lines, commands to terminals (ECMA-48), marks of
# direction, half of a surrogate pair as it comes out of a file's name.
NAMES = [
    "\x1b[2J",
    "\x1b]0;owned\x07",
    "\x9b2J",
    "a\x7fb",
    "a\rb",
    "a\nforged b",
    "a\x85b",
    "a\u2028b",
    "a\u202eb",
    "a\x0bb",
    "\udc80",
    '"}\n{"event":"forged"}',
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["human", "json"])
def test_no_name_acts_on_a_terminal(form: Literal["human", "json"], name: str) -> None:
    """Neither in a value, nor in one within another, nor in the words of an error."""
    stream = io.StringIO()
    log = make_log(Log(format=form), stream)
    log.info("client connected", client=name, more={"inner": name})
    log.info(f"a warning about {name}")
    written = stream.getvalue()
    assert len(written.splitlines()) == 2
    assert written.replace("\n", "").isprintable()
    if form == "json":
        line = json.loads(written.splitlines()[0])
        assert (line["client"], line["more"]) == (name, {"inner": name})


@pytest.mark.parametrize("form", ["human", "json"])
def test_an_error_s_words_forge_no_line(form: Literal["human", "json"]) -> None:
    stream = io.StringIO()
    try:
        raise ValueError("x\n03:00:00 [info] forged \x1b[2J")
    except ValueError as error:
        make_log(Log(format=form), stream).error("failed", exc_info=error)
    written = stream.getvalue()
    assert written.replace("\n", "").isprintable()
    assert "ValueError" in written
    first, *rest = written.splitlines()
    assert "failed" in first
    assert all(line.startswith("  ") for line in rest)


def test_a_very_long_value_is_cut_off() -> None:
    stream = io.StringIO()
    make_log(Log(), stream).info("handshake refused", reason="x" * 1_000_000)
    assert len(stream.getvalue()) < VALUE_CHARACTERS_MAX + 200
    assert "… (1000000 characters)" in json.loads(stream.getvalue())["reason"]


def test_letters_of_all_scripts_stay() -> None:
    for settings in (Log(format="human"), Log(format="json")):
        stream = io.StringIO()
        make_log(settings, stream).info("client connected", client="Größe-温度-🌡")
        assert "Größe-温度-🌡" in stream.getvalue()


def test_a_reader_that_left_does_not_end_the_broker() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    make_log(Log(), Broken()).info("nobody hears this")


Fetch = Callable[[], str]


def fetched(counters: Mapping[str, int]) -> str:
    collector = CountersCollector(
        lambda: counters,
        refused_checks=lambda: {"C9": 2, "P4": 1},
        gauges=GAUGES,
        module_sha256="ab" * 32,
        version="1.2",
    )
    server = MetricsServer(Metrics(port=0), collector)
    try:
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            return str(answer.read().decode())
    finally:
        server.stop()


def test_figures() -> None:
    text = fetched({"clients_connected": 3, "publish_received": 2**40, "pump_turns": 5})
    assert "# TYPE avow_clients_connected gauge\navow_clients_connected 3.0\n" in text
    assert "# TYPE avow_publish_received_total counter\n" in text
    (received,) = re.findall(r"^avow_publish_received_total (\S+)$", text, re.MULTILINE)
    assert float(received) == 2**40
    assert "avow_pump_turns_total 5.0" in text
    assert f'avow_info{{module_sha256="{"ab" * 32}",version="1.2"}} 1.0' in text
    assert 'avow_attestation_checks_failed_total{check="C9"} 2.0' in text
    assert "process_resident_memory_bytes" in text


def test_gauges_are_counters_of_the_core() -> None:
    ours = {name for name in GAUGES if not name.startswith("pump_")} - {"quote_requests_waiting"}
    assert set(CORE_COUNTERS) >= ours


@pytest.fixture
def metrics() -> Iterator[MetricsServer]:
    server = MetricsServer(
        Metrics(port=0), CountersCollector(dict, gauges=GAUGES, module_sha256="", version="")
    )
    yield server
    server.stop()


def connected(server: MetricsServer) -> socket.socket:
    port = int(server.url.rpartition(":")[2].removesuffix("/metrics"))
    return socket.create_connection(("127.0.0.1", port), 10)


def test_who_asks_for_nothing_keeps_no_places(metrics: MetricsServer) -> None:
    """Threads and descriptors are the broker's, and clients need them."""
    with contextlib.ExitStack() as all_:
        silent = [all_.enter_context(connected(metrics)) for _ in range(CONNECTIONS_MAX + 8)]
        with urllib.request.urlopen(metrics.url, timeout=10) as answer:
            assert b"avow_info" in answer.read()
        for client in silent[:8]:
            assert client.recv(1) == b""


def test_who_resets_writes_no_traceback(
    metrics: MetricsServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Anybody who reaches the port could fill standard error, and nobody would count it."""
    for _ in range(5):
        with connected(metrics) as client:
            client.sendall(b"GET /metrics HT")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with urllib.request.urlopen(metrics.url, timeout=10) as answer:
        assert answer.status == 200
    assert capfd.readouterr().err == ""


def test_occupied_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        collector = CountersCollector(dict, gauges=GAUGES, module_sha256="", version="")
        with pytest.raises(UnavailableError, match=rf"\[metrics\] at 127\.0\.0\.1:{port}"):
            MetricsServer(Metrics(port=port), collector)
