"""Judges a peer's evidence: origin by the verifiers, acceptability by a policy, if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from avow.channel.authenticator import PLATFORMS_MAX
from avow.errors import MalformedError
from avow.evidence.appraisal import AttestationResult
from avow.evidence.origin import Expectation, Verified, verify_evidence
from avow.evidence.roles import Verifier


class Appraiser(Protocol):
    """What a judge needs of a policy: `avow.policy.Policy` is one."""

    def require(self, verified: Verified) -> AttestationResult:
        """The result for accepted evidence. Raises `DeniedError` with the first finding."""


@dataclass(frozen=True, slots=True)
class Judged:
    """`verified` has a proven origin. `result` is the policy's word: None where no policy was
    asked, and then nothing says that the claims are acceptable."""

    verified: Verified
    result: AttestationResult | None


class Judge:
    """Verifiers by platform (1 to 16), and a policy or None. Immutable; may be shared by threads.

    Raises `MalformedError` for no verifier at all, or too many.
    """

    def __init__(self, verifiers: Mapping[str, Verifier], policy: Appraiser | None) -> None:
        if not 0 < len(verifiers) <= PLATFORMS_MAX:
            raise MalformedError(
                f"expected verifiers for 1 to {PLATFORMS_MAX} platforms, got {len(verifiers)}; "
                f"report this"
            )
        self._verifiers = dict(verifiers)
        self._policy = policy

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms whose evidence can be verified, sorted: what a request says."""
        return tuple(sorted(self._verifiers))

    @property
    def has_policy(self) -> bool:
        """False where evidence is verified and shown, but not judged."""
        return self._policy is not None

    def judge(self, evidence: bytes, expectation: Expectation, now: datetime) -> Judged:
        """Checks E1 to E9, then the policy. `now` needs a time zone.

        Raises `MalformedError`, `UntrustedError` or `UnavailableError` as `verify_evidence` does,
        and `DeniedError` when the policy refuses.
        """
        verified = verify_evidence(evidence, expectation, self._verifiers, now)
        return Judged(verified, None if self._policy is None else self._policy.require(verified))
