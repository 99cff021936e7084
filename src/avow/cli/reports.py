"""Attestation results and claims for people and for programs, the same in every command.

`render_text` and `render_json` are for judged evidence, `claims_text` and `claims_json` for
evidence whose origin is proven and which no policy has judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

from avow import __version__
from avow.errors import Finding
from avow.evidence.appraisal import AttestationResult, ear, printable_claims
from avow.evidence.origin import Verified
from avow.evidence.vocabulary import ClaimValue
from avow.policy.constraints import shown
from avow.tee.simulated import NOTHING_IS_PROTECTED

BUILD: Final = f"avow {__version__}"

NOT_JUDGED: Final = (
    "not judged: no policy was given, so nothing says whether these claims are acceptable"
)


def render_text(result: AttestationResult) -> str:
    """The result in lines, with a line feed at the end."""
    return "".join(f"{line}\n" for line in _result_lines(result))


def render_json(result: AttestationResult) -> str:
    """The result as an EAR's claims (draft-ietf-rats-ear), indented, with a line feed."""
    return json.dumps(ear(result, build=BUILD), indent=2) + "\n"


def claims_text(verified: Verified) -> str:
    """Claims of proven origin that no policy has judged, in lines."""
    lines = [
        NOT_JUDGED,
        *_warning(verified.platform),
        f"platform  {verified.platform}",
        f"nonce     {verified.nonce.hex()}",
        "claims",
        *claim_lines(verified.claims),
    ]
    return "".join(f"{line}\n" for line in lines)


def claims_json(verified: Verified) -> str:
    """Claims of proven origin that no policy has judged, as a JSON object without a status."""
    content = {
        "judged": False,
        "platform": verified.platform,
        "nonce": verified.nonce.hex(),
        "verified_at": verified.verified_at.isoformat(),
        "claims": printable_claims(verified.claims),
    }
    return json.dumps(content, indent=2) + "\n"


def claim_lines(claims: Mapping[str, ClaimValue]) -> Iterator[str]:
    """One line a claim, sorted and in columns; nothing in it that a terminal would obey."""
    width = max(map(len, claims), default=0)
    for name in sorted(claims):
        yield f"  {name:<{width}}  {shown(claims[name])}"


def _warning(platform: str) -> Iterator[str]:
    if platform == "simulated":
        yield NOTHING_IS_PROTECTED


def _result_lines(result: AttestationResult) -> Iterator[str]:
    yield f"{'accepted' if result.accepted else 'REFUSED'}: {result.tier.label}"
    yield from _warning(result.platform)
    yield f"platform  {result.platform}"
    yield f"policy    {result.policy_id}"
    yield f"nonce     {result.nonce.hex()}"
    yield f"at        {result.appraised_at.isoformat(timespec='seconds')}"
    for finding in result.findings:
        yield from finding_lines(finding)
    yield "trust vector"
    for name, value in result.vector.named().items():
        if value:
            yield f"  {name:<17}  {value}"
    yield "claims"
    yield from claim_lines(result.claims)


def finding_lines(finding: Finding) -> Iterator[str]:
    """A finding as a block of lines."""
    yield f"check {finding.check.number}: {finding.check.title}"
    yield f"  expected  {finding.expected}"
    yield f"  got       {finding.actual}"
    yield f"  do        {finding.advice}"
