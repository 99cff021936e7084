"""The reference pages about judging: claims, checks, policies. Called by `docs.generate`."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType

import avow.channel
import avow.evidence
import avow.policy
import avow.tee
from avow.errors import Check
from avow.evidence.vocabulary import KINDS
from avow.policy.demands import DEMANDS, Demand
from avow.policy.policy_file import Head
from avow.policy.reading import CHOICES, KEYS
from avow.policy.words import PLATFORM_NAMES

Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]

_TYPES = {bool: "boolean", int: "integer", str: "text", bytes: "bytes", tuple: "list of texts"}

# Where checks are declared, and what a number that starts like this is about.
ROOMS: Sequence[ModuleType] = (avow.evidence, avow.channel, avow.policy, avow.tee)
PREFIXES = {
    "E": "Evidence, on every platform",
    "C": "The attested channel",
    "PR": "Provisioning",
    "P": "The policy",
    "TPM": "TPM 2.0",
    "SGX": "Intel SGX",
    "TDX": "Intel TDX",
    "SNP": "AMD SEV-SNP",
    "AZ": "Confidential VMs on Azure",
    "NIT": "AWS Nitro Enclaves",
    "PSA": "Arm PSA",
    "CCA": "Arm CCA",
    "SIM": "Simulated",
}


def claims(table: Table) -> str:
    """Every claim that evidence can make and a policy can speak about."""
    parts = [
        "# Claims\n\n"
        "These are the names of what verified evidence says, as a [policy](policy.md) uses them. "
        "`{n}` stands for a number. Verifiers make no other claims, and a policy with any other "
        "name is refused.\n"
    ]
    groups: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for kind in KINDS:
        size = f", {kind.size}" if kind.size is not None else ""
        groups.setdefault(kind.platforms, []).append(
            (f"`{kind.name}`", _TYPES[kind.type] + size, kind.meaning)
        )
    for platforms, rows in groups.items():
        names = ", ".join(f"`{name}`" for name in platforms)
        parts.append(f"\n## {names or 'Every platform'}\n\n")
        parts.append(table(("claim", "type", "meaning"), rows))
    return "".join(parts)


def collected() -> list[Check]:
    """Every check that a module declares in its `CHECKS`, once, in the order of the numbers."""
    found: dict[str, Check] = {}
    for room in ROOMS:
        for module in _modules(room):
            for check in getattr(module, "CHECKS", ()):
                if found.setdefault(check.number, check) != check:
                    raise ValueError(f"two checks have the number {check.number}")
    return sorted(found.values(), key=lambda check: _place(check.number))


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # The attesting sides need the libraries of their platforms, and check nobody.
        if not info.name.endswith(".attester"):
            yield importlib.import_module(info.name)


def _place(number: str) -> tuple[int, int]:
    match = re.fullmatch(r"([A-Z]+)(\d+)", number)
    if match is None or match[1] not in PREFIXES:
        raise ValueError(f"docs/judging_pages.py knows no numbers such as {number}")
    return list(PREFIXES).index(match[1]), int(match[2])


def checks(table: Table) -> str:
    """Every check on a peer, by number."""
    parts = [
        "# Checks\n\n"
        "Every check on a peer has a number. A refusal names the number, what was expected, what "
        "came, and what to do. `avow verify --json` prints these as separate fields.\n"
    ]
    groups: dict[str, list[Sequence[str]]] = {}
    for check in collected():
        prefix = check.number.rstrip("0123456789")
        groups.setdefault(prefix, []).append((check.number, check.title, check.source))
    for prefix, rows in groups.items():
        parts.append(f"\n## {PREFIXES[prefix]}\n\n")
        parts.append(table(("number", "what has to hold", "source"), rows))
    return "".join(parts)


_FORMS: Sequence[tuple[str, str, str]] = (
    ("boolean", "`true`, `false`", "is just that; `debug` can only be `false`"),
    ("integer", "`3`", "is just that"),
    ("integer", "`[3, 4]`", "is one of them"),
    ("integer", "`{ min = 3 }`, `{ max = 9 }`, `{ min = 3, max = 9 }`", "is in the range"),
    ("text", '`"vcek"`, `["vcek", "vlek"]`', "is that, is one of them"),
    (
        "bytes",
        '`"9f86…"`, `["9f86…", "sha256:60303…"]`',
        "is that, is one of them, as hexadecimal digits of the whole value; 32 bytes may start "
        "with `sha256:`",
    ),
    ("list of texts", '`["a", "b"]`', "has exactly these, in any order"),
    ("list of texts", '`{ subset_of = ["a", "b"] }`', "has no others than these"),
    ("list of texts", '`{ all_of = ["a"] }`', "has all of these"),
    ("list of texts", '`{ none_of = ["c"] }`', "has none of these"),
    (
        "`tcb.status`",
        '`{ accept = ["UpToDate"], grace = ["OutOfDate"], grace_days = 30 }`',
        "is accepted, or is in grace and the TCB level's date is at most so many days ago "
        "(`tcb.date_age_s`)",
    ),
    (
        "`tcb.advisories`",
        '`{ subset_of = [], grace = ["INTEL-SA-00615"], grace_days = 30 }`',
        "has no others than these, and those in grace only for so many days",
    ),
    ("every type", '`"any"`', "is ignored, present or not; this is a leniency"),
)


def policy(table: Table) -> str:
    """The format of policies."""
    head = [
        (
            f"`{name}`",
            "required" if field.is_required() else f"`{str(field.default).lower()}`",
            field.description or "",
        )
        for name, field in Head.model_fields.items()
    ]
    choices = [
        (f"`{name}`", ", ".join(f"`{each}`" for each in values)) for name, values in CHOICES.items()
    ]
    return (
        "# Policies\n\n"
        "A policy is a TOML file of at most 1 MiB: a head, and a rule. [How to write "
        "one](../how-to/policy.md) shows examples.\n\n"
        "## The head\n\n" + table(("key", "default", "meaning"), head) + "\n## Rules\n\n"
        "All other keys at the top, and the tables in `all`, `any` and `not`, are rules. A rule "
        "accepts when every one of its keys does. Its keys are [claims](claims.md), dotted "
        '(`snp.vmpl = 0`), as tables (`[snp]`) or quoted (`"snp.vmpl" = 0`), and these:\n\n'
        + table(("key", "meaning"), ((f"`{key}`", meaning) for key, meaning in KEYS.items()))
        + "\nAn unknown key, a value of another type or size, and a claim that the rule's "
        "platform does not have are errors when the file is read; the message names the rule by "
        "its path, such as `any[2].snp.vmpl` (lists are counted from 1).\n\n"
        "## Values\n\n"
        + table(("claim of type", "value", "holds when the claim"), _FORMS)
        + '\nFor all registers of a kind at once, `tpm.pcr = "any"` leaves out the number; '
        "`tdx.rtmr`, `nitro.pcr` and `cca.rem` likewise. A claim that the policy asks about and "
        "the evidence does not have is refused (check P3). Inside `not`, every claim has to be "
        "present, and no leniency is allowed, so that an absent claim excludes nothing by "
        "accident.\n\n"
        "These texts have a fixed set of values, so that a typing error is noticed:\n\n"
        + table(("claim", "values"), choices)
        + "\n## What a policy has to say\n\n"
        "A policy accepts nothing by default. Every combination of rules that accepts names one "
        "`platform`, and says how to treat each of the claims below, if only with the word "
        '`"any"`. avow refuses to read a policy that does not mention one of them.\n'
        + "".join(_demands(table))
        + "\n## What comes out\n\n"
        "The result is EAR-shaped (draft-ietf-rats-ear): a tier and AR4SI's trust vector. "
        "Refused evidence is *contraindicated*. Accepted evidence is *affirming*, or has a "
        '*warning* if a claim was ignored (`"any"`, `unsafe_debug`), if only a grace '
        "period made it acceptable, or if the policy accepted a known weakness: a "
        "`tcb.status` other than `UpToDate`, advisories, no revocation list, a migration agent, "
        "no log of the module, a simulation. If several rules fit, the best tier counts. If none "
        "fits, the findings come from the closest rule for the evidence's platform.\n"
    )


def _demands(table: Table) -> Iterator[str]:
    # All platforms but the simulation, which has no hardware that could be debugged.
    everywhere = [each for each in DEMANDS["nitro"] if each in DEMANDS["psa"]]
    yield "\n### Every platform\n\n"
    yield table(("claim", "has to have", "instead"), map(_demand, everywhere))
    yield "\nA simulation has no `debug` to ask about.\n"
    for name, demands in DEMANDS.items():
        platform, _, kind = name.partition("/")
        title = PLATFORM_NAMES[platform].split(",")[0]
        if kind:
            title += f', `azure.confidential_type = "{kind}"`'
        yield f"\n### `{platform}`: {title}\n\n"
        own = [_demand(each) for each in demands if each not in everywhere]
        yield table(("claim", "has to have", "instead"), own) if own else "Nothing more.\n"


def _demand(demand: Demand) -> Sequence[str]:
    first, *others = demand.ways
    return (
        ", ".join(f"`{claim}`" for claim, _ in first),
        ", ".join(how.value for _, how in first),
        " or ".join(
            " with ".join(f"`{claim}`: {how.value}" for claim, how in way) for way in others
        ),
    )
