"""Programs that were not written for avow, in `avow run`, with their files in a sealed store."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from avow.sealing.store import Store
from examples.sandbox import programs

PATIENCE_S = 120.0
NEEDLE = "the launch code is 00000000"


@dataclass(frozen=True)
class Sandbox:
    """A sealed store, made by the first program that runs."""

    folder: Path

    def avow(
        self, *arguments: str | Path, given: str = "", code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """A command of avow; its exit code has to be `code`."""
        done = subprocess.run(
            [sys.executable, "-m", "avow", *map(str, arguments)],
            cwd=self.folder,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env={**os.environ, "SECRET_OF_THE_HOST": NEEDLE},
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    def run(
        self,
        program: Path,
        *arguments: str,
        grants: tuple[str, ...] = (),
        given: str = "",
        code: int = 0,
    ) -> str:
        """What the program prints."""
        options = [each for grant in grants for each in ("--grant", grant)]
        store = ("--store", "data", "--key", "file:owner.key")
        done = self.avow("run", program, *store, *options, "--", *arguments, given=given, code=code)
        return done.stdout

    def cat(self, path: str) -> bytes:
        """A file in the store, read by its owner."""
        key = bytes.fromhex((self.folder / "owner.key").read_text())
        with Store.open(self.folder / "data", key, read_only=True) as store:
            return store.read(path)

    def put(self, path: str, content: str) -> None:
        """A file into the store, by its owner."""
        self.avow("store", "put", "data", "-", path, "--key", "file:owner.key", given=content)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    made = Sandbox(tmp_path)
    made.avow("store", "init", "data", "--new-key", "file:owner.key")
    return made


def test_sqlite_keeps_its_database_sealed(sandbox: Sandbox) -> None:
    module = programs.sqlite()
    sql = f"CREATE TABLE t (a, b); INSERT INTO t SELECT value, '{NEEDLE}' FROM "
    sandbox.run(module, "/t.db", sql + "generate_series(1, 1000);")
    # Another process, with compiled code out of the store.
    found = sandbox.run(
        module, "/t.db", "SELECT count(*), sum(a), max(b) FROM t; PRAGMA integrity_check;"
    )
    assert found == f"1000|500500|{NEEDLE}\nok\n"
    assert NEEDLE.encode() not in (sandbox.folder / "data" / "store.avow").read_bytes()
    assert "t.db" in sandbox.avow("store", "ls", "data", "/files", "--key", "file:owner.key").stdout


def test_sqlite_reads_a_script_and_reports_errors_as_ever(sandbox: Sandbox) -> None:
    script = "CREATE TABLE t (a);\nINSERT INTO t VALUES (1), (2);\nSELECT sum(a) FROM t;\n"
    assert sandbox.run(programs.sqlite(), "-batch", "/t.db", given=script) == "3\n"
    assert sandbox.run(programs.sqlite(), "/t.db", "SELECT * FROM nothing;", code=1) == ""


SCRIPT = """\
import hashlib, json, os, pathlib, shutil, sys, tempfile, zipfile

home = pathlib.Path("/work")
home.mkdir()
for number in range(20):
    (home / f"part-{number:02}.bin").write_bytes(bytes([number]) * 5000)
with zipfile.ZipFile(home / "all.zip", "w") as archive:
    for path in sorted(home.glob("part-*.bin")):
        archive.write(path, path.name)
for path in home.glob("part-*.bin"):
    path.unlink()
with zipfile.ZipFile(home / "all.zip") as archive:
    archive.extractall(home / "again")
    digests = [hashlib.sha256(archive.read(name)).hexdigest()[:8] for name in archive.namelist()]
os.rename(home / "all.zip", "/kept.zip")
with open("/kept.zip", "r+b") as kept:
    kept.seek(0, os.SEEK_END)
    size = kept.tell()
    kept.truncate(size + 4096)
    kept.seek(size)
    tail = kept.read()
    kept.truncate(size)
shutil.rmtree(home / "again")
print(json.dumps({
    "arguments": sys.argv[1:],
    "left": sorted(os.listdir(home)),
    "digests": digests,
    "hole": tail == bytes(4096) and os.path.getsize("/kept.zip") == size,
    "environment": dict(os.environ),
    "above": os.path.exists("/../etc/passwd") or os.path.exists("/etc/passwd"),
}))
sys.exit(7)
"""


def test_cpython_runs_a_script_on_sealed_files(sandbox: Sandbox) -> None:
    sandbox.put("/files/script.py", SCRIPT)
    clocks = ("clock:realtime", "clock:monotonic", "env:LANG=C.UTF-8")
    out = sandbox.run(programs.python(), "/script.py", "one", "two", grants=clocks, code=7)
    assert json.loads(out) == {
        "arguments": ["one", "two"],
        "left": [],
        "digests": [hashlib.sha256(bytes([n]) * 5000).hexdigest()[:8] for n in range(20)],
        "hole": True,
        "environment": {"LANG": "C.UTF-8"},
        "above": False,
    }
    kept = sandbox.avow("store", "ls", "data", "/files", "--key", "file:owner.key").stdout.split()
    assert {"kept.zip", "script.py", "work/"} <= set(kept)


def test_words_of_plain_files_are_counted_into_a_sealed_report(sandbox: Sandbox) -> None:
    texts = sandbox.folder / "texts"
    (texts / "below").mkdir(parents=True)
    (texts / "a.txt").write_text("The rain, the SUN and the rain.\n")
    (texts / "below" / "b.txt").write_text("sun")
    grants = ("plain:/in=./texts", "sealed:/out")
    out = sandbox.run(programs.wordcount(), "/in", "/out/report", "3", grants=grants)
    assert out == "8 words, 4 different\n"
    assert sandbox.cat("/files/out/report") == b"3 the\n2 rain\n2 sun\n"
    # A plain folder is never written to.
    sandbox.run(programs.wordcount(), "/in", "/in/report", grants=grants, code=1)
    assert not list(texts.glob("report*"))


def test_a_journal_in_zig_goes_on_from_process_to_process(sandbox: Sandbox) -> None:
    module = programs.journal()
    for command in (("put", "a", "1"), ("put", "b", NEEDLE), ("put", "a", "3"), ("delete", "b")):
        sandbox.run(module, "kept.db", *command)
    assert sandbox.run(module, "kept.db", "get", "a") == "3\n"
    assert sandbox.run(module, "kept.db", "get", "b", code=1) == ""
    before = len(sandbox.cat("/files/kept.db"))
    sandbox.run(module, "kept.db", "compact")
    assert sandbox.run(module, "kept.db", "list") == "a=3\n"
    assert len(sandbox.cat("/files/kept.db")) < before


def test_a_component_in_python_reads_plain_files_and_keeps_a_sealed_one(sandbox: Sandbox) -> None:
    readings = sandbox.folder / "readings"
    readings.mkdir()
    lines = [f'{{"sensor": "a", "value": {value}}}' for value in (1, 4, "NaN")]
    (readings / "today.jsonl").write_text("\n".join([*lines, "nonsense"]))
    grants = ("plain:/readings=./readings", "sealed:/kept")
    arguments = ("/readings/today.jsonl", "/kept/summary.json")
    out = sandbox.run(programs.telemetry(), *arguments, grants=grants)
    assert out == "sensors: 1, lines refused: 2\n"
    sensor = {"count": 2, "mean": 2.5, "least": 1.0, "most": 4.0}
    kept = json.loads(sandbox.cat("/files/kept/summary.json"))
    assert kept == {"sensors": {"a": sensor}, "refused": 2}
    # A second summary takes the place of the first one.
    (readings / "today.jsonl").write_text(lines[0])
    sandbox.run(programs.telemetry(), *arguments, grants=grants)
    assert json.loads(sandbox.cat("/files/kept/summary.json"))["refused"] == 0
