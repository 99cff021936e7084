"""The two parties of every platform, in the words of RFC 9334: who makes evidence, who verifies it.

Origin and acceptability are apart: a `Verifier` proves which hardware signed what, and says nothing
about whether that will do. That is for `avow.policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.evidence.vocabulary import VerifiedClaims


@dataclass(frozen=True, slots=True)
class Authenticated:
    """What a platform's signature proves.

    `bound` is what the hardware signed for its caller: the report data itself (64 bytes), or its
    SHA-256 (32 bytes) where a platform has no room for more. `measured` are digests (32 bytes) that
    the platform's own log holds, by the names `module`, `runtime` and `configuration`; they have to
    agree with avow's claims. `claims` has names of `avow.evidence.vocabulary` only.
    """

    platform: str
    bound: bytes
    binding: Literal["report data", "sha256"]
    claims: VerifiedClaims
    measured: Mapping[str, bytes] = field(default_factory=dict)


class Attester(Protocol):
    """The attesting side of a platform. Calls block (a TPM: 0.2 s) and come from one thread."""

    @property
    def platform(self) -> str:
        """The platform's name, such as "tpm"."""

    def measure(self, workload: Workload) -> None:
        """Extends what is about to run into a register, on platforms that have one.

        Called before the module runs, and again when the configuration changes. Raises
        `UnavailableError`.
        """

    def quote(self, report_data: ReportData) -> bytes:
        """The platform's report over `report_data`. Raises `UnavailableError`."""


def answers_at_once(attester: Attester) -> bool:
    """True for an attester that says so: its quotes wait for no device and no kernel, and its
    methods may be called from any thread."""
    return getattr(attester, "answers_at_once", False) is True


class Verifier(Protocol):
    """The verifying side of a platform: pure, with pinned roots and collateral given to it."""

    @property
    def platform(self) -> str:
        """The platform's name, such as "tpm"."""

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """Proves who signed `report` at the time `now` (with a time zone).

        Raises `MalformedError` for bytes that are no report, `UntrustedError` for a broken chain
        or signature, and `UnavailableError` when collateral is missing or out of date.
        """
