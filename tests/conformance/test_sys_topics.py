"""`$SYS` topics: names and values as mosquitto(8) documents them."""

from __future__ import annotations

import re

import pytest

from avow.testing.core_abi import Setting, version_text_command
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import props

NEEDED = {
    "$SYS/broker/bytes/received",
    "$SYS/broker/bytes/sent",
    "$SYS/broker/clients/connected",
    "$SYS/broker/clients/disconnected",
    "$SYS/broker/clients/expired",
    "$SYS/broker/clients/maximum",
    "$SYS/broker/clients/total",
    "$SYS/broker/heap/current",
    "$SYS/broker/heap/maximum",
    "$SYS/broker/messages/received",
    "$SYS/broker/messages/sent",
    "$SYS/broker/messages/stored",
    "$SYS/broker/publish/bytes/received",
    "$SYS/broker/publish/bytes/sent",
    "$SYS/broker/publish/messages/dropped",
    "$SYS/broker/publish/messages/received",
    "$SYS/broker/publish/messages/sent",
    "$SYS/broker/retained messages/count",
    "$SYS/broker/shared_subscriptions/count",
    "$SYS/broker/store/messages/bytes",
    "$SYS/broker/store/messages/count",
    "$SYS/broker/subscriptions/count",
    "$SYS/broker/uptime",
    "$SYS/broker/version",
}
OPTIONAL = re.compile(
    r"\$SYS/broker/(load/(connections|sockets|bytes/received|bytes/sent|messages/received"
    r"|messages/sent|publish/dropped|publish/received|publish/sent)/(1|5|15)min"
    r"|clients/(active|inactive)|messages/inflight|subscriptions/(shared/)?count"
    r"|packet/out/(count|bytes)|connection/.*|bridge/.*)"
)


def system(settings: dict[Setting, int] | None = None) -> tuple[CoreDriver, FakeClient]:
    """A core that publishes every second, and a client that watches."""
    core = CoreDriver(settings={Setting.SYS_INTERVAL_MS: 1000, **(settings or {})})
    core.command(version_text_command("avow version 0"))
    client = connected(core, "watcher")
    client.subscribe("$SYS/#")
    return core, client


def latest(client: FakeClient) -> dict[str, bytes]:
    """Topic and last value."""
    return {p.text: p.payload for p in client.received()}


def test_the_names_are_those_of_mosquitto() -> None:
    core, client = system()
    core.advance(3_000)
    names = set(latest(client))
    assert not NEEDED - names
    assert not {n for n in names if n not in NEEDED and not OPTIONAL.fullmatch(n)}


def test_values_come_at_once_to_a_new_subscriber() -> None:
    """They are retained, so `mosquitto_sub -C 1` need not wait for an interval."""
    core, _ = system()
    core.advance(2_000)
    late = connected(core, "late")
    late.subscribe("$SYS/broker/version", "$SYS/broker/uptime")
    packets = late.received()
    assert {p.text for p in packets} == {"$SYS/broker/version", "$SYS/broker/uptime"}
    assert all(p.retain for p in packets)


def test_the_values_are_true() -> None:
    core, client = system()
    expiry = props(session_expiry_interval=1000)
    gone = connected(core, "gone", properties=expiry)
    gone.drop()
    other = connected(core, "other")
    other.subscribe("a", "b", "$share/g/c")
    other.publish("kept", b"12345", retain=True)
    core.advance(2_000)
    values = latest(client)
    assert values["$SYS/broker/clients/connected"] == b"2"
    assert values["$SYS/broker/clients/total"] == b"3"
    assert values["$SYS/broker/clients/disconnected"] == b"1"
    assert int(values["$SYS/broker/clients/maximum"]) >= 2
    assert values["$SYS/broker/subscriptions/count"] in (b"3", b"4")
    assert values["$SYS/broker/shared_subscriptions/count"] == b"1"
    assert int(values["$SYS/broker/retained messages/count"]) >= 1
    assert int(values["$SYS/broker/publish/messages/received"]) == 1
    assert int(values["$SYS/broker/heap/current"]) > 0
    assert re.fullmatch(rb"\d+ seconds", values["$SYS/broker/uptime"])


def test_counters_only_grow_and_uptime_follows_the_clock() -> None:
    core, client = system()
    core.advance(10_000)
    first = latest(client)
    core.advance(50_000)
    for _ in range(10):
        client.publish("t", bytes(1000))
    core.advance(2_000)
    second = latest(client)
    for name in ("bytes/received", "messages/received", "publish/messages/received"):
        topic = f"$SYS/broker/{name}"
        assert int(second[topic]) > int(first.get(topic, b"0"))
    one, two = (int(v["$SYS/broker/uptime"].split()[0]) for v in (first, second))
    assert 50 <= two - one <= 53


def test_the_version_is_the_text_of_the_host() -> None:
    core, client = system()
    core.command(version_text_command("avow version 1.2.3"))
    core.advance(2_000)
    late = connected(core, "late")
    late.subscribe("$SYS/broker/version")
    late.expect_publish("$SYS/broker/version", b"avow version 1.2.3", retain=True)
    assert client.received()


def test_nothing_is_published_when_the_interval_is_0() -> None:
    core, client = system({Setting.SYS_INTERVAL_MS: 0})
    core.advance(1_000_000)
    client.expect_nothing()


@pytest.mark.parametrize("interval_ms", [1_000, 10_000])
def test_the_interval_is_kept(interval_ms: int) -> None:
    core, client = system({Setting.SYS_INTERVAL_MS: interval_ms})
    core.advance(interval_ms * 2)
    client.received()
    core.advance(interval_ms * 10)
    uptimes = [p for p in client.received() if p.text == "$SYS/broker/uptime"]
    assert 9 <= len(uptimes) <= 11


def test_sys_values_are_not_written_to_the_journal() -> None:
    core, _ = system()
    core.advance(5_000)
    before = len(core.journal)
    core.advance(60_000)
    assert len(core.journal) == before
