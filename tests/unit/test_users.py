"""The users' file: made, changed, read back, and refused when damaged."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from argon2.exceptions import VerifyMismatchError

from avow.broker.users import (
    add_user,
    check_name,
    new_user,
    password_hasher,
    read_users,
    remove_user,
)
from avow.errors import MalformedError, UnavailableError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "avow.users"


def test_added_user_is_read_back(path: Path) -> None:
    assert add_user(path, new_user("alice", "correct horse")) is True
    user = read_users(path)["alice"]
    assert password_hasher().verify(user.password_hash, "correct horse")
    with pytest.raises(VerifyMismatchError):
        password_hasher().verify(user.password_hash, "wrong")
    assert user.scram.iterations >= 4096
    assert "correct horse" not in path.read_text()
    assert "$argon2id$" in path.read_text()


def test_repr_of_a_user_shows_no_hash() -> None:
    user = new_user("alice", "correct horse")
    assert "argon2" not in repr(user)
    assert user.scram.stored_key.hex() not in repr(user)
    assert repr(user.scram.stored_key) not in repr(user)


def test_file_is_for_its_owner_only_and_replaced_whole(path: Path) -> None:
    add_user(path, new_user("alice", "a"))
    before = path.stat()
    assert stat.S_IMODE(before.st_mode) == 0o600
    path.chmod(0o644)
    add_user(path, new_user("bob", "b"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino != before.st_ino
    assert os.listdir(path.parent) == [path.name]


def test_second_add_changes_the_password(path: Path) -> None:
    add_user(path, new_user("alice", "old"))
    add_user(path, new_user("bob", "b"))
    assert add_user(path, new_user("alice", "new")) is False
    users = read_users(path)
    assert list(users) == ["alice", "bob"]
    assert password_hasher().verify(users["alice"].password_hash, "new")


def test_remove(path: Path) -> None:
    add_user(path, new_user("alice", "a"))
    assert remove_user(path, "bob") is False
    assert remove_user(path, "alice") is True
    assert read_users(path) == {}


def test_link_to_the_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    add_user(path, new_user("alice", "a"))
    link = tmp_path / "link"
    link.symlink_to(path)
    add_user(link, new_user("bob", "b"))
    assert link.is_symlink()
    assert set(read_users(path)) == {"alice", "bob"}


def test_two_at_once_lose_nobody(path: Path) -> None:
    users = [new_user(f"user{number}", "x") for number in range(8)]
    threads = [threading.Thread(target=add_user, args=(path, user)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_users(path)) == {user.name for user in users}


@pytest.mark.parametrize(
    "name", ["", "a:b", "a/b", "a+b", "#", " a", "a\n", "a\0", "ﬁ", "x" * 1025]
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(MalformedError, match="user name"):
        check_name(name)


@pytest.mark.parametrize("name", ["alice", "Jürgen", "a b", "sensor-1@plant", "日本"])
def test_names_that_can_be(path: Path, name: str) -> None:
    add_user(path, new_user(name, "x"))
    assert list(read_users(path)) == [name]


@pytest.mark.parametrize("password", ["", "a\0b", "x" * 65_536])
def test_passwords_that_cannot_be(password: str) -> None:
    with pytest.raises(MalformedError, match="password"):
        new_user("alice", password)


def test_damaged_lines_are_named(path: Path) -> None:
    add_user(path, new_user("alice", "a"))
    good = path.read_text().rstrip("\n")
    name, password_hash, verifier = good.split(":", 2)
    damaged = [
        "alice",
        f"alice:{password_hash}",
        f"alice:plaintext:{verifier}",
        f"alice:{password_hash.replace('argon2id', 'argon2i')}:{verifier}",
        f"alice:{password_hash}:{verifier.replace('SHA-256', 'SHA-1')}",
        f"alice:{password_hash}:{verifier[:-4]}",
        f"alice:{password_hash}:{verifier.replace('60000', '1')}",
        f"alice:{password_hash}:{verifier.replace('60000', '-60000')}",
        f"al/ce:{password_hash}:{verifier}",
        f"{good}\n{good}",
    ]
    for text in damaged:
        path.write_text(f"\n{text}\n")
        with pytest.raises(MalformedError) as caught:
            read_users(path)
        assert password_hash not in str(caught.value)
    path.write_text(f"\n{name}:{password_hash}:{verifier}\n\n")
    assert list(read_users(path)) == ["alice"]


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no such file"):
        read_users(tmp_path / "none")
    with pytest.raises(UnavailableError, match="expected a folder"):
        add_user(tmp_path / "none" / "users", new_user("alice", "a"))


def test_file_that_cannot_be_replaced_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_user(path, new_user("alice", "a"))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="No space left"):
        add_user(path, new_user("bob", "b"))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
