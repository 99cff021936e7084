"""Preview 2 over the sealed store: what components are told about files, streams and clocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from wasmtime.component import Record, ResourceHost, Variant

from avow.errors import ImportsError, LimitError, TrapError
from avow.sandbox import preview2
from avow.sandbox.component_functions import Failed
from avow.sandbox.grants import parse_grants
from avow.sandbox.preview2 import READ_BYTES_MAX, Preview2
from avow.sandbox.program import Surroundings
from avow.sandbox.wasi import Wasi
from avow.sandbox.wasi_calls import WasiCalls
from avow.sealing.store import Store

KEY = bytes(range(32))
FOLLOW = {"symlink-follow"}
BOTH = {"read", "write"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", [KEY]) as made:
        made.make_directory("/files/data")
        made.make_directory("/files/fixed")
        made.make_file("/files/fixed/f")
        yield made


class Program:
    """Calls the functions as a component would."""

    def __init__(self, store: Store, *grants: str, folder: Path = Path("/")) -> None:
        granted = parse_grants(["sealed:/data", "sealed:/fixed:ro", *grants], folder=folder)
        self.begin(Wasi.of(Surroundings(("app",), granted, store=store)), granted.clocks)

    @classmethod
    def with_streams(cls, *stdio: int) -> Self:
        """Without folders, but with these descriptors as 0, 1 and 2."""
        made = cls.__new__(cls)
        first, second, third = stdio
        made.begin(Wasi(arguments=(), entropy=bytes(32), stdio=(first, second, third)), frozenset())
        return made

    def begin(self, wasi: Wasi, clocks: frozenset[str]) -> None:
        self.wasi = wasi
        self.preview2 = Preview2(WasiCalls(self.wasi), clocks)
        self.functions = self.preview2.functions()
        listed = self.call("wasi:filesystem/preopens", "get-directories")
        self.directories = {name: handle.rep for handle, name in listed}
        self.data = self.directories.get("/data", 0)

    def call(self, interface: str, name: str, *arguments: Any) -> Any:
        return self.functions[interface][name](*arguments)

    def file(self, name: str, *arguments: Any) -> Any:
        return self.call("wasi:filesystem/types", f"[method]descriptor.{name}", *arguments)

    def stream(self, name: str, *arguments: Any) -> Any:
        return self.call("wasi:io/streams", f"[method]{name}", *arguments)

    def opened(self, path: str, opening: set[str], flags: set[str], at: str = "/data") -> int:
        handle = self.file("open-at", self.directories[at], FOLLOW, path, opening, flags)
        assert isinstance(handle, ResourceHost), handle
        return int(handle.rep)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    readable, writable = os.pipe()
    yield readable, writable
    os.close(readable)


@pytest.fixture
def program(store: Store) -> Iterator[Program]:
    made = Program(store)
    yield made
    made.wasi.close()


def test_writing_and_reading(program: Program, store: Store) -> None:
    fd = program.opened("a", {"create"}, BOTH)
    out = program.file("write-via-stream", fd, 2).rep
    assert program.stream("output-stream.check-write", out) >= 4096
    assert program.stream("output-stream.write", out, b"hello ") is None
    assert program.stream("output-stream.blocking-write-and-flush", out, b"you") is None
    assert program.file("write", fd, b"!", 0) == 1
    more = program.file("append-via-stream", fd).rep
    assert program.stream("output-stream.write", more, b"++") is None
    assert store.read("/files/data/a") == b"!\0hello you++"
    into = program.file("read-via-stream", fd, 1).rep
    assert program.stream("input-stream.read", into, 6) == b"\0hello"
    assert program.stream("input-stream.skip", into, 1) == 1
    assert program.stream("input-stream.blocking-read", into, 1 << 40) == b"you++"
    assert program.stream("input-stream.read", into, 1) == Failed(None)
    assert program.file("read", fd, 100, 11) == (b"++", False)
    assert program.file("read", fd, 100, 13) == (b"", True)
    assert program.file("sync", fd) is None


def test_large_pieces(program: Program, store: Store) -> None:
    data = bytes(range(256)) * 2000
    fd = program.opened("large", {"create"}, BOTH)
    out = program.file("write-via-stream", fd, 0).rep
    assert program.stream("output-stream.write", out, data) is None
    assert store.read("/files/data/large") == data
    into = program.file("read-via-stream", fd, 0).rep
    assert len(program.stream("input-stream.read", into, 1 << 20)) == READ_BYTES_MAX


def test_folders(program: Program) -> None:
    data = program.data
    assert program.file("create-directory-at", data, "d") is None
    assert program.file("create-directory-at", data, "d") == Failed("exist")
    program.opened("d/f", {"create", "exclusive"}, {"write"})
    assert program.file("remove-directory-at", data, "d") == Failed("not-empty")
    opened = program.opened("d", {"directory"}, {"read"})
    assert program.file("get-type", opened) == "directory"
    entries = program.file("read-directory", opened).rep
    name = "[method]directory-entry-stream.read-directory-entry"
    entry = program.call("wasi:filesystem/types", name, entries)
    assert (entry.name, entry.type) == ("f", "regular-file")
    assert program.call("wasi:filesystem/types", name, entries) is None
    assert program.file("rename-at", data, "d/f", data, "g") is None
    assert program.file("link-at", data, set(), "g", data, "h") is None
    assert program.file("stat-at", data, set(), "h").__dict__["link-count"] == 2
    g, h = program.opened("g", set(), {"read"}), program.opened("h", set(), {"read"})
    assert program.file("is-same-object", g, h) is True
    assert program.file("is-same-object", g, opened) is False
    assert program.file("metadata-hash", g) == program.file("metadata-hash-at", data, set(), "h")
    assert program.file("symlink-at", data, "g", "l") is None
    assert program.file("readlink-at", data, "l") == "g"
    assert program.file("stat-at", data, set(), "l").type == "symbolic-link"
    assert program.file("stat-at", data, FOLLOW, "l").type == "regular-file"
    for name in ("g", "h", "l"):
        assert program.file("unlink-file-at", data, name) is None
    assert program.file("remove-directory-at", data, "d") is None
    assert program.file("stat-at", data, set(), "d") == Failed("no-entry")


def test_size_and_times(program: Program) -> None:
    fd = program.opened("t", {"create"}, BOTH)
    assert program.file("set-size", fd, 5) is None
    at: Any = Record()
    at.seconds, at.nanoseconds = 7, 8
    given, kept = Variant("timestamp", at), Variant("no-change")
    assert program.file("set-times", fd, kept, given) is None
    stat = program.file("stat", fd)
    assert stat.size == 5
    assert stat.__dict__["data-modification-timestamp"] == at
    assert program.file("set-times-at", program.data, set(), "t", given, kept) is None
    assert program.file("stat", fd).__dict__["data-access-timestamp"] == at


@pytest.mark.parametrize("path", ["../fixed/f", "/fixed/f", "a/../../fixed/f", "../../cache/x"])
def test_nothing_outside(program: Program, path: str) -> None:
    refused = program.file("open-at", program.data, FOLLOW, path, set(), {"read"})
    assert isinstance(refused, Failed)


def test_read_only_is_read_only(program: Program, store: Store) -> None:
    fixed = program.directories["/fixed"]
    assert "read" in program.file("get-flags", fixed)
    assert isinstance(program.file("create-directory-at", fixed, "d"), Failed)
    assert isinstance(program.file("unlink-file-at", fixed, "f"), Failed)
    refused = program.file("open-at", fixed, FOLLOW, "f", {"truncate"}, {"write"})
    assert isinstance(refused, Failed)
    fd = program.opened("f", set(), {"read"}, at="/fixed")
    assert isinstance(program.file("write", fd, b"x", 0), Failed)
    assert store.read("/files/fixed/f") == b""


def test_a_descriptor_without_writing_does_not_write(program: Program) -> None:
    program.opened("a", {"create"}, {"write"})
    fd = program.opened("a", set(), {"read"})
    assert isinstance(program.file("write", fd, b"x", 0), Failed)
    out = program.file("write-via-stream", fd, 0).rep
    failed = program.stream("output-stream.write", out, b"x")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ResourceHost)
    code = program.call("wasi:filesystem/types", "filesystem-error-code", failed.error.rep)
    assert code in ("access", "bad-descriptor", "not-permitted")


def test_a_stream_outlives_its_descriptor(program: Program) -> None:
    fd = program.opened("a", {"create"}, BOTH)
    program.file("write", fd, b"still", 0)
    into = program.file("read-via-stream", fd, 0).rep
    program.preview2.drop(fd)
    assert program.stream("input-stream.read", into, 9) == b"still"
    program.preview2.drop(into)
    # Now it is closed: thousands may be opened one after the other.
    for _ in range(4200):
        program.preview2.drop(program.opened("a", set(), {"read"}))


CLOCKS: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("wall-clock", "realtime", lambda now: now.seconds > 1_700_000_000),
    ("monotonic-clock", "monotonic", lambda now: now > 0),
]


@pytest.mark.parametrize(("interface", "clock", "right"), CLOCKS)
def test_clocks(store: Store, interface: str, clock: str, right: Callable[[Any], bool]) -> None:
    with pytest.raises(ImportsError, match=f"clock:{clock}"):
        Program(store).call(f"wasi:clocks/{interface}", "now")
    program = Program(store, f"clock:{clock}")
    assert right(program.call(f"wasi:clocks/{interface}", "now"))


def test_waiting(store: Store) -> None:
    with pytest.raises(ImportsError, match="clock:monotonic"):
        Program(store).call("wasi:clocks/monotonic-clock", "subscribe-duration", 1)
    program = Program(store, "clock:monotonic")
    clock = "wasi:clocks/monotonic-clock"
    soon = program.call(clock, "subscribe-duration", 20_000_000).rep
    late = program.call(clock, "subscribe-duration", 10**15).rep
    assert program.call("wasi:io/poll", "[method]pollable.ready", soon) is False
    assert program.call("wasi:io/poll", "poll", [late, soon]) == [1]
    assert program.call("wasi:io/poll", "[method]pollable.ready", soon) is True
    past = program.call(clock, "subscribe-instant", 0).rep
    program.call("wasi:io/poll", "[method]pollable.block", past)


def test_waiting_for_ever_and_for_nothing(store: Store) -> None:
    program = Program(store, "clock:monotonic")
    clock = "wasi:clocks/monotonic-clock"
    for name in ("subscribe-duration", "subscribe-instant"):
        never = program.call(clock, name, (1 << 64) - 1).rep
        assert program.call("wasi:io/poll", "[method]pollable.ready", never) is False
        soon = program.call(clock, "subscribe-duration", 1).rep
        assert program.call("wasi:io/poll", "poll", [never, soon, soon]) == [1, 2]
    with pytest.raises(TrapError, match="empty list"):
        program.call("wasi:io/poll", "poll", [])


def test_numbers_that_are_too_large(program: Program) -> None:
    fd = program.opened("a", {"create"}, BOTH)
    out = program.file("write-via-stream", fd, 0).rep
    assert program.stream("output-stream.write-zeroes", out, 3) is None
    for name in ("write-zeroes", "blocking-write-zeroes-and-flush"):
        with pytest.raises(TrapError, match="check-write"):
            program.stream(f"output-stream.{name}", out, (1 << 64) - 1)
    largest = (1 << 64) - 1
    at: Any = Record()
    at.seconds, at.nanoseconds = largest, 999_999_999
    late, kept = Variant("timestamp", at), Variant("no-change")
    assert program.file("set-times", fd, late, kept) == Failed("overflow")
    assert program.file("set-times-at", fd, set(), "a", kept, late) == Failed("overflow")
    assert program.file("read", fd, largest, 1) == (b"\0\0", False)
    assert program.file("read", fd, largest, largest) == Failed("invalid")
    assert isinstance(program.file("write", fd, b"x", largest), Failed)
    assert isinstance(program.file("set-size", fd, largest), Failed)
    assert program.file("advise", fd, largest, largest, "random") == Failed("invalid")
    far = program.file("read-via-stream", fd, largest).rep
    assert isinstance(program.stream("input-stream.blocking-skip", far, largest), Failed)


def test_handles_are_numbered_anew(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    out = program.call("wasi:cli/stdout", "get-stdout").rep
    before = program.stream("output-stream.subscribe", out).rep
    program.preview2.drop(before)
    for _ in range(1000):
        handle = program.stream("output-stream.subscribe", out).rep
        assert handle == before
        program.preview2.drop(handle)
    monkeypatch.setattr(preview2, "HANDLES_MAX", before + 2)
    kept = [program.stream("output-stream.subscribe", out).rep for _ in range(3)]
    assert sorted(kept) == [before, before + 1, before + 2]
    with pytest.raises(LimitError, match="drop in the program what it does not need"):
        program.stream("output-stream.subscribe", out)
    # A free number is taken, never one that is in use.
    program.preview2.drop(before + 1)
    assert program.stream("output-stream.subscribe", out).rep == before + 1


def test_writes_that_return_when_they_are_durable(program: Program) -> None:
    for flag in ("file-integrity-sync", "data-integrity-sync", "requested-write-sync"):
        fd = program.opened("a", {"create"}, {"write", flag})
        assert program.file("get-flags", fd) == {"write", flag}


def test_standard_input(pipe: tuple[int, int]) -> None:
    readable, writable = pipe
    program = Program.with_streams(readable, 1, 2)
    into = program.call("wasi:cli/stdin", "get-stdin").rep
    assert program.stream("input-stream.read", into, 9) == b""
    waiting = program.stream("input-stream.subscribe", into).rep
    assert program.call("wasi:io/poll", "[method]pollable.ready", waiting) is False
    os.write(writable, b"given")
    assert program.call("wasi:io/poll", "poll", [waiting]) == [0]
    assert program.stream("input-stream.read", into, 2) == b"gi"
    assert program.stream("input-stream.blocking-read", into, 9) == b"ven"
    os.close(writable)
    assert program.stream("input-stream.read", into, 9) == Failed(None)
    assert program.call("wasi:cli/terminal-stdin", "get-terminal-stdin") is None
    program.wasi.close()


def test_standard_input_that_is_closed() -> None:
    # Every number above is free in this process.
    program = Program.with_streams(1 << 20, 1 << 20, 1 << 20)
    into = program.call("wasi:cli/stdin", "get-stdin").rep
    waiting = program.stream("input-stream.subscribe", into).rep
    assert program.call("wasi:io/poll", "poll", [waiting]) == [0]
    assert isinstance(program.stream("input-stream.read", into, 1), Failed)
    program.wasi.close()


def test_terminals() -> None:
    outer, inner = os.openpty()
    program = Program.with_streams(inner, inner, inner)
    for name in ("stdin", "stdout", "stderr"):
        handle = program.call(f"wasi:cli/terminal-{name}", f"get-terminal-{name}")
        assert isinstance(handle, ResourceHost)
    program.wasi.close()
    os.close(outer)
    os.close(inner)


def test_names_of_the_host_that_are_not_utf_8(store: Store, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "right").write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/host/\xff")).touch()
    (tmp_path / "host" / "link").symlink_to(os.fsdecode(b"\xff"))
    program = Program(store, "plain:/host=host", folder=tmp_path)
    host = program.directories["/host"]
    assert program.file("readlink-at", host, "link") == Failed("illegal-byte-sequence")
    entries = program.file("read-directory", host).rep
    name = "[method]directory-entry-stream.read-directory-entry"
    listed = [program.call("wasi:filesystem/types", name, entries) for _ in range(3)]
    assert {None if each is None else each.name for each in listed} == {"right", "link", None}
