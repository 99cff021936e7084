"""A genuine broker, a careful client, and somebody in between, over real TLS in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from avow.channel.attested_identity import AttestedIdentity, make_identity
from avow.channel.exchange import (
    AskClients,
    ClientExchange,
    ClientSettings,
    ServerExchange,
    ServerSettings,
)
from avow.channel.judge import Judge
from avow.channel.session import TlsFacts, facts_of
from avow.errors import AvowError
from avow.evidence.claims import Workload
from avow.policy.policy_file import parse_policy
from avow.tee.simulated.verifier import SimulatedVerifier
from avow.testing.attested_channel import Conversation, PromptPlatform, tls_in_memory
from avow.testing.pki import Authority, Credential
from tests.adversary.removal import Defence, removed

NOW = datetime.now(UTC)
GENUINE = Workload(b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, b"\x04" * 32)
POLICY = f"""
version = 1
name = "the one broker"
unsafe_simulated = true
platform = "simulated"
module = "{GENUINE.module.hex()}"
runtime = "{GENUINE.runtime.hex()}"
configuration = "{GENUINE.configuration.hex()}"
evidence_age_s = {{ min = -60, max = 60 }}
"""
CLIENT_CONTEXT = bytes(range(32))
SERVER_CONTEXT = bytes(range(100, 132))


def judge() -> Judge:
    """The verifier of the simulation and a real policy."""
    return Judge({"simulated": SimulatedVerifier()}, parse_policy(POLICY, name="policy.toml"))


def instance(workload: Workload = GENUINE) -> AttestedIdentity:
    """A process that runs `workload`."""
    return make_identity("simulated", workload, NOW)


@dataclass
class World:
    """One authority, one broker with its certificate, one client that wants evidence."""

    authority: Authority = field(default_factory=Authority)
    broker: AttestedIdentity = field(default_factory=instance)
    client: AttestedIdentity = field(default_factory=instance)

    def __post_init__(self) -> None:
        self.certificate = self.authority.issue_server()

    def connection(self, certificate: Credential | None = None) -> tuple[TlsFacts, TlsFacts]:
        """A new TLS connection: what the client and what the server know of it."""
        client, server = tls_in_memory(certificate or self.certificate)
        # The connections have to live as long as their exporters.
        self._kept = [*getattr(self, "_kept", []), client, server]
        return facts_of(client, "client"), facts_of(server, "server")

    def talk(
        self,
        connection: tuple[TlsFacts, TlsFacts] | None = None,
        *,
        server: ServerSettings | None = None,
        client: ClientSettings | None = None,
        mutual: bool = False,
        context: bytes = CLIENT_CONTEXT,
    ) -> Conversation:
        """A conversation that has not begun. Mutual: both ask and both have evidence."""
        client_facts, server_facts = connection or self.connection()
        settings = server or ServerSettings(identity=self.broker)
        if mutual:
            settings = replace(settings, ask_clients=AskClients.ALWAYS, judge=judge())
        wishes = client or ClientSettings(judge=judge(), identity=self.client if mutual else None)
        return Conversation(
            ClientExchange(client_facts, wishes, context=context, now=NOW),
            ServerExchange(
                server_facts, settings, authorised=False, context=SERVER_CONTEXT, now=NOW
            ),
            client_platform=PromptPlatform(),
            server_platform=PromptPlatform(),
        )


# An attack returns why it failed; None when the victim believed it.
Attack = Callable[[World], AvowError | None]


def check_of(error: AvowError | None) -> str | None:
    """The number of the check that failed."""
    if error is None:
        return None
    assert error.finding is not None, error
    return error.finding.check.number


def stopped_by_each(
    attack: Attack,
    defences: Sequence[Defence],
    *,
    in_the_end: bool,
    make_world: Callable[[], World] = World,
) -> None:
    """The attack is stopped by the first defence; without it by the second, and so on.

    `in_the_end`: without all of them it succeeds. Otherwise something else stands in its way that
    is no check (a parser that finds nothing to parse, for instance).
    """
    world = make_world()
    for number, defence in enumerate(defences):
        with removed(defences[:number]):
            assert check_of(attack(world)) == defence.check, f"after {defences[:number]}"
    with removed(defences):
        error = attack(world)
    if in_the_end:
        assert error is None, f"something else than {defences} stops it: {error}"
    else:
        assert error is not None
