"""Events from the core: decoded exactly, refused whenever a byte is wrong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.broker.events import (
    Action,
    AuthFlag,
    AuthRequest,
    Cause,
    CommandFailed,
    Connected,
    Disconnected,
    Drained,
    EndedBy,
    Event,
    Refused,
    decode_events,
)
from avow.errors import MalformedError


def string(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def event(kind: int, body: bytes) -> bytes:
    return struct.pack("<IB3x", 8 + len(body), kind) + body


AUTH_REQUEST = event(
    1,
    struct.pack("<IIBBH", 5, 77, 5, 1 | 2, 0)
    + string(b"client")
    + string("jürgen".encode())
    + string(b"\xff\x00secret")
    + string(b"")
    + string(b""),
)
CONNECTED = event(2, struct.pack("<IBBH", 5, 4, 1, 60) + string(b"client") + string(b"alice"))
DISCONNECTED = event(
    3,
    struct.pack("<IBBBxI", 5, 0x8B, 1, 1, 9)
    + string(b"client")
    + string(b"alice")
    + string(b"why"),
)
REFUSED = event(
    6,
    struct.pack("<IBBBxII", 5, 2, 0x87, 1, 3, 17)
    + string(b"client")
    + string(b"alice")
    + string(b"secret/#"),
)
COMMAND_FAILED = event(4, struct.pack("<I", 3) + string(b"no such connection"))
DRAINED = event(5, b"")

EXPECTED: list[Event] = [
    AuthRequest(
        5,
        77,
        5,
        AuthFlag.USER_NAME | AuthFlag.PASSWORD,
        "client",
        "jürgen",
        b"\xff\x00secret",
        "",
        b"",
    ),
    Connected(5, 4, True, False, 60, "client", "alice"),
    Disconnected(5, 0x8B, EndedBy.BROKER, True, False, 9, "client", "alice", "why"),
    CommandFailed(3, "no such connection"),
    Drained(),
    Refused(5, Action.SUBSCRIBE, 0x87, Cause.RULE, 3, 17, "client", "alice", "secret/#"),
]
ALL = [AUTH_REQUEST, CONNECTED, DISCONNECTED, COMMAND_FAILED, DRAINED, REFUSED]
NAMES = ["auth", "connected", "disconnected", "failed", "drain", "refused"]


def test_every_kind_in_one_batch() -> None:
    assert list(decode_events(b"".join(ALL))) == EXPECTED
    assert list(decode_events(b"")) == []


def test_password_is_not_in_the_repr() -> None:
    assert "secret" not in repr(EXPECTED[0])


@pytest.mark.parametrize("whole", ALL, ids=NAMES)
def test_cut_anywhere_is_refused(whole: bytes) -> None:
    for length in range(1, len(whole)):
        with pytest.raises(MalformedError):
            list(decode_events(whole[:length]))
        # The same with a length field that hides the cut.
        if length >= 8:
            with pytest.raises(MalformedError):
                list(decode_events(struct.pack("<I", length) + whole[4:length]))


@pytest.mark.parametrize("whole", ALL, ids=NAMES)
def test_bytes_after_the_last_field_are_refused(whole: bytes) -> None:
    longer = struct.pack("<I", len(whole) + 1) + whole[4:] + b"\0"
    with pytest.raises(MalformedError, match="1 byte after the last field"):
        list(decode_events(longer))


@pytest.mark.parametrize(
    "blob",
    [
        event(7, b""),
        event(0, b""),
        struct.pack("<IB3x", 7, 5),
        event(3, struct.pack("<IBBBxI", 5, 0, 3, 0, 0) + string(b"") * 3),
        event(6, struct.pack("<IBBBxII", 5, 5, 0x87, 1, 3, 0) + string(b"") * 3),
        event(6, struct.pack("<IBBBxII", 5, 1, 0x87, 4, 3, 0) + string(b"") * 3),
        event(4, struct.pack("<I", 3) + string(b"\xff")),
    ],
    ids=[
        "kind 7",
        "kind 0",
        "length 7",
        "ended by 3",
        "action 5",
        "cause 4",
        "not UTF-8",
    ],
)
def test_impossible_events_are_refused(blob: bytes) -> None:
    with pytest.raises(MalformedError):
        list(decode_events(blob))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(blob: bytes) -> None:
    try:
        found = list(decode_events(blob))
    except MalformedError:
        return
    assert all(isinstance(entry, Event) for entry in found)
