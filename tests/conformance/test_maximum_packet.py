"""MQTT 5.0, 3.1.2.11.4: no packet is ever larger than the client says that it takes; and what the
server takes (3.2.2.3.6)."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import (
    Access,
    Disconnected,
    Outcome,
    Rule,
    Setting,
    Transport,
    response_prefix_command,
)
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import TERSE, FakeClient, connected
from avow.testing.mqtt import (
    Auth,
    Connack,
    Connect,
    Filter,
    Pingreq,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    ToServer,
    Unsubscribe,
    Will,
    frame,
    props,
)

clause = pytest.mark.clause

MQTT_MAXIMUM = 268_435_460
"""The largest packet there is: a Remaining Length of four bytes."""


def limited(core: CoreDriver, limit: int, transport: Transport = Transport.MQTT) -> FakeClient:
    """A client that takes so little; a CONNACK has five bytes."""
    core.settings(TERSE)
    return connected(
        core, "limited", transport=transport, properties=props(maximum_packet_size=limit)
    )


# -- CONNACK ----------------------------------------------------------------------------------


@clause("MQTT-3.1.2-24")
@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_a_client_that_takes_no_connack_gets_none(
    core: CoreDriver, limit: int, transport: Transport
) -> None:
    client = FakeClient(core, "c", transport=transport)
    client.send(client.connect_packet(properties=props(maximum_packet_size=limit)))
    client.expect_close()
    assert core.counters()["clients_connected"] == 0


@clause("MQTT-3.1.2-24")
def test_a_connack_is_sent_from_its_size_on(core: CoreDriver) -> None:
    """Below, a refusal of five bytes says why: the CONNECT was valid, and is not accepted."""
    size = FakeClient(core, "c")
    size.connect()
    whole = size.sizes[0]
    for limit in range(1, whole + 3):
        client = FakeClient(core, "c")
        client.send(client.connect_packet(properties=props(maximum_packet_size=limit)))
        if limit >= whole:
            assert client.expect(Connack).code == 0
            client.ping()
        elif limit >= 5:
            client.expect_refused(0x83)
        else:
            client.expect_close()
        assert all(size <= limit for size in client.sizes)


def test_who_cannot_be_accepted_takes_nothing_over(core: CoreDriver) -> None:
    """Neither the session, nor the connection that has it, nor the place of its will."""
    watcher = connected(core, "w")
    watcher.subscribe("will")
    first = FakeClient(core, "c")
    first.connect(will=Will("will", b"first"), properties=props(session_expiry_interval=9))
    second = FakeClient(core, "c")
    second.send(
        second.connect_packet(will=Will("will", b"x"), properties=props(maximum_packet_size=4))
    )
    second.expect_close()
    first.ping()
    watcher.expect_nothing()


def test_response_information_is_left_out_first(core: CoreDriver) -> None:
    core.settings(TERSE)
    core.command(response_prefix_command("p" * 100))
    for limit, there in ((60, False), (200, True)):
        client = FakeClient(core, "c")
        properties = props(request_response_information=1, maximum_packet_size=limit)
        connack = client.connect(properties=properties)
        assert (connack.properties.get(Property.RESPONSE_INFORMATION) is not None) is there
        assert client.sizes[0] <= limit


@clause("MQTT-3.1.2-24")
@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.parametrize("draining", [False, True])
def test_a_refusal_that_does_not_fit_is_not_sent(
    core: CoreDriver, limit: int, draining: bool
) -> None:
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="u", properties=props(maximum_packet_size=limit)))
    request = core.auth_request()
    if draining:
        core.drain()
    else:
        core.auth_result(request, Outcome.REFUSE, code=0x86, reason="no")
    client.expect_close()


# -- everything else --------------------------------------------------------------------------

# The answer to each has more than four bytes.
FIVE_BYTES: list[ToServer | bytes] = [
    Publish("t", b"x", 1, 1),
    Publish("t", b"x", 2, 1),
    Pubrec(1),
    Pubrel(1),
    Subscribe(1, [Filter("t")]),
    Unsubscribe(1, ["t"]),
]


@clause("MQTT-3.1.2-24")
@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("packet", FIVE_BYTES)
def test_an_answer_that_does_not_fit_ends_the_connection(
    core: CoreDriver, packet: ToServer | bytes, transport: Transport
) -> None:
    """With five bytes a DISCONNECT fits, with its code."""
    core.acl([Rule(False, "#", Access.PUBLISH)])
    client = limited(core, 5, transport)
    wide = isinstance(packet, Subscribe | Unsubscribe)
    client.send(packet)
    client.pump()
    if wide:
        client.expect_close(0x95)
    else:
        client.receive()
        client.ping()
    assert all(size <= 5 for size in client.sizes)


@clause("MQTT-3.1.2-24")
def test_a_suback_of_many_codes(core: CoreDriver) -> None:
    client = limited(core, 100)
    client.send(Subscribe(1, [Filter(f"t/{number}") for number in range(96)]))
    client.expect_close(0x95)
    assert max(client.sizes) <= 100
    client = limited(core, 100)
    client.subscribe(*(f"t/{number}" for number in range(95)))
    client.ping()


def test_that_nobody_subscribes_is_left_unsaid_first(core: CoreDriver) -> None:
    """0x10 is information; without a code PUBACK and PUBREC have four bytes."""
    core.settings(TERSE)
    connection = core.open()
    core.send(connection, Connect("c", properties=props(maximum_packet_size=5)).encode())
    core.send(connection, Publish("t", b"x", 1, 1).encode() + Publish("t", b"x", 2, 2).encode())
    answers = connection.read()
    assert answers == bytes.fromhex("2003000000 4003000110 5003000210")


@clause("MQTT-3.1.2-24")
@pytest.mark.parametrize("kind", [Puback, Pubrec, Pubcomp])
def test_a_negative_acknowledgement_keeps_its_code(
    core: CoreDriver, kind: type[Puback | Pubrec | Pubcomp]
) -> None:
    core.acl([Rule(False, "#", Access.PUBLISH)])
    client = limited(core, 5)
    packets: dict[type, ToServer] = {
        Puback: Publish("t", b"x", 1, 1),
        Pubrec: Publish("t", b"x", 2, 1),
        Pubcomp: Pubrel(1),
    }
    client.send(packets[kind])
    assert client.expect(kind).code >= 0x80


@clause("MQTT-3.1.2-24")
def test_a_challenge_that_does_not_fit_ends_the_exchange(core: CoreDriver) -> None:
    core.settings(TERSE)
    for limit in (5, 20, 200):
        client = FakeClient(core, "c")
        properties = props(authentication_method="m", maximum_packet_size=limit)
        client.send(client.connect_packet(properties=properties))
        core.auth_result(core.auth_request(), Outcome.CONTINUE, data=bytes(30))
        if limit == 200:
            client.expect(Auth)
            client.expect_nothing()
            continue
        client.expect_close()
        core.advance(20_000)
        assert not client.sizes


@clause("MQTT-3.1.2-24")
def test_a_connack_with_the_last_authentication_data(core: CoreDriver) -> None:
    core.settings(TERSE)
    client = FakeClient(core, "c")
    properties = props(authentication_method="m", maximum_packet_size=30)
    client.send(client.connect_packet(properties=properties))
    core.auth_result(core.auth_request(), Outcome.SUCCESS, data=bytes(30))
    client.expect_refused(0x83)


@clause("MQTT-3.14.2-3", "MQTT-3.1.2-24")
def test_a_disconnect_without_its_reason_string(core: CoreDriver) -> None:
    client = limited(core, 5)
    core.disconnect(client.connection, 0x98)
    client.expect_close(0x98)
    assert client.sizes[-1] == 3


# -- what the server takes --------------------------------------------------------------------


def test_by_default_a_packet_may_be_as_large_as_with_mosquitto(core: CoreDriver) -> None:
    """mosquitto 2.1.2 takes 2,000,000 bytes."""
    client = FakeClient(core, "c")
    told = client.connect().properties.integer(Property.MAXIMUM_PACKET_SIZE)
    assert told == 2_097_152
    client.subscribe("t")
    payload = bytes(2_000_000 - 20)
    client.publish("t", payload, retain=True)
    client.expect_publish("t", payload)


def test_a_packet_that_is_too_large_is_named_with_the_limit(core: CoreDriver) -> None:
    for version in (3, 4, 5):
        client = connected(core, "c", version=version)
        core.take_events()
        client.send(b"\x30\xff\xff\xff\x7f")
        client.expect_close(0x95)
        (event,) = [e for e in core.take_events() if isinstance(e, Disconnected)]
        assert event.client_id == "c"
        assert event.text == (
            "a packet of 268435460 bytes, more than maximum_packet_bytes (2097152)"
        )


@pytest.mark.parametrize("bytes_max", [268_435_455, 268_435_456, MQTT_MAXIMUM])
def test_what_clients_cannot_take_as_a_maximum_is_not_told(
    core: CoreDriver, bytes_max: int
) -> None:
    """paho-mqtt takes 1 to 268435455; without the property the protocol's own limit holds."""
    core.settings({Setting.MAXIMUM_PACKET_BYTES: bytes_max})
    client = FakeClient(core, "c")
    told = client.connect().properties.integer(Property.MAXIMUM_PACKET_SIZE)
    if bytes_max == 268_435_455:
        assert told == bytes_max
        client.send(b"\x30\xff\xff\xff\x7f")
        client.expect_close(0x95)
    else:
        assert told is None
        client.send(b"\x30\xff\xff\xff\x7f\x00")
        client.expect_nothing()


def test_a_stranger_may_send_less(core: CoreDriver) -> None:
    """A CONNECT whose fields are all as long as they can be is taken, with any limit above it."""
    long = "x" * 65_535
    connect = Connect("c", username=long, password=bytes(65_535), will=Will(long, bytes(65_535)))
    client = FakeClient(core, "c")
    client.send(connect)
    core.auth_result(core.auth_request(), Outcome.REFUSE, code=0x86)
    client.expect_refused(0x86)
    stranger = FakeClient(core, "s")
    core.take_events()
    stranger.send(b"\x10\x81\x80\x18")  # 384 KiB and one byte
    stranger.expect_close()
    (event,) = [e for e in core.take_events() if isinstance(e, Disconnected)]
    assert "CONNECT and AUTH (393216)" in event.text


@pytest.mark.parametrize("claimed", [b"\x30\xf0\xff\x7f", b"\x30\x80\x80\x40"])
def test_a_header_claims_no_memory(core: CoreDriver, claimed: bytes) -> None:
    """Memory follows the bytes that have come, and is never much more than the packet."""
    client = connected(core, "c")
    before = core.heap_bytes
    client.send(claimed)
    assert core.heap_bytes - before < 1024


def test_the_memory_of_a_packet_is_not_twice_the_packet(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.publish("t", b"first")  # what the first message of a broker costs
    before = core.heap_bytes
    packet = Publish("t", bytes(1_200_000)).encode()
    for at in range(0, len(packet) - 1, 65_536):
        client.send(packet[at : min(at + 65_536, len(packet) - 1)])
    assert core.heap_bytes - before < len(packet) + 65_536 * 2
    client.send(packet[-1:], Pingreq())
    client.receive()
    assert core.heap_bytes - before < 65_536


def test_packets_that_never_end_do_not_silence_the_broker() -> None:
    """The last memory is kept for small packets: who asks for more is ended, not who has some."""
    core = CoreDriver(settings={Setting.MEMORY_BUDGET_BYTES: 8 * 1024 * 1024})
    subscriber = connected(core, "s")
    subscriber.subscribe("t", qos=1)
    publisher = connected(core, "p")
    publisher.publish("t", b"first", 1)
    subscriber.expect_publish("t", b"first", 1)
    part = Publish("t", bytes(100_000)).encode()
    large = [connected(core, f"large {number}") for number in range(140)]
    small = [connected(core, f"small {number}") for number in range(100)]
    for size, flood in ((60_000, large), (3_000, small)):
        for client in flood:
            client.send(part[:size])
        assert flood[-1].closed, f"there is room for all parts of {size} bytes"
    for number in range(100):
        publisher.publish("t", b"%d" % number, 1)
        subscriber.expect_publish("t", b"%d" % number, 1)
    connected(core, "new").ping()


def test_after_a_packet_that_was_too_large_nothing_is_read(core: CoreDriver) -> None:
    core.settings({Setting.MAXIMUM_PACKET_BYTES: 100})
    watcher = connected(core, "w")
    watcher.subscribe("t")
    client = connected(core, "c")
    client.send(frame(3, 0, bytes(200)), Publish("t", b"x"))
    client.expect_close(0x95)
    watcher.expect_nothing()
