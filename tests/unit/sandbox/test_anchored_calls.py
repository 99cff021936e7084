"""A program whose anchor moves with every commit: what it made durable, the anchor knows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from avow.errors import StorageError, UnavailableError
from avow.sealing.anchor import Freshness, begin_fresh
from avow.sealing.store import Store
from avow.sealing.witness import State
from tests.unit.sandbox.wasi_guest import CREAT, DSYNC, FILE_RIGHTS, Errno, Guest, sealed_guest
from tests.unit.sealing.anchor_world import Notebook, NotebookAnchor


def _sync(guest: Guest, fd: int) -> Errno:
    return guest.errno("fd_sync", fd)


def _datasync(guest: Guest, fd: int) -> Errno:
    return guest.errno("fd_datasync", fd)


def _write(guest: Guest, fd: int) -> Errno:
    guest.put(32768, b"more")
    return guest.errno("fd_write", fd, *guest.vectors(4), 16384)


def _pwrite(guest: Guest, fd: int) -> Errno:
    guest.put(32768, b"more")
    return guest.errno("fd_pwrite", fd, *guest.vectors(4), 9, 16384)


def known(notebook: Notebook) -> State:
    """What is remembered."""
    assert notebook.record is not None
    return notebook.record.state


@pytest.mark.parametrize(
    ("call", "fdflags"), [(_sync, 0), (_datasync, 0), (_write, DSYNC), (_pwrite, DSYNC)]
)
def test_it_returns_when_the_anchor_knows(
    call: Callable[[Guest, int], Errno], fdflags: int
) -> None:
    notebook, fresh = Notebook(), list[Freshness]()
    with sealed_guest(keep_up=lambda: fresh[0].keep_up()) as guest:
        store = guest.wasi._store
        assert isinstance(store, Store)
        fresh.append(begin_fresh(store, NotebookAnchor(notebook), interval_s=0))
        fd = guest.open("a", CREAT, rights=FILE_RIGHTS, fdflags=fdflags)
        for _ in range(3):
            if not fdflags:
                guest.write(fd, b"paid")
            assert call(guest, fd) is Errno.SUCCESS
            assert known(notebook).digest == store.root.digest
        # Committed by another thread meanwhile: there is nothing left for the call to commit.
        guest.write(fd, b"paid")
        store.commit()
        assert call(guest, fd) is Errno.SUCCESS
        assert known(notebook).digest == store.root.digest
        # Nothing new: the anchor is not worn out.
        before = known(notebook)
        if not fdflags:
            assert call(guest, fd) is Errno.SUCCESS
            assert known(notebook) == before


@pytest.mark.parametrize("failure", [UnavailableError("no answer"), StorageError("full")])
def test_an_anchor_that_does_not_take_it(failure: Exception) -> None:
    """The program is told as of a disk that fails; what failed before the anchor is as it was."""
    asked = []

    def keep_up() -> None:
        asked.append(1)
        raise failure

    with sealed_guest(keep_up=keep_up) as guest:
        assert guest.errno("fd_sync", 99) is Errno.BADF
        assert not asked
        fd = guest.open("a", CREAT)
        assert guest.errno("fd_sync", fd) is Errno.IO
        assert len(asked) == 1


def test_what_nobody_foresaw_is_no_success() -> None:
    """An exception does not fly through wasmtime; whoever ran the program meets it."""

    def keep_up() -> None:
        raise ZeroDivisionError

    with sealed_guest(keep_up=keep_up) as guest:
        assert guest.errno("fd_sync", guest.open("a", CREAT)) is Errno.IO
        with pytest.raises(ZeroDivisionError):
            guest.wasi.check_callbacks()
