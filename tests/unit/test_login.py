"""Logins: passwords, SCRAM, failures that wait, and the bounds of all of it."""

from __future__ import annotations

import io
import json
import queue
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from argon2.exceptions import VerifyMismatchError
from scramp import ScramClient  # type: ignore[import-untyped]

from avow.broker.authentication import Authenticator, Origin
from avow.broker.commands import AuthOutcome, ReasonCode
from avow.broker.config import Log, Login
from avow.broker.events import AuthFlag, AuthRequest
from avow.broker.login_delay import (
    ENTRIES_MAX,
    MEMORY_S,
    WAITING_MAX,
    WAITING_PER_HOST_MAX,
    DelayedAnswers,
    FailureLedger,
)
from avow.broker.logs import make_log
from avow.broker.scram import ScramExchange, make_verifier, parse_verifier
from avow.broker.users import User, new_user
from avow.errors import DeniedError, UnavailableError

PATIENCE_S = 20.0
NONE = AuthFlag(0)


@dataclass(frozen=True)
class Answer:
    """An AUTH_RESULT command, decoded."""

    connection: int
    ticket: int
    outcome: AuthOutcome
    code: int
    user: str
    data: bytes
    reason: str


def decode(blob: bytes) -> Answer:
    kind, connection, ticket, outcome, code = struct.unpack_from("<BIIBB", blob)
    assert kind == 3
    at, strings = struct.calcsize("<BIIBB"), []
    for _ in range(3):
        (length,) = struct.unpack_from("<H", blob, at)
        strings.append(blob[at + 2 : at + 2 + length])
        at += 2 + length
    assert at == len(blob)
    user, data, reason = strings
    return Answer(
        connection, ticket, AuthOutcome(outcome), code, user.decode(), data, reason.decode()
    )


class Desk:
    """An authenticator whose answers can be awaited."""

    def __init__(self, users: dict[str, User] | None, **login: Any) -> None:
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.log = io.StringIO()
        self.origins: dict[int, Origin] = {}
        settings = {"failure_delay_s": 0.0, **login}
        self.authenticator = Authenticator(
            Login(**settings),
            users,
            send=self.answers.put,
            origin_of=lambda connection: self.origins.get(
                connection, Origin(f"192.0.2.{connection}:5", allow_anonymous=False)
            ),
            log=make_log(Log(level="debug"), self.log),
        )

    def __enter__(self) -> Desk:
        self.authenticator.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.authenticator.stop()

    def answer(self) -> Answer:
        return decode(self.answers.get(timeout=PATIENCE_S))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def password(self, user: str, password: bytes, connection: int = 1, ticket: int = 1) -> None:
        flags = AuthFlag.USER_NAME | AuthFlag.PASSWORD
        self.authenticator.request(
            AuthRequest(connection, ticket, 5, flags, "client", user, password, "", b"")
        )

    def scram(
        self,
        data: bytes,
        flags: AuthFlag = NONE,
        *,
        user: str = "",
        method: str = "SCRAM-SHA-256",
        connection: int = 1,
        ticket: int = 1,
    ) -> Answer:
        present = AuthFlag.USER_NAME if user else NONE
        self.authenticator.request(
            AuthRequest(
                connection,
                ticket,
                5,
                AuthFlag.METHOD | present | flags,
                "client",
                user,
                b"",
                method,
                data,
            )
        )
        return self.answer()


@pytest.fixture(scope="module")
def users() -> dict[str, User]:
    return {"alice": new_user("alice", "correct horse"), "bob": new_user("bob", "b")}


@pytest.fixture
def desk(users: dict[str, User]) -> Iterator[Desk]:
    with Desk(users) as made:
        yield made


def test_right_password(desk: Desk) -> None:
    desk.password("alice", b"correct horse", connection=7, ticket=9)
    assert desk.answer() == Answer(7, 9, AuthOutcome.SUCCESS, 0, "alice", b"", "")
    assert desk.authenticator.failures == 0


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("alice", b"wrong"),
        ("alice", b""),
        ("alice", b"correct horse\0"),
        ("alice", b"\xff\xfe"),
        ("Alice", b"correct horse"),
        ("nobody", b"correct horse"),
        ("", b""),
    ],
)
def test_wrong_password_or_user(desk: Desk, user: str, password: bytes) -> None:
    desk.password(user, password)
    answer = desk.answer()
    assert answer.outcome is AuthOutcome.REFUSE
    assert answer.code == ReasonCode.BAD_USER_NAME_OR_PASSWORD
    assert answer.user == ""
    assert desk.authenticator.failures == 1
    (line,) = desk.lines()
    assert line["event"] == "login failed"
    assert line["user"] == user
    assert line["peer"] == "192.0.2.1:5"
    assert "horse" not in desk.log.getvalue()


def test_unknown_user_costs_a_verification_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes: list[str] = []
    verify = desk.authenticator._hasher.verify

    class Counting:
        def verify(self, password_hash: str, password: bytes) -> bool:
            hashes.append(password_hash)
            return verify(password_hash, password)

    monkeypatch.setattr(desk.authenticator, "_hasher", Counting())
    desk.password("nobody", b"x")
    desk.answer()
    (used,) = hashes
    assert used.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_without_a_file_nobody_has_a_password() -> None:
    with Desk(None) as desk:
        desk.password("alice", b"x")
        assert desk.answer().outcome is AuthOutcome.REFUSE
        desk.origins[2] = Origin("127.0.0.1:1", allow_anonymous=True)
        desk.password("alice", b"x", connection=2)
        # Where anybody may come in, a name that cannot be checked is not believed either.
        assert desk.answer() == Answer(2, 1, AuthOutcome.SUCCESS, 0, "", b"", "")


def test_with_a_file_a_wrong_password_counts_where_anonymous_is_allowed(desk: Desk) -> None:
    desk.origins[1] = Origin("127.0.0.1:1", allow_anonymous=True)
    desk.password("alice", b"wrong")
    assert desk.answer().outcome is AuthOutcome.REFUSE


def test_reload_counts_for_the_next_login(desk: Desk, users: dict[str, User]) -> None:
    desk.authenticator.reload(Login(failure_delay_s=0.0), {"bob": users["bob"]})
    desk.password("alice", b"correct horse")
    assert desk.answer().outcome is AuthOutcome.REFUSE
    desk.password("bob", b"b")
    assert desk.answer().outcome is AuthOutcome.SUCCESS


class Gate:
    """A hasher that waits until it may go on."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def verify(self, password_hash: str, password: bytes) -> bool:
        self.entered.release()
        assert self.open.wait(PATIENCE_S)
        return True


def test_too_many_at_once_are_told_that_the_server_is_busy(
    users: dict[str, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with Desk(users, workers=1, pending_max=2) as desk:
        monkeypatch.setattr(desk.authenticator, "_hasher", gate)
        desk.password("alice", b"x", connection=1)
        assert gate.entered.acquire(timeout=PATIENCE_S)
        for connection in (2, 3, 4):
            desk.password("alice", b"x", connection=connection)
        answer = desk.answer()
        # The one that waits longest has least hope to be answered in time.
        assert (answer.connection, answer.code) == (2, ReasonCode.SERVER_BUSY)
        assert desk.authenticator.busy == 1
        gate.open.set()
        assert {desk.answer().connection for _ in range(3)} == {1, 3, 4}


def test_a_client_that_has_left_is_not_verified(
    users: dict[str, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with Desk(users, workers=1) as desk:
        monkeypatch.setattr(desk.authenticator, "_hasher", gate)
        desk.password("alice", b"x", connection=1)
        assert gate.entered.acquire(timeout=PATIENCE_S)
        for connection in (2, 3):
            desk.password("alice", b"x", connection=connection)
        desk.authenticator.ended(2)
        gate.open.set()
        assert [desk.answer().connection for _ in range(2)] == [1, 3]


def test_failures_wait_longer_each_time_and_others_do_not(users: dict[str, User]) -> None:
    with Desk(users, failure_delay_s=60.0, failure_delay_max_s=60.0) as desk:
        desk.password("alice", b"wrong", connection=1)
        desk.password("bob", b"b", connection=2)
        assert desk.answer().connection == 2
    with Desk(users, failure_delay_s=0.02, failure_delay_max_s=0.05) as desk:
        for _ in range(3):
            desk.password("alice", b"wrong")
            desk.answer()
        assert [line["delay_s"] for line in desk.lines()] == [0.02, 0.04, 0.05]


class Mismatch:
    """A hasher that nothing fits."""

    def verify(self, password_hash: str, password: bytes) -> bool:
        raise VerifyMismatchError


def test_many_waiting_failures_of_one_host_are_not_even_checked(
    users: dict[str, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"failure_delay_s": 60.0, "failure_delay_max_s": 60.0}
    with Desk(users, workers=1, **slow) as desk:
        with monkeypatch.context() as patched:
            patched.setattr(desk.authenticator, "_hasher", Mismatch())
            for connection in range(WAITING_PER_HOST_MAX):
                desk.origins[connection] = Origin("192.0.2.9:1", allow_anonymous=False)
                desk.password("alice", b"wrong", connection=connection)
            # The only worker is through with all of them when it comes to this.
            desk.authenticator._workers.submit(lambda: None).result(PATIENCE_S)
        assert desk.authenticator.failures == WAITING_PER_HOST_MAX
        desk.origins[1000] = Origin("192.0.2.9:2", allow_anonymous=False)
        desk.password("alice", b"correct horse", connection=1000)
        assert desk.answer().code == ReasonCode.SERVER_BUSY
        desk.password("alice", b"correct horse", connection=1001)
        assert desk.answer().outcome is AuthOutcome.SUCCESS


def test_check_that_dies_of_a_bug_is_logged(
    users: dict[str, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker would keep the exception to itself."""
    with Desk(users, workers=1) as desk:
        monkeypatch.setattr(desk.authenticator, "_hasher", object())
        desk.password("alice", b"correct horse")
    assert [line["level"] for line in desk.lines() if line["event"] == "login check failed"]


def test_login_that_comes_after_the_end_is_no_error(users: dict[str, User]) -> None:
    """The core's last events are handled while the broker stops."""
    with Desk(users) as desk:
        desk.authenticator.stop()
        desk.password("alice", b"correct horse")
    assert desk.answers.empty()


def test_stopped_pump_is_no_error(users: dict[str, User]) -> None:
    asked = threading.Event()

    def stopped(_: bytes) -> None:
        asked.set()
        raise UnavailableError("stopped")

    log = io.StringIO()
    authenticator = Authenticator(
        Login(),
        users,
        send=stopped,
        origin_of=lambda _: Origin("192.0.2.1:1", allow_anonymous=False),
        log=make_log(Log(level="debug"), log),
    )
    authenticator.start()
    authenticator.request(AuthRequest(1, 1, 5, AuthFlag.USER_NAME, "c", "bob", b"b", "", b""))
    assert asked.wait(PATIENCE_S)
    authenticator.stop()
    assert "login answer dropped" in log.getvalue()


def client(user: str, password: str) -> ScramClient:
    return ScramClient(["SCRAM-SHA-256"], user, password)


def test_scram(desk: Desk) -> None:
    alice = client("alice", "correct horse")
    first = desk.scram(alice.get_client_first().encode(), connection=4, ticket=1)
    assert (first.outcome, first.connection, first.ticket) == (AuthOutcome.CONTINUE, 4, 1)
    alice.set_server_first(first.data.decode())
    final = desk.scram(
        alice.get_client_final().encode(), AuthFlag.CONTINUATION, connection=4, ticket=2
    )
    assert (final.outcome, final.user, final.ticket) == (AuthOutcome.SUCCESS, "alice", 2)
    # The client checks that the server knows the password as well.
    alice.set_server_final(final.data.decode())


def exchange(desk: Desk, user: str, password: str, flags: AuthFlag = NONE) -> Answer:
    made = client(user, password)
    first = desk.scram(made.get_client_first().encode(), flags)
    if first.outcome is not AuthOutcome.CONTINUE:
        return first
    made.set_server_first(first.data.decode())
    return desk.scram(made.get_client_final().encode(), flags | AuthFlag.CONTINUATION)


def test_scram_with_a_wrong_password_and_an_unknown_user_look_alike(desk: Desk) -> None:
    for user in ("alice", "nobody"):
        answer = exchange(desk, user, "wrong")
        assert answer.outcome is AuthOutcome.REFUSE
        assert answer.code == ReasonCode.BAD_USER_NAME_OR_PASSWORD
    challenges = []
    for _ in range(2):
        first = desk.scram(client("nobody", "x").get_client_first().encode())
        challenges.append(first.data.decode().split(",")[1:])
    assert challenges[0] == challenges[1], "the salt of a name must not change"
    real = desk.scram(client("alice", "x").get_client_first().encode())
    assert real.data.decode().split(",")[2] == challenges[0][1], "nor the iterations differ"
    assert {line["user"] for line in desk.lines()} == {"alice", "nobody"}


def test_scram_again_on_a_living_connection(desk: Desk) -> None:
    assert exchange(desk, "alice", "correct horse").outcome is AuthOutcome.SUCCESS
    again = exchange(desk, "alice", "correct horse", AuthFlag.REAUTHENTICATION)
    assert (again.outcome, again.user) == (AuthOutcome.SUCCESS, "alice")
    other = exchange(desk, "bob", "b", AuthFlag.REAUTHENTICATION)
    assert other.outcome is AuthOutcome.REFUSE
    desk.authenticator.ended(1)
    gone = exchange(desk, "alice", "correct horse", AuthFlag.REAUTHENTICATION)
    assert gone.outcome is AuthOutcome.REFUSE


def test_scram_user_has_to_be_the_user_name(desk: Desk) -> None:
    data = client("alice", "correct horse").get_client_first().encode()
    assert desk.scram(data, user="alice").outcome is AuthOutcome.CONTINUE
    data = client("alice", "correct horse").get_client_first().encode()
    assert desk.scram(data, user="bob").outcome is AuthOutcome.REFUSE


@pytest.mark.parametrize("data", [b"", b"\xff", b"n,,", b"n,,n=alice", b"p=tls-unique,,n=a,r=b"])
def test_scram_nonsense(desk: Desk, data: bytes) -> None:
    assert desk.scram(data).outcome is AuthOutcome.REFUSE


def test_scram_final_without_a_first(desk: Desk) -> None:
    answer = desk.scram(b"c=biws,r=x,p=eA==", AuthFlag.CONTINUATION)
    assert answer.outcome is AuthOutcome.REFUSE


def test_scram_final_counts_once(desk: Desk) -> None:
    alice = client("alice", "correct horse")
    first = desk.scram(alice.get_client_first().encode())
    alice.set_server_first(first.data.decode())
    final = alice.get_client_final().encode()
    assert desk.scram(final, AuthFlag.CONTINUATION).outcome is AuthOutcome.SUCCESS
    assert desk.scram(final, AuthFlag.CONTINUATION).outcome is AuthOutcome.REFUSE


def test_other_methods_are_not_offered(desk: Desk) -> None:
    answer = desk.scram(b"", method="SCRAM-SHA-1")
    assert answer.code == ReasonCode.BAD_AUTHENTICATION_METHOD
    with Desk(None) as without_users:
        answer = without_users.scram(client("a", "b").get_client_first().encode())
        assert answer.code == ReasonCode.BAD_AUTHENTICATION_METHOD


def test_verifier_is_read_back() -> None:
    verifier = make_verifier("x")
    assert parse_verifier(str(verifier)) == verifier


def test_exchange_refuses_a_repeated_nonce() -> None:
    """The nonce of the final message has to be the server's, too."""
    verifier = make_verifier("correct horse")
    server = ScramExchange(lambda _: verifier)
    alice = client("alice", "correct horse")
    alice.set_server_first(server.first(alice.get_client_first().encode()).decode())
    other = ScramExchange(lambda _: verifier)
    other.first(client("alice", "correct horse").get_client_first().encode())
    with pytest.raises(DeniedError):
        other.final(alice.get_client_final().encode())


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_ledger_doubles_up_to_the_longest_and_forgets() -> None:
    clock = Clock()
    ledger = FailureLedger(0.5, 5.0, clock)
    delays = [ledger.failed("alice", "h") for _ in range(6)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert ledger.failed("bob", "h") == 5.0, "the host is known"
    assert ledger.failed("alice", "elsewhere") == 5.0, "the user is known"
    assert ledger.failed("carol", "third") == 0.5
    clock.now_s = MEMORY_S + 1
    assert ledger.failed("alice", "h") == 0.5


def test_ledger_success_clears_the_user_and_not_the_host() -> None:
    ledger = FailureLedger(0.5, 5.0, Clock())
    for _ in range(3):
        ledger.failed("alice", "h")
    ledger.succeeded("alice")
    assert ledger.failed("alice", "elsewhere") == 0.5
    assert ledger.failed("bob", "h") == 4.0


def test_ledger_is_bounded() -> None:
    ledger = FailureLedger(0.5, 5.0, Clock())
    for number in range(ENTRIES_MAX):
        ledger.failed(f"user{number}", "h")
    assert len(ledger._entries) == ENTRIES_MAX


def test_a_thousand_failures_do_not_overflow() -> None:
    ledger = FailureLedger(0.5, 5.0, Clock())
    assert [ledger.failed("alice", "h") for _ in range(2000)][-1] == 5.0


def test_answers_leave_in_the_order_of_their_time() -> None:
    sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    answers = DelayedAnswers(sent.put)
    answers.start()
    answers.put(b"late", "h", 0.06)
    answers.put(b"soon", "h", 0.0)
    answers.put(b"then", "h", 0.03)
    order = [sent.get(timeout=PATIENCE_S) for _ in range(3)]
    assert order == [b"soon", b"then", b"late"]
    answers.stop()


def test_too_many_waiting_answers_push_the_first_out() -> None:
    sent: list[bytes] = []
    answers = DelayedAnswers(sent.append)
    for number in range(WAITING_MAX + 2):
        answers.put(b"%d" % number, "h", 60.0 + number)
    assert sent == [b"0", b"1"]
    assert answers.crowded("h")
    assert not answers.crowded("other")
