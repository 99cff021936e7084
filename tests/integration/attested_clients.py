"""Clients that attest over pyOpenSSL, for tests against the real process."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from OpenSSL import SSL

from avow.channel.attested_identity import make_identity
from avow.channel.conversation import run_client_exchange
from avow.channel.exchange import ClientExchange, ClientSettings, Outcome
from avow.channel.issuer import Issuer
from avow.channel.judge import Judge
from avow.channel.session import facts_of
from avow.evidence.claims import Workload
from avow.policy.policy_file import parse_policy
from avow.tee.platforms import verifiers
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.mqtt import Connack, Connect, Packet, ToServer
from tests.integration.service_process import PATIENCE_S, PlainClient, avow

CONTROLLER = bytes(range(32))


def tls_context() -> SSL.Context:
    """A client's context that leaves judging the server to the evidence."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    return context


class AttestedClient(PlainClient):
    """An MQTT client over pyOpenSSL; `attest` comes before the first packet."""

    def __init__(
        self,
        port: int,
        context: SSL.Context | None = None,
        version: int = 5,
        *,
        session: SSL.Session | None = None,
    ) -> None:
        super().__init__(port, version=version)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls = SSL.Connection(context or tls_context(), self._socket)
        self.tls.set_connect_state()
        if session is not None:
            self.tls.set_session(session)
        try:
            self.tls.do_handshake()
        except SSL.Error:
            self._socket.close()
            raise

    def attest(
        self, settings: ClientSettings, *, issuer: Issuer | None = None, psk: bool = False
    ) -> Outcome:
        """The exchange, to its end."""
        exchange = ClientExchange(
            facts_of(self.tls, "client", external_psk=psk),
            settings,
            context=secrets.token_bytes(32),
            now=datetime.now(UTC),
        )
        return run_client_exchange(self.tls, exchange, issuer=issuer, deadline_s=PATIENCE_S)

    def write_bytes(self, content: bytes) -> None:
        """Plaintext as it is."""
        self.tls.sendall(content)

    def read_bytes(self) -> bytes:
        """Some plaintext."""
        return self.tls.recv(65536)

    def send(self, *packets: ToServer | Connect) -> None:
        """Writes packets."""
        for packet in packets:
            content = (
                packet.encode() if isinstance(packet, Connect) else packet.encode(self._version)
            )
            self.tls.sendall(content)

    def next_packet(self) -> Packet:
        """The next packet of any kind."""
        while not self._packets:
            self._packets += self._decoder.feed(self.tls.recv(65536))
        return self._packets.pop(0)

    def connected(self, client_id: str) -> Connack:
        """CONNECT and its answer."""
        self.send(Connect(version=self._version, client_id=client_id))
        packet = self.next_packet()
        assert isinstance(packet, Connack)
        return packet

    def closed(self) -> bool:
        """Waits for the broker to close the connection, with nothing more before."""
        try:
            return not self.tls.recv(1)
        except SSL.Error:
            return True


def judge_of(policy: str) -> Judge:
    """The judge of a policy's text."""
    return Judge(verifiers(), parse_policy(policy, name="policy.toml"))


def broker_policy(*options: str) -> str:
    """What `avow policy init --broker` writes for a broker with these options."""
    done = avow("policy", "init", "--broker", "--platform", "simulated", "-o", "-", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def client_policy(module: bytes = CONTROLLER) -> str:
    """A policy for clients that run this module on the simulated platform."""
    return f"""
version = 1
name = "controllers"
unsafe_simulated = true
platform = "simulated"
module = "sha256:{module.hex()}"
runtime = "any"
configuration = "any"
evidence_age_s = {{ min = -300, max = 300 }}
"""


@contextmanager
def own_evidence(
    judge: Judge | None, module: bytes = CONTROLLER
) -> Iterator[tuple[ClientSettings, Issuer]]:
    """A client with a simulated platform of its own."""
    workload = Workload(module, bytes(32), bytes(32), secrets.token_bytes(32))
    issuer = Issuer(SimulatedAttester())
    issuer.start()
    try:
        yield (
            ClientSettings(
                judge=judge, identity=make_identity("simulated", workload, datetime.now(UTC))
            ),
            issuer,
        )
    finally:
        issuer.stop()
