"""Brokers as clients: the top bit of the protocol level, and the topic of a bridge's state.

No specification has either. mosquitto's bridges use both by default (mosquitto.conf(5):
`try_private` and `notifications`).
"""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Access, Rule, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Puback,
    Publish,
    StreamDecoder,
    Will,
    props,
)

STATE = "$SYS/broker/connection/attic.garden/state"

VERSIONS = pytest.mark.parametrize("version", [3, 4])


def bridge(core: CoreDriver, version: int = 4, *, clean: bool = True) -> FakeClient:
    """A bridge that has connected."""
    return connected(core, "bridge", version=version, bridge=True, clean_start=clean)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x10\x13\x00\x04MQTT\x84\x02\x00\x3c\x00\x07bridge1",
        b"\x10\x15\x00\x06MQIsdp\x83\x02\x00\x3c\x00\x07bridge1",
    ],
)
def test_to_the_byte(core: CoreDriver, packet: bytes) -> None:
    connection = core.open()
    core.send(connection, packet)
    assert connection.read() == b"\x20\x02\x00\x00"


@VERSIONS
def test_what_a_bridge_publishes_does_not_come_back(core: CoreDriver, version: int) -> None:
    client = bridge(core, version)
    other = connected(core, "other", version=4)
    for one in (client, other):
        one.subscribe("t/#", qos=1)
    client.publish("t/1", b"mine", 1)
    other.expect_publish("t/1", b"mine", 1)
    client.expect_nothing()
    other.publish("t/1", b"theirs", 1)
    client.expect_publish("t/1", b"theirs", 1)


@VERSIONS
def test_a_bridge_learns_what_is_to_be_retained(core: CoreDriver, version: int) -> None:
    client = bridge(core, version)
    client.subscribe("t", qos=1)
    publisher = connected(core, "p")
    publisher.publish("t", b"x", 1, retain=True)
    client.expect_publish("t", b"x", 1, retain=True)
    publisher.publish("t", b"y", 1)
    client.expect_publish("t", b"y", 1, retain=False)


def test_a_shared_subscription_of_a_bridge(core: CoreDriver) -> None:
    """No Local is not for shared subscriptions [MQTT-3.8.3-4]; the retained flag is kept."""
    client = bridge(core)
    client.subscribe("$share/g/t", qos=1)
    client.publish("t", b"x", 1, retain=True)
    client.expect_publish("t", b"x", 1, retain=True)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_session_follows_the_bit_of_its_connection(restarted: bool) -> None:
    """mosquitto tries without the bit where it was refused, and asks anew after a restart."""
    core = CoreDriver()

    def again(as_bridge: bool) -> tuple[CoreDriver, FakeClient]:
        now = core
        if restarted:
            now = CoreDriver(journal=core.snapshot())
        client = FakeClient(now, "bridge", version=4, bridge=as_bridge)
        assert client.connect(clean_start=False).session_present
        return now, client

    def echoed(core: CoreDriver, client: FakeClient) -> tuple[list[bytes], bool]:
        client.publish("t", b"mine", 1)
        connected(core, "p").publish("t", b"other", 1, retain=True)
        got = client.received()
        return [p.payload for p in got], got[-1].retain

    client = bridge(core, clean=False)
    client.subscribe("t", qos=0)
    client.drop()
    core, client = again(as_bridge=True)
    assert echoed(core, client) == ([b"other"], True)
    client.drop()
    core, client = again(as_bridge=False)
    assert echoed(core, client) == ([b"mine", b"other"], False)
    client.drop()
    core, client = again(as_bridge=True)
    assert echoed(core, client) == ([b"other"], True)


def test_options_of_mqtt_5_stay_without_the_bit(core: CoreDriver) -> None:
    """Only what the bit has set is taken back with it."""
    client = connected(core, "c", properties=props(session_expiry_interval=100))
    client.subscribe(Filter("t", 0, no_local=True))
    client.drop()
    older = FakeClient(core, "c", version=4)
    assert older.connect(clean_start=False).session_present
    older.publish("t", b"x")
    older.expect_nothing()


@pytest.mark.parametrize(
    ("name", "level", "version"),
    [
        (b"MQTT", 3, 4),
        (b"MQTT", 0x83, 4),
        (b"MQTT", 0x80, 4),
        (b"MQTT", 0, 4),
        (b"MQIsdp", 4, 4),
        (b"MQIsdp", 0x84, 4),
        (b"MQTT", 0x85, 5),
        (b"MQTT", 6, 5),
        (b"MQTT", 0xFF, 5),
    ],
)
def test_an_unknown_level_is_refused_in_the_form_of_the_nearest(
    core: CoreDriver, name: bytes, level: int, version: int
) -> None:
    """3.1.1 [MQTT-3.1.2-2], 5.0 [MQTT-3.1.2-2]: 0x01 before MQTT 5, 0x84 from then on."""
    connection = core.open()
    connect = Connect("c", version=4, protocol_name=name, level=level)
    core.send(connection, connect.encode())
    assert connection.closed
    (packet,) = StreamDecoder(version).feed(connection.read())
    assert isinstance(packet, Connack)
    assert packet.code == (1 if version == 4 else 0x84)


# -- the topic of bridges ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_bridge_tells_its_state(core: CoreDriver, version: int) -> None:
    """The will says 0, the bridge then publishes 1, both retained with QoS 1."""
    client = FakeClient(core, "attic.garden", version=version, bridge=version != 5)
    client.connect(will=Will(STATE, b"0", 1, retain=True))
    client.publish(STATE, b"1", 1, retain=True)
    dashboard = connected(core, "dashboard")
    dashboard.subscribe("$SYS/broker/connection/+/state", qos=1)
    dashboard.expect_publish(STATE, b"1", 1, retain=True)
    client.drop()
    dashboard.expect_publish(STATE, b"0", 1)
    late = connected(core, "late")
    late.subscribe("$SYS/#")
    late.expect_publish(STATE, b"0", 0, retain=True)


def test_the_state_survives_a_restart(core: CoreDriver) -> None:
    bridge(core).publish(STATE, b"1", 1, retain=True)
    for journal in (core.journal, core.snapshot()):
        after = CoreDriver(journal=journal)
        dashboard = connected(after, "dashboard")
        dashboard.subscribe(STATE)
        dashboard.expect_publish(STATE, b"1", retain=True)


def test_the_will_of_a_bridge_is_published_after_a_restart(core: CoreDriver) -> None:
    client = FakeClient(core, "attic.garden", version=4, bridge=True)
    client.connect(will=Will(STATE, b"0", 1, retain=True))
    client.publish(STATE, b"1", 1, retain=True)
    after = CoreDriver(journal=core.snapshot())
    after.advance(1)
    dashboard = connected(after, "dashboard")
    dashboard.subscribe(STATE)
    dashboard.expect_publish(STATE, b"0", retain=True)


@pytest.mark.parametrize(
    "rules",
    [
        [Rule(True, "#")],  # does not match topics that begin with $ [MQTT-4.7.2-1]
        [Rule(False, "$SYS/broker/connection/#", Access.PUBLISH), Rule(True, "$SYS/#")],
    ],
    ids=["no rule", "denied"],
)
def test_rules_that_do_not_allow_the_state_cost_the_message_not_the_bridge(
    core: CoreDriver, rules: list[Rule]
) -> None:
    core.acl([*rules, Rule(True, "$SYS/#", Access.SUBSCRIBE)])
    dashboard = connected(core, "dashboard")
    dashboard.subscribe("$SYS/#")
    client = FakeClient(core, "attic.garden", version=4, bridge=True)
    client.connect(will=Will(STATE, b"0", 1, retain=True))
    client.publish(STATE, b"1", 1, retain=True)
    client.drop()
    dashboard.expect_nothing()
    assert core.counters()["acl_denied"] == 2


def test_a_rule_for_a_bridge_of_that_name(core: CoreDriver) -> None:
    core.acl(
        [
            Rule(True, "$SYS/broker/connection/%c/state", Access.PUBLISH),
            Rule(True, "$SYS/#", Access.SUBSCRIBE),
        ]
    )
    dashboard = connected(core, "dashboard")
    dashboard.subscribe("$SYS/#")
    connected(core, "attic.garden", version=4).publish(STATE, b"1", 1)
    dashboard.expect_publish(STATE, b"1")
    connected(core, "another", version=4).publish(STATE, b"0", 1)
    dashboard.expect_nothing()


@pytest.mark.parametrize(
    "topic",
    ["$SYS", "$SYS/", "$SYS/broker/uptime", "$SYS/broker/connection", "$SYS/broker/connection/"],
)
def test_the_rest_of_sys_is_the_broker_s(core: CoreDriver, topic: str) -> None:
    """4.7.2: who reads there reads what the broker says of itself."""
    watcher = connected(core, "w")
    watcher.subscribe("$SYS/#", "$SYS")
    client = FakeClient(core, "c", version=4)
    client.connect(will=Will(topic, b"x"), code=5)
    newer = connected(core, "n")
    newer.send(Publish(topic, b"x", 1, 1))
    assert newer.expect(Puback).code == 0x87
    watcher.expect_nothing()


def test_the_broker_s_own_values_are_not_journalled() -> None:
    core = CoreDriver(settings={Setting.SYS_INTERVAL_MS: 1000})
    core.advance(2000)
    assert b"$SYS" not in b"".join(core.snapshot())


def test_no_disconnect_for_a_bridge(core: CoreDriver) -> None:
    """The strict decoder of 3.1.1 refuses it; here the answers that would have one in MQTT 5."""
    client = bridge(core)
    core.drain()
    client.pump()
    assert client.closed
    assert not [p for p in client.inbox if isinstance(p, Disconnect)]
