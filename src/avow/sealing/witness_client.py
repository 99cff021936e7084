"""The store's side of a witness: an anchor over one TCP connection that is kept."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from avow.errors import MalformedError, RolledBackError, UnavailableError, UntrustedError
from avow.sealing.anchor import NO_BRANCH, Remembered, Root, Step
from avow.sealing.witness import (
    ANSWER_BYTES,
    GREETING_BYTES,
    NONCE_BYTES,
    NOTHING,
    Answer,
    Kind,
    Request,
    State,
    Status,
    StoreName,
    decode_greeting,
    open_answer,
    public_bytes,
    public_key_text,
    sign_request,
)

TIMEOUT_S: Final = 5.0
_ENDPOINT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:\[\]/#@]+)):([0-9]{1,5})")
_PORT_MAX: Final = 65535
_NUMBER_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host name or an address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """`host:port`, IPv6 addresses in brackets. Raises `MalformedError`."""
    match = _ENDPOINT.fullmatch(text)
    if match is None or int(match[3]) > _PORT_MAX or not _can_be_asked_for(match[2]):
        raise MalformedError(
            f"expected HOST:PORT such as 192.0.2.7:7712 or [2001:db8::7]:7712, got {text[:80]!r}; "
            f"correct it"
        )
    return Endpoint(match[1] or match[2], int(match[3]))


def _can_be_asked_for(name: str | None) -> bool:
    """Whether Python can encode a host's name for the resolver, which raises for some."""
    try:
        (name or "").encode("idna")
    except UnicodeError:
        return False
    return True


class Link(Protocol):
    """One connection to a witness, for the time that one exchange may take."""

    def send(self, content: bytes, timeout_s: float) -> None:
        """All of `content`. Raises `OSError`."""

    def receive(self, count: int, timeout_s: float) -> bytes:
        """Exactly so many bytes. Raises `OSError`, also when the other side ended."""

    def close(self) -> None:
        """Ends it."""


Connect = Callable[[Endpoint, float], Link]


class TcpLink:
    """A TCP connection."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Raises `OSError`."""
        self._socket = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, content: bytes, timeout_s: float) -> None:
        """See `Link`."""
        self._socket.settimeout(max(timeout_s, 0.001))
        self._socket.sendall(content)

    def receive(self, count: int, timeout_s: float) -> bytes:
        """See `Link`."""
        deadline_s = time.monotonic() + timeout_s
        content = b""
        while len(content) < count:
            # Not a time for each part: who sends a byte now and then would hold us for ever.
            self._socket.settimeout(max(deadline_s - time.monotonic(), 0.001))
            part = self._socket.recv(count - len(content))
            if not part:
                raise ConnectionResetError(104, "the witness ended the connection")
            content += part
            if time.monotonic() > deadline_s:
                raise TimeoutError(110, "timed out")
        return content

    def close(self) -> None:
        """See `Link`."""
        self._socket.close()


@dataclass(slots=True)
class _Connection:
    link: Link
    challenge: bytes
    number: int = 0


class WitnessAnchor:
    """A store's memory at a witness; see `avow.sealing.anchor.Anchor`.

    Every call ends after about `timeout_s`, and fails closed. Calls come one after the other.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        witness: bytes,
        key: Ed25519PrivateKey,
        store_id: bytes,
        *,
        timeout_s: float = TIMEOUT_S,
        connect: Connect = TcpLink,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`witness` is its public key, `key` the store's (`avow.sealing.witness.store_key`)."""
        self.name = f"the witness at {endpoint}"
        self._endpoint = endpoint
        self._witness = witness
        self._key = key
        self._store = StoreName(public_bytes(key), store_id)
        self._timeout_s = timeout_s
        self._connect = connect
        self._entropy = entropy
        self._connection: _Connection | None = None
        self._known: State | None = None
        self._asked_before = False
        # Sent without an answer: each may have been done.
        self._unanswered: list[State] = []

    def read(self) -> Remembered | None:
        """See `Anchor`."""
        answer = self._ask(Kind.READ)
        self._learn(None if answer.record is None else answer.record.state)
        if self._known is None:
            return None
        known = self._known
        return Remembered(known.anchor, known.branch, known.sequence, known.digest)

    def begin(self) -> Remembered:
        """See `Anchor`: a witness begins with the first advance."""
        return Remembered(0, NO_BRANCH)

    def advance(self, step: Step, root: Root) -> None:
        """See `Anchor`. Only from the root hash that this store knows to be the one remembered: of
        two copies of a store, one goes on."""
        if not self._asked_before:
            self.read()
        state = State(root.sequence, step.to, root.digest, step.branch)
        answer = self._change(Kind.ADVANCE, state)
        found = None if answer.record is None else answer.record.state
        if answer.status is not Status.DONE and found is not None and found in self._unanswered:
            # Done, though nobody said so then: go on from there.
            self._learn(found)
            answer = self._change(Kind.ADVANCE, state)
        self._conclude(answer, state)

    def accept(self, step: Step, root: Root) -> None:
        """See `Anchor`."""
        if not self._asked_before:
            self.read()
        state = State(root.sequence, step.to, root.digest, step.branch)
        self._conclude(self._change(Kind.ACCEPT, state), state)

    def close(self) -> None:
        """See `Anchor`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.link.close()

    def _learn(self, state: State | None) -> None:
        self._known = state
        self._asked_before = True

    def _change(self, kind: Kind, state: State) -> Answer:
        """Anything but an answer leaves `state` among the unanswered."""
        if state not in self._unanswered:
            self._unanswered.append(state)
        return self._ask(kind, NOTHING if self._known is None else self._known.digest, state)

    def _conclude(self, answer: Answer, state: State) -> None:
        found = None if answer.record is None else answer.record.state
        if answer.status is Status.DONE and found == state:
            self._learn(state)
            self._unanswered.clear()
            return
        if answer.status is Status.FULL:
            raise UnavailableError(
                f"expected {self.name} to take one more store, got a refusal, as it takes "
                "no new ones; start it with a larger --stores-max, or without --known-only"
            )
        actual = (
            "that it knows no such store"
            if found is None
            else f"sequence {found.sequence}, anchor {found.anchor}, root hash "
            f"{found.digest.hex()[:16]}"
        )
        raise RolledBackError(
            f"expected {self.name} to go on to sequence {state.sequence}, anchor "
            f"{state.anchor}, from what this store knows, got {actual}: another copy of the "
            "store was changed meanwhile, or the witness was rolled back; find out which "
            "copy is the right one"
        )

    def _ask(self, kind: Kind, expected: bytes = NOTHING, state: State | None = None) -> Answer:
        deadline_s = time.monotonic() + self._timeout_s
        kept = self._connection is not None
        # A kept connection may be dead without a word, as behind a router that forgot it: half of
        # the time is left for another one.
        first_s = deadline_s - self._timeout_s / 2 if kept else deadline_s
        try:
            return self._exchange(kind, expected, state, first_s)
        except OSError as error:
            self.close()
            failure = error
        if kept and time.monotonic() < deadline_s:
            # It may have ended long ago; to ask the same again does no harm.
            try:
                return self._exchange(kind, expected, state, deadline_s)
            except OSError as error:
                self.close()
                failure = error
        if isinstance(failure, _DroppedError):
            raise UnavailableError(
                f"expected {self.name} to answer, got a greeting and then the end of the "
                f"connection ({failure.strerror}); it may have another key than "
                f"{public_key_text(self._witness)}, which the anchor names; compare that "
                "with the first line that `avow witness` prints there, and see its log"
            ) from failure
        raise UnavailableError(
            f"expected {self.name} to answer within {self._timeout_s:g} s, got: "
            f"{failure.strerror or failure}; check that `avow witness` runs there and can "
            "be reached, as nobody else can say whether the store is the newest"
        ) from failure

    def _exchange(
        self, kind: Kind, expected: bytes, state: State | None, deadline_s: float
    ) -> Answer:
        """Raises `OSError`, and `UntrustedError` for bytes that no witness sends, or not this one.
        After any error the connection is not used again."""
        connection = self._connection or self._open(deadline_s)
        self._connection = None
        try:
            connection.number += 1
            request = Request(
                kind,
                connection.number,
                self._entropy(NONCE_BYTES),
                self._store,
                expected,
                *(() if state is None else (state,)),
            )
            content = sign_request(request, self._key, connection.challenge, self._witness)
            answered = _answer_to(content, connection, deadline_s)
            with _others():
                answer = open_answer(answered, request, self._witness, connection.challenge)
        except BaseException:
            connection.link.close()
            raise
        if connection.number < _NUMBER_MAX:
            self._connection = connection
        else:
            connection.link.close()
        return answer

    def _open(self, deadline_s: float) -> _Connection:
        with contextlib.ExitStack() as undo:
            link = self._connect(self._endpoint, max(deadline_s - time.monotonic(), 0.001))
            undo.callback(link.close)
            greeting = link.receive(GREETING_BYTES, deadline_s - time.monotonic())
            with _others():
                connection = _Connection(link, decode_greeting(greeting))
            undo.pop_all()
        return connection


class _DroppedError(ConnectionError):
    """The witness ended the connection at its first request."""


def _answer_to(content: bytes, connection: _Connection, deadline_s: float) -> bytes:
    """Raises `OSError`."""
    try:
        connection.link.send(content, deadline_s - time.monotonic())
        return connection.link.receive(ANSWER_BYTES, deadline_s - time.monotonic())
    except ConnectionError as error:
        if connection.number > 1:
            # It was idle for long, or the witness was started again.
            raise
        raise _DroppedError(error.errno, error.strerror or str(error)) from error


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """Bytes that no witness sends come from somebody else: nobody here has written them wrongly."""
    try:
        yield
    except MalformedError as error:
        raise UntrustedError(str(error)) from error
