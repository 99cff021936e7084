"""What comes between the TLS handshake and MQTT: the first byte, and an attestation exchange if it
asks for one.

The first decrypted byte is looked at and left where it is. 0xA0 begins an exchange; everything else
is MQTT or a WebSocket at once. Not one byte of those is ever taken out of the connection.

`Opening` never blocks. It is driven by the acceptor's thread, which waits for the socket and keeps
the time; evidence comes from the issuer's threads, by way of that thread.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, NoReturn

from OpenSSL import SSL

from avow.channel import checks
from avow.channel.attested_identity import AttestedIdentity
from avow.channel.exchange import (
    CONTEXT_BYTES,
    AskClients,
    EvidenceFor,
    Outcome,
    QuoteWanted,
    ServerExchange,
    ServerSettings,
)
from avow.channel.judge import Judge
from avow.channel.messages import FIRST_BYTE, encode, refusal_of
from avow.channel.session import TlsFacts, facts_of
from avow.errors import AvowError, Check, DeniedError, UnavailableError
from avow.evidence.appraisal import Tier
from avow.evidence.claims import Role
from avow.evidence.envelope import Evidence
from avow.evidence.vocabulary import VerifiedClaims

DIGEST_BYTES: Final = 32

Quote = Callable[[QuoteWanted, Callable[[Evidence | AvowError], None]], None]
"""Asks the issuer; the second argument is called once, from any thread."""


@dataclass(frozen=True, slots=True)
class DoorAttestation:
    """What a listener does about attestation. `identity` and `quote` are there together, where the
    broker has evidence of its own; `judge` where clients are asked for theirs. With `owner`, the
    SHA-256 of a SubjectPublicKeyInfo, who has that key is authorised and nobody else."""

    evidence_for: EvidenceFor = EvidenceFor.ANYONE
    owner: bytes | None = None
    unattested_clients: bool = True
    require_client_evidence: bool = False
    judge: Judge | None = None
    identity: AttestedIdentity | None = None
    quote: Quote | None = field(default=None, repr=False)

    @property
    def settings(self) -> ServerSettings:
        """For an exchange that begins now."""
        if self.judge is None:
            ask = AskClients.NEVER
        else:
            ask = AskClients.ALWAYS if self.require_client_evidence else AskClients.OFFERING
        return ServerSettings(
            identity=self.identity,
            evidence_for=self.evidence_for,
            # Nobody can ask a broker that has no evidence.
            clients_must_ask=not self.unattested_clients and self.identity is not None,
            ask_clients=ask,
            judge=self.judge,
        )


@dataclass(frozen=True, slots=True)
class AttestedPeer:
    """What a client has proven: how good its evidence was found, and the SHA-256 of its module.

    `module` is None but for evidence of role program, which avow's runtime makes for the module
    that it has measured and runs. What a client says about itself is not proven by its saying so.
    """

    tier: Tier
    module: bytes | None
    platform: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The connection is ready for MQTT. `exchange` is None for an ordinary client."""

    exchange: Outcome | None = None

    shown: bytes | None = None
    """The configuration's digest (32 bytes) in the evidence that the client asked for and took."""

    @property
    def peer(self) -> AttestedPeer | None:
        """What the client has proven, if it was asked for something.

        Raises `DeniedError` for a result that says that the client must not be trusted.
        """
        result = None if self.exchange is None else self.exchange.peer
        if result is None:
            return None
        if not result.accepted or result.tier is Tier.CONTRAINDICATED:
            raise DeniedError.at(
                checks.REQUIRED,
                expected="a client that the policy accepts",
                actual=f"the tier {result.tier.label}",
                advice="correct the policy of the listener (client_policy)",
            )
        return AttestedPeer(result.tier, proven_module(result.claims), result.platform)


def proven_module(claims: VerifiedClaims) -> bytes | None:
    """The module that access rules may name: that of a program, as its runtime measured it.

    A client's own claim is no measurement: whoever may connect from a machine with the right
    runtime could have any digest put there.
    """
    module = claims.get("module")
    if claims.get("role") != Role.PROGRAM.name.lower() or not isinstance(module, bytes):
        return None
    return module if len(module) == DIGEST_BYTES and any(module) else None


class Wants(enum.Enum):
    """What an opening waits for."""

    READ = enum.auto()
    WRITE = enum.auto()
    QUOTE = enum.auto()


class Opening:
    """One connection after its handshake, until it is ready for MQTT or refused."""

    def __init__(
        self,
        tls: SSL.Connection,
        attestation: DoorAttestation,
        *,
        authorised: bool,
        external_psk: bool,
    ) -> None:
        """`authorised`: TLS has shown an accepted certificate or pre-shared key; `external_psk`:
        the latter."""
        self._tls = tls
        self._attestation = attestation
        self._authorised = authorised
        self._external_psk = external_psk
        self._exchange: ServerExchange | None = None
        self._out = b""
        self._refusal: AvowError | None = None
        self._quote_asked = False

    def advance(self, quoted: Callable[[Evidence | AvowError], None]) -> Wants | Opened:
        """Goes on as far as it can without waiting. `quoted` is for the issuer, once.

        Raises `SSL.Error` when the connection is lost before an exchange, and an `AvowError` for a
        refusal, after the peer was told.
        """
        while True:
            if self._out:
                try:
                    self._out = self._out[self._tls.send(self._out) :]
                except SSL.WantReadError:
                    return Wants.READ
                except SSL.WantWriteError:
                    return Wants.WRITE
                except SSL.Error:
                    # The peer is gone; what is known already counts.
                    if self._refusal is not None:
                        raise self._refusal from None
                    raise
                continue
            if self._refusal is not None:
                raise self._refusal
            try:
                step = self._step(quoted)
            except SSL.WantReadError:
                return Wants.READ
            except SSL.WantWriteError:
                return Wants.WRITE
            except AvowError as error:
                self._refuse(error)
                continue
            if step is not None:
                return step

    def quoted(self, answer: Evidence | AvowError) -> None:
        """The issuer's answer. Call `advance` afterwards."""
        if self._exchange is None or self._exchange.quote_wanted is None:
            return
        try:
            self._exchange.quoted(answer)
        except AvowError as error:
            self._refuse(error)
        else:
            self._out += self._exchange.to_send()

    def late(self) -> AvowError:
        """The deadline has passed; what the peer can still be told is told without waiting."""
        if self._refusal is not None:
            return self._refusal
        if self._exchange is None:
            return UnavailableError(
                "expected the first bytes in time, got none; send MQTT or the attestation "
                "exchange right after TLS"
            )
        try:
            self._exchange.late()
        except AvowError as error:
            self._refuse(error)
            try:
                self._tls.send(self._out)
            except SSL.Error:
                self._out = b""
            return error

    def _step(self, quoted: Callable[[Evidence | AvowError], None]) -> Wants | Opened | None:
        """One step; None when there is more to do at once."""
        exchange = self._exchange
        if exchange is None:
            return self._begin()
        if (outcome := exchange.outcome) is not None:
            identity = self._attestation.identity
            shown = None
            if outcome.sent_evidence and identity is not None:
                shown = identity.workload.configuration
            opened = Opened(outcome, shown)
            _ = opened.peer  # refuses what must not come in
            return opened
        if (wanted := exchange.quote_wanted) is not None:
            if not self._quote_asked:
                self._quote_asked = True
                self._ask(wanted, quoted)
                if exchange.quote_wanted is None or self._refusal is not None:
                    return None
            return Wants.QUOTE
        try:
            content = self._tls.recv(exchange.needed)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            exchange.closed()
        exchange.receive(content)
        self._out += exchange.to_send()
        return None

    def _begin(self) -> Opened | None:
        first = self._tls.recv(1, socket.MSG_PEEK)
        if first[0] != FIRST_BYTE:
            self._admit_plain()
            return Opened()
        facts = facts_of(self._tls, "server", external_psk=self._external_psk)
        self._exchange = ServerExchange(
            facts,
            self._attestation.settings,
            authorised=self._authorised and self._owns(facts),
            context=secrets.token_bytes(CONTEXT_BYTES),
            now=datetime.now(UTC),
        )
        return None

    def _owns(self, facts: TlsFacts) -> bool:
        owner = self._attestation.owner
        return owner is None or hmac.compare_digest(sha256(facts.peer_spki).digest(), owner)

    def _admit_plain(self) -> None:
        if self._attestation.require_client_evidence:
            _refuse_plain(checks.REQUIRED, "shows evidence", "start the client in a TEE (--tee)")
        if not self._attestation.unattested_clients:
            _refuse_plain(checks.ASKED, "asks for evidence", "give the client a policy (--policy)")

    def _ask(self, wanted: QuoteWanted, quoted: Callable[[Evidence | AvowError], None]) -> None:
        """Asks for evidence. What is there before the issuer returns needs no other thread."""
        caller = threading.get_ident()
        at_once: list[Evidence | AvowError] = []
        asking = True

        def answered(answer: Evidence | AvowError) -> None:
            if asking and threading.get_ident() == caller:
                at_once.append(answer)
            else:
                quoted(answer)

        if self._attestation.quote is None:
            answered(UnavailableError("expected an issuer of evidence, got none; report this"))
        else:
            self._attestation.quote(wanted, answered)
        asking = False
        for answer in at_once:
            self.quoted(answer)

    def _refuse(self, error: AvowError) -> None:
        self._refusal = error
        if self._exchange is not None:
            self._out = self._exchange.to_send()
        elif self._peer_speaks_attestation():
            self._out = encode(refusal_of(error))

    def _peer_speaks_attestation(self) -> bool:
        """A refusal without an exchange is for TLS 1.2; an MQTT client would not understand it."""
        try:
            return self._tls.recv(1, socket.MSG_PEEK)[0] == FIRST_BYTE
        except SSL.Error:
            return False


def _refuse_plain(check: Check, expected: str, advice: str) -> NoReturn:
    raise DeniedError.at(
        check,
        expected=f"a client that {expected}",
        actual="one that speaks MQTT without it",
        advice=advice,
    )
