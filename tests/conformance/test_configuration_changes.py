"""CONFIGURATION_CHANGES: everybody ends before the new configuration is in force."""

from __future__ import annotations

import pytest

from avow.testing.core_abi import (
    CONFIGURATION_CHANGES_COMMAND,
    Access,
    CommandFailed,
    Disconnected,
    Rule,
    Transport,
    acl_command,
)
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient, connected
from avow.testing.mqtt import Publish, Will, props

ADMINISTRATIVE_ACTION = 0x98
ONLY_ALICE = [Rule(True, "secret", Access.SUBSCRIBE), Rule(False, "secret"), Rule(True, "#")]
EVERYBODY = [Rule(True, "#")]


@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("version", [4, 5])
def test_everybody_is_disconnected(core: CoreDriver, version: int, transport: Transport) -> None:
    """A stranger who was admitted by the old configuration would have been refused by the one that
    evidence names from now on."""
    clients = [connected(core, name, version=version, transport=transport) for name in "ab"]
    core.command(CONFIGURATION_CHANGES_COMMAND)
    for client in clients:
        client.expect_close(ADMINISTRATIVE_ACTION)
    ended = [event for event in core.events if isinstance(event, Disconnected)]
    assert sorted(event.client_id for event in ended) == ["a", "b"]
    for event in ended:
        assert (event.code, event.by) == (ADMINISTRATIVE_ACTION, 1)
        assert "configuration" in event.text


def test_who_comes_after_it_is_admitted(core: CoreDriver) -> None:
    connected(core, "a")
    core.command(CONFIGURATION_CHANGES_COMMAND)
    connected(core, "b").publish("t", b"x", 1, code=0x10)


def test_those_who_have_not_connected_yet_end_too(core: CoreDriver) -> None:
    silent = FakeClient(core, "silent")
    upgrading = FakeClient(core, "upgrading", transport=Transport.WEBSOCKET)
    verifying = FakeClient(core, "verifying")
    verifying.send(verifying.connect_packet(username="alice", password=b"x"))
    core.command(CONFIGURATION_CHANGES_COMMAND)
    for client in (silent, upgrading, verifying):
        assert client.closed == "close"


def test_the_new_rules_open_nothing_to_strangers_before(core: CoreDriver) -> None:
    """Command, rules and a stranger's publish in one turn, in the worst order there is."""
    core.acl(ONLY_ALICE)
    alice = FakeClient(core, "alice")
    alice.connect()
    alice.subscribe("secret", codes=[0])
    eve = connected(core, "eve")
    eve.publish("secret", b"before", 1, code=0x87)
    with core.batch():
        core.command(CONFIGURATION_CHANGES_COMMAND)
        core.command(acl_command(EVERYBODY))
        eve.send(Publish(topic=b"secret", payload=b"forged"))
    alice.expect_close(ADMINISTRATIVE_ACTION)


def test_a_will_is_published_under_the_rules_that_it_was_made_for(core: CoreDriver) -> None:
    core.acl([Rule(True, "old"), Rule(False, "#")])
    kept = props(session_expiry_interval=1000)
    watcher = FakeClient(core, "watcher")
    watcher.connect(properties=kept)
    watcher.subscribe("old", qos=1)
    client = FakeClient(core, "c")
    client.connect(will=Will("old", b"gone", qos=1))
    with core.batch():
        core.command(CONFIGURATION_CHANGES_COMMAND)
        core.command(acl_command([Rule(True, "new")]))
    again = FakeClient(core, "watcher")
    again.connect(clean_start=False, properties=kept)
    again.expect_publish("old", b"gone", 1)


def test_the_session_stays_for_who_comes_back(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.connect(properties=props(session_expiry_interval=1000))
    core.command(CONFIGURATION_CHANGES_COMMAND)
    again = FakeClient(core, "c")
    assert again.connect(clean_start=False).session_present


def test_the_command_has_no_body(core: CoreDriver) -> None:
    client = FakeClient(core, "c")
    client.connect()
    core.command(CONFIGURATION_CHANGES_COMMAND + b"\0")
    assert [event.command for event in core.events if isinstance(event, CommandFailed)] == [8]
    client.expect_nothing()
