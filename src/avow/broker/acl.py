"""Access rules of the file, compiled to the entries that the core checks.

The core decides, at every publish, subscribe and delivery of a retained message; `%c` and `%u` are
filled in there. Here is only the translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from avow.broker.commands import AclAccess, AclEffect, AclEntry, AclPrincipal, acl_command
from avow.broker.config import AclRule
from avow.errors import MalformedError

# acl_rules_max and arena_bytes of core/src/limits.zig.
_RULES_MAX: Final = 100_000
_COMMAND_MAX_BYTES: Final = 1 << 20

_EFFECTS = {"allow": AclEffect.ALLOW, "deny": AclEffect.DENY}
_ACCESSES = {
    "publish": AclAccess.PUBLISH,
    "subscribe": AclAccess.SUBSCRIBE,
    "both": AclAccess.PUBLISH | AclAccess.SUBSCRIBE,
}

# The ranks of the core (docs/spec/core-abi.md), those of `Tier.rank`.
_TIER_RANKS = {"none": 1, "warning": 2, "affirming": 3}

# What holds without rules, said as rules: a reload that removes the last rule has to replace the
# old ones by something. `#` does not match topics that begin with $ [MQTT-4.7.2-1].
EVERYTHING_ALLOWED = tuple(
    AclEntry(
        AclEffect.ALLOW,
        AclAccess.PUBLISH | AclAccess.SUBSCRIBE,
        AclPrincipal.ANYONE,
        "",
        pattern,
    )
    for pattern in ("#", "$SYS/#")
)


def compile_acl(rules: Sequence[AclRule]) -> list[AclEntry]:
    """The rules in the core's terms, in the same order: the first that fits decides.

    Raises `MalformedError` for more than the core takes.
    """
    entries = [_compile(rule) for rule in rules]
    size_bytes = len(acl_command(entries))
    if len(entries) > _RULES_MAX or size_bytes > _COMMAND_MAX_BYTES:
        raise MalformedError(
            f"expected at most {_RULES_MAX} access rules, of {_COMMAND_MAX_BYTES} bytes "
            f"together, got {len(entries)} of {size_bytes} bytes; use `%u` and `%c` instead "
            "of one rule for each user or client"
        )
    return entries


def _compile(rule: AclRule) -> AclEntry:
    if rule.user is not None:
        principal = AclPrincipal.NAMED_USER
    elif rule.anonymous:
        principal = AclPrincipal.ANONYMOUS
    else:
        principal = AclPrincipal.ANYONE
    return AclEntry(
        _EFFECTS[rule.effect],
        _ACCESSES[rule.access],
        principal,
        rule.user or "",
        rule.pattern,
        module=None if rule.module is None else bytes.fromhex(rule.module.removeprefix("sha256:")),
        tier_rank_min=None if rule.tier is None else _TIER_RANKS[rule.tier],
    )
