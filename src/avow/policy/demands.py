"""The claims that matter: every way to be accepted has to say how it treats each of them.

A policy that is silent about one is refused when it is loaded. To be lenient it has to say so, by
the word "any".
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from avow.errors import MalformedError
from avow.evidence.vocabulary import kind_of
from avow.policy.constraints import Anything, Between, Constraint, Members, OneOf
from avow.policy.rules import Branch


class How(enum.Enum):
    """What counts as saying how a claim is treated. The word "any" does, but for the last three,
    which are conditions of others."""

    NAMED = "a value"
    AT_LEAST = "a lowest value (min)"
    AT_MOST = "a highest value (max)"
    BETWEEN = "a lowest and a highest value (min and max)"
    CLOSED = "the whole list, or subset_of"
    HELD = "the whole list, or all_of"
    EXACT = 'a value, not "any"'
    TRUE = "true"
    BY_EK = '"ek"'

    @property
    def lenient(self) -> bool:
        """True where the word "any" will do."""
        return self not in (How.EXACT, How.TRUE, How.BY_EK)


Need = tuple[str, How]


@dataclass(frozen=True, slots=True)
class Demand:
    """At least one of `ways` is met, all needs of it. The first way is the one to advise."""

    ways: tuple[tuple[Need, ...], ...]


def _each(how: How, *claims: str) -> tuple[Demand, ...]:
    return tuple(Demand((((claim, how),),)) for claim in claims)


_ALL: Final = (
    *_each(How.NAMED, "module", "runtime", "configuration"),
    *_each(How.BETWEEN, "evidence_age_s"),
)
_DEBUG: Final = _each(How.NAMED, "debug")
_COLLATERAL: Final = (
    *_each(How.NAMED, "collateral.crl_checked"),
    *_each(How.AT_MOST, "collateral.age_s"),
)
_INTEL: Final = (
    *_each(How.NAMED, "tcb.status"),
    *_each(How.CLOSED, "tcb.advisories"),
    *_each(How.AT_LEAST, "tcb.evaluation_number"),
    *_COLLATERAL,
)
_TDX: Final = (
    *_each(How.NAMED, "tdx.mrtd", "tdx.attributes", "tdx.mrseam"),
    *_each(How.NAMED, "tdx.sept_ve_disable", "tdx.migratable", "tdx.mrservicetd"),
    *_INTEL,
)
_SNP: Final = (
    *_each(How.NAMED, "snp.measurement", "snp.chip_id", "snp.migration_agent"),
    *_each(How.AT_MOST, "snp.vmpl"),
    *_each(
        How.AT_LEAST,
        "snp.tcb.bootloader",
        "snp.tcb.tee",
        "snp.tcb.snp",
        "snp.tcb.microcode",
        # Zero before Turin, where a lowest value of 0 costs nothing.
        "snp.tcb.fmc",
        # The reported TCB says nothing about a guest that was launched before a live update.
        "snp.launch_tcb.bootloader",
        "snp.launch_tcb.tee",
        "snp.launch_tcb.snp",
        "snp.launch_tcb.microcode",
        "snp.launch_tcb.fmc",
    ),
    # AMD-SB-3015 (CVE-2024-21944): memory that answers at two addresses.
    *_each(How.NAMED, "snp.platform.alias_check_complete"),
    *_COLLATERAL,
)
_BOOT: Final = _each(How.NAMED, *(f"tpm.pcr.{n}" for n in range(8)))
_LOG: Final = _each(How.NAMED, "module_measured")
_ARM: Final = (
    *_each(How.NAMED, "psa.implementation_id"),
    *_each(How.NAMED, "psa.lifecycle"),
    *_each(How.HELD, "psa.software"),
)

# By platform; for azure by "azure/" and the type that the branch names.
DEMANDS: Final[Mapping[str, tuple[Demand, ...]]] = {
    "simulated": _ALL,
    "sgx": (
        *_ALL,
        *_DEBUG,
        Demand(
            (
                (("sgx.mrenclave", How.NAMED),),
                (
                    ("sgx.mrsigner", How.EXACT),
                    ("sgx.isv_prod_id", How.NAMED),
                    ("sgx.isv_svn", How.AT_LEAST),
                ),
            )
        ),
        *_INTEL,
    ),
    "tdx": (
        *_ALL,
        *_DEBUG,
        *_LOG,
        *_TDX,
        *_each(How.NAMED, *(f"tdx.rtmr.{n}" for n in range(3))),
        # The log that shows the module is the log of this register.
        Demand(((("tdx.rtmr.3", How.NAMED),), (("module_measured", How.TRUE),))),
    ),
    "snp": (*_ALL, *_DEBUG, *_SNP),
    "azure/snp": (*_ALL, *_DEBUG, *_LOG, *_BOOT, *_SNP),
    "azure/tdx": (*_ALL, *_DEBUG, *_LOG, *_BOOT, *_TDX),
    "nitro": (*_ALL, *_DEBUG, *_each(How.NAMED, *(f"nitro.pcr.{n}" for n in range(3)))),
    "tpm": (
        *_ALL,
        *_DEBUG,
        *_LOG,
        *_BOOT,
        *_each(How.NAMED, "tpm.ak_origin"),
        Demand(((("tpm.ak", How.NAMED),), (("tpm.ek", How.NAMED),))),
        # A key that nobody vouches for could be software's: the policy has to name that very key.
        Demand(
            (
                (("tpm.ak", How.EXACT),),
                (("tpm.ek", How.EXACT),),
                (("tpm.ak_origin", How.BY_EK),),
            )
        ),
        # Who names the very key needs no list of revoked ones.
        Demand(
            (
                (("collateral.crl_checked", How.NAMED),),
                (("tpm.ak", How.EXACT),),
                (("tpm.ek", How.EXACT),),
            )
        ),
    ),
    "psa": (*_ALL, *_DEBUG, *_ARM),
    "cca": (
        *_ALL,
        *_DEBUG,
        *_ARM,
        *_each(How.NAMED, "cca.rim", *(f"cca.rem.{n}" for n in range(4))),
    ),
}

_AZURE: Final = "azure.confidential_type"
# What a machine on azure of one type never says.
_OTHER_TYPE: Final = {"snp": ("tdx.", "tcb."), "tdx": ("snp.",)}


def platform_of(branch: Branch) -> str | None:
    """The one platform that a branch is for; None for one that contradicts itself.

    Raises `MalformedError` when it names none or several.
    """
    platforms = branch.values_of("platform")
    if platforms is None or len(platforms) > 1:
        raise MalformedError(
            f"expected one `platform` in {_named(branch)}, got "
            f"{'none' if platforms is None else ', '.join(sorted(platforms))}; each has its own "
            f"claims, so write a rule for each in a list `any`"
        )
    return next(iter(platforms), None)


def check_branch(branch: Branch, platform: str) -> None:
    """Refuses a branch that is silent about a claim that matters, or asks for what cannot be.

    Raises `MalformedError` with the branch and the claim.
    """
    key = platform
    if platform == "azure":
        types = branch.values_of(_AZURE) or frozenset()
        if len(types) != 1:
            raise MalformedError(
                f"expected one `{_AZURE}` (snp or tdx) in {_named(branch)}, got "
                f"{', '.join(sorted(types)) or 'none'}; each has its own claims"
            )
        (kind,) = types
        key = f"azure/{kind}"
    for constraint in _asked(branch):
        _check_possible(constraint, branch, platform, key)
    for demand in DEMANDS[key]:
        if not any(all(_met(need, branch) for need in way) for way in demand.ways):
            raise _silent(demand, branch, platform)


def _asked(branch: Branch) -> Iterator[Constraint]:
    yield from branch.constraints
    for rule in branch.exclusions:
        yield from rule.claims()


def _check_possible(constraint: Constraint, branch: Branch, platform: str, key: str) -> None:
    kind = kind_of(constraint.claim) or kind_of(constraint.claim + ".0")
    others = _OTHER_TYPE[key.partition("/")[2]] if platform == "azure" else ()
    if (
        kind is None
        or (kind.platforms and platform not in kind.platforms)
        or (constraint.claim.startswith(others or ("\0",)))
    ):
        raise MalformedError(
            f"expected claims of the platform {key.replace('/', ' on ')} in {_named(branch)}, got "
            f"`{constraint.place}`; write it in the rule of the platform that has it"
        )


def _met(need: Need, branch: Branch) -> bool:
    claim, how = need
    # All registers of a kind at once: only the word "any" can be said about them.
    family = claim.rpartition(".")[0]
    return any(
        _treats(constraint, how)
        for constraint in branch.constraints
        if constraint.claim == claim or constraint.claim == family
    )


def _treats(constraint: Constraint, how: How) -> bool:
    match constraint.test:
        case Anything():
            return how.lenient
        case OneOf(values):
            only = {How.TRUE: (True,), How.BY_EK: ("ek",)}
            return how not in only or values == only[how]
        case Between(minimum, maximum):
            low, high = minimum is not None, maximum is not None
            return {
                How.NAMED: low and high,
                How.AT_LEAST: low,
                How.AT_MOST: high,
                How.BETWEEN: low and high,
            }.get(how, False)
        case Members() as members:
            closed = members.exactly is not None
            return closed or (
                members.subset_of is not None if how is How.CLOSED else bool(members.all_of)
            )


def _silent(demand: Demand, branch: Branch, platform: str) -> MalformedError:
    claim, how = next(need for need in demand.ways[0] if not _met(need, branch))
    advice = ["name it"]
    advice += [
        " with ".join(f"`{other}` ({needed.value})" for other, needed in way)
        for way in demand.ways[1:]
    ]
    if claim == "debug":
        advice.append("write `unsafe_debug = true` if the operator may look inside")
    elif how.lenient:
        advice.append(f'write `{claim} = "any"` if it may be anything')
    return MalformedError(
        f"expected the claim `{claim}` to be dealt with in {_named(branch)} (platform "
        f"{platform}), got nothing that says {how.value}; {', or '.join(advice)}"
    )


def _named(branch: Branch) -> str:
    return f"the rule `{branch.place}`" if branch.place else "the policy"
