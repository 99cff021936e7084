"""Whose the other end of a local connection is, from the kernel's own table of sockets.

By sock_diag(7), which looks one connection up. /proc/net/tcp has all of them: whoever opens and
closes many could make each look into it long.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h.
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NO_COOKIE: Final = (0xFFFFFFFF, 0xFFFFFFFF)
_ALL_STATES: Final = 0xFFFFFFFF
# Length, type, flags, sequence, port.
_HEAD: Final = struct.Struct("=IHHII")
# Family, protocol, extensions, padding, states; then the connection: see `_id`.
_REQUEST: Final = struct.Struct("=BBBBI48s")
# Family, state, timer, retransmissions; the connection; expires, both queues, uid, inode.
_ANSWER: Final = struct.Struct("=BBBB48sIIIII")
_ANSWER_MAX_BYTES: Final = 4096
# How long the kernel may take, which answers at once.
_TIMEOUT_S: Final = 1.0


def owner_of(local: socket.socket) -> str:
    """Of an accepted connection: a user of this machine, or where none has the other end (another
    machine's, or closed already) the address."""
    try:
        here, there = local.getsockname(), local.getpeername()
    except OSError:
        return "unknown"
    try:
        user = _user(local.family, there, here)
    except OSError:
        # Without sock_diag all clients of this machine are one owner's.
        user = None
    return str(there[0]) if user is None else f"user {user}"


def _user(family: int, end: tuple[str, int], other: tuple[str, int]) -> int | None:
    """The user who has the socket from `end` to `other`; None where nobody has."""
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES, _id(family, end, other))
    head = _HEAD.pack(_HEAD.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as asking:
        asking.settimeout(_TIMEOUT_S)
        asking.sendto(head + request, (0, 0))
        answer = asking.recv(_ANSWER_MAX_BYTES)
    if len(answer) < _HEAD.size + _ANSWER.size:
        # An error has no more than a head and a number: there is no such socket.
        return None
    if _HEAD.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    *_, uid, inode = _ANSWER.unpack_from(answer, _HEAD.size)
    # What a process has closed is no user's, and says 0.
    return int(uid) if inode else None


def _id(family: int, end: tuple[str, int], other: tuple[str, int]) -> bytes:
    """`struct inet_diag_sockid`: ports and addresses in the network's order."""
    addresses = b"".join(
        socket.inet_pton(family, each[0].partition("%")[0]).ljust(16, b"\0")
        for each in (end, other)
    )
    return struct.pack("!HH", end[1], other[1]) + addresses + struct.pack("=III", 0, *_NO_COOKIE)
