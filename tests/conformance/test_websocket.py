"""MQTT 5.0, chapter 6, and RFC 6455: MQTT over WebSocket."""

from __future__ import annotations

import pytest

from avow.testing import websocket as ws
from avow.testing.core_abi import Transport
from avow.testing.core_driver import Connection, CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connack, Connect, Pingresp, Publish, Will, frame

clause = pytest.mark.clause


def websocket_client(core: CoreDriver, client_id: str = "c", version: int = 5) -> FakeClient:
    """A client that has connected over WebSocket."""
    return connected(core, client_id, version=version, transport=Transport.WEBSOCKET)


def raw_send(client: FakeClient, data: bytes) -> None:
    """Bytes that the client's framing does not touch."""
    client.core.send(client.connection, data)


def frames(connection: Connection) -> list[tuple[int, bytes]]:
    """The frames that have come."""
    data = connection.read()
    out = []
    at = 0
    while (one := ws.server_frame(data, at)) is not None:
        out.append(one[:2])
        at = one[2]
    assert at == len(data), "half a frame came"
    return out


def fails(core: CoreDriver, client: FakeClient, data: bytes) -> None:
    """The bytes end the connection; what comes before the end is a DISCONNECT and a Close frame."""
    raw_send(client, data)
    assert client.closed
    got = frames(client.connection)
    assert [opcode for opcode, _ in got] in ([], [ws.CLOSE], [ws.BINARY], [ws.BINARY, ws.CLOSE])
    for opcode, payload in got:
        if opcode == ws.BINARY:
            assert payload[0] == 0xE0
        else:
            assert payload == b"" or int.from_bytes(payload[:2], "big") in (1002, 1003, 1008, 1009)


@clause("MQTT-6.0.0-4")
@pytest.mark.parametrize("version", [4, 5])
def test_a_client_connects_with_the_subprotocol_mqtt(core: CoreDriver, version: int) -> None:
    """The fake client checks status, Sec-WebSocket-Accept and Sec-WebSocket-Protocol."""
    client = websocket_client(core, version=version)
    client.subscribe("t", qos=1)
    client.publish("t", b"x", 1)
    client.expect_publish("t", b"x", 1)


@clause("MQTT-6.0.0-3", "MQTT-6.0.0-4")
@pytest.mark.parametrize("protocols", [None, "", "chat", "mqttv3, chat", "MQTT5"])
def test_an_upgrade_without_mqtt_among_the_subprotocols_is_refused(
    core: CoreDriver, protocols: str | None
) -> None:
    connection = core.open(Transport.WEBSOCKET)
    core.send(connection, ws.WebSocketClient().upgrade(protocols=protocols))
    assert connection.closed
    answer = connection.read()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


@clause("MQTT-6.0.0-4")
@pytest.mark.parametrize("protocols", ["mqtt, chat", "chat, mqtt", "mqttv3.1,mqtt", " mqtt "])
def test_mqtt_is_selected_from_a_list(core: CoreDriver, protocols: str) -> None:
    connection = core.open(Transport.WEBSOCKET)
    client = ws.WebSocketClient()
    core.send(connection, client.upgrade(protocols=protocols))
    client.feed(connection.read())
    assert client.upgraded


def test_the_upgrade_may_come_byte_by_byte_with_data_after_it(core: CoreDriver) -> None:
    connection = core.open(Transport.WEBSOCKET)
    client = ws.WebSocketClient()
    data = client.upgrade() + client.binary(Connect("c").encode())
    for at in range(len(data)):
        core.send(connection, data[at : at + 1])
    assert client.feed(connection.read())[:1] == b"\x20"


@pytest.mark.parametrize(
    "change",
    [
        (b"GET ", b"POST "),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Upgrade: websocket\r\n", b""),
        (b"Connection: Upgrade", b"Connection: close"),
        (b"Connection: Upgrade\r\n", b""),
        (b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8"),
        (b"Sec-WebSocket-Version: 13\r\n", b""),
        (b"Sec-WebSocket-Key: ", b"X-Key: "),
        (b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: short"),
    ],
)
def test_a_wrong_upgrade_is_refused(core: CoreDriver, change: tuple[bytes, bytes]) -> None:
    """RFC 6455, 4.2.1."""
    connection = core.open(Transport.WEBSOCKET)
    request = ws.WebSocketClient().upgrade()
    assert change[0] in request
    core.send(connection, request.replace(*change))
    assert connection.closed
    answer = connection.read()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_header_names_and_tokens_ignore_case_and_order(core: CoreDriver) -> None:
    connection = core.open(Transport.WEBSOCKET)
    client = ws.WebSocketClient()
    request = client.upgrade(extra="X-Origin: http://example\r\nCookie: a=b\r\n")
    request = request.replace(b"Upgrade: websocket", b"uPGRADE:   WebSocket  ")
    request = request.replace(b"Connection: Upgrade", b"CONNECTION:keep-alive, upgrade")
    core.send(connection, request)
    client.feed(connection.read())
    assert client.upgraded


@pytest.mark.parametrize("path", ["/", "/mqtt", "/ws?token=x", "/a/b/c"])
def test_the_path_does_not_matter(core: CoreDriver, path: str) -> None:
    """Chapter 6: the URI has no impact on the MQTT protocol."""
    connection = core.open(Transport.WEBSOCKET)
    client = ws.WebSocketClient()
    core.send(connection, client.upgrade(path=path))
    client.feed(connection.read())
    assert client.upgraded


def test_a_request_without_an_end_is_cut_off(core: CoreDriver) -> None:
    connection = core.open(Transport.WEBSOCKET)
    for _ in range(64):
        core.send(connection, b"X-Filler: " + b"x" * 1013 + b"\r\n")
    assert connection.closed


def test_mqtt_without_an_upgrade_is_not_accepted(core: CoreDriver) -> None:
    connection = core.open(Transport.WEBSOCKET)
    core.send(connection, Connect("c").encode() + b"\r\n\r\n")
    core.advance(60_000)
    assert connection.closed
    assert not connection.read().startswith(b"\x20")


@clause("MQTT-6.0.0-1")
def test_a_text_frame_ends_the_connection(core: CoreDriver) -> None:
    client = websocket_client(core)
    fails(core, client, ws.client_frame(ws.TEXT, b"\xc0\x00"))


@clause("MQTT-6.0.0-1")
def test_a_text_frame_as_the_first_one_is_not_mqtt(core: CoreDriver) -> None:
    connection = core.open(Transport.WEBSOCKET)
    client = ws.WebSocketClient()
    core.send(connection, client.upgrade())
    client.feed(connection.read())
    core.send(connection, ws.client_frame(ws.TEXT, Connect("c").encode()))
    assert connection.closed
    assert client.feed(connection.read()) == b""


@clause("MQTT-6.0.0-1")
def test_the_server_sends_binary_frames(core: CoreDriver) -> None:
    """The client's framing refuses text frames, fragments and masked frames."""
    client = websocket_client(core)
    client.subscribe("t")
    for size in (0, 1, 100, 125, 126, 127, 65535, 65536, 70000, 200_000):
        client.publish("t", bytes(size))
        client.expect_publish("t", bytes(size))


@clause("MQTT-6.0.0-2")
def test_packets_need_not_be_aligned_on_frames(core: CoreDriver) -> None:
    client = websocket_client(core)
    client.subscribe("t")
    data = b"".join(Publish("t", b"%d" % n * n).encode() for n in range(30))
    for step in (1, 2, 3, 5, 50, len(data)):
        for at in range(0, len(data), step):
            raw_send(client, ws.client_frame(ws.BINARY, data[at : at + step]))
        assert [p.payload for p in client.received()] == [b"%d" % n * n for n in range(30)]


@clause("MQTT-6.0.0-2")
def test_frames_may_be_cut_anywhere_by_the_network(core: CoreDriver) -> None:
    client = websocket_client(core)
    client.subscribe("t")
    data = b"".join(
        ws.client_frame(ws.BINARY, Publish("t", bytes(size)).encode()) for size in (1, 200, 70000)
    )
    for step in (1, 3, 1000):
        limit = 500 if step == 1 else len(data)
        for at in range(0, limit, step):
            raw_send(client, data[at : min(at + step, limit)])
        raw_send(client, data[limit:])
        assert [len(p.payload) for p in client.received()] == [1, 200, 70000]


def test_a_fragmented_message_is_put_together(core: CoreDriver) -> None:
    """RFC 6455, 5.4, with a ping between the fragments."""
    client = websocket_client(core)
    client.subscribe("t")
    data = Publish("t", b"fragmented").encode()
    raw_send(client, ws.client_frame(ws.BINARY, data[:3], final=False))
    raw_send(client, ws.client_frame(ws.PING, b"between"))
    raw_send(client, ws.client_frame(ws.CONTINUATION, data[3:7], final=False))
    raw_send(client, ws.client_frame(ws.CONTINUATION, b"", final=False))
    raw_send(client, ws.client_frame(ws.CONTINUATION, data[7:]))
    client.expect_publish("t", b"fragmented")
    assert client.websocket is not None
    assert client.websocket.control == [(ws.PONG, b"between")]


@pytest.mark.parametrize("payload", [b"", b"x", bytes(125)])
def test_a_ping_is_answered_by_a_pong_with_the_same_data(core: CoreDriver, payload: bytes) -> None:
    client = websocket_client(core)
    client.pump()
    raw_send(client, ws.client_frame(ws.PING, payload))
    assert frames(client.connection) == [(ws.PONG, payload)]


def test_an_unasked_pong_is_ignored(core: CoreDriver) -> None:
    client = websocket_client(core)
    raw_send(client, ws.client_frame(ws.PONG, b"x"))
    client.expect_nothing()
    client.ping()


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe8going away", b"\x0f\xa0"])
def test_a_close_is_answered_and_ends_the_connection(core: CoreDriver, payload: bytes) -> None:
    watcher = connected(core, "w")
    watcher.subscribe("will")
    client = FakeClient(core, "c", transport=Transport.WEBSOCKET)
    client.connect(will=Will("will", b"gone"))
    raw_send(client, ws.client_frame(ws.CLOSE, payload))
    got = frames(client.connection)
    assert [opcode for opcode, _ in got] == [ws.CLOSE]
    assert got[0][1][:2] in (payload[:2], b"\x03\xe8")
    assert client.closed
    watcher.expect_publish("will", b"gone")  # a Close is not a DISCONNECT


def test_an_unmasked_frame_ends_the_connection(core: CoreDriver) -> None:
    """RFC 6455, 5.1."""
    client = websocket_client(core)
    fails(core, client, ws.client_frame(ws.BINARY, b"\xc0\x00", mask=None))


def test_a_mask_of_zeros_is_a_mask(core: CoreDriver) -> None:
    client = websocket_client(core)
    raw_send(client, ws.client_frame(ws.BINARY, b"\xc0\x00", mask=bytes(4)))
    client.expect(Pingresp)


@pytest.mark.parametrize("reserved", [1, 2, 4, 7])
def test_reserved_bits_end_the_connection(core: CoreDriver, reserved: int) -> None:
    """RFC 6455, 5.2: no extension was negotiated."""
    client = websocket_client(core)
    fails(core, client, ws.client_frame(ws.BINARY, b"\xc0\x00", reserved=reserved))


@pytest.mark.parametrize("opcode", [3, 4, 7, 0xB, 0xF])
def test_an_unknown_opcode_ends_the_connection(core: CoreDriver, opcode: int) -> None:
    client = websocket_client(core)
    fails(core, client, ws.client_frame(opcode, b"\xc0\x00"))


def test_a_continuation_without_a_start_ends_the_connection(core: CoreDriver) -> None:
    client = websocket_client(core)
    fails(core, client, ws.client_frame(ws.CONTINUATION, b"\xc0\x00"))


def test_a_new_message_inside_of_a_fragmented_one_ends_the_connection(core: CoreDriver) -> None:
    client = websocket_client(core)
    raw_send(client, ws.client_frame(ws.BINARY, b"\xc0", final=False))
    fails(core, client, ws.client_frame(ws.BINARY, b"\x00"))


@pytest.mark.parametrize("opcode", [ws.CLOSE, ws.PING, ws.PONG])
def test_a_control_frame_is_short_and_whole(core: CoreDriver, opcode: int) -> None:
    """RFC 6455, 5.5."""
    client = websocket_client(core)
    fails(core, client, ws.client_frame(opcode, bytes(126)))
    client = websocket_client(core)
    fails(core, client, ws.client_frame(opcode, b"", final=False))


def test_a_close_with_half_a_code_ends_the_connection(core: CoreDriver) -> None:
    client = websocket_client(core)
    raw_send(client, ws.client_frame(ws.CLOSE, b"\x03"))
    assert client.closed


@pytest.mark.parametrize("length", [2**63, 2**64 - 1])
def test_an_impossible_frame_length_ends_the_connection(core: CoreDriver, length: int) -> None:
    """RFC 6455, 5.2: the most significant bit of a 64 bit length is 0."""
    client = websocket_client(core)
    fails(core, client, b"\x82\xff" + length.to_bytes(8, "big") + bytes(4))


def test_a_huge_frame_is_read_as_it_comes_and_its_packets_are_limited(core: CoreDriver) -> None:
    """The frame may be long, as it can hold many packets; the packet in it is too large."""
    client = websocket_client(core)
    head = b"\x82\xff" + (2**40).to_bytes(8, "big") + bytes(4)
    raw_send(client, head + Publish("t", b"x").encode())
    client.expect_nothing()
    raw_send(client, b"\x30\xff\xff\xff\x7f")
    client.expect_close_of_websocket(0x95)


def test_an_error_of_mqtt_is_told_in_a_binary_frame(core: CoreDriver) -> None:
    client = websocket_client(core)
    client.pump()
    raw_send(client, ws.client_frame(ws.BINARY, frame(3, 6, b"")))
    got = frames(client.connection)
    assert got[0] == (ws.BINARY, b"\xe0\x01\x81") or got[0][1][:1] == b"\xe0"
    assert client.closed


def test_websocket_and_plain_clients_meet(core: CoreDriver) -> None:
    plain = connected(core, "plain")
    web = websocket_client(core, "web")
    for client in (plain, web):
        client.subscribe("t", qos=2)
    for client in (plain, web):
        client.publish("t", client.client_id.encode(), 2)
        plain.expect_publish("t", client.client_id.encode(), 2)
        web.expect_publish("t", client.client_id.encode(), 2)


def test_a_take_over_between_the_transports(core: CoreDriver) -> None:
    web = websocket_client(core, "c")
    connected(core, "c")
    web.expect_close_of_websocket(0x8E)


def test_the_connect_timeout_includes_the_upgrade(core: CoreDriver) -> None:
    silent = core.open(Transport.WEBSOCKET)
    upgraded = FakeClient(core, transport=Transport.WEBSOCKET)
    core.advance(60_000)
    assert silent.closed
    assert upgraded.closed
    assert not [p for p in upgraded.inbox if isinstance(p, Connack)]
