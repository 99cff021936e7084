"""Both ends of an attested channel in one thread: over real TLS in memory, or over none.

`Conversation` moves frames between two exchanges and lets a test change what passes; a platform is
asked at once. What a policy says is stood in for by `Expect`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from OpenSSL import SSL

from avow.channel.attested_identity import AttestedIdentity, make_identity
from avow.channel.exchange import (
    ClientExchange,
    ClientSettings,
    Outcome,
    ServerExchange,
    ServerSettings,
)
from avow.channel.judge import Judge
from avow.channel.session import HashName, TlsFacts
from avow.errors import AvowError, Check, DeniedError
from avow.evidence.appraisal import AttestationResult, Tier, TrustVector
from avow.evidence.claims import Claims, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.origin import Verified
from avow.evidence.report_data import batch
from avow.evidence.roles import Attester, Verifier
from avow.tee.simulated.attester import SimulatedAttester
from avow.tee.simulated.verifier import SimulatedVerifier
from avow.testing.pki import Credential

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WORKLOAD = Workload(
    module=bytes([1]) * 32,
    runtime=bytes([2]) * 32,
    configuration=bytes([3]) * 32,
    boot_id=bytes([4]) * 32,
)
CLIENT_CONTEXT = bytes(range(32))
SERVER_CONTEXT = bytes(range(100, 132))
UNEXPECTED = Check("P99", "the module is the expected one", "a test")


@dataclass(frozen=True)
class Expect:
    """A policy that accepts one module, simulated or not."""

    module: bytes = WORKLOAD.module

    def require(self, verified: Verified) -> AttestationResult:
        """See `avow.channel.judge.Appraiser`."""
        if verified.claims["module"] != self.module:
            raise DeniedError.at(
                UNEXPECTED,
                expected=self.module.hex(),
                actual=bytes(verified.claims["module"]).hex(),  # type: ignore[arg-type]
                advice="run the other one",
            )
        return AttestationResult(
            Tier.AFFIRMING,
            TrustVector(),
            "sha256:test",
            verified.platform,
            verified.nonce,
            verified.verified_at,
            verified.claims,
        )


def judge(policy: Expect | None = None, *, without: bool = False) -> Judge:
    """Verifies simulated evidence; `without` leaves the policy out."""
    verifiers: Mapping[str, Verifier] = {"simulated": SimulatedVerifier()}
    return Judge(verifiers, None if without else policy or Expect())


def identity(workload: Workload = WORKLOAD, platform: str = "simulated") -> AttestedIdentity:
    """A new key for a workload."""
    return make_identity(platform, workload, NOW)


def exporter(secret: bytes, hash_name: HashName) -> Callable[[bytes, int, bytes], bytes]:
    """The exporter of RFC 8446, section 7.5, over an exporter_master_secret."""

    def expand_label(key: bytes, label: bytes, context: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label
        info += bytes([len(context)]) + context
        content = block = b""
        counter = 1
        while len(content) < length:
            block = hmac.digest(key, block + info + bytes([counter]), hash_name)
            content += block
            counter += 1
        return content[:length]

    def export(label: bytes, length: int, context: bytes) -> bytes:
        size = hashlib.new(hash_name).digest_size
        derived = expand_label(secret, label, hashlib.new(hash_name).digest(), size)
        return expand_label(derived, b"exporter", hashlib.new(hash_name, context).digest(), length)

    return export


def facts_pair(
    secret: bytes = bytes(32),
    *,
    hash_name: HashName = "sha256",
    client_spki: bytes = b"",
    server_spki: bytes = b"the server's key",
) -> tuple[TlsFacts, TlsFacts]:
    """What client and server know of a connection that was never made."""
    export = exporter(secret, hash_name)
    return (
        TlsFacts(hash_name, client_spki, server_spki, export),
        TlsFacts(hash_name, server_spki, client_spki, export),
    )


@dataclass
class PromptPlatform:
    """Answers what an exchange wants at once. `change` may alter the evidence."""

    attester: Attester = field(default_factory=SimulatedAttester)
    change: Callable[[Evidence], Evidence | AvowError] = lambda evidence: evidence
    quotes: int = 0

    def quote(self, claims: Claims, binder: bytes) -> Evidence | AvowError:
        """Evidence of its own batch."""
        self.quotes += 1
        report_data, paths = batch([(claims, binder)])
        report = self.attester.quote(report_data)
        return self.change(Evidence(self.attester.platform, report, claims.encoded(), paths[0]))


Tamper = Callable[[Literal["client", "server"], int, bytes], bytes]


@dataclass
class Conversation:
    """Two exchanges and what passes between them: `tamper(sender, number, frame)` may change it.

    After `run` the outcome or the error of each end is here; an end that waits for ever has None in
    both.
    """

    client: ClientExchange
    server: ServerExchange
    client_platform: PromptPlatform = field(default_factory=PromptPlatform)
    server_platform: PromptPlatform = field(default_factory=PromptPlatform)
    tamper: Tamper = lambda sender, number, frame: frame
    client_error: AvowError | None = None
    server_error: AvowError | None = None
    sent: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def client_outcome(self) -> Outcome | None:
        """What the client ended with."""
        return self.client.outcome

    @property
    def server_outcome(self) -> Outcome | None:
        """What the server ended with."""
        return self.server.outcome

    def run(self) -> Conversation:
        """Until nobody has anything to say."""
        waiting = {"client": b"", "server": b""}
        while True:
            moved = False
            for name in ("client", "server"):
                moved |= self._speak(name, waiting)
            for name in ("client", "server"):
                moved |= self._listen(name, waiting)
            if not moved:
                return self

    def _speak(self, name: str, waiting: dict[str, bytes]) -> bool:
        exchange, platform = self._end(name)
        wanted = exchange.quote_wanted
        if wanted is not None:
            self._guard(name, lambda: exchange.quoted(platform.quote(wanted.claims, wanted.binder)))
        content = exchange.to_send()
        if not content:
            return wanted is not None
        number = sum(sender == name for sender, _ in self.sent)
        self.sent.append((name, content))
        sender: Literal["client", "server"] = "client" if name == "client" else "server"
        waiting["server" if name == "client" else "client"] += self.tamper(sender, number, content)
        return True

    def _listen(self, name: str, waiting: dict[str, bytes]) -> bool:
        exchange, _ = self._end(name)
        moved = False
        while exchange.needed and waiting[name]:
            content, waiting[name] = (
                waiting[name][: exchange.needed],
                waiting[name][exchange.needed :],
            )
            self._guard(name, lambda content=content: exchange.receive(content))  # type: ignore[misc]
            moved = True
        return moved

    def _end(self, name: str) -> tuple[ClientExchange | ServerExchange, PromptPlatform]:
        if name == "client":
            return self.client, self.client_platform
        return self.server, self.server_platform

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except AvowError as error:
            if name == "client":
                self.client_error = error
            else:
                self.server_error = error


def conversation(
    client: ClientSettings,
    server: ServerSettings,
    facts: tuple[TlsFacts, TlsFacts] | None = None,
    *,
    authorised: bool = False,
    client_context: bytes = CLIENT_CONTEXT,
    server_context: bytes = SERVER_CONTEXT,
    tamper: Tamper = lambda sender, number, frame: frame,
) -> Conversation:
    """A conversation that has not begun; `facts` are the client's and the server's."""
    client_facts, server_facts = facts or facts_pair()
    return Conversation(
        ClientExchange(client_facts, client, context=client_context, now=NOW),
        ServerExchange(
            server_facts, server, authorised=authorised, context=server_context, now=NOW
        ),
        tamper=tamper,
    )


def tls_in_memory(
    server: Credential,
    *,
    client: Credential | None = None,
    ask_client: bool = False,
    version: int = SSL.TLS1_3_VERSION,
    keylog: Callable[[bytes], None] | None = None,
) -> tuple[SSL.Connection, SSL.Connection]:
    """Client and server with a finished handshake, over memory; nobody verifies certificates."""
    server_context = SSL.Context(SSL.TLS_SERVER_METHOD)
    server_context.use_certificate(server.certificate)
    server_context.use_privatekey(server.key)
    server_context.set_max_proto_version(version)
    if ask_client:
        server_context.add_client_ca(server.certificate)
        server_context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    client_context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if client is not None:
        client_context.use_certificate(client.certificate)
        client_context.use_privatekey(client.key)
    if keylog is not None:
        client_context.set_keylog_callback(lambda _, line: keylog(line))
    return handshake_in_memory(client_context, server_context)


def handshake_in_memory(
    client: SSL.Context, server: SSL.Context
) -> tuple[SSL.Connection, SSL.Connection]:
    """Client and server with a finished handshake. Raises `SSL.Error` when there is none."""
    ends = SSL.Connection(client, None), SSL.Connection(server, None)
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    finished = [False, False]
    while not all(finished):
        for index, end in enumerate(ends):
            try:
                end.do_handshake()
                finished[index] = True
            except SSL.WantReadError:
                pass
            _carry(end, ends[1 - index])
    return ends


def _carry(sender: SSL.Connection, receiver: SSL.Connection) -> None:
    while True:
        try:
            receiver.bio_write(sender.bio_read(65_536))
        except SSL.WantReadError:
            return
