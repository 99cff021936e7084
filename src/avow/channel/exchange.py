"""The attestation exchange as two state machines without input, output, clock or entropy.

A shell moves bytes and time: it reads exactly `needed` bytes from the TLS connection and gives them
to `receive`, writes what `to_send` returns, has `quote_wanted` answered by an `Issuer` and gives
the answer to `quoted`, and closes the connection when a method raises, after it has written what
`to_send` then returns: the refusal for the peer. When `outcome` is there, and what was to be sent
is written, the next byte on the connection is MQTT.

    needed > 0         read (up to) that many bytes, not one more
    quote_wanted       ask the issuer, once
    outcome            the end; nothing else is ever success

A method that raises has ended the exchange: every later call raises again. The states are
`CLIENT_TRANSITIONS` and `SERVER_TRANSITIONS`, the tables of docs/spec/attested-channel.md.
"""

from __future__ import annotations

import enum
import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final, NoReturn

from avow.channel import checks
from avow.channel.attested_identity import AttestedIdentity
from avow.channel.authenticator import (
    Opened,
    Request,
    decode_request,
    encode_request,
    make_authenticator,
    open_authenticator,
    prepare_to_open,
)
from avow.channel.binding import own_binder, peer_binder, prepare_peer_binder
from avow.channel.judge import Judge, Judged
from avow.channel.messages import (
    HEADER_BYTES,
    Accepted,
    Answer,
    Category,
    ClientEvidence,
    FrameType,
    Message,
    Open,
    Refused,
    decode_body,
    decode_header,
    encode,
    frame_bytes,
    refusal_of,
)
from avow.channel.session import TlsFacts
from avow.errors import (
    AvowError,
    Check,
    DeniedError,
    MalformedError,
    UnavailableError,
    UntrustedError,
)
from avow.evidence.appraisal import AttestationResult
from avow.evidence.claims import Claims, Role
from avow.evidence.envelope import Evidence
from avow.evidence.origin import Expectation, Verified

# From the end of the TLS handshake to the end of the exchange; the shell keeps it.
DEADLINE_S: Final = 10.0
CONTEXT_BYTES: Final = 32

_AGAIN: Final = (
    "connect again; if this persists, somebody may be intercepting the connection to the peer"
)


class State(enum.Enum):
    """Where an exchange is. DONE and REFUSED are ends."""

    AWAITING_OPEN = "awaiting OPEN"
    AWAITING_ANSWER = "awaiting ANSWER"
    AWAITING_QUOTE = "awaiting own evidence"
    AWAITING_EVIDENCE = "awaiting EVIDENCE"
    AWAITING_ACCEPTED = "awaiting ACCEPTED"
    DONE = "done"
    REFUSED = "refused"


class Event(enum.Enum):
    """What moves an exchange. `REFUSAL` is any failed check, REFUSED from the peer, the end of the
    connection and the end of time."""

    OPEN = "OPEN"
    ANSWER = "ANSWER"
    EVIDENCE = "EVIDENCE"
    ACCEPTED = "ACCEPTED"
    QUOTED = "own evidence"
    REFUSAL = "refusal"


Transition = tuple[State, Event, State]

CLIENT_TRANSITIONS: Final[tuple[Transition, ...]] = (
    # The server asks for nothing: ACCEPTED is sent.
    (State.AWAITING_ANSWER, Event.ANSWER, State.DONE),
    (State.AWAITING_ANSWER, Event.ANSWER, State.AWAITING_QUOTE),
    (State.AWAITING_ANSWER, Event.REFUSAL, State.REFUSED),
    # EVIDENCE is sent.
    (State.AWAITING_QUOTE, Event.QUOTED, State.AWAITING_ACCEPTED),
    (State.AWAITING_QUOTE, Event.REFUSAL, State.REFUSED),
    (State.AWAITING_ACCEPTED, Event.ACCEPTED, State.DONE),
    (State.AWAITING_ACCEPTED, Event.REFUSAL, State.REFUSED),
)
SERVER_TRANSITIONS: Final[tuple[Transition, ...]] = (
    (State.AWAITING_OPEN, Event.OPEN, State.AWAITING_QUOTE),
    # The client does not ask: ANSWER with a request alone is sent.
    (State.AWAITING_OPEN, Event.OPEN, State.AWAITING_EVIDENCE),
    # The client does not ask and is not asked: an empty ANSWER is sent.
    (State.AWAITING_OPEN, Event.OPEN, State.AWAITING_ACCEPTED),
    (State.AWAITING_OPEN, Event.REFUSAL, State.REFUSED),
    # ANSWER is sent, with a request or without.
    (State.AWAITING_QUOTE, Event.QUOTED, State.AWAITING_EVIDENCE),
    (State.AWAITING_QUOTE, Event.QUOTED, State.AWAITING_ACCEPTED),
    (State.AWAITING_QUOTE, Event.REFUSAL, State.REFUSED),
    # ACCEPTED is sent.
    (State.AWAITING_EVIDENCE, Event.EVIDENCE, State.DONE),
    (State.AWAITING_EVIDENCE, Event.REFUSAL, State.REFUSED),
    (State.AWAITING_ACCEPTED, Event.ACCEPTED, State.DONE),
    (State.AWAITING_ACCEPTED, Event.REFUSAL, State.REFUSED),
)

# In which states bytes are read, and what they may be.
_READS: Final = {
    State.AWAITING_OPEN: (FrameType.OPEN,),
    State.AWAITING_ANSWER: (FrameType.ANSWER, FrameType.REFUSED),
    State.AWAITING_EVIDENCE: (FrameType.EVIDENCE, FrameType.REFUSED),
    State.AWAITING_ACCEPTED: (FrameType.ACCEPTED, FrameType.REFUSED),
}


class EvidenceFor(enum.Enum):
    """To whom a server shows evidence."""

    ANYONE = "anyone"
    # Peers with an accepted certificate or pre-shared key: `authorised` is what TLS has shown.
    AUTHORISED = "authorised"


class AskClients(enum.Enum):
    """Whether a server asks for a client's evidence."""

    NEVER = "never"
    # Those who offer some; others are let in without.
    OFFERING = "offering"
    # All; who offers none is refused.
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What one listener does. `identity` is None where the server has no evidence to show.

    `clients_must_ask` refuses a client that only wants to show its own evidence. `judge` is needed
    unless `ask_clients` is NEVER; without a policy in it, evidence is verified and not judged.
    """

    identity: AttestedIdentity | None = None
    evidence_for: EvidenceFor = EvidenceFor.ANYONE
    clients_must_ask: bool = False
    ask_clients: AskClients = AskClients.NEVER
    judge: Judge | None = None

    def __post_init__(self) -> None:
        if self.ask_clients is not AskClients.NEVER and self.judge is None:
            raise MalformedError("expected a judge where clients are asked, got none; report this")


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What one client does. With a `judge` it asks for the server's evidence, and nothing but
    evidence that the judge accepts is success. With an `identity` it offers its own. One of the
    two has to be there."""

    judge: Judge | None = None
    identity: AttestedIdentity | None = None

    def __post_init__(self) -> None:
        if self.judge is None and self.identity is None:
            raise MalformedError(
                "expected a client that asks for evidence or offers some, got neither; report this"
            )


@dataclass(frozen=True, slots=True)
class QuoteWanted:
    """What the issuer is asked for."""

    claims: Claims
    binder: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an exchange ended well.

    `verified` are the peer's claims with a proven origin, None when the peer was not asked.
    `peer` is what the policy said of them, None without a policy as well. `evidence` are the bytes
    that the peer sent. `sent_evidence` says that the peer has accepted ours.
    """

    peer: AttestationResult | None
    verified: Verified | None
    evidence: bytes
    sent_evidence: bool


# Of a connection, or how to get them once its handshake has finished.
Facts = TlsFacts | Callable[[], TlsFacts]


class _Exchange(ABC):
    """What both ends have in common."""

    _own: Role
    _peer: Role
    _transitions: tuple[Transition, ...]

    def __init__(self, facts: Facts, context: bytes, now: datetime, start: State) -> None:
        if len(context) != CONTEXT_BYTES:
            raise MalformedError(
                f"expected a context of {CONTEXT_BYTES} bytes, got {len(context)}; report this"
            )
        self._facts_source = facts
        self._context = context
        self._now = now
        self._state = start
        self._received = bytearray()
        self._frame: tuple[FrameType, int] | None = None
        self._out = bytearray()
        self._quote_wanted: QuoteWanted | None = None
        # The peer's request, as sent and as understood.
        self._peer_request_bytes = b""
        self._peer_request: Request | None = None
        self._own_request_bytes = b""
        self._judged: Judged | None = None
        self._evidence = b""
        self._sent_evidence = False
        self._outcome: Outcome | None = None
        self._failure: AvowError | None = None

    @property
    def _facts(self) -> TlsFacts:
        if not isinstance(self._facts_source, TlsFacts):
            self._facts_source = self._facts_source()
        return self._facts_source

    @property
    def state(self) -> State:
        """Where the exchange is."""
        return self._state

    @property
    def needed(self) -> int:
        """How many bytes `receive` takes at most now; 0 while none are wanted.

        Before the header is there it is the length of the shortest frame that is not a refusal:
        after a refusal nothing is worth reading.
        """
        if self._state not in _READS:
            return 0
        length = frame_bytes(_READS[self._state][0]) if self._frame is None else self._frame[1]
        return length - len(self._received)

    @property
    def quote_wanted(self) -> QuoteWanted | None:
        """What the issuer has to be asked for; None when `quoted` was called."""
        return self._quote_wanted

    @property
    def outcome(self) -> Outcome | None:
        """There when the exchange has succeeded, and never otherwise."""
        return self._outcome

    def to_send(self) -> bytes:
        """What has to be written now, in order; each byte is returned once."""
        content = bytes(self._out)
        self._out.clear()
        return content

    def receive(self, content: bytes) -> None:
        """The next bytes from the peer, 1 to `needed`.

        Raises `MalformedError`, `UntrustedError`, `DeniedError` or `UnavailableError`, each with a
        `finding`; then `to_send` has the refusal for the peer, except for an end that the peer
        caused by its own refusal.
        """
        self._raise_again()
        if not 0 < len(content) <= self.needed:
            raise MalformedError(
                f"expected 1 to {self.needed} bytes, got {len(content)}; report this"
            )
        self._received += content
        try:
            if self._frame is None and len(self._received) >= HEADER_BYTES:
                self._frame = self._header(bytes(self._received[:HEADER_BYTES]))
            if self._frame is not None and len(self._received) >= self._frame[1]:
                (kind, length), self._frame = self._frame, None
                body, self._received = bytes(self._received[HEADER_BYTES:length]), bytearray()
                self._take(decode_body(kind, body))
        except AvowError as error:
            self._fail(error)

    def quoted(self, answer: Evidence | AvowError) -> None:
        """The issuer's answer to `quote_wanted`. Raises as `receive` does."""
        self._raise_again()
        if self._quote_wanted is None:
            raise MalformedError("expected no evidence, got some; report this")
        self._quote_wanted = None
        try:
            if isinstance(answer, AvowError):
                raise _no_quote(answer) from answer
            self._send_evidence(self._authenticator(answer))
        except AvowError as error:
            self._fail(error)

    def closed(self) -> NoReturn:
        """The peer has closed the connection, or it was lost, before the end. Always raises.

        Nobody has answered: the end says nothing about the peer, whose network may have been cut,
        and nothing is accepted by it.
        """
        self._raise_again()
        self._fail(
            UnavailableError.at(
                checks.STAYED,
                expected=f"the peer to go on ({self._state.value})",
                actual="the end of the connection",
                advice=(
                    "try again; if this persists, see the peer's log and whether it speaks "
                    "attestation"
                ),
            )
        )

    def late(self) -> NoReturn:
        """The deadline has passed before the end. Always raises."""
        self._raise_again()
        self._fail(
            UnavailableError.at(
                checks.DEADLINE,
                expected=f"the exchange to end within {DEADLINE_S:g} s",
                actual=f"no end ({self._state.value})",
                advice="try again when the peer has less to do",
            )
        )

    def _header(self, header: bytes) -> tuple[FrameType, int]:
        """Type and length of the whole frame that begins so."""
        kind, length = decode_header(header)
        expected = _READS[self._state]
        if kind not in expected:
            raise _malformed(checks.ORDER, " or ".join(each.name for each in expected), kind.name)
        return kind, HEADER_BYTES + length

    @abstractmethod
    def _take(self, message: Message) -> None:
        """Acts on a message that may come in this state."""

    @abstractmethod
    def _send_evidence(self, authenticator: bytes) -> None:
        """Sends the message that our own evidence belongs in."""

    @abstractmethod
    def _identity(self) -> AttestedIdentity | None:
        """Who we are, where we have evidence."""

    def _go(self, event: Event, state: State) -> None:
        if (self._state, event, state) not in self._transitions:
            raise _malformed(
                checks.ORDER, f"a transition from {self._state.value}", f"one to {state.value}"
            )
        self._state = state

    def _send(self, message: Message) -> None:
        self._out += encode(message)

    def _ask(self, judge: Judge) -> bytes:
        """Our own request."""
        request = Request(self._context, judge.platforms)
        self._own_request_bytes = encode_request(self._own, request)
        return self._own_request_bytes

    def _heed(self, content: bytes, identity: AttestedIdentity) -> None:
        """The peer's request: afterwards a quote is wanted."""
        request = decode_request(self._peer, content)
        if hmac.compare_digest(request.context, self._context):
            raise UntrustedError.at(
                checks.CONTEXT,
                expected="a context that the peer drew itself",
                actual="ours",
                advice=_AGAIN,
            )
        if identity.platform not in request.platforms:
            raise UnavailableError.at(
                checks.PLATFORM,
                expected=f"a peer that can verify evidence from {identity.platform}",
                actual=f"one for {', '.join(request.platforms)}",
                advice="use a release of avow that knows the platform",
            )
        self._peer_request_bytes, self._peer_request = content, request
        claims = Claims(
            nonce=request.context,
            role=self._own,
            workload=identity.workload,
            key=identity.key_digest,
            issued_at_s=int(self._now.timestamp()),
        )
        binder = own_binder(self._facts, self._own, request.context, identity.spki)
        self._quote_wanted = QuoteWanted(claims, binder)

    def _authenticator(self, evidence: Evidence) -> bytes:
        identity, request = self._identity(), self._peer_request
        if identity is None or request is None:
            raise _malformed(checks.ORDER, "a request for evidence", "none")
        return make_authenticator(
            self._own,
            facts=self._facts,
            request=self._peer_request_bytes,
            context=request.context,
            certificate=identity.certificate,
            evidence=evidence.encoded(),
            sign=identity.sign,
        )

    def _judge(self, judge: Judge, authenticator: bytes) -> None:
        """The peer's evidence. Raises unless it is there, proven and accepted."""
        if not authenticator:
            raise UntrustedError.at(
                checks.PRESENT,
                expected="evidence, as it was asked for",
                actual="none",
                advice=_AGAIN,
            )
        opened: Opened = open_authenticator(
            self._peer,
            authenticator,
            facts=self._facts,
            request=self._own_request_bytes,
            context=self._context,
        )
        expectation = Expectation(
            nonce=self._context,
            role=self._peer,
            key=sha256(opened.spki).digest(),
            binder=peer_binder(self._facts, self._peer, self._context, opened.spki),
        )
        self._judged = judge.judge(opened.evidence, expectation, self._now)
        self._evidence = opened.evidence

    def _finish(self, event: Event, judge: Judge | None) -> None:
        """The end. `judge` is the one that had to judge, if any: without its word, no success."""
        if judge is not None and not _accepted(judge, self._judged):
            raise UntrustedError.at(
                checks.PRESENT,
                expected="judged and accepted evidence",
                actual="none",
                advice="report this",
            )
        self._go(event, State.DONE)
        self._outcome = Outcome(
            peer=None if self._judged is None else self._judged.result,
            verified=None if self._judged is None else self._judged.verified,
            evidence=self._evidence,
            sent_evidence=self._sent_evidence,
        )

    def _raise_again(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: AvowError) -> NoReturn:
        """Ends the exchange without success, now and for every later call."""
        self._state = State.REFUSED
        self._failure = error
        self._outcome = None
        self._quote_wanted = None
        self._received.clear()
        self._frame = None
        # What was not sent yet, evidence perhaps, does not go out after a failed check.
        self._out.clear()
        # An answer to a refusal would have no reader.
        if error.finding is None or error.finding.check is not checks.ACCEPTED:
            self._send(refusal_of(error))
        raise error


class ServerExchange(_Exchange):
    """The server's end, from the first byte of OPEN on.

    `context` are 32 fresh random bytes, `now` the time with a time zone. `authorised` says that TLS
    has shown an accepted client certificate or pre-shared key.
    """

    _own = Role.SERVER
    _peer = Role.CLIENT
    _transitions = SERVER_TRANSITIONS

    def __init__(
        self,
        facts: TlsFacts,
        settings: ServerSettings,
        *,
        authorised: bool,
        context: bytes,
        now: datetime,
    ) -> None:
        super().__init__(facts, context, now, State.AWAITING_OPEN)
        self._settings = settings
        self._authorised = authorised
        self._asks = False

    def _identity(self) -> AttestedIdentity | None:
        return self._settings.identity

    def _take(self, message: Message) -> None:
        match message:
            case Refused():
                raise _refused_by_peer(message)
            case Open():
                self._open(message)
            case ClientEvidence() if self._settings.judge is not None:
                self._judge(self._settings.judge, message.authenticator)
                self._sent_evidence = self._peer_request is not None
                self._finish(Event.EVIDENCE, self._settings.judge)
                self._send(Accepted())
            case Accepted():
                self._sent_evidence = self._peer_request is not None
                self._finish(Event.ACCEPTED, None)
            case _:
                raise _malformed(checks.ORDER, "another message", type(message).__name__)

    def _open(self, message: Open) -> None:
        settings = self._settings
        self._asks = settings.ask_clients is AskClients.ALWAYS or (
            settings.ask_clients is AskClients.OFFERING and message.offers_evidence
        )
        if self._asks and not message.offers_evidence:
            raise DeniedError.at(
                checks.REQUIRED,
                expected="a client that shows evidence",
                actual="one that offers none",
                advice="start the client in a TEE (--tee)",
            )
        if message.request:
            self._go(Event.OPEN, State.AWAITING_QUOTE)
            self._heed(message.request, self._may_show())
            return
        if settings.clients_must_ask:
            raise DeniedError.at(
                checks.ASKED,
                expected="a client that asks for evidence",
                actual="one that does not",
                advice="give the client a policy (--policy)",
            )
        if not message.offers_evidence:
            raise _malformed(
                checks.FRAME,
                "a client that asks for evidence or offers some",
                "one that does neither",
            )
        self._answer(Event.OPEN, b"")

    def _may_show(self) -> AttestedIdentity:
        """Our identity, if the peer may see evidence: checked before any quote is asked for."""
        settings = self._settings
        if settings.evidence_for is EvidenceFor.AUTHORISED and not self._authorised:
            raise DeniedError.at(
                checks.AUTHORISED,
                expected="a client with an accepted certificate or pre-shared key",
                actual="one without",
                advice="connect with a client certificate (--cert, --key)",
            )
        if settings.identity is None:
            raise UnavailableError.at(
                checks.OFFERED,
                expected="a server with evidence",
                actual="one without a TEE",
                advice="start the broker with --tee",
            )
        return settings.identity

    def _send_evidence(self, authenticator: bytes) -> None:
        self._answer(Event.QUOTED, authenticator)

    def _answer(self, event: Event, authenticator: bytes) -> None:
        request = b""
        if self._asks and self._settings.judge is not None:
            request = self._ask(self._settings.judge)
            self._go(event, State.AWAITING_EVIDENCE)
        else:
            self._go(event, State.AWAITING_ACCEPTED)
        self._send(Answer(authenticator, request))


class ClientExchange(_Exchange):
    """The client's end; OPEN is in `to_send` from the start.

    `context` are 32 fresh random bytes, `now` the time with a time zone. OPEN says nothing of the
    connection: with a function as `facts` the exchange can be made before the handshake has ended.
    """

    _own = Role.CLIENT
    _peer = Role.SERVER
    _transitions = CLIENT_TRANSITIONS

    def __init__(
        self, facts: Facts, settings: ClientSettings, *, context: bytes, now: datetime
    ) -> None:
        super().__init__(facts, context, now, State.AWAITING_ANSWER)
        self._settings = settings
        request = b"" if settings.judge is None else self._ask(settings.judge)
        self._send(Open(settings.identity is not None, request))

    def prepare(self) -> None:
        """Computes what does not depend on the answer, for the time in which the server works.

        To leave it out changes nothing but the time. Raises as `receive` does.
        """
        self._raise_again()
        try:
            if self._settings.judge is not None:
                prepare_to_open(self._facts, self._peer)
                prepare_peer_binder(self._facts, self._peer, self._context)
        except AvowError as error:
            self._fail(error)

    def _identity(self) -> AttestedIdentity | None:
        return self._settings.identity

    def _take(self, message: Message) -> None:
        match message:
            case Refused():
                raise _refused_by_peer(message)
            case Answer():
                self._answered(message)
            case Accepted():
                self._sent_evidence = True
                self._finish(Event.ACCEPTED, self._settings.judge)
            case _:
                raise _malformed(checks.ORDER, "another message", type(message).__name__)

    def _answered(self, answer: Answer) -> None:
        # The server is judged before it sees anything of ours.
        if self._settings.judge is not None:
            self._judge(self._settings.judge, answer.authenticator)
        elif answer.authenticator:
            raise _malformed(checks.ANSWERS, "no evidence, as none was asked for", "some")
        if not answer.request:
            self._finish(Event.ANSWER, self._settings.judge)
            self._send(Accepted())
            return
        if self._settings.identity is None:
            raise _malformed(checks.OFFERED, "no request, as no evidence was offered", "one")
        self._go(Event.ANSWER, State.AWAITING_QUOTE)
        self._heed(answer.request, self._settings.identity)

    def _send_evidence(self, authenticator: bytes) -> None:
        self._go(Event.QUOTED, State.AWAITING_ACCEPTED)
        self._send(ClientEvidence(authenticator))


def _accepted(judge: Judge, judged: Judged | None) -> bool:
    """Asked once more at the end: a judge that forgets to raise must not let anybody in."""
    if judged is None:
        return False
    return not judge.has_policy or (judged.result is not None and judged.result.accepted)


def _no_quote(error: AvowError) -> UnavailableError:
    return UnavailableError.at(
        checks.QUOTE,
        expected="evidence from the platform",
        actual=f"none ({error})",
        advice="try again; if this persists, see that side's log",
    )


def _refused_by_peer(refusal: Refused) -> AvowError:
    kind = UnavailableError if refusal.category is Category.UNAVAILABLE else DeniedError
    return kind.at(
        checks.ACCEPTED,
        expected="the peer to accept",
        actual=f"a refusal at its check {refusal.check} ({refusal.sentence})",
        advice="the peer's log says what it got instead",
    )


def _malformed(check: Check, expected: str, actual: str) -> MalformedError:
    return MalformedError.at(check, expected=expected, actual=actual, advice=_AGAIN)
