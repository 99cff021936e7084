"""`avow broker --check`: everything that is wrong at once, and nothing changed."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from avow.cli import run
from avow.cli.exit_codes import ExitCode
from avow.testing.pki import Authority

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(*options: str) -> ExitCode:
    return ExitCode(run(["broker", "--check", *options]))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path, capsys: Captured) -> None:
    authority = Authority()
    authority.issue_server().write(tmp_path, "one")
    authority.issue_server().write(tmp_path, "two")
    (tmp_path / "list").write_text("no list")
    authority.write(tmp_path / "ca.pem")
    (tmp_path / "users").write_text("no user\n")
    (tmp_path / "keys").write_text("no key\n")
    (tmp_path / "policy.toml").write_text("no policy")
    (tmp_path / "a file").touch()
    (tmp_path / "avow.toml").write_text(
        """
        password_file = "users"
        [[listeners]]
        url = "mqtts://127.0.0.1:0"
        cert = "one.pem"
        key = "two.key"
        client_ca = "ca.pem"
        crl = "list"
        psk_file = "keys"
        client_policy = "policy.toml"
        [[listeners]]
        url = "mqtts://192.0.2.77:0"
        cert = "absent.pem"
        key = "absent.key"
        [attestation]
        tee = "nonsense"
        [store]
        directory = "a file/store"
        key = "file:absent/owner.key"
        anchor = "tpm:0x01800042"
        """
    )
    before = files(tmp_path)
    assert check("--config", "avow.toml") == ExitCode.USAGE
    said = capsys.readouterr()
    for words in (
        "users",
        "got another key",
        str(tmp_path / "list"),
        "keys",
        "policy.toml",
        "absent.pem",
        "nonsense",
        "--new-store",
        "expected a folder at",
        "address of this machine",
    ):
        assert any(words in line for line in said.err.splitlines()), (words, said.err)
    assert len(said.err.splitlines()) == len(set(said.err.splitlines())) >= 10
    assert f"problems: {len(said.err.splitlines())}\n" in said.out
    assert "valid" not in said.out
    assert files(tmp_path) == before


def test_all_wrong_keys_of_a_file_are_said(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "avow.toml").write_text("keep_alive = 5\nidle_timeout_s = -1\n[limits]\nx = 1\n")
    assert check("--config", "avow.toml") == ExitCode.USAGE
    said = capsys.readouterr().err
    assert [("`keep_alive`" in said), ("idle_timeout_s" in said), ("`limits.x`" in said)] == [
        True,
        True,
        True,
    ]


def test_a_port_that_is_taken_is_a_warning_for_a_reload(capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert check("--listen", f"mqtt://127.0.0.1:{port}") == ExitCode.OK
        assert (
            "warning: the broker would not start now: expected a free port for the listener "
            in (capsys.readouterr().out)
        )
    free = f"mqtt://127.0.0.1:{port}"
    assert check("--listen", free, "--listen", free) == ExitCode.USAGE
    assert "expected a free port" in capsys.readouterr().err


STORE = ("--listen", "mqtt://127.0.0.1:0", "--store", "store", "--store-key", "file:owner.key")


def test_the_key_has_to_open_the_store(tmp_path: Path, capsys: Captured) -> None:
    # Neither is there yet: a start makes both, a check makes nothing.
    assert check(*STORE) == ExitCode.OK
    assert files(tmp_path) == {}
    assert run(["store", "init", "store", "--new-key", "file:owner.key"]) == ExitCode.OK
    capsys.readouterr()
    before = files(tmp_path)
    assert check(*STORE) == ExitCode.OK
    assert files(tmp_path) == before
    (tmp_path / "owner.key").write_text(secrets.token_hex(32) + "\n")
    (tmp_path / "owner.key").chmod(0o600)
    assert check(*STORE) == ExitCode.USAGE
    assert "key" in capsys.readouterr().err
    (tmp_path / "owner.key").unlink()
    assert check(*STORE) == ExitCode.USAGE
    assert "owner.key" in capsys.readouterr().err


def test_the_folder_has_to_be_writable(capsys: Captured) -> None:
    # Root, who may run the tests, has every permission, but nobody makes a folder here.
    assert check(*STORE[:2], "--store", "/proc/none/store", *STORE[4:]) == ExitCode.USAGE
    assert "expected to write in the folder /proc, got " in capsys.readouterr().err


def test_each_file_that_is_missing_is_named(capsys: Captured) -> None:
    tls = ("--listen", "mqtts://127.0.0.1:0", "--cert", "no.crt", "--key", "no.key")
    store = ("--store", "/proc/none/store", "--store-key", "file:/proc/none/owner.key")
    assert check(*tls, "--client-ca", "no-ca.crt", *store) == ExitCode.USAGE
    said = capsys.readouterr().err
    for name in ("no.crt", "no.key", "no-ca.crt", "expected to write in the folder /proc, got "):
        assert name in said


@pytest.mark.parametrize("command", ["broker", "run"])
def test_a_store_without_its_key_is_told_the_two_lines_that_make_one(
    command: str, tmp_path: Path, capsys: Captured
) -> None:
    # Paths of the broker are absolute, for a unit file has another working directory.
    folder = f"'{tmp_path / 'my store'}'" if command == "broker" else "'my store'"
    options = ["broker", "--check"] if command == "broker" else ["run", "program.wasm"]
    assert run([*options, "--store", "my store"]) == ExitCode.USAGE
    first, second = (line.split("avow ", 1)[1] for line in capsys.readouterr().err.splitlines()[1:])
    assert first == f"store init {folder} --new-key file:owner.key"
    assert run(["store", "init", "my store", "--new-key", "file:owner.key"]) == ExitCode.OK
    if command == "broker":
        assert second == f"broker --store {folder} --store-key file:owner.key"
        made = ("--store", "my store", "--store-key", "file:owner.key")
        assert check("--listen", "mqtt://127.0.0.1:0", *made) == ExitCode.OK
    else:
        assert second == f"run --store {folder} --key file:owner.key PROGRAM"


def test_a_store_that_is_not_there_is_told_apart(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "owner.key").write_text(secrets.token_hex(32) + "\n")
    (tmp_path / "owner.key").chmod(0o600)
    (tmp_path / "empty").mkdir()
    for folder, cause in (("absent", "no such folder"), ("empty", "store.avow")):
        assert run(["store", "ls", folder, "--key", "file:owner.key"]) != ExitCode.OK
        said = capsys.readouterr().err
        assert "expected a sealed store in " in said
        assert cause in said
        assert "avow store init" in said
