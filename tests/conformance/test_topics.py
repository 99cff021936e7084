"""MQTT 5.0, section 4.7: topic names and topic filters."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import connected
from avow.testing.mqtt import Disconnect, Filter, Publish, Suback, Subscribe

clause = pytest.mark.clause


def refuses(core: CoreDriver, wanted: str | bytes) -> None:
    """The filter is refused, with SUBACK 0x8F or by the end of the connection."""
    client = connected(core, "refused")
    client.send(Subscribe(1, [Filter(wanted)]))
    packet = client.receive()
    if isinstance(packet, Suback):
        assert packet.codes == [0x8F]
        client.ping()
    else:
        assert isinstance(packet, Disconnect)
        assert packet.code in (0x81, 0x82, 0x8F)
        client.expect_close()
    assert core.counters()["subscriptions"] == 0


@clause("MQTT-4.7.1-1")
@pytest.mark.parametrize(
    "wanted", ["sport/tennis#", "sport/tennis/#/ranking", "#/a", "##", "a/##", "a/b#", "#a", "#+"]
)
def test_a_multi_level_wildcard_in_a_wrong_place_is_refused(core: CoreDriver, wanted: str) -> None:
    refuses(core, wanted)


@clause("MQTT-4.7.1-2")
@pytest.mark.parametrize("wanted", ["sport+", "+a", "a/b+/c", "a/+b", "++", "a/++", "+#"])
def test_a_single_level_wildcard_that_is_not_a_whole_level_is_refused(
    core: CoreDriver, wanted: str
) -> None:
    refuses(core, wanted)


MATCHES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/tennis/player1/#", "sport/tennis/player2", False),
    ("sport/tennis/player1/#", "sport/tennis/player11", False),
    ("sport/#", "sport", True),
    ("#", "anything/at/all", True),
    ("#", "/", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+", "finance", True),
    ("+", "/finance", False),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+/tennis/#", "sport/tennis", True),
    ("+/tennis/#", "sport/tennis/x/y", True),
    ("sport/+/player1", "sport/tennis/player1", True),
    ("sport/+/player1", "sport//player1", True),
    ("sport/+/player1", "sport/a/b/player1", False),
    ("+/+/+", "//", True),
    ("+/+", "//", False),
    ("//", "//", True),
    ("/", "/", True),
    ("/", "//", False),
    ("a//b", "a/b", False),
    ("a/", "a", False),
    ("a", "a/", False),
    ("/#", "/", True),
    ("/#", "a", False),
    ("a/+/#", "a", False),
    ("a/+/#", "a/b", True),
    ("a/+/#", "a/b/c/d", True),
    ("+/#", "a", True),
    ("+/b/+/d", "a/b/c/d", True),
    ("+/b/+/d", "a/b/c/e", False),
    ("a b/c", "a b/c", True),
    (" ", " ", True),
]


@clause("MQTT-4.7.1-1", "MQTT-4.7.1-2")
@pytest.mark.parametrize(("wanted", "topic", "expected"), MATCHES)
def test_filters_match_as_the_specification_says(
    core: CoreDriver, wanted: str, topic: str, expected: bool
) -> None:
    client = connected(core, "c")
    client.subscribe(wanted)
    client.publish(topic, b"x")
    got = [p.text for p in client.received()]
    assert got == ([topic] if expected else [])
    client.unsubscribe(wanted)
    client.publish(topic, b"x")
    client.expect_nothing()


@clause("MQTT-4.7.2-1")
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("#", False),
        ("+/monitor/Clients", False),
        ("+/#", False),
        ("+/+/+", False),
        ("$share/g/#", False),
        ("$share/g/+/monitor/#", False),
        ("$other/#", True),
        ("$other/monitor/+", True),
        ("$other/+/Clients", True),
        ("$other/monitor/Clients", True),
    ],
)
def test_wildcards_at_the_start_do_not_match_topics_with_a_dollar(
    core: CoreDriver, wanted: str, expected: bool
) -> None:
    """Where the broker does not pass on such topics of clients, nothing may come at all."""
    client = connected(core, "c")
    client.subscribe(wanted)
    client.publish("$other/monitor/Clients", b"x")
    got = [p.text for p in client.received()]
    assert got in ([], ["$other/monitor/Clients"])
    if not expected:
        assert got == []


@clause("MQTT-4.7.2-1")
def test_sys_topics_reach_only_who_asks_for_them() -> None:
    core = CoreDriver(settings={Setting.SYS_INTERVAL_MS: 1000})
    all_topics = connected(core, "all")
    all_topics.subscribe("#", "+/#", "+/broker/#")
    system = connected(core, "sys")
    system.subscribe("$SYS/#")
    core.advance(5_000)
    all_topics.expect_nothing()
    got = system.received()
    assert got
    assert all(p.text.startswith("$SYS/") for p in got)


def test_clients_cannot_publish_to_sys_topics(core: CoreDriver) -> None:
    """4.7.2: the server should prevent clients from using such names."""
    watcher = connected(core, "w")
    watcher.subscribe("$SYS/#")
    client = connected(core, "c")
    client.send(Publish("$SYS/broker/version", b"forged", retain=True))
    client.send(Publish("$SYS/x", b"forged", 1, 1))
    client.pump()
    watcher.expect_nothing()
    late = connected(core, "l")
    late.subscribe("$SYS/#")
    late.expect_nothing()


@clause("MQTT-4.7.3-1")
def test_an_empty_topic_or_filter_is_refused(core: CoreDriver) -> None:
    refuses(core, "")
    client = connected(core, "c")
    client.send(Publish("", b"x"))
    client.expect_close({0x81, 0x82, 0x90})


@clause("MQTT-4.7.3-2")
def test_a_null_character_in_a_topic_or_filter_is_malformed(core: CoreDriver) -> None:
    for wanted in (b"\x00", b"a/\x00", b"a\x00b/#"):
        client = connected(core, "c")
        client.send(Subscribe(1, [Filter(wanted)]))
        client.expect_close(0x81)
        client = connected(core, "c")
        client.send(Publish(wanted.replace(b"#", b"x"), b"x"))
        client.expect_close(0x81)


@clause("MQTT-4.7.3-3")
def test_the_longest_topic_and_filter_work(core: CoreDriver) -> None:
    topic = "t" * 65535
    client = connected(core, "c")
    client.subscribe(topic, qos=1)
    client.publish(topic, b"x", 1)
    client.expect_publish(topic, b"x", 1)
    client.unsubscribe(topic)


@clause("MQTT-4.7.3-4")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ACCOUNTS", "Accounts"),
        ("/finance", "finance"),
        ("finance", "finance/"),
        ("a/b", "a//b"),
        ("\u00e4", "a\u0308"),
        ("\ufb01", "fi"),
        ("a", "\uff41"),
        ("a ", "a"),
        ("\u212a", "K"),
        ("a/./b", "a/b"),
        ("a%2Fb", "a/b"),
        ("\ufeffa", "a"),
        ("\u200ba", "a"),
    ],
)
def test_topics_are_not_normalised(core: CoreDriver, one: str, other: str) -> None:
    client = connected(core, "c")
    client.subscribe(one)
    client.publish(other, b"x")
    client.expect_nothing()
    client.publish(one, b"y")
    client.expect_publish(one, b"y")


def test_more_levels_than_allowed_are_refused(core: CoreDriver) -> None:
    """A bound of this broker (topic_levels_max), answered as the specification says."""
    core.settings({Setting.TOPIC_LEVELS_MAX: 5})
    client = connected(core, "c")
    client.subscribe("a/b/c/d/e")
    client.publish("a/b/c/d/e", b"x", 1)
    client.expect_publish("a/b/c/d/e", b"x")
    client.subscribe("a/b/c/d/e/f", codes=[0x8F])
    client.publish("a/b/c/d/e/f", b"x", 1, code=0x90)
    client.ping()


def test_very_deep_topics_within_the_bound_work(core: CoreDriver) -> None:
    topic = "/".join("x" * 127)
    client = connected(core, "c")
    client.subscribe(topic, "#", "/".join("+" * 127), "/".join("x" * 126) + "/#")
    client.publish(topic, b"x")
    client.expect_publish(topic, b"x")
    client.expect_nothing()


def test_many_wildcard_subscriptions_do_not_multiply_the_work(core: CoreDriver) -> None:
    """Each combination of + and a name: 2^10 filters match one topic."""
    client = connected(core, "c")
    filters = [
        "/".join("+" if number >> bit & 1 else f"l{bit}" for bit in range(10))
        for number in range(1024)
    ]
    client.subscribe(*filters)
    client.publish("/".join(f"l{bit}" for bit in range(10)), b"x")
    client.expect_publish(None, b"x")
    client.expect_nothing()
    client.unsubscribe(*filters)
    assert core.counters()["subscriptions"] == 0
