"""Rules as a tree, and the branches by which a tree can accept.

A rule accepts when all its constraints hold, all rules of `all` accept, one rule of `any` accepts
and the rule of `not` is false. A branch is one way to do that, laid out flat: so "what does this
policy demand of a platform" has an answer that can be checked when the policy is loaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from avow.errors import Finding, MalformedError
from avow.evidence.vocabulary import VerifiedClaims
from avow.policy import checks
from avow.policy.constraints import Constraint, OneOf, absent, judge

BRANCHES_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Rule:
    """One table of the file. `place` is "" at the top, else such as `any[2].all[1]`."""

    place: str
    constraints: tuple[Constraint, ...]
    all_of: tuple[Rule, ...] = ()
    any_of: tuple[Rule, ...] = ()
    excluded: Rule | None = None

    def claims(self) -> Iterator[Constraint]:
        """Every constraint in the tree."""
        yield from self.constraints
        for rule in (*self.all_of, *self.any_of):
            yield from rule.claims()
        if self.excluded is not None:
            yield from self.excluded.claims()

    def matches(self, claims: VerifiedClaims) -> bool:
        """True when the rule accepts."""
        return (
            all(not judge(each, claims).findings for each in self.constraints)
            and all(rule.matches(claims) for rule in self.all_of)
            and (not self.any_of or any(rule.matches(claims) for rule in self.any_of))
            and (self.excluded is None or not self.excluded.matches(claims))
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """One way to be accepted: all `constraints` hold and none of `exclusions` matches.

    `place` names the choices of `any` that led here; "" where there was none.
    """

    place: str
    constraints: tuple[Constraint, ...]
    exclusions: tuple[Rule, ...]

    def values_of(self, claim: str) -> frozenset[str] | None:
        """The texts that the branch leaves for a claim; None where it names none."""
        left: frozenset[str] | None = None
        for constraint in self.constraints:
            if constraint.claim == claim and isinstance(constraint.test, OneOf):
                values = frozenset(each for each in constraint.test.values if isinstance(each, str))
                left = values if left is None else left & values
        return left

    def judge_exclusions(self, claims: VerifiedClaims) -> Iterator[Finding]:
        """The findings of `not`: what is excluded, and claims whose absence leaves it open."""
        for rule in self.exclusions:
            missing = {
                each.claim: each.place for each in rule.claims() if claims.get(each.claim) is None
            }
            if missing:
                yield from (absent(claim, place) for claim, place in missing.items())
            elif rule.matches(claims):
                yield Finding(
                    checks.EXCLUDED,
                    expected=f"claims other than those of the rule `{rule.place}`",
                    actual="just those",
                    advice="ask the policy's owner, who excludes this peer",
                )


def branches_of(rule: Rule) -> tuple[Branch, ...]:
    """Every branch of a rule. Raises `MalformedError` when there are more than 1,024."""
    if _count(rule) > BRANCHES_MAX:
        raise MalformedError(
            f"expected at most {BRANCHES_MAX} ways to be accepted, got more by `any` inside "
            "of `all`; use lists of values where you can"
        )
    return tuple(_branches(rule))


def _count(rule: Rule) -> int:
    here = sum(_count(each) for each in rule.any_of) if rule.any_of else 1
    return min(here * prod(_count(each) for each in rule.all_of), BRANCHES_MAX + 1)


def _branches(rule: Rule) -> Iterator[Branch]:
    parts = [list(_branches(each)) for each in rule.all_of]
    if rule.any_of:
        parts.append([branch for each in rule.any_of for branch in _chosen(each)])
    own = () if rule.excluded is None else (rule.excluded,)
    for choice in itertools.product(*parts):
        yield Branch(
            ", ".join(each.place for each in choice if each.place),
            rule.constraints + tuple(c for each in choice for c in each.constraints),
            own + tuple(x for each in choice for x in each.exclusions),
        )


def _chosen(rule: Rule) -> Iterator[Branch]:
    for branch in _branches(rule):
        yield Branch(branch.place or rule.place, branch.constraints, branch.exclusions)
