"""Whoever sits between client and broker, with all that they can record, forward and make anew.

Each attack is stopped by a check that is named here. Then that check is taken out of the code that
runs, and the next one stops it; when all are out, the attack succeeds: so each line here is a
defence that is there, is needed, and is in this order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from avow.channel.authenticator import Request, encode_request
from avow.channel.exchange import ClientSettings, ServerSettings
from avow.channel.messages import Answer, ClientEvidence, Message, Open, decode_body, encode
from avow.channel.messages import FrameType as Kind
from avow.errors import AvowError, UnavailableError
from avow.evidence.claims import Claims, Role, Workload, decode_claims
from avow.evidence.envelope import Evidence, decode_evidence
from avow.evidence.report_data import batch
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.attested_channel import Conversation, Tamper
from tests.adversary.removal import Defence
from tests.adversary.scene import CLIENT_CONTEXT, GENUINE, World, instance, stopped_by_each

ANSWERS = Defence("C13", "avow.channel.authenticator", "ANSWERS")
FINISHED = Defence("C15", "avow.channel.authenticator", "FINISHED")
SIGNATURE = Defence("C16", "avow.channel.authenticator", "SIGNATURE")
NONCE = Defence("E4", "avow.evidence.origin", "NONCE")
ROLE = Defence("E5", "avow.evidence.origin", "ROLE")
KEY = Defence("E6", "avow.evidence.origin", "KEY")
BOUND = Defence("E7", "avow.evidence.origin", "BOUND")
POLICY = Defence("P4", "avow.policy.policy", inside="require")


def _message(frame: bytes) -> Message:
    return decode_body(Kind(frame[0]), frame[4:])


def _answering_with(make: Callable[[Answer], Message]) -> Tamper:
    """Somebody in between replaces the server's ANSWER."""

    def tamper(sender: str, number: int, frame: bytes) -> bytes:
        if sender == "server" and frame[0] == Kind.ANSWER:
            message = _message(frame)
            assert isinstance(message, Answer)
            return encode(make(message))
        return frame

    return tamper


def _client_of(talk: Conversation) -> AvowError | None:
    """What the client came to: None when it believed the other side."""
    talk.run()
    if talk.client_outcome is not None:
        return None
    assert talk.client_error is not None
    return talk.client_error


def _server_of(talk: Conversation) -> AvowError | None:
    talk.run()
    if talk.server_outcome is not None:
        assert talk.server_outcome.peer is not None
        return None
    assert talk.server_error is not None
    return talk.server_error


def _changed(talk: Conversation, change: Callable[[Evidence], Evidence]) -> AvowError | None:
    talk.server_platform.change = change
    return _client_of(talk)


def replayed(world: World) -> AvowError | None:
    """Evidence from an earlier connection, by somebody with the broker's TLS key."""
    recorded = world.talk(context=bytes(range(1, 33))).run().sent[1][1]
    talk = world.talk()
    talk.tamper = _answering_with(lambda _: _message(recorded))
    return _client_of(talk)


def relayed(world: World) -> AvowError | None:
    """The frames of a genuine broker, passed on by a machine with a TLS key of its own."""
    own = world.authority.issue_server()
    return _passed_on(world, world.talk(world.connection(own)))


def relayed_with_the_tls_key(world: World) -> AvowError | None:
    """The same by somebody who has stolen the TLS key: the TEE's key is safe."""
    return _passed_on(world, world.talk())


def _passed_on(world: World, victim: Conversation) -> AvowError | None:
    """The broker gets the victim's OPEN from the relay, and the victim the broker's ANSWER."""
    beyond = world.talk().run().sent[1][1]
    victim.tamper = _answering_with(lambda _: _message(beyond))
    return _client_of(victim)


def relayed_and_signed_anew(world: World) -> AvowError | None:
    """The genuine evidence in an authenticator that the relay makes itself, with its own key."""
    beyond = world.talk().run().client_outcome
    assert beyond is not None
    relay = world.talk(server=ServerSettings(identity=instance()))
    return _changed(relay, lambda _: decode_evidence(beyond.evidence))


def other_connection_of_the_same_broker(world: World) -> AvowError | None:
    """The relay has stolen even the instance's key, and still cannot have a quote made for it."""
    beyond = world.talk().run().client_outcome
    assert beyond is not None
    return _changed(world.talk(), lambda _: decode_evidence(beyond.evidence))


def reflected_authenticator(world: World) -> AvowError | None:
    """A client without a TEE sends the broker's own authenticator back as its own."""
    talk = world.talk(mutual=True)
    seen: list[bytes] = []

    def tamper(sender: str, number: int, frame: bytes) -> bytes:
        message = _message(frame)
        if isinstance(message, Answer):
            seen.append(message.authenticator)
        if isinstance(message, ClientEvidence):
            return encode(ClientEvidence(seen[0]))
        return frame

    talk.tamper = tamper
    return _server_of(talk)


def of_the_other_role(world: World) -> AvowError | None:
    """Right key, right connection, the client's nonce; but made as a client's evidence."""
    return _changed(
        world.talk(),
        lambda evidence: _reworded(evidence, lambda claims: replace_role(claims, Role.CLIENT)),
    )


def replace_role(claims: Claims, role: Role) -> Claims:
    """The same for another role."""
    return dataclasses.replace(claims, role=role)


def _reworded(evidence: Evidence, change: Callable[[Claims], Claims]) -> Evidence:
    claims = change(decode_claims(evidence.claims))
    return dataclasses.replace(evidence, claims=claims.encoded())


def swapped_claims(world: World) -> AvowError | None:
    """Another module signs, and the claims are exchanged for the genuine one's."""
    evil = instance(dataclasses.replace(GENUINE, module=b"\xee" * 32))

    def genuine(evidence: Evidence) -> Evidence:
        return _reworded(evidence, lambda claims: dataclasses.replace(claims, workload=GENUINE))

    return _changed(world.talk(server=ServerSettings(identity=evil)), genuine)


def nonce_of_the_servers_choosing(world: World) -> AvowError | None:
    """The server takes evidence that it made beforehand, for a nonce that it chose."""
    return _changed(
        world.talk(),
        lambda evidence: _reworded(
            evidence, lambda claims: dataclasses.replace(claims, nonce=b"\x77" * 32)
        ),
    )


def path_of_another_leaf(world: World) -> AvowError | None:
    """A batch of two: the client gets the path of its neighbour."""

    def neighbour(evidence: Evidence) -> Evidence:
        mine = decode_claims(evidence.claims)
        other = dataclasses.replace(mine, nonce=b"\x77" * 32)
        report_data, paths = batch([(mine, bytes(64)), (other, bytes(64))])
        report = SimulatedAttester().quote(report_data)
        return Evidence("simulated", report, evidence.claims, paths[1])

    return _changed(world.talk(), neighbour)


def path_of_another_batch(world: World) -> AvowError | None:
    """The right claims under the signature over a batch in which they are not."""

    def elsewhere(evidence: Evidence) -> Evidence:
        mine = decode_claims(evidence.claims)
        others = [
            (dataclasses.replace(mine, nonce=bytes([number]) * 32), bytes(64))
            for number in range(1, 5)
        ]
        report_data, paths = batch(others)
        report = SimulatedAttester().quote(report_data)
        return Evidence("simulated", report, evidence.claims, paths[2])

    return _changed(world.talk(), elsewhere)


def _running(workload: Workload) -> Callable[[World], AvowError | None]:
    def attack(world: World) -> AvowError | None:
        return _client_of(world.talk(server=ServerSettings(identity=instance(workload))))

    return attack


other_module = _running(dataclasses.replace(GENUINE, module=b"\xee" * 32))
other_runtime = _running(dataclasses.replace(GENUINE, runtime=b"\xee" * 32))
other_configuration = _running(dataclasses.replace(GENUINE, configuration=b"\xee" * 32))


@pytest.mark.parametrize(
    ("attack", "defences"),
    [
        (replayed, [ANSWERS, FINISHED, SIGNATURE, NONCE, BOUND]),
        (relayed, [FINISHED, SIGNATURE, BOUND]),
        (relayed_with_the_tls_key, [FINISHED, SIGNATURE, BOUND]),
        (relayed_and_signed_anew, [KEY, BOUND]),
        (other_connection_of_the_same_broker, [BOUND]),
        (reflected_authenticator, [ANSWERS, FINISHED, SIGNATURE, NONCE, ROLE, BOUND]),
        (of_the_other_role, [ROLE, BOUND]),
        (swapped_claims, [BOUND]),
        (nonce_of_the_servers_choosing, [NONCE, BOUND]),
        (path_of_another_leaf, [BOUND]),
        (path_of_another_batch, [BOUND]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_stopped(attack: Callable[[World], AvowError | None], defences: list[Defence]) -> None:
    stopped_by_each(attack, defences, in_the_end=True)


@pytest.mark.parametrize(
    "attack", [other_module, other_runtime, other_configuration], ids=["module", "runtime", "conf"]
)
def test_other_programs_are_stopped(attack: Callable[[World], AvowError | None]) -> None:
    """By the policy, and by the exchange, which looks at the result once more at its end."""
    once_more = Defence("C11", "avow.channel.exchange", "PRESENT", inside="_finish")
    stopped_by_each(attack, [POLICY, once_more], in_the_end=True)


def stripped(world: World) -> AvowError | None:
    """The answer comes without evidence."""
    talk = world.talk()
    talk.tamper = _answering_with(lambda answer: Answer(b"", answer.request))
    return _client_of(talk)


def accepted_instead(world: World) -> AvowError | None:
    """The server says that all is well and shows nothing."""
    talk = world.talk()
    talk.tamper = _answering_with(lambda _: Open(False, b""))
    return _client_of(talk)


def test_stripped_evidence() -> None:
    """Without the check there is still nothing that a parser could take for evidence."""
    present = Defence("C11", "avow.channel.exchange", "PRESENT", inside="_judge")
    stopped_by_each(stripped, [present], in_the_end=False)


def test_another_message_instead_of_evidence() -> None:
    order = Defence("C4", "avow.channel.exchange", "ORDER", inside="_header")
    stopped_by_each(accepted_instead, [order], in_the_end=False)


def test_no_evidence_is_no_success_even_for_a_broken_judge() -> None:
    """Were the judge skipped by a mistake, the end of the exchange would still ask for its word."""

    class Silent:
        platforms = ("simulated",)
        has_policy = True

        def judge(self, *_: object) -> None:
            return None

    talk = World().talk(client=ClientSettings(judge=Silent()))  # type: ignore[arg-type]
    error = _client_of(talk)
    assert error is not None
    assert error.finding is not None
    assert error.finding.check.number == "C11"


def reflected_request(world: World) -> AvowError | None:
    """A server asks with the client's own context: what the client would sign for it answers the
    client's own question."""
    turned = encode_request(Role.SERVER, Request(CLIENT_CONTEXT, ("simulated",)))
    talk = world.talk(mutual=True)
    talk.tamper = _answering_with(lambda answer: Answer(answer.authenticator, turned))
    error = _client_of(talk)
    return None if talk.client_platform.quotes else error


def test_reflected_request() -> None:
    context = Defence("C7", "avow.channel.exchange", "CONTEXT", inside="_heed")
    stopped_by_each(reflected_request, [context], in_the_end=True)


@pytest.mark.parametrize("length", [0, 1, 31, 33])
def test_short_and_long_contexts_are_refused_before_any_quote(length: int) -> None:
    """A request whose nonce is not 32 bytes makes the broker's hardware sign nothing."""
    talk = World().talk()
    opened = _message(talk.client.to_send())
    assert isinstance(opened, Open)
    extensions = opened.request[4 + 1 + 32 :]
    body = bytes([length]) + b"\x55" * length + extensions
    request = opened.request[:1] + len(body).to_bytes(3, "big") + body
    frame = encode(Open(False, request))
    talk.server.receive(frame[:4])
    with pytest.raises(AvowError) as caught:
        talk.server.receive(frame[4:])
    assert caught.value.finding is not None
    assert caught.value.finding.check.number in ("C6", "C7")
    assert talk.server.quote_wanted is None


@pytest.mark.parametrize("byte", [0x00, 0x41, 0xFF])
def test_contexts_that_nobody_drew_are_refused(byte: int) -> None:
    talk = World().talk(context=bytes([byte]) * 32)
    talk.run()
    assert talk.server_error is not None
    assert talk.server_error.finding is not None
    assert talk.server_error.finding.check.number == "C7"
    assert talk.server_platform.quotes == 0


def test_platform_that_fails_leaves_the_client_unconnected() -> None:
    talk = World().talk()
    talk.server_platform.change = lambda _: UnavailableError("expected a TPM, got none")
    error = _client_of(talk)
    assert error is not None
    assert error.finding is not None
    assert error.finding.check.number == "C21"
    assert "C19" in str(error)


@pytest.fixture(scope="module")
def answer() -> tuple[World, bytes]:
    """The genuine broker's ANSWER, for the connection and the context of `_offered`."""
    world = World()
    world.kept = world.connection()  # type: ignore[attr-defined]
    return world, world.talk(world.kept).run().sent[1][1]  # type: ignore[attr-defined]


def _offered(world: World, frame: bytes) -> AvowError | None:
    """The client of that very connection gets these bytes as ANSWER."""
    client = world.talk(world.kept).client  # type: ignore[attr-defined]
    try:
        while frame and client.needed:
            piece, frame = frame[: client.needed], frame[client.needed :]
            client.receive(piece)
        if client.outcome is None:
            client.closed()
    except AvowError as error:
        assert client.outcome is None
        return error
    return None


def test_the_unchanged_answer_is_believed(answer: tuple[World, bytes]) -> None:
    assert _offered(*answer) is None


def test_every_flipped_byte_is_refused(answer: tuple[World, bytes]) -> None:
    """Every byte of the message, padding included: one bit of it, and all bits."""
    world, frame = answer
    for place in range(len(frame)):
        changed = bytearray(frame)
        changed[place] ^= 0xFF if place % 2 else 1 << place % 8
        assert _offered(world, bytes(changed)) is not None, place


def test_every_truncation_is_refused(answer: tuple[World, bytes]) -> None:
    world, frame = answer
    for length in (0, 1, 3, 4, 5, 100, 1000, len(frame) - 1):
        assert _offered(world, frame[:length]) is not None


def test_an_extended_answer_is_refused(answer: tuple[World, bytes]) -> None:
    """Bytes after the evidence, in the place of padding; and a longer frame."""
    world, frame = answer
    message = _message(frame)
    assert isinstance(message, Answer)
    longer = encode(Answer(message.authenticator + b"\0", message.request))
    assert _offered(world, longer) is not None
    other = frame[:1] + (len(frame) - 3).to_bytes(3, "big") + frame[4:] + b"\0"
    assert _offered(world, other) is not None


@pytest.mark.parametrize("announced", [64 * 1024, 2**24 - 1])
def test_sizes_are_refused_at_the_header(announced: int) -> None:
    """Evidence of 64 KiB and more is not stored, whatever the header announces; 64 MiB do not even
    fit into its three bytes."""
    client = World().talk().client
    with pytest.raises(AvowError) as caught:
        client.receive(bytes([Kind.ANSWER]) + announced.to_bytes(3, "big"))
    assert caught.value.finding is not None
    assert caught.value.finding.check.number == "C3"
    assert client.needed == 0


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 * 1024])
def test_evidence_that_is_too_large_is_neither_sent_nor_parsed(size: int) -> None:
    talk = World().talk()
    talk.server_platform.change = lambda evidence: dataclasses.replace(evidence, report=bytes(size))
    error = _client_of(talk)
    assert error is not None
    assert len(talk.sent[1][1]) == 512
    with pytest.raises(AvowError, match="at most"):
        decode_evidence(bytes(size))


def test_age_is_signed() -> None:
    """The time that evidence says of itself is among what the hardware signed."""
    talk = World().talk()
    talk.server_platform.change = lambda evidence: _reworded(
        evidence, lambda claims: dataclasses.replace(claims, issued_at_s=claims.issued_at_s - 3600)
    )
    error = _client_of(talk)
    assert error is not None
    assert error.finding is not None
    assert error.finding.check.number == "E7"
