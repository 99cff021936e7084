"""MQTT 5.0, sections 3.1.2.5 to 3.1.2.7 and 3.1.3.2: the will."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import ClosedBy, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connect, Property, Will, frame, props

clause = pytest.mark.clause


def watch(core: CoreDriver, topic: str = "will/#", qos: int = 2) -> FakeClient:
    """A client that sees the wills."""
    watcher = connected(core, "watcher")
    watcher.subscribe(topic, qos=qos)
    return watcher


@clause("MQTT-3.1.2-7", "MQTT-3.1.2-8")
@pytest.mark.parametrize("by", list(ClosedBy)[:3])
def test_the_will_is_published_when_the_connection_breaks(core: CoreDriver, by: ClosedBy) -> None:
    watcher = watch(core)
    client = connected(core, "c", will=Will("will/c", b"gone"))
    watcher.expect_nothing()
    client.drop(by)
    watcher.expect_publish("will/c", b"gone", 0, retain=False)


@clause("MQTT-3.1.2-8")
def test_the_will_is_published_when_the_keep_alive_has_passed(core: CoreDriver) -> None:
    watcher = watch(core)
    connected(core, "c", will=Will("will/c", b"gone"), keep_alive_s=2)
    core.advance(2_900)
    watcher.expect_nothing()
    core.advance(1_100)
    watcher.expect_publish("will/c", b"gone")


@clause("MQTT-3.1.2-8")
def test_the_will_is_published_when_the_server_closes_on_an_error(core: CoreDriver) -> None:
    watcher = watch(core)
    client = connected(core, "c", will=Will("will/c", b"gone"))
    client.send(frame(3, 6, b"\x00\x01t\x00\x01\x00"))
    client.expect_close(0x81)
    watcher.expect_publish("will/c", b"gone")


@clause("MQTT-3.1.2-8")
def test_the_will_is_published_after_a_disconnect_that_asks_for_it(core: CoreDriver) -> None:
    """3.14.2.1: 0x04, disconnect with will message, and any other code but 0x00."""
    watcher = watch(core)
    for code in (0x04, 0x80, 0x93):
        client = connected(core, "c", will=Will("will/c", b"%d" % code))
        client.disconnect(code)
        watcher.expect_publish("will/c", b"%d" % code)


@clause("MQTT-3.1.2-8")
def test_the_will_is_published_when_the_host_disconnects_the_client(core: CoreDriver) -> None:
    watcher = watch(core)
    client = connected(core, "c", will=Will("will/c", b"gone"))
    core.disconnect(client.connection, 0x98)
    client.expect_close(0x98)
    watcher.expect_publish("will/c", b"gone")


@clause("MQTT-3.1.2-10", "MQTT-3.14.4-3")
def test_the_will_is_forgotten_after_a_normal_disconnect(core: CoreDriver) -> None:
    watcher = watch(core)
    for properties in (props(), props(session_expiry_interval=5)):
        delay = props(will_delay_interval=1)
        for will in (Will("will/c", b"x"), Will("will/c", b"x", properties=delay)):
            client = connected(core, "c", will=will, properties=properties)
            client.disconnect()
            core.advance(20_000)
            watcher.expect_nothing()


@clause("MQTT-3.1.2-10")
def test_the_will_is_published_only_once(core: CoreDriver) -> None:
    watcher = watch(core)
    expiry = props(session_expiry_interval=100)
    client = connected(core, "c", will=Will("will/c", b"x"), properties=expiry)
    client.drop()
    watcher.expect_publish("will/c", b"x")
    client.reconnect(properties=expiry)
    client.drop()
    core.advance(200_000)
    watcher.expect_nothing()


@clause("MQTT-3.1.2-9")
def test_the_will_carries_its_topic_payload_and_properties(core: CoreDriver) -> None:
    watcher = watch(core)
    properties = props(
        payload_format_indicator=1,
        message_expiry_interval=100,
        content_type="text/plain",
        response_topic="answer/here",
        correlation_data=b"\x00\x01",
        user_property=[("a", "1"), ("b", "2"), ("a", "3")],
    )
    client = connected(core, "c", will=Will("will/c", b"gone", 1, properties=properties))
    client.drop()
    packet = watcher.expect_publish("will/c", b"gone", 1)
    assert sorted(packet.props.items, key=repr) == sorted(properties.items, key=repr)


@clause("MQTT-3.1.3-10")
def test_the_user_properties_of_a_will_keep_their_order(core: CoreDriver) -> None:
    watcher = watch(core)
    pairs = [(str(n % 3), str(n)) for n in range(20)]
    will = Will("will/c", b"", properties=props(user_property=pairs))
    connected(core, "c", will=will).drop()
    assert watcher.expect_publish("will/c").props.user == pairs


@clause("MQTT-3.1.2-12")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_will_is_published_with_its_qos(core: CoreDriver, qos: int) -> None:
    watcher = watch(core)
    connected(core, "c", will=Will("will/c", b"x", qos)).drop()
    watcher.expect_publish("will/c", b"x", qos)


@clause("MQTT-3.1.2-14")
def test_a_will_without_retain_is_not_retained(core: CoreDriver) -> None:
    connected(core, "c", will=Will("will/c", b"x")).drop()
    watcher = watch(core)
    watcher.expect_nothing()


@clause("MQTT-3.1.2-15")
def test_a_will_with_retain_is_retained(core: CoreDriver) -> None:
    connected(core, "c", will=Will("will/c", b"x", 1, retain=True)).drop()
    watcher = watch(core)
    watcher.expect_publish("will/c", b"x", 1, retain=True)


@clause("MQTT-3.1.2-15")
def test_an_empty_will_with_retain_removes_the_retained_message(core: CoreDriver) -> None:
    connected(core, "p").publish("will/c", b"old", retain=True)
    connected(core, "c", will=Will("will/c", b"", retain=True)).drop()
    watcher = watch(core)
    watcher.expect_nothing()


@clause("MQTT-3.1.2-8")
def test_the_will_waits_for_its_delay(core: CoreDriver) -> None:
    watcher = watch(core)
    will = Will("will/c", b"late", properties=props(will_delay_interval=10))
    client = connected(core, "c", will=will, properties=props(session_expiry_interval=100))
    client.drop()
    core.advance(9_000)
    watcher.expect_nothing()
    core.advance(2_000)
    watcher.expect_publish("will/c", b"late")


@clause("MQTT-3.1.2-8")
def test_the_will_is_published_when_the_session_ends_before_its_delay(core: CoreDriver) -> None:
    watcher = watch(core)
    will = Will("will/c", b"session", properties=props(will_delay_interval=1000))
    client = connected(core, "c", will=will, properties=props(session_expiry_interval=5))
    client.drop()
    core.advance(4_000)
    watcher.expect_nothing()
    core.advance(2_000)
    watcher.expect_publish("will/c", b"session")
    core.advance(2_000_000)
    watcher.expect_nothing()


@clause("MQTT-3.1.2-8")
def test_the_will_is_published_at_once_when_the_session_ends_with_the_connection(
    core: CoreDriver,
) -> None:
    watcher = watch(core)
    will = Will("will/c", b"now", properties=props(will_delay_interval=1000))
    connected(core, "c", will=will).drop()
    watcher.expect_publish("will/c", b"now")


@clause("MQTT-3.1.3-9", "MQTT-3.1.2-8")
def test_a_reconnect_before_the_delay_has_passed_cancels_the_will(core: CoreDriver) -> None:
    watcher = watch(core)
    expiry = props(session_expiry_interval=100)
    will = Will("will/c", b"x", properties=props(will_delay_interval=10))
    client = connected(core, "c", will=will, properties=expiry)
    client.drop()
    core.advance(9_000)
    client.reconnect(properties=expiry)
    core.advance(100_000)
    watcher.expect_nothing()
    client.disconnect()
    core.advance(200_000)
    watcher.expect_nothing()


def test_a_clean_start_before_the_delay_has_passed_publishes_the_will(core: CoreDriver) -> None:
    """3.1.3.2.2, comment: the will is sent because the session ends."""
    watcher = watch(core)
    will = Will("will/c", b"x", properties=props(will_delay_interval=10))
    client = connected(core, "c", will=will, properties=props(session_expiry_interval=100))
    client.drop()
    core.advance(5_000)
    watcher.expect_nothing()
    client.reconnect(clean_start=True)
    watcher.expect_publish("will/c", b"x")


@pytest.mark.parametrize(
    ("delay", "clean_start", "published"),
    [(0, False, True), (0, True, True), (10, True, True), (10, False, False)],
)
def test_the_will_at_a_take_over(
    core: CoreDriver, delay: int, clean_start: bool, published: bool
) -> None:
    """3.1.3.2.2, comment: sent unless the new connection goes on and there is a delay."""
    watcher = watch(core)
    expiry = props(session_expiry_interval=100)
    will = Will("will/c", b"x", properties=props(will_delay_interval=delay))
    old = connected(core, "c", will=will, properties=expiry)
    new = connected(core, "c", clean_start=clean_start, properties=expiry)
    old.expect_close(0x8E)
    if published:
        watcher.expect_publish("will/c", b"x")
    watcher.expect_nothing()
    core.advance(20_000)
    watcher.expect_nothing()
    new.ping()


def test_the_new_connection_has_its_own_will(core: CoreDriver) -> None:
    watcher = watch(core)
    expiry = props(session_expiry_interval=100)
    delay = props(will_delay_interval=10)
    client = connected(core, "c", will=Will("will/a", b"a", properties=delay), properties=expiry)
    client.drop()
    client.open()
    client.connect(clean_start=False, will=Will("will/b", b"b"), properties=expiry)
    client.drop()
    watcher.expect_publish("will/b", b"b")
    core.advance(50_000)
    watcher.expect_nothing()


def test_a_will_delay_above_the_maximum_is_cut() -> None:
    core = CoreDriver(settings={Setting.WILL_DELAY_MAX_S: 5})
    watcher = watch(core)
    will = Will("will/c", b"x", properties=props(will_delay_interval=1000))
    connected(core, "c", will=will, properties=props(session_expiry_interval=2000)).drop()
    core.advance(6_000)
    watcher.expect_publish("will/c", b"x")


def test_a_message_expiry_of_a_will_starts_when_it_is_published(core: CoreDriver) -> None:
    """3.1.3.2.4: sent as the expiry interval when the server publishes the will."""
    watcher = watch(core)
    properties = props(will_delay_interval=10, message_expiry_interval=20)
    client = connected(
        core,
        "c",
        will=Will("will/c", b"x", properties=properties),
        properties=props(session_expiry_interval=100),
    )
    client.drop()
    core.advance(11_000)
    packet = watcher.expect_publish("will/c", b"x")
    assert packet.props.get(Property.MESSAGE_EXPIRY_INTERVAL) in (19, 20)
    assert Property.WILL_DELAY_INTERVAL not in packet.props


@pytest.mark.parametrize(
    "name", ["will_delay_interval", "payload_format_indicator", "message_expiry_interval"]
)
def test_a_property_of_a_will_may_occur_only_once(core: CoreDriver, name: str) -> None:
    """3.1.3.2."""
    client = FakeClient(core)
    client.send(Connect("c", will=Will("w", properties=props(**{name: [1, 1]}))))
    client.expect_refused(0x82)


@pytest.mark.parametrize("name", ["content_type", "response_topic"])
def test_a_text_property_of_a_will_may_occur_only_once(core: CoreDriver, name: str) -> None:
    client = FakeClient(core)
    client.send(Connect("c", will=Will("w", properties=props(**{name: ["a", "a"]}))))
    client.expect_refused(0x82)


def test_a_property_that_is_not_of_a_will_is_malformed(core: CoreDriver) -> None:
    """2.2.2.2."""
    for properties in (props(topic_alias=1), props(reason_string="x"), props(receive_maximum=1)):
        client = FakeClient(core)
        client.send(Connect("c", will=Will("w", properties=properties)))
        client.expect_refused(0x81)


def test_the_own_will_reaches_the_own_session_later(core: CoreDriver) -> None:
    """The will is a message like any other, also for the session of its client."""
    expiry = props(session_expiry_interval=100)
    client = connected(core, "c", will=Will("will/c", b"x", 1), properties=expiry)
    client.subscribe("will/#", qos=1)
    client.drop()
    client.reconnect(properties=expiry)
    client.expect_publish("will/c", b"x", 1)


def test_a_drained_broker_keeps_delayed_wills_of_durable_sessions(core: CoreDriver) -> None:
    """core-abi.md: with DRAIN, durable sessions and wills stay."""
    watcher = watch(core)
    will = Will("will/c", b"x", properties=props(will_delay_interval=50))
    client = connected(core, "c", will=will, properties=props(session_expiry_interval=100))
    core.drain()
    client.expect_close(0x8B)
    watcher.expect_close(0x8B)
