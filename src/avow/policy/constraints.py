"""What one key of a rule demands of one claim, and the judgement over it.

A constraint never raises over claims, whatever they are: a value of another type than the
vocabulary's is a value that nobody named.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from avow.errors import Check, Finding
from avow.evidence.vocabulary import ClaimValue, VerifiedClaims, is_value_of, kind_of
from avow.policy import checks

DAY_S: Final = 86400
# The claim by which a grace period is counted.
GRACE_CLAIM: Final = "tcb.date_age_s"
_SHOWN_MAX: Final = 140


@dataclass(frozen=True, slots=True)
class Anything:
    """The word "any", or a key that starts with `unsafe`: the claim is not looked at."""

    word: str = '"any"'

    def words(self) -> str:
        """What it demands, for people."""
        return f"is not looked at ({self.word})"


@dataclass(frozen=True, slots=True)
class Grace:
    """Values that are good enough for so many days after the date of the TCB level."""

    values: tuple[str, ...]
    days: int

    def words(self) -> str:
        """What it demands, for people."""
        return f"{_listed(self.values)} until {self.days} days after the date of the TCB level"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of `values`, which is not empty."""

    values: tuple[ClaimValue, ...]
    grace: Grace | None = None

    def words(self) -> str:
        """What it demands, for people."""
        text = f"is {_listed(self.values)}" if self.values else "is none without grace"
        return f"{text}, or {self.grace.words()}" if self.grace is not None else text


@dataclass(frozen=True, slots=True)
class Between:
    """A number with a lowest or a highest value, or both."""

    minimum: int | None
    maximum: int | None

    def words(self) -> str:
        """What it demands, for people."""
        if self.minimum is None:
            return f"is at most {self.maximum}"
        if self.maximum is None:
            return f"is at least {self.minimum}"
        return f"is from {self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True)
class Members:
    """A list of texts: exactly these, none but these, all of these, none of these."""

    exactly: frozenset[str] | None = None
    subset_of: frozenset[str] | None = None
    all_of: frozenset[str] = frozenset()
    none_of: frozenset[str] = frozenset()
    grace: Grace | None = None

    def words(self) -> str:
        """What it demands, for people."""
        parts: list[str] = []
        if self.exactly is not None:
            parts.append(f"is exactly {_set(self.exactly)}")
        if self.subset_of is not None:
            parts.append(f"has nothing but {_set(self.subset_of)}")
        if self.grace is not None:
            parts.append(f"or {self.grace.words()}")
        if self.all_of:
            parts.append(f"has all of {_set(self.all_of)}")
        if self.none_of:
            parts.append(f"has none of {_set(self.none_of)}")
        return ", ".join(parts)


Test = Anything | OneOf | Between | Members


@dataclass(frozen=True, slots=True)
class Constraint:
    """One key of a rule. `place` is where it stands in the file, such as `any[2].snp.vmpl`."""

    claim: str
    place: str
    test: Test

    @property
    def lenient(self) -> bool:
        """True when the claim is not looked at."""
        return isinstance(self.test, Anything)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Findings are empty when the constraint holds; `by_grace` says that only a grace period
    made it so."""

    findings: tuple[Finding, ...] = ()
    by_grace: bool = False


HOLDS: Final = Judgement()


def judge(constraint: Constraint, claims: VerifiedClaims) -> Judgement:
    """Whether a constraint holds over claims, and why not."""
    if constraint.lenient:
        return HOLDS
    value = claims.get(constraint.claim)
    if value is None:
        return Judgement((absent(constraint.claim, constraint.place),))
    kind = kind_of(constraint.claim)
    if kind is None or not is_value_of(kind, value):
        return _no(constraint, checks.VALUE, value)
    match constraint.test:
        case OneOf(values, grace):
            return _judge_value(constraint, claims, value, values, grace)
        case Between(minimum, maximum) if isinstance(value, int):
            low = minimum is None or value >= minimum
            high = maximum is None or value <= maximum
            return HOLDS if low and high else _no(constraint, checks.RANGE, value)
        case Members() if isinstance(value, tuple):
            return _judge_members(constraint, claims, frozenset(value), constraint.test)
        case _:
            return _no(constraint, checks.VALUE, value)


def _judge_value(
    constraint: Constraint,
    claims: VerifiedClaims,
    value: ClaimValue,
    values: tuple[ClaimValue, ...],
    grace: Grace | None,
) -> Judgement:
    if any(same(value, each) for each in values):
        return HOLDS
    if grace is not None and value in grace.values:
        return _judge_grace(constraint, claims, (str(value),), grace)
    check = {"debug": checks.DEBUG, "platform": checks.PLATFORM}.get(constraint.claim, checks.VALUE)
    return _no(constraint, check, value)


def _judge_members(
    constraint: Constraint, claims: VerifiedClaims, value: frozenset[str], test: Members
) -> Judgement:
    wrong: list[str] = []
    late: list[str] = []
    if test.exactly is not None and value != test.exactly:
        wrong += sorted(value ^ test.exactly)
    if test.subset_of is not None:
        beyond = value - test.subset_of
        graced = beyond & frozenset(test.grace.values if test.grace is not None else ())
        late += sorted(graced)
        wrong += sorted(beyond - graced)
    wrong += sorted(test.all_of - value)
    wrong += sorted(test.none_of & value)
    if wrong:
        return _no(constraint, checks.MEMBERS, tuple(sorted(value)))
    if late and test.grace is not None:
        return _judge_grace(constraint, claims, tuple(late), test.grace)
    return HOLDS


def _judge_grace(
    constraint: Constraint, claims: VerifiedClaims, values: tuple[str, ...], grace: Grace
) -> Judgement:
    age_s = claims.get(GRACE_CLAIM)
    if age_s is None:
        return Judgement((absent(GRACE_CLAIM, constraint.place),))
    if type(age_s) is int and age_s <= grace.days * DAY_S:
        return Judgement(by_grace=True)
    finding = Finding(
        checks.GRACE,
        expected=f"`{constraint.claim}` with {_listed(values)} only until {grace.days} days after "
        f"the date of the TCB level (rule `{constraint.place}`)",
        actual=f"{age_s // DAY_S} days" if type(age_s) is int else shown(age_s),
        advice="update the platform's firmware and microcode, or lengthen `grace_days`",
    )
    return Judgement((finding,))


def absent(claim: str, place: str) -> Finding:
    """The finding for a claim that a rule asks about and the evidence does not have."""
    return Finding(
        checks.PRESENT,
        expected=f"the claim `{claim}` (rule `{place}`)",
        actual="evidence without it",
        advice=_ADVICE_ABSENT.get(
            claim.partition(".")[0], "attest on a platform that has this claim, or change the rule"
        ),
    )


_ADVICE_ABSENT: Final = {
    "collateral": "give the verifier the vendor's collateral (--endorsements), or change the rule",
    "tcb": "give the verifier the vendor's collateral (--endorsements), or change the rule",
    "tpm": "have the attester quote this register or certify its key, or change the rule",
}

_ADVICE: Final = {
    "module": (
        "run the module that the policy names, or make a new policy for this one with `avow "
        "policy init`"
    ),
    "runtime": (
        "if you do not expect this runtime, do not trust the peer; to find the difference, run "
        "`avow measure runtime` on the peer's machine and on the one where the policy was "
        "made, compare the two outputs with `diff`, and then install the same avow on both or "
        "make a new policy with `avow policy init`"
    ),
    "configuration": (
        "start it with the configuration that the policy names, or make a new policy with "
        "`avow policy init`"
    ),
    "debug": "start it without debugging; a policy can allow it with `unsafe_debug = true`",
    "evidence_age_s": "check both clocks, and ask for fresh evidence",
    "platform": "connect to one of these platforms, or add a rule for this one",
}


def _no(constraint: Constraint, check: Check, value: ClaimValue) -> Judgement:
    finding = Finding(
        check,
        expected=f"`{constraint.claim}` that {constraint.test.words()} (rule `{constraint.place}`)",
        actual=shown(value),
        advice=_advice(constraint.claim, value),
    )
    return Judgement((finding,))


def _advice(claim: str, value: ClaimValue) -> str:
    if claim == "evidence_age_s" and isinstance(value, int) and value < 0:
        # It came from the future: the usual case is a device without a battery for its clock.
        return "set the clock that is wrong: this machine's is behind, or the sender's is ahead"
    return _ADVICE.get(claim, "find out why it differs before you change the policy")


def same(value: ClaimValue, other: ClaimValue) -> bool:
    """Equality of values of one type; true is not 1 here."""
    if isinstance(value, bytes) and isinstance(other, bytes):
        return hmac.compare_digest(value, other)
    return type(value) is type(other) and value == other


def shown(value: ClaimValue) -> str:
    """A value for a message: bytes as hexadecimal digits, nothing that a terminal would obey."""
    match value:
        case bool():
            text = str(value).lower()
        case bytes():
            text = value.hex() or "nothing"
        case tuple():
            text = "[" + ", ".join(shown(each) for each in value) + "]"
        case str():
            text = value if value.isprintable() and value else repr(value)
        case _:
            text = str(value)
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"


def _listed(values: Iterable[ClaimValue]) -> str:
    return " or ".join(shown(value) for value in values)


def _set(values: frozenset[str]) -> str:
    return shown(tuple(sorted(values)))
