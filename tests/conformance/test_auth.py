"""MQTT 5.0, sections 3.15 and 4.12: AUTH and enhanced authentication, with the test as the host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from avow.testing.core_abi import AuthRequest, CommandFailed, Connected, Outcome
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Auth,
    Connack,
    Disconnect,
    Pingreq,
    Properties,
    Property,
    Publish,
    ToServer,
    frame,
    props,
)

clause = pytest.mark.clause
METHOD = "SCRAM-SHA-256"


def auth(code: int, data: bytes | None = None, method: str = METHOD) -> Auth:
    """AUTH of a client."""
    if data is None:
        return Auth(code, props(authentication_method=method))
    return Auth(code, props(authentication_method=method, authentication_data=data))


def begin(core: CoreDriver, **more: int) -> tuple[FakeClient, AuthRequest]:
    """A client whose CONNECT names a method, and the request that the host got."""
    client = FakeClient(core, "c")
    properties = Properties(
        [
            *props(authentication_method=METHOD, authentication_data=b"first"),
            *props(**more),
        ]
    )
    client.send(client.connect_packet(properties=properties))
    client.expect_nothing()
    return client, core.auth_request()


def authenticated(core: CoreDriver) -> FakeClient:
    """A client that has authenticated in one step."""
    client, request = begin(core)
    core.auth_result(request, Outcome.SUCCESS, user="alice")
    client.expect(Connack)
    core.take_events()
    return client


@clause("MQTT-4.12.0-2", "MQTT-4.12.0-5", "MQTT-3.15.2-1")
def test_a_whole_exchange(core: CoreDriver) -> None:
    client, first = begin(core)
    assert (first.method, first.data, first.has_method) == (METHOD, b"first", True)
    assert (first.version, first.client_id) == (5, "c")
    assert not first.continuation
    assert not first.reauthentication
    core.auth_result(first, Outcome.CONTINUE, data=b"challenge 1")
    for number in (1, 2, 3):
        challenge = client.expect(Auth)
        assert challenge.code == 0x18
        assert challenge.props.get(Property.AUTHENTICATION_METHOD) == METHOD
        assert challenge.props.get(Property.AUTHENTICATION_DATA) == b"challenge %d" % number
        client.send(auth(0x18, b"answer %d" % number))
        client.expect_nothing()
        request = core.auth_request()
        assert request.continuation
        assert (request.method, request.data) == (METHOD, b"answer %d" % number)
        if number < 3:
            core.auth_result(request, Outcome.CONTINUE, data=b"challenge %d" % (number + 1))
        else:
            core.auth_result(request, Outcome.SUCCESS, user="alice", data=b"final")
    connack = client.expect(Connack)
    assert connack.code == 0
    assert connack.properties.get(Property.AUTHENTICATION_METHOD) == METHOD
    assert connack.properties.get(Property.AUTHENTICATION_DATA) == b"final"
    (event,) = [e for e in core.take_events() if isinstance(e, Connected)]
    assert event.username == "alice"
    client.ping()


@clause("MQTT-4.12.0-1")
@pytest.mark.parametrize("code", [0x8C, 0x87])
def test_a_method_that_is_not_supported_is_refused(core: CoreDriver, code: int) -> None:
    client, request = begin(core)
    core.auth_result(request, Outcome.REFUSE, code=code)
    client.expect_refused(code)


@clause("MQTT-4.12.0-3")
@pytest.mark.parametrize("code", [0x00, 0x19, 0x01, 0x80])
def test_another_reason_code_in_the_exchange_is_an_error(core: CoreDriver, code: int) -> None:
    client, request = begin(core)
    core.auth_result(request, Outcome.CONTINUE, data=b"challenge")
    client.expect(Auth)
    client.send(auth(code, b"answer"))
    client.expect_refused({0x81, 0x82})
    assert not [e for e in core.take_events() if isinstance(e, AuthRequest)]


@clause("MQTT-4.12.0-4")
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_the_host_can_refuse_at_any_point(core: CoreDriver, rounds: int) -> None:
    client, request = begin(core)
    for _ in range(rounds):
        core.auth_result(request, Outcome.CONTINUE, data=b"challenge")
        client.expect(Auth)
        client.send(auth(0x18, b"answer"))
        request = core.auth_request()
    core.auth_result(request, Outcome.REFUSE, code=0x87, reason="no")
    client.expect_refused(0x87)


@clause("MQTT-4.12.0-6")
def test_without_a_method_there_is_no_auth_and_no_method(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="u", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.SUCCESS, data=b"surplus")
    connack = client.expect(Connack)
    assert Property.AUTHENTICATION_METHOD not in connack.properties
    assert Property.AUTHENTICATION_DATA not in connack.properties
    client.expect_nothing()


@clause("MQTT-4.12.0-6")
def test_a_continuation_is_impossible_without_a_method(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="u", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.CONTINUE, data=b"challenge")
    client.pump()
    assert not [p for p in client.inbox if isinstance(p, Auth)]
    assert [e for e in core.take_events() if isinstance(e, CommandFailed)] or client.closed


@clause("MQTT-4.12.0-7")
@pytest.mark.parametrize("code", [0x00, 0x18, 0x19])
def test_auth_without_a_method_in_connect_is_a_protocol_error(core: CoreDriver, code: int) -> None:
    client = connected(core, "c")
    client.send(auth(code, b"data"))
    client.expect_close(0x82)
    assert not [e for e in core.take_events() if isinstance(e, AuthRequest)]


@clause("MQTT-3.1.2-30")
@pytest.mark.parametrize("packet", [Publish("t", b"x"), Publish("t", b"x", 1, 1), Pingreq()])
def test_other_packets_in_the_exchange_end_the_connection(
    core: CoreDriver, packet: ToServer
) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("#")
    client, request = begin(core)
    core.auth_result(request, Outcome.CONTINUE, data=b"challenge")
    client.expect(Auth)
    client.send(packet)
    client.expect_refused({0x81, 0x82})
    watcher.expect_nothing()


@clause("MQTT-3.1.2-30")
def test_a_disconnect_in_the_exchange_is_allowed(core: CoreDriver) -> None:
    """4.12: the client can close at any point and may send DISCONNECT before."""
    client, request = begin(core)
    core.auth_result(request, Outcome.CONTINUE, data=b"challenge")
    client.expect(Auth)
    client.send(Disconnect())
    client.expect_close()


@clause("MQTT-3.15.1-1")
@pytest.mark.parametrize("flags", range(1, 16))
def test_reserved_flags_of_auth_are_malformed(core: CoreDriver, flags: int) -> None:
    client = authenticated(core)
    body = auth(0x19, b"again").encode()[2:]
    client.send(frame(15, flags, body))
    client.expect_close(0x81)


@clause("MQTT-3.15.2-1")
@pytest.mark.parametrize("code", [0x01, 0x17, 0x1A, 0x80, 0xFF])
def test_a_reason_code_that_auth_does_not_have_is_an_error(core: CoreDriver, code: int) -> None:
    client = authenticated(core)
    client.send(auth(code, b"data"))
    client.expect_close({0x81, 0x82})


@clause("MQTT-3.15.2-2", "MQTT-3.15.2-3")
@pytest.mark.parametrize("limit", [30, 40, 60, 200])
def test_an_auth_stays_within_the_maximum_packet_size(core: CoreDriver, limit: int) -> None:
    client, request = begin(core, maximum_packet_size=limit)
    core.auth_result(request, Outcome.CONTINUE, data=b"1234", reason="r" * 80)
    assert client.expect(Auth).props.get(Property.AUTHENTICATION_DATA) == b"1234"
    assert max(client.sizes) <= limit


@clause("MQTT-4.12.1-1")
def test_a_client_can_authenticate_again(core: CoreDriver) -> None:
    client = authenticated(core)
    client.send(auth(0x19, b"again"))
    request = core.auth_request()
    assert request.reauthentication
    assert (request.method, request.data) == (METHOD, b"again")
    client.ping()  # other packets go on
    core.auth_result(request, Outcome.CONTINUE, data=b"challenge")
    assert client.expect(Auth).code == 0x18
    client.send(auth(0x18, b"answer"))
    request = core.auth_request()
    assert request.reauthentication
    assert request.continuation
    core.auth_result(request, Outcome.SUCCESS, user="alice", data=b"done")
    final = client.expect(Auth)
    assert final.code == 0
    assert final.props.get(Property.AUTHENTICATION_METHOD) == METHOD
    assert final.props.get(Property.AUTHENTICATION_DATA) == b"done"
    client.ping()


@clause("MQTT-4.12.1-1")
def test_another_method_in_a_re_authentication_is_a_protocol_error(core: CoreDriver) -> None:
    client = authenticated(core)
    client.send(auth(0x19, b"again", method="PLAIN"))
    client.expect_close({0x82, 0x87})


@clause("MQTT-4.12.0-5")
def test_another_method_in_the_exchange_is_a_protocol_error(core: CoreDriver) -> None:
    client, request = begin(core)
    core.auth_result(request, Outcome.CONTINUE, data=b"challenge")
    client.expect(Auth)
    client.send(auth(0x18, b"answer", method="PLAIN"))
    client.expect_refused({0x82, 0x8C})


@clause("MQTT-4.12.1-2")
@pytest.mark.parametrize("code", [0x87, 0x80])
def test_a_re_authentication_that_fails_ends_the_connection(core: CoreDriver, code: int) -> None:
    client = authenticated(core)
    client.send(auth(0x19, b"again"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=code)
    client.expect_close(code)


def test_auth_without_a_method_property_is_a_protocol_error(core: CoreDriver) -> None:
    """3.15.2.2.2."""
    for packet in (Auth(0x19), Auth(0x19, props(authentication_data=b"d"))):
        client = authenticated(core)
        client.send(packet)
        client.expect_close(0x82)


def test_properties_of_auth_may_occur_only_once(core: CoreDriver) -> None:
    for properties in (
        props(authentication_method=[METHOD, METHOD]),
        props(authentication_method=METHOD, authentication_data=[b"a", b"a"]),
        props(authentication_method=METHOD, reason_string=["a", "a"]),
    ):
        client = authenticated(core)
        client.send(Auth(0x19, properties))
        client.expect_close(0x82)


def test_an_answer_to_a_connection_that_is_gone_changes_nothing(core: CoreDriver) -> None:
    """The ticket keeps an old answer from a new connection with the same number."""
    client, old = begin(core)
    client.drop()
    other = FakeClient(core, "other")
    assert other.connection.number == old.connection
    other.send(other.connect_packet(username="mallory", password=b"guess"))
    core.auth_result(old, Outcome.SUCCESS, user="alice")
    other.expect_nothing()
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x86)
    other.expect_refused(0x86)


def test_an_answer_with_a_wrong_ticket_changes_nothing(core: CoreDriver) -> None:
    client, request = begin(core)
    core.auth_result(replace(request, ticket=request.ticket ^ 1), Outcome.SUCCESS)
    client.expect_nothing()
    core.auth_result(request, Outcome.SUCCESS)
    client.expect(Connack)


def test_an_exchange_that_stalls_ends_in_time(core: CoreDriver) -> None:
    """connect_timeout_ms holds for each AUTH exchange too, whoever is slow."""
    slow_client, request = begin(core)
    core.auth_result(request, Outcome.CONTINUE, data=b"challenge")
    slow_client.expect(Auth)
    core.advance(60_000)
    assert slow_client.closed


def test_a_user_name_is_replaced_by_the_one_that_the_host_gives(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="Alice@EXAMPLE", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.SUCCESS, user="alice")
    client.expect(Connack)
    (event,) = [e for e in core.take_events() if isinstance(e, Connected)]
    assert event.username == "alice"
