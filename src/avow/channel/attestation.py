"""A server's own evidence: the platform, what runs on it, its key, and the issuer of evidence.

Made once a process by whoever wires rooms together. It is measured before the module runs and
whenever the configuration changes.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from avow.channel.attested_identity import AttestedIdentity, make_identity
from avow.channel.exchange import QuoteWanted
from avow.channel.issuer import Counters, Issuer
from avow.errors import AvowError, UnavailableError
from avow.evidence.claims import BOOT_ID_BYTES, NONCE_BYTES, Claims, Role, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.origin import DOCUMENT_BINDER
from avow.evidence.report_data import ReportData, batch
from avow.evidence.roles import Attester, answers_at_once

# How long a measurement waits for a quote that is under way.
MEASURE_PATIENCE_S: Final = 15.0


class OneAtATime:
    """An attester is used by one thread: the issuer's, or the one that measures."""

    def __init__(self, attester: Attester) -> None:
        self._attester = attester
        self._lock = threading.Lock()
        self.answers_at_once = answers_at_once(attester)
        self.platform = attester.platform

    @contextmanager
    def _alone(self, patience_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=patience_s):
            raise UnavailableError(
                f"expected the platform {self.platform} to finish its quote within "
                f"{patience_s:g} s, got none; check the device and the kernel's log"
            )
        try:
            yield
        finally:
            self._lock.release()

    def measure(self, workload: Workload) -> None:
        with self._alone(MEASURE_PATIENCE_S):
            self._attester.measure(workload)

    def quote(self, report_data: ReportData) -> bytes:
        with self._alone(-1):
            return self._attester.quote(report_data)


def try_platform(attester: Attester, workload: Workload, now: datetime) -> None:
    """One quote that nobody gets, so that a platform which cannot make any is found at the start.

    Raises `UnavailableError`.
    """
    claims = Claims(
        nonce=secrets.token_bytes(NONCE_BYTES),
        role=Role.DOCUMENT,
        workload=workload,
        key=b"",
        issued_at_s=int(now.timestamp()),
    )
    report_data, _ = batch([(claims, DOCUMENT_BINDER)])
    attester.quote(report_data)


class ServerAttestation:
    """`attester` and the digests (32 bytes each) of module and runtime, which do not change.

    `measure` comes before everything else, `start` before `quote`. `quotes_per_s`, `waiting_max`
    and `quote_timeout_s` are those of `Issuer`.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        module: bytes,
        runtime: bytes,
        quotes_per_s: float,
        waiting_max: int,
        quote_timeout_s: float,
    ) -> None:
        self._attester = OneAtATime(attester)
        self._module = module
        self._runtime = runtime
        self._boot_id = secrets.token_bytes(BOOT_ID_BYTES)
        self._identity: AttestedIdentity | None = None
        self._started = False
        self._issuer = Issuer(
            self._attester,
            quotes_per_s=quotes_per_s,
            waiting_max=waiting_max,
            quote_timeout_s=quote_timeout_s,
        )

    @property
    def platform(self) -> str:
        """The platform that vouches."""
        return self._attester.platform

    @property
    def identity(self) -> AttestedIdentity:
        """The key of this process and what it says of itself. Raises `UnavailableError` before the
        first measurement."""
        if self._identity is None:
            raise UnavailableError("expected a measured workload, got none; report this")
        return self._identity

    @property
    def counters(self) -> Counters:
        """The issuer's."""
        return self._issuer.counters

    def measure(self, configuration: bytes, now: datetime) -> bool:
        """Measures what runs, with this configuration's digest (32 bytes); False where nothing has
        changed since the last time. The first time the platform has to show that it can quote.
        Raises `UnavailableError`; then all stays as it was."""
        workload = Workload(self._module, self._runtime, configuration, self._boot_id)
        if self._identity is not None and self._identity.workload == workload:
            return False
        self._attester.measure(workload)
        if self._identity is None:
            try_platform(self._attester, workload, now)
            self._identity = make_identity(self.platform, workload, now)
        else:
            self._identity = self._identity.with_workload(workload)
        return True

    def start(self) -> None:
        """Begins to serve quotes, unless it does already."""
        if not self._started:
            self._started = True
            self._issuer.start()

    def stop(self) -> None:
        """Ends; whoever waits is told that there is no evidence."""
        self._issuer.stop()

    def quote(self, wanted: QuoteWanted, done: Callable[[Evidence | AvowError], None]) -> None:
        """As `Issuer.request`."""
        self._issuer.request(wanted.claims, wanted.binder, done)
