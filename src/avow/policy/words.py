"""What a policy accepts, in plain words: every condition, every leniency, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from avow.evidence.vocabulary import kind_of
from avow.policy.constraints import Constraint
from avow.policy.policy import PlatformBranch, Policy
from avow.policy.rules import Rule

PLATFORM_NAMES: Final = {
    "tpm": "a TPM 2.0",
    "sgx": "Intel SGX",
    "tdx": "Intel TDX",
    "snp": "AMD SEV-SNP",
    "azure": "a confidential VM on Azure",
    "nitro": "AWS Nitro Enclaves",
    "psa": "Arm PSA",
    "cca": "Arm CCA",
    "simulated": "the simulation, which proves nothing",
}


def explain(policy: Policy) -> str:
    """The policy in words, in lines, with a line feed at the end."""
    return "".join(f"{line}\n" for line in _lines(policy))


def _lines(policy: Policy) -> Iterator[str]:
    yield f'The policy "{policy.name}"'
    yield f"({policy.policy_id})"
    yield ""
    if policy.unsafe_simulated:
        yield "WARNING: it accepts simulated evidence. Nothing is protected then."
        yield ""
    ways = len(policy.branches)
    yield (
        "It accepts evidence in one way only, and refuses everything else."
        if ways == 1
        else f"It accepts evidence in {ways} ways, and refuses everything else."
    )
    for number, each in enumerate(policy.branches, 1):
        yield ""
        yield from _branch(number, each)


def _branch(number: int, way: PlatformBranch) -> Iterator[str]:
    branch = way.branch
    place = f" (rule `{branch.place}`)" if branch.place else ""
    yield f"{number}. Evidence from {PLATFORM_NAMES[way.platform]}{place}, when"
    looked_at: dict[str, list[Constraint]] = {}
    for constraint in branch.constraints:
        if constraint.claim != "platform":
            looked_at.setdefault(constraint.claim, []).append(constraint)
    lenient: list[Constraint] = []
    for claim, constraints in looked_at.items():
        strict = [each for each in constraints if not each.lenient]
        lenient += constraints[:1] if not strict else []
        for each in strict:
            yield f"   - {_claim(claim)} {each.test.words()}"
    for rule in branch.exclusions:
        yield f"   - and it is not true that {_rule(rule)}"
    if lenient:
        yield "   It accepts with a warning, because it does not look at"
        for each in lenient:
            how = " (`unsafe_debug`)" if each.claim == "debug" else ""
            yield f"   - {_claim(each.claim)}{how}"


def _claim(name: str) -> str:
    kind = kind_of(name)
    if kind is None:
        return f"`{name}` (all of these registers)"
    meaning = kind.meaning.rstrip(".")
    return f"`{name}` ({meaning})"


def _rule(rule: Rule) -> str:
    """A rule of `not` as one sentence part."""
    parts = [f"`{each.claim}` {each.test.words()}" for each in rule.constraints]
    parts += [_rule(each) for each in rule.all_of]
    if rule.any_of:
        parts.append("(" + " or ".join(_rule(each) for each in rule.any_of) + ")")
    if rule.excluded is not None:
        parts.append(f"not ({_rule(rule.excluded)})")
    return " and ".join(parts)
