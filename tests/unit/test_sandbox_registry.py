"""Packages of registries are exactly the pinned ones, or nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import tarfile
from pathlib import Path

import pytest

from avow.errors import MalformedError, UnavailableError
from examples.sandbox import programs
from examples.sandbox.registry import Package, fetch, member


def package(source: Path, pinned: bytes) -> Package:
    integrity = base64.b64encode(hashlib.sha512(pinned).digest()).decode()
    return Package("thing", "1", source.as_uri(), integrity)


def test_what_is_pinned_is_fetched_once_and_kept(tmp_path: Path) -> None:
    source = tmp_path / "thing-1.tgz"
    source.write_bytes(b"pinned")
    wanted = package(source, b"pinned")
    assert fetch(wanted, tmp_path / "kept") == b"pinned"
    source.unlink()
    assert fetch(wanted, tmp_path / "kept") == b"pinned"


def test_other_bytes_are_refused_and_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "thing-1.tgz"
    source.write_bytes(b"other")
    with pytest.raises(MalformedError, match="should have the SHA-512"):
        fetch(package(source, b"pinned"), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_a_kept_file_that_changed_is_not_used(tmp_path: Path) -> None:
    source = tmp_path / "thing-1.tgz"
    source.write_bytes(b"pinned")
    wanted = package(source, b"pinned")
    fetch(wanted, tmp_path / "kept")
    (tmp_path / "kept" / "thing-1.tgz").write_bytes(b"changed")
    assert fetch(wanted, tmp_path / "kept") == b"pinned"


def test_a_registry_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="thing 1 is wanted"):
        fetch(package(tmp_path / "nothing", b"pinned"), tmp_path / "kept")


def test_a_file_of_an_archive() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as files:
        entry = tarfile.TarInfo("a/b.c")
        entry.size = 3
        files.addfile(entry, io.BytesIO(b"int"))
    assert member(buffer.getvalue(), "a/b.c") == b"int"
    with pytest.raises(MalformedError, match=r"hold the file a/c\.c"):
        member(buffer.getvalue(), "a/c.c")


def test_a_compiler_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="`pip install ziglang`"):
        programs.zig(["version"])
