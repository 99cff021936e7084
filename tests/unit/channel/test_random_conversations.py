"""Whatever is said to an end, in whatever order: success means that the evidence was right.

A pool holds every frame that an attacker could have: those of this conversation, of others with
the same peers, and ones of its own making. Random ones are given to both ends, between steps in
which the ends do what they would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from avow.channel.authenticator import Request, encode_request
from avow.channel.exchange import (
    AskClients,
    ClientExchange,
    ClientSettings,
    ServerExchange,
    ServerSettings,
    State,
)
from avow.channel.messages import (
    HEADER_BYTES,
    Accepted,
    Answer,
    Category,
    ClientEvidence,
    Open,
    Refused,
    decode_body,
    decode_header,
    encode,
)
from avow.errors import AvowError, UnavailableError
from avow.evidence.claims import Role
from avow.evidence.envelope import decode_evidence
from avow.testing.attested_channel import (
    CLIENT_CONTEXT,
    SERVER_CONTEXT,
    WORKLOAD,
    Conversation,
    PromptPlatform,
    conversation,
    facts_pair,
    identity,
    judge,
)

CLIENT = ClientSettings(judge=judge(), identity=identity())
SERVER = ServerSettings(identity=identity(), ask_clients=AskClients.ALWAYS, judge=judge())


def foreign() -> list[bytes]:
    """Frames of other connections between the same two, and of an attacker's own."""
    frames = [
        frame
        for facts in (facts_pair(bytes([7]) * 32), facts_pair(server_spki=b"the attacker's"))
        for _, frame in conversation(CLIENT, SERVER, facts).run().sent
    ]
    attacker = ServerSettings(identity=identity(), ask_clients=AskClients.ALWAYS, judge=judge())
    talk = conversation(CLIENT, attacker)
    genuine = conversation(CLIENT, SERVER, facts_pair(bytes([8]) * 32)).run().client_outcome
    assert genuine is not None
    stolen = decode_evidence(genuine.evidence)
    talk.server_platform.change = lambda _: stolen
    frames += [frame for _, frame in talk.run().sent]
    request = encode_request(Role.SERVER, Request(SERVER_CONTEXT, ("simulated",)))
    reflected = encode_request(Role.SERVER, Request(CLIENT_CONTEXT, ("simulated",)))
    return [
        *frames,
        encode(Accepted()),
        encode(Refused(Category.DENIED, "C9", "no")),
        encode(Answer(b"", b"")),
        encode(Answer(b"", request)),
        encode(Answer(b"", reflected)),
        encode(ClientEvidence(b"")),
        encode(Open(True, b"")),
        encode(Open(False, b"")),
    ]


FOREIGN = foreign()


@dataclass
class World:
    """Two ends, what each has really sent, and what each was given."""

    client: ClientExchange
    server: ServerExchange
    platform: PromptPlatform = field(default_factory=PromptPlatform)
    sent: dict[str, list[bytes]] = field(default_factory=lambda: {"client": [], "server": []})
    given: dict[str, list[bytes]] = field(default_factory=lambda: {"client": [], "server": []})

    def end(self, name: str) -> ClientExchange | ServerExchange:
        return self.client if name == "client" else self.server

    def work(self, name: str, *, platform_fails: bool) -> None:
        """The end asks its platform, if it wants to, and sends what it has to."""
        exchange = self.end(name)
        wanted = exchange.quote_wanted
        if wanted is not None:
            answer = (
                UnavailableError("expected a device, got none")
                if platform_fails
                else self.platform.quote(wanted.claims, wanted.binder)
            )
            attempt(lambda: exchange.quoted(answer))
        if content := exchange.to_send():
            self.sent[name].append(content)

    def give(self, name: str, frame: bytes) -> None:
        exchange = self.end(name)
        rest = frame
        while rest and exchange.needed:
            part, rest = rest[: exchange.needed], rest[exchange.needed :]
            attempt(lambda part=part: exchange.receive(part))  # type: ignore[misc]
        if not rest:
            self.given[name].append(frame)

    def check(self) -> None:
        """Success only with what the real peer made for this connection."""
        if self.client.outcome is not None:
            assert self.client.outcome.peer is not None
            answer = next(frame for frame in self.given["client"] if frame[0] == 0xA1)
            assert authenticator_of(answer) in map(authenticator_of, self.sent["server"])
            assert self.client.outcome.verified is not None
            assert self.client.outcome.verified.claims["module"] == WORKLOAD.module
        if self.server.outcome is not None:
            assert self.server.outcome.peer is not None
            evidence = self.given["server"][-1]
            assert evidence in self.sent["client"]
        for exchange in (self.client, self.server):
            if exchange.outcome is not None:
                assert exchange.state is State.DONE


def authenticator_of(frame: bytes) -> bytes:
    kind, _ = decode_header(frame[:HEADER_BYTES])
    message = decode_body(kind, frame[HEADER_BYTES:])
    return message.authenticator if isinstance(message, Answer) else b""


def attempt(action: Callable[[], None]) -> None:
    with contextlib.suppress(AvowError):
        action()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["client", "server"]),
        # Mostly what the other end last sent, so that conversations get far.
        st.sampled_from(["work", "work", "pass", "pass", "pass", "foreign", "old", "fail"]),
        st.integers(0, 1000),
    ),
    max_size=24,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_no_success_without_right_evidence(steps: list[tuple[str, str, int]]) -> None:
    talk: Conversation = conversation(CLIENT, SERVER)
    world = World(talk.client, talk.server)
    for name, step, number in steps:
        other = "server" if name == "client" else "client"
        if step in ("work", "fail"):
            world.work(name, platform_fails=step == "fail")
        elif step == "pass" and world.sent[other]:
            world.give(name, world.sent[other][-1])
        elif step == "foreign":
            world.give(name, FOREIGN[number % len(FOREIGN)])
        elif step == "old":
            frames = world.sent["client"] + world.sent["server"]
            if frames:
                world.give(name, frames[number % len(frames)])
        world.check()


def test_conversations_can_succeed() -> None:
    """The steps of the test above lead to success where nobody interferes."""
    talk = conversation(CLIENT, SERVER)
    world = World(talk.client, talk.server)
    for name, step in (
        ("client", "work"),
        ("server", "pass"),
        ("server", "work"),
        ("client", "pass"),
        ("client", "work"),
        ("server", "pass"),
        ("server", "work"),
        ("client", "pass"),
    ):
        other = "server" if name == "client" else "client"
        if step == "work":
            world.work(name, platform_fails=False)
        else:
            world.give(name, world.sent[other][-1])
        world.check()
    assert world.client.outcome is not None
    assert world.server.outcome is not None
