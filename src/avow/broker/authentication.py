"""Answers the core's AUTH_REQUESTs: passwords by argon2id in a few threads, SCRAM at once.

Requests come from one thread and are never answered by sleeping in it. Passwords that wait for
their check are bounded (beyond: 0x89, server busy) and fair by address (`login_queue`), a user that
does not exist costs the same time as a wrong password, and refusals wait in `login_delay`.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from argon2.exceptions import InvalidHashError, VerificationError
from structlog.typing import FilteringBoundLogger

from avow.broker.commands import AuthOutcome, ReasonCode, auth_result_command
from avow.broker.config import Login
from avow.broker.events import AuthFlag, AuthRequest
from avow.broker.login_delay import DelayedAnswers, FailureLedger
from avow.broker.login_queue import LoginQueue
from avow.broker.scram import MECHANISM, DecoyVerifiers, ScramExchange, ScramVerifier
from avow.broker.users import Users, password_hasher
from avow.channel.address import source_of
from avow.errors import DeniedError, UnavailableError

# What a log line shows of a name that anybody can make up.
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection came from, as the listener knows it."""

    peer: str
    allow_anonymous: bool

    @property
    def source(self) -> str:
        """Who failed logins count for: the peer's address, or its network in IPv6."""
        return source_of(self.peer)


class Authenticator:
    """`request` and `ended` are called by one thread, in the order of the core's events."""

    def __init__(
        self,
        login: Login,
        users: Users | None,
        *,
        send: Callable[[bytes], None],
        origin_of: Callable[[int], Origin],
        log: FilteringBoundLogger,
    ) -> None:
        """`users` None: no password file, so nobody can log in with a password."""
        self._users = users
        self._send_command = send
        self._origin_of = origin_of
        self._log = log
        self._queue: LoginQueue[tuple[AuthRequest, Origin]] = LoginQueue(login.pending_max)
        self._lock = threading.Lock()
        self._ledger = FailureLedger(login.failure_delay_s, login.failure_delay_max_s)
        self._delayed = DelayedAnswers(self._send)
        self._workers = ThreadPoolExecutor(login.workers, thread_name_prefix="password")
        self._hasher = password_hasher()
        self._decoy_hash = self._hasher.hash(secrets.token_hex())
        self._decoys = DecoyVerifiers()
        self._tickets: dict[int, int] = {}
        self._exchanges: dict[int, ScramExchange] = {}
        self._proven_users: dict[int, str] = {}
        self.failures = 0
        self.busy = 0

    def start(self) -> None:
        """Begins to answer."""
        self._delayed.start()

    def stop(self) -> None:
        """Answers nothing more."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._delayed.stop()

    def reload(self, login: Login, users: Users | None) -> None:
        """For requests from now on. The number of workers stays until the next start."""
        with self._lock:
            self._users = users
            self._queue.waiting_max = login.pending_max
            self._ledger.set_delays(login.failure_delay_s, login.failure_delay_max_s)

    def request(self, request: AuthRequest) -> None:
        """Answers now or later by an AUTH_RESULT command."""
        origin = self._origin_of(request.connection)
        self._tickets[request.connection] = request.ticket
        if self._delayed.crowded(origin.source):
            self._refuse_busy(request, origin)
        elif AuthFlag.METHOD in request.flags:
            self._scram(request, origin)
        elif self._users is None and origin.allow_anonymous:
            # Nothing can be checked and nothing has to be: the client comes in as nobody.
            self._answer(request, AuthOutcome.SUCCESS)
        else:
            self._check_password(request, origin)

    def ended(self, connection: int) -> None:
        """The connection is gone: its unfinished exchange too."""
        self._tickets.pop(connection, None)
        self._exchanges.pop(connection, None)
        self._proven_users.pop(connection, None)

    def _check_password(self, request: AuthRequest, origin: Origin) -> None:
        with self._lock:
            tries = self._ledger.tries(origin.source)
            shed = self._queue.put((request, origin), origin.source, tries)
        for each, its_origin in shed:
            self._refuse_busy(each, its_origin)
        if shed:
            # Whoever had to go has left a check of theirs behind, for the one whose turn it is.
            return
        try:
            # Not of this request: of the one whose turn it is when a worker is free.
            check = self._workers.submit(self._verify_next)
        except RuntimeError:
            # The broker is stopping: nobody waits for the answer any more.
            self._log.debug("login not checked", reason="the broker is stopping")
            return
        check.add_done_callback(self._checked)

    def _checked(self, check: Future[None]) -> None:
        """A worker keeps to itself what went wrong; the client is refused when its time is over."""
        if not check.cancelled() and (error := check.exception()) is not None:
            self._log.error("login check failed", exc_info=error)

    def _verify_next(self) -> None:
        with self._lock:
            waiting = self._queue.take()
            users = self._users or {}
        if waiting is not None:
            self._verify(*waiting, users)

    def _verify(self, request: AuthRequest, origin: Origin, users: Users) -> None:
        if self._tickets.get(request.connection) != request.ticket:
            return  # gone while it waited: not worth 19 MiB and some milliseconds
        user = users.get(request.user)
        password_hash = self._decoy_hash if user is None else user.password_hash
        try:
            self._hasher.verify(password_hash, request.password)
        except (VerificationError, InvalidHashError):
            self._refuse(request, origin, request.user, "wrong user name or password")
            return
        if user is None:
            self._refuse(request, origin, request.user, "wrong user name or password")
            return
        with self._lock:
            self._ledger.succeeded(user.name)
        self._answer(request, AuthOutcome.SUCCESS, user=user.name)

    def _scram(self, request: AuthRequest, origin: Origin) -> None:
        if request.method != MECHANISM or self._users is None:
            self._log.warning(
                "login refused",
                peer=origin.peer,
                client=shown(request.client),
                reason="authentication method not offered",
                method=shown(request.method),
            )
            self._answer(
                request,
                AuthOutcome.REFUSE,
                code=ReasonCode.BAD_AUTHENTICATION_METHOD,
                reason="the server does not offer this authentication method",
            )
            return
        try:
            if AuthFlag.CONTINUATION in request.flags:
                self._scram_final(request)
            else:
                self._scram_first(request)
        except DeniedError as error:
            exchange = self._exchanges.pop(request.connection, None)
            claimed = exchange.user if exchange is not None else request.user
            self._refuse(request, origin, claimed, str(error))

    def _scram_first(self, request: AuthRequest) -> None:
        exchange = ScramExchange(self._verifier_of)
        self._exchanges[request.connection] = exchange
        challenge = exchange.first(request.data)
        if AuthFlag.USER_NAME in request.flags and request.user != exchange.user:
            raise DeniedError("expected one user name, got two; send the same in CONNECT and SCRAM")
        if AuthFlag.REAUTHENTICATION in request.flags and exchange.user != self._proven_users.get(
            request.connection
        ):
            raise DeniedError("expected the user of this connection, got another; connect again")
        self._answer(request, AuthOutcome.CONTINUE, data=challenge)

    def _scram_final(self, request: AuthRequest) -> None:
        exchange = self._exchanges.get(request.connection)
        if exchange is None:
            raise DeniedError("expected client-first, got another SCRAM message; start again")
        proof = exchange.final(request.data)
        del self._exchanges[request.connection]
        self._proven_users[request.connection] = exchange.user
        with self._lock:
            self._ledger.succeeded(exchange.user)
        self._answer(request, AuthOutcome.SUCCESS, user=exchange.user, data=proof)

    def _verifier_of(self, name: str) -> ScramVerifier:
        user = (self._users or {}).get(name)
        return self._decoys.for_name(name) if user is None else user.scram

    def _refuse(self, request: AuthRequest, origin: Origin, user: str, reason: str) -> None:
        with self._lock:
            self.failures += 1
            delay_s = self._ledger.failed(user, origin.source)
        self._log.warning(
            "login failed",
            user=shown(user),
            peer=origin.peer,
            client=shown(request.client),
            reason=reason,
            delay_s=round(delay_s, 3),
        )
        # DISCONNECT, which ends a living connection, has no 0x86 [MQTT-4.12.1-2].
        alive = AuthFlag.REAUTHENTICATION in request.flags
        answer = auth_result_command(
            request.connection,
            request.ticket,
            AuthOutcome.REFUSE,
            code=ReasonCode.NOT_AUTHORIZED if alive else ReasonCode.BAD_USER_NAME_OR_PASSWORD,
            reason="wrong user name or password",
        )
        self._delayed.put(answer, origin.source, delay_s)

    def _refuse_busy(self, request: AuthRequest, origin: Origin) -> None:
        with self._lock:
            self.busy += 1
            self._ledger.turned_away(origin.source)
        self._exchanges.pop(request.connection, None)
        self._log.warning(
            "login refused",
            user=shown(request.user),
            peer=origin.peer,
            client=shown(request.client),
            reason="server busy",
        )
        self._answer(
            request,
            AuthOutcome.REFUSE,
            code=ReasonCode.SERVER_BUSY,
            reason="too many logins are waiting; try again later",
        )

    def _answer(
        self,
        request: AuthRequest,
        outcome: AuthOutcome,
        *,
        code: ReasonCode = ReasonCode.SUCCESS,
        user: str = "",
        data: bytes = b"",
        reason: str = "",
    ) -> None:
        self._send(
            auth_result_command(
                request.connection,
                request.ticket,
                outcome,
                code=code,
                user=user,
                data=data,
                reason=reason,
            )
        )

    def _send(self, command: bytes) -> None:
        try:
            self._send_command(command)
        except UnavailableError:
            # The pump has stopped meanwhile, and every connection with it.
            self._log.debug("login answer dropped", reason="the broker is stopping")


def shown(name: str) -> str:
    """A name that anybody can make up, as a line of the log shows it."""
    return name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "…"
