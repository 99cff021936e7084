"""What a listener's configuration means for its door: attestation, certificates with evidence."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from OpenSSL import SSL
from structlog.typing import FilteringBoundLogger

from avow.broker.prepared import PreparedListener
from avow.channel.acceptor import Door
from avow.channel.attestation import ServerAttestation
from avow.channel.exchange import EvidenceFor
from avow.channel.opening import DoorAttestation
from avow.channel.ra_tls import make_credential
from avow.errors import AvowError

# A certificate outlives its successor's birth, so that connections under way keep what they have.
LIFETIME_RENEWALS: Final = 2

Doors = Sequence[tuple[PreparedListener, Door]]


def door_attestation(
    prepared: PreparedListener, attestation: ServerAttestation | None
) -> DoorAttestation | None:
    """None where nobody looks at the first byte: without TLS, without a platform and a policy."""
    listener = prepared.listener
    if not listener.address.scheme.encrypted:
        return None
    if attestation is None and prepared.judge is None:
        return None
    return DoorAttestation(
        evidence_for=EvidenceFor(listener.evidence_for),
        unattested_clients=listener.unattested_clients,
        require_client_evidence=listener.require_client_evidence,
        judge=prepared.judge,
        identity=None if attestation is None else attestation.identity,
        quote=None if attestation is None else attestation.quote,
    )


class CertificateRenewal:
    """Makes the certificates of listeners with `ra_tls`, at the start, in time, after a reload."""

    def __init__(self, attestation: ServerAttestation | None, log: FilteringBoundLogger) -> None:
        self._attestation = attestation
        self._log = log
        self._doors: Doors = ()
        self._configuration = b""
        self._interval_s = 0.0
        self._guard = threading.Lock()
        self._shown: weakref.WeakKeyDictionary[SSL.Context, bytes] = weakref.WeakKeyDictionary()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew_in_time, name="renewal", daemon=True)

    def start(self, doors: Doors, configuration: bytes, interval_s: float) -> None:
        """The first certificates; raises `UnavailableError` when there is no evidence for them.

        `configuration` is the digest (32 bytes) of the one that the doors are of."""
        self._interval_s = interval_s
        self._replace(doors, configuration)
        if self._make():
            self._thread.start()

    def renew_now(self, doors: Doors, configuration: bytes) -> None:
        """After a reload. What cannot be renewed keeps its old certificate, loudly."""
        self._replace(doors, configuration)
        self._renew()

    def shown_by(self, context: SSL.Context) -> bytes | None:
        """The digest of the configuration (32 bytes) that the evidence in the certificate of this
        context names, if it has some."""
        return self._shown.get(context)

    def stop(self) -> None:
        """Ends the renewals."""
        self._stopping.set()

    def _renew_in_time(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._renew()

    def _replace(self, doors: Doors, configuration: bytes) -> None:
        # One renewal is made of the one or of the other.
        with self._guard:
            self._doors, self._configuration = doors, configuration

    def _renew(self) -> None:
        try:
            self._make()
        except AvowError as error:
            self._log.error("certificate not renewed", reason=str(error), still="the old one")

    def _make(self) -> int:
        """Gives each door with `ra_tls` a fresh certificate; how many there are."""
        count = 0
        with self._guard:
            for prepared, door in self._doors:
                if prepared.context_with is None or self._attestation is None:
                    continue
                credential = make_credential(
                    self._attestation,
                    datetime.now(UTC),
                    timedelta(seconds=self._interval_s * LIFETIME_RENEWALS),
                )
                context = prepared.context_with(credential)
                # Not what the evidence names: while a reload is under way it may name the new one,
                # and whom this context admits is still the old one's matter.
                self._shown[context] = self._configuration
                door.context = context
                count += 1
                self._log.info(
                    "certificate with evidence",
                    url=str(door.address),
                    until=credential.certificate.not_valid_after_utc.isoformat(),
                )
        return count
