"""Access rules of the file in the core's terms."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from avow.broker.acl import EVERYTHING_ALLOWED, compile_acl
from avow.broker.commands import AclAccess, AclEffect, AclEntry, AclPrincipal, acl_command
from avow.broker.config import AclRule
from avow.errors import MalformedError
from avow.evidence.appraisal import Tier


def test_rules_keep_their_order_and_meaning() -> None:
    rules = [
        AclRule(effect="deny", access="subscribe", pattern="test/nosubscribe"),
        AclRule(effect="allow", access="both", user="alice", pattern="home/%u/#"),
        AclRule(effect="allow", access="publish", anonymous=True, pattern="public/%c"),
        AclRule(
            effect="allow",
            access="publish",
            pattern="plant/+/command",
            module="sha256:" + "0f" * 32,
            tier="warning",
        ),
    ]
    assert compile_acl(rules) == [
        AclEntry(AclEffect.DENY, AclAccess.SUBSCRIBE, AclPrincipal.ANYONE, "", "test/nosubscribe"),
        AclEntry(
            AclEffect.ALLOW,
            AclAccess.PUBLISH | AclAccess.SUBSCRIBE,
            AclPrincipal.NAMED_USER,
            "alice",
            "home/%u/#",
        ),
        AclEntry(AclEffect.ALLOW, AclAccess.PUBLISH, AclPrincipal.ANONYMOUS, "", "public/%c"),
        AclEntry(
            AclEffect.ALLOW,
            AclAccess.PUBLISH,
            AclPrincipal.ANYONE,
            "",
            "plant/+/command",
            module=b"\x0f" * 32,
            tier_rank_min=2,
        ),
    ]


@pytest.mark.parametrize("tier", [Tier.NONE, Tier.WARNING, Tier.AFFIRMING])
def test_a_tier_has_the_rank_that_results_have(tier: Tier) -> None:
    rule = AclRule.model_validate(
        {"effect": "allow", "access": "both", "pattern": "#", "tier": tier.label}
    )
    assert [entry.tier_rank_min for entry in compile_acl([rule])] == [tier.rank]


def test_rules_that_the_core_would_not_take_are_refused_before() -> None:
    """A reload that got as far as the core would end the broker, or leave the old rules."""
    limits = (Path(__file__).parents[2] / "core/src/limits.zig").read_text()
    assert "acl_rules_max: u32 = 100_000;" in limits
    assert "arena_bytes: u32 = 1024 * 1024;" in limits
    rule = AclRule(effect="allow", access="both", user="u", pattern="p" * 1000)
    assert len(compile_acl([rule] * 1030)) == 1030
    with pytest.raises(MalformedError, match="got 1050 of 10"):
        compile_acl([rule] * 1050)


def test_command_to_the_byte() -> None:
    entry = AclEntry(AclEffect.ALLOW, AclAccess.PUBLISH, AclPrincipal.NAMED_USER, "al", "a/é")
    assert acl_command([entry]) == (
        b"\x02" + struct.pack("<I", 1) + b"\x01\x01\x01\x00" + b"\x02\x00al" + b"\x04\x00a/\xc3\xa9"
    )
    conditions = AclEntry(
        AclEffect.DENY,
        AclAccess.SUBSCRIBE,
        AclPrincipal.ANYONE,
        "",
        "t",
        module=bytes(range(32)),
        tier_rank_min=3,
    )
    assert acl_command([conditions]) == (
        b"\x02\x01\0\0\0" + b"\0\x02\0\x03" + bytes(range(32)) + b"\x03" + b"\0\0\x01\0t"
    )
    assert acl_command([]) == b"\x02\0\0\0\0"


def test_everything_allowed_includes_the_broker_s_own_topics() -> None:
    assert {entry.pattern for entry in EVERYTHING_ALLOWED} == {"#", "$SYS/#"}
    assert all(entry.effect is AclEffect.ALLOW for entry in EVERYTHING_ALLOWED)
