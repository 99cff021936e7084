"""Programs that were written for POSIX, through a C library that avow does not know."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from avow.sandbox.wasi import PlainDirectory, SealedDirectory, Wasi
from avow.sealing.store import Store
from tests.unit.sandbox.wasi_guest import KEY, MemoryDisk
from tests.unit.sandbox.wasi_programs import Ended, program, run


class Outcome:
    """What a program left behind."""

    def __init__(self, ended: Ended, output: bytes) -> None:
        self.code, self.trap = ended
        self.output = output


def outcome(
    name: str, *arguments: str, tmp_path: Path, stdin: bytes = b"", **settings: Any
) -> Outcome:
    """Runs a program with files as its streams."""
    (tmp_path / "stdin").write_bytes(stdin)
    with (tmp_path / "stdin").open("rb") as source, (tmp_path / "out").open("w+b") as target:
        streams = (source.fileno(), target.fileno(), target.fileno())
        with Wasi(
            arguments=[name, *arguments], entropy=bytes(32), stdio=streams, **settings
        ) as wasi:
            ended = run(wasi, program(name))
    return Outcome(ended, (tmp_path / "out").read_bytes())


@contextmanager
def sealed(disk: MemoryDisk | None = None) -> Iterator[Store]:
    store = Store.create_on(disk or MemoryDisk(), [KEY])
    try:
        yield store
    finally:
        store.close()


def root(store: Store, **settings: Any) -> dict[str, Any]:
    directories: Sequence[SealedDirectory] = [SealedDirectory("/", "/files")]
    return {"store": store, "directories": directories, **settings}


def test_files(tmp_path: Path) -> None:
    with sealed() as store:
        ended = outcome("files", "5", tmp_path=tmp_path, **root(store))
        assert (ended.code, ended.output) == (0, b"right\n")
        assert store.listdir("/files") == []


def test_files_without_a_grant(tmp_path: Path) -> None:
    denied: list[str] = []
    ended = outcome("files", tmp_path=tmp_path, on_denied=denied.append)
    assert (ended.code, ended.output) == (1, b"failed: mkdir: No such file or directory\n")
    assert denied == ["sealed:/work"]


def test_what_was_synced_is_there_after_a_crash(tmp_path: Path) -> None:
    disk = MemoryDisk()
    with sealed(disk) as store:
        store.commit()
        crashed = bytes(disk.content)
        ended = outcome("files", tmp_path=tmp_path, **root(store))
        assert ended.code == 0
        # The program called fsync once, with its first file and nothing else there.
        changed = bytes(disk.content)
        assert changed != crashed
        disk_after = MemoryDisk()
        disk_after.content[:] = changed
        reopened = Store.open_on(disk_after, KEY)
        assert [each.name for each in reopened.listdir("/files/work")] == ["a"]
        assert len(reopened.read("/files/work/a")) == 40_000
        reopened.close()


@pytest.mark.parametrize("size", [0, 1, 16384, 100_000])
def test_copying_streams(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    ended = outcome("streams", "copy", tmp_path=tmp_path, stdin=content)
    assert (ended.code, ended.output) == (0, content)


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    (tmp_path / "stdin").write_bytes(b"content")
    with (tmp_path / "stdin").open("rb") as source, (tmp_path / "err").open("w+b") as errors:
        streams = (source.fileno(), theirs, errors.fileno())
        with Wasi(arguments=["streams", "copy"], entropy=bytes(32), stdio=streams) as wasi:
            assert run(wasi, program("streams")).code == 1
    os.close(theirs)
    assert (tmp_path / "err").read_bytes() == b"failed: write: Broken pipe\n"


def test_a_plain_tree(tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "deep" / "er").mkdir(parents=True)
    (host / "a").write_bytes(b"one")
    (host / "deep" / "er" / "b").write_bytes(b"two")
    (host / "deep" / "c").symlink_to("er/b")
    ended = outcome(
        "streams",
        "tree",
        "/host",
        tmp_path=tmp_path,
        directories=[PlainDirectory("/host", host)],
    )
    assert ended.code == 0
    assert sorted(ended.output.splitlines()) == [
        b"/host/a=one",
        b"/host/deep/c=two",
        b"/host/deep/er/b=two",
    ]


def test_time(tmp_path: Path) -> None:
    assert outcome("streams", "time", tmp_path=tmp_path, clocks=["monotonic"]).output == b"right\n"
    ended = outcome("streams", "time", tmp_path=tmp_path)
    assert ended.code == 1
    assert ended.output == b"failed: clock_gettime: Capabilities insufficient\n"


def test_a_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        content = os.urandom(300_000)
        received = bytearray()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(content[:100_000])
                while len(received) < 100_000 and (part := connection.recv(65536)):
                    received.extend(part)

        thread = threading.Thread(target=answer)
        thread.start()
        path = f"/net/tcp/{endpoint}"
        ended = outcome("streams", "get", path, tmp_path=tmp_path, endpoints=[endpoint])
        thread.join(10)
        assert ended.code == 0
        assert bytes(received) == content[:100_000]


def test_a_connection_without_a_grant(tmp_path: Path) -> None:
    denied: list[str] = []
    ended = outcome("streams", "get", "/net/tcp/a:1", tmp_path=tmp_path, on_denied=denied.append)
    assert (ended.code, ended.output) == (1, b"failed: open: Permission denied\n")
    assert denied == ["tcp:a:1"]
