"""Signals of a service: none is lost, however the main thread waits."""

from __future__ import annotations

import os
import queue
import signal
import threading

from avow.cli.interrupts import signals_told

PATIENCE_S = 30.0
_USER = signal.SIGUSR1


def test_a_signal_is_told_although_nothing_wakes_the_main_thread() -> None:
    """As one is that comes just before the main thread blocks: its handler would run after that."""
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    with signals_told((_USER,), told.put):
        # The kernel gives it to another thread: the main one sleeps on.
        thread = threading.Thread(
            target=lambda: signal.pthread_kill(threading.get_ident(), _USER), daemon=True
        )
        thread.start()
        assert told.get(timeout=PATIENCE_S) == _USER
        thread.join()


def test_every_signal_is_told_and_others_are_not() -> None:
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    others: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: others.append(number))
    try:
        with signals_told((_USER, signal.SIGHUP), told.put):
            for number in (signal.SIGUSR2, _USER, signal.SIGHUP):
                os.kill(os.getpid(), number)
            assert {told.get(timeout=PATIENCE_S) for _ in range(2)} == {_USER, signal.SIGHUP}
        assert told.empty()
        assert others == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_afterwards_all_is_as_it_was() -> None:
    handler = signal.getsignal(_USER)
    threads = threading.active_count()
    with signals_told((_USER,), lambda _: None):
        assert signal.getsignal(_USER) is not handler
        assert threading.active_count() == threads + 1
    assert signal.getsignal(_USER) is handler
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1
