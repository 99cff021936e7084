"""MQTT 5.0, section 3.2: CONNACK, and the limits that it announces."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Outcome, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Property,
    Publish,
    StreamDecoder,
    Will,
    frame,
    props,
)

clause = pytest.mark.clause


@clause("MQTT-3.2.0-1")
def test_nothing_is_sent_before_the_connack(core: CoreDriver) -> None:
    """A session with messages that wait: CONNACK comes first."""
    expiry = props(session_expiry_interval=100)
    client = FakeClient(core, "c", identity="u")
    client.connect(properties=expiry)
    client.subscribe("t", qos=1)
    client.drop()
    connected(core, "p").publish("t", b"x", qos=1)
    client.identity = None
    client.open()
    client.expect_nothing()
    client.send(client.connect_packet(clean_start=False, username="u", properties=expiry))
    client.expect_nothing()
    core.auth_result(core.auth_request())
    client.expect(Connack)
    client.expect_publish("t", b"x", 1)


@pytest.mark.parametrize("clean_start", [False, True])
def test_a_session_belongs_to_the_user_who_made_it(core: CoreDriver, clean_start: bool) -> None:
    """5.4.2: the server should check that a client may use the client identifier."""
    expiry = props(session_expiry_interval=100)
    alice = FakeClient(core, "c", identity="alice")
    alice.connect(properties=expiry)
    alice.subscribe("t", qos=1)
    for identity in ("mallory", None):
        other = FakeClient(core, "c", identity=identity)
        other.send(other.connect_packet(clean_start=clean_start))
        other.expect_refused({0x85, 0x87})
        alice.ping()
    assert alice.reconnect(properties=expiry).session_present


@clause("MQTT-3.2.0-2")
def test_there_is_one_connack_whatever_follows(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c"), Connect("c"), Connect("d"))
    client.expect(Connack)
    client.expect_close(0x82)


@clause("MQTT-3.2.2-1")
def test_the_reserved_flags_of_connack_are_0(core: CoreDriver) -> None:
    """The strict decoder refuses others; here the byte itself is looked at, both ways."""
    expiry = props(session_expiry_interval=100)
    for flags in (0, 1):
        connection = core.open()
        core.send(connection, Connect("c", clean_start=False, properties=expiry).encode())
        raw = connection.read()
        assert raw[0] == 0x20
        assert raw[2] == flags
        core.close(connection)


@clause("MQTT-3.2.2-6", "MQTT-3.2.2-7")
def test_a_refusal_never_says_session_present_and_closes(core: CoreDriver) -> None:
    expiry = props(session_expiry_interval=100)
    client = connected(core, "c", properties=expiry)
    client.drop()
    client.open()
    client.send(client.connect_packet(clean_start=False, username="u", properties=expiry))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x86)
    connack = client.expect(Connack)
    assert (connack.code, connack.session_present) == (0x86, False)
    client.expect_close()
    assert client.reconnect(properties=expiry).session_present


@clause("MQTT-3.2.2-8")
@pytest.mark.parametrize("code", [0, 1, 2, 0x04, 0x10, 0x7F, 0x8B, 0x8E, 0x93, 0xA2, 0xFF])
def test_a_code_of_the_host_that_connack_does_not_have_is_not_sent(
    core: CoreDriver, code: int
) -> None:
    """The strict decoder of the client refuses codes outside of Table 3-1."""
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="u", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=code)
    client.pump()
    assert client.closed
    assert all(isinstance(p, Connack) and p.code >= 0x80 for p in client.inbox)


@clause("MQTT-3.2.2-9")
@pytest.mark.parametrize("maximum", [0, 1])
def test_a_lower_maximum_qos_is_announced(maximum: int) -> None:
    core = CoreDriver(settings={Setting.MAXIMUM_QOS: maximum})
    connack = FakeClient(core, "c").connect()
    assert connack.properties.get(Property.MAXIMUM_QOS) == maximum


@clause("MQTT-3.2.2-9")
def test_qos_2_is_not_announced(core: CoreDriver) -> None:
    """3.2.2.3.4: a value other than 0 or 1 would be a Protocol Error."""
    assert Property.MAXIMUM_QOS not in FakeClient(core, "c").connect().properties


@clause("MQTT-3.2.2-10")
@pytest.mark.parametrize("maximum", [0, 1])
def test_subscriptions_of_every_qos_are_accepted_all_the_same(maximum: int) -> None:
    core = CoreDriver(settings={Setting.MAXIMUM_QOS: maximum})
    client = connected(core, "c")
    suback = client.subscribe(
        *(Filter(f"t/{q}", q) for q in range(3)), codes=[min(q, maximum) for q in range(3)]
    )
    assert len(suback.codes) == 3
    client.publish("t/2", b"x", qos=maximum)
    client.expect_publish("t/2", b"x", maximum)


@clause("MQTT-3.2.2-11")
@pytest.mark.parametrize(("maximum", "qos"), [(0, 1), (0, 2), (1, 2)])
def test_a_publish_above_the_maximum_qos_is_a_protocol_error(maximum: int, qos: int) -> None:
    core = CoreDriver(settings={Setting.MAXIMUM_QOS: maximum})
    client = connected(core, "c")
    client.send(Publish("t", b"x", qos, 1))
    client.expect_close(0x9B)


@clause("MQTT-3.2.2-12")
@pytest.mark.parametrize(("maximum", "qos"), [(0, 1), (0, 2), (1, 2)])
def test_a_will_above_the_maximum_qos_is_refused(maximum: int, qos: int) -> None:
    core = CoreDriver(settings={Setting.MAXIMUM_QOS: maximum})
    client = FakeClient(core)
    client.send(Connect("c", will=Will("w", b"x", qos)))
    client.expect_refused(0x9B)


@clause("MQTT-3.2.2-13")
def test_a_retained_will_is_refused_where_nothing_is_retained() -> None:
    core = CoreDriver(settings={Setting.RETAIN_AVAILABLE: 0})
    client = FakeClient(core)
    client.send(Connect("c", will=Will("w", b"x", retain=True)))
    client.expect_refused(0x9A)


@clause("MQTT-3.2.2-14")
def test_a_retained_publish_is_a_protocol_error_where_nothing_is_retained() -> None:
    core = CoreDriver(settings={Setting.RETAIN_AVAILABLE: 0})
    client = FakeClient(core, "c")
    assert client.connect().properties.get(Property.RETAIN_AVAILABLE) == 0
    client.send(Publish("t", b"x", retain=True))
    client.expect_close(0x9A)


def test_subscription_options_about_retain_are_harmless_where_nothing_is_retained() -> None:
    """3.8.3.1, comment: all values give the same result, RETAIN is 0."""
    core = CoreDriver(settings={Setting.RETAIN_AVAILABLE: 0})
    client = connected(core, "c")
    client.subscribe(Filter("t", 0, retain_as_published=True, retain_handling=1))
    client.publish("t", b"x")
    client.expect_publish("t", b"x", retain=False)


@clause("MQTT-3.2.2-15")
def test_a_packet_above_the_maximum_packet_size_is_too_large(core: CoreDriver) -> None:
    core.settings({Setting.MAXIMUM_PACKET_BYTES: 200})
    client = connected(core, "c")
    fits = 200 - 3 - 3 - 1  # fixed header, topic, property length
    client.publish("t", bytes(fits))
    client.ping()
    client.send(Publish("t", bytes(fits + 1)))
    client.expect_close(0x95)


@clause("MQTT-3.2.2-15")
def test_a_packet_that_is_too_large_is_refused_before_it_has_come_whole(
    core: CoreDriver,
) -> None:
    core.settings({Setting.MAXIMUM_PACKET_BYTES: 1000})
    client = connected(core, "c")
    client.send(b"\x30\xff\xff\xff\x7f\x00\x01t")
    client.expect_close(0x95)


def test_a_connect_that_is_too_large_is_refused(core: CoreDriver) -> None:
    core.settings({Setting.MAXIMUM_PACKET_BYTES: 100})
    client = FakeClient(core)
    client.send(Connect("c" * 200))
    client.pump()
    assert client.closed
    assert all(isinstance(p, Connack) and p.code == 0x95 for p in client.inbox)


@clause("MQTT-3.2.2-17", "MQTT-3.3.2-9")
def test_an_alias_above_the_maximum_is_invalid(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    maximum = client.connect().properties.integer(Property.TOPIC_ALIAS_MAXIMUM)
    assert maximum == 32
    client.publish("t", b"x", properties=props(topic_alias=maximum))
    client.ping()
    client.send(Publish("t", b"x", properties=props(topic_alias=maximum + 1)))
    client.expect_close(0x94)


@clause("MQTT-3.2.2-18")
def test_every_alias_is_invalid_where_none_is_allowed() -> None:
    core = CoreDriver(settings={Setting.TOPIC_ALIAS_MAXIMUM: 0})
    client = FakeClient(core, "c")
    connack = client.connect()
    assert connack.properties.get(Property.TOPIC_ALIAS_MAXIMUM) in (None, 0)
    client.send(Publish("t", b"x", properties=props(topic_alias=1)))
    client.expect_close(0x94)


@clause("MQTT-3.2.2-19", "MQTT-3.2.2-20")
@pytest.mark.parametrize("limit", [5, 6, 10, 20, 40, 100])
def test_a_refusal_stays_within_the_clients_maximum_packet_size(
    core: CoreDriver, limit: int
) -> None:
    """The smallest refusal has five bytes; reason string and user properties only when they fit."""
    connection = core.open()
    connect = Connect("c", username="u", properties=props(maximum_packet_size=limit))
    core.send(connection, connect.encode())
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x86, reason="r" * 50)
    raw = connection.read()
    assert connection.closed
    assert len(raw) <= limit
    (packet,) = StreamDecoder().feed(raw)
    assert isinstance(packet, Connack)
    assert packet.code == 0x86


@clause("MQTT-3.2.2-19")
def test_a_reason_string_is_sent_when_it_fits(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="u"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x87, reason="because")
    assert client.expect(Connack).properties.get(Property.REASON_STRING) == "because"


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (Setting.WILDCARD_AVAILABLE, Property.WILDCARD_SUBSCRIPTION_AVAILABLE),
        (
            Setting.SUBSCRIPTION_IDENTIFIERS_AVAILABLE,
            Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE,
        ),
        (Setting.SHARED_AVAILABLE, Property.SHARED_SUBSCRIPTION_AVAILABLE),
        (Setting.RETAIN_AVAILABLE, Property.RETAIN_AVAILABLE),
    ],
)
def test_a_feature_that_is_off_is_announced(setting: Setting, name: Property) -> None:
    """3.2.2.3.5 and 3.2.2.3.11 to 3.2.2.3.13."""
    off = FakeClient(CoreDriver(settings={setting: 0}), "c").connect()
    assert off.properties.get(name) == 0
    on = FakeClient(CoreDriver(), "c").connect()
    assert on.properties.get(name) in (None, 1)


@pytest.mark.parametrize(
    ("setting", "subscribe", "code"),
    [
        (Setting.WILDCARD_AVAILABLE, "t/#", 0xA2),
        (Setting.WILDCARD_AVAILABLE, "+/t", 0xA2),
        (Setting.SHARED_AVAILABLE, "$share/g/t", 0x9E),
    ],
)
def test_a_subscription_that_needs_a_feature_that_is_off(
    setting: Setting, subscribe: str, code: int
) -> None:
    """3.2.2.3.11 and 3.2.2.3.13: a Protocol Error with its own reason code."""
    client = connected(CoreDriver(settings={setting: 0}), "c")
    client.subscribe("plain/topic")
    client.send(
        frame(
            8, 2, b"\x00\x05\x00" + len(subscribe).to_bytes(2, "big") + subscribe.encode() + b"\x00"
        )
    )
    client.expect_close(code)


def test_a_subscription_identifier_where_they_are_off() -> None:
    """3.2.2.3.12."""
    core = CoreDriver(settings={Setting.SUBSCRIPTION_IDENTIFIERS_AVAILABLE: 0})
    client = connected(core, "c")
    client.send(frame(8, 2, b"\x00\x05\x02\x0b\x01\x00\x01t\x00"))
    client.expect_close(0xA1)
