"""MQTT 5.0, sections 3.10 and 3.11: UNSUBSCRIBE and UNSUBACK."""

from __future__ import annotations

import pytest

from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import TERSE, connected
from avow.testing.mqtt import Properties, Unsuback, Unsubscribe, props

clause = pytest.mark.clause
LONG = props(session_expiry_interval=1000)


@clause("MQTT-3.10.1-1")
@pytest.mark.parametrize("flags", [0, 1, 3, 4, 6, 8, 10, 15])
def test_other_flags_of_unsubscribe_are_malformed(core: CoreDriver, flags: int) -> None:
    client = connected(core, "c")
    client.send(Unsubscribe(1, ["t"], header_flags=flags))
    client.expect_close(0x81)


@clause("MQTT-3.10.3-1")
def test_a_filter_that_is_not_utf8_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Unsubscribe(1, ["fine", b"a/\xff"]))
    client.expect_close(0x81)


@clause("MQTT-3.10.3-2")
def test_an_unsubscribe_without_a_filter_is_a_protocol_error(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Unsubscribe(1, []))
    client.expect_close(0x82)


@clause("MQTT-3.10.4-1")
def test_filters_are_compared_character_by_character(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("a/+", "a/#", "a/b", "A/b", "ä")
    client.unsubscribe(
        "a/c", "+/b", "#", "a/B", "a/b/", "a\u0308", codes=[0x11, 0x11, 0x11, 0x11, 0x11, 0x11]
    )
    assert core.counters()["subscriptions"] == 5
    client.unsubscribe("a/+", "a/b")
    assert core.counters()["subscriptions"] == 3
    connected(core, "p").publish("a/b", b"x")
    client.expect_publish("a/b", b"x")  # a/#
    client.unsubscribe("a/#", "A/b", "ä")
    assert core.counters()["subscriptions"] == 0


@clause("MQTT-3.10.4-2")
def test_new_messages_are_not_added_after_unsubscribe(core: CoreDriver) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=1)
    client.unsubscribe("t")
    publisher = connected(core, "p")
    for qos in range(3):
        publisher.publish("t", b"x", qos)
    client.expect_nothing()
    client.reconnect(properties=LONG)
    client.expect_nothing()


@clause("MQTT-3.10.4-3")
@pytest.mark.parametrize("qos", [1, 2])
def test_messages_that_were_being_sent_are_completed(core: CoreDriver, qos: int) -> None:
    client = connected(core, "c", properties=LONG)
    client.subscribe("t", qos=qos)
    connected(core, "p").publish("t", b"x", qos)
    client.expect_publish("t", b"x", qos, acknowledge=False)
    client.unsubscribe("t")
    client.reconnect(properties=LONG)
    client.expect_publish("t", b"x", qos, dup=True)
    client.reconnect(properties=LONG)
    client.expect_nothing()


@clause("MQTT-3.10.4-4", "MQTT-3.10.4-5")
def test_unsubscribe_is_answered_even_when_nothing_was_deleted(core: CoreDriver) -> None:
    client = connected(core, "c")
    for packet_id in (1, 2, 65535):
        client.send(Unsubscribe(packet_id, ["nothing"]))
        unsuback = client.expect(Unsuback)
        assert (unsuback.packet_id, unsuback.codes) == (packet_id, [0x11])
        client.expect_nothing()


@clause("MQTT-3.10.4-6", "MQTT-3.11.3-1")
def test_many_filters_get_one_answer_with_their_codes_in_order(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("a", "b", "c")
    client.unsubscribe("b", "x", "a", "a", "y", "c", codes=[0, 0x11, 0, 0x11, 0x11, 0])
    client.expect_nothing()


@clause("MQTT-3.11.2-1", "MQTT-3.11.2-2")
@pytest.mark.parametrize("limit", [6, 7, 10, 30])
def test_an_unsuback_stays_within_the_maximum_packet_size(core: CoreDriver, limit: int) -> None:
    core.settings(TERSE)
    client = connected(core, "c", properties=props(maximum_packet_size=limit))
    client.unsubscribe("nothing", codes=[0x11])
    assert client.sizes[-1] <= limit


@clause("MQTT-3.11.3-2")
def test_the_codes_of_unsuback_are_those_of_the_table(core: CoreDriver) -> None:
    """The strict decoder refuses others; a filter that cannot exist is no exception."""
    client = connected(core, "c")
    client.subscribe("a")
    client.send(Unsubscribe(9, ["a", "no/#/filter"]))
    packet = client.receive()
    if isinstance(packet, Unsuback):
        assert packet.codes[0] == 0
        assert packet.codes[1] in (0x11, 0x8F)
    else:
        assert client.closed


@pytest.mark.parametrize(
    "properties",
    [props(subscription_identifier=1), props(reason_string="x"), props(topic_alias=1)],
)
def test_a_property_that_is_not_of_unsubscribe_is_malformed(
    core: CoreDriver, properties: Properties
) -> None:
    client = connected(core, "c")
    client.send(Unsubscribe(1, ["t"], properties))
    client.expect_close(0x81)


def test_a_shared_subscription_is_left_by_its_full_filter(core: CoreDriver) -> None:
    """3.10.4 and 4.8.2."""
    client = connected(core, "c")
    client.subscribe("$share/g/t", "t")
    client.unsubscribe("$share/h/t", "$share/g/u", codes=[0x11, 0x11])
    client.unsubscribe("$share/g/t")
    assert core.counters()["shared_subscriptions"] == 0
    connected(core, "p").publish("t", b"x")
    client.expect_publish("t", b"x")
    client.expect_nothing()
