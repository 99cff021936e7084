"""ACL rules of the core (docs/spec/core-abi.md): publish, subscribe and delivery."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import Access, CommandFailed, Outcome, Principal, Rule
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Connack, Publish, Will, props

LONG = props(session_expiry_interval=1000)


def user(core: CoreDriver, name: str, client_id: str | None = None) -> FakeClient:
    """A client whose user name was proven by TLS."""
    return connected(core, client_id or f"client-of-{name}", identity=name)


def test_before_the_first_rules_everything_is_allowed(core: CoreDriver) -> None:
    client = connected(core, "c")
    client.subscribe("#")
    client.publish("t", b"x", 1)
    client.expect_publish("t", b"x")


def test_no_matching_rule_denies(core: CoreDriver) -> None:
    core.acl([])
    client = connected(core, "c")
    client.subscribe("t", codes=[0x87])
    client.publish("t", b"x", 1, code=0x87)
    client.publish("t", b"x", 2, code=0x87)
    assert core.counters()["acl_denied"] == 3


def test_the_first_matching_rule_decides(core: CoreDriver) -> None:
    core.acl([Rule(True, "a/ok/#"), Rule(False, "a/#"), Rule(True, "#")])
    client = connected(core, "c")
    for topic, code in (("a/ok", None), ("a/ok/x", None), ("a", 0x87), ("a/x", 0x87), ("b", None)):
        client.publish(topic, b"x", 1, code=code)
        client.subscribe(topic, codes=[0 if code is None else 0x87])


def test_publish_and_subscribe_are_separate(core: CoreDriver) -> None:
    core.acl([Rule(True, "in", Access.PUBLISH), Rule(True, "out", Access.SUBSCRIBE)])
    client = connected(core, "c")
    client.publish("in", b"x", 1)
    client.publish("out", b"x", 1, code=0x87)
    client.subscribe("in", "out", codes=[0x87, 0])


def test_rules_are_about_users_anonymous_clients_or_anyone(core: CoreDriver) -> None:
    core.acl(
        [
            Rule(True, "alice", Access.BOTH, Principal.USER, "alice"),
            Rule(True, "nobody", Access.BOTH, Principal.ANONYMOUS),
            Rule(True, "all"),
        ]
    )
    clients = {
        "alice": user(core, "alice"),
        "bob": user(core, "bob"),
        "nobody": connected(core, "anonymous"),
    }
    for name, client in clients.items():
        for topic in ("alice", "nobody", "all"):
            allowed = topic in (name, "all")
            client.publish(topic, b"x", 1, code=None if allowed else 0x87)


@pytest.mark.parametrize("name", ["al", "alicex", "ALICE", "alice ", ""])
def test_a_user_is_compared_exactly(core: CoreDriver, name: str) -> None:
    core.acl([Rule(True, "t", Access.BOTH, Principal.USER, "alice")])
    client = user(core, name, "c") if name else connected(core, "c")
    client.publish("t", b"x", 1, code=0x87)


def test_placeholders_stand_for_client_and_user(core: CoreDriver) -> None:
    core.acl([Rule(True, "c/%c/#"), Rule(True, "u/%u/x")])
    client = user(core, "alice", "device-7")
    client.publish("c/device-7/state", b"x", 1)
    client.subscribe("c/device-7/+")
    client.publish("u/alice/x", b"x", 1)
    for topic in ("c/device-8/state", "u/bob/x", "c/%c/state", "u/%u/x"):
        client.publish(topic, b"x", 1, code=0x87)


@pytest.mark.parametrize("name", ["+", "#", "a/b", "+/x", "%c", "%u"])
def test_a_placeholder_cannot_be_used_to_inject_a_wildcard(core: CoreDriver, name: str) -> None:
    """A client identifier with a wildcard or a level separator matches nothing but itself."""
    core.acl([Rule(True, "home/%c/#", Access.BOTH)])
    client = connected(core, name)
    client.publish("home/victim/door", b"x", 1, code=0x87)
    client.publish("home/a/victim", b"x", 1, code=0x87)
    client.subscribe("home/victim/#", codes=[0x87])
    client.subscribe("home/+/#", codes=[0x87])
    client.subscribe("home/#", codes=[0x87])


def test_a_rule_with_a_user_placeholder_never_matches_an_anonymous_client(
    core: CoreDriver,
) -> None:
    core.acl([Rule(True, "u/%u/#")])
    client = connected(core, "c")
    for topic in ("u//x", "u/%u/x", "u/x"):
        client.publish(topic, b"x", 1, code=0x87)


def test_a_filter_is_allowed_only_when_all_that_it_matches_is(core: CoreDriver) -> None:
    """A wildcard must not reach further than the rule that allows it."""
    core.acl([Rule(True, "a/b/#", Access.SUBSCRIBE)])
    client = connected(core, "c")
    client.subscribe("a/b/#", "a/b/c", "a/b/+", "a/b", codes=[0, 0, 0, 0])
    client.subscribe("a/#", "#", "a/+", "+/b", "a/+/c", codes=[0x87] * 5)


def test_a_shared_subscription_is_judged_by_its_filter(core: CoreDriver) -> None:
    core.acl([Rule(True, "ok/#")])
    client = connected(core, "c")
    client.subscribe("$share/g/ok/1", "$share/g/no/1", codes=[0, 0x87])


def test_a_denied_topic_does_not_come_through_a_wider_filter(core: CoreDriver) -> None:
    """Checked at delivery: live, retained, and queued messages."""
    publisher = connected(core, "p")
    publisher.publish("secret/x", b"retained", retain=True)
    publisher.publish("open/x", b"retained", retain=True)
    core.acl([Rule(True, "#", Access.PUBLISH), Rule(False, "secret/#"), Rule(True, "#")])
    client = connected(core, "c", properties=LONG)
    client.subscribe("+/x", qos=1)
    client.expect_publish("open/x", b"retained", retain=True)
    client.expect_nothing()
    publisher.publish("secret/x", b"live", 1)
    publisher.publish("open/x", b"live", 1)
    client.expect_publish("open/x", b"live")
    client.expect_nothing()
    client.drop()
    publisher.publish("secret/x", b"queued", 1)
    publisher.publish("open/x", b"queued", 1)
    client.reconnect(properties=LONG)
    client.expect_publish("open/x", b"queued")
    client.expect_nothing()


def test_new_rules_hold_for_subscriptions_that_exist(core: CoreDriver) -> None:
    core.acl([Rule(True, "#")])
    client = connected(core, "c")
    client.subscribe("t", "u")
    core.acl([Rule(False, "t", Access.SUBSCRIBE), Rule(True, "#")])
    publisher = connected(core, "p")
    publisher.publish("t", b"x", 1)
    client.expect_nothing()
    publisher.publish("u", b"x", 1)
    client.expect_publish("u", b"x")
    core.acl([Rule(True, "#")])
    publisher.publish("t", b"x", 1)
    client.expect_publish("t", b"x")


def test_a_will_is_published_only_where_its_client_may_publish(core: CoreDriver) -> None:
    core.acl([Rule(False, "deny", Access.PUBLISH), Rule(True, "#")])
    watcher = connected(core, "w")
    watcher.subscribe("#")
    client = FakeClient(core, "c")
    client.send(client.connect_packet(will=Will("deny", b"x")))
    connack = client.expect(Connack)
    assert connack.code in (0x00, 0x87)
    client.drop()
    watcher.expect_nothing()
    connected(core, "d", will=Will("allow", b"x")).drop()
    watcher.expect_publish("allow", b"x")


def test_a_denied_retained_message_is_not_stored(core: CoreDriver) -> None:
    core.acl([Rule(False, "t", Access.PUBLISH), Rule(True, "#")])
    client = connected(core, "c")
    client.publish("t", b"x", retain=True)
    client.publish("t", b"x", 1, retain=True, code=0x87)
    client.subscribe("t")
    client.expect_nothing()


def test_the_user_name_that_the_host_gave_counts(core: CoreDriver) -> None:
    core.acl([Rule(True, "t", Access.BOTH, Principal.USER, "alice")])
    client = FakeClient(core, "c")
    client.send(client.connect_packet(username="other", password=b"p"))
    core.auth_result(core.auth_request(), Outcome.SUCCESS, user="alice")
    client.expect(Connack)
    client.publish("t", b"x", 1)


def test_sys_topics_follow_the_rules_too(core: CoreDriver) -> None:
    core.acl([Rule(False, "$SYS/#"), Rule(True, "#")])
    client = connected(core, "c")
    client.subscribe("$SYS/#", "$SYS/broker/uptime", codes=[0x87, 0x87])


def test_an_unauthenticated_client_never_reaches_the_rules(core: CoreDriver) -> None:
    core.acl([Rule(True, "#")])
    watcher = connected(core, "w")
    watcher.subscribe("#")
    client = FakeClient(core, "c", allow_anonymous=False)
    client.send(client.connect_packet(), Publish("t", b"x"))
    client.expect_refused({0x86, 0x87})
    watcher.expect_nothing()


@pytest.mark.parametrize(
    "blob",
    [
        b"\x02",
        b"\x02\x01\x00\x00\x00",
        b"\x02\x01\x00\x00\x00\x01\x03\x00\x00\x05\x00a",
        b"\x02\xff\xff\xff\xff\x01\x03\x00\x00\x00\x00\x01\x00#",
        b"\x02\x00\x00\x00\x00extra",
        b"\x02\x01\x00\x00\x00\x02\x03\x00\x00\x00\x00\x01\x00#",
        b"\x02\x01\x00\x00\x00\x01\x03\x03\x00\x00\x00\x01\x00#",
    ],
)
def test_malformed_rules_are_reported_and_the_old_ones_stay(core: CoreDriver, blob: bytes) -> None:
    """Failing closed: no half of a rule set may come into force."""
    core.acl([Rule(True, "ok")])
    core.take_events()
    core.command(blob)
    assert [e.command for e in core.take_events() if isinstance(e, CommandFailed)] == [2]
    client = connected(core, "c")
    client.publish("ok", b"x", 1)
    client.publish("t", b"x", 1, code=0x87)
