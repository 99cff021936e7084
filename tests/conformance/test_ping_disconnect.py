"""MQTT 5.0, sections 3.12 and 3.14: PINGREQ and DISCONNECT."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Disconnected, Outcome
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Connack,
    Connect,
    Disconnect,
    Filter,
    Pingreq,
    Pingresp,
    Properties,
    Publish,
    StreamDecoder,
    Subscribe,
    frame,
    props,
)

clause = pytest.mark.clause


@clause("MQTT-3.12.4-1")
def test_pingreq_is_answered_by_pingresp(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Pingreq(), Pingreq(), Pingreq())
    for _ in range(3):
        client.expect(Pingresp)
    client.expect_nothing()


@clause("MQTT-3.14.0-1")
def test_no_disconnect_is_sent_before_the_connack(core: CoreDriver) -> None:
    """Errors, refusals, deadlines and commands while the client is not accepted."""
    asked = FakeClient(core, "asked")
    asked.send(asked.connect_packet(username="u"))
    core.disconnect(asked.connection, 0x98)
    refused = FakeClient(core, "refused")
    refused.send(refused.connect_packet(username="u"))
    core.take_events()
    silent = FakeClient(core)
    malformed = FakeClient(core)
    malformed.send(frame(1, 0, b"\x00\x04MQTT\x05\x03\x00\x00\x00\x00\x00"))
    early = FakeClient(core)
    early.send(Pingreq())
    core.advance(60_000)
    for client in (asked, refused, silent, malformed, early):
        client.pump()
        assert client.closed
        assert not [p for p in client.inbox if isinstance(p, Disconnect)]


@clause("MQTT-3.14.1-1")
@pytest.mark.parametrize("flags", range(1, 16))
def test_reserved_flags_of_disconnect_are_malformed(core: CoreDriver, flags: int) -> None:
    client = connected(core, "c")
    client.send(frame(14, flags, b""))
    client.expect_close(0x81)


@clause("MQTT-3.14.2-1")
@pytest.mark.parametrize(
    "code",
    [*range(0x06), 0x10, 0x7F, *range(0x80, 0xA5), 0xFF],
)
def test_the_server_uses_codes_of_disconnect(core: CoreDriver, code: int) -> None:
    """The host's command is carried out with its code, or not, but never with a wrong one.

    The strict decoder of the client refuses codes outside of Table 3-10.
    """
    client = connected(core, "c")
    core.disconnect(client.connection, code)
    client.pump()
    if client.closed:
        client.expect_close(set(range(256)))
    else:
        client.ping()


@clause("MQTT-3.14.2-2")
def test_the_disconnect_of_the_server_has_no_session_expiry(core: CoreDriver) -> None:
    """The strict decoder refuses it; the session here has one that could be sent."""
    client = connected(core, "c", properties=props(session_expiry_interval=100))
    core.disconnect(client.connection, 0x98)
    client.expect_close(0x98)


@clause("MQTT-3.14.2-3", "MQTT-3.14.2-4")
@pytest.mark.parametrize("limit", [3, 4, 5, 10, 30])
def test_a_disconnect_stays_within_the_maximum_packet_size(core: CoreDriver, limit: int) -> None:
    """The smallest DISCONNECT with a code has three bytes."""
    connection = core.open()
    core.send(connection, Connect("c", properties=props(maximum_packet_size=100)).encode())
    connection.read()
    core.close(connection)
    connection = core.open()
    core.send(connection, Connect("c", properties=props(maximum_packet_size=limit)).encode())
    connection.read()
    core.send(connection, Publish("t", b"x", properties=props(subscription_identifier=1)).encode())
    raw = connection.read()
    assert connection.closed
    assert len(raw) <= limit
    for packet in StreamDecoder().feed(raw):
        assert isinstance(packet, Disconnect)
        assert packet.code == 0x82


@clause("MQTT-3.14.4-1", "MQTT-3.14.4-2")
def test_nothing_follows_a_disconnect_of_the_server(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("t")
    with core.batch():
        client.send(Pingreq(), frame(3, 6, b""), Pingreq(), Publish("t", b"late"))
        connected_publisher = FakeClient(core, "p")
        connected_publisher.send(Connect("p"), Publish("t", b"x"))
    client.expect(Pingresp)
    client.expect_close(0x81)


def test_packets_after_the_disconnect_of_a_client_are_not_processed(core: CoreDriver) -> None:
    """3.14: it is the final packet."""
    watcher = connected(core, "w")
    watcher.subscribe("#")
    client = connected(core, "c")
    client.send(Disconnect(), Publish("t", b"x"), Pingreq(), Subscribe(1, [Filter("t")]))
    client.pump()
    assert not client.inbox
    assert client.closed
    watcher.expect_nothing()


def test_the_server_closes_after_the_disconnect_of_a_client(core: CoreDriver) -> None:
    """3.14.4: it should close the network connection."""
    for version in (4, 5):
        client = connected(core, "c", version=version)
        client.send(Disconnect())
        client.expect_close()


@pytest.mark.parametrize("properties", [props(reason_string=["a", "b"])])
def test_a_property_of_disconnect_may_occur_only_once(
    core: CoreDriver, properties: Properties
) -> None:
    client = connected(core, "c")
    client.send(Disconnect(0, properties))
    client.expect_close(0x82)


def test_session_expiry_in_a_disconnect_may_occur_only_once(core: CoreDriver) -> None:
    client = connected(core, "c", properties=props(session_expiry_interval=9))
    client.send(Disconnect(0, props(session_expiry_interval=[1, 1])))
    client.expect_close(0x82)


def test_a_property_that_is_not_of_disconnect_is_malformed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.send(Disconnect(0, props(topic_alias=1)))
    client.expect_close(0x81)


@pytest.mark.parametrize("code", [0x01, 0x02, 0x10, 0x55, 0xFF])
def test_a_reason_code_that_disconnect_does_not_have_is_not_accepted(
    core: CoreDriver, code: int
) -> None:
    client = connected(core, "c")
    client.send(Disconnect(code))
    client.expect_close({0x81, 0x82})


def test_the_host_learns_how_a_connection_ended(core: CoreDriver) -> None:
    """core-abi.md, event DISCONNECTED: by the client, by the broker, by the network."""
    cases: list[tuple[str, int, int | None]] = []
    polite = connected(core, "polite")
    polite.disconnect()
    cases.append(("polite", 0, 0x00))
    wrong = connected(core, "wrong")
    wrong.send(frame(0, 0, b""))
    cases.append(("wrong", 1, None))
    broken = connected(core, "broken")
    broken.drop()
    cases.append(("broken", 2, None))
    events = {e.client_id: e for e in core.take_events() if isinstance(e, Disconnected)}
    for name, by, code in cases:
        assert events[name].by == by
        if code is not None:
            assert events[name].code == code


def test_a_refused_client_is_reported_once_without_having_been_connected(
    core: CoreDriver,
) -> None:
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="u"))
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x86)
    client.expect(Connack)
    events = core.take_events()
    assert len([e for e in events if isinstance(e, Disconnected)]) <= 1
    assert core.counters()["clients_connected"] == 0
