"""WASI over sealed files: opening with every flag, reading, writing, sizes, times, descriptors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from avow.sandbox.wasi import SealedDirectory
from tests.unit.sandbox.wasi_guest import (
    APPEND,
    BUFFER,
    CREAT,
    DIRECTORY,
    DIRECTORY_RIGHTS,
    DSYNC,
    END,
    EXCL,
    FD_DATASYNC,
    FD_READ,
    FD_SEEK,
    FD_SYNC,
    FD_TELL,
    FD_WRITE,
    FILE_RIGHTS,
    NONBLOCK,
    OLD_TIME_NS,
    OUT,
    READ_RIGHTS,
    ROOT,
    RSYNC,
    SYNC,
    TRUNC,
    Errno,
    FailedError,
    Guest,
    MemoryDisk,
    sealed_guest,
)

REGULAR_FILE, A_DIRECTORY, SYMBOLIC_LINK = 4, 3, 7


@pytest.fixture
def guest() -> Iterator[Guest]:
    with sealed_guest() as guest:
        yield guest


def refused(guest: Guest, path: str, oflags: int = 0, **how: Any) -> Errno:
    with pytest.raises(FailedError) as caught:
        guest.open(path, oflags, **how)
    return caught.value.errno


def test_what_is_written_is_read(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    assert guest.write(fd, b"one", b"", b"two") == 6
    assert guest.seek(fd, 0) == 0
    assert guest.read(fd, 2, 0, 10) == b"onetwo"
    assert guest.read(fd, 10) == b""


def test_pread_and_pwrite_leave_the_offset(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.write(fd, b"0123456789")
    assert guest.pwrite(fd, 3, b"ab", b"c") == 3
    assert guest.pread(fd, 2, 3, 3) == b"2abc67"
    assert guest.seek(fd, 0, 1) == 10
    assert guest.pread(fd, 100, 5) == b""


def test_a_hole_reads_as_zeros(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.pwrite(fd, 9000, b"x")
    assert guest.pread(fd, 0, 9001) == bytes(9000) + b"x"


def test_large_files_cross_blocks(guest: Guest) -> None:
    content = bytes(range(256)) * 390
    guest.file("a", content)
    assert guest.content("a") == content


def test_seek_from_each_end(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.write(fd, b"0123456789")
    assert guest.seek(fd, -4, 2) == 6
    assert guest.seek(fd, -2, 1) == 4
    assert guest.read(fd, 1) == b"4"
    assert guest.seek(fd, 50) == 50
    assert guest.errno("fd_seek", fd, -51, 1, OUT) == Errno.INVAL
    assert guest.errno("fd_seek", fd, (1 << 63) - 1, 1, OUT) == Errno.INVAL
    assert guest.errno("fd_seek", fd, 0, 3, OUT) == Errno.INVAL
    guest.call("fd_tell", fd, OUT)
    assert guest.number(form="<Q") == 50


def test_append_writes_at_the_end_whoever_moved_it(guest: Guest) -> None:
    guest.file("a", b"12345")
    fd = guest.open("a", fdflags=APPEND)
    other = guest.open("a")
    guest.pwrite(other, 5, b"67")
    guest.seek(fd, 0)
    guest.write(fd, b"8")
    assert guest.content("a") == b"12345678"
    assert guest.seek(fd, 0, 1) == 8
    guest.call("fd_fdstat_set_flags", fd, 0)
    guest.seek(fd, 0)
    guest.write(fd, b"x")
    assert guest.content("a") == b"x2345678"


def test_open_flags(guest: Guest) -> None:
    assert refused(guest, "a") == Errno.NOENT
    guest.file("a", b"content")
    assert refused(guest, "a", CREAT | EXCL) == Errno.EXIST
    assert refused(guest, "a", DIRECTORY) == Errno.NOTDIR
    assert refused(guest, "b", CREAT | DIRECTORY) == Errno.INVAL
    assert refused(guest, "b", 16) == Errno.INVAL
    assert refused(guest, "b", CREAT, fdflags=32) == Errno.INVAL
    guest.close(guest.open("b", CREAT | EXCL))
    guest.close(guest.open("a", CREAT))
    assert guest.content("a") == b"content"
    guest.close(guest.open("a", TRUNC))
    assert guest.content("a") == b""
    assert guest.errno("path_open", ROOT, 2, 0, 0, 0, 0, 0, 0, OUT) == Errno.INVAL


def test_directories_open_for_no_writing(guest: Guest) -> None:
    guest.mkdir("d")
    assert refused(guest, "d") == Errno.ISDIR
    assert refused(guest, "d", TRUNC, rights=READ_RIGHTS) == Errno.ISDIR
    assert refused(guest, "d", CREAT, rights=READ_RIGHTS) == Errno.ISDIR
    assert refused(guest, "d", CREAT | EXCL) == Errno.EXIST
    fd = guest.open("d", rights=READ_RIGHTS)
    assert guest.errno("fd_read", fd, *guest.vectors(1), OUT) == Errno.ISDIR
    assert guest.errno("fd_write", fd, *guest.vectors(1), OUT) == Errno.ISDIR
    assert guest.errno("fd_pread", fd, *guest.vectors(1), 0, OUT) == Errno.ISDIR
    assert guest.errno("fd_pwrite", fd, *guest.vectors(1), 0, OUT) == Errno.ISDIR
    assert guest.errno("fd_seek", fd, 0, 0, OUT) == Errno.ISDIR
    assert guest.errno("fd_filestat_set_size", fd, 0) == Errno.ISDIR


def test_open_links(guest: Guest) -> None:
    guest.file("a", b"target")
    guest.symlink("a", "l")
    assert guest.content("l") == b"target"
    assert refused(guest, "l", follow=False) == Errno.LOOP
    assert refused(guest, "l", DIRECTORY, follow=False) == Errno.NOTDIR
    assert refused(guest, "l", CREAT | EXCL) == Errno.EXIST
    guest.symlink("new", "dangling")
    assert refused(guest, "dangling") == Errno.NOENT
    assert refused(guest, "dangling", CREAT | EXCL) == Errno.EXIST
    guest.close(guest.open("dangling", CREAT))
    assert guest.stat("new").filetype == REGULAR_FILE


def test_rights_shrink_on_the_way_down(guest: Guest) -> None:
    fd = guest.open("a", CREAT, rights=FD_READ)
    assert guest.fdstat(fd) == (REGULAR_FILE, 0, FD_READ, 0)
    assert guest.errno("fd_write", fd, *guest.vectors(1), OUT) == Errno.NOTCAPABLE
    assert guest.errno("fd_pread", fd, *guest.vectors(1), 0, OUT) == Errno.NOTCAPABLE
    assert guest.errno("fd_seek", fd, 0, 1, OUT) == Errno.NOTCAPABLE
    for name, arguments in (
        ("fd_tell", (OUT,)),
        ("fd_sync", ()),
        ("fd_datasync", ()),
        ("fd_advise", (0, 0, 0)),
        ("fd_allocate", (0, 1)),
        ("fd_filestat_get", (OUT,)),
        ("fd_filestat_set_size", (0,)),
        ("fd_filestat_set_times", (0, 0, 0)),
        ("fd_fdstat_set_flags", (0,)),
    ):
        assert guest.errno(name, fd, *arguments) == Errno.NOTCAPABLE, name
    write_only = guest.open("a", rights=FD_WRITE)
    assert guest.errno("fd_read", write_only, *guest.vectors(1), OUT) == Errno.NOTCAPABLE
    assert guest.errno("fd_pwrite", write_only, *guest.vectors(1), 0, OUT) == Errno.NOTCAPABLE
    tells = guest.open("a", rights=FD_TELL)
    assert guest.seek(tells, 0, 1) == 0
    assert guest.errno("fd_seek", tells, 0, 0, OUT) == Errno.NOTCAPABLE
    seeks = guest.open("a", rights=FD_SEEK)
    guest.call("fd_tell", seeks, OUT)


def test_directory_rights(guest: Guest) -> None:
    guest.file("a")
    guest.mkdir("d")
    fd = guest.open(".", DIRECTORY, rights=1 << 13, inheriting=FD_READ | 1 << 13)
    two = (*guest.path("a"), fd, *guest.path("b"))
    for name, arguments in (
        ("path_create_directory", guest.path("x")),
        ("path_filestat_get", (0, *guest.path("a"), OUT)),
        ("path_filestat_set_times", (0, *guest.path("a"), 0, 0, 0)),
        ("path_link", (0, *two)),
        ("path_readlink", (*guest.path("a"), BUFFER, 1, OUT)),
        ("path_remove_directory", guest.path("d")),
        ("path_rename", two),
        ("path_unlink_file", guest.path("a")),
        ("fd_readdir", (BUFFER, 100, 0, OUT)),
    ):
        assert guest.errno(name, fd, *arguments) == Errno.NOTCAPABLE, name
    target = guest.path("t")
    assert guest.errno("path_symlink", *target, fd, *guest.path("l", 8192)) == Errno.NOTCAPABLE
    # The rights to link and to rename are of both directories.
    full = ROOT
    assert guest.errno("path_link", full, 0, *two) == Errno.NOTCAPABLE
    assert guest.errno("path_rename", full, *two) == Errno.NOTCAPABLE
    assert refused(guest, "new", CREAT, fd=fd, rights=FD_READ) == Errno.NOTCAPABLE
    assert refused(guest, "a", TRUNC, fd=fd, rights=FD_READ) == Errno.NOTCAPABLE
    assert refused(guest, "a", fd=fd, rights=FD_WRITE) == Errno.NOTCAPABLE
    assert refused(guest, "a", fd=fd, rights=FD_READ, inheriting=FD_WRITE) == Errno.NOTCAPABLE
    for flags in (SYNC, DSYNC, RSYNC):
        assert refused(guest, "a", fd=fd, rights=FD_READ, fdflags=flags) == Errno.NOTCAPABLE
    guest.close(guest.open("a", fd=fd, rights=FD_READ))
    nothing = guest.open(".", DIRECTORY, rights=1 << 14, inheriting=0)
    assert refused(guest, "a", fd=nothing, rights=0) == Errno.NOTCAPABLE


def test_set_rights_only_narrows(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.call("fd_fdstat_set_rights", fd, FD_READ, 0)
    assert guest.fdstat(fd)[2] == FD_READ
    assert guest.errno("fd_fdstat_set_rights", fd, FD_READ | FD_WRITE, 0) == Errno.NOTCAPABLE
    assert guest.errno("fd_fdstat_set_rights", fd, FD_READ, 1) == Errno.NOTCAPABLE
    assert guest.fdstat(fd)[2] == FD_READ


def test_file_rights_are_not_given_to_directories(guest: Guest) -> None:
    guest.mkdir("d")
    fd = guest.open("d", rights=READ_RIGHTS | DIRECTORY_RIGHTS, inheriting=FILE_RIGHTS)
    assert guest.fdstat(fd) == (A_DIRECTORY, 0, DIRECTORY_RIGHTS, FILE_RIGHTS)
    guest.file("a")
    fd = guest.open("a", rights=FILE_RIGHTS | DIRECTORY_RIGHTS, inheriting=FILE_RIGHTS)
    assert guest.fdstat(fd) == (REGULAR_FILE, 0, FILE_RIGHTS, 0)


def test_filestat(guest: Guest) -> None:
    guest.file("a", b"12345")
    guest.mkdir("d")
    guest.symlink("a", "l")
    found = guest.stat("a")
    assert (found.filetype, found.links, found.size) == (REGULAR_FILE, 1, 5)
    assert found.modified == found.changed == OLD_TIME_NS
    fd = guest.open("a")
    assert guest.fstat(fd) == found
    assert guest.stat("d").filetype == A_DIRECTORY
    assert guest.stat("l") == found
    link = guest.stat("l", follow=False)
    assert (link.filetype, link.size) == (SYMBOLIC_LINK, 1)
    assert len({found.inode, guest.stat("d").inode, link.inode}) == 3
    assert guest.errno("path_filestat_get", ROOT, 2, *guest.path("a"), OUT) == Errno.INVAL


def test_set_size(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.write(fd, b"1234567890")
    guest.call("fd_filestat_set_size", fd, 4)
    guest.call("fd_filestat_set_size", fd, 6)
    assert guest.content("a") == b"1234\0\0"
    assert guest.errno("fd_filestat_set_size", fd, 1 << 63) == Errno.FBIG
    readable = guest.open("a", rights=READ_RIGHTS)
    assert guest.errno("fd_filestat_set_size", readable, 0) == Errno.NOTCAPABLE


def test_allocate_only_grows(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.write(fd, b"12345")
    guest.call("fd_allocate", fd, 3, 5)
    assert guest.content("a") == b"12345\0\0\0"
    guest.call("fd_allocate", fd, 0, 2)
    assert guest.fstat(fd).size == 8
    assert guest.errno("fd_allocate", fd, 0, 0) == Errno.INVAL
    assert guest.errno("fd_allocate", fd, (1 << 63) - 1, 1) == Errno.FBIG
    assert guest.errno("fd_allocate", fd, 1, (1 << 64) - 1) == Errno.FBIG


def test_set_times(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.call("fd_filestat_set_times", fd, 111, 222, 1 | 4)
    assert guest.fstat(fd)[5:7] == (111, 222)
    guest.call("fd_filestat_set_times", fd, 333, 444, 2)
    assert guest.fstat(fd)[5:7] == (OLD_TIME_NS, 222)
    guest.symlink("a", "l")
    guest.call("path_filestat_set_times", ROOT, 1, *guest.path("l"), 555, 0, 1 | 8)
    assert guest.fstat(fd)[5:7] == (555, OLD_TIME_NS)
    guest.call("path_filestat_set_times", ROOT, 0, *guest.path("l"), 666, 777, 5)
    assert guest.stat("l", follow=False)[5:7] == (666, 777)
    assert guest.fstat(fd)[5:7] == (555, OLD_TIME_NS)
    for flags in (3, 12, 16):
        assert guest.errno("fd_filestat_set_times", fd, 0, 0, flags) == Errno.INVAL
        arguments = (ROOT, 0, *guest.path("a"), 0, 0, flags)
        assert guest.errno("path_filestat_set_times", *arguments) == Errno.INVAL


def test_advise(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    for advice in range(6):
        guest.call("fd_advise", fd, 0, 100, advice)
    assert guest.errno("fd_advise", fd, 0, 0, 6) == Errno.INVAL
    assert guest.errno("fd_advise", fd, 1, (1 << 63) - 1, 0) == Errno.INVAL


def test_sync_commits_the_store() -> None:
    disk = MemoryDisk()
    with sealed_guest(disk=disk) as guest:
        fd = guest.open("a", CREAT)
        for name in ("fd_sync", "fd_datasync"):
            before = disk.syncs
            guest.write(fd, b"x")
            assert disk.syncs == before
            guest.call(name, fd)
            assert disk.syncs > before
        directory = guest.open(".", DIRECTORY)
        guest.mkdir("d")
        before = disk.syncs
        guest.call("fd_sync", directory)
        assert disk.syncs > before


@pytest.mark.parametrize("name", ["fd_sync", "fd_datasync"])
def test_who_may_sync_may_sync_data(name: str) -> None:
    """A C library asks for the right to the weaker one only where it opens for writing."""
    disk = MemoryDisk()
    with sealed_guest(disk=disk) as guest:
        guest.open("a", CREAT)
        for fd in (
            guest.open("a", rights=FD_READ | FD_SYNC),
            guest.open(".", DIRECTORY, rights=FD_SYNC),
        ):
            guest.mkdir(f"d{fd}")
            before = disk.syncs
            guest.call(name, fd)
            assert disk.syncs > before
        assert guest.errno(name, guest.open("a", rights=FD_READ)) == Errno.NOTCAPABLE
        # The weaker one alone does not allow the stronger.
        weak = guest.open("a", rights=FD_DATASYNC)
        assert guest.errno("fd_datasync", weak) == Errno.SUCCESS
        assert guest.errno("fd_sync", weak) == Errno.NOTCAPABLE


@pytest.mark.parametrize("flags", [SYNC, DSYNC])
def test_synchronous_files_commit_each_write(flags: int) -> None:
    disk = MemoryDisk()
    with sealed_guest(disk=disk) as guest:
        fd = guest.open("a", CREAT, fdflags=flags)
        before = disk.syncs
        guest.write(fd, b"x")
        between = disk.syncs
        assert between > before
        guest.pwrite(fd, 5, b"y")
        assert disk.syncs > between


def test_flags_of_a_descriptor(guest: Guest) -> None:
    fd = guest.open("a", CREAT, fdflags=APPEND | SYNC)
    assert guest.fdstat(fd)[1] == APPEND | SYNC
    guest.call("fd_fdstat_set_flags", fd, NONBLOCK)
    assert guest.fdstat(fd)[1] == NONBLOCK
    assert guest.errno("fd_fdstat_set_flags", fd, 32) == Errno.INVAL


def test_an_unlinked_file_lives_until_it_is_closed(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.write(fd, b"still here")
    second = guest.open("a")
    guest.unlink("a")
    assert guest.fstat(fd).links == 0
    guest.close(fd)
    guest.pwrite(second, 10, b"!")
    assert guest.pread(second, 0, 20) == b"still here!"
    guest.close(second)
    assert guest.names() == []


def test_descriptors_are_the_lowest_that_are_free(guest: Guest) -> None:
    first, second, third = (guest.open(name, CREAT) for name in "abc")
    assert (second, third) == (first + 1, first + 2)
    guest.close(second)
    guest.close(first)
    assert guest.open("d", CREAT) == first
    assert guest.open("e", CREAT) == second
    assert guest.open("f", CREAT) == third + 1


def test_there_are_so_many_descriptors_and_no_more(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    while fd < 4095:
        fd = guest.open("a")
    assert refused(guest, "a") == Errno.MFILE
    # What could not be opened was not made either.
    assert refused(guest, "new", CREAT) == Errno.MFILE
    guest.close(17)
    assert guest.names() == ["a"]
    assert guest.open("a") == 17


def test_renumber(guest: Guest) -> None:
    guest.file("a", b"first")
    guest.file("b", b"second")
    first, second = guest.open("a"), guest.open("b")
    guest.read(first, 2)
    guest.call("fd_renumber", first, second)
    assert guest.read(second, 10) == b"rst"
    assert guest.errno("fd_close", first) == Errno.BADF
    guest.call("fd_renumber", second, second)
    assert guest.errno("fd_renumber", second, first) == Errno.BADF
    assert guest.errno("fd_renumber", first, second) == Errno.BADF
    assert guest.open("a") == first
    assert guest.open("a") == second + 1


def test_preopened_directories_are_renumbered_as_all_others() -> None:
    with sealed_guest(SealedDirectory("/data", "/files/deep")) as guest:
        guest.file("a", b"first")
        second = ROOT + 1
        guest.call("fd_renumber", ROOT, guest.open("a"))
        assert guest.errno("fd_prestat_get", ROOT, OUT) == Errno.BADF
        moved = second + 1
        guest.call("fd_prestat_get", moved, OUT)
        assert guest.number(OUT + 4) == len("/")
        assert guest.read(guest.open("a", fd=moved), 9) == b"first"
        # A file in its place: the name is gone with the directory.
        file = guest.open("a", fd=moved)
        guest.call("fd_renumber", file, second)
        assert guest.read(second, 9) == b"first"
        assert guest.errno("fd_prestat_get", second, OUT) == Errno.BADF
        guest.call("fd_renumber", moved, ROOT)
        assert guest.names() == ["a", "deep"]


def test_preopened_directories() -> None:
    with sealed_guest(SealedDirectory("/data", "/files/deep/er")) as guest:
        names = []
        for fd in (3, 4):
            guest.call("fd_prestat_get", fd, OUT)
            assert guest.get(OUT, 4) == bytes(4)
            length = guest.number(OUT + 4)
            guest.call("fd_prestat_dir_name", fd, BUFFER, length)
            names.append(guest.get(BUFFER, length))
            short = guest.errno("fd_prestat_dir_name", fd, BUFFER, length - 1)
            assert short == Errno.NAMETOOLONG
        assert names == [b"/", b"/data"]
        for fd in (0, 5, guest.open("file", CREAT)):
            assert guest.errno("fd_prestat_get", fd, OUT) == Errno.BADF
            assert guest.errno("fd_prestat_dir_name", fd, BUFFER, 100) == Errno.BADF
        assert guest.names("deep") == ["er"]


def test_descriptors_that_are_not_there(guest: Guest) -> None:
    path = guest.path("a")
    for fd in (77, 4096, 0xFFFFFFFF):
        for name, arguments in (
            ("fd_advise", (0, 0, 0)),
            ("fd_allocate", (0, 1)),
            ("fd_close", ()),
            ("fd_datasync", ()),
            ("fd_fdstat_get", (OUT,)),
            ("fd_fdstat_set_flags", (0,)),
            ("fd_fdstat_set_rights", (0, 0)),
            ("fd_filestat_get", (OUT,)),
            ("fd_filestat_set_size", (0,)),
            ("fd_filestat_set_times", (0, 0, 0)),
            ("fd_pread", (0, 0, 0, OUT)),
            ("fd_pwrite", (0, 0, 0, OUT)),
            ("fd_read", (0, 0, OUT)),
            ("fd_readdir", (BUFFER, 1, 0, OUT)),
            ("fd_seek", (0, 0, OUT)),
            ("fd_sync", ()),
            ("fd_tell", (OUT,)),
            ("fd_write", (0, 0, OUT)),
            ("path_create_directory", path),
            ("path_filestat_get", (0, *path, OUT)),
            ("path_filestat_set_times", (0, *path, 0, 0, 0)),
            ("path_link", (0, *path, ROOT, *path)),
            ("path_open", (0, *path, 0, 0, 0, 0, OUT)),
            ("path_readlink", (*path, BUFFER, 1, OUT)),
            ("path_remove_directory", path),
            ("path_rename", (*path, ROOT, *path)),
            ("path_unlink_file", path),
            ("sock_accept", (0, OUT)),
            ("sock_recv", (0, 0, 0, OUT, OUT)),
            ("sock_send", (0, 0, 0, OUT)),
            ("sock_shutdown", (1,)),
        ):
            assert guest.errno(name, fd, *arguments) == Errno.BADF, name
        assert guest.errno("path_symlink", *path, fd, *path) == Errno.BADF
        assert guest.errno("path_rename", ROOT, *path, fd, *path) == Errno.BADF
        assert guest.errno("path_link", ROOT, 0, *path, fd, *path) == Errno.BADF


def test_paths_below_a_file(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    path = guest.path("x")
    for name, arguments in (
        ("path_create_directory", path),
        ("path_filestat_get", (0, *path, OUT)),
        ("path_open", (0, *path, 0, 0, 0, 0, OUT)),
        ("path_readlink", (*path, BUFFER, 1, OUT)),
        ("path_remove_directory", path),
        ("path_unlink_file", path),
        ("fd_readdir", (BUFFER, 1, 0, OUT)),
    ):
        assert guest.errno(name, fd, *arguments) == Errno.NOTDIR, name


def test_what_lies_outside_of_memory(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.write(fd, bytes(100))
    # The first buffer is good, the second is not.
    numbers = (OUT, 4, END - 4, 5)
    guest.put(BUFFER, b"".join(number.to_bytes(4, "little") for number in numbers))
    bad_vector = (BUFFER, 2)
    for name, arguments in (
        ("fd_read", (fd, END - 7, 1, OUT)),
        ("fd_read", (fd, *bad_vector, OUT)),
        ("fd_read", (fd, 0xFFFFFFF8, 1, OUT)),
        ("fd_read", (fd, 0, 0, END - 3)),
        ("fd_pread", (fd, *bad_vector, 0, OUT)),
        ("fd_pread", (fd, 0, 0, 0, 0xFFFFFFFF)),
        ("fd_write", (fd, *bad_vector, OUT)),
        ("fd_write", (fd, 0, 0, END)),
        ("fd_pwrite", (fd, *bad_vector, 0, OUT)),
        ("fd_pwrite", (fd, 0, 0, 0, END)),
        ("fd_seek", (fd, 0, 0, END - 7)),
        ("fd_tell", (fd, END - 7)),
        ("fd_fdstat_get", (fd, END - 23)),
        ("fd_filestat_get", (fd, END - 63)),
        ("fd_prestat_get", (ROOT, END - 7)),
        ("fd_prestat_dir_name", (ROOT, END, 1)),
        ("fd_readdir", (ROOT, END - 9, 10, 0, OUT)),
        ("fd_readdir", (ROOT, BUFFER, 0xFFFFFFFF, 0, OUT)),
        ("fd_readdir", (ROOT, BUFFER, 10, 0, END)),
        ("path_create_directory", (ROOT, END - 1, 2)),
        ("path_create_directory", (ROOT, 0xFFFFFFFF, 0xFFFFFFFF)),
        ("path_filestat_get", (ROOT, 0, END, 1, OUT)),
        ("path_filestat_get", (ROOT, 0, *guest.path("a"), END - 63)),
        ("path_filestat_set_times", (ROOT, 0, END, 1, 0, 0, 0)),
        ("path_link", (ROOT, 0, END, 1, ROOT, *guest.path("b"))),
        ("path_link", (ROOT, 0, *guest.path("a"), ROOT, END, 1)),
        ("path_open", (ROOT, 0, END, 1, 0, 0, 0, 0, OUT)),
        ("path_open", (ROOT, 0, *guest.path("b"), CREAT, 0, 0, 0, END - 3)),
        ("path_readlink", (ROOT, END, 1, BUFFER, 1, OUT)),
        ("path_readlink", (ROOT, *guest.path("a"), END, 1, OUT)),
        ("path_readlink", (ROOT, *guest.path("a"), BUFFER, 1, END)),
        ("path_remove_directory", (ROOT, END, 1)),
        ("path_rename", (ROOT, END, 1, ROOT, *guest.path("b"))),
        ("path_rename", (ROOT, *guest.path("a"), ROOT, END, 1)),
        ("path_symlink", (END, 1, ROOT, *guest.path("b"))),
        ("path_symlink", (*guest.path("a"), ROOT, END, 1)),
        ("path_unlink_file", (ROOT, END, 1)),
    ):
        assert guest.errno(name, *arguments) == Errno.FAULT, (name, arguments)
    # Nothing happened before the fault was found.
    assert guest.names() == ["a"]
    assert guest.fstat(fd).size == 100


def test_vectors_are_bounded(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    guest.put(BUFFER, bytes(8 * 1025))
    assert guest.errno("fd_read", fd, BUFFER, 1024, OUT) == Errno.SUCCESS
    assert guest.errno("fd_read", fd, BUFFER, 1025, OUT) == Errno.INVAL
    assert guest.errno("fd_write", fd, BUFFER, 0xFFFFFFFF, OUT) == Errno.INVAL
    guest.memory.grow(guest.store, 32)
    for each, expected in ((1 << 21, Errno.INVAL), ((1 << 21) - 1, Errno.SUCCESS)):
        # 1024 times 2 MiB is one byte more than one call moves.
        table = (0).to_bytes(4, "little") + each.to_bytes(4, "little")
        guest.put(BUFFER, table * 1024)
        assert guest.errno("fd_pread", fd, BUFFER, 1024, 0, OUT) == expected


def test_offsets_are_bounded(guest: Guest) -> None:
    fd = guest.open("a", CREAT)
    vectors = guest.vectors(1)
    assert guest.errno("fd_pread", fd, *vectors, 1 << 63, OUT) == Errno.INVAL
    assert guest.errno("fd_pwrite", fd, *vectors, 1 << 63, OUT) == Errno.INVAL
    assert guest.errno("fd_pwrite", fd, *vectors, (1 << 63) - 1, OUT) == Errno.FBIG
    assert guest.fstat(fd).size == 0


def test_read_only_directories() -> None:
    with sealed_guest(SealedDirectory("/ro", "/files", read_only=True)) as guest:
        guest.file("a", b"content")
        guest.mkdir("d")
        guest.symlink("a", "l")
        read_only = 4
        fd = guest.open("a", fd=read_only, rights=READ_RIGHTS)
        assert guest.read(fd, 100) == b"content"
        assert refused(guest, "a", fd=read_only) == Errno.ROFS
        assert refused(guest, "a", TRUNC, fd=read_only, rights=READ_RIGHTS) == Errno.ROFS
        assert refused(guest, "new", CREAT, fd=read_only) == Errno.ROFS
        assert refused(guest, "new", fd=read_only) == Errno.NOENT
        below = guest.open("d", DIRECTORY, fd=read_only)
        new, old, folder = (guest.path(name, 9000 + 9 * ord(name)) for name in "xad")
        target = guest.path("b", 8192)
        for name, arguments in (
            ("path_create_directory", new),
            ("path_filestat_set_times", (0, *old, 0, 0, 1)),
            ("path_remove_directory", folder),
            ("path_unlink_file", old),
            ("path_rename", (*old, ROOT, *target)),
            ("path_link", (0, *old, ROOT, *target)),
        ):
            for directory in (read_only, below):
                assert guest.errno(name, directory, *arguments) == Errno.ROFS, name
        for directory in (read_only, below):
            for name in ("path_rename", "path_link"):
                flags = (0,) if name == "path_link" else ()
                arguments = (ROOT, *flags, *guest.path("a"), directory, *guest.path("b", 8192))
                assert guest.errno(name, *arguments) == Errno.ROFS
            link = (*guest.path("a"), directory, *guest.path("b", 8192))
            assert guest.errno("path_symlink", *link) == Errno.ROFS
            assert guest.errno("fd_filestat_set_times", directory, 0, 0, 1) == Errno.ROFS
        assert guest.errno("fd_filestat_set_times", fd, 0, 0, 1) == Errno.ROFS
        assert guest.names() == ["a", "d", "l"]
        # Making what is there is what programs do first; they expect to hear that it is.
        assert guest.errno("path_create_directory", read_only, *guest.path("d")) == Errno.EXIST
