"""What `avow broker` and `avow run` wire for provisioning: the node's side of `avow provision`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from structlog.typing import FilteringBoundLogger

from avow.broker.config import Configuration
from avow.broker.measured_configuration import configuration_digest
from avow.broker.prepared import LoadJudge, Prepared, prepare
from avow.broker.service import Control, Controls, Failed
from avow.channel.attestation import ServerAttestation
from avow.channel.named_files import FilesReadOnce
from avow.channel.provisioning import (
    Observer,
    Offer,
    Provisioned,
    ProvisioningListener,
    ProvisioningSettings,
    Vouching,
    parse_owner,
    parse_place,
)
from avow.channel.provisioning_messages import Taken
from avow.cli.core_dumps import keep_out_of_core_dumps
from avow.cli.interrupts import thread_failures
from avow.errors import (
    AvowError,
    DeniedError,
    InUseError,
    MalformedError,
    StorageError,
    UnavailableError,
    UntrustedError,
)


@dataclass(frozen=True, slots=True)
class Unprovisioned:
    """A broker before it has its secrets: all that its evidence speaks of is there."""

    configuration: Configuration
    digest: bytes


def unprovisioned(configuration: Configuration) -> Unprovisioned:
    """Measures a configuration whose secrets are still to come. Raises `MalformedError` where
    nobody could attest the broker, and what `configuration_digest` raises."""
    if configuration.attestation.tee is None:
        raise MalformedError(
            "expected a platform with [provisioning], got none; name it with --tee or `tee` in "
            "[attestation], as only a node with evidence gets secrets"
        )
    return Unprovisioned(configuration, configuration_digest(configuration, FilesReadOnce()))


def settings_of(listen: str, owner: str) -> ProvisioningSettings:
    """From the texts of a configuration. Raises `MalformedError`."""
    host, port = parse_place(listen)
    return ProvisioningSettings(host, port, parse_owner(owner))


class ProvisioningLog:
    """An `Observer` that writes to a log: names, never contents."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log

    def refused(self, peer: str, reason: str, check: str) -> None:
        """See `Observer`."""
        self._log.warning("provisioning refused", peer=peer, reason=reason, check=check)

    def provisioned(self, peer: str, taken: Taken) -> None:
        """See `Observer`."""
        self._log.info("provisioned", peer=peer, keys=taken.keys, files=taken.files)


@dataclass(frozen=True, slots=True)
class Ready:
    """What a broker starts with. `offer` and `listener` are there where its secrets come from an
    owner."""

    prepared: Prepared
    offer: Offer | None = None
    listener: ProvisioningListener | None = None

    @property
    def provisioned(self) -> Provisioned | None:
        """What the owner has handed over; None where files have it all."""
        return None if self.offer is None else self.offer.provisioned

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Around all that can fail before the broker runs: then its owner is told how it went."""
        try:
            yield
        except AvowError as error:
            if self.offer is not None:
                self.offer.refused(error)
            if self.listener is not None:
                # The process ends now, and the owner shall read why.
                self.listener.stop()
            raise
        if self.offer is not None:
            self.offer.taken()


def await_secrets(
    starting: Prepared | Unprovisioned,
    attestation: ServerAttestation | None,
    controls: Controls,
    log: FilteringBoundLogger,
    *,
    load_judge: LoadJudge,
) -> Ready | None:
    """Waits for the owner, where there is one, until there are secrets that the configuration can
    be used with; None when asked to stop before. The owner's listener stays as long as the process.

    Raises `UnavailableError` where the address cannot be listened on, and what ended a thread.
    """
    if isinstance(starting, Prepared):
        return Ready(starting)
    if attestation is None:
        raise MalformedError("expected a platform with [provisioning], got none; report this")
    listener = _listening(starting, attestation, controls.put, log)
    while True:
        match controls.get():
            case Control.STOP:
                listener.stop()
                attestation.stop()
                log.info("stopped", reason="avow was stopped before the owner came")
                return None
            case Failed(error):
                raise error
            case Offer() as offer:
                prepared = _prepared(starting, offer, log, load_judge)
                if prepared is not None:
                    return Ready(prepared, offer, listener)
            case _:
                log.info("nothing to reload", reason="the owner has not come yet")


def _listening(
    waiting: Unprovisioned,
    attestation: ServerAttestation,
    offer: Callable[[Offer], None],
    log: FilteringBoundLogger,
) -> ProvisioningListener:
    table = waiting.configuration.provisioning
    if table is None:
        raise MalformedError("expected the table [provisioning], got none; report this")
    keep_out_of_core_dumps()
    attestation.start()
    listener = ProvisioningListener(
        settings_of(table.listen, table.owner),
        attestation,
        offer=offer,
        observer=ProvisioningLog(log),
        now=datetime.now(UTC),
    )
    listener.start()
    log.info("listening for its owner", place=listener.place, port=listener.port, owner=table.owner)
    return listener


def _prepared(
    waiting: Unprovisioned, offer: Offer, log: FilteringBoundLogger, load_judge: LoadJudge
) -> Prepared | None:
    """None where the offer was refused, and the next one is waited for."""
    try:
        prepared = prepare(
            waiting.configuration,
            datetime.now(UTC),
            load_judge=load_judge,
            read=offer.provisioned.reader(),
        )
        if prepared.digest != waiting.digest:
            # Somebody has changed a file after it was measured.
            raise DeniedError(
                f"expected the configuration sha256:{waiting.digest.hex()}, as the evidence says, "
                f"got sha256:{prepared.digest.hex()}; start avow again and provision it"
            )
    except AvowError as error:
        log.error("secrets cannot be used", reason=str(error))
        offer.refused(error)
        return None
    return prepared


def await_provisioning(
    settings: ProvisioningSettings,
    vouching: Vouching,
    *,
    usable: Callable[[Provisioned], None],
    observer: Observer,
    listening: Callable[[str, int], None],
) -> Provisioned:
    """Waits until the owner has handed over secrets that `usable` does not raise an `AvowError`
    for, and listens no longer. Where it raises one of the host's storage, no secrets would help:
    the owner reads it, and it is raised here.

    For programs: they start with what they get, and nothing is changed under them. `vouching`
    serves quotes already; `listening` is told the place and the port. Raises `UnavailableError`
    where the address cannot be listened on, and when a thread that listens has died.
    """
    keep_out_of_core_dumps()
    offers = _Offers()
    listener = ProvisioningListener(
        settings, vouching, offer=offers.put, observer=observer, now=datetime.now(UTC)
    )
    with thread_failures(offers.put):
        listener.start()
        try:
            listening(listener.place, listener.port)
            return _first_usable(offers, usable)
        finally:
            offers.end()
            listener.stop()


class _Offers:
    """What a program waits for, until it waits no longer: what comes then is refused, so that
    nobody waits for an answer that nobody gives."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Offer | threading.ExceptHookArgs] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False

    def put(self, offer: Offer | threading.ExceptHookArgs) -> None:
        """From any thread."""
        with self._lock:
            self._waiting.put(offer)
            if self._ended:
                self._refuse_all()

    def get(self) -> Offer | threading.ExceptHookArgs:
        """Waits for the next one."""
        return self._waiting.get()

    def end(self) -> None:
        """Refuses all others."""
        with self._lock:
            self._ended = True
            self._refuse_all()

    def _refuse_all(self) -> None:
        while not self._waiting.empty():
            offer = self._waiting.get()
            if isinstance(offer, Offer):
                offer.refused(
                    UnavailableError(
                        "expected a program that waits for its owner, got one that already has "
                        "its secrets; start it again to give it others"
                    )
                )


def _first_usable(offers: _Offers, usable: Callable[[Provisioned], None]) -> Provisioned:
    while True:
        offer = offers.get()
        if not isinstance(offer, Offer):
            # Nobody would come in any more, and the wait would never end.
            raise UnavailableError(
                f"expected to listen for the owner, got the end of a thread that does "
                f"({offer.exc_type.__name__}); start again"
            )
        try:
            usable(offer.provisioned)
        except AvowError as error:
            offer.refused(error)
            if isinstance(error, UntrustedError | InUseError | StorageError):
                raise
            continue
        offer.taken()
        return offer.provisioned
