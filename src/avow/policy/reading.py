"""From the tables of a policy file to rules, with a sentence for whatever is wrong.

Nothing is converted and nothing unknown is let through. Keys of a rule are names of
`avow.evidence.vocabulary`, dotted or quoted or as tables in tables, and the keys of `KEYS`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

from avow.errors import MalformedError, counted
from avow.evidence.vocabulary import KINDS, ClaimKind, ClaimValue, kind_of
from avow.policy.constraints import (
    GRACE_CLAIM,
    Anything,
    Between,
    Constraint,
    Grace,
    Members,
    OneOf,
    Test,
)
from avow.policy.rules import Rule

PLATFORMS: Final = ("tpm", "sgx", "tdx", "snp", "azure", "nitro", "psa", "cca", "simulated")

# What a claim can say at all, so that a slip of the pen is found when the policy is loaded.
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "platform": PLATFORMS,
    "role": ("server", "client", "document", "certificate", "program"),
    "snp.signer": ("vcek", "vlek"),
    "snp.product": ("milan", "genoa", "turin"),
    "azure.confidential_type": ("snp", "tdx"),
    "tpm.ak_origin": ("ek", "owner"),
    "cca.mec_policy": ("shared", "private"),
    "cca.lfa_policy": ("disallow", "allow"),
    "tcb.status": (
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
        "Revoked",
    ),
}

# The keys of a rule that are no claims, and what they mean (docs/reference/policy.md).
KEYS: Final[Mapping[str, str]] = {
    "all": "A list of rules; all of them have to accept.",
    "any": "A list of rules; at least one has to accept.",
    "not": "A rule that must not match. The evidence has to have every claim in it.",
    "unsafe_debug": "true: the platform's operator may look inside. The only way to accept "
    "`debug`.",
}

ANY: Final = "any"
GRACE_DAYS_MAX: Final = 3650
_DEPTH_MAX: Final = 8
_GRACED: Final = ("tcb.status", "tcb.advisories")
_FAMILIES: Final = {
    kind.name.removesuffix(".{n}"): kind for kind in KINDS if kind.name.endswith(".{n}")
}
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")
_SHOWN_MAX: Final = 60


def read_rule(table: Mapping[str, Any], place: str = "", *, excluding: bool = False) -> Rule:
    """The rule of a table; `place` is its path in the file. Raises `MalformedError`."""
    if place.count(".") >= _DEPTH_MAX:
        raise _wrong(place, f"rules at most {_DEPTH_MAX} deep", "a deeper one", "flatten it")
    constraints: dict[str, Constraint] = {}
    for name, value in _flat({k: v for k, v in table.items() if k not in KEYS}, place, ""):
        if name in constraints:
            raise _wrong(_join(place, name), "a claim once", "it twice", "remove one of them")
        constraints[name] = Constraint(name, _join(place, name), _test(name, value, place))
    if "unsafe_debug" in table:
        constraints |= _unsafe_debug(table["unsafe_debug"], place, constraints)
    if excluding:
        _check_excluded(constraints.values())
    excluded = None
    if "not" in table:
        inner_place = _join(place, "not")
        if not isinstance(table["not"], dict) or not table["not"]:
            raise _wrong(inner_place, "a rule", _shown(table["not"]), "write one in braces")
        excluded = read_rule(table["not"], inner_place, excluding=True)
    return Rule(
        place,
        tuple(constraints.values()),
        _read_rules(table, "all", place, excluding),
        _read_rules(table, "any", place, excluding),
        excluded,
    )


def _read_rules(
    table: Mapping[str, Any], key: str, place: str, excluding: bool
) -> tuple[Rule, ...]:
    if key not in table:
        return ()
    rules = table[key]
    if not isinstance(rules, list) or not rules:
        raise _wrong(_join(place, key), "a list of rules", _shown(rules), "write one or more")
    read: list[Rule] = []
    for number, rule in enumerate(rules, 1):
        where = f"{_join(place, key)}[{number}]"
        if not isinstance(rule, dict) or not rule:
            raise _wrong(where, "a rule", _shown(rule), "write one in braces")
        read.append(read_rule(rule, where, excluding=excluding))
    return tuple(read)


def _check_excluded(constraints: Iterable[Constraint]) -> None:
    for constraint in constraints:
        graced = isinstance(constraint.test, OneOf | Members) and constraint.test.grace is not None
        if constraint.lenient or graced:
            raise _wrong(
                constraint.place,
                "a value inside of `not`",
                "a leniency",
                "write out in full what must not be",
            )


def _unsafe_debug(
    value: Any, place: str, constraints: Mapping[str, Constraint]
) -> dict[str, Constraint]:
    where = _join(place, "unsafe_debug")
    if value is not True:
        raise _wrong(where, "true", _shown(value), "write `debug = false` instead of it")
    if "debug" in constraints:
        raise _wrong(where, "`debug` or `unsafe_debug`", "both", "remove one of them")
    return {"debug": Constraint("debug", where, Anything("unsafe_debug"))}


def _flat(table: Mapping[str, Any], place: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """Claims and their values, from tables in tables."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if name == "simulated":
            raise _wrong(
                _join(place, name),
                "no such key",
                "it",
                "write `unsafe_simulated = true` at the top of the file",
            )
        if kind_of(name) is not None or (name in _FAMILIES and value == ANY):
            yield name, value
        elif isinstance(value, dict) and value and _is_prefix(name):
            yield from _flat(value, place, name + ".")
        elif name in _FAMILIES and not isinstance(value, dict):
            raise _wrong(
                _join(place, name), f'`{name}.0 = …` or "any"', _shown(value), "name the registers"
            )
        else:
            raise _unknown(name, place)


def _is_prefix(name: str) -> bool:
    return any(kind.name.startswith(name + ".") for kind in KINDS)


def _unknown(name: str, place: str) -> MalformedError:
    known = [kind.name.replace("{n}", "0") for kind in KINDS] + list(KEYS)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = (
        f"did you mean `{near[0]}`?"
        if near
        else (
            "`avow inspect` and `avow verify` print the claims of a piece of evidence, and the "
            "reference page on claims lists all"
        )
    )
    return MalformedError(f"expected a claim or a known key, got `{_join(place, name)}`; {advice}")


def _test(name: str, value: Any, place: str) -> Test:
    where = _join(place, name)
    if name in _FAMILIES and kind_of(name) is None:
        return Anything()
    kind = kind_of(name)
    assert kind is not None  # `_flat` lets nothing else through
    if name == "debug" and value is not False:
        raise _wrong(where, "false", _shown(value), "to allow it, write `unsafe_debug = true`")
    if value == ANY:
        return Anything()
    if isinstance(value, dict):
        return _table_test(kind, name, value, where)
    if kind.type is tuple:
        return Members(exactly=frozenset(_texts(value, where)))
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _wrong(where, "at least one value", "an empty list", 'name one, or write "any"')
    return OneOf(tuple(_value(kind, name, each, where) for each in values))


def _table_test(kind: ClaimKind, name: str, table: Mapping[str, Any], where: str) -> Test:
    if kind.type is int:
        _known_keys(table, ("min", "max"), where)
        minimum, maximum = (_number(table, key, where) for key in ("min", "max"))
        if minimum is None and maximum is None:
            raise _wrong(where, "`min` or `max`", "neither", "name one of them")
        if minimum is not None and maximum is not None and minimum > maximum:
            raise _wrong(where, "`min` up to `max`", f"{minimum} and {maximum}", "swap them")
        return Between(minimum, maximum)
    graced = ("grace", "grace_days") if name in _GRACED else ()
    if kind.type is tuple:
        _known_keys(table, ("subset_of", "all_of", "none_of", *graced), where)
        lists = {
            key: frozenset(_texts(table[key], _join(where, key)))
            for key in ("subset_of", "all_of", "none_of")
            if key in table
        }
        if not lists or ("grace" in table and "subset_of" not in table):
            raise _wrong(where, "`subset_of`", "a table without it", "name what is allowed")
        return Members(**lists, grace=_grace(name, table, where))
    if not graced:
        raise _wrong(where, "a value, a list of values", "a table", "write the value itself")
    _known_keys(table, ("accept", *graced), where)
    if "accept" not in table:
        raise _wrong(where, "the key `accept`", "none", "name what is accepted without grace")
    accepted = _texts(table["accept"], _join(where, "accept"))
    return OneOf(
        tuple(_value(kind, name, each, where) for each in accepted), _grace(name, table, where)
    )


def _grace(name: str, table: Mapping[str, Any], where: str) -> Grace | None:
    if "grace" not in table and "grace_days" not in table:
        return None
    if "grace" not in table or "grace_days" not in table:
        raise _wrong(where, "`grace` and `grace_days`", "one of them", "name both")
    values = _texts(table["grace"], _join(where, "grace"))
    if name in CHOICES:
        for each in values:
            _check_choice(name, each, _join(where, "grace"))
    days = table["grace_days"]
    if type(days) is not int or not 1 <= days <= GRACE_DAYS_MAX or not values:
        raise _wrong(
            _join(where, "grace_days"),
            f"1 to {GRACE_DAYS_MAX} days and a value to grace",
            _shown(days),
            f"they are counted by {GRACE_CLAIM}",
        )
    return Grace(tuple(values), days)


def _known_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            advice = f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(known)}"
            raise _wrong(where, "a known key", f"`{key}`", advice)


def _number(table: Mapping[str, Any], key: str, where: str) -> int | None:
    value = table.get(key)
    if key in table and type(value) is not int:
        raise _wrong(_join(where, key), "a whole number", _shown(value), "correct the value")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _wrong(where, "a list of texts", _shown(value), "correct the value")
    if ANY in value:
        raise _wrong(where, 'the word "any" alone', "it in a list", "remove the list")
    if len(set(value)) != len(value):
        raise _wrong(where, "each text once", "one of them twice", "remove one")
    return value


_WANTED: Final = {bool: "true or false", int: "a whole number", str: "a text", bytes: "a text"}


def _value(kind: ClaimKind, name: str, value: Any, where: str) -> ClaimValue:
    if kind.type is bytes:
        return _digest(kind, value, where)
    if type(value) is not kind.type:
        raise _wrong(where, _WANTED[kind.type], _shown(value), "correct the value")
    if isinstance(value, str):
        if value == ANY:
            raise _wrong(
                where, 'a name, not "any"', "it", "write the value, or the word outside of a list"
            )
        _check_choice(name, value, where)
    return cast(ClaimValue, value)


def _check_choice(name: str, value: str, where: str) -> None:
    choices = CHOICES.get(name)
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else "correct the value"
        raise _wrong(where, f"one of {', '.join(choices)}", _shown(value), advice)


def _digest(kind: ClaimKind, value: Any, where: str) -> bytes:
    size = "" if kind.size is None else f" for {kind.size} bytes"
    if isinstance(value, str):
        digits = value.removeprefix("sha256:")
        content = bytes.fromhex(digits) if _HEX.fullmatch(digits) else None
        wanted = 32 if digits != value else kind.size
        if content is not None and (wanted is None or len(content) == wanted):
            if kind.size is None or len(content) == kind.size:
                return content
            value = f"{counted(len(content), 'byte')}"
        elif content is not None:
            value = f"{counted(len(content), 'byte')}"
    raise _wrong(where, f"hexadecimal digits{size}", _shown(value), "copy the whole value")


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _wrong(where: str, expected: str, actual: str, advice: str) -> MalformedError:
    return MalformedError(f"expected {expected} for `{where or 'policy'}`, got {actual}; {advice}")


def _shown(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "a table" if value else "an empty table"
        case list():
            return "a list" if value else "an empty list"
        case _:
            text = repr(value)
            return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"
