"""Compiled code: from the sealed store under its own name, whole, or not at all."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from wasmtime import Module, wat2wasm

from avow.errors import DamagedError, ModuleError
from avow.sandbox import compiled_cache, engine_settings
from avow.sandbox.compiled_cache import ENTRIES_MAX, CompiledCache, key_of
from avow.sandbox.engine_settings import program_settings
from avow.sandbox.limits import Limits
from avow.sandbox.program import load

CODE = wat2wasm('(module (func (export "_start")))')
OTHER = wat2wasm('(module (func (export "_start") unreachable))')


@dataclass
class Entry:
    name: str
    stat: Any


class Files:
    """A store's files in a dictionary, with the time of their writing."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.written: dict[str, int] = {}
        self.damaged: set[str] = set()
        self.clock = 0

    def exists(self, path: str) -> bool:
        return path in self.content

    def read(self, path: str) -> bytes:
        if path in self.damaged:
            raise DamagedError(f"{path}: block 0")
        return self.content[path]

    def write(self, path: str, data: bytes) -> None:
        assert path in self.content
        self.clock += 1
        self.content[path], self.written[path] = data, self.clock

    def make_file(self, path: str) -> None:
        assert path not in self.content
        self.content[path] = b""

    def remove(self, path: str) -> None:
        del self.content[path]
        self.written.pop(path, None)
        self.damaged.discard(path)

    def rename(self, source: str, target: str) -> None:
        self.content[target] = self.content.pop(source)
        self.written[target] = self.written.pop(source)

    def listdir(self, path: str) -> list[Entry]:
        return [
            Entry(
                name.removeprefix(path + "/"),
                SimpleNamespace(modified_ns=self.written[name], size_bytes=len(content)),
            )
            for name, content in self.content.items()
        ]


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def revived(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All bytes that wasmtime was given as compiled code."""
    seen: list[bytes] = []
    deserialize = Module.deserialize

    def spy(engine: Any, encoded: bytes) -> Module:
        seen.append(bytes(encoded))
        return deserialize(engine, encoded)

    monkeypatch.setattr(Module, "deserialize", spy)
    return seen


def cache_of(files: Files, notes: list[str] | None = None) -> CompiledCache:
    return CompiledCache(files, (notes if notes is not None else []).append)


def test_compiled_once(files: Files, revived: list[bytes]) -> None:
    first = load(CODE, cache=cache_of(files))
    assert not first.from_cache
    assert not revived
    (name,) = files.content
    assert name.startswith("/cache/")
    second = load(CODE, cache=cache_of(files))
    assert second.from_cache
    assert second.sha256 == first.sha256 == hashlib.sha256(CODE).digest()
    assert files.content[name].endswith(revived[0])


def test_other_bytes_or_settings_are_other_entries(files: Files, revived: list[bytes]) -> None:
    load(CODE, cache=cache_of(files))
    assert not load(OTHER, cache=cache_of(files)).from_cache
    assert not load(CODE, limits=Limits(fuel=1), cache=cache_of(files)).from_cache
    assert len(files.content) == 3
    assert not revived


def test_another_version_or_processor_is_another_entry(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(CODE, cache=cache_of(files))
    monkeypatch.setattr(engine_settings, "_processor_features", lambda: "fpu")
    assert not load(CODE, cache=cache_of(files)).from_cache
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "49.0.0")
    assert not load(CODE, cache=cache_of(files)).from_cache
    assert len(files.content) == 3


def other_code(files: Files) -> None:
    """What an entry would be that somebody renamed: whole and sealed, and of another module."""
    (name,) = files.content
    load(OTHER, cache=cache_of(files))
    (other,) = set(files.content) - {name}
    files.content[name] = files.content[other]


def flipped_key(files: Files) -> None:
    (name,) = files.content
    content = bytearray(files.content[name])
    content[8] ^= 1
    files.content[name] = bytes(content)


def cut(files: Files) -> None:
    (name,) = files.content
    files.content[name] = files.content[name][:-1]


def longer(files: Files) -> None:
    (name,) = files.content
    files.content[name] += b"\0"


def only_a_head(files: Files) -> None:
    (name,) = files.content
    files.content[name] = files.content[name][:20]


def bare_code(files: Files) -> None:
    """What wasmtime wrote, as it is."""
    (name,) = files.content
    files.content[name] = files.content[name][48:]


def damaged(files: Files) -> None:
    files.damaged |= set(files.content)


@pytest.mark.parametrize(
    "change", [other_code, flipped_key, cut, longer, only_a_head, bare_code, damaged]
)
def test_a_wrong_entry_is_never_revived(files: Files, revived: list[bytes], change: Any) -> None:
    load(CODE, cache=cache_of(files))
    (name,) = files.content
    good = files.content[name]
    change(files)
    notes: list[str] = []
    assert not load(CODE, cache=cache_of(files, notes)).from_cache
    assert not revived
    assert bool(notes) == (change is damaged)
    assert files.content[name] == good
    assert load(CODE, cache=cache_of(files)).from_cache


def test_code_that_wasmtime_refuses_is_made_anew(files: Files, revived: list[bytes]) -> None:
    """The header is right, but the code is of another wasmtime: it says so, and compiles."""
    load(CODE, cache=cache_of(files))
    (name,) = files.content
    entry = bytearray(files.content[name])
    entry[48:52] = b"\0\0\0\0"
    files.content[name] = bytes(entry)
    assert not load(CODE, cache=cache_of(files)).from_cache
    assert len(revived) == 1
    assert load(CODE, cache=cache_of(files)).from_cache


def test_the_oldest_go(files: Files) -> None:
    cache = cache_of(files)
    keys = [bytes([n]) * 32 for n in range(ENTRIES_MAX + 3)]
    for key in keys:
        cache.keep(key, b"code")
    assert [cache.find(key) for key in keys] == [None] * 3 + [b"code"] * ENTRIES_MAX


def test_large_ones_go_too(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "BYTES_MAX", 1000)
    cache = cache_of(files)
    small, half, other, large = (bytes([n]) * 32 for n in range(4))
    for key, size in ((small, 10), (half, 500), (other, 300)):
        cache.keep(key, bytes(size))
    assert [cache.find(key) is None for key in (small, half, other)] == [False] * 3
    cache.keep(small, bytes(200))
    assert [cache.find(key) is None for key in (small, half, other)] == [False, True, False]
    cache.keep(large, bytes(2000))
    assert list(files.content) == [f"/cache/{large.hex()}"]


def test_what_was_left_unfinished_does_no_harm(files: Files) -> None:
    files.make_file("/cache/unfinished")
    files.write("/cache/unfinished", b"half")
    load(CODE, cache=cache_of(files))
    assert "/cache/unfinished" not in files.content


def test_compiled_code_is_no_program(files: Files, revived: list[bytes]) -> None:
    load(CODE, cache=cache_of(files))
    (entry,) = files.content.values()
    for content in (entry[48:], entry):
        with pytest.raises(ModuleError, match="expected a WebAssembly module or component"):
            load(content, cache=cache_of(files))
    assert not revived


def test_a_key_is_of_all_that_matters() -> None:
    settings = program_settings(Limits(), component=False)
    keys = {
        key_of(bytes(32), settings, "module"),
        key_of(bytes(31) + b"\1", settings, "module"),
        key_of(bytes(32), settings, "component"),
        key_of(bytes(32), program_settings(Limits(), component=True), "module"),
    }
    assert len(keys) == 4
