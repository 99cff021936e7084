"""Access rules of the file in the core's terms."""

from __future__ import annotations

import struct

from avow.broker.acl import EVERYTHING_ALLOWED, compile_acl
from avow.broker.commands import AclAccess, AclEffect, AclEntry, AclPrincipal, acl_command
from avow.broker.config import AclRule


def test_rules_keep_their_order_and_meaning() -> None:
    rules = [
        AclRule(effect="deny", access="subscribe", pattern="test/nosubscribe"),
        AclRule(effect="allow", access="both", user="alice", pattern="home/%u/#"),
        AclRule(effect="allow", access="publish", anonymous=True, pattern="public/%c"),
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
    ]


def test_command_to_the_byte() -> None:
    entry = AclEntry(AclEffect.ALLOW, AclAccess.PUBLISH, AclPrincipal.NAMED_USER, "al", "a/é")
    assert acl_command([entry]) == (
        b"\x02" + struct.pack("<I", 1) + b"\x01\x01\x01" + b"\x02\x00al" + b"\x04\x00a/\xc3\xa9"
    )
    assert acl_command([]) == b"\x02\0\0\0\0"


def test_everything_allowed_includes_the_broker_s_own_topics() -> None:
    assert {entry.pattern for entry in EVERYTHING_ALLOWED} == {"#", "$SYS/#"}
    assert all(entry.effect is AclEffect.ALLOW for entry in EVERYTHING_ALLOWED)
