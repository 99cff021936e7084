"""Programs that try to leave the directories they were given, by every way that a path has.

Beside each sealed directory here lies a secret that the program must not see: `/files/secret` next
to `/files/box`, which is all that was granted. Plain directories have theirs on the host.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from avow import artefacts
from avow.sandbox.wasi import PlainDirectory, SealedDirectory, Wasi
from avow.sealing.store import Store
from tests.unit.sandbox.wasi_guest import (
    BUFFER,
    CREAT,
    DIRECTORY,
    KEY,
    OUT,
    PATH_2,
    READ_RIGHTS,
    ROOT,
    Errno,
    FailedError,
    Guest,
    MemoryDisk,
)

SECRET = b"nobody may see this"
# vault/src/wasi/host.zig, OPEN_PATH.
ONLY_TO_ASK = 4


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.create_on(MemoryDisk(), [KEY]) as store:
        store.make_file("/files/secret")
        store.write("/files/secret", SECRET)
        store.make_directory("/files/box/inner/most", parents=True)
        yield store


@pytest.fixture
def guest(store: Store) -> Iterator[Guest]:
    with boxed(store) as wasi:
        yield Guest(wasi)


def boxed(store: Store, **more: Any) -> Wasi:
    directories = [SealedDirectory("/", "/files/box")]
    return Wasi(arguments=[], entropy=bytes(32), store=store, directories=directories, **more)


WAYS_OUT = (
    "../secret",
    "./../secret",
    "inner/../../secret",
    "inner/most/../../../secret",
    "inner//..//..//secret",
    "/secret",
    "/files/secret",
    "..",
    "../",
    "../.",
    "../box/../secret",
    "inner/../..",
)


@pytest.mark.parametrize("path", WAYS_OUT)
def test_dots_and_slashes_lead_nowhere(guest: Guest, path: str) -> None:
    guest.file("own")
    here, there = guest.path(path), guest.path("mine", PATH_2)
    own = guest.path("own", BUFFER)
    for name, arguments in (
        ("path_open", (ROOT, 1, *here, 0, READ_RIGHTS, 0, 0, OUT)),
        ("path_open", (ROOT, 1, *here, CREAT, READ_RIGHTS, 0, 0, OUT)),
        ("path_open", (ROOT, 1, *here, DIRECTORY, 1 << 13, 0, 0, OUT)),
        ("path_create_directory", (ROOT, *here)),
        ("path_filestat_get", (ROOT, 1, *here, OUT)),
        ("path_filestat_set_times", (ROOT, 1, *here, 0, 0, 1)),
        ("path_link", (ROOT, 1, *here, ROOT, *there)),
        ("path_link", (ROOT, 1, *own, ROOT, *here)),
        ("path_readlink", (ROOT, *here, 60000, 100, OUT)),
        ("path_remove_directory", (ROOT, *here)),
        ("path_rename", (ROOT, *here, ROOT, *there)),
        ("path_rename", (ROOT, *own, ROOT, *here)),
        ("path_symlink", (*own, ROOT, *here)),
        ("path_unlink_file", (ROOT, *here)),
    ):
        assert guest.errno(name, *arguments) == Errno.NOTCAPABLE, name


def untouched(store: Store) -> bool:
    names = [each.name for each in store.listdir("/files")]
    return sorted(names) == ["box", "secret"] and store.read("/files/secret") == SECRET


@pytest.mark.parametrize(
    "target", ["../secret", "../../secret", "inner/../../secret", "..", "../box/../secret"]
)
def test_symbolic_links_lead_nowhere(guest: Guest, store: Store, target: str) -> None:
    guest.symlink(target, "link")
    attempts: tuple[Callable[[], object], ...] = (
        lambda: guest.open("link", rights=READ_RIGHTS),
        lambda: guest.open("link", CREAT),
        lambda: guest.stat("link"),
        lambda: guest.stat("link/"),
        lambda: guest.stat("link/x"),
        lambda: guest.file("link/new"),
        lambda: guest.link("link", "stolen", follow=True),
        lambda: guest.rename("link/secret", "stolen"),
        lambda: guest.unlink("link/secret"),
    )
    for attempt in attempts:
        with pytest.raises(FailedError) as caught:
            attempt()
        assert caught.value.errno == Errno.NOTCAPABLE
    assert untouched(store)


def test_a_chain_of_links_leads_nowhere(guest: Guest, store: Store) -> None:
    """Each is harmless by itself."""
    guest.symlink("..", "inner/up")
    guest.symlink("inner/up", "same")
    assert guest.stat("same/").inode == guest.stat(".").inode
    for path in ("same/../secret", "inner/up/up/secret", "same/same/../secret"):
        with pytest.raises(FailedError) as caught:
            guest.stat(path)
        assert caught.value.errno in {Errno.NOTCAPABLE, Errno.NOENT}
    assert untouched(store)


@pytest.mark.parametrize("target", ["/secret", "/files/secret", "/"])
def test_absolute_links_are_neither_made_nor_followed(
    guest: Guest, store: Store, target: str
) -> None:
    with pytest.raises(FailedError) as caught:
        guest.symlink(target, "link")
    assert caught.value.errno == Errno.NOTCAPABLE
    assert guest.names() == ["inner"]
    # One that somebody else put there. The longer one is written over a link that may be made.
    guest.symlink("x" * len(target), "link")
    inode = guest.stat("link", follow=False).inode
    library = ctypes.CDLL(os.fspath(artefacts.vault_path()))
    encoded = target.encode()
    library.avow_store_write(
        ctypes.c_void_p(store.handle),
        ctypes.c_uint64(inode),
        ctypes.c_uint64(0),
        encoded,
        ctypes.c_size_t(len(encoded)),
        ctypes.c_uint64(1),
    )
    assert guest.readlink("link") == encoded
    for path in ("link", "link/", "link/secret"):
        with pytest.raises(FailedError) as caught:
            guest.stat(path)
        assert caught.value.errno == Errno.NOTCAPABLE


def test_a_directory_that_was_opened_is_a_box_of_its_own(guest: Guest) -> None:
    guest.file("own")
    inner = guest.open("inner", DIRECTORY)
    for path in ("../own", "..", "most/../../own"):
        with pytest.raises(FailedError) as caught:
            guest.stat(path, fd=inner)
        assert caught.value.errno == Errno.NOTCAPABLE
    guest.symlink("../own", "inner/link")
    assert guest.stat("inner/link").size == 0
    with pytest.raises(FailedError) as caught:
        guest.stat("link", fd=inner)
    assert caught.value.errno == Errno.NOTCAPABLE


def test_a_directory_that_moves_up_opens_nothing(store: Store) -> None:
    """Two boxes; a directory is moved from the deep one to the other while a program is inside."""
    store.make_directory("/files/other")
    directories = [SealedDirectory("/a", "/files/box"), SealedDirectory("/b", "/files/other")]
    with Wasi(arguments=[], entropy=bytes(32), store=store, directories=directories) as wasi:
        guest = Guest(wasi)
        most = guest.open("inner/most", DIRECTORY)
        guest.rename("inner/most", "moved", to=ROOT + 1)
        for path in ("..", "../../secret"):
            with pytest.raises(FailedError) as caught:
                guest.stat(path, fd=most)
            assert caught.value.errno == Errno.NOTCAPABLE


def test_the_names_in_a_box_say_nothing_of_what_is_above(guest: Guest, store: Store) -> None:
    entries = {each.name: each.inode for each in guest.readdir(ROOT)}
    assert entries[b".."] == entries[b"."]
    assert store.stat("/files").inode not in entries.values()
    # Opened again, as the C library does it.
    again = {each.name: each.inode for each in guest.readdir(guest.open(".", DIRECTORY))}
    assert again == entries
    # Nor when the one that was granted is closed, or has another number.
    fd = guest.open(".", DIRECTORY)
    guest.call("fd_renumber", ROOT, guest.open(".", DIRECTORY))
    guest.close(fd + 1)
    assert {each.name: each.inode for each in guest.readdir(fd)} == entries


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    box = tmp_path / "box"
    (box / "inner").mkdir(parents=True)
    (box / "file").write_bytes(b"fine")
    (box / "inner" / "file").write_bytes(b"fine")
    (box / "out").symlink_to("../secret")
    (box / "absolute").symlink_to(tmp_path / "secret")
    (box / "up").symlink_to("..")
    (box / "inside").symlink_to("inner/file")
    (box / "proc").symlink_to("/proc/self/root")
    return box


def in_steps(guest: Guest) -> None:
    """As on a kernel without openat2."""
    library = ctypes.CDLL(os.fspath(artefacts.vault_path()))
    library.avow_wasi_open_in_steps.restype = ctypes.c_int64
    library.avow_wasi_open_in_steps.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_char_p,
        ctypes.c_uint32,
    ]
    guest.wasi.replace("open", library.avow_wasi_open_in_steps)


@pytest.mark.parametrize("without_openat2", [False, True])
@pytest.mark.parametrize(
    "path",
    [*WAYS_OUT, "out", "absolute", "up/secret", "up", "inner/../up/secret", "proc", "proc/etc"],
)
def test_plain_directories_are_not_left(host: Path, path: str, without_openat2: bool) -> None:
    directories = [PlainDirectory("/", host)]
    with Wasi(arguments=[], entropy=bytes(32), directories=directories) as wasi:
        guest = Guest(wasi)
        if without_openat2:
            in_steps(guest)
        allowed = {Errno.NOTCAPABLE, Errno.NOENT, Errno.NOTDIR, Errno.LOOP}
        for attempt in (
            lambda: guest.open(path, rights=READ_RIGHTS),
            lambda: guest.open(path, DIRECTORY),
            lambda: guest.stat(path),
        ):
            with pytest.raises(FailedError) as caught:
                attempt()
            assert caught.value.errno in allowed


def test_without_openat2_files_are_found_all_the_same(host: Path) -> None:
    directories = [PlainDirectory("/", host)]
    with Wasi(arguments=[], entropy=bytes(32), directories=directories) as wasi:
        guest = Guest(wasi)
        in_steps(guest)
        for path in ("file", "./file", "inner/file", "inner/../file", "inner/../inner//file"):
            assert guest.read(guest.open(path, rights=READ_RIGHTS), 10) == b"fine"
        assert guest.stat("inner/..").filetype == 3
        assert guest.names("inner") == ["file"]
        assert guest.readlink("inside") == b"inner/file"
        for path, expected in (
            ("inside", Errno.LOOP),
            ("file/", Errno.NOTDIR),
            ("file/x", Errno.NOTDIR),
            ("nothing/x", Errno.NOENT),
            ("n" * 256, Errno.NAMETOOLONG),
        ):
            with pytest.raises(FailedError) as caught:
                guest.open(path, rights=READ_RIGHTS)
            assert caught.value.errno == expected, path


def test_a_file_that_becomes_a_link_is_not_followed_out(host: Path) -> None:
    """The host's other programs change the directory while ours looks."""
    directories = [PlainDirectory("/", host)]
    with Wasi(arguments=[], entropy=bytes(32), directories=directories) as wasi:
        guest = Guest(wasi)
        native = guest.wasi.native("open")

        def swapped(_: int, fd: int, path: bytes, flags: int) -> int:
            (host / "file").unlink()
            (host / "file").symlink_to("../secret")
            return int(native(fd, path, flags))

        guest.wasi.replace("open", swapped)
        with pytest.raises(FailedError) as caught:
            guest.open("file", rights=READ_RIGHTS)
        assert caught.value.errno == Errno.NOTCAPABLE


def test_what_is_no_file_is_not_even_opened(host: Path) -> None:
    """To open a device is to do something, and to open a pipe wakes who waits at its other end."""
    os.mkfifo(host / "pipe")
    with Wasi(arguments=[], entropy=bytes(32), directories=[PlainDirectory("/", host)]) as wasi:
        guest = Guest(wasi)
        native = wasi.native("open")
        flags_given: list[int] = []

        def opened(_: int, fd: int, path: bytes, flags: int) -> int:
            flags_given.append(flags)
            return int(native(fd, path, flags))

        wasi.replace("open", opened)
        for oflags, expected in ((0, Errno.ACCES), (DIRECTORY, Errno.NOTDIR)):
            with pytest.raises(FailedError) as caught:
                guest.open("pipe", oflags, rights=READ_RIGHTS)
            assert caught.value.errno == expected
    assert len(flags_given) == 2
    assert all(flags & ONLY_TO_ASK for flags in flags_given)


def test_a_file_that_becomes_a_pipe_is_not_read(host: Path) -> None:
    """Between the question what it is and the opening, which does not wait for the other end."""
    with Wasi(arguments=[], entropy=bytes(32), directories=[PlainDirectory("/", host)]) as wasi:
        guest = Guest(wasi)
        native = wasi.native("open")

        def swapped(_: int, fd: int, path: bytes, flags: int) -> int:
            if not flags & ONLY_TO_ASK:
                (host / "file").unlink()
                os.mkfifo(host / "file")
            return int(native(fd, path, flags))

        wasi.replace("open", swapped)
        with pytest.raises(FailedError) as caught:
            guest.open("file", rights=READ_RIGHTS)
        assert caught.value.errno == Errno.ACCES


def test_no_device_of_the_host_is_opened() -> None:
    with Wasi(
        arguments=[], entropy=bytes(32), directories=[PlainDirectory("/", Path("/dev"))]
    ) as wasi:
        with pytest.raises(FailedError) as caught:
            Guest(wasi).open("null", rights=READ_RIGHTS)
        assert caught.value.errno == Errno.ACCES


@pytest.mark.parametrize("without_openat2", [False, True])
def test_the_memory_of_this_process_is_no_file(host: Path, without_openat2: bool) -> None:
    """Whatever folder the host puts in the place of a granted one, it shows no keys."""
    directories = [PlainDirectory("/", Path("/proc/self")), PlainDirectory("/all", Path("/"))]
    with Wasi(arguments=[], entropy=bytes(32), directories=directories) as wasi:
        guest = Guest(wasi)
        if without_openat2:
            in_steps(guest)
        for path, fd in (("mem", ROOT), ("environ", ROOT), ("fd", ROOT), ("proc/1/maps", ROOT + 1)):
            with pytest.raises(FailedError) as caught:
                guest.open(path, fd=fd, rights=READ_RIGHTS)
            assert caught.value.errno == Errno.ACCES, path
        inside = str(host / "file").removeprefix("/")
        assert guest.read(guest.open(inside, fd=ROOT + 1, rights=READ_RIGHTS), 10) == b"fine"


def test_descriptors_of_the_host_are_not_reached(host: Path) -> None:
    """A program's numbers are its own: those of this process mean nothing."""
    fd = os.open(host.parent / "secret", os.O_RDONLY)
    with Wasi(arguments=[], entropy=bytes(32), directories=[PlainDirectory("/", host)]) as wasi:
        guest = Guest(wasi)
        assert fd > ROOT
        assert guest.errno("fd_read", fd, *guest.vectors(10), OUT) == Errno.BADF
    os.close(fd)


def test_closing_gives_nothing_of_others_away(host: Path) -> None:
    """What is closed is closed on the host, once."""
    with Wasi(arguments=[], entropy=bytes(32), directories=[PlainDirectory("/", host)]) as wasi:
        guest = Guest(wasi)
        native = guest.wasi.native("close")
        closed: list[int] = []

        def close(_: int, fd: int) -> int:
            closed.append(fd)
            return int(native(fd))

        guest.wasi.replace("close", close)
        file = guest.open("file", rights=READ_RIGHTS)
        guest.stat("file")
        guest.call("fd_renumber", file, guest.open("inner/file", rights=READ_RIGHTS))
        assert guest.errno("fd_close", file) == Errno.BADF
        guest.close(file + 1)
        assert guest.errno("fd_close", file + 1) == Errno.BADF
        # Each is opened twice, and first only to ask about it.
        assert len(closed) == 5
        for fd in closed:
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                os.fstat(fd)
