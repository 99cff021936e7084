"""SQLite on a sealed store whose disk lies: right rows or an error, never wrong ones."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmtime import Module

from avow.errors import AvowError
from avow.sandbox.wasi import SealedDirectory, Wasi
from avow.sealing.store import Store
from avow.testing.lying_disk import LyingDisk
from avow.testing.simulated_disk import SimulatedDisk
from examples.sandbox import programs
from tests.unit.sandbox.wasi_guest import engine
from tests.unit.sandbox.wasi_programs import Ended, run

KEY = bytes(range(32))
SEEDS = 40
# Not what is kept of it: the store is opened with less, so that the disk is asked.
CACHE_BYTES = 64 << 10

CREATE = """\
CREATE TABLE t (n INTEGER PRIMARY KEY, b BLOB NOT NULL);
WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < 400)
INSERT INTO t SELECT n, printf('%01400d', n * n) FROM c;
"""
LOOK = "SELECT count(*), sum(n), sum(CAST(substr(b, -12) AS INTEGER)), min(length(b)) FROM t;\n"
CHANGE = "BEGIN;\nUPDATE t SET b = printf('%01400d', n * 3);\nCOMMIT;\n"
BEFORE = f"400|{sum(range(401))}|{sum(n * n for n in range(401))}|1400"
AFTER = f"400|{sum(range(401))}|{3 * sum(range(401))}|1400"


@functools.cache
def module() -> Module:
    return Module.from_file(engine(), str(programs.sqlite()))


def sqlite(
    folder: Path, store: Store, script: str, *, ready: Callable[[], None] = lambda: None
) -> tuple[Ended, list[str], str]:
    """How it ended, the lines it printed, and its complaints. `ready` is called before it starts.

    A store that cannot even give its first directory is an error before that: Ended(1).
    """
    (folder / "input").write_text("PRAGMA cache_size = 8;\n" + script)
    try:
        ended = _sqlite(folder, store, ready)
    except AvowError as error:
        return Ended(1), [], f"error: {error}"
    return ended, (folder / "output").read_text().splitlines(), (folder / "errors").read_text()


def _sqlite(folder: Path, store: Store, ready: Callable[[], None]) -> Ended:
    with (
        (folder / "input").open("rb") as given,
        (folder / "output").open("wb") as output,
        (folder / "errors").open("wb") as errors,
        Wasi(
            arguments=["sqlite3", "-batch", "-bail", "/t.db"],
            entropy=bytes(32),
            stdio=(given.fileno(), output.fileno(), errors.fileno()),
            store=store,
            directories=[SealedDirectory("/", "/files")],
        ) as wasi,
    ):
        ready()
        return run(wasi, module())


@functools.cache
def image() -> bytes:
    """A container with the database in it, written by SQLite."""
    disk = SimulatedDisk()
    with tempfile.TemporaryDirectory() as folder, Store.create_on(disk, [KEY]) as store:
        ended, printed, errors = sqlite(Path(folder), store, CREATE + LOOK)
    assert (ended.code, printed) == (0, [BEFORE]), errors
    return bytes(disk.image)


def open_on(disk: SimulatedDisk | LyingDisk) -> Store:
    return Store.open_on(disk, KEY, cache_bytes=CACHE_BYTES)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_right_rows_or_an_error(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    honest = SimulatedDisk(image())
    disk = LyingDisk(honest, rng, rate=rng.choice((0.0, 0.001, 0.01, 0.05)))
    expected = [BEFORE, AFTER]
    try:
        store = open_on(disk)
    except AvowError:
        return
    try:
        ended, printed, errors = sqlite(tmp_path, store, LOOK + CHANGE + LOOK)
        assert ended.trap == "", (disk.told, ended)
        assert printed == expected[: len(printed)], (disk.told, printed, errors)
        if ended.code == 0:
            assert printed == expected, (disk.told, printed, errors)
        else:
            assert "error" in errors.lower(), (disk.told, errors)
            assert disk.told
    finally:
        store.abandon()
    _look_honestly(tmp_path, honest, disk.told, committed=printed == expected)


def _look_honestly(
    folder: Path, honest: SimulatedDisk, told: list[str], *, committed: bool
) -> None:
    """What the disk kept is the database before or after the change, or the damage is noticed."""
    try:
        store = open_on(honest)
    except AvowError:
        assert told
        return
    script = "PRAGMA integrity_check;\n" + LOOK
    ended, printed, errors = sqlite(folder, store, script)
    store.abandon()
    assert ended.trap == "", told
    if ended.code != 0:
        assert told, errors
        assert "malformed" not in errors, (told, errors)
        return
    allowed = [["ok", AFTER]] if committed and not told else [["ok", BEFORE], ["ok", AFTER]]
    assert printed in allowed, (told, printed)


def test_lies_are_told_and_noticed(tmp_path: Path) -> None:
    """A disk of which every read is flipped cannot be read: that is an error, and said."""
    disk = LyingDisk(SimulatedDisk(image()), random.Random(1), rate=0.0, lies=["flipped"])
    store = open_on(disk)

    def lie() -> None:
        disk.rate = 1.0

    ended, printed, errors = sqlite(tmp_path, store, LOOK, ready=lie)
    store.abandon()
    assert disk.told
    assert (ended.code, printed) == (1, [])
    assert "Error: " in errors


def test_wrong_rows_would_be_noticed(tmp_path: Path) -> None:
    with Store.open_on(SimulatedDisk(image()), KEY) as store:
        sqlite(tmp_path, store, "UPDATE t SET n = 0 WHERE n = 400;")
        _, printed, _ = sqlite(tmp_path, store, LOOK)
    assert len(printed) == 1
    assert printed[0] not in (BEFORE, AFTER)
