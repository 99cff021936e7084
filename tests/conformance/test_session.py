"""MQTT 5.0, sections 3.1.2.4 and 4.1: clean start, session state, expiry, takeover."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Setting, Transport
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Disconnect,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    props,
)

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


@clause("MQTT-3.1.2-4", "MQTT-3.1.4-4", "MQTT-3.2.2-2")
def test_clean_start_discards_the_session(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = connected(core, "p")
    publisher.publish("t", b"queued", qos=1)
    assert not client.reconnect(clean_start=True, properties=LONG).session_present
    client.expect_nothing()
    publisher.publish("t", b"not subscribed", qos=1)
    client.expect_nothing()
    assert core.counters()["subscriptions"] == 0


@clause("MQTT-3.1.2-4")
def test_clean_start_discards_half_of_a_qos_2_exchange(core: CoreDriver) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("t")
    client = connected(core, "c", properties=LONG)
    client.send(Publish("t", b"one", 2, 7))
    client.expect(Pubrec)
    client.reconnect(clean_start=True, properties=LONG)
    client.send(Publish("t", b"two", 2, 7))
    client.expect(Pubrec)
    assert [p.payload for p in watcher.received()] == [b"one", b"two"]


@clause("MQTT-3.1.2-5", "MQTT-3.2.2-3")
def test_without_clean_start_the_session_goes_on(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    publisher.publish("t", b"inflight 1", qos=1)
    publisher.publish("t", b"inflight 2", qos=2)
    one = client.expect_publish("t", b"inflight 1", acknowledge=False)
    two = client.expect_publish("t", b"inflight 2", acknowledge=False)
    client.drop()
    publisher.publish("t", b"queued", qos=1)
    assert client.reconnect(properties=LONG).session_present
    for payload, was in ((b"inflight 1", one), (b"inflight 2", two)):
        again = client.expect_publish("t", payload, dup=True)
        assert again.packet_id == was.packet_id
    client.expect_publish("t", b"queued", 1, dup=False)


@clause("MQTT-3.1.2-6", "MQTT-3.2.2-3")
def test_without_clean_start_and_without_a_session_a_new_one_is_made(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    assert not client.connect(clean_start=False, properties=LONG).session_present
    client.subscribe("t", qos=1)
    assert client.reconnect(properties=LONG).session_present


@clause("MQTT-3.2.2-3")
def test_an_empty_session_counts_as_a_session(core: CoreDriver) -> None:
    """4.1: the existence of a session, even if the rest of it is empty."""
    client = connected(core, "c", properties=LONG)
    assert client.reconnect(properties=LONG).session_present


@clause("MQTT-4.1.0-1")
def test_session_state_stays_while_the_connection_is_open(core: CoreDriver) -> None:
    """The expiry interval does not run while the client is connected."""
    client = connected(core, "c", properties=props(session_expiry_interval=1))
    client.subscribe("t", qos=2)
    publisher = connected(core, "p")
    publisher.publish("t", b"a", qos=2)
    packet = client.expect_publish("t", b"a", 2, acknowledge=False)
    core.advance(1_000_000)
    client.acknowledge(packet)
    publisher.publish("t", b"b", qos=2)
    client.expect_publish("t", b"b", 2)
    client.drop()
    core.advance(500)
    assert client.reconnect().session_present


@clause("MQTT-4.1.0-2")
@pytest.mark.parametrize("interval", [1, 2, 60, 86400])
def test_session_state_is_discarded_when_the_expiry_has_passed(
    core: CoreDriver, interval: int
) -> None:
    properties = props(session_expiry_interval=interval)
    client = connected(core, "c", properties=properties)
    client.subscribe("t", qos=1)
    client.drop()
    core.advance(interval * 1000 - 100)
    assert client.reconnect(properties=properties).session_present
    client.drop()
    core.advance(interval * 1000 + 1_000)
    counters = core.counters()
    assert (counters["sessions"], counters["subscriptions"]) == (0, 0)
    assert counters["sessions_expired"] == 1
    assert not client.reconnect(properties=properties).session_present


@clause("MQTT-4.1.0-2")
def test_a_session_without_an_expiry_is_gone_at_once(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t", qos=1)
    client.drop()
    counters = core.counters()
    assert (counters["sessions"], counters["subscriptions"]) == (0, 0)


def test_disconnect_can_change_the_session_expiry(core: CoreDriver) -> None:
    """3.14.2.2.2."""
    client = connected(core, "c", properties=props(session_expiry_interval=10))
    client.disconnect(properties=props(session_expiry_interval=1000))
    core.advance(500_000)
    assert client.reconnect(properties=LONG).session_present
    client.disconnect(properties=props(session_expiry_interval=0))
    assert core.counters()["sessions"] == 0
    assert not client.reconnect().session_present


def test_disconnect_may_not_prolong_a_session_without_expiry(core: CoreDriver) -> None:
    """3.14.2.2.2: from zero to another value is a Protocol Error."""
    client = connected(core, "c")
    client.send(Disconnect(0, props(session_expiry_interval=10)))
    client.expect_close(0x82)
    assert not client.reconnect().session_present


def test_disconnect_without_an_expiry_keeps_that_of_connect(core: CoreDriver) -> None:
    client = connected(core, "c", properties=props(session_expiry_interval=10))
    client.disconnect()
    core.advance(9_000)
    assert client.reconnect(properties=props(session_expiry_interval=10)).session_present


def test_the_expiry_of_the_new_connection_counts(core: CoreDriver) -> None:
    client = connected(core, "c", properties=props(session_expiry_interval=1000))
    client.reconnect(properties=props(session_expiry_interval=1))
    client.drop()
    core.advance(2_500)
    assert not client.reconnect().session_present


def test_a_take_over_keeps_the_session(core: CoreDriver) -> None:
    """3.1.4: the old connection ends, the session goes on without a loss."""
    old = connected(core, "c", properties=LONG)
    old.subscribe("t", qos=1)
    publisher = connected(core, "p")
    publisher.publish("t", b"x", qos=1)
    old.expect_publish("t", b"x", acknowledge=False)
    new = FakeClient(core, "c")
    assert new.connect(clean_start=False, properties=LONG).session_present
    old.expect_close(0x8E)
    new.expect_publish("t", b"x", dup=True)


def test_a_take_over_of_a_session_without_expiry_ends_it(core: CoreDriver) -> None:
    """3.1.4, non-normative comment: the original session is ended on the takeover."""
    old = connected(core, "c")
    old.subscribe("t", qos=1)
    new = FakeClient(core, "c")
    assert not new.connect(clean_start=False).session_present
    old.expect_close(0x8E)
    connected(core, "p").publish("t", b"x", qos=1)
    new.expect_nothing()


def test_a_session_can_move_between_versions(core: CoreDriver) -> None:
    """Properties that MQTT 3.1.1 does not have are lost, the message is not (3.3.4, comment)."""
    five = connected(core, "c", properties=LONG)
    five.subscribe("t", qos=1)
    five.drop()
    publisher = connected(core, "p")
    publisher.publish("t", b"x", qos=1, properties=props(content_type="text/plain"))
    three = FakeClient(core, "c", version=4)
    assert three.connect(clean_start=False).session_present
    three.expect_publish("t", b"x", 1)
    three.drop()
    publisher.publish("t", b"y", qos=1, properties=props(content_type="text/plain"))
    again = FakeClient(core, "c")
    assert again.connect(clean_start=False, properties=LONG).session_present
    packet = again.expect_publish("t", b"y", 1)
    assert packet.props.get(Property.CONTENT_TYPE) == "text/plain"


def test_a_qos_2_message_of_the_client_survives_a_reconnect_exactly_once(
    core: CoreDriver,
) -> None:
    """4.3.3 and 4.4, the server as the receiver."""
    watcher = connected(core, "w")
    watcher.subscribe("t", qos=2)
    client = connected(core, "c", properties=LONG)
    client.send(Publish("t", b"x", 2, 9))
    client.drop()  # PUBREC is lost
    client.reconnect(properties=LONG)
    client.send(Publish("t", b"x", 2, 9, dup=True))
    assert client.expect(Pubrec).code == 0
    client.send(Pubrel(9))
    client.drop()  # PUBCOMP is lost
    client.reconnect(properties=LONG)
    client.send(Pubrel(9))
    pubcomp = client.expect(Pubcomp)
    assert pubcomp.packet_id == 9
    assert [p.payload for p in watcher.received()] == [b"x"]


def test_offline_messages_of_qos_0_are_not_a_promise_but_qos_1_is(core: CoreDriver) -> None:
    """4.1: QoS 0 messages pending transmission are optional."""
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = connected(core, "p")
    for number in range(50):
        publisher.publish("t", b"zero")
        publisher.publish("t", b"%d" % number, qos=1)
    client.reconnect(properties=LONG)
    got = [p.payload for p in client.received() if p.qos == 1]
    assert got == [b"%d" % number for number in range(50)]


def test_queued_messages_wait_for_acknowledgements_over_reconnects(core: CoreDriver) -> None:
    """What was not acknowledged is sent again, what was acknowledged never."""
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = connected(core, "p")
    for number in range(10):
        publisher.publish("t", b"%d" % number, qos=1)
    client.reconnect(properties=LONG)
    for number in range(4):
        client.expect_publish("t", b"%d" % number, 1)
    rest = client.received()
    assert [p.payload for p in rest] == [b"%d" % n for n in range(4, 10)]
    client.reconnect(properties=LONG)
    again = client.received()
    assert [(p.payload, p.packet_id) for p in again] == [(p.payload, p.packet_id) for p in rest]
    client.send(*(Puback(p.packet_id) for p in again if p.packet_id is not None))
    client.reconnect(properties=LONG)
    client.expect_nothing()


@clause("MQTT-4.2-1", "MQTT-4.2.0-1")
@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("version", [4, 5])
def test_a_stream_of_bytes_is_enough_on_every_transport(
    core: CoreDriver, transport: Transport, version: int
) -> None:
    client = connected(core, "c", version=version, transport=transport)
    client.subscribe("t", qos=2)
    client.publish("t", b"x", qos=2)
    client.expect_publish("t", b"x", 2)


def test_sessions_are_not_kept_when_persistence_is_off_but_work() -> None:
    core = CoreDriver(settings={Setting.PERSIST_SESSIONS: 0})
    before = len(core.journal)
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.drop()
    connected(core, "p").publish("t", b"x", qos=1)
    assert client.reconnect(properties=LONG).session_present
    client.expect_publish("t", b"x", 1)
    assert len(core.journal) == before
