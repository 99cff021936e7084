"""Owner keys: from a file, and bound to what runs."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import DeniedError, MalformedError, UnavailableError
from avow.sealing import keys
from avow.sealing.keys import KeyBinding, bind_key, parse_key_text, read_key_file, write_key_file

BINDING = KeyBinding(b"\x01" * 32, b"\x02" * 32, b"\x03" * 32)
KEY = bytes(range(32))
SPECIFICATION = Path(__file__).resolve().parents[3] / "docs/spec/freshness.md"


def test_binding_as_the_document_says() -> None:
    """The document's vectors were made once; whoever changes the derivation loses every store."""
    text = SPECIFICATION.read_text()
    vectors = re.findall(r"^\| `([0-9a-f]{32,64})` \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    assert len(vectors) == 2
    for secret, key in vectors:
        assert bind_key(bytes.fromhex(secret), BINDING).hex() == key


@pytest.mark.parametrize("part", ["module", "configuration", "runtime"])
def test_every_digest_matters(part: str) -> None:
    other = replace(BINDING, **{part: b"\x09" * 32})
    assert bind_key(KEY, other) != bind_key(KEY, BINDING)


def test_no_two_bindings_share_an_encoding() -> None:
    with pytest.raises(MalformedError, match="32 bytes"):
        KeyBinding(b"\x01" * 31, b"\x02" * 33, b"\x03" * 32)
    with pytest.raises(MalformedError, match="32 bytes"):
        replace(BINDING, runtime=b"")


@pytest.mark.parametrize("secret", [b"", b"\x01" * 15, bytes(16), bytes(32)])
def test_secrets_that_are_none(secret: bytes) -> None:
    with pytest.raises(MalformedError, match="16 bytes or more, not all zero"):
        bind_key(secret, BINDING)


def test_key_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    write_key_file(path, KEY)
    assert path.read_bytes() == KEY.hex().encode() + b"\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path) == KEY
    assert [each.name for each in tmp_path.iterdir()] == ["owner.key"]


def test_a_draft_that_a_crash_has_left_is_not_in_the_way(tmp_path: Path) -> None:
    """In a container the process after a crash has the same number."""
    (tmp_path / f".owner.key.{os.getpid()}.new").touch()
    write_key_file(tmp_path / "owner.key", KEY)
    assert read_key_file(tmp_path / "owner.key") == KEY


def test_key_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    write_key_file(path, KEY)
    with pytest.raises(UnavailableError, match="never replaced"):
        write_key_file(path, b"\x07" * 32)
    assert read_key_file(path) == KEY
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o660])
def test_key_file_that_others_may_use(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "owner.key"
    write_key_file(path, KEY)
    path.chmod(mode)
    with pytest.raises(DeniedError, match=f"mode {mode:04o}; `chmod 600") as caught:
        read_key_file(path)
    assert KEY.hex() not in str(caught.value)


def test_key_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "owner.key"
    write_key_file(path, KEY)
    owner = path.stat().st_uid
    if owner == 0:
        os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(DeniedError, match="belong to this user or to root"):
        read_key_file(path)


def test_key_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        read_key_file(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UnavailableError, match="regular file"):
        read_key_file(tmp_path / "pipe")
    with pytest.raises(UnavailableError, match="regular file"):
        read_key_file(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        KEY.hex().encode(),
        KEY.hex().encode() + b"\r\n",
        KEY.hex().encode() + b"\n\n",
        b" " + KEY.hex().encode() + b"\n",
        KEY.hex().encode()[:-1] + b"\n",
        KEY.hex(" ").encode()[:64] + b"\n",
        KEY + KEY + b"\n",
        b"0" * 64 + b"\n",
    ],
)
def test_key_text_that_is_none(content: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_key_text(content, "owner.key")
    assert "owner.key" in str(caught.value)
    assert KEY.hex()[:16] not in str(caught.value)


@given(st.binary(max_size=80))
def test_key_text_is_exact(content: bytes) -> None:
    try:
        key = parse_key_text(content, "owner.key")
    except MalformedError:
        return
    assert keys.key_text(key) == content.lower()
