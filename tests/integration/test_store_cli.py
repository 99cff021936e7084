"""`avow store`, as a user runs it: files go in and come out, and every refusal has its code."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from avow.cli import run
from avow.cli.exit_codes import ExitCode
from avow.cli.progress import progress
from avow.errors import UnavailableError
from avow.sealing import library
from avow.sealing.anchor import Root, Step, begin_fresh, open_fresh
from avow.sealing.store import Store
from avow.testing.store_reader import SLOT_BYTES, Place, StoreReader
from tests.unit.sealing.anchor_world import Notebook, NotebookAnchor

LARGE = bytes(range(256)) * 12_000


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a store `data` and its key `owner.key`."""
    monkeypatch.chdir(tmp_path)
    assert run(["store", "init", "data", "--new-key", "file:owner.key"]) == ExitCode.OK
    return tmp_path


KEY_OPTION = ("--key", "file:owner.key")


def key(place: Path, name: str = "owner.key") -> bytes:
    return bytes.fromhex((place / name).read_text())


def command(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "avow", "store", *arguments],
        input=given,
        capture_output=True,
        check=False,
        timeout=60,
    )


def put(place: Path, path: str, content: bytes, *options: str) -> None:
    source = place / "source"
    source.write_bytes(content)
    assert run(["store", "put", "data", str(source), path, *KEY_OPTION, *options]) == ExitCode.OK


def damage(place: Path, path: str, block: int) -> None:
    """Flips a bit of a data block in the container."""
    container = place / "data" / "store.avow"
    image = bytearray(container.read_bytes())
    reader = StoreReader(image, key(place))
    wanted = Place(reader.lookup(path).number, 0, block)
    (slot,) = [slot for slot, found in reader.used.items() if found == wanted]
    image[slot * SLOT_BYTES + 9] ^= 4
    container.write_bytes(image)


def test_new_key_is_the_owners_alone(place: Path) -> None:
    path = place / "owner.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(key(place)) == 32
    before = path.read_text()
    assert run(["store", "init", "more", "--new-key", "file:owner.key"]) == ExitCode.USAGE
    assert path.read_text() == before
    assert not (place / "more" / "store.avow").exists()
    # No key is made that would seem to belong to a store that was there.
    assert run(["store", "init", "data", "--new-key", "file:new.key"]) == ExitCode.FAILED
    assert not (place / "new.key").exists()


def test_what_is_put_in_comes_out(place: Path) -> None:
    for number, content in enumerate([b"", b"a line\n", LARGE]):
        done = command("put", "data", "-", f"/files/deep/er/{number}", *KEY_OPTION, given=content)
        assert (done.returncode, done.stderr) == (0, b"")
        done = command("cat", "data", f"/files/deep/er/{number}", *KEY_OPTION)
        assert (done.returncode, done.stdout) == (0, content)


def test_put_replaces_a_file_as_a_whole(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(place, "/files/a", LARGE)
    put(place, "/files/a", b"short")
    reader = StoreReader((place / "data/store.avow").read_bytes(), key(place))
    assert reader.tree()["/files/a"] == b"short"
    assert run(["store", "put", "data", "source", "/files", *KEY_OPTION]) == ExitCode.FAILED
    assert "directory" in capsys.readouterr().err


def test_put_that_is_interrupted_changes_nothing(place: Path) -> None:
    put(place, "/files/a", b"before")
    before = (place / "data/store.avow").read_bytes()
    putting = subprocess.Popen(
        [sys.executable, "-m", "avow", "store", "put", "data", "-", "/files/a", *KEY_OPTION],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert putting.stdin is not None
    # More than a pipe holds: when all of it is taken, the store is open and being written to.
    putting.stdin.write(LARGE)
    putting.stdin.flush()
    # As Ctrl-C; SIGINT itself is ignored by what a shell runs in the background.
    putting.send_signal(signal.SIGTERM)
    # Its standard input stays open until it has ended.
    assert putting.stderr is not None
    assert putting.stderr.read() == b"\navow: interrupted\n"
    assert putting.wait(timeout=60) == ExitCode.FAILED
    putting.stdin.close()
    putting.stderr.close()
    reader = StoreReader((place / "data/store.avow").read_bytes(), key(place))
    assert reader.tree()["/files/a"] == b"before"
    assert reader.root.digest == StoreReader(before, key(place)).root.digest


def test_list(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(place, "/files/b/c", b"12345")
    put(place, "/files/a\x1b[2Jn\n", b"")
    capsys.readouterr()
    assert run(["store", "ls", "data", *KEY_OPTION]) == ExitCode.OK
    assert capsys.readouterr().out == "cache/\nfiles/\njournal/\n"
    assert run(["store", "ls", "data", "/files", *KEY_OPTION]) == ExitCode.OK
    # A name cannot move the cursor of the terminal that lists it.
    assert capsys.readouterr().out == "a\\x1b[2Jn\\n\nb/\n"
    assert run(["store", "ls", "data", "-R", "--json", *KEY_OPTION]) == ExitCode.OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["path"], line["kind"]) for line in lines][-3:] == [
        ("/files/b", "directory"),
        ("/files/b/c", "file"),
        ("/journal", "directory"),
    ]
    assert {line["path"]: line["size_bytes"] for line in lines}["/files/b/c"] == 5
    assert "/files/a\x1b[2Jn\n" in {line["path"] for line in lines}
    assert run(["store", "ls", "data", "-l", "/files/b", *KEY_OPTION]) == ExitCode.OK
    assert capsys.readouterr().out.split()[:2] == ["file", "5"]


def test_export_to_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(place, "/files/a", LARGE)
    put(place, "/files/d/b", b"b")
    assert run(["store", "export", "data", "out", "--path", "/files", *KEY_OPTION]) == ExitCode.OK
    assert (place / "out/a").read_bytes() == LARGE
    assert (place / "out/d/b").read_bytes() == b"b"
    assert (place / "out").stat().st_mode & 0o777 == 0o700
    assert (place / "out/a").stat().st_mode & 0o777 == 0o600
    (place / "out/a").write_bytes(b"mine")
    capsys.readouterr()
    assert run(["store", "export", "data", "out", *KEY_OPTION]) == ExitCode.FAILED
    assert "expected nothing at out" in capsys.readouterr().err
    assert (place / "out/a").read_bytes() == b"mine"


def test_export_keeps_links(place: Path) -> None:
    put(place, "/files/a", LARGE)
    with Store.open(place / "data", key(place)) as store:
        files, number = store.stat("/files").inode, store.stat("/files/a").inode
        native = library.load()
        assert native.avow_store_link(store.handle, number, files, b"b", 1, 1) == 0
        # Out of the store and out of the export: written as a link, and never followed.
        soft = native.avow_store_make(store.handle, files, b"c", 1, 3, 1)
        assert native.avow_store_write(store.handle, soft, 0, b"../../data", 10, 1) == 0
    assert run(["store", "export", "data", "out", *KEY_OPTION]) == ExitCode.OK
    assert (place / "out/files/a").samefile(place / "out/files/b")
    assert (place / "out/files/b").read_bytes() == LARGE
    assert (place / "out/files/c").readlink() == Path("../../data")
    done = command("export", "data", "-", "--path", "/files", *KEY_OPTION)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getmember("b").linkname == "a"
        assert archive.getmember("c").linkname == "../../data"


def test_export_as_tar(place: Path) -> None:
    put(place, "/files/a", LARGE)
    put(place, "/files/d/b", b"b")
    with Store.open(place / "data", key(place)) as store:
        store.make_directory("/files/empty")
    done = command("export", "data", "-", *KEY_OPTION)
    assert (done.returncode, done.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        names = archive.getnames()
        large = archive.extractfile("files/a")
        assert large is not None
        assert large.read() == LARGE
    assert {"files/d/b", "files/empty", "journal"} <= set(names)


def test_export_of_a_damaged_store_leaves_nothing_half_done(place: Path) -> None:
    put(place, "/files/a", b"whole")
    put(place, "/files/b", LARGE)
    damage(place, "/files/b", 3)
    assert run(["store", "export", "data", "out", *KEY_OPTION]) == ExitCode.DAMAGED
    assert sorted(path.name for path in place.iterdir()) == ["data", "owner.key", "source"]


def test_check_names_every_damage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(place, "/files/a", LARGE)
    put(place, "/files/b", LARGE)
    capsys.readouterr()
    assert run(["store", "check", "data", *KEY_OPTION]) == ExitCode.OK
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    reader = StoreReader((place / "data/store.avow").read_bytes(), key(place))
    assert said["root hash"] == reader.root.digest.hex()
    assert said["sequence"] == str(reader.root.sequence)
    assert said["damages"] == "0"
    damage(place, "/files/a", 17)
    damage(place, "/files/b", 0)
    damage(place, "/files/b", 200)
    assert run(["store", "check", "data", *KEY_OPTION, "--json"]) == ExitCode.DAMAGED
    printed = capsys.readouterr()
    *damages, summary = [json.loads(line) for line in printed.out.splitlines()]
    assert [each["path"] for each in damages] == ["/files/a", "/files/b", "/files/b"]
    assert "block 17 " in damages[0]["what"]
    assert "block 200 " in damages[2]["what"]
    assert summary["damages"] == 3
    assert "got 3" in printed.err
    # What is whole can still be had; what is not is not data.
    assert run(["store", "cat", "data", "/files/b", *KEY_OPTION]) == ExitCode.DAMAGED
    printed = capsys.readouterr()
    assert "/files/b" in printed.err or "block 0" in printed.err


@pytest.fixture
def anchored(place: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookAnchor:
    """What remembers the store `data`; --anchor tpm:0x01800042 opens it."""
    anchor = NotebookAnchor(Notebook())

    def open_anchor(text: str, store: Store) -> NotebookAnchor | None:
        return None if text == "none" else anchor

    monkeypatch.setattr("avow.cli.anchors.open_anchor", open_anchor)
    with Store.open(place / "data", key(place)) as store:
        begin_fresh(store, anchor).close()
    return anchor


ANCHOR_OPTION = ("--anchor", "tpm:0x01800042")


def test_check_asks_the_anchor(
    place: Path, anchored: NotebookAnchor, capsys: pytest.CaptureFixture[str]
) -> None:
    anchor = anchored
    arguments = ["store", "check", "data", *KEY_OPTION, *ANCHOR_OPTION]
    container = place / "data/store.avow"
    old = container.read_bytes()
    with Store.open(place / "data", key(place)) as store:
        open_fresh(store, anchor).close()
    # What is put without the anchor is newer than what it remembers, and no rollback.
    put(place, "/files/a", b"more", "--anchor", "none")
    remembered = anchor.read()
    assert run(arguments) == ExitCode.OK
    assert anchor.read() == remembered
    container.write_bytes(old)
    capsys.readouterr()
    assert run(arguments) == ExitCode.ROLLED_BACK
    assert "the store was rolled back" in capsys.readouterr().err
    assert run(["store", "check", "data", *KEY_OPTION, "--anchor", "nonsense"]) == ExitCode.USAGE


def test_a_store_that_never_had_the_anchor(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To begin is for the commands that go on with it; the refusal says so."""
    monkeypatch.setattr(
        "avow.cli.anchors.open_anchor", lambda text, store: NotebookAnchor(Notebook())
    )
    (place / "source").write_bytes(b"more")
    for command in (("check", "data"), ("put", "data", "source", "/files/a")):
        assert run(["store", *command, *KEY_OPTION, *ANCHOR_OPTION]) == ExitCode.ROLLED_BACK
        said = capsys.readouterr().err
        assert "never had an anchor" in said
        assert re.search(r"--accept-rollback 2`, an option of `avow run` and `avow b", said)


CHANGES = (
    ("put", "data", "owner.key", "/files/a"),
    ("rotate", "data"),
    ("compact", "data", "--rewrite"),
    ("keys", "data", "--add", "file:other.key"),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
def test_what_an_owner_changes_is_anchored(
    place: Path,
    anchored: NotebookAnchor,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, ...],
) -> None:
    """A host cannot take it back, and nothing is changed in a store that was put back before."""
    (place / "other.key").write_text("07" * 32 + "\n")
    (place / "other.key").chmod(0o600)
    container = place / "data/store.avow"
    before = container.read_bytes()
    arguments = ["store", *change, *KEY_OPTION]
    assert run(arguments) == ExitCode.ROLLED_BACK
    assert "name it with `--anchor`" in capsys.readouterr().err
    assert container.read_bytes() == before
    assert run([*arguments, *ANCHOR_OPTION]) == ExitCode.OK
    with Store.open(place / "data", key(place), read_only=True) as store:
        remembered = anchored.read()
        assert remembered is not None
        assert remembered.digest == store.root.digest
    container.write_bytes(before)
    assert run([*arguments, *ANCHOR_OPTION]) == ExitCode.ROLLED_BACK
    assert container.read_bytes() == before


def test_a_change_that_the_anchor_does_not_hear_of(
    place: Path,
    anchored: NotebookAnchor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was there when the command began, and is not at the end: the change is kept, and said."""
    advance = anchored.advance
    heard = iter([True])

    def once(step: Step, root: Root) -> None:
        if not next(heard, False):
            raise UnavailableError("no answer")
        advance(step, root)

    monkeypatch.setattr(anchored, "advance", once)
    source = place / "source"
    source.write_bytes(b"more")
    arguments = ["store", "put", "data", str(source), "/files/a", *KEY_OPTION, *ANCHOR_OPTION]
    assert run(arguments) == ExitCode.FAILED
    assert "which the store has already made, got: no answer" in capsys.readouterr().err
    monkeypatch.setattr(anchored, "advance", advance)
    assert run(["store", "check", "data", *KEY_OPTION, *ANCHOR_OPTION]) == ExitCode.OK
    with Store.open(place / "data", key(place), read_only=True) as store:
        assert store.read("/files/a") == b"more"


def test_rotate_and_compact(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(place, "/files/a", LARGE)
    arguments = ["store", "rotate", "data", *KEY_OPTION, "--new-key", "file:new.key"]
    assert run(arguments) == ExitCode.OK
    assert (place / "new.key").stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert run(["store", "ls", "data", *KEY_OPTION]) == ExitCode.WRONG_KEY
    said = capsys.readouterr().err
    assert said.startswith("avow: ")
    assert said.count("\n") == 1
    new = ("--key", "file:new.key")
    assert run(["store", "compact", "data", "--rewrite", *new]) == ExitCode.OK
    reader = StoreReader((place / "data/store.avow").read_bytes(), key(place, "new.key"))
    assert reader.tree()["/files/a"] == LARGE
    assert len({use.key for use in reader.uses}) == 1
    assert run(["store", "check", "data", *new]) == ExitCode.OK


def test_rotation_to_the_same_key(place: Path) -> None:
    assert run(["store", "rotate", "data", *KEY_OPTION]) == ExitCode.OK
    assert run(["store", "ls", "data", *KEY_OPTION]) == ExitCode.OK


def test_keys_come_and_go(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "init", "more", "--new-key", "file:second.key"]) == ExitCode.OK
    adding = ["store", "keys", "data", *KEY_OPTION, "--add", "file:second.key"]
    assert run(adding) == ExitCode.OK
    assert run(adding) == ExitCode.FAILED
    assert "a key that does not open the store yet" in capsys.readouterr().err
    assert run(["store", "keys", "data", "--key", "file:second.key", "--json"]) == ExitCode.OK
    ids = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (first,) = [each["id"] for each in ids if not each["given"]]
    (second,) = [each["id"] for each in ids if each["given"]]
    assert run(["store", "keys", "data", *KEY_OPTION, "--remove", second]) == ExitCode.OK
    assert capsys.readouterr().out == f"{first} (of --key)\n"
    assert run(["store", "ls", "data", "--key", "file:second.key"]) == ExitCode.WRONG_KEY
    for wanted, said in ((second, "`avow store keys` lists them"), (first, "the last one")):
        assert run(["store", "keys", "data", *KEY_OPTION, "--remove", wanted]) == ExitCode.FAILED
        assert said in capsys.readouterr().err
    assert run(["store", "keys", "data", *KEY_OPTION, "--remove", "what"]) == ExitCode.USAGE


@pytest.fixture
def held(place: Path) -> Iterator[Path]:
    """The store, open in this process."""
    with Store.open(place / "data", key(place)):
        yield place


def test_a_store_in_use_is_refused(held: Path) -> None:
    for arguments in (
        ["ls", "data"],
        ["cat", "data", "/files/a"],
        ["check", "data"],
        ["rotate", "data"],
        ["compact", "data"],
    ):
        done = command(*arguments, *KEY_OPTION)
        assert done.returncode == ExitCode.IN_USE, arguments
        assert done.stderr.startswith(b"avow: ")
        assert done.stderr.count(b"\n") == 1
        assert done.stdout == b""


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ls", "nothing", *KEY_OPTION], ExitCode.FAILED, "nothing"),
        (["ls", "data"], ExitCode.USAGE, "--key"),
        (["ls", "data", "files", *KEY_OPTION], ExitCode.USAGE, "start it with /"),
        (["cat", "data", "/../owner.key", *KEY_OPTION], ExitCode.USAGE, "without . and .."),
        (["cat", "data", "/files/none", *KEY_OPTION], ExitCode.FAILED, "/files/none"),
        (["cat", "data", "/files", *KEY_OPTION], ExitCode.FAILED, "directory"),
        (["put", "data", "none", "/files/a", *KEY_OPTION], ExitCode.FAILED, "none"),
        (["put", "data", "owner.key", "/", *KEY_OPTION], ExitCode.FAILED, "directory"),
        (["ls", "data", "--key", "file:none"], ExitCode.USAGE, "none"),
        (["ls", "data", "--key", "secret"], ExitCode.USAGE, "file:"),
        (["init", "data", *KEY_OPTION], ExitCode.FAILED, "data"),
        (["init", "more"], ExitCode.USAGE, "--new-key"),
    ],
)
def test_bad_input_is_one_sentence(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: ExitCode,
    sentence: str,
) -> None:
    capsys.readouterr()
    assert run(["store", *arguments]) == code
    said = capsys.readouterr().err
    assert said.startswith("avow: ")
    assert said.count("\n") == 1
    assert sentence in said


def test_a_key_that_others_may_read_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "owner.key").chmod(0o640)
    assert run(["store", "ls", "data", *KEY_OPTION]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "chmod 600" in said
    assert key(place).hex() not in said


def test_a_file_that_is_no_store(place: Path) -> None:
    (place / "data/store.avow").write_bytes(b"something else" * 5000)
    done = command("ls", "data", *KEY_OPTION)
    assert done.returncode in (ExitCode.FAILED, ExitCode.DAMAGED)
    assert done.stderr.startswith(b"avow: ")
    assert done.stderr.count(b"\n") == 1


def test_output_that_nobody_reads_ends_quietly(place: Path) -> None:
    put(place, "/files/a", LARGE)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "avow", "store", "cat", "data", "/files/a", *KEY_OPTION],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


class Told(io.StringIO):
    """Standard error that says when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_progress_is_said_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(sys, "stderr", told)
    with progress("writing", 4 << 20, every_s=0.001) as shown:
        shown.add(1 << 20)
        assert told.written.wait(60)
    assert re.match(r"avow: writing: \d+ s", told.getvalue())
    assert shown.line(7) == "avow: writing: 7 s, 1 of 4 MiB"


def test_what_is_quick_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(sys, "stderr", told)
    with progress("writing", every_s=60):
        pass
    assert told.getvalue() == ""


@pytest.mark.parametrize(
    ("arguments", "output"),
    [("ls data", ">/dev/full"), ("cat data /files/a", ">&-"), ("export data -", ">/dev/full")],
)
def test_output_that_cannot_be_written_is_a_sentence(
    place: Path, arguments: str, output: str
) -> None:
    put(place, "/files/a", b"a line\n")
    command = [sys.executable, "-m", "avow", "store", *arguments.split(), *KEY_OPTION]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {output}', "sh", *command],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.startswith("avow: expected to write to standard output, got: ")
    assert done.stderr.count("\n") == 1


def test_what_cannot_be_said_does_not_change_the_exit_code(place: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "avow", "store", "ls", "data", "--key", "file:none"],
            stderr=full,
            check=False,
            timeout=60,
        )
    assert done.returncode == ExitCode.USAGE


def test_standard_input_that_is_closed_is_a_sentence(place: Path) -> None:
    arguments = [sys.executable, "-m", "avow", "store", "put", "data", "-", "/files/a", *KEY_OPTION]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == (
        "avow: expected to read standard input, got: Bad file descriptor; "
        "check where it comes from\n"
    )


def test_no_key_is_left_of_a_store_that_was_not_made(place: Path) -> None:
    (place / "file").write_bytes(b"")
    arguments = ["store", "init", "file/data", "--new-key", "file:new.key"]
    assert run(arguments) == ExitCode.STORAGE
    # Otherwise the next attempt would be refused, as there is a key already.
    assert not (place / "new.key").exists()
    arguments[2] = "other"
    assert run(arguments) == ExitCode.OK
    assert (place / "new.key").exists()


def test_a_path_that_is_no_text_is_refused_in_words(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = os.fsdecode(b"/files/\xff")
    assert run(["store", "cat", "data", path, *KEY_OPTION]) == ExitCode.USAGE
    assert "expected a path in UTF-8, got b'/files/\\xff'" in capsys.readouterr().err


def test_a_store_has_eight_keys(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    added = []
    for number in range(8):
        path = place / f"{number}.key"
        path.write_text(f"{number + 1:064x}\n")
        path.chmod(0o600)
        added += ["--add", f"file:{path}"]
    assert run(["store", "keys", "data", *KEY_OPTION, *added]) == ExitCode.FAILED
    assert "expected at most 8 keys" in capsys.readouterr().err
    # None of them was added.
    assert run(["store", "ls", "data", "--key", f"file:{place / '0.key'}"]) == ExitCode.WRONG_KEY


def test_who_reads_no_further_is_no_error(place: Path) -> None:
    # Little enough to stay in Python's buffer, which is flushed once more at the end.
    put(place, "/files/a", b"a line\n")
    arguments = ["store", "cat", "data", "/files/a", *KEY_OPTION]
    with subprocess.Popen(
        [sys.executable, "-m", "avow", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as cat:
        assert cat.stdout is not None
        assert cat.stderr is not None
        cat.stdout.close()
        assert cat.stderr.read() == b""
    assert cat.returncode == ExitCode.OK


@pytest.mark.parametrize("what", ["check", "compact"])
def test_ctrl_c_does_not_wait_for_a_long_call(
    place: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Python's own handler would run after the call, which may take minutes."""
    handlers = []
    call = getattr(Store, what)

    def noted(store: Store, *arguments: bool, **named: bool) -> object:
        handlers.append([signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)])
        return call(store, *arguments, **named)

    monkeypatch.setattr(Store, what, noted)
    before = signal.getsignal(signal.SIGINT)
    assert run(["store", what, "data", *KEY_OPTION]) == ExitCode.OK
    assert handlers == [[signal.SIG_DFL, signal.SIG_DFL]]
    assert signal.getsignal(signal.SIGINT) is before
