"""From evidence to verified claims: the checks that hold for every platform, in one place.

Nothing here says whether the claims are acceptable: that is for `avow.policy`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from avow.errors import AvowError, Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Claims, Role, decode_claims
from avow.evidence.envelope import Evidence, decode_evidence
from avow.evidence.report_data import leaf, root_of
from avow.evidence.roles import Authenticated, Verifier
from avow.evidence.vocabulary import ClaimValue, VerifiedClaims, is_value_of, kind_of

_SPEC: Final = "docs/spec/evidence.md"
ENVELOPE: Final = Check("E1", "the evidence is well-formed", _SPEC)
PLATFORM: Final = Check("E2", "avow has a verifier for the platform", _SPEC)
CLAIMS: Final = Check("E3", "avow's claims are well-formed", _SPEC)
NONCE: Final = Check("E4", "the evidence answers this request", _SPEC)
ROLE: Final = Check("E5", "the evidence was made for this role", _SPEC)
KEY: Final = Check("E6", "the evidence names the key at the other end", _SPEC)
BOUND: Final = Check("E7", "the hardware signed these claims for this connection", _SPEC)
MEASURED: Final = Check("E8", "the platform's log agrees with the claims", _SPEC)
VOCABULARY: Final = Check("E9", "every claim has a name and type that avow knows", _SPEC)
CHECKS: Final = (ENVELOPE, PLATFORM, CLAIMS, NONCE, ROLE, KEY, BOUND, MEASURED, VOCABULARY)

_AGAIN: Final = (
    "ask again; if this persists, somebody may be intercepting the connection to the peer"
)

# What evidence for a file or of a program is bound to: no connection.
DOCUMENT_BINDER: Final = bytes(64)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the verifying side knows itself: its nonce (32 bytes), the peer's role, the SHA-256 of
    the peer's key (32 bytes; empty for roles DOCUMENT and PROGRAM) and the binder (64 bytes)."""

    nonce: bytes
    role: Role
    key: bytes
    binder: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """Claims with a proven origin. `claims` are the names of `avow.evidence.vocabulary`."""

    platform: str
    nonce: bytes
    claims: VerifiedClaims
    verified_at: datetime


def verify_evidence(
    content: bytes,
    expectation: Expectation,
    verifiers: Mapping[str, Verifier],
    now: datetime,
) -> Verified:
    """All checks, E1 to E9. `now` needs a time zone.

    Raises `MalformedError`, `UntrustedError`, or `UnavailableError` where it cannot be judged (no
    verifier for the platform, missing collateral). Each has a `finding`.
    """
    try:
        evidence = decode_evidence(content)
    except MalformedError as error:
        raise _at(ENVELOPE, error) from error
    try:
        claims = decode_claims(evidence.claims)
    except MalformedError as error:
        raise _at(CLAIMS, error) from error
    verifier = verifiers.get(evidence.platform)
    if verifier is None:
        raise UnavailableError.at(
            PLATFORM,
            expected=f"evidence from one of {', '.join(sorted(verifiers)) or 'no platform'}",
            actual=f"evidence from {evidence.platform}",
            advice="use a release of avow that knows the platform",
        )
    _check_claims(claims, expectation)
    authenticated = verifier.authenticate(evidence.report, now)
    _check_bound(evidence, expectation, authenticated)
    _check_measured(claims, authenticated)
    return Verified(
        evidence.platform, claims.nonce, _joined(claims, authenticated, now), now.astimezone(UTC)
    )


def _check_claims(claims: Claims, expectation: Expectation) -> None:
    if not hmac.compare_digest(claims.nonce, expectation.nonce):
        raise UntrustedError.at(
            NONCE,
            expected=f"the nonce {expectation.nonce.hex()}",
            actual=f"{claims.nonce.hex()}",
            advice=_AGAIN,
        )
    if claims.role is not expectation.role:
        raise UntrustedError.at(
            ROLE,
            expected=f"the role {expectation.role.name.lower()}",
            actual=claims.role.name.lower(),
            advice=_AGAIN,
        )
    if not hmac.compare_digest(claims.key, expectation.key):
        raise UntrustedError.at(
            KEY,
            expected=f"the key {expectation.key.hex()}",
            actual=f"{claims.key.hex()}",
            advice=_AGAIN,
        )


def _check_bound(
    evidence: Evidence, expectation: Expectation, authenticated: Authenticated
) -> None:
    root = root_of(leaf(evidence.claims, expectation.binder), evidence.path)
    expected = root if authenticated.binding == "report data" else sha256(root).digest()
    if not hmac.compare_digest(authenticated.bound, expected):
        raise UntrustedError.at(
            BOUND,
            expected=f"a signature over {expected.hex()}",
            actual=f"one over {authenticated.bound.hex()}",
            advice=_AGAIN,
        )


def _check_measured(claims: Claims, authenticated: Authenticated) -> None:
    workload = claims.workload
    said = {
        "module": workload.module,
        "runtime": workload.runtime,
        "configuration": workload.configuration,
    }
    for name, digest in authenticated.measured.items():
        # A name that the claims do not have is an error too, whatever its digest.
        if name not in said or not hmac.compare_digest(digest, said[name]):
            raise UntrustedError.at(
                MEASURED,
                expected=f"the {name} {said.get(name, b'').hex()} in the platform's log",
                actual=f"{digest.hex()}",
                advice="start the program with avow, so that what runs is what was measured",
            )


def _joined(claims: Claims, authenticated: Authenticated, now: datetime) -> VerifiedClaims:
    workload = claims.workload
    joined: dict[str, ClaimValue] = {
        "platform": authenticated.platform,
        "role": claims.role.name.lower(),
        "module": workload.module,
        "runtime": workload.runtime,
        "configuration": workload.configuration,
        "boot_id": workload.boot_id,
        "key": claims.key,
        "user_data": claims.user_data,
        "evidence_age_s": int(now.timestamp()) - claims.issued_at_s,
        "module_measured": set(authenticated.measured) == {"module", "runtime", "configuration"},
    }
    for name, value in authenticated.claims.items():
        kind = kind_of(name)
        if kind is None or name in joined or not is_value_of(kind, value):
            raise UntrustedError.at(
                VOCABULARY,
                expected="claims of the platform in avow's vocabulary",
                actual=repr(name),
                advice="report this bug in an avow verifier",
            )
        joined[name] = value
    return joined


def _at(check: Check, error: AvowError) -> MalformedError:
    return MalformedError.at(
        check, expected="well-formed evidence", actual=f"other bytes ({error})", advice=_AGAIN
    )
