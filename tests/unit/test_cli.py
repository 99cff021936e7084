"""The command line without a broker: help, exit codes, sentences, users, secrets."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pytest

import avow
from avow.broker.pump import CoreTrapError
from avow.broker.service import Controls, Failed
from avow.broker.users import password_hasher, read_users
from avow.cli import broker as broker_command
from avow.cli import run
from avow.cli.exit_codes import ExitCode, table
from avow.testing.pki import DAY, Authority

NOW = datetime.now(UTC)

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AVOW_PASSWORD", raising=False)


def say(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_version_and_module(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"avow, version {avow.__version__}\n"
    module = subprocess.run(
        [sys.executable, "-m", "avow", "--version"], capture_output=True, text=True, check=True
    )
    assert module.stdout == f"avow, version {avow.__version__}\n"


def test_a_group_without_a_command_shows_its_help(capsys: Captured) -> None:
    assert run(["store"]) == ExitCode.USAGE
    text = capsys.readouterr().err
    assert text.startswith("Usage: avow store")
    assert "; see `" not in text


def test_help_lists_every_command_and_exit_code(capsys: Captured) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("broker", "user", "measure", "pub", "sub"):
        assert word in text
    for code in ExitCode:
        assert str(code.value) in text
        assert code.meaning.split(":")[0] in text
        assert code.meaning in table()


@pytest.mark.parametrize(
    "command",
    [
        ["broker"],
        ["user"],
        ["user", "add"],
        ["user", "remove"],
        ["user", "list"],
        ["measure"],
        ["measure", "broker"],
        ["pub"],
        ["sub"],
    ],
    ids=" ".join,
)
def test_each_command_has_help(command: list[str], capsys: Captured) -> None:
    assert run([*command, "--help"]) == 0
    assert "Usage: avow " + " ".join(command) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["brokr"], ["no such command 'brokr'", "avow --help"]),
        (["broker", "--lisen", "x"], ["no such option", "avow broker --help"]),
        (["broker", "--listen", "tcp://x"], ["scheme 'tcp'"]),
        (["broker", "--listen", "mqtt://0.0.0.0:0"], ["--allow-anonymous"]),
        (["broker", "--listen", "mqtts://127.0.0.1:0"], ["'cert'", "--cert"]),
        (["broker", "--config", "none.toml"], ["none.toml", "no such file"]),
        (["broker", "--password-file", "none"], ["none", "no such file"]),
        (["pub", "-t", "a"], ["exactly one of --message", "got 0"]),
        (["pub", "-t", "a", "-m", "x", "-n"], ["exactly one of --message", "got 2"]),
        (["pub", "-m", "x"], ["missing option '-t'"]),
        (["pub", "-t", "a/#", "-m", "x"], ["without wildcards"]),
        (["pub", "-t", "a", "-f", "none"], ["none", "no such file"]),
        (["pub", "-t", "a", "-m", "x", "-q", "3"], ["--qos"]),
        (["pub", "-t", "a", "-m", "x", "-D", "colour=red"], ["colour=red"]),
        (
            ["pub", "-t", "a", "-m", "x", "-V", "311", "-D", "content-type=x"],
            ["expected MQTT 5 for --property"],
        ),
        (["pub", "-t", "a", "-m", "x", "--cafile", "ca.pem"], ["mqtts:// or wss://"]),
        (["pub", "-t", "a", "-m", "x", "--will-qos", "1"], ["--will-topic"]),
        (["pub", "-t", "a", "-l", "--password-stdin"], ["one use of standard input"]),
        (["pub", "-t", "a", "-m", "x", "mqtt://a:b@host"], ["AVOW_PASSWORD"]),
        (["pub", "-t", "a", "-m", "x", "mqtts://h", "--cafile", "none"], ["none"]),
        (["pub", "-t", "a", "-m", "x", "mqtts://h", "--key", "none"], ["--cert"]),
        (["sub"], ["missing option '-t'"]),
        (["sub", "-t", "a", "-F", "%z"], ["%z"]),
        (["sub", "-t", "a", "-v", "--json"], ["choose one"]),
        (["sub", "-t", "a", "-R", "--retained-only"], ["got both; choose one"]),
        (["sub", "-t", "a", "-c"], ["--id"]),
        (["sub", "-t", "a", "-V", "311", "--no-local"], ["MQTT 5"]),
        (["sub", "-t", "a", "-V", "311", "-x", "5"], ["MQTT 5"]),
        (["user", "add", "a:b", "--password-stdin"], ["user name"]),
        (["user", "list"], ["avow.users", "no such file"]),
        (["user", "list", "--config", "none.toml"], ["none.toml"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_wrong_usage_is_one_sentence_and_2(
    arguments: list[str], words: list[str], capsys: Captured
) -> None:
    assert run(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("avow: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_nobody_there_is_1(capsys: Captured) -> None:
    assert run(["pub", "-t", "a", "-m", "x", "mqtt://127.0.0.1:1"]) == ExitCode.FAILED
    assert "refused connection" in capsys.readouterr().err
    assert run(["sub", "-t", "a", "mqtt://127.0.0.1:1"]) == ExitCode.FAILED
    assert "avow broker" in capsys.readouterr().err


def test_check_reports_and_opens_nothing(tmp_path: Path, capsys: Captured) -> None:
    authority = Authority()
    authority.issue_server().write(tmp_path, "server")
    (tmp_path / "avow.toml").write_text(
        """
        password_file = "users"
        [[listeners]]
        url = "mqtts://0.0.0.0:8883"
        cert = "server.pem"
        key = "server.key"
        [[acl]]
        effect = "allow"
        access = "both"
        pattern = "#"
        """
    )
    (tmp_path / "users").touch(mode=0o600)
    assert run(["broker", "--config", "avow.toml", "--check"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "listener mqtts://0.0.0.0:8883: users" in text
    assert "warning: " in text
    assert "access rules: 1" in text
    # 1 GiB, the process with two passwords at a time, and 129 KiB for each connection.
    assert "memory: at most 1,347 MiB with 1,000 connections: 1,024 for the core" in text
    assert text.endswith("configuration is valid\n")


def test_expired_certificate_and_unreadable_key(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    authority.issue_server(valid_until=NOW - DAY / 2).write(tmp_path, "old")
    authority.issue_server().write(tmp_path, "server")
    start = ["broker", "--check", "--listen", "mqtts://127.0.0.1:0"]
    assert run([*start, "--cert", "old.pem", "--key", "old.key"]) == ExitCode.USAGE
    assert "old.pem that expired at" in capsys.readouterr().err
    assert run([*start, "--cert", "server.pem", "--key", "old.key"]) == ExitCode.USAGE
    assert "got another key" in capsys.readouterr().err
    opened = Path.open

    def refuse(path: Path, mode: str = "r") -> IO[Any]:
        if path.name == "server.key":
            raise PermissionError(13, "Permission denied")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    assert run([*start, "--cert", "server.pem", "--key", "server.key"]) == ExitCode.USAGE
    assert "no permission to read" in capsys.readouterr().err


def test_users_are_added_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for name, password in (("bob", "b"), ("alice", "first"), ("alice", "second")):
        say(monkeypatch, f"{password}\n")
        assert run(["user", "add", name, "--password-stdin"]) == ExitCode.OK
    assert "changed the password of alice" in capsys.readouterr().out
    users = read_users(tmp_path / "avow.users")
    assert password_hasher().verify(users["alice"].password_hash, "second")
    assert run(["user", "list"]) == ExitCode.OK
    assert capsys.readouterr().out == "alice\nbob\n"
    assert run(["user", "remove", "bob"]) == ExitCode.OK
    assert run(["user", "remove", "bob"]) == ExitCode.FAILED
    assert "no such user" in capsys.readouterr().err


def test_users_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "avow.toml").write_text('password_file = "people"\n')
    say(monkeypatch, "x\n")
    added = ["user", "add", "alice", "--config", "etc/avow.toml", "--password-stdin"]
    assert run(added) == ExitCode.OK
    assert list(read_users(tmp_path / "etc" / "people")) == ["alice"]
    (tmp_path / "etc" / "avow.toml").write_text("")
    assert run(["user", "list", "--config", "etc/avow.toml"]) == ExitCode.USAGE
    assert "password_file" in capsys.readouterr().err


def test_without_a_terminal_the_password_has_to_be_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    say(monkeypatch, "secret\n")
    assert run(["user", "add", "alice"]) == ExitCode.USAGE
    assert "--password-stdin" in capsys.readouterr().err
    say(monkeypatch, "")
    assert run(["user", "add", "alice", "--password-stdin"]) == ExitCode.USAGE
    assert "got nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        ("secret\nsecret\n", 0, "added alice"),
        ("secret\nsecrets\n", 1, "two different ones"),
    ],
)
def test_terminal_is_asked_twice_and_shows_nothing(
    typed: str, code: int, words: str, tmp_path: Path
) -> None:
    """A real terminal: what is typed must not come back."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "avow", "user", "add", "alice"])
    shown = b""
    lines = iter(typed.encode().splitlines(keepends=True))
    for prompt in (b"Password for alice: ", b"Again: "):
        while prompt not in shown:
            shown += os.read(terminal, 1024)
        os.write(terminal, next(lines))
    while True:
        try:
            piece = os.read(terminal, 1024)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == code
    assert words in shown.decode()
    assert b"secret" not in shown


class FailingService:
    """A service whose core traps at once."""

    def __init__(self, prepared: object, core: object, **_: object) -> None:
        pass

    def open(self) -> list[str]:
        return []

    def serve(self) -> None:
        raise CoreTrapError("wasm trap: unreachable", 17)


def test_trap_is_70(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(broker_command, "Service", FailingService)
    assert run(["broker", "--listen", "mqtt://127.0.0.1:0"]) == ExitCode.INTERNAL
    words = capsys.readouterr().err
    assert "avow: expected the core to run without a trap" in words
    assert "Traceback" not in words


class DyingService(FailingService):
    """A service one of whose threads dies of a bug."""

    def __init__(self, prepared: object, core: object, *, controls: Controls, **_: object) -> None:
        self._controls = controls

    def serve(self) -> None:
        thread = threading.Thread(target=[].pop, name="events")
        thread.start()
        failed = self._controls.get(timeout=20)
        assert isinstance(failed, Failed)
        raise failed.error


def test_thread_that_dies_ends_the_broker(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(broker_command, "Service", DyingService)
    assert run(["broker", "--listen", "mqtt://127.0.0.1:0"]) == ExitCode.INTERNAL
    words = capsys.readouterr().err
    assert '"event": "thread died"' in words
    assert "pop from empty list" in words
    assert "'events'" in words.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--store s", "expected --store-key SOURCE with --store"),
        ("--store-key file:k", "expected --store DIR with --store-key"),
        ("--new-store", "expected --store DIR with --new-store"),
        ("--accept-rollback 4", "expected --store DIR with --accept-rollback"),
        (
            "--store= --store-key file:k",
            "got an empty name; check whether a shell variable is unset",
        ),
    ],
)
def test_options_of_a_store_name_the_one_that_is_missing(
    options: str, said: str, capsys: Captured
) -> None:
    assert run(["broker", "--check", *options.split()]) == ExitCode.USAGE
    assert said in capsys.readouterr().err
