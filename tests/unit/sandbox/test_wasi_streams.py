"""WASI over standard input and output, plain directories and sockets of this machine."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmtime import Trap

from avow.errors import MalformedError, UnavailableError
from avow.sandbox.wasi import PlainDirectory, listen, refusal
from tests.unit.sandbox.wasi_guest import (
    BUFFER,
    CREAT,
    DIRECTORY,
    EXCL,
    FD_READ,
    NONBLOCK,
    OUT,
    PATH_2,
    READ_RIGHTS,
    ROOT,
    TRUNC,
    Errno,
    FailedError,
    Guest,
    bare_guest,
    sealed_guest,
    wait_clock,
    wait_fd,
)

IN, STDOUT, STDERR = range(3)
SOCKET = 6
PATH_OPEN_RIGHT, SHUTDOWN_RIGHT = 1 << 13, 1 << 28
ALL_RIGHTS = (1 << 30) - 1


class Pipes:
    """A pipe for each of a program's standard streams."""

    def __init__(self) -> None:
        self.ends = [os.pipe() for _ in range(3)]
        self.given = (self.ends[0][0], self.ends[1][1], self.ends[2][1])
        self.stdin, self.stdout, self.stderr = self.ends[0][1], self.ends[1][0], self.ends[2][0]

        self._open = {fd for ends in self.ends for fd in ends}

    def end(self, fd: int) -> None:
        """Closes one end, once: its number may be somebody else's from then on."""
        self._open.remove(fd)
        os.close(fd)

    def close(self) -> None:
        for fd in list(self._open):
            self.end(fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


@contextmanager
def doing(work: object) -> Iterator[None]:
    """Runs `work` in another thread meanwhile."""
    assert callable(work)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)


def test_standard_streams(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        os.write(pipes.stdin, b"hello world")
        assert guest.read(IN, 5) == b"hello"
        # What is there, in one buffer: more would have to be waited for.
        assert guest.read(IN, 0, 100, 100) == b" world"
        assert guest.write(STDOUT, b"out", b"", b"put") == 6
        assert guest.write(STDERR, b"error") == 5
        assert os.read(pipes.stdout, 100) == b"output"
        assert os.read(pipes.stderr, 100) == b"error"
        pipes.end(pipes.stdin)
        assert guest.read(IN, 10) == b""


def test_streams_have_one_direction(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        assert guest.errno("fd_write", IN, *guest.vectors(1), OUT) == Errno.NOTCAPABLE
        assert guest.errno("fd_read", STDOUT, *guest.vectors(1), OUT) == Errno.NOTCAPABLE
        for name, arguments, expected in (
            ("fd_seek", (0, 0, OUT), Errno.SPIPE),
            ("fd_tell", (OUT,), Errno.SPIPE),
            ("fd_pread", (*guest.vectors(1), 0, OUT), Errno.SPIPE),
            ("fd_pwrite", (*guest.vectors(1), 0, OUT), Errno.SPIPE),
            ("fd_advise", (0, 0, 0), Errno.SPIPE),
            ("fd_allocate", (0, 1), Errno.SPIPE),
            ("fd_sync", (), Errno.INVAL),
            ("fd_datasync", (), Errno.INVAL),
            ("fd_filestat_set_size", (0,), Errno.INVAL),
            ("fd_filestat_set_times", (0, 0, 0), Errno.NOTCAPABLE),
            ("fd_readdir", (BUFFER, 10, 0, OUT), Errno.NOTDIR),
            ("sock_recv", (0, 0, 0, OUT, OUT), Errno.NOTSOCK),
            ("sock_send", (0, 0, 0, OUT), Errno.NOTSOCK),
            ("sock_accept", (0, OUT), Errno.NOTSOCK),
            ("sock_shutdown", (1,), Errno.NOTSOCK),
        ):
            assert guest.errno(name, STDOUT, *arguments) == expected, name
        assert guest.fdstat(STDOUT)[0] == 0
        assert guest.fstat(STDOUT)[:4] == (0, STDOUT, 0, 1)


def test_a_terminal_is_a_character_device() -> None:
    ours, theirs = os.openpty()
    with bare_guest(stdio=(theirs, theirs, theirs)) as guest:
        # What the C library takes for a terminal: this type, and no right to seek.
        filetype, _, rights, _ = guest.fdstat(STDOUT)
        assert filetype == 2
        assert rights & (1 << 2 | 1 << 5) == 0
    os.close(ours)
    os.close(theirs)


def test_output_to_a_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+b") as file:
        fd = file.fileno()
        with bare_guest(stdio=(fd, fd, fd)) as guest:
            assert guest.write(STDOUT, b"x" * 90000) == 90000
            assert guest.fdstat(STDOUT)[0] == 0
    assert (tmp_path / "out").read_bytes() == b"x" * 90000


def test_a_big_write_goes_out_whole(pipes: Pipes) -> None:
    received = bytearray()

    def drain() -> None:
        while len(received) < 200_000 and (part := os.read(pipes.stdout, 7000)):
            received.extend(part)

    with bare_guest(stdio=pipes.given) as guest, doing(drain):
        sent = os.urandom(100_000)
        assert guest.write(STDOUT, sent) == 100_000
        assert guest.write(STDOUT, sent[:50_000], sent[50_000:]) == 100_000
    assert bytes(received) == sent * 2


def test_short_pieces_go_out_in_one_call(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        native = guest.wasi.native("write")
        calls: list[int] = []

        def write(_: int, fd: int, address: int, length: int) -> int:
            calls.append(length)
            return int(native(fd, address, length))

        guest.wasi.replace("write", write)
        guest.write(STDOUT, b"a ", b"line", b"\n")
        assert calls == [7]


def test_nobody_reads(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        pipes.end(pipes.stdout)
        assert guest.errno("fd_write", STDOUT, *guest.vectors(10), OUT) == Errno.PIPE


def test_partial_writes_are_told(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        guest.call("fd_fdstat_set_flags", STDOUT, NONBLOCK)
        written = guest.write(STDOUT, bytes(200_000))
        assert 4096 <= written < 200_000
        assert guest.errno("fd_write", STDOUT, *guest.vectors(10), OUT) == Errno.AGAIN
        assert len(os.read(pipes.stdout, 200_000)) == written


def test_reading_without_waiting(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        guest.call("fd_fdstat_set_flags", IN, NONBLOCK)
        assert guest.errno("fd_read", IN, *guest.vectors(1), OUT) == Errno.AGAIN
        os.write(pipes.stdin, b"x")
        assert guest.read(IN, 10) == b"x"


def test_waiting_streams_are_polled(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        events = guest.poll(wait_fd(1, IN), wait_fd(2, STDOUT, write=True))
        assert events == [(2, 0, 2, 1, 0)]
        with doing(lambda: os.write(pipes.stdin, b"x")):
            assert guest.poll(wait_fd(1, IN)) == [(1, 0, 1, 1, 0)]
        guest.read(IN, 1)
        assert guest.poll(wait_fd(1, IN), wait_clock(2, 1, 1000)) == [(2, 0, 0, 0, 0)]
        pipes.end(pipes.stdin)
        assert guest.poll(wait_fd(1, IN)) == [(1, 0, 1, 0, 1)]
        for_ever = wait_clock(9, 1, (1 << 64) - 1)
        assert guest.poll(wait_fd(1, IN), for_ever) == [(1, 0, 1, 0, 1)]


def test_closing_leaves_the_hosts_streams_open(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        guest.close(STDOUT)
        assert guest.errno("fd_write", STDOUT, *guest.vectors(1), OUT) == Errno.BADF
    os.fstat(pipes.given[1])


@pytest.mark.parametrize("waits", ["read", "write", "poll", "accept"])
def test_interrupt_ends_what_waits(pipes: Pipes, waits: str) -> None:
    listener = listen("127.0.0.1", 0)
    with bare_guest(stdio=pipes.given, listeners=[listener]) as guest:
        vectors = guest.vectors(200_000)
        guest.put(BUFFER + 4096, wait_fd(1, IN))
        calls: dict[str, tuple[str | int, ...]] = {
            "read": ("fd_read", IN, *vectors, OUT),
            "write": ("fd_write", STDOUT, *vectors, OUT),
            "poll": ("poll_oneoff", BUFFER + 4096, BUFFER, 1, OUT),
            "accept": ("sock_accept", 4, 0, OUT),
        }
        native, entered = guest.wasi.native("poll"), threading.Event()

        def poll(_: int, waiting: int, count: int, timeout_ns: int) -> int:
            ready = int(native(waiting, count, 0))
            if ready:
                return ready
            entered.set()
            return int(native(waiting, count, timeout_ns))

        def interrupt() -> None:
            assert entered.wait(10)
            guest.wasi.interrupt()

        guest.wasi.replace("poll", poll)
        name, *arguments = calls[waits]
        with doing(interrupt), pytest.raises(Trap):
            guest.errno(str(name), *map(int, arguments))
        assert guest.wasi.was_interrupted


def test_signal_handlers_run_while_a_program_waits(pipes: Pipes) -> None:
    handled: list[int] = []

    def poll(_: int, waiting: int, count: int, timeout_ns: int) -> int:
        # As the kernel does it: the handler is noted, and the call comes back.
        signal.raise_signal(signal.SIGUSR1)
        return -errno.EINTR

    with bare_guest(stdio=pipes.given, on_signal=lambda: bool(handled)) as guest:
        before = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
        try:
            guest.wasi.replace("poll", poll)
            with pytest.raises(Trap):
                guest.read(IN, 1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert handled == [signal.SIGUSR1]
        assert guest.wasi.was_interrupted


def test_other_signals_are_not_seen_by_the_program(pipes: Pipes) -> None:
    with bare_guest(stdio=pipes.given) as guest:
        native, interruptions = guest.wasi.native("poll"), [1, 1, 1]

        def poll(_: int, waiting: int, count: int, timeout_ns: int) -> int:
            if interruptions:
                return -errno.EINTR * interruptions.pop()
            return int(native(waiting, count, timeout_ns))

        guest.wasi.replace("poll", poll)
        os.write(pipes.stdin, b"x")
        assert guest.read(IN, 1) == b"x"
        guest.wasi.replace("poll", lambda *_: -errno.EINTR)
        assert guest.errno("fd_read", IN, *guest.vectors(1), OUT) == Errno.INTR


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Guest]:
    (tmp_path / "inside" / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    inside = tmp_path / "inside"
    (inside / "file").write_bytes(b"0123456789")
    (inside / "deep" / "er").write_bytes(b"deep")
    (inside / "link").symlink_to("deep/er")
    (inside / "out").symlink_to("../secret")
    (inside / "absolute").symlink_to(tmp_path / "secret")
    os.mkfifo(inside / "pipe")
    with sealed_guest(PlainDirectory("/host", inside)) as guest:
        yield guest


HOST = 4


def test_plain_files_are_read(plain: Guest) -> None:
    fd = plain.open("file", fd=HOST, rights=READ_RIGHTS)
    assert plain.read(fd, 3, 2) == b"01234"
    assert plain.pread(fd, 8, 10) == b"89"
    assert plain.seek(fd, -1, 2) == 9
    assert plain.read(fd, 10) == b"9"
    assert plain.read(fd, 10) == b""
    found = plain.fstat(fd)
    assert (found.filetype, found.links, found.size) == (4, 1, 10)
    assert found == plain.stat("file", fd=HOST)
    assert plain.poll(wait_fd(1, fd)) == [(1, 0, 1, 0, 0)]
    plain.call("fd_sync", fd)
    plain.call("fd_advise", fd, 0, 0, 0)
    link = plain.open("link", fd=HOST, rights=READ_RIGHTS)
    assert plain.read(link, 10) == b"deep"
    assert plain.readlink("link", fd=HOST) == b"deep/er"
    assert plain.readlink("link", 4, fd=HOST) == b"deep"
    assert plain.stat("link", fd=HOST, follow=False).filetype == 7
    assert plain.stat("link", fd=HOST).filetype == 4
    assert plain.stat("pipe", fd=HOST).filetype == 0


def test_plain_directories_are_listed(plain: Guest) -> None:
    names = ["absolute", "deep", "file", "link", "out", "pipe"]
    assert plain.names(".", fd=HOST) == names
    assert plain.names("deep", fd=HOST) == ["er"]
    deep = plain.open("deep", DIRECTORY, fd=HOST)
    assert plain.open("er", fd=deep, rights=READ_RIGHTS) > deep
    kinds = {each.name: each.filetype for each in plain.readdir(HOST)}
    assert (kinds[b"file"], kinds[b"deep"], kinds[b"link"]) == (4, 3, 7)


def test_cookies_of_a_plain_directory_survive_changes(plain: Guest, tmp_path: Path) -> None:
    first = plain.readdir(HOST, 0, 130)
    for name in ("file", "out", "pipe"):
        (tmp_path / "inside" / name).unlink()
    (tmp_path / "inside" / "new").write_bytes(b"")
    rest = plain.readdir(HOST, first[-1].next)
    seen = sorted(each.name for each in (*first, *rest))
    assert seen == [b".", b"..", b"absolute", b"deep", b"file", b"link", b"out", b"pipe"]
    again = {each.name for each in plain.readdir(HOST)}
    assert b"new" in again
    assert b"file" not in again
    for cookie in (3, 5, 1 << 40, (1 << 64) - 1):
        assert plain.errno("fd_readdir", HOST, BUFFER, 100, cookie, OUT) in {0, Errno.INVAL}


@pytest.mark.parametrize(
    ("path", "oflags", "rights", "expected"),
    [
        ("../secret", 0, READ_RIGHTS, Errno.NOTCAPABLE),
        ("deep/../../secret", 0, READ_RIGHTS, Errno.NOTCAPABLE),
        ("/etc/passwd", 0, READ_RIGHTS, Errno.NOTCAPABLE),
        ("out", 0, READ_RIGHTS, Errno.NOTCAPABLE),
        ("absolute", 0, READ_RIGHTS, Errno.NOTCAPABLE),
        ("pipe", 0, READ_RIGHTS, Errno.ACCES),
        ("pipe", DIRECTORY, READ_RIGHTS, Errno.NOTDIR),
        ("file", DIRECTORY, READ_RIGHTS, Errno.NOTDIR),
        ("file/", 0, READ_RIGHTS, Errno.NOTDIR),
        ("nothing", 0, READ_RIGHTS, Errno.NOENT),
        ("nothing", CREAT, READ_RIGHTS, Errno.ROFS),
        ("file", CREAT | EXCL, READ_RIGHTS, Errno.EXIST),
        ("file", TRUNC, READ_RIGHTS, Errno.ROFS),
        ("file", 0, READ_RIGHTS | 1 << 6, Errno.ROFS),
        ("deep", 0, READ_RIGHTS | 1 << 6, Errno.ISDIR),
        ("x" * 300, 0, READ_RIGHTS, Errno.NAMETOOLONG),
    ],
)
def test_plain_files_that_are_not_opened(
    plain: Guest, path: str, oflags: int, rights: int, expected: Errno
) -> None:
    with pytest.raises(FailedError) as caught:
        plain.open(path, oflags, fd=HOST, rights=rights)
    assert caught.value.errno == expected


def test_files_of_any_date_are_opened(plain: Guest, tmp_path: Path) -> None:
    """Of before 1970, and of after 2262, which is the end of a clock in nanoseconds."""
    path = tmp_path / "inside" / "file"
    for seconds in (-5, 1, 9_300_000_000):
        os.utime(path, (seconds, seconds))
        expected_ns = min(max(0, path.stat().st_mtime_ns), (1 << 63) - 1)
        found = plain.fstat(plain.open("file", fd=HOST, rights=READ_RIGHTS))
        assert (found.accessed, found.modified) == (expected_ns, expected_ns)


def test_a_link_itself_is_not_opened(plain: Guest) -> None:
    with pytest.raises(FailedError) as caught:
        plain.open("link", fd=HOST, rights=READ_RIGHTS, follow=False)
    assert caught.value.errno == Errno.LOOP


def test_plain_directories_are_not_changed(plain: Guest, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    fd = plain.open("file", fd=HOST, rights=READ_RIGHTS)
    new, old, other = (plain.path(name, 9000 + 16 * n) for n, name in enumerate(("n", "file", "o")))
    for name, arguments in (
        ("path_create_directory", (HOST, *new)),
        ("path_filestat_set_times", (HOST, 0, *old, 0, 0, 1)),
        ("path_link", (HOST, 0, *old, HOST, *other)),
        ("path_remove_directory", (HOST, *plain.path("deep"))),
        ("path_rename", (HOST, *old, HOST, *other)),
        ("path_symlink", (*old, HOST, *other)),
        ("path_unlink_file", (HOST, *old)),
        ("fd_write", (fd, *plain.vectors(1), OUT)),
        ("fd_pwrite", (fd, *plain.vectors(1), 0, OUT)),
        ("fd_allocate", (fd, 0, 1)),
        ("fd_filestat_set_size", (fd, 0)),
        ("fd_filestat_set_times", (fd, 0, 0, 1)),
        ("fd_filestat_set_times", (HOST, 0, 0, 1)),
    ):
        assert plain.errno(name, *arguments) == Errno.ROFS, name
    plain.file("sealed")
    sealed, target = plain.path("sealed"), plain.path("x", PATH_2)
    assert plain.errno("path_rename", ROOT, *sealed, HOST, *target) == Errno.XDEV
    assert plain.errno("path_link", HOST, 0, *old, ROOT, *target) == Errno.XDEV
    assert sorted(tmp_path.rglob("*")) == before


def test_plain_directories_that_are_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(MalformedError, match="cannot be opened"),
        bare_guest(directories=[PlainDirectory("/host", tmp_path / "nothing")]),
    ):
        pass


@contextmanager
def connected(**settings: object) -> Iterator[tuple[Guest, int, socket.socket]]:
    """A program with a connection, and its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        with bare_guest(endpoints=[endpoint], **settings) as guest:
            fd = guest.open(f"tcp/{endpoint}")
            other, _ = server.accept()
            with other:
                yield guest, fd, other


def test_connections() -> None:
    with connected() as (guest, fd, other):
        assert guest.fdstat(fd)[0] == SOCKET
        assert guest.fstat(fd).filetype == SOCKET
        assert guest.write(fd, b"hello ", b"you") == 9
        assert other.recv(100) == b"hello you"
        other.sendall(b"and you")
        assert guest.poll(wait_fd(1, fd)) == [(1, 0, 1, 1, 0)]
        assert guest.read(fd, 3) == b"and"
        assert guest.errno("fd_seek", fd, 0, 0, OUT) == Errno.SPIPE
        vectors = guest.vectors(100)
        guest.call("sock_recv", fd, *vectors, 1, OUT, OUT + 4)
        assert guest.get(BUFFER, guest.number()) == b" you"
        guest.call("sock_recv", fd, *vectors, 0, OUT, OUT + 4)
        assert guest.get(BUFFER, guest.number()) == b" you"
        assert guest.number(OUT + 4, "<H") == 0
        guest.put(BUFFER, b"sent")
        guest.call("sock_send", fd, *guest.vectors(4), 0, OUT)
        assert other.recv(100) == b"sent"
        guest.call("sock_shutdown", fd, 2)
        assert other.recv(100) == b""
        other.shutdown(socket.SHUT_WR)
        assert guest.read(fd, 10) == b""
        guest.close(fd)


def test_receiving_all() -> None:
    with connected() as (guest, fd, other):
        other.sendall(b"123")
        with doing(lambda: other.sendall(b"4567")):
            guest.call("sock_recv", fd, *guest.vectors(2, 4), 2, OUT, OUT + 4)
        assert guest.get(BUFFER, guest.number()) == b"123456"
        other.shutdown(socket.SHUT_WR)
        guest.call("sock_recv", fd, *guest.vectors(100), 2, OUT, OUT + 4)
        assert guest.get(BUFFER, guest.number()) == b"7"


def test_sockets_refuse_nonsense() -> None:
    with connected() as (guest, fd, _):
        vectors = guest.vectors(1)
        assert guest.errno("sock_recv", fd, *vectors, 4, OUT, OUT + 4) == Errno.INVAL
        assert guest.errno("sock_send", fd, *vectors, 1, OUT) == Errno.INVAL
        assert guest.errno("sock_accept", fd, 0, OUT) == Errno.INVAL
        for how in (0, 4):
            assert guest.errno("sock_shutdown", fd, how) == Errno.INVAL
        guest.call("fd_fdstat_set_flags", fd, NONBLOCK)
        assert guest.errno("sock_recv", fd, *vectors, 0, OUT, OUT + 4) == Errno.AGAIN
        guest.call("fd_fdstat_set_rights", fd, 0, 0)
        for name, arguments in (
            ("sock_recv", (*vectors, 0, OUT, OUT + 4)),
            ("sock_recv", (*vectors, 2, OUT, OUT + 4)),
            ("sock_send", (*vectors, 0, OUT)),
            ("sock_shutdown", (1,)),
        ):
            assert guest.errno(name, fd, *arguments) == Errno.NOTCAPABLE, name


def test_only_granted_connections() -> None:
    denied: list[str] = []
    asked: list[tuple[str, int]] = []

    def connect(host: str, port: int) -> int:
        asked.append((host, port))
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    endpoints = ["broker.example:1883", "[::1]:80"]
    with bare_guest(endpoints=endpoints, on_denied=denied.append, connect=connect) as guest:
        for path, expected in (
            ("tcp/broker.example:1883", Errno.CONNREFUSED),
            ("tcp/[::1]:80", Errno.CONNREFUSED),
            ("tcp/broker.example:1884", Errno.ACCES),
            ("tcp/broker.example:18830", Errno.ACCES),
            ("tcp/roker.example:1883", Errno.ACCES),
            ("tcp/", Errno.NOENT),
            ("udp/broker.example:1883", Errno.NOENT),
            ("nothing", Errno.NOENT),
            ("../x", Errno.NOENT),
            ("/x", Errno.NOTCAPABLE),
        ):
            with pytest.raises(FailedError) as caught:
                guest.open(path)
            assert caught.value.errno == expected, path
        assert asked == [("broker.example", 1883), ("::1", 80)]
        assert denied == [
            "tcp:broker.example:1884",
            "tcp:broker.example:18830",
            "tcp:roker.example:1883",
        ]
        assert guest.stat("tcp/[::1]:80").filetype == SOCKET
        assert guest.stat("tcp").filetype == guest.stat(".").filetype == 3
        assert guest.errno("path_create_directory", ROOT, *guest.path("x")) == Errno.ROFS


def test_a_folder_that_was_granted_as_root_does_not_hide_what_is_missing(tmp_path: Path) -> None:
    """Without a connection there is no `/net`, so its paths lead into `/`."""
    denied: list[str] = []
    directories = [PlainDirectory("/", tmp_path)]
    with (
        sealed_guest(on_denied=denied.append) as sealed,
        bare_guest(directories=directories, on_denied=denied.append) as plain,
    ):
        for guest in (sealed, plain):
            for path, expected in (
                ("net/tcp/a:1", Errno.ACCES),
                ("net/tcp", Errno.NOENT),
                ("x/tcp/a:1", Errno.NOENT),
            ):
                with pytest.raises(FailedError) as caught:
                    guest.open(path, rights=READ_RIGHTS)
                assert caught.value.errno == expected, path
        sealed.mkdir("net")
        sealed.mkdir("net/tcp")
        sealed.file("net/tcp/a:1", b"a file of its own")
        assert sealed.content("net/tcp/a:1") == b"a file of its own"
    assert denied == ["tcp:a:1"] * 2


def test_names_that_do_not_resolve() -> None:
    def connect(host: str, port: int) -> int:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with bare_guest(endpoints=["no.name:1"], connect=connect) as guest:
        with pytest.raises(FailedError) as caught:
            guest.open("tcp/no.name:1")
        assert caught.value.errno == Errno.HOSTUNREACH


def test_a_name_that_can_be_none_does_not_resolve() -> None:
    """`a..b` has no form that a resolver takes: Python raises something else than for others."""
    with bare_guest(endpoints=["a..b:1"]) as guest:
        with pytest.raises(FailedError) as caught:
            guest.open("tcp/a..b:1")
        assert caught.value.errno == Errno.HOSTUNREACH


def test_an_opening_that_fails_in_a_way_nobody_foresaw() -> None:
    def connect(host: str, port: int) -> int:
        raise ZeroDivisionError

    with bare_guest(endpoints=["x:1"], connect=connect) as guest:
        with pytest.raises(FailedError) as caught:
            guest.open("tcp/x:1")
        assert caught.value.errno == Errno.IO
        with pytest.raises(ZeroDivisionError):
            guest.wasi.check_callbacks()


def test_nobody_has_to_hear_of_a_refusal() -> None:
    def denied(grant: str) -> None:
        raise BrokenPipeError

    with bare_guest(on_denied=denied) as guest:
        assert guest.errno("clock_time_get", 0, 0, OUT) == Errno.NOTCAPABLE
        guest.wasi.check_callbacks()


def test_an_address_of_a_family_that_is_not_here_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        # A family of which this machine has no sockets, and an address that answers.
        known = [(family, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for family in (45, 2)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: known)
        with bare_guest(endpoints=[f"both:{port}"]) as guest:
            fd = guest.open(f"tcp/both:{port}")
            other, _ = server.accept()
            with other:
                guest.write(fd, b"here")
                assert other.recv(9) == b"here"


def test_rights_shrink_below_the_network_too() -> None:
    with connected() as (guest, fd, _):
        assert guest.fdstat(fd)[2] & SHUTDOWN_RIGHT
        again = guest.open(".", DIRECTORY, rights=PATH_OPEN_RIGHT, inheriting=FD_READ)
        assert guest.fdstat(again)[2:] == (PATH_OPEN_RIGHT, FD_READ)
        with pytest.raises(FailedError) as caught:
            guest.open("tcp/x:1", fd=again)
        assert caught.value.errno == Errno.NOTCAPABLE
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"127.0.0.1:{server.getsockname()[1]}"
            with bare_guest(endpoints=[endpoint]) as narrow:
                narrow.call("fd_fdstat_set_rights", ROOT, PATH_OPEN_RIGHT, FD_READ)
                only = narrow.open(f"tcp/{endpoint}", rights=FD_READ)
                assert narrow.fdstat(only)[2] == FD_READ
                assert narrow.errno("sock_shutdown", only, 2) == Errno.NOTCAPABLE


def test_a_connection_that_comes_too_late_is_closed() -> None:
    near, far = socket.socketpair()

    def connect(host: str, port: int) -> int:
        guest.wasi.interrupt()
        return near.detach()

    with far, bare_guest(endpoints=["x:1"], connect=connect) as guest:
        with pytest.raises(Trap):
            guest.open("tcp/x:1")
        assert far.recv(1) == b""


def test_a_connection_nobody_takes_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
    with bare_guest(endpoints=[endpoint]) as guest:
        with pytest.raises(FailedError) as caught:
            guest.open(f"tcp/{endpoint}")
        assert caught.value.errno == Errno.CONNREFUSED


def test_listening() -> None:
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()
    with bare_guest(listeners=[listener]) as guest:
        # 3 is what stands for the root.
        fd = 4
        assert guest.fdstat(fd)[0] == SOCKET
        assert guest.errno("fd_read", fd, *guest.vectors(1), OUT) == Errno.NOTCONN
        assert guest.errno("fd_write", fd, *guest.vectors(1), OUT) == Errno.NOTCONN
        assert guest.errno("sock_recv", fd, 0, 0, 0, OUT, OUT) == Errno.NOTCONN
        assert guest.errno("sock_accept", fd, 1, OUT) == Errno.INVAL
        guest.call("fd_fdstat_set_flags", fd, NONBLOCK)
        assert guest.errno("sock_accept", fd, 0, OUT) == Errno.AGAIN
        guest.call("fd_fdstat_set_flags", fd, 0)
        with socket.create_connection(address) as client:
            assert guest.poll(wait_fd(1, fd)) == [(1, 0, 1, 1, 0)]
            guest.call("sock_accept", fd, NONBLOCK, OUT)
            accepted = guest.number()
            assert guest.fdstat(accepted)[:2] == (SOCKET, NONBLOCK)
            client.sendall(b"hi")
            assert guest.poll(wait_fd(1, accepted)) == [(1, 0, 1, 1, 0)]
            assert guest.read(accepted, 10) == b"hi"
            guest.write(accepted, b"there")
            assert client.recv(10) == b"there"
        guest.call("fd_fdstat_set_rights", fd, 0, 0)
        assert guest.errno("sock_accept", fd, 0, OUT) == Errno.NOTCAPABLE
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_short_answers_are_not_held_back() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_listener_that_is_missing_is_named() -> None:
    denied: list[str] = []
    with bare_guest(on_denied=denied.append) as guest:
        assert guest.errno("sock_accept", ROOT, 0, OUT) == Errno.NOTSOCK
        assert guest.errno("sock_accept", ROOT + 1, 0, OUT) == Errno.BADF
    assert denied == ["listen:ADDRESS:PORT"]
    assert "`--grant listen:ADDRESS:PORT` would allow" in refusal(denied[0])
    with bare_guest(on_denied=denied.append, listeners=[listen("127.0.0.1", 0)]) as guest:
        assert guest.errno("sock_accept", ROOT, 0, OUT) == Errno.NOTSOCK
    assert len(denied) == 1


def test_an_address_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UnavailableError, match="listened on"):
        listen("127.0.0.1", taken.getsockname()[1])
