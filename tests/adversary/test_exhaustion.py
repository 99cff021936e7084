"""Platforms that fail or hang, and peers who want to use up what a broker has.

Places, memory and quotes are bounded; whoever behaves is served meanwhile.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from pathlib import Path

import pytest
from OpenSSL import SSL

from avow.channel.exchange import ClientSettings, EvidenceFor
from avow.channel.messages import Open, encode
from avow.errors import AvowError
from avow.testing.attested_channel import judge
from tests.adversary.removal import Defence, removed
from tests.integration.service_process import PATIENCE_S
from tests.unit.test_opening import CONNECT, Client, Place, place, showing

SETTINGS = ClientSettings(judge=judge())
PLACES = 4


def opening(client: Client) -> bytes:
    """The OPEN that a client would send."""
    return client.exchange(SETTINGS).to_send()


def refusals(here: Place, count: int) -> list[str]:
    """The checks of the next `count` refusals, sorted."""
    return sorted(here.refused() for _ in range(count))


def test_a_platform_that_fails(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here:
        here.platform.fails = True
        for _ in range(2):
            with here.connect() as client, pytest.raises(AvowError, match="C19"):
                client.attest()
            assert here.refused() == "C19"
        with here.connect() as plain:
            plain.tls.sendall(CONNECT)
            assert here.arrival().attested is None
        assert here.arrivals.empty()


def test_a_platform_that_hangs_is_no_acceptance(tmp_path: Path) -> None:
    """The issuer gives up first (C19); were it not to, the exchange has its own end (C20). Those
    who want no evidence come in all the while."""
    for check, quote_timeout_s, timeout_s in (("C19", 0.3, 20.0), ("C20", 3600.0, 0.3)):
        folder = tmp_path / check
        folder.mkdir()
        with place(folder, showing(), quote_timeout_s=quote_timeout_s, timeout_s=timeout_s) as here:
            here.platform.free.clear()
            with here.connect() as first, here.connect() as second:
                for client in (first, second):
                    client.tls.sendall(opening(client))
                with here.connect() as plain:
                    plain.tls.sendall(CONNECT)
                    assert here.arrival().attested is None
                assert refusals(here, 2) == [check, check]
            assert here.platform.quotes <= 2
            assert here.arrivals.empty()


def test_a_flood_of_strangers_causes_no_quote(tmp_path: Path) -> None:
    """Where clients have to be authorised first. Without that check each of them costs a quote."""
    defence = Defence("C9", "avow.channel.exchange", "AUTHORISED", inside="_may_show")
    settings = showing(evidence_for=EvidenceFor.AUTHORISED)
    with place(tmp_path, settings, client_ca=True, require_certificate=False) as here:
        for _ in range(20):
            with here.connect() as stranger:
                assert "C9" in stranger.check()
        assert refusals(here, 20) == ["C9"] * 20
        assert here.platform.quotes == 0
        with here.connect(here.with_certificate()) as known:
            known.attest()
        assert here.platform.quotes == 1
        with removed([defence]), here.connect() as stranger:
            stranger.attest()
        assert here.platform.quotes == 2


def test_no_more_places_than_there_are(tmp_path: Path) -> None:
    """Who waits for a quote has a place; the next one is not even greeted until there is one."""
    with (
        place(tmp_path, showing(), places=2, timeout_s=1000.0) as here,
        here.connect() as first,
        here.connect() as second,
        socket.create_connection(("127.0.0.1", here.port), PATIENCE_S) as third,
    ):
        here.platform.free.clear()
        first.tls.sendall(opening(first))
        second.tls.sendall(opening(second))
        tls = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD))
        tls.set_connect_state()
        with pytest.raises(SSL.WantReadError):
            tls.do_handshake()
        third.sendall(tls.bio_read(65536))
        third.settimeout(0.5)
        with pytest.raises(TimeoutError):
            third.recv(1)
        first.sock.close()
        here.platform.free.set()
        second.sock.close()
        third.settimeout(PATIENCE_S)
        assert third.recv(1) == b"\x16"


def test_a_flood_that_never_reads(tmp_path: Path) -> None:
    """Each asks, reads nothing and stays. They end after the shorter time of a full house, and a
    client that behaves comes in between."""
    with (
        place(tmp_path, showing(), places=PLACES, timeout_s=1.5) as here,
        contextlib.ExitStack() as flood,
    ):
        sockets = [flood.enter_context(silent(here.port)) for _ in range(3 * PLACES)]
        for sock in sockets:
            flood.enter_context(contextlib.closing(Asking(sock)))
        with here.connect() as client:
            client.attest()
            here.arrival()
        # Who has its answer in the kernel's buffers waits for ACCEPTED, until its time is over.
        checks = refusals(here, 3 * PLACES)
        assert here.platform.quotes <= 3 * PLACES + 1
    assert set(checks) <= {"", "C20", "C22"}


def silent(port: int) -> socket.socket:
    """A connection with room for hardly any answer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", port))
    return sock


class Asking:
    """In a thread of its own: a handshake and an OPEN, as soon as the server has a place."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        tls = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), self._sock)
        tls.set_connect_state()
        try:
            tls.do_handshake()
            tls.sendall(opening(Client(self._sock, tls)))
        except (SSL.Error, OSError):
            return

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)


@pytest.mark.parametrize("sent", [1, 4, 511])
def test_slow_loris_in_the_exchange(tmp_path: Path, sent: int) -> None:
    """One byte now and then: the deadline counts from the beginning, not from the last byte."""
    with place(tmp_path, showing(), timeout_s=0.6, places=1) as here, here.connect() as slow:
        message = opening(slow)
        stop = threading.Event()
        slow.tls.sendall(message[:sent])

        def trickle() -> None:
            for byte in message[sent:-1]:
                if stop.wait(0.05):
                    return
                try:
                    slow.tls.send(bytes([byte]))
                except (SSL.Error, OSError):
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert here.refused() == "C20"
        finally:
            stop.set()
            thread.join()
        # The only place is free again.
        with here.connect() as client:
            client.attest()
            here.arrival()
    assert here.platform.quotes == 1


def test_with_a_full_house_the_time_is_shorter(tmp_path: Path) -> None:
    """A fifth of a long time: somebody who has sent half an OPEN does not keep the last place."""
    with (
        place(tmp_path, showing(), timeout_s=10.0, places=2) as here,
        here.connect() as first,
        here.connect() as second,
    ):
        began_s = time.monotonic()
        for client in (first, second):
            client.tls.sendall(opening(client)[:100])
        with here.connect() as third:
            third.attest()
            here.arrival()
        assert here.refused() == "C20"
        assert time.monotonic() - began_s < 9.0


def test_more_bytes_than_the_exchange_wants(tmp_path: Path) -> None:
    """What comes after OPEN is not read while a quote is awaited, so it fills the sender's side."""
    with place(tmp_path, showing(), timeout_s=1.0) as here, here.connect() as flooding:
        here.platform.free.clear()
        flooding.tls.sendall(opening(flooding))
        flooding.sock.setblocking(False)
        sent = 0
        # A connection that is lost raises an error of either kind.
        with contextlib.suppress(SSL.SysCallError, SSL.ZeroReturnError, OSError):
            while here.refusals.empty() and sent < 64 * 1024 * 1024:
                select.select([], [flooding.sock], [], 0.05)
                with contextlib.suppress(SSL.WantWriteError):
                    sent += flooding.tls.send(bytes(16384))
        assert sent < 16 * 1024 * 1024
        assert here.refused() == "C20"


@pytest.mark.parametrize("asked", [b"", b"\x0d\x00\x00\x00"])
def test_an_opening_that_asks_for_nothing_costs_no_quote(tmp_path: Path, asked: bytes) -> None:
    with place(tmp_path, showing()) as here, here.connect() as client:
        client.tls.sendall(encode(Open(False, asked)))
        assert here.refused() in ("C3", "C6")
        assert here.platform.quotes == 0
