"""Attestation results in the shape of EAR (draft-ietf-rats-ear) with AR4SI's trust vector.

Tiers and the meaning of the vector's numbers: draft-ietf-rats-ar4si, section 2.3. A claim of the
vector is a number from -128 to 127; its tier is that of its range.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from avow.errors import Finding
from avow.evidence.vocabulary import ClaimValue, VerifiedClaims

EAR_PROFILE: Final = "tag:ietf.org,2026:rats/ear#03"


class Tier(enum.IntEnum):
    """How much the appraised can be trusted; the numbers are AR4SI's."""

    NONE = 0
    AFFIRMING = 2
    WARNING = 32
    CONTRAINDICATED = 96

    @property
    def label(self) -> str:
        """EAR's name for it."""
        return self.name.lower()

    @property
    def rank(self) -> int:
        """Higher is better: contraindicated 0, none 1, warning 2, affirming 3."""
        return (Tier.CONTRAINDICATED, Tier.NONE, Tier.WARNING, Tier.AFFIRMING).index(self)


@dataclass(frozen=True, slots=True)
class TrustVector:
    """AR4SI's claims; 0 means that nothing is said."""

    instance_identity: int = 0
    configuration: int = 0
    executables: int = 0
    file_system: int = 0
    hardware: int = 0
    runtime_opaque: int = 0
    storage_opaque: int = 0
    sourced_data: int = 0

    def named(self) -> dict[str, int]:
        """By EAR's names."""
        return {
            name.replace("_", "-"): getattr(self, name)
            for name in self.__dataclass_fields__  # the order of the draft
        }


def tier_of(value: int) -> Tier:
    """The tier of one number of the vector (AR4SI, section 2.3.2)."""
    if value in (-1, 0, 1):
        return Tier.NONE
    if -32 <= value <= 31:
        return Tier.AFFIRMING
    if -96 <= value <= 95:
        return Tier.WARNING
    return Tier.CONTRAINDICATED


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """What a policy concluded. `findings` is empty exactly when the evidence is accepted.

    `policy_id` is "sha256:" and the digest of the policy's file.
    """

    tier: Tier
    vector: TrustVector
    policy_id: str
    platform: str
    nonce: bytes
    appraised_at: datetime
    claims: VerifiedClaims
    findings: tuple[Finding, ...] = ()

    @property
    def accepted(self) -> bool:
        """True when nothing was found wrong."""
        return not self.findings


def ear(result: AttestationResult, *, build: str) -> dict[str, Any]:
    """The result as an EAR's claims, ready for JSON; `build` names the verifier's version."""
    return {
        "eat_profile": EAR_PROFILE,
        "iat": int(result.appraised_at.timestamp()),
        "ear.verifier-id": {"developer": "avow", "build": build},
        "eat_nonce": result.nonce.hex(),
        "submods": {
            result.platform: {
                "ear.status": result.tier.label,
                "ear.trustworthiness-vector": result.vector.named(),
                "ear.appraisal-policy-id": result.policy_id,
                "avow.claims": printable_claims(result.claims),
                "avow.findings": [
                    {
                        "check": finding.check.number,
                        "title": finding.check.title,
                        "expected": finding.expected,
                        "actual": finding.actual,
                        "advice": finding.advice,
                    }
                    for finding in result.findings
                ],
            }
        },
    }


def printable_claims(claims: Mapping[str, ClaimValue]) -> dict[str, bool | int | str | list[str]]:
    """Bytes as hexadecimal digits, tuples as lists, sorted by name."""
    return {name: _printable(claims[name]) for name in sorted(claims)}


def _printable(value: ClaimValue) -> bool | int | str | list[str]:
    if isinstance(value, bytes):
        return value.hex()
    return list(value) if isinstance(value, tuple) else value
