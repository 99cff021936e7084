"""Attestation at the door, over real sockets: the first byte, the exchange, and every refusal."""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from OpenSSL import SSL

from avow.channel.acceptor import Acceptor, Arrival, Door, Refusal, open_listeners
from avow.channel.address import Address, Scheme
from avow.channel.attestation import ServerAttestation
from avow.channel.attested_identity import make_identity
from avow.channel.conversation import run_client_exchange
from avow.channel.exchange import ClientExchange, ClientSettings, EvidenceFor, Outcome
from avow.channel.issuer import Issuer
from avow.channel.messages import FrameType, decode_body, decode_header
from avow.channel.opening import DoorAttestation, proven_module
from avow.channel.psk import (
    PreSharedKey,
    PreSharedKeys,
    key_identity,
    offer_key,
    require_key,
    serve_keys,
)
from avow.channel.session import facts_of
from avow.channel.tls import ServerTls, server_context
from avow.client import AttestedContext, UnavailablePeerError
from avow.client.attested_socket import Attestation
from avow.client.options import ClientTls
from avow.errors import AvowError, UnavailableError
from avow.evidence.appraisal import Tier
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.evidence.vocabulary import ClaimValue
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.attested_channel import WORKLOAD, Expect, identity, judge
from avow.testing.pki import Authority

PATIENCE_S = 20.0
CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
DEVICE = PreSharedKey("device-7", bytes(range(32)))


class Platform:
    """The simulated platform, which a test can have fail or hang; `quotes` counts."""

    platform = "simulated"

    def __init__(self) -> None:
        self.quotes = 0
        self.measured: list[Workload] = []
        self.fails = False
        self.free = threading.Event()
        self.free.set()
        self._real = SimulatedAttester()

    def measure(self, workload: Workload) -> None:
        self.measured.append(workload)

    def quote(self, report_data: ReportData) -> bytes:
        self.quotes += 1
        self.free.wait(PATIENCE_S)
        if self.fails:
            raise UnavailableError("expected a device, got smoke; replace it")
        return self._real.quote(report_data)


@dataclass
class Place:
    """A door, and what happened at it."""

    port: int
    door: Door
    folder: Path
    authority: Authority
    platform: Platform
    attestation: ServerAttestation
    arrivals: queue.SimpleQueue[Arrival] = field(default_factory=queue.SimpleQueue)
    refusals: queue.SimpleQueue[Refusal] = field(default_factory=queue.SimpleQueue)

    def arrival(self) -> Arrival:
        return self.arrivals.get(timeout=PATIENCE_S)

    def refused(self) -> str:
        """The number of the check."""
        return self.refusals.get(timeout=PATIENCE_S).check

    def connect(self, context: SSL.Context | None = None) -> Client:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        sock.settimeout(None)
        tls = SSL.Connection(context or SSL.Context(SSL.TLS_CLIENT_METHOD), sock)
        tls.set_connect_state()
        tls.do_handshake()
        return Client(sock, tls)

    def with_certificate(self) -> SSL.Context:
        certificate, key = self.authority.issue("alice").write(self.folder, "alice")
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.use_certificate_file(str(certificate))
        context.use_privatekey_file(str(key))
        return context


@dataclass
class Client:
    """A TLS connection of a client."""

    sock: socket.socket
    tls: SSL.Connection

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def exchange(self, settings: ClientSettings, *, psk: bool = False) -> ClientExchange:
        facts = facts_of(self.tls, "client", external_psk=psk)
        return ClientExchange(
            facts, settings, context=secrets.token_bytes(32), now=datetime.now(UTC)
        )

    def attest(
        self,
        settings: ClientSettings | None = None,
        *,
        issuer: Issuer | None = None,
        psk: bool = False,
    ) -> Outcome:
        exchange = self.exchange(settings or ClientSettings(judge=judge()), psk=psk)
        return run_client_exchange(self.tls, exchange, issuer=issuer, deadline_s=PATIENCE_S)

    def check(self, settings: ClientSettings | None = None, *, psk: bool = False) -> str:
        """The number of the check for which the server refuses."""
        with pytest.raises(AvowError) as caught:
            self.attest(settings, psk=psk)
        return str(caught.value).partition("refused")[0] + str(caught.value)


Settings = Callable[[ServerAttestation], DoorAttestation]


def showing(**settings: object) -> Settings:
    """A door that shows evidence."""
    return lambda attestation: DoorAttestation(
        identity=attestation.identity,
        quote=attestation.quote,
        **settings,  # type: ignore[arg-type]
    )


@contextmanager
def place(
    folder: Path,
    settings: Settings,
    *,
    minimum: str = "1.3",
    client_ca: bool = False,
    require_certificate: bool = True,
    keys: PreSharedKeys | None = None,
    timeout_s: float = PATIENCE_S,
    quote_timeout_s: float = PATIENCE_S,
    waiting_max: int = 100,
    places: int = 1024,
) -> Iterator[Place]:
    authority = Authority()
    certificate, key = authority.issue_server().write(folder, "server")
    tls = ServerTls(
        certificate,
        key,
        client_ca=authority.write(folder / "ca.pem") if client_ca else None,
        require_certificate=require_certificate,
        minimum=minimum,  # type: ignore[arg-type]
    )
    context = server_context(tls, datetime.now(UTC))
    if keys is not None:
        serve_keys(context, keys)
    platform = Platform()
    attestation = ServerAttestation(
        platform,
        module=WORKLOAD.module,
        runtime=WORKLOAD.runtime,
        quotes_per_s=1000,
        waiting_max=waiting_max,
        quote_timeout_s=quote_timeout_s,
    )
    attestation.measure(WORKLOAD.configuration, datetime.now(UTC))
    assert platform.quotes == 1  # the platform has shown that it can
    platform.quotes = 0
    attestation.start()
    address = Address(Scheme.MQTTS, "127.0.0.1", 0)
    (listening,) = open_listeners([(socket.AF_INET, "127.0.0.1")], 0, address)
    port = listening.getsockname()[1]
    door = Door(listening, address.at_port(port), context, "cn", attestation=settings(attestation))
    here = Place(port, door, folder, authority, platform, attestation)
    acceptor = Acceptor(
        [door],
        admit=here.arrivals.put,
        refused=here.refusals.put,
        exhausted=lambda _: None,
        handshake_timeout_s=timeout_s,
        exchange_timeout_s=timeout_s,
        handshakes_max=places,
    )
    acceptor.start()
    try:
        yield here
    finally:
        platform.free.set()
        acceptor.stop()
        attestation.stop()
        while not here.arrivals.empty():
            socket.socket(fileno=here.arrivals.get().fd).close()


def content_of(arrival: Arrival, count: int) -> bytes:
    """The first bytes that the pump would find."""
    assert arrival.tls is not None
    with socket.socket(fileno=arrival.fd) as sock:
        sock.setblocking(True)
        content = b""
        while len(content) < count:
            try:
                content += arrival.tls.recv(count - len(content))
            except SSL.WantReadError:
                continue
        return content


@pytest.mark.parametrize("size", [1, 14, 40_000])
def test_an_ordinary_client_comes_in_and_loses_no_byte(tmp_path: Path, size: int) -> None:
    content = (CONNECT + bytes(range(256)) * 160)[:size]
    with place(tmp_path, showing()) as here, here.connect() as client:
        sending = threading.Thread(target=client.tls.sendall, args=(content,))
        sending.start()
        arrival = here.arrival()
        assert arrival.attested is None
        assert content_of(arrival, size) == content
        sending.join()
        assert here.platform.quotes == 0


def test_an_attested_connection_goes_on_with_mqtt(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here, here.connect() as client:
        outcome = client.attest()
        assert outcome.peer is not None
        assert outcome.peer.claims["module"] == WORKLOAD.module
        assert outcome.peer.claims["role"] == "server"
        client.tls.sendall(CONNECT)
        arrival = here.arrival()
        assert arrival.attested is None, "the client has proven nothing"
        assert content_of(arrival, len(CONNECT)) == CONNECT
        assert here.platform.quotes == 1


def test_mqtt_in_the_record_of_the_last_message_is_not_lost(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here, here.connect() as client:
        exchange = client.exchange(ClientSettings(judge=judge()))
        client.tls.sendall(exchange.to_send())
        while exchange.outcome is None:
            exchange.receive(client.tls.recv(exchange.needed))
        client.tls.sendall(exchange.to_send() + CONNECT)
        assert content_of(here.arrival(), len(CONNECT)) == CONNECT


def test_messages_may_come_byte_by_byte(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here, here.connect() as client:
        exchange = client.exchange(ClientSettings(judge=judge()))
        for byte in exchange.to_send():
            client.tls.sendall(bytes([byte]))
        while exchange.outcome is None:
            exchange.receive(client.tls.recv(exchange.needed))
        client.tls.sendall(exchange.to_send() + CONNECT)
        assert content_of(here.arrival(), len(CONNECT)) == CONNECT


@contextmanager
def own_evidence(module: bytes = WORKLOAD.module) -> Iterator[tuple[ClientSettings, Issuer]]:
    """A client that asks, and has evidence of its own."""
    workload = Workload(module, WORKLOAD.runtime, WORKLOAD.configuration, WORKLOAD.boot_id)
    issuer = Issuer(SimulatedAttester())
    issuer.start()
    identity = make_identity("simulated", workload, datetime.now(UTC))
    try:
        yield ClientSettings(judge=judge(), identity=identity), issuer
    finally:
        issuer.stop()


def test_what_a_client_says_about_itself_is_no_proven_module(tmp_path: Path) -> None:
    """Any digest can stand in a client's claims: it is not what a rule on `module` is about."""
    module = bytes([7]) * 32
    door = showing(judge=judge(Expect(module)))
    with (
        place(tmp_path, door) as here,
        own_evidence(module) as (settings, issuer),
        here.connect() as client,
    ):
        assert client.attest(settings, issuer=issuer).sent_evidence
        attested = here.arrival().attested
        assert attested is not None
        assert (attested.tier, attested.module) == (Tier.AFFIRMING, None)


@pytest.mark.parametrize(
    ("claims", "module"),
    [
        ({"role": "program", "module": b"\7" * 32}, b"\7" * 32),
        ({"role": "client", "module": b"\7" * 32}, None),
        ({"role": "server", "module": b"\7" * 32}, None),
        ({"role": "document", "module": b"\7" * 32}, None),
        ({"role": "certificate", "module": b"\7" * 32}, None),
        ({"role": "PROGRAM", "module": b"\7" * 32}, None),
        ({"module": b"\7" * 32}, None),
        ({"role": "program"}, None),
        ({"role": "program", "module": "07" * 32}, None),
        ({"role": "program", "module": b"\7" * 31}, None),
        ({"role": "program", "module": bytes(32)}, None),
    ],
    ids=str,
)
def test_only_a_programs_module_is_proven(
    claims: dict[str, ClaimValue], module: bytes | None
) -> None:
    assert proven_module(claims) == module


def test_a_client_of_another_module_is_refused(tmp_path: Path) -> None:
    door = showing(judge=judge(Expect(bytes([7]) * 32)))
    with (
        place(tmp_path, door) as here,
        own_evidence() as (settings, issuer),
        here.connect() as client,
    ):
        with pytest.raises(AvowError, match="P99"):
            client.attest(settings, issuer=issuer)
        assert here.refused() == "P99"
        assert here.arrivals.empty()


def test_where_evidence_is_required_nobody_else_comes_in(tmp_path: Path) -> None:
    door = showing(judge=judge(), require_client_evidence=True, unattested_clients=False)
    with place(tmp_path, door) as here:
        with here.connect() as plain:
            plain.tls.sendall(CONNECT)
            assert here.refused() == "C17"
            with pytest.raises(SSL.Error):
                plain.tls.recv(1)
        with here.connect() as asking, pytest.raises(AvowError, match="C17"):
            asking.attest()
        assert here.refused() == "C17"
        with own_evidence() as (settings, issuer), here.connect() as client:
            client.attest(settings, issuer=issuer)
            assert here.arrival().attested is not None


def test_plain_clients_are_refused_where_they_are_not_wanted(tmp_path: Path) -> None:
    with place(tmp_path, showing(unattested_clients=False)) as here:
        for first in (CONNECT, b"GET / HTTP/1.1\r\n"):
            with here.connect() as plain:
                plain.tls.sendall(first)
                assert here.refused() == "C18"
                with pytest.raises(SSL.Error):
                    plain.tls.recv(1)
        with here.connect() as client:
            client.attest()
            here.arrival()


def test_who_only_shows_evidence_has_to_ask_where_there_is_something_to_ask_for() -> None:
    door = DoorAttestation(judge=judge(), identity=identity(), unattested_clients=False)
    assert door.settings.clients_must_ask
    assert not replace(door, unattested_clients=True).settings.clients_must_ask
    # A broker without a platform has nothing to show.
    assert not replace(door, identity=None).settings.clients_must_ask


def test_only_the_authorised_get_evidence_and_a_flood_causes_no_quote(tmp_path: Path) -> None:
    door = showing(evidence_for=EvidenceFor.AUTHORISED)
    with place(tmp_path, door, client_ca=True, require_certificate=False) as here:
        for _ in range(20):
            with here.connect() as stranger, pytest.raises(AvowError, match="C9"):
                stranger.attest()
            assert here.refused() == "C9"
        assert here.platform.quotes == 0
        assert here.attestation.counters.requests == 0
        with here.connect(here.with_certificate()) as client:
            client.attest()
            assert here.arrival().identity == "alice"
        assert here.platform.quotes == 1


def test_a_platform_that_fails_refuses_the_client_in_words(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here:
        here.platform.fails = True
        with here.connect() as client, pytest.raises(AvowError, match="C19"):
            client.attest()
        refusal = here.refusals.get(timeout=PATIENCE_S)
        assert refusal.check == "C19"
        assert "got smoke" in refusal.reason
        here.platform.fails = False
        with here.connect() as client:
            client.attest()


def test_a_platform_that_hangs_delays_nobody_else(tmp_path: Path) -> None:
    with place(tmp_path, showing(), quote_timeout_s=0.3) as here:
        here.platform.free.clear()
        with here.connect() as client, here.connect() as plain:
            waiting = threading.Thread(target=lambda: client.check())
            waiting.start()
            plain.tls.sendall(CONNECT)
            assert here.arrival().attested is None
            assert here.refused() == "C19"
            waiting.join()


def test_an_exchange_has_an_end_in_time(tmp_path: Path) -> None:
    with place(tmp_path, showing(), timeout_s=0.3) as here:
        here.platform.free.clear()
        with here.connect() as client:
            assert "C20" in client.check()
            assert here.refused() == "C20"
        # What comes too late finds nobody, and harms nobody.
        here.platform.free.set()
        with here.connect() as client:
            client.attest()
            here.arrival()


def test_who_says_nothing_is_sent_away(tmp_path: Path) -> None:
    with place(tmp_path, showing(), timeout_s=0.3) as here, here.connect() as silent:
        assert here.refusals.get(timeout=PATIENCE_S).check == ""
        with pytest.raises(SSL.Error):
            silent.tls.recv(1)


def test_who_leaves_in_the_middle_is_noted(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here:
        with here.connect() as client:
            exchange = client.exchange(ClientSettings(judge=judge()))
            client.tls.sendall(exchange.to_send())
            while exchange.outcome is None:
                exchange.receive(client.tls.recv(exchange.needed))
        assert here.refused() == "C22"


def test_silent_connections_do_not_keep_the_door_shut(tmp_path: Path) -> None:
    """Places are bounded, and with all of them taken a silent one lasts a fifth of its time."""
    with (
        place(tmp_path, showing(), places=3, timeout_s=5.0) as here,
        contextlib.ExitStack() as all_,
    ):
        for _ in range(3):
            all_.enter_context(here.connect())
        with here.connect() as client:
            client.attest()
            here.arrival()
        assert here.refusals.get(timeout=PATIENCE_S).check == ""


def test_more_than_may_wait_for_evidence_are_told(tmp_path: Path) -> None:
    with place(tmp_path, showing(), waiting_max=1) as here, contextlib.ExitStack() as all_:
        here.platform.free.clear()
        first = all_.enter_context(here.connect())
        first.tls.sendall(first.exchange(ClientSettings(judge=judge())).to_send())
        second = all_.enter_context(here.connect())
        second.tls.sendall(second.exchange(ClientSettings(judge=judge())).to_send())
        assert here.refused() == "C19"
        here.platform.free.set()
        assert here.attestation.counters.busy == 1


def test_tls_1_2_gets_no_evidence_and_is_told(tmp_path: Path) -> None:
    older = SSL.Context(SSL.TLS_CLIENT_METHOD)
    older.set_max_proto_version(SSL.TLS1_2_VERSION)
    with place(tmp_path, showing(), minimum="1.2") as here, here.connect(older) as client:
        client.tls.sendall(bytes([FrameType.OPEN]))
        kind, length = decode_header(client.tls.recv(4))
        content = b""
        while len(content) < length:
            content += client.tls.recv(length - len(content))
        refused = decode_body(kind, content)
        assert "C1" in repr(refused)
        assert here.refused() == "C1"
        assert here.platform.quotes == 0


def test_tls_1_2_without_an_exchange_is_for_ordinary_clients(tmp_path: Path) -> None:
    older = SSL.Context(SSL.TLS_CLIENT_METHOD)
    older.set_max_proto_version(SSL.TLS1_2_VERSION)
    with place(tmp_path, showing(), minimum="1.2") as here, here.connect(older) as client:
        client.tls.sendall(CONNECT)
        assert content_of(here.arrival(), len(CONNECT)) == CONNECT


@pytest.mark.parametrize("attested", [False, True])
def test_a_pre_shared_key_names_the_client_and_authorises_it(
    tmp_path: Path, attested: bool
) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    offer_key(context, DEVICE)
    keys = PreSharedKeys({b"device-7": DEVICE})
    door = showing(evidence_for=EvidenceFor.AUTHORISED)
    with place(tmp_path, door, keys=keys) as here, here.connect(context) as client:
        require_key(client.tls)
        if attested:
            client.attest(psk=True)
        client.tls.sendall(CONNECT)
        arrival = here.arrival()
        assert arrival.tls is not None
        assert key_identity(arrival.tls) == arrival.identity == "device-7"
        assert content_of(arrival, len(CONNECT)) == CONNECT


def test_a_door_without_attestation_waits_for_no_byte(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here:
        here.door.attestation = None
        with here.connect():
            assert here.arrival().attested is None


def test_a_new_configuration_is_measured_and_shown(tmp_path: Path) -> None:
    with place(tmp_path, showing()) as here:
        changed = bytes([33]) * 32
        assert here.attestation.measure(changed, datetime.now(UTC))
        assert not here.attestation.measure(changed, datetime.now(UTC))
        assert [each.configuration for each in here.platform.measured] == [
            WORKLOAD.configuration,
            changed,
        ]
        here.door.attestation = showing()(here.attestation)
        with here.connect() as client:
            peer = client.attest().peer
            assert peer is not None
            assert peer.claims["configuration"] == changed


def test_a_platform_that_cannot_quote_is_found_at_the_start() -> None:
    platform = Platform()
    platform.fails = True
    attestation = ServerAttestation(
        platform,
        module=WORKLOAD.module,
        runtime=WORKLOAD.runtime,
        quotes_per_s=1000,
        waiting_max=1,
        quote_timeout_s=1,
    )
    with pytest.raises(UnavailableError, match="smoke"):
        attestation.measure(WORKLOAD.configuration, datetime.now(UTC))
    with pytest.raises(UnavailableError, match="measured"):
        _ = attestation.identity


def test_a_client_without_certificate_reads_why(tmp_path: Path) -> None:
    """It has sent its first frame before it learns that TLS refuses it; were that left unread, the
    kernel would reset the connection and the alert would be lost."""
    with place(tmp_path, showing(), client_ca=True) as here:
        context = AttestedContext.of(
            Attestation(ClientSettings(judge=judge())), ClientTls(cafile=tmp_path / "ca.pem")
        )
        for _ in range(5):
            sock = socket.create_connection(("127.0.0.1", here.port), timeout=PATIENCE_S)
            with pytest.raises(UnavailablePeerError, match="certificate required"):
                context.wrap_socket(sock, server_hostname="127.0.0.1")
            assert here.refused() == ""
        assert here.platform.quotes == 0
