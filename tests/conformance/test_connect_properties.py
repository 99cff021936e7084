"""MQTT 5.0, sections 3.1.2.10 and 3.1.2.11: keep alive and the properties of CONNECT."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Connected, Disconnected, Rule, Setting, response_prefix_command
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Pingreq,
    Properties,
    Property,
    Puback,
    Publish,
    Pubrec,
    Subscribe,
    Unsubscribe,
    props,
)

clause = pytest.mark.clause


@clause("MQTT-3.1.2-22", "MQTT-3.2.2-22")
def test_a_silent_client_is_closed_after_one_and_a_half_times_its_keep_alive(
    core: CoreDriver,
) -> None:
    client = connected(core, "c", keep_alive_s=10)
    core.advance(14_900)
    client.expect_nothing()
    core.advance(1_100)
    assert client.closed
    (event,) = [e for e in core.take_events() if isinstance(e, Disconnected)]
    assert event.code == 0x8D


@clause("MQTT-3.1.2-22")
def test_every_packet_starts_the_keep_alive_anew(core: CoreDriver) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("t", qos=1)
    client = connected(core, "c", keep_alive_s=10)
    client.subscribe("t", qos=1)
    for _ in range(5):
        core.advance(14_000)
        client.send(Pingreq())
        client.receive()
        core.advance(14_000)
        client.send(Publish("t", b"x"))
        client.expect_publish("t", b"x")
    core.advance(14_000)
    watcher.publish("t", b"y", qos=1)
    client.expect_publish("t", b"y", 1)  # its PUBACK counts
    core.advance(14_000)
    client.expect_nothing()
    core.advance(2_000)
    assert client.closed


@clause("MQTT-3.1.2-22")
def test_what_the_server_sends_does_not_prolong_the_keep_alive(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    client = connected(core, "c", keep_alive_s=10)
    client.subscribe("t")
    for _ in range(16):
        core.advance(1_000)
        publisher.publish("t", b"x")
    assert client.closed


@clause("MQTT-3.1.2-22")
def test_a_part_of_a_packet_does_not_prolong_the_keep_alive(core: CoreDriver) -> None:
    client = connected(core, "c", keep_alive_s=10)
    data = Publish("t", bytes(100)).encode()
    for at in range(16):
        core.advance(1_000)
        client.send(data[at : at + 1])
    assert client.closed


def test_keep_alive_0_never_closes(core: CoreDriver) -> None:
    """3.1.2.10: 0 turns the mechanism off."""
    client = connected(core, "c", keep_alive_s=0)
    core.advance(100_000_000)
    client.ping()


@pytest.mark.parametrize("asked", [0, 61, 120, 65535])
def test_a_keep_alive_above_the_maximum_is_replaced(asked: int) -> None:
    """3.2.2.3.14."""
    core = CoreDriver(settings={Setting.KEEP_ALIVE_MAX_S: 60})
    client = FakeClient(core, "c")
    connack = client.connect(keep_alive_s=asked)
    assert connack.properties.get(Property.SERVER_KEEP_ALIVE) == 60
    (event,) = [e for e in core.take_events() if isinstance(e, Connected)]
    assert event.keep_alive_s == 60
    core.advance(89_000)
    client.expect_nothing()
    core.advance(2_000)
    assert client.closed


@pytest.mark.parametrize("asked", [0, 120])
def test_a_client_of_mqtt_311_keeps_its_keep_alive_as_it_cannot_be_told(asked: int) -> None:
    """3.1.1, [MQTT-3.1.2-24]: a client that keeps its promise must not be closed."""
    core = CoreDriver(settings={Setting.KEEP_ALIVE_MAX_S: 60})
    client = connected(core, "c", version=4, keep_alive_s=asked)
    for _ in range(3):
        core.advance(119_000)
        client.ping()


@pytest.mark.parametrize("asked", [1, 59, 60])
def test_a_keep_alive_up_to_the_maximum_stays(asked: int) -> None:
    core = CoreDriver(settings={Setting.KEEP_ALIVE_MAX_S: 60})
    client = FakeClient(core, "c")
    connack = client.connect(keep_alive_s=asked)
    assert connack.properties.get(Property.SERVER_KEEP_ALIVE) in (None, asked)
    core.advance(asked * 1500 - 100)
    client.expect_nothing()
    core.advance(1_200)
    assert client.closed


@clause("MQTT-3.1.2-23")
def test_session_state_is_kept_when_the_expiry_is_above_0(core: CoreDriver) -> None:
    expiry = props(session_expiry_interval=60)
    client = connected(core, "c", properties=expiry)
    client.subscribe("t", qos=1)
    client.drop()
    connected(core, "p").publish("t", b"x", qos=1)
    core.advance(59_000)
    assert client.reconnect(properties=expiry).session_present
    client.expect_publish("t", b"x", 1)


@pytest.mark.parametrize("properties", [props(), props(session_expiry_interval=0)])
def test_the_session_ends_with_the_connection_without_an_expiry(
    core: CoreDriver, properties: Properties
) -> None:
    """3.1.2.11.2: absent is 0."""
    client = connected(core, "c", properties=properties)
    client.subscribe("t", qos=1)
    client.drop()
    assert not client.reconnect().session_present
    connected(core, "p").publish("t", b"x", qos=1)
    client.expect_nothing()


def test_an_expiry_of_all_ones_never_ends(core: CoreDriver) -> None:
    """3.1.2.11.2: 0xFFFFFFFF does not expire."""
    client = connected(core, "c", properties=props(session_expiry_interval=0xFFFFFFFF))
    client.drop()
    core.advance(0xFFFFFFFF * 1000 + 5_000)
    assert client.reconnect().session_present


def test_a_shorter_session_expiry_is_told(core: CoreDriver) -> None:
    """3.2.2.3.2: the server says so when it uses another value."""
    core.settings({Setting.SESSION_EXPIRY_MAX_S: 30})
    client = FakeClient(core, "c")
    connack = client.connect(properties=props(session_expiry_interval=100))
    assert connack.properties.get(Property.SESSION_EXPIRY_INTERVAL) == 30
    client.drop()
    core.advance(31_000)
    assert not client.reconnect().session_present


@clause("MQTT-3.1.2-24", "MQTT-3.1.2-25")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_publish_that_is_too_large_for_the_client_is_discarded(
    core: CoreDriver, qos: int
) -> None:
    publisher = connected(core, "p")
    limited = connected(core, "l", properties=props(maximum_packet_size=50))
    free = connected(core, "f")
    for client in (limited, free):
        client.subscribe("t", qos=qos)
    publisher.publish("t", bytes(100), qos=qos)
    free.expect_publish("t", bytes(100))
    limited.expect_nothing()
    publisher.publish("t", b"small", qos=qos)
    limited.expect_publish("t", b"small", qos)
    assert max(limited.sizes) <= 50


@clause("MQTT-3.1.2-24")
@pytest.mark.parametrize("qos", [0, 1])
def test_the_maximum_packet_size_counts_every_byte(core: CoreDriver, qos: int) -> None:
    """Fixed header, topic, identifier, property length and payload."""
    publisher = connected(core, "p")
    overhead = 2 + 3 + (2 if qos else 0) + 1
    limited = connected(core, "l", properties=props(maximum_packet_size=40))
    limited.subscribe("t", qos=qos)
    publisher.publish("t", bytes(41 - overhead), qos=qos)
    limited.expect_nothing()
    publisher.publish("t", bytes(40 - overhead), qos=qos)
    limited.expect_publish("t", bytes(40 - overhead), qos)
    assert limited.sizes[-1] == 40


@clause("MQTT-3.1.2-25")
def test_discarded_messages_do_not_use_up_the_receive_maximum(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    limited = connected(core, "l", properties=props(maximum_packet_size=50, receive_maximum=2))
    limited.subscribe("t", qos=1)
    for _ in range(10):
        publisher.publish("t", bytes(100), qos=1)
    publisher.publish("t", b"a", qos=1)
    publisher.publish("t", b"b", qos=1)
    limited.expect_publish("t", b"a", acknowledge=False)
    limited.expect_publish("t", b"b", acknowledge=False)


@clause("MQTT-3.1.2-25")
def test_a_retained_and_a_queued_message_that_are_too_large_are_discarded(
    core: CoreDriver,
) -> None:
    publisher = connected(core, "p")
    small = props(maximum_packet_size=50, session_expiry_interval=100)
    limited = connected(core, "l", properties=small)
    limited.subscribe("q", qos=1)
    limited.drop()
    publisher.publish("q", bytes(100), qos=1)
    publisher.publish("q", b"next", qos=1)
    publisher.publish("r", bytes(100), retain=True)
    limited.reconnect(properties=small)
    limited.expect_publish("q", b"next", 1)
    limited.subscribe("r")
    limited.expect_nothing()
    assert max(limited.sizes) <= 50


@clause("MQTT-3.1.2-26", "MQTT-3.3.2-11")
def test_aliases_of_the_server_stay_within_the_clients_maximum(core: CoreDriver) -> None:
    publisher = connected(core, "p")
    for maximum in (1, 2, 5):
        client = connected(core, f"c{maximum}", properties=props(topic_alias_maximum=maximum))
        client.subscribe("topic/#")
        used = set()
        for number in range(40):
            topic = f"topic/{number % 8}"
            publisher.publish(topic, b"x")
            packet = client.expect_publish(topic, b"x")
            used.add(packet.props.integer(Property.TOPIC_ALIAS))
        assert all(alias is None or 1 <= alias <= maximum for alias in used)
        client.drop()


@clause("MQTT-3.1.2-27")
@pytest.mark.parametrize("maximum", [None, 0])
def test_no_alias_is_sent_to_a_client_that_takes_none(
    core: CoreDriver, maximum: int | None
) -> None:
    publisher = connected(core, "p")
    properties = props() if maximum is None else props(topic_alias_maximum=maximum)
    client = connected(core, "c", properties=properties)
    client.subscribe("topic/#")
    for number in range(20):
        publisher.publish("topic/long/name", b"%d" % number)
        packet = client.expect_publish("topic/long/name", b"%d" % number)
        assert Property.TOPIC_ALIAS not in packet.props


@clause("MQTT-3.1.2-28")
def test_response_information_is_given_only_when_asked_for(core: CoreDriver) -> None:
    core.command(response_prefix_command("answers/"))
    for asked in (props(), props(request_response_information=0)):
        connack = FakeClient(core, "c").connect(properties=asked)
        assert Property.RESPONSE_INFORMATION not in connack.properties
    connack = FakeClient(core, "c").connect(properties=props(request_response_information=1))
    information = connack.properties.get(Property.RESPONSE_INFORMATION)
    assert isinstance(information, str)
    assert information.startswith("answers/")


def test_response_information_differs_between_clients(core: CoreDriver) -> None:
    """4.10.2: it guides every client to topics of its own."""
    core.command(response_prefix_command("answers/"))
    asked = props(request_response_information=1)
    given = {
        FakeClient(core, f"c{i}")
        .connect(properties=asked)
        .properties.get(Property.RESPONSE_INFORMATION)
        for i in range(3)
    }
    assert len(given) == 3


def test_without_a_prefix_there_is_no_response_information(core: CoreDriver) -> None:
    connack = FakeClient(core, "c").connect(properties=props(request_response_information=1))
    assert Property.RESPONSE_INFORMATION not in connack.properties


@clause("MQTT-3.1.2-29")
def test_without_problem_information_acknowledgements_have_no_reason_string(
    core: CoreDriver,
) -> None:
    """Every failure that the core can answer, once; PUBACK, PUBREC, SUBACK and UNSUBACK."""
    core.acl([Rule(True, "ok/#")])
    client = connected(core, "c", properties=props(request_problem_information=0))
    client.send(Publish("denied", b"x", 1, 1))
    puback = client.expect(Puback)
    assert (puback.code, puback.properties) == (0x87, props())
    client.send(Publish("denied", b"x", 2, 2))
    pubrec = client.expect(Pubrec)
    assert (pubrec.code, pubrec.properties) == (0x87, props())
    assert client.subscribe("denied", codes=[0x87]).properties == props()
    assert client.unsubscribe("nothing", codes=[0x11]).properties == props()


DUPLICATES = {
    "session_expiry_interval": [1, 1],
    "receive_maximum": [1, 1],
    "maximum_packet_size": [100, 100],
    "topic_alias_maximum": [1, 1],
    "request_response_information": [1, 1],
    "request_problem_information": [1, 1],
    "authentication_method": ["m", "m"],
}


@pytest.mark.parametrize("name", list(DUPLICATES))
def test_a_property_of_connect_may_occur_only_once(core: CoreDriver, name: str) -> None:
    """3.1.2.11: it is a Protocol Error to include it more than once."""
    client = FakeClient(core)
    values = DUPLICATES[name]
    client.send(Connect("c", properties=props(**{name: values})))  # type: ignore[arg-type]
    client.expect_refused(0x82)


def test_authentication_data_may_occur_only_once_and_needs_a_method(core: CoreDriver) -> None:
    """3.1.2.11.10."""
    for properties in (
        props(authentication_data=b"d"),
        props(authentication_method="m", authentication_data=[b"d", b"d"]),
    ):
        client = FakeClient(core)
        client.send(Connect("c", properties=properties))
        client.expect_refused(0x82)


@pytest.mark.parametrize(
    "properties",
    [
        props(receive_maximum=0),
        props(maximum_packet_size=0),
        props(request_response_information=2),
        props(request_problem_information=2),
        props(request_problem_information=255),
    ],
)
def test_a_value_that_connect_forbids_is_a_protocol_error(
    core: CoreDriver, properties: Properties
) -> None:
    client = FakeClient(core)
    client.send(Connect("c", properties=properties))
    client.expect_refused(0x82)


def test_user_properties_of_connect_may_repeat(core: CoreDriver) -> None:
    """3.1.2.11.8."""
    pairs = [("a", "1"), ("a", "1"), ("b", ""), ("", "")]
    FakeClient(core, "c").connect(properties=props(user_property=pairs))


def test_the_limits_of_the_server_are_told(core: CoreDriver) -> None:
    """3.2.2.3: what differs from the defaults of the specification."""
    core.settings(
        {
            Setting.MAXIMUM_PACKET_BYTES: 4096,
            Setting.RECEIVE_MAXIMUM: 7,
            Setting.TOPIC_ALIAS_MAXIMUM: 3,
        }
    )
    connack = FakeClient(core, "c").connect()
    assert connack.properties.get(Property.MAXIMUM_PACKET_SIZE) == 4096
    assert connack.properties.get(Property.RECEIVE_MAXIMUM) == 7
    assert connack.properties.get(Property.TOPIC_ALIAS_MAXIMUM) == 3


def test_requests_before_the_connack_are_answered_after_it(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.send(Connect("c"), Subscribe(1, [Filter("t")]), Unsubscribe(2, ["t"]))
    assert isinstance(client.receive(), Connack)
    client.receive()
    client.receive()
    client.expect_nothing()
