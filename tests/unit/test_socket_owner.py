"""Whose the other end of a local connection is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from avow.client.socket_owner import owner_of

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The client's end and the accepted one."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listening:
        client = socket.create_connection(listening.getsockname()[:2])
        accepted, _ = listening.accept()
        with client, accepted:
            yield client, accepted


def test_a_user_of_this_machine(pair: Pair) -> None:
    client, accepted = pair
    assert owner_of(accepted) == f"user {os.getuid()}"
    assert owner_of(client) == f"user {os.getuid()}"


def test_what_is_closed_already_is_not_roots(pair: Pair) -> None:
    """The kernel says 0 for it, as for root; whoever leaves at once would use up root's places."""
    client, accepted = pair
    host = client.getsockname()[0]
    client.close()
    assert accepted.recv(1) == b""
    assert owner_of(accepted) == host


def test_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    client, accepted = pair
    monkeypatch.setattr("avow.client.socket_owner._NETLINK_SOCK_DIAG", 31)
    assert owner_of(accepted) == client.getsockname()[0]


def test_what_was_never_connected() -> None:
    with socket.socket() as alone:
        assert owner_of(alone) == "unknown"
