"""SQLite in the sandbox on a sealed store, killed again and again, and what it must hold each time.

python -m tests.integration.sqlite_kills --kills 1000 --seed 7

One process imports avow once and forks for each life of the database, so a life starts in some
hundredths of a second. A life begins with looking whether all is right, and then moves amounts
between accounts, one transaction after the other, until SIGKILL ends it: at a moment that the seed
chooses, in the midst of a transaction as likely as anywhere.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avow.cli import run as avow
from examples.sandbox import programs

ACCOUNTS = 1000
MOVED = 50
LINES_READ_MAX = 12
# About what two transactions take: a kill falls into one of them, or between them.
MOMENT_S = 0.012
# Some are killed while they start, or while SQLite rolls the last transaction back.
STARTING_SHARE = 0.1
STARTING_S = 0.4
PATIENCE_S = 60.0
# More than a life ever gets to, and less than what fits into a pipe.
TRANSACTIONS = 120

CREATE = f"""\
CREATE TABLE IF NOT EXISTS accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS log (n INTEGER PRIMARY KEY, note BLOB NOT NULL);
INSERT OR IGNORE INTO accounts SELECT value, 0 FROM generate_series(1, {ACCOUNTS});
"""
LOOK = """\
SELECT 'found', (SELECT integrity_check FROM pragma_integrity_check), \
(SELECT count(*) FROM accounts), (SELECT sum(balance) FROM accounts), \
(SELECT sum(id * balance) FROM accounts), (SELECT count(*) FROM log), \
(SELECT ifnull(max(n), 0) FROM log);
"""


class WrongError(Exception):
    """The database is not as it has to be."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a life found at its beginning."""

    integrity: str
    accounts: int
    total: int
    weighted: int
    transactions: int
    newest: int


def first_account(n: int) -> int:
    """Transaction `n` moves amounts between this account and the 49 behind it."""
    return n * 37 % (ACCOUNTS - MOVED) + 1


def weight(n: int) -> int:
    """What transaction `n` does to the sum of id times balance: even ids win one, odd lose it."""
    return MOVED // 2 if first_account(n) % 2 else -(MOVED // 2)


def transaction(n: int) -> str:
    """As SQL. Between its statements the accounts do not add up to nothing."""
    first = first_account(n)
    where = f"WHERE id BETWEEN {first} AND {first + MOVED - 1} AND id % 2"
    return (
        f"BEGIN; UPDATE accounts SET balance = balance + 1 {where} = 0; "
        f"INSERT INTO log VALUES ({n}, randomblob(9000)); "
        f"UPDATE accounts SET balance = balance - 1 {where} = 1; COMMIT; "
        f"SELECT 'done', {n};\n"
    )


def check(found: Found, reported: int) -> None:
    """Raises WrongError. `reported`: the newest transaction whose COMMIT was reported."""
    expected = Found(
        "ok",
        ACCOUNTS,
        0,
        sum(map(weight, range(1, found.newest + 1))),
        found.newest,
        found.newest,
    )
    if found != expected:
        raise WrongError(f"expected {expected}, found {found}")
    if not reported <= found.newest <= reported + 1:
        raise WrongError(
            f"transaction {reported} was reported as the newest, {found.newest} is the newest"
        )


class Life:
    """SQLite's shell in `avow run`, forked from this process; its input and output are pipes."""

    def __init__(self, arguments: Sequence[str], script: str) -> None:
        given, our_end = os.pipe()
        self._output, written = os.pipe()
        self._rest = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(given, 0)
            os.dup2(written, 1)
            os.closerange(3, 64)
            os._exit(avow(list(arguments)))
        os.close(given)
        os.close(written)
        # Stays open while it lives, or the shell would come to its end.
        self._input = our_end
        self.give(script)

    def give(self, script: str) -> None:
        """More input; what fits into a pipe."""
        os.write(self._input, script.encode())

    def line(self) -> str:
        """The next line; empty when there is none any more."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._output], [], [], PATIENCE_S)
            data = os.read(self._output, 65_536) if ready else b""
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def let_pass(self, seconds: float) -> None:
        """Nothing to read ends this early, so that the moment does not depend on the output."""
        select.select([], [], [], seconds)

    def kill(self) -> list[str]:
        """SIGKILL; the lines that it had still written."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        rest = []
        while line := self.line():
            rest.append(line)
        os.close(self._input)
        os.close(self._output)
        if not os.WIFSIGNALED(status):
            raise WrongError(f"it ended by itself, with {os.waitstatus_to_exitcode(status)}")
        return rest


def _number(line: str) -> int:
    word, _, number = line.partition("|")
    if word != "done":
        raise WrongError(f"expected `done|` and a number, got {line!r}")
    return int(number)


def live(arguments: Sequence[str], reported: int, chance: random.Random) -> int:
    """One life: looks, goes on, is killed. Returns the newest transaction that was reported."""
    # Which transaction is next is known only after looking, so the rest is asked for then.
    life = Life(arguments, f"PRAGMA cache_size = 8;\n{CREATE}{LOOK}")
    if chance.random() < STARTING_SHARE:
        life.let_pass(chance.random() * STARTING_S)
        if any(not line.startswith("found|") for line in life.kill()):
            raise WrongError("it said something while it started")
        return reported
    word, *values = life.line().split("|")
    if word != "found" or len(values) != 6:
        life.kill()
        raise WrongError(f"expected what the database holds, got {word} {values}")
    found = Found(values[0], *map(int, values[1:]))
    check(found, reported)
    newest = found.newest
    life.give("".join(transaction(newest + 1 + k) for k in range(TRANSACTIONS)))
    for _ in range(chance.randrange(LINES_READ_MAX)):
        newest = _number(life.line())
    life.let_pass(chance.random() * MOMENT_S)
    for line in life.kill():
        newest = _number(line)
    return newest


def torture(folder: Path, kills: int, seed: int) -> int:
    """So many lives in a new store in `folder`, all of whose blocks are proven in the end.

    Returns the number of transactions. Raises WrongError.
    """
    key = folder / "owner.key"
    data = str(folder / "data")
    module = str(programs.sqlite())
    if avow(["store", "init", data, "--new-key", f"file:{key}"]) != 0:
        raise WrongError("the store could not be made")
    chance = random.Random(seed)
    options = [
        "--store",
        data,
        "--key",
        f"file:{key}",
        "--grant",
        "clock:realtime",
        "--grant",
        "clock:monotonic",
    ]
    arguments = ["run", module, *options, "--", "-batch", "/bank.db"]
    reported = 0
    for number in range(kills):
        try:
            reported = live(arguments, reported, chance)
        except WrongError as error:
            raise WrongError(f"life {number} of seed {seed}: {error}") from error
    if avow(["store", "check", data, "--key", f"file:{key}"]) != 0:
        raise WrongError(f"the store is damaged after {kills} lives of seed {seed}")
    return reported


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the database was right each time, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.sqlite_kills")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, help="of the moments (by chance)")
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    with tempfile.TemporaryDirectory(prefix="avow-sqlite-") as folder:
        try:
            newest = torture(Path(folder), chosen.kills, seed)
        except WrongError as error:
            print(f"wrong: {error}", file=sys.stderr)
            return 1
    print(f"{chosen.kills} kills, {newest} transactions, right each time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
