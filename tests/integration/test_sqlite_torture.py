"""A database that SQLite writes through the sandbox survives SIGKILL at any moment."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import sqlite_kills
from tests.integration.sqlite_kills import Found, WrongError, check, weight

ROOT = Path(__file__).resolve().parents[2]
KILLS = 100


def test_a_hundred_kills_lose_nothing() -> None:
    """In a process of its own, since it forks: this one has threads."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.integration.sqlite_kills",
            "--kills",
            str(KILLS),
            "--seed",
            "1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    count, _, rest = done.stdout.splitlines()[-1].partition(" kills, ")
    assert int(count) == KILLS
    # The kills fell among transactions, not before them.
    assert int(rest.partition(" ")[0]) > KILLS


def _held(newest: int) -> Found:
    return Found("ok", 1000, 0, sum(map(weight, range(1, newest + 1))), newest, newest)


def test_what_is_right() -> None:
    check(_held(0), 0)
    check(_held(7), 7)
    # Committed, but killed before it could say so.
    check(_held(8), 7)


@pytest.mark.parametrize(
    ("found", "reported"),
    [
        (_held(6), 7),
        (_held(9), 7),
        (Found("wrong", 1000, 0, _held(7).weighted, 7, 7), 7),
        (Found("ok", 999, 0, _held(7).weighted, 7, 7), 7),
        (Found("ok", 1000, 25, _held(7).weighted, 7, 7), 7),
        (Found("ok", 1000, 0, _held(6).weighted, 7, 7), 7),
        (Found("ok", 1000, 0, _held(7).weighted, 6, 7), 7),
    ],
)
def test_what_is_wrong_is_found(found: Found, reported: int) -> None:
    with pytest.raises(WrongError):
        check(found, reported)


def test_a_transaction_moves_and_does_not_make() -> None:
    """The SQL does what `weight` says: proven with the SQLite that Python has."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
    database.execute("CREATE TABLE log (n INTEGER PRIMARY KEY, note BLOB NOT NULL)")
    ids = [(number,) for number in range(1, sqlite_kills.ACCOUNTS + 1)]
    database.executemany("INSERT INTO accounts VALUES (?, 0)", ids)
    for n in range(1, 60):
        database.executescript(sqlite_kills.transaction(n))
    found = database.execute("SELECT sum(balance), sum(id * balance) FROM accounts").fetchone()
    assert found == (0, sum(map(weight, range(1, 60))))
    database.close()
