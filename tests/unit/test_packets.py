"""Each packet's parser and writer in the core: whole, in pieces, with trailing bytes, at bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avow.errors import MalformedError
from avow.testing.core_abi import Connected, Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Filter,
    PacketType,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    StreamDecoder,
    Subscribe,
    Unsubscribe,
    Will,
    decode,
    frame,
    props,
)
from avow.testing.mqtt_properties import Reader, encode_string, encode_variable

MEGABYTE = 1 << 20

# One packet of each type that a client sends after CONNECT, and how many packets answer it.
PACKETS: dict[str, tuple[bytes, int]] = {
    "publish 0": (Publish("t", b"x").encode(), 0),
    "publish 1": (Publish("t", b"x", 1, 7).encode(), 1),
    "publish 2": (Publish("t", b"x", 2, 7).encode(), 1),
    "publish with properties": (
        Publish("t", b"x", 1, 7, properties=props(content_type="c", topic_alias=1)).encode(),
        1,
    ),
    "puback": (Puback(7).encode(), 0),
    "puback with a code": (Puback(7, 0x10).encode(), 0),
    "puback with properties": (Puback(7, 0, props(reason_string="r")).encode(), 0),
    "pubrec": (Pubrec(7).encode(), 1),
    "pubrel": (Pubrel(7).encode(), 1),
    "pubrel with properties": (Pubrel(7, 0x92, props(reason_string="r")).encode(), 1),
    "pubcomp": (Pubcomp(7).encode(), 0),
    "subscribe": (Subscribe(7, [Filter("a/#", 2), Filter("b")]).encode(), 1),
    "unsubscribe": (Unsubscribe(7, ["a/#", "b"]).encode(), 1),
    "pingreq": (Pingreq().encode(), 1),
}


def answers(core: CoreDriver, pieces: list[bytes]) -> bytes:
    """All bytes that the core answers to these pieces, after a CONNECT."""
    connection = core.open()
    core.send(connection, Connect("c").encode())
    connection.read()
    for piece in pieces:
        core.send(connection, piece)
    core.send(connection, b"\xc0\x00")
    assert connection.alive, f"the connection was closed: {connection.read()!r}"
    return connection.read()


@pytest.mark.parametrize("name", list(PACKETS))
def test_a_packet_is_the_same_whole_and_in_pieces(name: str) -> None:
    raw, count = PACKETS[name]
    whole = answers(CoreDriver(), [raw])
    assert len(StreamDecoder().feed(whole)) == count + 1
    for cut in range(1, len(raw)):
        assert answers(CoreDriver(), [raw[:cut], raw[cut:]]) == whole
    assert answers(CoreDriver(), [raw[at : at + 1] for at in range(len(raw))]) == whole


@pytest.mark.parametrize("name", list(PACKETS))
def test_a_packet_between_others_is_the_same(name: str) -> None:
    raw, count = PACKETS[name]
    ping = Pingreq().encode()
    for pieces in ([ping + raw + ping], [ping + raw[:1], raw[1:] + ping]):
        got = StreamDecoder().feed(answers(CoreDriver(), pieces))
        assert len(got) == count + 3


@pytest.mark.parametrize(
    "name",
    [n for n in PACKETS if not n.startswith(("publish", "subscribe", "unsubscribe"))],
)
@pytest.mark.parametrize("extra", [b"\x00", b"\x00\x00", b"x" * 200])
def test_bytes_after_the_last_field_are_malformed(name: str, extra: bytes) -> None:
    """A PUBLISH has a payload and SUBSCRIBE a list, so extra bytes are something else there.

    Where a reason code or properties are missing, one byte or two are not trailing yet.
    """
    raw, _ = PACKETS[name]
    length, start = (raw[1], 2)
    body = raw[start : start + length]
    if len(body) == 2:
        body += b"\x00\x00"
    elif len(body) == 3:
        body += b"\x00"
    client = connected(CoreDriver(), "c")
    client.send(frame(raw[0] >> 4, raw[0] & 15, body + extra))
    client.expect_close(0x81)


@pytest.mark.parametrize("name", list(PACKETS))
def test_a_packet_that_is_cut_short_is_malformed_or_the_short_form(name: str) -> None:
    """The remaining length is right for the shorter body: the parser must not read beyond it."""
    raw, _ = PACKETS[name]
    body = raw[2:]
    for length in range(len(body)):
        core = CoreDriver()
        client = connected(core, "c")
        client.send(frame(raw[0] >> 4, raw[0] & 15, body[:length]))
        client.pump()
        if client.closed:
            client.expect_close({0x81, 0x82, 0x90})
        else:
            assert name.startswith(("pub", "subscribe", "unsubscribe"))


@pytest.mark.parametrize("size", [127, 128, 16383, 16384, 2097151, 2097152])
def test_remaining_lengths_around_every_bound(size: int) -> None:
    core = CoreDriver(settings={Setting.MAXIMUM_PACKET_BYTES: 4 * MEGABYTE})
    client = connected(core, "c")
    client.subscribe("t", qos=1)
    payload = bytes(i & 0xFF for i in range(251)) * (size // 251 + 1)
    for qos in (0, 1):
        rest = size - (4 + 2 * bool(qos))
        packet = Publish("t", payload[:rest], qos, 1 if qos else None)
        raw = packet.encode()
        assert Reader(raw, 1).variable() == size
        client.send(raw)
        if qos:
            client.take(Puback)
        client.expect_publish("t", payload[:rest], qos)


@pytest.mark.parametrize("size", [127, 128, 16383, 16384, 2097151, 2097152])
def test_large_packets_in_pieces_of_any_size(size: int) -> None:
    core = CoreDriver(settings={Setting.MAXIMUM_PACKET_BYTES: 4 * MEGABYTE})
    client = connected(core, "c")
    client.subscribe("t")
    raw = Publish("t", bytes(size)).encode()
    for step in (1009, 65536, len(raw) - 1):
        if step <= 0:
            continue
        for at in range(0, len(raw), step):
            client.send(raw[at : at + step])
        client.expect_publish("t", bytes(size))


@pytest.mark.parametrize(
    "length",
    [b"\x80\x80\x80\x80", b"\xff\xff\xff\xff", b"\x80\x80\x80\x80\x00", b"\xff\xff\xff\xff\x7f"],
)
@pytest.mark.parametrize("kind", [0x30, 0x40, 0x62, 0x82, 0xC0, 0xE0])
def test_a_remaining_length_of_more_than_four_bytes_is_malformed(kind: int, length: bytes) -> None:
    """1.5.5; the fifth byte need not have come."""
    client = connected(CoreDriver(), "c")
    client.send(bytes((kind,)) + length)
    client.expect_close({0x81, 0x95})


@pytest.mark.parametrize("length", [b"\x80\x80\x80\x80", b"\xff\xff\xff\xff\x7f"])
def test_a_connect_with_a_remaining_length_of_more_than_four_bytes_is_closed(
    length: bytes,
) -> None:
    client = FakeClient(CoreDriver())
    client.send(b"\x10" + length)
    client.pump()
    assert client.closed


@pytest.mark.parametrize("size", [0, 1, 2, 65534, 65535])
def test_strings_of_every_length(size: int) -> None:
    core = CoreDriver()
    name = "n" * size
    client = FakeClient(core, "c")
    client.connect(will=Will("w", b"", properties=props(content_type=name)))
    if size:
        topic = "t" * size
        client.subscribe(topic)
        client.publish(topic, b"x")
        client.expect_publish(topic, b"x")
        client.unsubscribe(topic)


@pytest.mark.parametrize("where", range(6))
def test_a_string_length_that_reaches_beyond_the_packet_is_malformed(where: int) -> None:
    """The field's own length says 65,535, but the packet ends before."""
    core = CoreDriver()
    bodies = [
        (PacketType.PUBLISH, 0, b"\xff\xfft"),
        (PacketType.PUBLISH, 2, b"\x00\x03t"),
        (PacketType.SUBSCRIBE, 2, b"\x00\x01\x00\xff\xfft\x00"),
        (PacketType.SUBSCRIBE, 2, b"\x00\x01\x00\x00\x01a\x00\x00\x05b"),
        (PacketType.UNSUBSCRIBE, 2, b"\x00\x01\x00\xff\xfft"),
        (PacketType.UNSUBSCRIBE, 2, b"\x00\x01\x00\x00\x01a\x00"),
    ]
    kind, flags, body = bodies[where]
    client = connected(core, "c")
    client.send(frame(kind, flags, body))
    client.expect_close(0x81)


@pytest.mark.parametrize("version", [4, 5])
def test_a_connect_is_the_same_whole_and_in_pieces(version: int) -> None:
    raw = Connect(
        "client",
        version=version,
        clean_start=False,
        keep_alive_s=30,
        will=Will("w", b"payload", 1, True),
    ).encode()

    def connack(pieces: list[bytes]) -> bytes:
        core = CoreDriver()
        connection = core.open()
        for piece in pieces:
            core.send(connection, piece)
        assert connection.alive
        return connection.read()

    whole = connack([raw])
    assert whole[0] == 0x20
    for cut in range(1, len(raw)):
        assert connack([raw[:cut], raw[cut:]]) == whole
    assert connack([raw[at : at + 1] for at in range(len(raw))]) == whole


@settings(max_examples=150, deadline=None)
@given(
    client_id=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50
    ),
    username=st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    password=st.none() | st.binary(max_size=300),
    keep_alive_s=st.integers(0, 65535),
    clean_start=st.booleans(),
    version=st.sampled_from([4, 5]),
)
def test_the_fields_of_connect_reach_the_host(
    client_id: str,
    username: str | None,
    password: bytes | None,
    keep_alive_s: int,
    clean_start: bool,
    version: int,
) -> None:
    if version == 4 and username is None:
        password = None
    core = CoreDriver()
    client = FakeClient(core, client_id, version=version)
    client.send(
        client.connect_packet(
            username=username,
            password=password,
            keep_alive_s=keep_alive_s,
            clean_start=clean_start,
        )
    )
    if username is not None:
        request = core.auth_request()
        assert (request.client_id, request.username) == (client_id, username)
        assert request.password == (password or b"")
        assert request.has_password == (password is not None)
        assert request.version == version
        core.auth_result(request)
    elif password is not None and not client.pending:
        core.auth_result(core.auth_request())
    assert client.expect(Connack).code == 0
    (event,) = [e for e in core.take_events() if isinstance(e, Connected)]
    assert (event.client_id, event.version) == (client_id, version)
    assert (event.keep_alive_s, event.clean_start) == (keep_alive_s, clean_start)


_CORES: list[CoreDriver] = []


def _shared_core() -> CoreDriver:
    if not _CORES:
        _CORES.append(CoreDriver())
    return _CORES[0]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), version=st.sampled_from([4, 5]))
def test_any_bytes_after_connect_end_cleanly(data: bytes, version: int) -> None:
    """No trap, no broken ABI, answers of the right form; others go on."""
    core = _shared_core()
    client = connected(core, "any", version=version)
    client.send(data)
    client.pump()
    if not client.closed:
        client.drop()
    other = connected(core, "other")
    other.ping()
    other.disconnect()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=100))
def test_any_bytes_instead_of_connect_end_cleanly(data: bytes) -> None:
    core = _shared_core()
    connection = core.open()
    core.send(connection, data)
    if connection.alive:
        core.close(connection)
    other = connected(core, "other")
    other.ping()
    other.disconnect()


MUTABLE: list[Callable[[], bytes]] = [
    lambda: Connect("c", will=Will("w", b"x"), username="u", password=b"p").encode(),
    lambda: Publish("t", b"x", 1, 7, properties=props(content_type="c")).encode(),
    lambda: Subscribe(7, [Filter("a/#", 2), Filter("b")]).encode(),
    lambda: Unsubscribe(7, ["a/#", "b"]).encode(),
    lambda: Disconnect(4, props(reason_string="r")).encode(),
    lambda: Auth(0x19, props(authentication_method="m")).encode(),
]


@pytest.mark.parametrize("which", range(len(MUTABLE)))
def test_every_single_byte_of_a_packet_may_be_wrong(which: int) -> None:
    """All 255 other values at all places: the core answers in the right form or closes."""
    raw = MUTABLE[which]()
    core = CoreDriver()
    watcher = connected(core, "watcher")
    for at in range(len(raw)):
        with core.batch():
            for value in range(0, 256, 5):
                mutated = raw[:at] + bytes((value,)) + raw[at + 1 :]
                connection = core.open()
                if which:
                    core.send(connection, Connect("").encode())
                core.send(connection, mutated)
                core.close(connection)
    watcher.ping()
    core.advance(100_000)
    assert core.counters()["connections_open"] == 1


# -- the test codec itself ------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455])
def test_the_codec_of_the_tests_writes_variable_byte_integers(value: int) -> None:
    raw = encode_variable(value)
    assert Reader(raw).variable() == value
    assert len(raw) == 1 + sum(value > limit for limit in (127, 16383, 2097151))


@pytest.mark.parametrize(
    ("kind", "flags", "body"),
    [
        (2, 0, b"\x02\x00\x00"),  # reserved CONNACK flags
        (2, 0, b"\x01\x87\x00"),  # refused and session present
        (2, 0, b"\x00\x8b\x00"),  # a code that CONNACK does not have
        (2, 0, b"\x00\x00\x03\x21\x00\x00"),  # receive maximum 0
        (2, 0, b"\x00\x00\x02\x24\x02"),  # maximum QoS 2
        (2, 0, b"\x00\x00\x00\x00"),  # trailing byte
        (3, 6, b"\x00\x01t\x00\x01\x00"),
        (3, 8, b"\x00\x01t\x00"),
        (3, 2, b"\x00\x01t\x00\x00\x00"),
        (3, 0, b"\x00\x01#\x00"),
        (3, 0, b"\x00\x00\x00"),
        (3, 0, b"\x00\x01t\x80\x00"),
        (4, 0, b"\x00\x01\x01"),
        (4, 1, b"\x00\x01"),
        (6, 0, b"\x00\x01"),
        (9, 0, b"\x00\x01\x00"),
        (9, 0, b"\x00\x01\x00\x03"),
        (11, 0, b"\x00\x01\x00\x01"),
        (13, 0, b"\x00"),
        (14, 0, b"\x04"),
        (14, 0, b"\x00\x05\x11\x00\x00\x00\x01"),
        (15, 0, b"\x19\x00"),
        (8, 2, b""),
    ],
)
def test_the_codec_of_the_tests_is_strict(kind: int, flags: int, body: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(kind, flags, body)


def test_the_codec_of_the_tests_accepts_what_is_right() -> None:
    raw = frame(2, 0, b"\x01\x00\x00") + frame(3, 0x0B, b"\x00\x01t\x00\x05\x00x")
    packets = StreamDecoder().feed(raw)
    assert packets == [
        Connack(True, 0),
        Publish("t", b"x", 1, 5, retain=True, dup=True),
    ]
    decoder = StreamDecoder()
    got = [p for at in range(len(raw)) for p in decoder.feed(raw[at : at + 1])]
    assert got == packets
    assert encode_string("ä") == b"\x00\x02\xc3\xa4"
