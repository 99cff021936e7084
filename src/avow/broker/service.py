"""The running broker: listeners, the pump's thread, the core's events, reload and drain.

Threads: one or two acceptors (plain and TLS apart, so that handshakes never delay plain
connections), one that turns the pump and does nothing else, one that handles the core's events,
a few that check passwords. The caller's thread waits in `serve` for what shall happen next.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
import queue
import resource
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from structlog.typing import FilteringBoundLogger

from avow import __version__
from avow.broker.acl import EVERYTHING_ALLOWED
from avow.broker.authentication import Authenticator, Origin, shown
from avow.broker.commands import (
    CommandKind,
    acl_command,
    configuration_changes_command,
    drain_command,
    response_prefix_command,
    settings_command,
    version_text_command,
    web_hosts_command,
    web_origins_command,
)
from avow.broker.config import Configuration
from avow.broker.doors import CertificateRenewal, door_attestation
from avow.broker.events import (
    PROTOCOLS,
    Action,
    AuthRequest,
    Cause,
    CommandFailed,
    Connected,
    Disconnected,
    Drained,
    EndedBy,
    Event,
    Refused,
    decode_events,
)
from avow.broker.journal import Journal
from avow.broker.metrics import GAUGES, CountersCollector, MetricsServer
from avow.broker.origins import Origins
from avow.broker.prepared import LoadJudge, Prepared, PreparedListener, prepare
from avow.broker.pump import Attested, CoreTrapError, Pump, Transport
from avow.channel.acceptor import Acceptor, Arrival, Door, Refusal, open_listeners
from avow.channel.attestation import ServerAttestation
from avow.channel.issuer import Counters
from avow.channel.named_files import read_named_file
from avow.channel.provisioning import Offer, Provisioned
from avow.errors import AvowError, DeniedError, UnavailableError
from avow.sandbox.engine import LoadedCore
from avow.sealing.keys import is_bound

# Turns of the pump whose events may wait for their thread; beyond, the pump waits.
EVENT_BATCHES_MAX = 10_000
# How long a stop waits for a thread. All are daemons: one that hangs does not keep the process.
STOP_TIMEOUT_S = 10.0
_ENDED_BY = {EndedBy.CLIENT: "client", EndedBy.BROKER: "broker", EndedBy.NETWORK: "network"}
_REFUSED = {
    Action.PUBLISH: "publish refused",
    Action.SUBSCRIBE: "subscription refused",
    Action.WILL: "connection refused for its will",
    Action.KEPT_WILL: "will refused",
}


class Control(enum.Enum):
    """What a signal or a thread tells `Service.serve`."""

    RELOAD = enum.auto()
    STOP = enum.auto()
    DRAINED = enum.auto()
    PUMP_STOPPED = enum.auto()


@dataclass(frozen=True, slots=True)
class Failed:
    """A thread of the service cannot go on."""

    error: BaseException


Controls = queue.SimpleQueue[Control | Failed | Offer]


class Service:
    """Made, then `open`ed (which raises what a configuration can be wrong in), then `serve`d."""

    def __init__(
        self,
        prepared: Prepared,
        core: LoadedCore,
        *,
        reread: Callable[[], Configuration],
        controls: Controls,
        log: FilteringBoundLogger,
        attestation: ServerAttestation | None = None,
        load_judge: LoadJudge | None = None,
        provisioned: Provisioned | None = None,
        journal: Journal | None = None,
        log_counters: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`reread` gives the configuration as it is now, for a reload. `attestation` has been
        measured with the digest of `prepared`; `load_judge` reads policies for clients. With
        `provisioned` secrets come from there, and the configuration stays as the owner saw it.
        `journal` is read back here; its store stays the caller's, who closes it afterwards.
        `log_counters` are shown beside the others."""
        configuration = prepared.configuration
        self._prepared = prepared
        self._core = core
        self._reread = reread
        self._controls = controls
        self._log = log
        self._attestation = attestation
        self._load_judge = load_judge
        self._provisioned = provisioned
        self._log_counters = log_counters
        self._memory_budget_bytes = configuration.limits.memory_budget_bytes
        self._certificates = CertificateRenewal(attestation, log)
        self._pump = Pump(
            core,
            entropy=secrets.token_bytes(32),
            idle_timeout_s=configuration.idle_timeout_s,
            drain_timeout_s=configuration.drain_timeout_s,
            journal=journal,
        )
        # Another configuration than this lets nobody in, and while one takes another's place (None)
        # none does: changed and read, with the pump told of both in this order, under the lock.
        self._admission = threading.Lock()
        self._measured: bytes | None = prepared.digest
        self._origins = Origins()
        self._authenticator = Authenticator(
            configuration.login,
            prepared.users,
            send=self._pump.command,
            origin_of=self._origins.of,
            log=log,
        )
        self._handshakes: Counter[str] = Counter()
        self._refused_checks: Counter[str] = Counter()
        self._doors: list[tuple[PreparedListener, Door]] = []
        self._acceptors: list[Acceptor] = []
        self._metrics: MetricsServer | None = None
        self._batches: queue.Queue[bytes | None] = queue.Queue(EVENT_BATCHES_MAX)
        self._turning = threading.Thread(target=self._turn, name="pump", daemon=True)
        self._handling = threading.Thread(target=self._handle_batches, name="events", daemon=True)

    def open(self) -> list[str]:
        """Opens the listeners and the metrics port; nothing is accepted before `serve`.

        Returns the listeners' URLs with their real ports. Raises `UnavailableError`.
        """
        try:
            for prepared in self._prepared.listeners:
                self._open_listener(prepared)
            self._open_metrics()
        except AvowError:
            self._close_ports()
            raise
        return [str(door.address) for _, door in self._doors]

    def serve(self) -> None:
        """Runs until a stop has been asked for and the connections are drained.

        Raises `CoreTrapError`, or whatever else ended a thread that the broker cannot do without.
        """
        try:
            self._start()
            while True:
                match self._controls.get():
                    case Control.RELOAD:
                        self._reload(self._provisioned)
                    case Offer() as offer:
                        self._reprovision(offer)
                    case Control.STOP:
                        self._drain()
                        return
                    case Failed(error):
                        self._log_failure(error)
                        raise error
                    case Control.PUMP_STOPPED:
                        raise UnavailableError(
                            "expected the pump to keep running, got its end; see the log "
                            "above, and start avow again"
                        )
                    case Control.DRAINED:
                        pass  # of a drain that was not ours
        finally:
            self._stop()

    def close(self) -> None:
        """Gives back what `open` took, where `serve` was never reached."""
        self._close_ports()
        self._pump.close()

    def _open_listener(self, prepared: PreparedListener) -> None:
        targets = [(target.family, target.host) for target in prepared.targets]
        for listening in open_listeners(targets, prepared.address.port, prepared.address):
            door = Door(
                listening,
                prepared.address.at_port(listening.getsockname()[1]),
                context=prepared.context,
                identity_source=prepared.listener.use_identity_as,
                allow_anonymous=prepared.allow_anonymous,
                attestation=door_attestation(prepared, self._attestation),
                configuration=self._named_in_evidence(self._prepared),
            )
            self._doors.append((prepared, door))

    def _open_metrics(self) -> None:
        settings = self._prepared.configuration.metrics
        if settings is not None:
            collector = CountersCollector(
                self._counters,
                refused_checks=lambda: dict(self._refused_checks),
                gauges=GAUGES,
                module_sha256=self._core.sha256.hex(),
                version=__version__,
            )
            self._metrics = MetricsServer(settings, collector)

    def _start(self) -> None:
        raise_descriptor_limit(self._log)
        for warning in self._prepared.warnings:
            self._log.warning(warning)
        self._send_settings(self._prepared)
        self._pump.command(version_text_command(f"avow version {__version__}"))
        self._authenticator.start()
        self._turning.start()
        self._handling.start()
        if self._attestation is not None:
            self._attestation.start()
            self._certificates.start(
                self._doors,
                self._prepared.digest,
                self._prepared.configuration.attestation.certificate_renewal_s,
            )
        timeout_s = self._prepared.configuration.handshake_timeout_s
        for encrypted in (False, True):
            doors = [door for _, door in self._doors if door.address.scheme.encrypted is encrypted]
            if doors:
                acceptor = Acceptor(
                    doors,
                    admit=self._admit,
                    refused=self._refused_handshake,
                    exhausted=self._exhausted,
                    handshake_timeout_s=timeout_s,
                    name="TLS acceptor" if encrypted else "acceptor",
                )
                acceptor.start()
                self._acceptors.append(acceptor)
        for _, door in self._doors:
            self._log.info(
                "listening",
                url=str(door.address),
                port=door.address.port,
                anonymous=door.allow_anonymous,
                **_described(door),
            )
        if self._metrics is not None:
            self._log.info("metrics", url=self._metrics.url)

    def _send_settings(self, prepared: Prepared) -> None:
        configuration = prepared.configuration
        # The core's memory was bounded at the start: what it may use cannot grow beyond that.
        budget_bytes = min(configuration.limits.memory_budget_bytes, self._memory_budget_bytes)
        limits = configuration.limits.model_copy(update={"memory_budget_bytes": budget_bytes})
        self._pump.command(settings_command(limits.settings()))
        self._pump.command(response_prefix_command(configuration.response_prefix))
        self._pump.command(web_origins_command(configuration.web_origins))
        named = [each.address.host for each in prepared.listeners]
        self._pump.command(web_hosts_command([*configuration.web_hosts, *named]))
        entries = EVERYTHING_ALLOWED if prepared.acl is None else prepared.acl
        self._pump.command(acl_command(entries))

    def _turn(self) -> None:
        try:
            while (batch := self._pump.run()) is not None:
                if batch:
                    self._batches.put(batch)
        except AvowError as error:
            self._controls.put(Failed(error))
        else:
            self._controls.put(Control.PUMP_STOPPED)

    def _handle_batches(self) -> None:
        try:
            while (batch := self._batches.get()) is not None:
                for event in decode_events(batch):
                    self._handle(event)
        except AvowError as error:
            self._controls.put(Failed(error))
            # The pump must not wait for room in the queue for ever.
            while self._batches.get() is not None:
                pass

    def _handle(self, event: Event) -> None:
        match event:
            case AuthRequest():
                self._authenticator.request(event)
            case Connected():
                self._log.info(
                    "client connected",
                    client=shown(event.client),
                    user=shown(event.user),
                    peer=self._origins.of(event.connection).peer,
                    protocol=PROTOCOLS[event.protocol],
                    session_present=event.session_present,
                    keep_alive_s=event.keep_alive_s,
                )
            case Disconnected():
                self._authenticator.ended(event.connection)
                peer = self._origins.forget(event.connection).peer
                self._log_disconnected(event, peer)
            case Refused():
                self._log_refused(event)
            case CommandFailed(command=CommandKind.AUTH_RESULT):
                # The client had left before its answer came.
                self._log.debug("login answer not needed", reason=event.text)
            case CommandFailed(command=CommandKind.ACL):
                # Everything is allowed until there are rules, and the old ones are not the wanted.
                raise AvowError(
                    f"expected the core to take the access rules, got: {event.text}; use "
                    "fewer rules, or raise limits.memory_budget_bytes"
                )
            case CommandFailed():
                self._log.error("command failed", command=event.command, reason=event.text)
            case Drained():
                self._controls.put(Control.DRAINED)

    def _log_refused(self, event: Refused) -> None:
        self._log.info(
            _REFUSED[event.action],
            client=shown(event.client),
            user=shown(event.user),
            peer=self._origins.of(event.connection).peer,
            topic=shown(event.topic),
            code=f"0x{event.code:02x}",
            rule=_rule_text(event),
            **_unless_zero(unreported_before=event.unreported),
        )

    def _log_disconnected(self, event: Disconnected, peer: str) -> None:
        refused = event.by is EndedBy.BROKER and not event.accepted and not event.told
        # Whoever comes and goes without a CONNECT is a port scan or a health check, and who was
        # refused by us has a line already: not worth one at the level of the others.
        write = self._log.info if event.accepted or refused else self._log.debug
        write(
            "connection refused" if refused else "client disconnected",
            client=shown(event.client),
            user=shown(event.user),
            peer=peer,
            by=_ENDED_BY[event.by],
            code=f"0x{event.code:02x}",
            reason=event.text,
            **_unless_zero(unreported_refusals=event.refusals),
        )

    def _admit(self, arrival: Arrival) -> None:
        door = arrival.door
        transport = Transport.WEBSOCKET if door.address.scheme.websocket else Transport.MQTT
        origin = Origin(arrival.peer, door.allow_anonymous)
        attested = None
        if arrival.attested is not None:
            attested = Attested(arrival.attested.tier.rank, arrival.attested.module)
            self._handshakes["clients_attested"] += 1
            module = arrival.attested.module
            self._log.info(
                "client attested",
                peer=arrival.peer,
                platform=arrival.attested.platform,
                tier=arrival.attested.tier.label,
                module="none proven" if module is None else f"sha256:{module.hex()}",
            )
        shown = arrival.shown
        if shown is None and arrival.tls is not None:
            shown = self._certificates.shown_by(arrival.tls.get_context())
        try:
            with self._admission:
                if {arrival.configuration, shown} - {None, self._measured}:
                    raise UnavailableError("the configuration has changed meanwhile")
                self._origins.note(
                    origin,
                    lambda: self._pump.add(
                        arrival.fd,
                        transport=transport,
                        allow_anonymous=door.allow_anonymous,
                        identity=arrival.identity,
                        attested=attested,
                        tls=arrival.tls,
                    ),
                )
        except UnavailableError as error:
            os.close(arrival.fd)
            self._refused_handshake(Refusal(door, arrival.peer, str(error)))

    def _refused_handshake(self, refusal: Refusal) -> None:
        url = str(refusal.door.address)
        if refusal.check:
            self._refused_checks[refusal.check] += 1
            self._log.warning(
                "attestation refused",
                url=url,
                peer=refusal.peer,
                check=refusal.check,
                reason=refusal.reason,
            )
            return
        self._handshakes["handshakes_refused"] += 1
        self._log.info("handshake refused", url=url, peer=refusal.peer, reason=refusal.reason)

    def _exhausted(self, reason: str) -> None:
        self._handshakes["accept_pauses"] += 1
        self._log.error("accepting paused", reason=reason, advice="raise the limit of open files")

    def _counters(self) -> dict[str, int]:
        evidence = Counters() if self._attestation is None else self._attestation.counters
        return {
            **self._pump.stats(),
            **self._log_counters(),
            "clients_attested": self._handshakes["clients_attested"],
            "attestations_refused": self._refused_checks.total(),
            "quotes": evidence.quotes,
            "quote_requests": evidence.requests,
            "quote_failures": evidence.failures,
            "quote_requests_waiting": evidence.waiting,
            "quote_requests_refused_busy": evidence.busy,
            "handshakes_refused": self._handshakes["handshakes_refused"],
            "accept_pauses": self._handshakes["accept_pauses"],
            "login_failures": self._authenticator.failures,
            "logins_refused_busy": self._authenticator.busy,
        }

    def _reprovision(self, offer: Offer) -> None:
        refusal = self._reload(offer.provisioned)
        if refusal is None:
            offer.taken()
        else:
            offer.refused(refusal)

    def _named_in_evidence(self, prepared: Prepared) -> bytes | None:
        """The digest of a configuration, where evidence names it."""
        return None if self._attestation is None else prepared.digest

    def _end_all(self) -> None:
        """Whoever the old configuration admitted ends before the new one is in force: evidence of
        the one says nothing of who came in by the other. Until all of the new one is in force,
        nobody comes in by either."""
        with self._admission:
            self._measured = None
            self._pump.command(configuration_changes_command())

    def _reload(self, provisioned: Provisioned | None) -> AvowError | None:
        """Certificates, CRLs, users, rules and limits. Connections stay, even revoked ones, unless
        the broker is attested and what its evidence names has changed.

        None when all is in use; otherwise why all is as it was.
        """
        try:
            fresh = prepare(
                self._reread(),
                datetime.now(UTC),
                load_judge=self._load_judge,
                read=read_named_file if provisioned is None else provisioned.reader(),
            )
            kept = _kept_for(self._prepared.configuration, provisioned)
            if kept and fresh.digest != self._prepared.digest:
                raise DeniedError(
                    f"expected the configuration sha256:{self._prepared.digest.hex()}, to which "
                    f"{kept[0]}, got sha256:{fresh.digest.hex()}; start avow again {kept[1]}"
                )
            waiting = needs_restart(self._prepared.configuration, fresh.configuration)
            if waiting and self._attestation is not None:
                # Half of a new configuration would be neither the one that the evidence names nor
                # the one before.
                raise DeniedError(
                    "expected changes that take effect together, as the configuration is "
                    f"attested, got some that need a restart ({', '.join(waiting)}); start "
                    "avow again"
                )
            measured = self._attestation is not None and self._attestation.measure(
                fresh.digest, datetime.now(UTC)
            )
        except AvowError as error:
            self._log.error("reload refused", reason=str(error), still="the old configuration")
            return error
        if measured:
            self._end_all()
        for warning in fresh.warnings:
            self._log.warning(warning)
        by_url = {prepared.listener.url: prepared for prepared in fresh.listeners}
        for old, door in self._doors:
            # A listener that stays as it was still shows the new configuration's evidence.
            new = by_url.get(old.listener.url, old)
            door.attestation = door_attestation(new, self._attestation)
            if new is not old:
                if new.context is not None:
                    door.context = new.context
                door.identity_source = new.listener.use_identity_as
                door.allow_anonymous = new.allow_anonymous
            # Last: a handshake that began with any of the old ones is the old one's.
            door.configuration = self._named_in_evidence(fresh)
        for acceptor in self._acceptors:
            acceptor.set_handshake_timeout(fresh.configuration.handshake_timeout_s)
        self._authenticator.reload(fresh.configuration.login, fresh.users)
        self._send_settings(fresh)
        if measured:
            with self._admission:
                self._measured = fresh.digest
        # Last, as a platform may take long to quote.
        doors = [
            (by_url.get(prepared.listener.url, prepared), door) for prepared, door in self._doors
        ]
        self._certificates.renew_now(doors, fresh.digest)
        if waiting:
            self._log.warning("needs a restart", keys=waiting)
        self._prepared, self._provisioned = fresh, provisioned
        if measured:
            self._log.info("measured", configuration_sha256=fresh.digest.hex())
        self._log.info(
            "reloaded",
            users=len(fresh.users) if fresh.users is not None else 0,
            acl_rules=len(fresh.acl) if fresh.acl is not None else 0,
        )
        return None

    def _drain(self) -> None:
        """No new connections; the old ones get DISCONNECT 0x8B and time to be flushed."""
        timeout_s = self._prepared.configuration.drain_timeout_s
        self._log.info("draining", timeout_s=timeout_s)
        for acceptor in self._acceptors:
            acceptor.stop()
        self._acceptors.clear()
        with contextlib.suppress(UnavailableError):
            # Where it has ended already, why is among the controls.
            self._pump.command(drain_command())
        while True:
            try:
                control = self._controls.get(timeout=timeout_s)
            except queue.Empty:
                self._log.warning("drain took too long", timeout_s=timeout_s)
                return
            match control:
                case Control.DRAINED | Control.PUMP_STOPPED:
                    return
                case Control.STOP:
                    self._log.warning("drain cut short", reason="asked to stop again")
                    return
                case Failed(error):
                    self._log_failure(error)
                    raise error
                case Control.RELOAD:
                    pass  # too late
                case Offer() as offer:
                    offer.refused(
                        UnavailableError(
                            "expected the broker to keep running, got its end; see the log above, "
                            "and start avow again"
                        )
                    )

    def _stop(self) -> None:
        for acceptor in self._acceptors:
            acceptor.stop()
        self._acceptors.clear()
        self._certificates.stop()
        if self._attestation is not None:
            self._attestation.stop()
        self._authenticator.stop()
        self._pump.stop()
        # A start that failed has left threads that never ran.
        if self._turning.ident is not None:
            self._turning.join(STOP_TIMEOUT_S)
        with contextlib.suppress(queue.Full):
            # Full for so long: their thread is dead, and nobody takes them any more.
            self._batches.put(None, timeout=STOP_TIMEOUT_S)
        if self._handling.ident is not None:
            self._handling.join(STOP_TIMEOUT_S)
        self._close_ports()
        self._pump.close()
        self._log.info("stopped")

    def _close_ports(self) -> None:
        for _, door in self._doors:
            door.listening.close()
        self._doors.clear()
        if self._metrics is not None:
            self._metrics.stop()
            self._metrics = None

    def _log_failure(self, error: BaseException) -> None:
        """Loud, and with what is needed to find the same failure again from the journal."""
        if isinstance(error, CoreTrapError):
            journal = self._pump.journal_snapshot()
            self._log.critical(
                "the core trapped",
                trap=str(error),
                module_sha256=self._core.sha256.hex(),
                journal_bytes=len(journal),
                journal_sha256=hashlib.sha256(journal).hexdigest(),
            )
        else:
            self._log.critical("the broker cannot go on", reason=str(error))


def _rule_text(event: Refused) -> str:
    """The access rule as the file counts, or what else decided."""
    match event.cause:
        case Cause.RULE:
            return f"acl[{event.rule}]"
        case Cause.NO_RULE:
            return "no access rule fits"
        case Cause.RESERVED_TOPIC:
            return "$SYS is the broker's own"
        case _:
            return "none; the code says why"


def _unless_zero(**counts: int) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _described(door: Door) -> dict[str, object]:
    """What the log says about a listener's attestation."""
    attestation = door.attestation
    if attestation is None:
        return {}
    return {
        "evidence": attestation.identity is not None,
        "client_evidence": attestation.settings.ask_clients.value,
        "unattested_clients": attestation.unattested_clients,
    }


def _kept_for(
    configuration: Configuration, provisioned: Provisioned | None
) -> tuple[str, str] | None:
    """What binds a broker that runs to its measured configuration, and how it gets another one;
    None where nothing does. Else whoever writes its file could open up what another start could
    not."""
    if provisioned is not None:
        return "the owner has handed secrets", "and provision it"
    if configuration.store is not None and is_bound(configuration.store.key):
        return "the key of the store is bound", "with another key of the store, see `--also-key`"
    return None


def needs_restart(old: Configuration, new: Configuration) -> list[str]:
    """The keys that have changed and are read at the start only."""
    keys = [
        name
        for name in (
            "idle_timeout_s",
            "drain_timeout_s",
            "log",
            "metrics",
            "attestation",
            "provisioning",
            "store",
        )
        if getattr(old, name) != getattr(new, name)
    ]
    if sorted(listener.url for listener in old.listeners) != sorted(
        listener.url for listener in new.listeners
    ):
        keys.append("listeners")
    made = {listener.url: listener.ra_tls for listener in old.listeners}
    if any(listener.ra_tls != made.get(listener.url, False) for listener in new.listeners):
        keys.append("listeners.ra_tls")
    if old.limits.persist_sessions != new.limits.persist_sessions:
        keys.append("limits.persist_sessions")
    if old.limits.memory_budget_bytes < new.limits.memory_budget_bytes:
        keys.append("limits.memory_budget_bytes")
    if old.login.workers != new.login.workers:
        keys.append("login.workers")
    return keys


def raise_descriptor_limit(log: FilteringBoundLogger) -> None:
    """Connections are bounded by descriptors, so the process takes all that it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            log.warning("the limit of open files stays", limit=soft)
