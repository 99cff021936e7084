"""A policy: rules over verified claims, and the judgement in the shape of an attestation result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from avow.errors import DeniedError, Finding
from avow.evidence.appraisal import AttestationResult
from avow.evidence.origin import Verified
from avow.evidence.vocabulary import VerifiedClaims
from avow.policy import checks, trust
from avow.policy.constraints import Constraint, judge, shown
from avow.policy.rules import Branch


@dataclass(frozen=True, slots=True)
class PlatformBranch:
    """One way to be accepted, for one platform."""

    platform: str
    branch: Branch


@dataclass(frozen=True, slots=True)
class Policy:
    """What is acceptable. Made by `avow.policy.policy_file` only, which refuses incomplete ones.

    `policy_id` is "sha256:" and the digest of the file; `branches` is not empty.
    """

    name: str
    policy_id: str
    unsafe_simulated: bool
    branches: tuple[PlatformBranch, ...]

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms that it can accept, in the order of the file."""
        return tuple(dict.fromkeys(each.platform for each in self.branches))

    def appraise(self, verified: Verified) -> AttestationResult:
        """The judgement. A refusal is a result with findings; nothing is raised.

        Where several rules are for the evidence's platform, the findings are those of the rule
        that came nearest.
        """
        claims = verified.claims
        barred = tuple(self._barred(verified))
        if barred:
            return self._result(verified, barred, trust.Tally.refused(barred))
        best: tuple[tuple[Finding, ...], trust.Tally] | None = None
        for each in self.branches:
            if each.platform != verified.platform:
                continue
            findings, tally = _judge_branch(each.branch, claims)
            if best is None or _rank(findings, tally) < _rank(*best):
                best = findings, tally
        if best is None:
            raise AssertionError("a platform that is not barred has a branch")
        return self._result(verified, *best)

    def require(self, verified: Verified) -> AttestationResult:
        """The result of acceptable evidence. Raises `DeniedError` with the first finding."""
        result = self.appraise(verified)
        if not result.accepted:
            raise denied(result)
        return result

    def _barred(self, verified: Verified) -> Iterator[Finding]:
        """What no rule can make good."""
        said = verified.claims.get("platform")
        if verified.platform not in self.platforms or said != verified.platform:
            yield Finding(
                checks.PLATFORM,
                expected=f"evidence from {' or '.join(self.platforms)}",
                actual=f"evidence from {shown(verified.platform)}"
                + ("" if said == verified.platform else ", whose claims name another"),
                advice="connect to one of these platforms, or add a rule for this one",
            )
        simulated = verified.platform == "simulated" or bool(verified.claims.get("simulated"))
        if simulated and not (self.unsafe_simulated and verified.platform == "simulated"):
            yield Finding(
                checks.SIMULATED,
                expected="evidence that hardware signed",
                actual="evidence made by software, which proves nothing",
                advice="run it in a TEE; for a trial the policy can say `unsafe_simulated = true`",
            )

    def _result(
        self, verified: Verified, findings: tuple[Finding, ...], tally: trust.Tally
    ) -> AttestationResult:
        return AttestationResult(
            tier=trust.tier(tally, accepted=not findings),
            vector=tally.vector(),
            policy_id=self.policy_id,
            platform=verified.platform,
            nonce=verified.nonce,
            appraised_at=verified.verified_at,
            claims=verified.claims,
            findings=findings,
        )


def denied(result: AttestationResult) -> DeniedError:
    """The error for a refusal, by its first finding; says how many more there are."""
    first = result.findings[0]
    more = len(result.findings) - 1
    advice = first.advice + (f" ({more} more findings after this)" if more else "")
    error = DeniedError.at(first.check, expected=first.expected, actual=first.actual, advice=advice)
    error.finding = first
    return error


def _judge_branch(
    branch: Branch, claims: VerifiedClaims
) -> tuple[tuple[Finding, ...], trust.Tally]:
    tally = trust.Tally()
    findings: list[Finding] = []
    treated: dict[str, list[Constraint]] = {}
    for constraint in branch.constraints:
        judgement = judge(constraint, claims)
        findings += judgement.findings
        treated.setdefault(constraint.claim, []).append(constraint)
        if judgement.findings:
            tally.refuse(constraint.claim)
        elif judgement.by_grace:
            tally.warn(constraint.claim)
    for claim, constraints in treated.items():
        if all(each.lenient for each in constraints):
            tally.warn(claim)
        else:
            tally.affirm(claim, claims.get(claim))
    excluded = tuple(branch.judge_exclusions(claims))
    if excluded:
        for rule in branch.exclusions:
            for constraint in rule.claims():
                tally.refuse(constraint.claim)
    return (*findings, *excluded), tally


def _rank(findings: tuple[Finding, ...], tally: trust.Tally) -> tuple[int, int]:
    """Lower is better: fewer findings, then the better tier."""
    return len(findings), -trust.tier(tally, accepted=not findings).rank
