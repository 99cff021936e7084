"""The service around a pump that only pretends: events, reload, drain, and loud failures."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from avow.broker.authentication import Origin
from avow.broker.commands import CommandKind
from avow.broker.config import Configuration, Listener, Metrics
from avow.broker.limits import Limits
from avow.broker.origins import UNKNOWN, USES_MAX, Origins
from avow.broker.pump import CoreTrapError, Transport
from avow.broker.service import Control, needs_restart
from avow.broker.users import add_user, new_user
from avow.errors import MalformedError, StorageError, UnavailableError
from tests.unit.running_service import (
    JOURNAL,
    PATIENCE_S,
    FakeCore,
    Running,
    connected,
    disconnected,
    event,
    one_listener,
    running,
    string,
    use_fake_pump,
)


@pytest.fixture(autouse=True)
def _fake_pump(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_pump(monkeypatch)


class Attesting:
    """An attestation that can be started and stopped, and no more."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


def test_start_that_fails_stops_what_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pump that ran on would write into a store that its owner closes now."""
    made = Running(one_listener)
    made.service.open()

    def refuse(*_: object) -> None:
        raise UnavailableError("no evidence")

    monkeypatch.setattr(made.service._certificates, "start", refuse)
    monkeypatch.setattr(made.service, "_attestation", Attesting())
    with pytest.raises(UnavailableError, match="no evidence"):
        made.service.serve()
    assert made.pump.closed
    assert not made.service._turning.is_alive()


def test_access_rules_that_the_core_refuses_end_the_broker() -> None:
    """Without rules all is allowed: to go on would be to fail open."""
    made = Running(one_listener)
    made.service.open()
    made.thread.start()
    made.pump.batches.put(event(4, struct.pack("<I", CommandKind.ACL) + string("no memory")))
    made.ended()
    assert "no memory" in str(made.failure)


def test_memory_does_not_grow_beyond_what_the_core_was_started_with() -> None:
    small, large = Limits(memory_budget_bytes=64 << 20), Limits(memory_budget_bytes=128 << 20)
    configurations = iter((one_listener(limits=small), one_listener(limits=large)))
    with running(lambda: next(configurations)) as made:
        made.line("listening")
        made.controls.put(Control.RELOAD)
        assert made.line("needs a restart")["keys"] == ["limits.memory_budget_bytes"]
        made.line("reloaded")
        sent = [made.pump.commands.get() for _ in range(made.pump.commands.qsize())]
        settings = [each for each in sent if each[0] == CommandKind.SETTINGS]
        assert len(settings) == 2
        assert all(struct.pack("<HQ", 11, 64 << 20) in each for each in settings)


def test_settings_come_before_the_first_connection() -> None:
    configuration = one_listener(limits=Limits(keep_alive_max_s=60), response_prefix="r/")
    with running(lambda: configuration) as made:
        made.line("listening")
        kinds = []
        while not made.pump.commands.empty():
            command = made.pump.commands.get()
            kinds.append(command[0])
            if command[0] == CommandKind.SETTINGS:
                assert struct.pack("<HQ", 4, 60) in command
        assert kinds == [
            CommandKind.SETTINGS,
            CommandKind.RESPONSE_PREFIX,
            CommandKind.WEB_ORIGINS,
            CommandKind.WEB_HOSTS,
            CommandKind.ACL,
            CommandKind.VERSION_TEXT,
        ]


def test_connection_reaches_the_pump_and_its_events_the_log() -> None:
    with running() as made, made.connect() as client:
        fd, settings = made.pump.added.get(timeout=PATIENCE_S)
        assert settings["transport"] is Transport.MQTT
        assert settings["allow_anonymous"] is True
        assert settings["tls"] is None
        peer = f"127.0.0.1:{client.getsockname()[1]}"
        made.pump.batches.put(connected(0, "c1") + disconnected(0, "c1"))
        assert made.line("client connected")["peer"] == peer
        line = made.line("client disconnected")
        assert (line["peer"], line["by"], line["level"]) == (peer, "client", "info")
        os.close(fd)


def test_listener_kind_is_told_to_the_pump() -> None:
    configuration = Configuration(listeners=[Listener(url="ws://127.0.0.1:0")])
    with running(lambda: configuration) as made, made.connect():
        fd, settings = made.pump.added.get(timeout=PATIENCE_S)
        assert settings["transport"] is Transport.WEBSOCKET
        os.close(fd)


def test_pump_that_takes_nothing_more_does_not_keep_the_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running() as made:

        def refuse(fd: int, **_: Any) -> int:
            raise UnavailableError("stopped")

        monkeypatch.setattr(made.pump, "add", refuse)
        with made.connect() as client:
            assert client.recv(1) == b""


def test_stop_drains_first() -> None:
    with running() as made:
        made.line("listening")
        made.controls.put(Control.STOP)
        made.ended()
        commands = []
        while not made.pump.commands.empty():
            commands.append(made.pump.commands.get()[0])
        assert commands[-1] == CommandKind.DRAIN
        assert made.lines("stopped")
        assert not made.lines("drain took too long")
    assert made.failure is None


def test_drain_has_a_deadline() -> None:
    with running(lambda: one_listener(drain_timeout_s=0.05)) as made:
        made.pump.drains = False
        made.controls.put(Control.STOP)
        made.ended()
        assert made.lines("drain took too long")
    assert made.failure is None


def test_second_stop_cuts_the_drain_short() -> None:
    with running(lambda: one_listener(drain_timeout_s=3600)) as made:
        made.pump.drains = False
        made.controls.put(Control.STOP)
        made.controls.put(Control.STOP)
        made.ended()
        assert made.lines("drain cut short")


def test_trap_is_loud_and_names_the_journal() -> None:
    with running() as made:
        made.pump.batches.put(CoreTrapError("wasm trap: unreachable", len(JOURNAL)))
        made.ended()
    assert isinstance(made.failure, CoreTrapError)
    line = made.line("the core trapped")
    assert line["level"] == "critical"
    assert "wasm trap: unreachable" in line["trap"]
    assert line["journal_bytes"] == len(JOURNAL)
    assert line["journal_sha256"] == hashlib.sha256(JOURNAL).hexdigest()
    assert line["module_sha256"] == FakeCore.sha256.hex()


def test_events_that_make_no_sense_end_the_broker() -> None:
    with running() as made:
        made.pump.batches.put(event(99, b""))
        made.ended()
    assert isinstance(made.failure, MalformedError)
    assert made.line("the broker cannot go on")["level"] == "critical"


def test_pump_that_ends_by_itself_ends_the_broker() -> None:
    with running() as made:
        made.pump.batches.put(None)
        made.ended()
    assert isinstance(made.failure, UnavailableError)


def test_failure_of_the_pump_is_told_although_a_stop_came_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that fails while the broker is told to stop has an exit code of its own."""
    with running() as made:
        made.line("listening")

        def refuse(blob: bytes) -> None:
            made.pump.batches.put(StorageError("the disk is full"))
            raise UnavailableError("the pump takes nothing more")

        monkeypatch.setattr(made.pump, "command", refuse)
        made.controls.put(Control.STOP)
        made.ended()
    assert isinstance(made.failure, StorageError)


def test_failed_commands_are_logged() -> None:
    with running() as made:
        body = struct.pack("<I", CommandKind.SETTINGS) + string("malformed")
        made.pump.batches.put(event(4, body))
        assert made.line("command failed")["reason"] == "malformed"
        body = struct.pack("<I", CommandKind.AUTH_RESULT) + string("no such ticket")
        made.pump.batches.put(event(4, body))
        assert made.line("login answer not needed")["level"] == "debug"


def test_those_who_never_became_clients_are_not_worth_a_line_each() -> None:
    with running() as made:
        made.pump.batches.put(disconnected(7, "", by=2, flags=0))
        assert made.line("client disconnected")["level"] == "debug"


def test_whoever_the_core_refuses_is_a_line_and_no_second_one() -> None:
    with running() as made:
        made.pump.batches.put(disconnected(7, "device", by=1, flags=0))
        line = made.line("connection refused")
        assert (line["level"], line["client"], line["user"]) == ("info", "device", "alice")
        assert (line["code"], line["reason"]) == ("0x87", "a reason")
        # The answer to a login was a line already, and so was a refused will.
        made.pump.batches.put(disconnected(8, "device", by=1, flags=2))
        assert made.line("client disconnected")["level"] == "debug"


@pytest.mark.parametrize(
    ("action", "cause", "rule", "event_name", "words"),
    [
        (1, 1, 3, "publish refused", "acl[3]"),
        (2, 2, 0, "subscription refused", "no access rule fits"),
        (3, 3, 0, "connection refused for its will", "$SYS is the broker's own"),
        (1, 0, 0, "publish refused", "the code says why"),
        (4, 2, 0, "will refused", "no access rule fits"),
    ],
)
def test_what_is_refused_is_a_line(
    action: int, cause: int, rule: int, event_name: str, words: str
) -> None:
    head = struct.pack("<IBBBxII", 7, action, 0x87, cause, rule, 5)
    with running() as made:
        made.pump.batches.put(
            event(6, head + string("device") + string("alice") + string("secret/x" * 20))
        )
        line = made.line(event_name)
        assert (line["level"], line["client"], line["user"]) == ("info", "device", "alice")
        assert line["topic"].startswith("secret/x")
        assert words in line["rule"]
        assert (line["code"], line["unreported_before"]) == ("0x87", 5)


def test_reload_takes_users_rules_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, new_user("alice", "a"))
    current = [one_listener(password_file=path)]
    with running(lambda: current[0]) as made:
        made.line("listening")
        while not made.pump.commands.empty():
            made.pump.commands.get()
        add_user(path, new_user("bob", "b"))
        current[0] = one_listener(
            password_file=path,
            acl=[{"effect": "allow", "access": "both", "pattern": "a"}],
            limits=Limits(inflight_max=7),
            idle_timeout_s=9,
        )
        made.controls.put(Control.RELOAD)
        line = made.line("reloaded")
        assert (line["users"], line["acl_rules"]) == (2, 1)
        assert struct.pack("<HQ", 8, 7) in made.pump.commands.get(timeout=PATIENCE_S)
        assert made.pump.commands.get(timeout=PATIENCE_S)[0] == CommandKind.RESPONSE_PREFIX
        assert made.pump.commands.get(timeout=PATIENCE_S)[0] == CommandKind.WEB_ORIGINS
        assert made.pump.commands.get(timeout=PATIENCE_S)[0] == CommandKind.WEB_HOSTS
        assert made.pump.commands.get(timeout=PATIENCE_S)[:5] == b"\x02\x01\0\0\0"
        assert made.line("needs a restart")["keys"] == ["idle_timeout_s"]


def test_broken_reload_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, new_user("alice", "a"))
    with running(lambda: one_listener(password_file=path)) as made:
        made.line("listening")
        while not made.pump.commands.empty():
            made.pump.commands.get()
        path.write_text("damaged\n")
        made.controls.put(Control.RELOAD)
        line = made.line("reload refused")
        assert str(path) in line["reason"]
        assert made.pump.commands.empty()
        path.unlink()
        made.controls.put(Control.RELOAD)
        assert "no such file" in made.line("reload refused", 2)["reason"]


def test_ports_are_given_back_when_one_is_occupied() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"mqtt://127.0.0.1:{taken.getsockname()[1]}"
        configuration = Configuration(
            listeners=[Listener(url="mqtt://127.0.0.1:0"), Listener(url=url)]
        )
        made = Running(lambda: configuration)
        with pytest.raises(UnavailableError, match=url):
            made.service.open()
        made.service.close()
    made = Running(lambda: one_listener(metrics=Metrics(port=0)))
    assert made.service.open()
    made.service.close()
    assert made.pump.closed


def test_keys_that_need_a_restart() -> None:
    old = one_listener()
    assert needs_restart(old, one_listener(allow_anonymous=True, limits=Limits())) == []
    other = Configuration(listeners=[Listener(url="mqtt://127.0.0.1:1")], metrics=Metrics(port=0))
    assert needs_restart(old, other) == ["metrics", "listeners"]
    other = one_listener(limits=Limits(persist_sessions=False))
    assert needs_restart(old, other) == ["limits.persist_sessions"]


def test_reused_number_keeps_both_origins_apart() -> None:
    origins = Origins()
    first, second = Origin("192.0.2.1:1", False), Origin("192.0.2.2:2", True)
    assert origins.note(first, lambda: 5) == 5
    origins.note(second, lambda: 5)
    assert origins.of(5) == first
    assert origins.forget(5) is first
    assert origins.of(5) == second
    assert origins.forget(5) is second
    assert origins.forget(5) is UNKNOWN
    assert origins.of(5) is UNKNOWN


def test_lost_end_of_a_connection_gives_nobody_more_rights() -> None:
    origins = Origins()
    origins.note(Origin("192.0.2.1:1", allow_anonymous=True), lambda: 5)
    origins.note(Origin("192.0.2.2:2", allow_anonymous=False), lambda: 5)
    assert origins.of(5).allow_anonymous is False
    for number in range(USES_MAX + 5):
        origins.note(Origin(f"192.0.2.3:{number}", allow_anonymous=True), lambda: 6)
    assert origins.of(6).peer == "192.0.2.3:5"
