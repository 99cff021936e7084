"""REFUSED and DISCONNECTED: the host learns who was refused what, and by which rule."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import (
    Access,
    Disconnected,
    Outcome,
    Principal,
    Refused,
    Rule,
    Setting,
    Transport,
    auth_result_command,
)
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connect, Filter, Publish, Suback, Subscribe, Will

RULES = [
    Rule(True, "open/#"),
    Rule(False, "secret/#", user="bob", principal=Principal.USER),
    Rule(False, "secret/#"),
    Rule(True, "readable", Access.SUBSCRIBE),
]
NOT_AUTHORIZED = 0x87
BY_CODE, BY_RULE, NO_RULE, RESERVED = range(4)
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(200)


def refused(core: CoreDriver) -> list[Refused]:
    return [event for event in core.events if isinstance(event, Refused)]


def ended(core: CoreDriver) -> Disconnected:
    (event,) = [event for event in core.events if isinstance(event, Disconnected)]
    return event


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("topic", "cause", "rule"),
    [("secret/x", BY_RULE, 3), ("elsewhere", NO_RULE, 0), ("$SYS/broker/version", RESERVED, 0)],
)
def test_publish(core: CoreDriver, version: int, topic: str, cause: int, rule: int) -> None:
    core.acl(RULES)
    client = connected(core, "c", version=version, identity="alice")
    for qos in (0, 1, 2):
        client.send(Publish(topic, b"x", qos, None if qos == 0 else qos))
    assert refused(core) == [
        Refused(0, 1, NOT_AUTHORIZED, cause, rule, 0, "c", "alice", topic) for _ in range(3)
    ]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("explained", [True, False])
def test_subscription(core: CoreDriver, version: int, explained: bool) -> None:
    """The host is told the reason although the client is not."""
    core.acl(RULES)
    core.settings({Setting.DENIALS_EXPLAINED: int(explained)})
    client = connected(core, "c", version=version)
    filters = ["readable", "secret/+", "$share/g/secret/+", "elsewhere/#"]
    client.send(Subscribe(1, [Filter(name, 0) for name in filters]))
    denied = NOT_AUTHORIZED if version == 5 and explained else 0x80
    assert client.expect(Suback).codes == [0, denied, denied, denied]
    assert [(e.action, e.code, e.cause, e.rule, e.topic) for e in refused(core)] == [
        (2, NOT_AUTHORIZED, BY_RULE, 3, "secret/+"),
        (2, NOT_AUTHORIZED, BY_RULE, 3, "$share/g/secret/+"),
        (2, NOT_AUTHORIZED, NO_RULE, 0, "elsewhere/#"),
    ]


def test_quota_is_told_by_its_code(core: CoreDriver) -> None:
    core.settings({Setting.SUBSCRIPTIONS_MAX: 1})
    client = connected(core, "c")
    client.subscribe("a", "b", codes=[0, 0x97])
    assert [(e.action, e.code, e.cause, e.topic) for e in refused(core)] == [
        (2, 0x97, BY_CODE, "b")
    ]


def test_will(core: CoreDriver) -> None:
    core.acl(RULES)
    client = FakeClient(core, "willy", identity="bob")
    client.send(client.connect_packet(will=Will("secret/w", b"x")))
    client.expect_refused(NOT_AUTHORIZED)
    assert refused(core) == [
        Refused(0, 3, NOT_AUTHORIZED, BY_RULE, 2, 0, "willy", "bob", "secret/w")
    ]
    assert ended(core).told


@pytest.mark.parametrize("version", [4, 5])
def test_connect_that_is_refused_by_the_core(core: CoreDriver, version: int) -> None:
    client = FakeClient(core, "device-7", version=version, allow_anonymous=False)
    client.send(Connect(version=version, client_id="device-7"))
    event = ended(core)
    assert (event.client_id, event.username, event.code) == ("device-7", "", NOT_AUTHORIZED)
    assert not event.accepted
    assert not event.told
    assert "anonymous" in event.text


def test_connect_that_the_host_refuses_is_known_to_it(core: CoreDriver) -> None:
    client = FakeClient(core, "device-7")
    client.send(Connect(client_id="device-7", username="alice", password=b"x"))
    asked = core.auth_request()
    core.command(
        auth_result_command(asked.connection, asked.ticket, Outcome.REFUSE, code=0x86, reason="no")
    )
    event = ended(core)
    assert (event.client_id, event.username, event.code) == ("device-7", "alice", 0x86)
    assert event.told
    assert not event.accepted


def test_authentication_that_takes_too_long_names_the_client(core: CoreDriver) -> None:
    client = FakeClient(core, "device-7")
    client.send(Connect(client_id="device-7", username="alice", password=b"x"))
    core.advance(11_000)
    event = ended(core)
    assert (event.client_id, event.username, event.told) == ("device-7", "alice", False)


def test_protocol_error_of_a_client(core: CoreDriver) -> None:
    client = connected(core, "c", identity="alice")
    client.send(b"\xf3\x00")
    event = ended(core)
    assert (event.client_id, event.username, event.accepted) == ("c", "alice", True)


@pytest.mark.parametrize(
    ("transport", "content", "words"),
    [
        (Transport.MQTT, CLIENT_HELLO, "TLS handshake"),
        (Transport.MQTT, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(100), "HTTP"),
        (Transport.MQTT, b"\x00\x00\x00\x00", "packet"),
        (Transport.WEBSOCKET, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "WebSocket upgrade"),
        (Transport.WEBSOCKET, CLIENT_HELLO + b"\r\n\r\n", "TLS handshake"),
        (Transport.WEBSOCKET, b"\x10\x00\r\n\r\n", "MQTT came"),
    ],
)
def test_bytes_that_are_no_mqtt(
    core: CoreDriver, transport: Transport, content: bytes, words: str
) -> None:
    core.send(core.open(transport), content)
    event = ended(core)
    assert words in event.text
    assert (event.client_id, event.accepted, event.by) == ("", False, 1)


def test_one_client_does_not_fill_the_log(core: CoreDriver) -> None:
    core.acl(RULES)
    loud, quiet = connected(core, "loud"), connected(core, "quiet")
    with core.batch():
        for _ in range(1000):
            loud.send(Publish("secret/x", b"x"))
    quiet.send(Publish("secret/y", b"x"))
    told = refused(core)
    assert [event.client_id for event in told] == ["loud"] * 8 + ["quiet"]
    core.advance(1_000)
    loud.send(Publish("secret/x", b"x"))
    assert refused(core)[-1].unreported == 992
    for _ in range(20):
        loud.send(Publish("secret/x", b"x"))
    loud.disconnect()
    assert ended(core).refusals == 13


def test_many_clients_do_not_fill_the_log(core: CoreDriver) -> None:
    core.acl(RULES)
    clients = [connected(core, f"c{number}") for number in range(100)]
    for client in clients:
        client.send(Publish("secret/x", b"x"))
    assert len(refused(core)) == 64


def test_refused_publishes_do_not_hide_a_subscription(core: CoreDriver) -> None:
    core.acl(RULES)
    for number in range(100):
        connected(core, f"c{number}").send(Publish("secret/x", b"x"))
    connected(core, "last").send(Subscribe(1, [Filter("secret/y", 0)]))
    assert (refused(core)[-1].client_id, refused(core)[-1].action) == ("last", 2)


def test_a_will_that_new_rules_do_not_let_out(core: CoreDriver) -> None:
    client = connected(core, "willy", identity="bob", will=Will("secret/w", b"x"))
    core.acl(RULES)
    client.drop()
    assert refused(core) == [
        Refused(0xFFFFFFFF, 4, NOT_AUTHORIZED, BY_RULE, 2, 0, "willy", "bob", "secret/w")
    ]


def test_long_names_are_cut_between_characters(core: CoreDriver) -> None:
    core.acl(RULES)
    name = "ü" * 1000
    client = connected(core, name)
    client.send(Publish("secret/x" + name, b"x"))
    (event,) = refused(core)
    assert event.client_id == "ü" * 128
    assert event.topic == "secret/x" + "ü" * 124
