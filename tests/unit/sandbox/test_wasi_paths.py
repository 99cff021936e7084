"""WASI paths in the sealed store: directories, links, renaming, removing, reading directories."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from avow.sandbox.wasi import SealedDirectory
from tests.unit.sandbox.wasi_guest import (
    BUFFER,
    CREAT,
    DIRECTORY,
    OUT,
    PATH_2,
    READ_RIGHTS,
    ROOT,
    Errno,
    FailedError,
    Guest,
    sealed_guest,
)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with sealed_guest() as guest:
        yield guest


def refused(call: Callable[..., object], *arguments: object, **named: object) -> Errno:
    with pytest.raises(FailedError) as caught:
        call(*arguments, **named)
    return caught.value.errno


def test_directories(guest: Guest) -> None:
    guest.mkdir("a")
    guest.mkdir("a/b/")
    guest.file("a/b/c", b"deep")
    assert guest.content("a/./b//c") == b"deep"
    assert guest.content("a/b/../b/c") == b"deep"
    assert guest.names("a") == ["b"]
    assert refused(guest.mkdir, "a") == Errno.EXIST
    assert refused(guest.mkdir, ".") == Errno.EXIST
    assert refused(guest.mkdir, "x/y") == Errno.NOENT
    assert refused(guest.mkdir, "a/b/c/d") == Errno.NOTDIR
    assert refused(guest.mkdir, "a/b/c") == Errno.EXIST
    assert refused(guest.rmdir, "a") == Errno.NOTEMPTY
    assert refused(guest.rmdir, "a/b/c") == Errno.NOTDIR
    assert refused(guest.rmdir, ".") == Errno.INVAL
    assert refused(guest.rmdir, "nothing") == Errno.NOENT
    guest.unlink("a/b/c")
    guest.rmdir("a/b/")
    guest.rmdir("a")
    assert guest.names() == []


def test_unlink(guest: Guest) -> None:
    guest.file("a")
    guest.mkdir("d")
    guest.symlink("d", "l")
    assert refused(guest.unlink, "d") == Errno.ISDIR
    assert refused(guest.unlink, "a/") == Errno.NOTDIR
    assert refused(guest.unlink, "x") == Errno.NOENT
    assert refused(guest.unlink, "l/") == Errno.NOTDIR
    assert refused(guest.rmdir, "l") == Errno.NOTDIR
    assert refused(guest.rmdir, "l/") == Errno.NOTDIR
    guest.unlink("l")
    guest.unlink("a")
    assert guest.names() == ["d"]


def test_trailing_slashes_ask_for_a_directory(guest: Guest) -> None:
    guest.file("a")
    guest.mkdir("d")
    guest.symlink("d", "l")
    guest.symlink("a", "m")
    assert refused(guest.open, "a/", rights=READ_RIGHTS) == Errno.NOTDIR
    assert refused(guest.open, "a/", CREAT, rights=READ_RIGHTS) == Errno.ISDIR
    assert refused(guest.open, "a/") == Errno.ISDIR
    assert refused(guest.open, "m/") == Errno.ISDIR
    assert refused(guest.open, "new/", CREAT) == Errno.ISDIR
    assert refused(guest.stat, "a/") == Errno.NOTDIR
    assert refused(guest.stat, "m/") == Errno.NOTDIR
    assert refused(guest.stat, "a/.") == Errno.NOTDIR
    assert refused(guest.stat, "a/..") == Errno.NOTDIR
    assert guest.stat("d/").inode == guest.stat("d").inode
    assert guest.stat("l/", follow=False).inode == guest.stat("d").inode
    assert refused(guest.readlink, "l/") == Errno.INVAL
    assert refused(guest.link, "a", "new/") == Errno.NOENT
    assert refused(guest.symlink, "a", "new/") == Errno.NOENT
    assert refused(guest.rename, "a", "new/") == Errno.NOTDIR
    assert refused(guest.rename, "a/", "new") == Errno.NOTDIR
    guest.rename("d", "e/")
    assert guest.names() == ["a", "e", "l", "m"]


@pytest.mark.parametrize(
    ("path", "errno"),
    [
        (b"", Errno.NOENT),
        (b"a\0b", Errno.INVAL),
        (b"\xff", Errno.ILSEQ),
        (b"/a", Errno.NOTCAPABLE),
        (b"n" * 256, Errno.NAMETOOLONG),
        (b"d/" + b"n" * 256, Errno.NAMETOOLONG),
        (b"./" * 2048, Errno.NAMETOOLONG),
        (b"x" * 5000, Errno.NAMETOOLONG),
    ],
)
def test_paths_that_are_none(guest: Guest, path: bytes, errno: Errno) -> None:
    guest.mkdir("d")
    guest.file("ok")
    bad, good = guest.path(path, BUFFER), guest.path("ok", PATH_2)
    for name, arguments in (
        ("path_create_directory", (ROOT, *bad)),
        ("path_filestat_get", (ROOT, 0, *bad, OUT)),
        ("path_filestat_set_times", (ROOT, 0, *bad, 0, 0, 0)),
        ("path_link", (ROOT, 0, *bad, ROOT, *good)),
        ("path_link", (ROOT, 0, *good, ROOT, *bad)),
        ("path_open", (ROOT, 0, *bad, CREAT, 2, 0, 0, OUT)),
        ("path_readlink", (ROOT, *bad, 60000, 100, OUT)),
        ("path_remove_directory", (ROOT, *bad)),
        ("path_rename", (ROOT, *bad, ROOT, *good)),
        ("path_rename", (ROOT, *good, ROOT, *bad)),
        ("path_symlink", (*good, ROOT, *bad)),
        ("path_unlink_file", (ROOT, *bad)),
    ):
        assert guest.errno(name, *arguments) == errno, name
    assert guest.names() == ["d", "ok"]


def test_the_longest_names_and_paths(guest: Guest) -> None:
    name = "é" * 127 + "x"
    guest.file(name, b"1")
    assert guest.content("./" * 1920 + name) == b"1"
    assert guest.names() == [name]


def test_links(guest: Guest) -> None:
    guest.file("a", b"shared")
    guest.mkdir("d")
    guest.link("a", "d/b")
    assert guest.stat("a") == guest.stat("d/b")
    assert guest.stat("a").links == 2
    guest.unlink("a")
    assert guest.content("d/b") == b"shared"
    assert refused(guest.link, "d", "e") == Errno.PERM
    assert refused(guest.link, "nothing", "e") == Errno.NOENT
    assert refused(guest.link, "d/b", "d/b") == Errno.EXIST
    assert refused(guest.link, "d/b", "d") == Errno.EXIST
    assert refused(guest.link, "d/b", "x/y") == Errno.NOENT
    guest.symlink("d/b", "l")
    guest.link("l", "kept")
    guest.link("l", "followed", follow=True)
    assert guest.readlink("kept") == b"d/b"
    assert guest.content("followed") == b"shared"
    assert guest.errno("path_link", ROOT, 2, 0, 0, ROOT, 0, 0) == Errno.INVAL


def test_symbolic_links(guest: Guest) -> None:
    guest.mkdir("d")
    guest.mkdir("d/e")
    guest.file("d/e/f", b"found")
    guest.symlink("e/f", "d/short")
    guest.symlink("../d", "d/up")
    guest.symlink("d/up/e", "far")
    assert guest.content("d/short") == b"found"
    assert guest.content("d/up/up/up/short") == b"found"
    assert guest.content("far/f") == b"found"
    assert guest.content("far/../short") == b"found"
    assert guest.readlink("far") == b"d/up/e"
    assert guest.readlink("far", 3) == b"d/u"
    assert guest.readlink("far", 0) == b""
    assert refused(guest.readlink, "d/e/f") == Errno.INVAL
    assert refused(guest.readlink, "d") == Errno.INVAL
    assert refused(guest.readlink, "nothing") == Errno.NOENT
    assert refused(guest.symlink, "x", "far") == Errno.EXIST
    assert refused(guest.symlink, "x", "no/way") == Errno.NOENT
    assert refused(guest.symlink, "", "empty") == Errno.NOENT
    assert refused(guest.symlink, "x" * 4096, "long") == Errno.NAMETOOLONG


def test_links_that_go_round(guest: Guest) -> None:
    guest.symlink("b", "a")
    guest.symlink("a", "b")
    guest.symlink("self/x", "self")
    for path in ("a", "a/x", "self", "self/y"):
        assert refused(guest.stat, path) == Errno.LOOP
    assert refused(guest.open, "a", CREAT) == Errno.LOOP
    assert guest.readlink("a") == b"b"


def test_forty_links_are_followed_and_no_more(guest: Guest) -> None:
    guest.file("0", b"end")
    for number in range(1, 42):
        guest.symlink(str(number - 1), str(number))
    assert guest.content("40") == b"end"
    assert refused(guest.stat, "41") == Errno.LOOP


def test_links_that_grow_too_long(guest: Guest) -> None:
    guest.symlink("./" * 2000 + "b", "a")
    guest.mkdir("b")
    assert guest.stat("a").filetype == 3
    assert refused(guest.stat, "a/" + "./" * 100 + "x") == Errno.NAMETOOLONG


def test_rename(guest: Guest) -> None:
    guest.file("a", b"a")
    guest.file("b", b"b")
    guest.mkdir("d")
    guest.mkdir("e")
    guest.rename("a", "b")
    assert guest.content("b") == b"a"
    guest.rename("b", "d/c")
    assert guest.content("d/c") == b"a"
    guest.rename("d/c", "d/c")
    assert refused(guest.rename, "d", "d/below") == Errno.INVAL
    assert refused(guest.rename, "e", "d") == Errno.NOTEMPTY
    guest.rename("d", "e")
    assert guest.names() == ["e"]
    assert guest.content("e/c") == b"a"
    guest.file("f")
    assert refused(guest.rename, "f", "e") == Errno.ISDIR
    assert refused(guest.rename, "e", "f") == Errno.NOTDIR
    assert refused(guest.rename, "nothing", "x") == Errno.NOENT
    assert refused(guest.rename, "f", "x/y") == Errno.NOENT
    assert refused(guest.rename, ".", "x") == Errno.BUSY
    assert refused(guest.rename, "e", ".") == Errno.BUSY
    guest.symlink("f", "l")
    guest.rename("l", "m")
    assert guest.readlink("m") == b"f"


def test_a_directory_that_moved_is_reached_by_its_descriptor(guest: Guest) -> None:
    guest.mkdir("a")
    guest.mkdir("b")
    fd = guest.open("a", DIRECTORY)
    guest.rename("a", "b/c")
    guest.file("b/c/file", b"1")
    assert guest.stat("file", fd=fd).size == 1
    assert guest.stat("b/c/..").inode == guest.stat("b").inode


def test_nothing_is_made_in_a_directory_that_was_removed(guest: Guest) -> None:
    guest.mkdir("a")
    guest.file("b")
    fd = guest.open("a", DIRECTORY)
    guest.rmdir("a")
    assert refused(guest.open, "x", CREAT, fd=fd) == Errno.NOENT
    assert refused(guest.mkdir, "x", fd=fd) == Errno.NOENT
    assert refused(guest.symlink, "b", "x", fd=fd) == Errno.NOENT
    assert refused(guest.rename, "b", "x", to=fd) == Errno.NOENT
    assert guest.errno("path_link", ROOT, 0, *guest.path("b"), fd, *guest.path("x", PATH_2)) == (
        Errno.NOENT
    )
    assert [each.name for each in guest.readdir(fd)] == [b".", b".."]


def test_readdir_says_what_is_there(guest: Guest) -> None:
    guest.mkdir("d")
    guest.file("d/f")
    guest.symlink("f", "d/l")
    guest.mkdir("d/s")
    fd = guest.open("d", DIRECTORY)
    found = {each.name: each for each in guest.readdir(fd)}
    assert {name: each.filetype for name, each in found.items()} == {
        b".": 3,
        b"..": 3,
        b"f": 4,
        b"l": 7,
        b"s": 3,
    }
    assert found[b"."].inode == guest.stat("d").inode
    assert found[b".."].inode == guest.stat(".").inode
    assert found[b"f"].inode == guest.stat("d/f").inode
    # The root of what was granted has nothing above it.
    root = {each.name: each.inode for each in guest.readdir(ROOT)}
    assert root[b".."] == root[b"."]


def test_readdir_cuts_the_last_entry(guest: Guest) -> None:
    guest.file("name")
    guest.call("fd_readdir", ROOT, BUFFER, 30, 0, OUT)
    assert guest.number() == 30
    guest.call("fd_readdir", ROOT, BUFFER, 25, 0, OUT)
    assert guest.number() == 25
    assert [each.name for each in guest.readdir(ROOT, 0, 25)] == [b"."]
    assert guest.readdir(ROOT, 1, 25) == []
    guest.call("fd_readdir", ROOT, BUFFER, 0, 0, OUT)
    assert guest.number() == 0
    guest.call("fd_readdir", ROOT, BUFFER, 4096, 0, OUT)
    assert guest.number() == 24 + 1 + 24 + 2 + 24 + 4


def test_cookies_survive_changes(guest: Guest) -> None:
    for number in range(200):
        guest.file(f"file-{number:03}")
    first = guest.readdir(ROOT, 0, 1000)
    seen = [each.name for each in first]
    for name in seen[2:]:
        guest.unlink(name.decode())
    for number in range(50):
        guest.unlink(f"file-{number + 100:03}")
    cookie = first[-1].next
    while part := guest.readdir(ROOT, cookie, 1000):
        seen += [each.name for each in part]
        cookie = part[-1].next
    assert len(seen) == len(set(seen))
    missing = {f"file-{number:03}".encode() for number in range(200)} - set(seen)
    # Only what was removed before it was reached is not seen.
    assert missing <= {f"file-{number + 100:03}".encode() for number in range(50)}


def test_removing_all_while_reading_leaves_nothing(guest: Guest) -> None:
    for number in range(120):
        guest.file(f"{number}")
    cookie = 0
    while part := guest.readdir(ROOT, cookie, 400):
        for each in part:
            if not each.name.startswith(b"."):
                guest.unlink(each.name.decode())
        cookie = part[-1].next
    assert guest.names() == []


def test_made_up_cookies_are_harmless(guest: Guest) -> None:
    guest.file("a")
    for cookie in (3, 7, 11, 4095, 4096, 1 << 20, 1 << 62, (1 << 64) - 1):
        errno = guest.errno("fd_readdir", ROOT, BUFFER, 100, cookie, OUT)
        assert errno in {Errno.SUCCESS, Errno.INVAL}


def test_across_two_granted_directories() -> None:
    with sealed_guest(SealedDirectory("/data", "/files/data")) as guest:
        guest.file("a", b"moved")
        guest.rename("a", "b", to=4)
        assert guest.content("data/b") == b"moved"
        assert guest.errno("path_link", 4, 0, *guest.path("b"), ROOT, *guest.path("c", PATH_2)) == 0
        assert guest.open("c", rights=READ_RIGHTS) == 5
