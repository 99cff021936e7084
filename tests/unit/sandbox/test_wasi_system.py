"""WASI's arguments, environment, clocks, randomness, ends of a program, and what is not granted."""

from __future__ import annotations

import ctypes
import re
import struct
from pathlib import Path

import pytest
from wasmtime import Trap

from avow import artefacts
from avow.errors import MalformedError, UnavailableError
from avow.sandbox.wasi import FUNCTIONS, SealedDirectory, Wasi, refusal
from avow.sealing.store import Store
from tests.unit.sandbox.wasi_guest import (
    BUFFER,
    CREAT,
    DIRECTORY,
    END,
    KEY,
    OLD_TIME_NS,
    OUT,
    PATH_2,
    ROOT,
    TABLE,
    Errno,
    FailedError,
    Guest,
    MemoryDisk,
    bare_guest,
    sealed_guest,
    wait_clock,
    wait_fd,
)

REALTIME, MONOTONIC, PROCESS_TIME, THREAD_TIME = range(4)
CLOCKS = ("realtime", "monotonic")


class Clock:
    """A host's clock that says what a test wants."""

    def __init__(self, *times_ns: int) -> None:
        self.times_ns = list(times_ns)

    def __call__(self, _: int, clock: int, into: int) -> int:
        now = self.times_ns.pop(0)
        ctypes.memmove(into, struct.pack("<qq", *divmod(now, 10**9)), 16)
        return 0


def strings(guest: Guest, name: str) -> list[bytes]:
    guest.call(f"{name}_sizes_get", OUT, OUT + 4)
    count, length = guest.number(OUT), guest.number(OUT + 4)
    guest.call(f"{name}_get", TABLE, BUFFER)
    addresses = struct.unpack(f"<{count}I", guest.get(TABLE, 4 * count))
    text = guest.get(BUFFER, length)
    assert length == sum(len(text[a - BUFFER :].split(b"\0")[0]) + 1 for a in addresses)
    return [text[address - BUFFER :].split(b"\0")[0] for address in addresses]


def test_arguments_and_environment() -> None:
    variables = [("HOME", "/"), ("EMPTY", ""), ("TEXT", "a=b é")]
    with bare_guest(arguments=["prog", "", "-x é"], variables=variables) as guest:
        assert strings(guest, "args") == [b"prog", b"", "-x é".encode()]
        assert strings(guest, "environ") == [b"HOME=/", b"EMPTY=", "TEXT=a=b é".encode()]
        for name in ("args", "environ"):
            assert guest.errno(f"{name}_sizes_get", END - 3, OUT) == Errno.FAULT
            assert guest.errno(f"{name}_sizes_get", OUT, END - 3) == Errno.FAULT
            assert guest.errno(f"{name}_get", END - 11, BUFFER) == Errno.FAULT
            assert guest.errno(f"{name}_get", TABLE, END - 8) == Errno.FAULT


def test_nothing_is_there_unasked() -> None:
    with bare_guest(arguments=[]) as guest:
        assert strings(guest, "args") == strings(guest, "environ") == []
        assert guest.errno("fd_prestat_get", 4, OUT) == Errno.BADF


def test_arguments_with_a_zero_byte_are_refused() -> None:
    for settings in ({"arguments": ["a\0b"]}, {"variables": [("A", "b\0")]}):
        with pytest.raises(MalformedError, match="zero byte"), bare_guest(**settings):
            pass


def test_clocks_tell_the_time() -> None:
    with bare_guest(clocks=CLOCKS) as guest:
        clock = Clock(5 * 10**18 + 7, 99 * 10**9, 99 * 10**9 + 250)
        guest.wasi.replace("clock", clock)
        assert guest.time(REALTIME) == 5 * 10**18 + 7
        started = guest.time(MONOTONIC)
        # How long the host has been up is not told.
        assert started == 10**9
        assert guest.time(MONOTONIC) == started + 250
        for clock_id in range(4):
            guest.call("clock_res_get", clock_id, OUT)
            assert guest.number(form="<Q") == 1
        for name, arguments in (("clock_time_get", (4, 0, OUT)), ("clock_res_get", (4, OUT))):
            assert guest.errno(name, *arguments) == Errno.INVAL
        assert guest.errno("clock_time_get", 0, 0, END - 7) == Errno.FAULT
        assert guest.errno("clock_res_get", 0, END - 7) == Errno.FAULT


@pytest.mark.parametrize("clock_id", [REALTIME, MONOTONIC, PROCESS_TIME, THREAD_TIME])
def test_the_native_clock_goes_on(clock_id: int) -> None:
    with bare_guest(clocks=CLOCKS) as guest:
        first = guest.time(clock_id)
        assert 0 <= guest.time(clock_id) - first < 10**9


@pytest.mark.parametrize("clock_id", [REALTIME, MONOTONIC])
def test_clocks_never_go_back(clock_id: int) -> None:
    with bare_guest(clocks=CLOCKS) as guest:
        guest.wasi.replace("clock", Clock(100, 1000, 999, 0, 1001))
        times = [guest.time(clock_id) for _ in range(5)]
        assert times == sorted(times)
        assert times[4] - times[0] == 901
        assert times[2] == times[3] == times[1]


@pytest.mark.parametrize(
    ("seconds", "nanoseconds"),
    [(1, 10**9), (1, -1), (-1, 0), (1 << 62, 0), (-(1 << 63), 0), ((1 << 63) - 1, 5)],
)
def test_what_can_be_no_time_is_refused(seconds: int, nanoseconds: int) -> None:
    def clock(_: int, clock_id: int, into: int) -> int:
        ctypes.memmove(into, struct.pack("<qq", seconds, nanoseconds), 16)
        return 0

    with bare_guest(clocks=CLOCKS) as guest:
        guest.wasi.replace("clock", clock)
        assert guest.errno("clock_time_get", REALTIME, 0, OUT) == Errno.IO


def test_a_clock_that_fails() -> None:
    with bare_guest(clocks=CLOCKS) as guest:
        guest.wasi.replace("clock", lambda *_: -22)
        assert guest.errno("clock_time_get", REALTIME, 0, OUT) == Errno.INVAL
        guest.wasi.replace("clock", lambda *_: 1)
        assert guest.errno("clock_time_get", REALTIME, 0, OUT) == Errno.IO


def test_clocks_that_were_not_granted() -> None:
    denied: list[str] = []
    with bare_guest(on_denied=denied.append) as guest:
        for _ in range(2):
            for clock_id in range(4):
                assert guest.errno("clock_time_get", clock_id, 0, OUT) == Errno.NOTCAPABLE
                assert guest.errno("clock_res_get", clock_id, OUT) == Errno.NOTCAPABLE
        # Each is named once.
        assert denied == ["clock:realtime", "clock:monotonic"]
    with bare_guest(clocks=["monotonic"]) as guest:
        guest.time(MONOTONIC)
        assert guest.errno("clock_time_get", REALTIME, 0, OUT) == Errno.NOTCAPABLE


def test_files_are_no_clock() -> None:
    """Without the grant all files have the time of the start."""
    with sealed_guest() as guest:
        guest.wasi.replace("clock", lambda *_: Clock(9 * 10**9)(*_))
        guest.file("a")
        guest.call("fd_filestat_set_times", guest.open("a"), 0, 0, 2 | 8)
        assert guest.stat("a")[5:] == (OLD_TIME_NS,) * 3
    with sealed_guest(clocks=["realtime"]) as guest:
        guest.wasi.replace("clock", lambda *arguments: Clock(7 * 10**9)(*arguments))
        guest.file("a")
        assert guest.stat("a").modified == 7 * 10**9


def test_random_bytes_come_from_the_entropy() -> None:
    def drawn(entropy: bytes) -> bytes:
        with bare_guest(entropy=entropy) as guest:
            guest.call("random_get", BUFFER, 1000)
            first = guest.get(BUFFER, 1000)
            guest.call("random_get", BUFFER, 1000)
            return first + guest.get(BUFFER, 1000)

    one = drawn(bytes(32))
    assert one == drawn(bytes(32))
    assert one != drawn(b"\1" + bytes(31))
    assert len({one[at : at + 8] for at in range(0, 2000, 8)}) == 250
    with bare_guest() as guest:
        guest.call("random_get", END, 0)
        assert guest.errno("random_get", END - 1, 2) == Errno.FAULT
        assert guest.errno("random_get", 0, 0xFFFFFFFF) == Errno.FAULT
    with pytest.raises(MalformedError, match="32 bytes of entropy"), bare_guest(entropy=b"x"):
        pass


def test_exit() -> None:
    with bare_guest() as guest:
        assert guest.wasi.exit_code is None
        wasi = guest.wasi
        with pytest.raises(Trap):
            guest.call("proc_exit", 42)
        assert wasi.exit_code == 42
    # After it was closed too.
    assert wasi.exit_code == 42


def test_raise() -> None:
    ignored = {0, 13, 16, 17, 22, 27}
    stopping = {18, 19, 20, 21}
    for signal in range(31):
        with bare_guest() as guest:
            if signal in ignored:
                guest.call("proc_raise", signal)
            elif signal in stopping:
                assert guest.errno("proc_raise", signal) == Errno.NOTSUP
            else:
                with pytest.raises(Trap):
                    guest.call("proc_raise", signal)
                assert guest.wasi.exit_code == 128 + signal + (signal >= 16)
    with bare_guest() as guest:
        assert guest.errno("proc_raise", 31) == Errno.INVAL


def test_yield() -> None:
    with bare_guest() as guest:
        guest.call("sched_yield")
        guest.wasi.interrupt()
        with pytest.raises(Trap):
            guest.call("sched_yield")
        assert guest.wasi.was_interrupted
        assert guest.wasi.exit_code is None


def test_polling_clocks() -> None:
    with bare_guest() as guest:
        assert guest.poll(wait_clock(7, MONOTONIC, 1000)) == [(7, 0, 0, 0, 0)]
        events = guest.poll(wait_clock(1, REALTIME, 3600 * 10**9), wait_clock(2, MONOTONIC, 0))
        assert events == [(2, 0, 0, 0, 0)]
        # An absolute time would tell the time.
        assert guest.poll(wait_clock(3, MONOTONIC, 1, 1)) == [(3, Errno.NOTCAPABLE, 0, 0, 0)]
        assert guest.poll(wait_clock(4, 4, 1)) == [(4, Errno.INVAL, 0, 0, 0)]
        assert guest.poll(wait_clock(5, 0, 1, 2)) == [(5, Errno.INVAL, 0, 0, 0)]
    with bare_guest(clocks=CLOCKS) as guest:
        now = guest.time(MONOTONIC)
        assert guest.poll(wait_clock(1, MONOTONIC, now + 10**6, 1)) == [(1, 0, 0, 0, 0)]
        assert guest.time(MONOTONIC) >= now + 10**6
        assert guest.poll(wait_clock(2, REALTIME, 5, 1)) == [(2, 0, 0, 0, 0)]


def test_a_long_wait_is_waited_for() -> None:
    waits: list[int] = []

    def poll(_: int, waiting: int, count: int, timeout_ns: int) -> int:
        waits.append(timeout_ns)
        return 0

    with bare_guest() as guest:
        guest.wasi.replace("poll", poll)
        hour = 3600 * 10**9
        assert guest.poll(wait_clock(1, MONOTONIC, 2 * hour + 5)) == [(1, 0, 0, 0, 0)]
        assert waits == [hour, hour, 5]


def test_files_are_always_ready() -> None:
    with sealed_guest() as guest:
        fd = guest.open("a", CREAT)
        guest.write(fd, b"12345")
        guest.seek(fd, 2)
        directory = guest.open(".", DIRECTORY)
        events = guest.poll(
            wait_fd(1, fd),
            wait_fd(2, fd, write=True),
            wait_clock(3, MONOTONIC, 10**12),
            wait_fd(4, 99),
            wait_fd(5, directory),
        )
        assert events == [
            (1, 0, 1, 3, 0),
            (2, 0, 2, 0, 0),
            (4, Errno.BADF, 1, 0, 0),
            (5, Errno.BADF, 1, 0, 0),
        ]
        mute = guest.open("a", rights=2)
        assert guest.poll(wait_fd(6, mute)) == [(6, Errno.NOTCAPABLE, 1, 0, 0)]


def test_polling_nonsense() -> None:
    with bare_guest() as guest:
        assert guest.errno("poll_oneoff", BUFFER, TABLE, 0, OUT) == Errno.INVAL
        assert guest.errno("poll_oneoff", BUFFER, TABLE, 1025, OUT) == Errno.INVAL
        assert guest.errno("poll_oneoff", BUFFER, TABLE, 0xFFFFFFFF, OUT) == Errno.INVAL
        guest.put(BUFFER, struct.pack("<QB39x", 1, 3))
        assert guest.errno("poll_oneoff", BUFFER, TABLE, 1, OUT) == Errno.INVAL
        assert guest.errno("poll_oneoff", END - 47, TABLE, 1, OUT) == Errno.FAULT
        assert guest.errno("poll_oneoff", BUFFER, END - 31, 1, OUT) == Errno.FAULT
        assert guest.errno("poll_oneoff", BUFFER, TABLE, 1, END - 3) == Errno.FAULT
        # The events may be written over what was asked for.
        guest.put(BUFFER, wait_clock(1, 1, 0) + wait_clock(2, 1, 0))
        guest.call("poll_oneoff", BUFFER, BUFFER, 2, OUT)
        assert [e[0] for e in struct.iter_unpack("<QQQQ", guest.get(BUFFER, 64))] == [1, 2]


def test_without_a_grant_the_root_is_empty() -> None:
    denied: list[str] = []
    with bare_guest(on_denied=denied.append) as guest:
        assert guest.names(".") == []
        assert guest.stat(".").filetype == guest.stat("./").filetype == 3
        for path in ("data/x", "./data", "data/y"):
            with pytest.raises(FailedError) as caught:
                guest.stat(path)
            assert caught.value.errno == Errno.NOENT
        assert denied == ["sealed:/data"]
        for path, oflags, errno in (
            ("etc/passwd", 0, Errno.NOENT),
            ("new", CREAT, Errno.ACCES),
            ("net/tcp/broker:1883", 0, Errno.ACCES),
            ("../x", 0, Errno.NOTCAPABLE),
            ("/etc", 0, Errno.NOTCAPABLE),
        ):
            with pytest.raises(FailedError) as caught:
                guest.open(path, oflags)
            assert caught.value.errno == errno, path
        assert denied == ["sealed:/data", "sealed:/etc", "sealed:/new", "tcp:broker:1883"]
        one, two = guest.path("a"), guest.path("b", PATH_2)
        for name, arguments in (
            ("path_create_directory", (ROOT, *one)),
            ("path_unlink_file", (ROOT, *one)),
            ("path_remove_directory", (ROOT, *one)),
            ("path_rename", (ROOT, *one, ROOT, *two)),
            ("path_link", (ROOT, 0, *one, ROOT, *two)),
            ("path_symlink", (*one, ROOT, *two)),
            ("path_readlink", (ROOT, *one, BUFFER, 10, OUT)),
            ("path_filestat_set_times", (ROOT, 0, *one, 0, 0, 0)),
        ):
            errno = guest.errno(name, *arguments)
            assert errno in {Errno.NOENT, Errno.ACCES, Errno.ROFS}, name


def test_denials_are_bounded() -> None:
    denied: list[str] = []
    with bare_guest(on_denied=denied.append) as guest:
        for number in range(100):
            guest.errno("path_filestat_get", ROOT, 0, *guest.path(f"f{number}"), OUT)
        assert len(denied) == 64


def test_all_functions_and_no_others() -> None:
    assert len(FUNCTIONS) == 46
    library = ctypes.CDLL(str(artefacts.vault_path()))
    library.avow_wasi_function.restype = ctypes.c_void_p
    library.avow_wasi_function.argtypes = [ctypes.c_size_t]
    assert library.avow_wasi_function(45)
    assert library.avow_wasi_function(46) is None


def test_all_functions_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "wasi.md").read_text()
    named = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    documented = [name for row in named for name in re.findall(r"`(\w+)`", row)]
    assert sorted(each for each in documented if each in FUNCTIONS) == sorted(FUNCTIONS)


def test_memory_is_found_without_attaching() -> None:
    with sealed_guest(attach=False) as guest:
        guest.file("a", b"content")
        assert guest.content("a") == b"content"


def test_memory_may_grow_and_move() -> None:
    with sealed_guest() as guest:
        guest.file("a", b"content")
        fd = guest.open("a")
        guest.memory.grow(guest.store, 2000)
        guest.put(TABLE, struct.pack("<II", END + 100, 100))
        guest.call("fd_read", fd, TABLE, 1, OUT)
        assert guest.get(END + 100, 7) == b"content"


def test_what_is_closed_stays_closed() -> None:
    with bare_guest() as guest:
        pass
    guest.wasi.close()
    guest.wasi.interrupt()
    with pytest.raises(UnavailableError, match="closed"):
        guest.wasi.check_store()


def test_a_store_that_was_closed_before_is_not_touched() -> None:
    store = Store.create_on(MemoryDisk(), [KEY])
    wasi = Wasi(
        arguments=[],
        entropy=bytes(32),
        store=store,
        directories=[SealedDirectory("/", "/files")],
    )
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        wasi.close()


def test_grants_that_cannot_be_given() -> None:
    with pytest.raises(MalformedError, match="not a directory"):
        Wasi(arguments=[], entropy=bytes(32), directories=[SealedDirectory("/", "/files")])
    with sealed_guest() as guest:
        guest.file("file")
        store = guest.wasi._store
        for path, read_only in (("/files/file", False), ("/files/not-there", True)):
            with pytest.raises(MalformedError, match="not a directory"):
                Wasi(
                    arguments=[],
                    entropy=bytes(32),
                    store=store,
                    directories=[SealedDirectory("/", path, read_only)],
                )
        assert guest.names() == ["file"]


def test_what_is_said_of_a_refusal_is_in_no_words_of_the_program() -> None:
    """It may stand in a log or be given to a shell."""
    denied: list[str] = []
    with bare_guest(on_denied=denied.append) as guest:
        for path in ("a\nb", "\x1b[2J", "c\u202ed", "é e", "net/tcp/x", "net/tcp/$(id):1"):
            assert guest.errno("path_filestat_get", ROOT, 0, *guest.path(path), OUT) != 0
    assert denied == [
        "sealed:/a\\nb",
        "sealed:/\\x1b[2J",
        "sealed:/c\\u202ed",
        "sealed:/é e",
        "tcp:x",
        "tcp:$(id):1",
    ]
    assert "`--grant 'sealed:/é e'` would allow it (`--grant sealed:/` if it is a file)" in refusal(
        denied[3]
    )
    for grant in denied[4:]:
        assert "which no grant can allow" in refusal(grant)
    assert "'tcp:$(id):1'" in refusal(denied[5])
