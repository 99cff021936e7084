"""MQTT 5.0, sections 3.1.0 to 3.1.2.9 and 3.1.3: CONNECT and its fields."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Connected, Outcome
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Pingreq,
    Property,
    Publish,
    StreamDecoder,
    Subscribe,
    Will,
    frame,
    props,
)
from avow.testing.mqtt_properties import encode_binary, encode_string

clause = pytest.mark.clause


def refused_or_closed(client: FakeClient, *codes: int) -> None:
    """Closed; if there was a CONNACK, it has one of these codes, and nothing else came."""
    client.pump()
    assert client.closed
    for packet in client.inbox:
        assert isinstance(packet, Connack)
        assert packet.code in codes


@clause("MQTT-3.1.0-1")
@pytest.mark.parametrize(
    "packet", [Pingreq(), Publish("t", b"x"), Publish("t", b"x", 1, 1), Subscribe(1, [Filter("t")])]
)
def test_the_first_packet_has_to_be_connect(
    core: CoreDriver, packet: Pingreq | Publish | Subscribe
) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("#")
    client = FakeClient(core)
    client.send(packet)
    client.expect_close()
    watcher.expect_nothing()


@clause("MQTT-3.1.0-2", "MQTT-3.2.0-2")
def test_a_second_connect_is_a_protocol_error(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Connect("c"))
    client.expect_close(0x82)


@clause("MQTT-3.1.2-1")
@pytest.mark.parametrize("name", [b"", b"MQIsdp2", b"mqtt", b"MQTTT", b"MQT", b"HTTP", b"\xff\xff"])
def test_a_wrong_protocol_name_ends_the_connection(core: CoreDriver, name: bytes) -> None:
    client = FakeClient(core)
    client.send(Connect("c", protocol_name=name))
    refused_or_closed(client, 0x84)


@clause("MQTT-3.1.2-2")
@pytest.mark.parametrize("level", [0, 1, 2, 6, 7, 127, 128, 255])
def test_an_unknown_protocol_version_is_refused(core: CoreDriver, level: int) -> None:
    """CONNACK 0x84 in the form of MQTT 5, or 0x01 in that of MQTT 3.1.1, may precede the end."""
    connection = core.open()
    core.send(connection, Connect("c", level=level).encode())
    assert connection.closed
    raw = connection.read()
    if raw not in (b"", b"\x20\x02\x00\x01"):
        (packet,) = StreamDecoder().feed(raw)
        assert isinstance(packet, Connack)
        assert packet.code == 0x84


@clause("MQTT-3.1.2-3")
def test_the_reserved_connect_flag_has_to_be_0(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", flags=0x03))
    client.expect_refused(0x81)


@clause("MQTT-3.1.2-9")
def test_a_will_flag_without_the_fields_of_a_will_is_malformed(core: CoreDriver) -> None:
    for trailing in (b"", b"\x00", encode_string("w"), b"\x00" + encode_string("w")):
        client = FakeClient(core)
        client.send(Connect("c", flags=0x06, trailing=trailing))
        client.expect_refused({0x81, 0x82})


@clause("MQTT-3.1.2-11")
@pytest.mark.parametrize("qos", [1, 2, 3])
def test_a_will_qos_without_a_will_is_refused(core: CoreDriver, qos: int) -> None:
    client = FakeClient(core)
    client.send(Connect("c", flags=0x02 | qos << 3))
    client.expect_refused({0x81, 0x82})


@clause("MQTT-3.1.2-12")
def test_will_qos_3_is_malformed(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", will=Will("w", b"x", qos=3)))
    client.expect_refused(0x81)


@clause("MQTT-3.1.2-13")
def test_a_will_retain_without_a_will_is_refused(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", flags=0x22))
    client.expect_refused({0x81, 0x82})


@clause("MQTT-3.1.2-16")
def test_a_user_name_without_its_flag_is_malformed(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", trailing=encode_string("user")))
    client.expect_refused(0x81)


@clause("MQTT-3.1.2-17")
def test_a_user_name_flag_without_a_user_name_is_malformed(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", flags=0x82))
    client.expect_refused(0x81)


@clause("MQTT-3.1.2-18")
def test_a_password_without_its_flag_is_malformed(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", username="user", trailing=encode_binary(b"password")))
    client.expect_refused(0x81)


@clause("MQTT-3.1.2-19")
def test_a_password_flag_without_a_password_is_malformed(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", username="user", flags=0xC2))
    client.expect_refused(0x81)


def test_a_password_without_a_user_name_is_allowed(core: CoreDriver) -> None:
    """3.1.2.9, non-normative comment: MQTT 5 allows what MQTT 3.1.1 did not."""
    client = FakeClient(core, "c")
    client.send(client.connect_packet(password=b"secret"))
    client.pump()
    request = core.auth_request() if not client.inbox else None
    if request is not None:
        assert (request.has_username, request.has_password) == (False, True)
        assert request.password == b"secret"
        core.auth_result(request)
    assert client.expect(Connack).code == 0


@clause("MQTT-3.1.3-1")
def test_the_fields_of_the_payload_are_read_in_their_order(core: CoreDriver) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("will/topic")
    client = FakeClient(core, "the-id")
    client.send(
        client.connect_packet(
            will=Will("will/topic", b"will payload", properties=props(content_type="c/t")),
            username="the user",
            password=b"\x00\xffpassword",
        )
    )
    request = core.auth_request()
    assert request.client_id == "the-id"
    assert request.username == "the user"
    assert request.password == b"\x00\xffpassword"
    assert (request.version, request.has_username, request.has_password) == (5, True, True)
    core.auth_result(request)
    assert client.expect(Connack).code == 0
    client.drop()
    will = watcher.expect_publish("will/topic", b"will payload")
    assert will.props.get(Property.CONTENT_TYPE) == "c/t"


@clause("MQTT-3.1.3-2")
def test_the_client_identifier_selects_the_session(core: CoreDriver) -> None:
    expiry = props(session_expiry_interval=1000)
    first = connected(core, "first", properties=expiry)
    first.subscribe("t")
    connected(core, "second", properties=expiry)
    first.drop()
    assert first.reconnect(properties=expiry).session_present
    other = FakeClient(core, "First")
    assert not other.connect(clean_start=False).session_present
    connected(core, "p").publish("t", b"x")
    first.expect_publish("t", b"x")
    other.expect_nothing()


@clause("MQTT-3.1.3-3")
def test_a_connect_without_a_client_identifier_field_is_malformed(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(frame(1, 0, b"\x00\x04MQTT\x05\x02\x00\x00\x00"))
    client.expect_refused({0x81, 0x85})


@clause("MQTT-3.1.3-5")
@pytest.mark.parametrize(
    "client_id",
    [
        "0123456789abcdefghijklm",
        "nopqrstuvwxyzABCDEFGHIJ",
        "KLMNOPQRSTUVWXYZ",
        *"azAZ09",
    ],
)
def test_client_identifiers_of_letters_and_digits_are_allowed(
    core: CoreDriver, client_id: str
) -> None:
    client = FakeClient(core, client_id)
    connack = client.connect()
    assert Property.ASSIGNED_CLIENT_IDENTIFIER not in connack.properties
    connections = [e for e in core.take_events() if isinstance(e, Connected)]
    assert [e.client_id for e in connections] == [client_id]


def test_longer_client_identifiers_with_other_characters_are_allowed(core: CoreDriver) -> None:
    """3.1.3.1: a server may allow them; this one does."""
    for client_id in ("x" * 24, "a/b c-d_e:f", "ä€😀", "y" * 1000):
        FakeClient(core, client_id).connect()


@clause("MQTT-3.1.3-8")
def test_a_client_identifier_that_is_too_long_for_this_server_is_not_valid(
    core: CoreDriver,
) -> None:
    client = FakeClient(core, "x" * 65535)
    client.send(client.connect_packet())
    client.expect_refused(0x85)


@clause("MQTT-3.1.3-6", "MQTT-3.1.3-7", "MQTT-3.2.2-16")
def test_an_empty_client_identifier_is_replaced_by_a_new_one(core: CoreDriver) -> None:
    assigned = set()
    for _ in range(20):
        client = FakeClient(core)
        connack = client.connect(properties=props(session_expiry_interval=1000))
        identifier = connack.properties.get(Property.ASSIGNED_CLIENT_IDENTIFIER)
        assert isinstance(identifier, str)
        assert identifier
        assigned.add(identifier)
    assert len(assigned) == 20
    named = assigned.pop()
    again = FakeClient(core, named)
    assert again.connect(clean_start=False).session_present


@clause("MQTT-3.2.2-16")
def test_an_assigned_client_identifier_does_not_depend_on_the_number_of_the_connection(
    core: CoreDriver,
) -> None:
    first = FakeClient(core)
    one = first.connect().properties.get(Property.ASSIGNED_CLIENT_IDENTIFIER)
    first.disconnect()
    second = FakeClient(core)
    two = second.connect().properties.get(Property.ASSIGNED_CLIENT_IDENTIFIER)
    assert one != two


@clause("MQTT-3.1.3-8", "MQTT-3.1.4-2")
def test_a_client_identifier_that_the_host_rejects_gets_0x85_and_is_closed(
    core: CoreDriver,
) -> None:
    client = FakeClient(core, "bad")
    client.send(client.connect_packet(username="u", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x85)
    client.expect_refused(0x85)


@clause("MQTT-3.1.3-11")
@pytest.mark.parametrize("topic", [b"\xff", b"a\x00", b"\xed\xa0\x80"])
def test_an_ill_formed_will_topic_is_malformed(core: CoreDriver, topic: bytes) -> None:
    client = FakeClient(core)
    client.send(Connect("c", will=Will(topic, b"x")))
    client.expect_refused(0x81)


@pytest.mark.parametrize("topic", ["", "a/#", "+", "a+/b"])
def test_a_will_topic_has_to_be_a_topic_name(core: CoreDriver, topic: str) -> None:
    """4.7: without wildcards and not empty."""
    client = FakeClient(core)
    client.send(Connect("c", will=Will(topic, b"x")))
    client.expect_refused({0x81, 0x82, 0x90})


@clause("MQTT-3.1.3-12")
@pytest.mark.parametrize("name", [b"\xff", b"a\x00", b"\xed\xa0\x80"])
def test_an_ill_formed_user_name_is_malformed(core: CoreDriver, name: bytes) -> None:
    client = FakeClient(core)
    client.send(Connect("c", username=name))
    client.expect_refused({0x81, 0x86})


@clause("MQTT-3.1.4-1")
@pytest.mark.parametrize("cut", range(1, 40))
def test_a_connect_that_is_cut_short_is_never_accepted(core: CoreDriver, cut: int) -> None:
    """The packet's length says that it is complete, but fields are missing."""
    whole = Connect(
        "client",
        username="user",
        password=b"secret",
        will=Will("w", b"x"),
        properties=props(session_expiry_interval=1, receive_maximum=2),
    ).encode()
    body = whole[2:]
    client = FakeClient(core)
    client.send(frame(1, 0, body[:-cut]))
    refused_or_closed(client, 0x81, 0x82, 0x84, 0x85)


@clause("MQTT-3.1.4-1")
def test_bytes_after_the_last_field_of_a_connect_are_malformed(core: CoreDriver) -> None:
    client = FakeClient(core)
    client.send(Connect("c", trailing=b"\x00"))
    client.expect_refused(0x81)


@clause("MQTT-3.1.4-2")
def test_a_refused_password_ends_the_connection(core: CoreDriver) -> None:
    for code in (0x86, 0x87, 0x88, 0x89, 0x8A, 0x97, 0x9F):
        client = FakeClient(core, "c")
        client.send(client.connect_packet(username="u", password=b"p"))
        core.auth_result(core.auth_request(), Outcome.REFUSE, code=code, reason="no")
        client.expect_refused(code)


@clause("MQTT-3.1.4-2")
def test_an_anonymous_client_is_refused_where_that_is_not_allowed(core: CoreDriver) -> None:
    client = FakeClient(core, "c", allow_anonymous=False)
    client.send(client.connect_packet())
    client.expect_refused({0x86, 0x87})


def test_an_identity_from_tls_becomes_the_user_name(core: CoreDriver) -> None:
    client = FakeClient(core, "c", allow_anonymous=False, identity="alice")
    client.connect()
    (event,) = [e for e in core.take_events() if isinstance(e, Connected)]
    assert (event.client_id, event.username) == ("c", "alice")


@clause("MQTT-3.1.4-3")
def test_a_second_connection_with_the_same_identifier_takes_over(core: CoreDriver) -> None:
    old = connected(core, "c")
    new = connected(core, "c")
    old.expect_close(0x8E)
    new.ping()


@clause("MQTT-3.1.4-3")
def test_a_client_that_is_not_yet_accepted_does_not_take_over(core: CoreDriver) -> None:
    old = connected(core, "c")
    new = FakeClient(core, "c")
    new.send(new.connect_packet(username="u", password=b"wrong"))
    old.ping()
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x86)
    new.expect_refused(0x86)
    old.ping()


@clause("MQTT-3.1.4-3")
def test_many_take_overs_in_one_turn_leave_the_last(core: CoreDriver) -> None:
    clients = [FakeClient(core, "c") for _ in range(5)]
    with core.batch():
        for client in clients:
            client.send(Connect("c"))
    for client in clients[:-1]:
        assert client.expect(Connack).code == 0
        client.expect_close(0x8E)
    assert clients[-1].expect(Connack).code == 0
    clients[-1].ping()


@clause("MQTT-3.1.4-5")
def test_an_accepted_connect_is_acknowledged_with_0(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.send(Connect("c"))
    connack = client.expect(Connack)
    assert (connack.code, connack.session_present) == (0, False)
    client.expect_nothing()


@clause("MQTT-3.1.4-6")
def test_packets_after_a_refused_connect_are_not_processed(core: CoreDriver) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("#")
    client = FakeClient(core, "c")
    client.send(Connect("c", flags=0x03), Publish("t", b"x", 1, 1), Publish("t", b"y"))
    client.expect_refused(0x81)
    watcher.expect_nothing()
    asked = FakeClient(core, "a")
    asked.send(asked.connect_packet(username="u", password=b"p"), Publish("t", b"x"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x86)
    asked.expect_refused(0x86)
    watcher.expect_nothing()


def test_packets_that_were_sent_before_the_connack_are_processed_after_it(
    core: CoreDriver,
) -> None:
    """3.1.4: a client need not wait for CONNACK."""
    watcher = connected(core, "w")
    watcher.subscribe("t")
    client = FakeClient(core, "c")
    client.send(
        client.connect_packet(username="u", password=b"p"), Publish("t", b"early"), Pingreq()
    )
    client.expect_nothing()
    watcher.expect_nothing()
    core.auth_result(core.auth_request())
    assert client.expect(Connack).code == 0
    watcher.expect_publish("t", b"early")
    client.receive()
    client.expect_nothing()


def test_a_connection_without_a_connect_is_closed_in_time() -> None:
    """3.1.4 (1): a reasonable amount of time; here the setting connect_timeout_ms."""
    core = CoreDriver()
    silent = FakeClient(core)
    partial = FakeClient(core)
    partial.send(b"\x10\x20\x00\x04MQ")
    core.advance(9_000)
    silent.expect_nothing()
    core.advance(2_000)
    assert silent.closed
    assert partial.closed
    assert not silent.inbox
