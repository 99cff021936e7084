"""Policies over real evidence: each claim that a policy has to treat is one that verifiers make."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from avow.cli.policy_template import draft
from avow.cli.references import ReferenceValues
from avow.evidence.appraisal import AttestationResult, Tier
from avow.evidence.origin import Verified
from avow.evidence.vocabulary import ClaimValue
from avow.policy import parse_policy
from avow.tee.cca import report as cca
from avow.tee.cca.verifier import CcaVerifier
from avow.tee.intel.collateral import parse_collateral
from avow.tee.intel.quote import without_padding
from avow.tee.nitro import verifier as nitro
from avow.tee.psa.report import parse_token
from avow.tee.psa.verifier import PsaVerifier
from avow.tee.sgx.report import encode_report as sgx_report
from avow.tee.sgx.verifier import SgxVerifier
from avow.tee.snp.report import SnpEvidence
from avow.tee.snp.verifier import SnpVerifier
from avow.tee.tdx import report as tdx
from avow.tee.tdx.verifier import TdxVerifier
from tests.vectors.evidence_files import certificates, vector

pytestmark = pytest.mark.vectors

DIGEST = b"\xa1" * 32
REFERENCES = ReferenceValues(DIGEST, DIGEST, DIGEST)
JUNE = datetime(2025, 6, 1, tzinfo=UTC)
INTEL_NOW = datetime(2025, 6, 25, tzinfo=UTC)


def verified(platform: str, claims: Mapping[str, ClaimValue], **changes: ClaimValue) -> Verified:
    """As `verify_evidence` gives it, with avow's own claims."""
    own: dict[str, ClaimValue] = {
        "platform": platform,
        "role": "document",
        "module": DIGEST,
        "runtime": DIGEST,
        "configuration": DIGEST,
        "evidence_age_s": 0,
        "module_measured": False,
    }
    return Verified(platform, bytes(32), {**own, **claims, **changes}, JUNE)


def judged(evidence: Verified, changes: Mapping[str, str] | None = None) -> AttestationResult:
    """By the policy that `avow policy init --from` makes of it, with some lines changed."""
    made = draft(REFERENCES, [evidence.platform], evidence.claims)
    assert made.gaps == ()
    lines = made.text.splitlines()
    for claim, text in (changes or {}).items():
        (place,) = (n for n, line in enumerate(lines) if line.startswith(f"{claim} = "))
        lines[place] = f"{claim} = {text}"
    return parse_policy("\n".join(lines), name="x").appraise(evidence)


def refused(result: AttestationResult) -> list[str]:
    """Which claims were refused, by the rule's place."""
    return sorted(finding.expected.split("`")[1] for finding in result.findings)


def snp_claims(report: str, signer: str, chain: str) -> Mapping[str, ClaimValue]:
    above, root = certificates(chain)
    evidence = SnpEvidence(vector(report), (vector(signer), above, root))
    return SnpVerifier().authenticate(evidence.encoded(), JUNE).claims


LENIENT = {
    "collateral.crl_checked": "false",
    "collateral.age_s": '"any"',
    "snp.platform.alias_check_complete": "false",
}


def test_snp() -> None:
    claims = snp_claims("snp/report_milan.bin", "snp/vcek_milan.der", "snp/milan_ask_ark.pem")
    evidence = verified("snp", claims)
    # There is no revocation list beside the report, and the firmware is older than the alias check:
    # a policy has to put up with that in words.
    assert refused(judged(evidence)) == [
        "collateral.age_s",
        "collateral.crl_checked",
        "snp.platform.alias_check_complete",
    ]
    assert judged(evidence, LENIENT).tier is Tier.WARNING
    for claim in ("snp.tcb.snp", "snp.launch_tcb.snp"):
        assert refused(judged(evidence, {**LENIENT, claim: "{ min = 250 }"})) == [claim]


def test_snp_of_another_permission_level() -> None:
    claims = snp_claims("snp/report_vlek.bin", "snp/vlek.der", "snp/milan_asvk_ark.pem")
    # This cloud's firmware has closed BadRAM.
    lenient = {**LENIENT, "snp.platform.alias_check_complete": "true"}
    assert refused(judged(verified("snp", claims), lenient)) == ["snp.vmpl"]
    assert judged(verified("snp", claims), {**lenient, "snp.vmpl": "1"}).accepted


def test_sgx() -> None:
    collateral = parse_collateral(vector("sgx/quote_v3.collateral.json"), "x")
    claims = (
        SgxVerifier()
        .authenticate(sgx_report(vector("sgx/quote_v3.bin"), collateral), INTEL_NOW)
        .claims
    )
    evidence = verified("sgx", claims)
    # What its status and advisories say is accepted when the policy names it, with a warning.
    assert judged(evidence).tier is Tier.WARNING
    strict = {"tcb.status": '"UpToDate"', "tcb.advisories": "[]"}
    assert refused(judged(evidence, strict)) == ["tcb.advisories", "tcb.status"]
    status = '{ accept = ["UpToDate"], grace = ["ConfigurationAndSWHardeningNeeded"], grace_days = '
    assert refused(judged(evidence, {"tcb.status": status + "1 }"})) == ["tcb.status"]
    assert judged(evidence, {"tcb.status": status + "3650 }"}).accepted


def test_tdx() -> None:
    collateral = parse_collateral(vector("tdx/quote_v4.collateral.json"), "x")
    quote = without_padding(vector("tdx/quote_v4.bin"), tdx.FORMAT)
    report = tdx.encode_report(quote, collateral, None)
    evidence = verified("tdx", TdxVerifier().authenticate(report, INTEL_NOW).claims)
    # Its guest is not avow: no log shows the module.
    assert refused(judged(evidence)) == ["module_measured"]
    measured = verified("tdx", evidence.claims, module_measured=True)
    assert judged(measured).tier is Tier.AFFIRMING


def test_nitro() -> None:
    now = datetime(2021, 3, 17, 22, 30, tzinfo=UTC)
    document = nitro.NitroVerifier().prove(vector("nitro/document_production.bin"), now)
    assert judged(verified("nitro", nitro._claims(document))).tier is Tier.AFFIRMING
    now = datetime(2024, 1, 24, 19, 0, tzinfo=UTC)
    document = nitro.NitroVerifier().prove(vector("nitro/document_debug.bin"), now)
    result = judged(verified("nitro", nitro._claims(document)))
    assert [finding.check.number for finding in result.findings] == ["P9"]


def key(name: str) -> ec.EllipticCurvePublicKey:
    public = load_pem_public_key(vector(name))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return public


@pytest.mark.parametrize("name", ["psa/psa-2_0_0_sign1.bin", "psa/psa-iot-1_sign1.bin"])
def test_psa(name: str) -> None:
    token = vector(name)
    verifier = PsaVerifier({parse_token(token).instance_id: key("psa/public.pem")})
    claims = verifier.authenticate(token, JUNE).claims
    result = judged(verified("psa", claims))
    # Of a device whose key is published nobody can say that it is not being debugged.
    assert refused(result) == (["debug"] if claims["debug"] else [])
    assert judged(verified("psa", claims, debug=False)).tier is Tier.AFFIRMING


def test_cca() -> None:
    token = vector("cca/cca_token.cbor")
    device = cca.parse_token(token).platform.instance_id
    claims = CcaVerifier({device: key("cca/cca_platform.pub")}).authenticate(token, JUNE).claims
    assert refused(judged(verified("cca", claims))) == (["debug"] if claims["debug"] else [])
    assert judged(verified("cca", claims, debug=False)).tier is Tier.AFFIRMING
