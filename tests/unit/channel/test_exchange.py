"""The exchange: who asks, who answers, and every way in which it has to end without success."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from avow.channel import checks
from avow.channel.authenticator import Request, encode_request
from avow.channel.exchange import (
    CLIENT_TRANSITIONS,
    SERVER_TRANSITIONS,
    AskClients,
    ClientExchange,
    ClientSettings,
    EvidenceFor,
    ServerExchange,
    ServerSettings,
    State,
)
from avow.channel.judge import Judge
from avow.channel.messages import (
    HEADER_BYTES,
    LARGE_BODY_BYTES,
    SMALL_BODY_BYTES,
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
from avow.evidence.claims import Role, decode_claims
from avow.evidence.envelope import Evidence, decode_evidence
from avow.testing.attested_channel import (
    CLIENT_CONTEXT,
    NOW,
    SERVER_CONTEXT,
    UNEXPECTED,
    WORKLOAD,
    Conversation,
    Expect,
    conversation,
    facts_pair,
    identity,
    judge,
)

OTHER = dataclasses.replace(WORKLOAD, module=bytes([9]) * 32)


def message_of(frame: bytes) -> Message:
    kind, length = decode_header(frame[:HEADER_BYTES])
    assert len(frame) == HEADER_BYTES + length
    return decode_body(kind, frame[HEADER_BYTES:])


def failed(error: AvowError | None, check: Check, kind: type[AvowError]) -> None:
    assert type(error) is kind
    assert error.finding is not None
    assert error.finding.check is check


def asking(policy: Expect | None = None) -> ClientSettings:
    return ClientSettings(judge=judge(policy))


def answering(**settings: object) -> ServerSettings:
    return ServerSettings(identity=identity(), **settings)  # type: ignore[arg-type]


# Success


def test_client_asks() -> None:
    talk = conversation(asking(), answering()).run()
    assert talk.client_error is None
    assert talk.server_error is None
    outcome = talk.client_outcome
    assert outcome is not None
    assert outcome.peer is not None
    assert outcome.verified is not None
    assert outcome.verified.claims["role"] == "server"
    assert outcome.verified.claims["module"] == WORKLOAD.module
    assert not outcome.sent_evidence
    assert decode_evidence(outcome.evidence).platform == "simulated"
    assert talk.server_outcome is not None
    assert talk.server_outcome.sent_evidence
    assert talk.server_outcome.verified is None
    assert [sender for sender, _ in talk.sent] == ["client", "server", "client"]


def test_both_ask() -> None:
    talk = conversation(
        ClientSettings(judge=judge(), identity=identity()),
        answering(ask_clients=AskClients.ALWAYS, judge=judge()),
    ).run()
    assert talk.client_outcome is not None
    assert talk.server_outcome is not None
    assert talk.server_outcome.verified is not None
    assert talk.server_outcome.verified.claims["role"] == "client"
    assert talk.client_outcome.sent_evidence
    assert talk.server_outcome.sent_evidence
    kinds = [FrameType(frame[0]).name for _, frame in talk.sent]
    assert kinds == ["OPEN", "ANSWER", "EVIDENCE", "ACCEPTED"]


def test_only_the_server_asks() -> None:
    talk = conversation(
        ClientSettings(identity=identity()),
        ServerSettings(ask_clients=AskClients.OFFERING, judge=judge()),
    ).run()
    assert talk.client_outcome is not None
    assert talk.client_outcome.verified is None
    assert talk.client_outcome.sent_evidence
    assert talk.server_outcome is not None
    assert talk.server_outcome.peer is not None
    assert not talk.server_outcome.sent_evidence
    assert talk.server_platform.quotes == 0


def test_offer_that_nobody_wants() -> None:
    talk = conversation(ClientSettings(identity=identity()), ServerSettings()).run()
    assert talk.client_outcome is not None
    assert not talk.client_outcome.sent_evidence
    assert talk.server_outcome is not None
    assert talk.server_outcome.verified is None
    assert talk.client_platform.quotes == talk.server_platform.quotes == 0


def test_server_that_asks_those_who_offer_lets_others_in() -> None:
    settings = answering(ask_clients=AskClients.OFFERING, judge=judge())
    talk = conversation(asking(), settings).run()
    assert talk.server_outcome is not None
    assert talk.server_outcome.verified is None


def test_without_policy_nothing_is_judged() -> None:
    settings = ClientSettings(judge=judge(without=True))
    outcome = conversation(settings, ServerSettings(identity=identity(OTHER))).run().client_outcome
    assert outcome is not None
    assert outcome.verified is not None
    assert outcome.peer is None


@pytest.mark.parametrize("hash_name", ["sha256", "sha384"])
@pytest.mark.parametrize("client_spki", [b"", b"the client's key"])
def test_every_kind_of_connection(hash_name: str, client_spki: bytes) -> None:
    facts = facts_pair(bytes(48), hash_name=hash_name, client_spki=client_spki)  # type: ignore[arg-type]
    talk = conversation(asking(), answering(), facts).run()
    assert talk.client_outcome is not None


def test_facts_may_come_after_the_first_message() -> None:
    """OPEN needs none of them; what is wrong with them is refused before anything else is sent."""
    client_facts, server_facts = facts_pair()
    asked: list[bool] = []

    def later() -> TlsFacts:
        asked.append(True)
        return client_facts

    client = ClientExchange(later, asking(), context=CLIENT_CONTEXT, now=NOW)
    server = ServerExchange(
        server_facts, answering(), authorised=False, context=SERVER_CONTEXT, now=NOW
    )
    talk = Conversation(client, server)
    opened = client.to_send()
    assert opened
    assert not asked
    feed(server, opened)
    client.prepare()
    assert asked == [True]
    talk.run()
    assert talk.client_outcome is not None
    assert asked == [True]


def test_facts_that_come_too_late_are_a_refusal() -> None:
    def wrong() -> TlsFacts:
        raise UntrustedError.at(
            checks.TLS_1_3, expected="TLS 1.3", actual="TLS 1.2", advice="use another"
        )

    client = ClientExchange(wrong, asking(), context=CLIENT_CONTEXT, now=NOW)
    client.to_send()
    with pytest.raises(UntrustedError):
        client.prepare()
    assert client.state is State.REFUSED
    assert isinstance(message_of(client.to_send()), Refused)


def test_bytes_one_at_a_time() -> None:
    """And never more is wanted than the exchange's own bytes."""
    talk = conversation(asking(), answering())
    opening = talk.client.to_send()
    for place in range(len(opening)):
        assert talk.server.needed > 0
        talk.server.receive(opening[place : place + 1])
    assert talk.server.needed == 0
    assert talk.server.quote_wanted is not None


def test_claims_are_those_of_the_request() -> None:
    talk = conversation(asking(), answering())
    talk.server.receive(talk.client.to_send()[:HEADER_BYTES])
    assert talk.server.needed == SMALL_BODY_BYTES
    talk = conversation(asking(), answering()).run()
    assert talk.client_outcome is not None
    claims = decode_claims(decode_evidence(talk.client_outcome.evidence).claims)
    assert claims.nonce == CLIENT_CONTEXT
    assert claims.role is Role.SERVER
    assert claims.issued_at_s == int(NOW.timestamp())
    assert claims.user_data == b""


def test_authorised_peers_see_evidence() -> None:
    settings = answering(evidence_for=EvidenceFor.AUTHORISED)
    assert conversation(asking(), settings, authorised=True).run().client_outcome is not None


# Refusals by settings


def test_unauthorised_peers_cost_no_quote() -> None:
    talk = conversation(asking(), answering(evidence_for=EvidenceFor.AUTHORISED)).run()
    failed(talk.server_error, checks.AUTHORISED, DeniedError)
    failed(talk.client_error, checks.ACCEPTED, DeniedError)
    assert "C9" in str(talk.client_error)
    assert talk.server_platform.quotes == 0
    assert talk.client_outcome is talk.server_outcome is None


def test_server_without_evidence() -> None:
    talk = conversation(asking(), ServerSettings()).run()
    failed(talk.server_error, checks.OFFERED, UnavailableError)
    failed(talk.client_error, checks.ACCEPTED, UnavailableError)


def test_clients_that_must_ask() -> None:
    talk = conversation(ClientSettings(identity=identity()), answering(clients_must_ask=True)).run()
    failed(talk.server_error, checks.ASKED, DeniedError)


def test_clients_that_must_show_evidence() -> None:
    talk = conversation(asking(), answering(ask_clients=AskClients.ALWAYS, judge=judge())).run()
    failed(talk.server_error, checks.REQUIRED, DeniedError)
    failed(talk.client_error, checks.ACCEPTED, DeniedError)
    assert talk.server_platform.quotes == 0


def test_platform_that_the_client_does_not_know() -> None:
    talk = conversation(asking(), ServerSettings(identity=identity(platform="snp"))).run()
    failed(talk.server_error, checks.PLATFORM, UnavailableError)
    assert talk.server_platform.quotes == 0


def test_client_refuses_by_policy() -> None:
    talk = conversation(asking(Expect(bytes(32))), answering()).run()
    failed(talk.client_error, UNEXPECTED, DeniedError)
    failed(talk.server_error, checks.ACCEPTED, DeniedError)
    refusal = message_of(talk.sent[-1][1])
    assert isinstance(refusal, Refused)
    assert refusal.check == "P99"
    # What the policy accepts is nobody's business.
    assert bytes(32).hex()[:8] not in refusal.sentence


def test_server_refuses_by_policy() -> None:
    talk = conversation(
        ClientSettings(judge=judge(), identity=identity(OTHER)),
        answering(ask_clients=AskClients.ALWAYS, judge=judge()),
    ).run()
    failed(talk.server_error, UNEXPECTED, DeniedError)
    failed(talk.client_error, checks.ACCEPTED, DeniedError)
    assert talk.client_outcome is talk.server_outcome is None


def test_client_shows_nothing_to_a_server_that_it_refuses() -> None:
    talk = conversation(
        ClientSettings(judge=judge(Expect(bytes(32))), identity=identity()),
        answering(ask_clients=AskClients.ALWAYS, judge=judge()),
    ).run()
    failed(talk.client_error, UNEXPECTED, DeniedError)
    assert talk.client_platform.quotes == 0
    assert [FrameType(frame[0]) for _, frame in talk.sent][-1] is FrameType.REFUSED


def test_settings_that_cannot_be() -> None:
    with pytest.raises(MalformedError):
        ClientSettings()
    with pytest.raises(MalformedError):
        ServerSettings(ask_clients=AskClients.OFFERING)
    with pytest.raises(MalformedError):
        Judge({}, None)
    with pytest.raises(MalformedError):
        ClientExchange(facts_pair()[0], asking(), context=bytes(31), now=NOW)


# Attacks


def answer_with(change: Callable[[Answer], Message]) -> Callable[[str, int, bytes], bytes]:
    def tamper(sender: str, number: int, frame: bytes) -> bytes:
        message = message_of(frame)
        return encode(change(message)) if isinstance(message, Answer) else frame

    return tamper


def test_stripped_evidence() -> None:
    talk = conversation(
        asking(), answering(), tamper=answer_with(lambda answer: Answer(b"", answer.request))
    ).run()
    failed(talk.client_error, checks.PRESENT, UntrustedError)
    assert talk.client_outcome is None


def test_acceptance_instead_of_evidence() -> None:
    talk = conversation(asking(), answering(), tamper=answer_with(lambda _: Accepted())).run()
    failed(talk.client_error, checks.ORDER, MalformedError)


def test_connection_that_ends() -> None:
    client = conversation(asking(), answering()).client
    with pytest.raises(UnavailableError) as caught:
        client.closed()
    failed(caught.value, checks.STAYED, UnavailableError)
    with pytest.raises(UnavailableError):
        client.receive(b"\0")
    assert client.outcome is None


def test_late() -> None:
    talk = conversation(asking(), answering())
    talk.client.to_send()
    with pytest.raises(UnavailableError) as caught:
        talk.client.late()
    failed(caught.value, checks.DEADLINE, UnavailableError)
    assert isinstance(message_of(talk.client.to_send()), Refused)
    assert talk.client.needed == 0


def test_what_was_not_sent_yet_is_not_sent_after_a_failure() -> None:
    """Evidence that is ready but too late stays here."""
    talk = conversation(asking(), answering())
    feed(talk.server, talk.client.to_send())
    wanted = talk.server.quote_wanted
    assert wanted is not None
    talk.server.quoted(talk.server_platform.quote(wanted.claims, wanted.binder))
    with pytest.raises(UnavailableError):
        talk.server.late()
    assert isinstance(message_of(talk.server.to_send()), Refused)


def test_evidence_of_an_earlier_connection() -> None:
    earlier = conversation(asking(), answering()).run().sent[1][1]
    talk = conversation(
        asking(),
        answering(),
        facts_pair(bytes([7]) * 32),
        tamper=answer_with(lambda _: message_of(earlier)),
    ).run()
    failed(talk.client_error, checks.FINISHED, UntrustedError)


def test_evidence_for_another_context() -> None:
    earlier = (
        conversation(asking(), answering(), client_context=bytes(range(1, 33))).run().sent[1][1]
    )
    talk = conversation(
        asking(), answering(), tamper=answer_with(lambda _: message_of(earlier))
    ).run()
    failed(talk.client_error, checks.ANSWERS, UntrustedError)


def test_relayed_by_a_machine_with_its_own_key() -> None:
    """The relay has a TLS connection to each side, asks the genuine broker with the client's own
    context, and makes the authenticator itself: the binder still names the other connection."""
    genuine = answering()
    beyond = conversation(asking(), genuine, facts_pair(bytes([7]) * 32)).run().client_outcome
    assert beyond is not None
    stolen = decode_evidence(beyond.evidence)
    relay = conversation(asking(), ServerSettings(identity=identity()))
    relay.server_platform.change = lambda _: stolen
    relay.run()
    # The relay's key is not the one in the claims.
    assert relay.client_error is not None
    assert relay.client_error.finding is not None
    assert relay.client_error.finding.check.number == "E6"
    # Even with the instance's key the connection is another.
    leaked = conversation(asking(), genuine)
    leaked.server_platform.change = lambda _: stolen
    leaked.run()
    assert leaked.client_error is not None
    assert leaked.client_error.finding is not None
    assert leaked.client_error.finding.check.number == "E7"


def test_relayed_with_the_same_exporter_but_another_certificate() -> None:
    """The keys in the TLS certificates are bound besides the exporter."""
    genuine = answering()
    facts = facts_pair(server_spki=b"another key")
    beyond = conversation(asking(), genuine, facts).run().client_outcome
    assert beyond is not None
    talk = conversation(asking(), genuine)
    talk.server_platform.change = lambda _: decode_evidence(beyond.evidence)
    talk.run()
    assert talk.client_error is not None
    assert talk.client_error.finding is not None
    assert talk.client_error.finding.check.number == "E7"


def test_reflected_request() -> None:
    """A server that sends the client's own request back has drawn no context."""

    def reflect(answer: Answer) -> Message:
        return Answer(
            answer.authenticator,
            encode_request(Role.SERVER, Request(CLIENT_CONTEXT, ("simulated",))),
        )

    talk = conversation(
        ClientSettings(judge=judge(), identity=identity()),
        answering(ask_clients=AskClients.ALWAYS, judge=judge()),
        tamper=answer_with(reflect),
    ).run()
    failed(talk.client_error, checks.CONTEXT, UntrustedError)
    assert talk.client_platform.quotes == 0


def test_reflected_authenticator() -> None:
    """What the server sent, sent back to it as the client's."""
    both = ClientSettings(judge=judge(), identity=identity())
    settings = answering(ask_clients=AskClients.ALWAYS, judge=judge())
    authenticators: list[bytes] = []

    def tamper(sender: str, number: int, frame: bytes) -> bytes:
        message = message_of(frame)
        if isinstance(message, Answer):
            authenticators.append(message.authenticator)
        if isinstance(message, ClientEvidence):
            return encode(ClientEvidence(authenticators[0]))
        return frame

    talk = conversation(both, settings, tamper=tamper).run()
    failed(talk.server_error, checks.ANSWERS, UntrustedError)


def test_evidence_of_the_other_role() -> None:
    """Right key, right connection, the client's request: but made as a client's evidence."""
    talk = conversation(asking(), answering())

    def as_client(evidence: Evidence) -> Evidence:
        claims = dataclasses.replace(decode_claims(evidence.claims), role=Role.CLIENT)
        return dataclasses.replace(evidence, claims=claims.encoded())

    talk.server_platform.change = as_client
    talk.run()
    assert talk.client_error is not None
    assert talk.client_error.finding is not None
    assert talk.client_error.finding.check.number == "E5"


def test_swapped_claims() -> None:
    talk = conversation(asking(), answering())

    def better(evidence: Evidence) -> Evidence:
        claims = decode_claims(evidence.claims)
        changed = dataclasses.replace(
            claims, workload=dataclasses.replace(claims.workload, configuration=bytes(32))
        )
        return dataclasses.replace(evidence, claims=changed.encoded())

    talk.server_platform.change = better
    talk.run()
    assert talk.client_error is not None
    assert talk.client_error.finding is not None
    assert talk.client_error.finding.check.number == "E7"


def test_quote_that_fails() -> None:
    talk = conversation(asking(), answering())
    talk.server_platform.change = lambda _: UnavailableError("expected a device, got none")
    talk.run()
    failed(talk.server_error, checks.QUOTE, UnavailableError)
    failed(talk.client_error, checks.ACCEPTED, UnavailableError)


def test_evidence_that_is_too_large() -> None:
    talk = conversation(asking(), answering())
    talk.server_platform.change = lambda evidence: dataclasses.replace(
        evidence, report=bytes(64 * 1024)
    )
    talk.run()
    assert isinstance(talk.server_error, MalformedError)
    assert talk.client_outcome is None


@pytest.mark.parametrize("report_bytes", [1, 5_000, 31_000])
def test_evidence_of_every_size_takes_one_frame(report_bytes: int) -> None:
    talk = conversation(asking(), answering())
    talk.server_platform.change = lambda evidence: dataclasses.replace(
        evidence, report=bytes(report_bytes)
    )
    talk.run()
    assert len(talk.sent[1][1]) == 32 * 1024
    # It came as a whole: the verifier looked at it.
    assert talk.client_error is not None
    assert talk.client_error.finding is not None
    assert talk.client_error.finding.check.number == "SIM1"


@pytest.mark.parametrize("context", [b"", bytes(31), bytes(range(33)), bytes(32), b"\xff" * 32])
def test_contexts_that_nobody_drew(context: bytes) -> None:
    talk = conversation(asking(), answering())
    talk.client.to_send()
    request = encode_request(Role.CLIENT, Request(context, ("simulated",)))
    with pytest.raises(UntrustedError) as caught:
        feed(talk.server, encode(Open(False, request)))
    failed(caught.value, checks.CONTEXT, UntrustedError)
    assert talk.server.quote_wanted is None


def feed(exchange: ClientExchange | ServerExchange, frame: bytes) -> None:
    while frame:
        count = exchange.needed
        assert count, f"not wanted: {frame[:8].hex()}"
        exchange.receive(frame[:count])
        frame = frame[count:]


def test_server_without_request_of_the_wrong_kind() -> None:
    """A request of the server's type does not serve as the client's."""
    talk = conversation(asking(), answering())
    request = encode_request(Role.SERVER, Request(CLIENT_CONTEXT, ("simulated",)))
    with pytest.raises(MalformedError) as caught:
        feed(talk.server, encode(Open(False, request)))
    failed(caught.value, checks.REQUEST, MalformedError)


def test_opening_that_wants_nothing() -> None:
    talk = conversation(asking(), answering())
    with pytest.raises(MalformedError) as caught:
        feed(talk.server, encode(Open(False, b"")))
    failed(caught.value, checks.FRAME, MalformedError)


def test_request_to_a_client_that_offered_nothing() -> None:
    request = encode_request(Role.SERVER, Request(SERVER_CONTEXT, ("simulated",)))
    talk = conversation(
        asking(), answering(), tamper=answer_with(lambda a: Answer(a.authenticator, request))
    ).run()
    failed(talk.client_error, checks.OFFERED, MalformedError)


def test_evidence_that_nobody_asked_for() -> None:
    talk = conversation(
        ClientSettings(identity=identity()),
        ServerSettings(),
        tamper=answer_with(lambda _: Answer(b"something", b"")),
    ).run()
    failed(talk.client_error, checks.ANSWERS, MalformedError)


FRAMES: dict[FrameType, Message] = {
    FrameType.OPEN: Open(True, b""),
    FrameType.ANSWER: Answer(b"", b""),
    FrameType.EVIDENCE: ClientEvidence(b"x"),
    FrameType.ACCEPTED: Accepted(),
    FrameType.REFUSED: Refused(Category.DENIED, "C9", "no"),
}


def waiting_in(state: State, end: str) -> ClientExchange | ServerExchange:
    """An exchange that has come to `state` properly."""
    talk = conversation(
        ClientSettings(judge=judge(), identity=identity()),
        answering(
            ask_clients=AskClients.NEVER
            if (state, end) == (State.AWAITING_ACCEPTED, "server")
            else AskClients.ALWAYS,
            judge=judge(),
        ),
    )
    stop = getattr(talk, end)

    def tamper(sender: str, number: int, frame: bytes) -> bytes:
        return b"" if stop.state is state else frame

    talk.tamper = tamper
    if stop.state is not state:
        talk.run()
    assert stop.state is state
    return stop  # type: ignore[no-any-return]


@pytest.mark.parametrize("sent", FRAMES)
@pytest.mark.parametrize(
    ("end", "state", "wanted"),
    [
        ("server", State.AWAITING_OPEN, {FrameType.OPEN}),
        ("server", State.AWAITING_EVIDENCE, {FrameType.EVIDENCE, FrameType.REFUSED}),
        ("server", State.AWAITING_ACCEPTED, {FrameType.ACCEPTED, FrameType.REFUSED}),
        ("client", State.AWAITING_ANSWER, {FrameType.ANSWER, FrameType.REFUSED}),
        ("client", State.AWAITING_ACCEPTED, {FrameType.ACCEPTED, FrameType.REFUSED}),
    ],
)
def test_message_out_of_place(
    end: str, state: State, wanted: set[FrameType], sent: FrameType
) -> None:
    """Repeated, reflected, early or late: refused at the header, before a body is read."""
    if sent in wanted:
        return
    exchange = waiting_in(state, end)
    with pytest.raises(MalformedError) as caught:
        exchange.receive(encode(FRAMES[sent])[:HEADER_BYTES])
    failed(caught.value, checks.ORDER, MalformedError)
    assert exchange.outcome is None
    assert exchange.state is State.REFUSED


def test_refusal_of_the_peer_is_not_answered() -> None:
    client = conversation(asking(), answering()).client
    client.to_send()
    with pytest.raises(DeniedError) as caught:
        feed(client, encode(Refused(Category.DENIED, "C9", "the peer may see evidence")))
    failed(caught.value, checks.ACCEPTED, DeniedError)
    assert client.to_send() == b""


def test_length_of_64_mib_is_refused_at_the_header() -> None:
    client = conversation(asking(), answering()).client
    with pytest.raises(MalformedError) as caught:
        client.receive(bytes([FrameType.ANSWER]) + (2**24 - 1).to_bytes(3, "big"))
    failed(caught.value, checks.FRAME, MalformedError)


def test_refusal_ends_the_wait_for_a_longer_message() -> None:
    """A client reads as much as ANSWER has, and a refusal is shorter: the header says so."""
    client = conversation(asking(), answering()).client
    assert client.needed == 32 * 1024
    refusal = encode(Refused(Category.UNAVAILABLE, "C19", "expected more"))
    client.receive(refusal[:100])
    assert client.needed == len(refusal) - 100
    with pytest.raises(UnavailableError) as caught:
        client.receive(refusal[100:])
    failed(caught.value, checks.ACCEPTED, UnavailableError)
    other = conversation(asking(), answering()).client
    with pytest.raises(UnavailableError):
        other.receive(refusal + b"anything")


def test_more_than_needed_is_a_mistake_of_the_shell() -> None:
    client = conversation(asking(), answering()).client
    with pytest.raises(MalformedError):
        client.receive(bytes(32 * 1024 + 1))
    with pytest.raises(MalformedError):
        client.receive(b"")


def test_unwanted_evidence_is_a_mistake_of_the_shell() -> None:
    client = conversation(asking(), answering()).client
    with pytest.raises(MalformedError):
        client.quoted(UnavailableError("expected none, got this"))


def test_success_needs_the_word_of_the_judge() -> None:
    """The last defence: were the order of states ever wrong, there is still no outcome."""
    client = conversation(asking(), answering()).client
    feed_all = encode(Accepted())
    client._state = State.AWAITING_ACCEPTED
    with pytest.raises(UntrustedError) as caught:
        feed(client, feed_all)
    failed(caught.value, checks.PRESENT, UntrustedError)
    assert client.outcome is None


@pytest.mark.parametrize("table", [CLIENT_TRANSITIONS, SERVER_TRANSITIONS])
def test_transitions_end(table: tuple[tuple[State, object, State], ...]) -> None:
    ends = {State.DONE, State.REFUSED}
    assert not any(start in ends for start, _, _ in table)
    assert len(set(table)) == len(table)
    reached = {end for _, _, end in table}
    first = {State.AWAITING_OPEN, State.AWAITING_ANSWER}
    assert {start for start, _, _ in table} <= reached | first


# Every byte


def flips(frame: bytes, used: int) -> list[int]:
    """All places in the content, and some in the padding."""
    return [*range(used), *range(used, len(frame), 997), len(frame) - 1]


def used_bytes(frame: bytes) -> int:
    return len(frame.rstrip(b"\0"))


def both_asking() -> tuple[ClientSettings, ServerSettings]:
    return (
        ClientSettings(judge=judge(), identity=identity()),
        answering(ask_clients=AskClients.ALWAYS, judge=judge()),
    )


@pytest.mark.parametrize(("sender", "number"), [("client", 0), ("server", 0), ("client", 1)])
def test_flipped_byte_anywhere(sender: str, number: int) -> None:
    """One changed byte in any message, and no end succeeds with other content than was sent."""
    settings = both_asking()
    plain = conversation(*settings).run()
    frames = [frame for name, frame in plain.sent if name == sender]
    for place in flips(frames[number], used_bytes(frames[number])):

        def tamper(name: str, count: int, frame: bytes, place: int = place) -> bytes:
            if (name, count) != (sender, number):
                return frame
            if place >= len(frame):
                return frame
            changed = bytearray(frame)
            changed[place] ^= 0x01
            return bytes(changed)

        talk = conversation(*settings, tamper=tamper).run()
        receiver_failed = talk.server_error if sender == "client" else talk.client_error
        assert receiver_failed is not None or talk.client_error is not None, place
        assert talk.client_outcome is None or talk.server_outcome is None, place


@pytest.mark.parametrize("cut", [1, 4, 100, LARGE_BODY_BYTES])
def test_truncated_answer_is_waited_for(cut: int) -> None:
    """TLS ends it: the shell says that the connection closed, and there is no success."""
    talk = conversation(
        asking(),
        answering(),
        tamper=lambda sender, number, frame: frame[:-cut] if sender == "server" else frame,
    ).run()
    assert talk.client_outcome is None
    with pytest.raises(UnavailableError):
        talk.client.closed()


def test_extended_answer_leaves_the_rest_alone() -> None:
    """What follows the frame is the next thing on the connection, not part of it."""
    talk = conversation(
        asking(),
        answering(),
        tamper=lambda sender, number, frame: frame + b"\x10" if sender == "server" else frame,
    ).run()
    assert talk.client_outcome is not None


def test_conversation_can_fail() -> None:
    """The helper tells a stalled end from a finished one."""
    talk: Conversation = conversation(asking(), answering(), tamper=lambda *_: b"").run()
    assert talk.client_outcome is None
    assert talk.client_error is None
