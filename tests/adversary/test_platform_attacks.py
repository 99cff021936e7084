"""Hardware that should not be believed any more, or never: on mock vendors, under a real policy.

As for connections, each check is taken out of the code that runs, and the attack has to succeed
once nothing is left in its way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from avow.errors import AvowError, Finding
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.origin import DOCUMENT_BINDER, Expectation, Verified, verify_evidence
from avow.evidence.report_data import batch
from avow.evidence.roles import Verifier
from avow.policy.policy_file import parse_policy
from avow.tee.intel.collateral import Collateral, parse_collateral
from avow.tee.intel.vouching import Roots
from avow.tee.sgx.report import encode_report
from avow.tee.sgx.verifier import SgxVerifier
from avow.tee.snp.report import Tcb
from avow.testing import amd_pki, nitro_pki
from avow.testing.amd_pki import AmdPki, SnpSigner
from avow.testing.intel_pki import IntelPki, SgxBody
from avow.testing.nitro_pki import NitroPki
from tests.adversary.removal import Defence, removed

NONCE = bytes(range(32))
WORKLOAD = Workload(b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, b"\x04" * 32)
POLICY = Defence("", "avow.policy.policy", inside="require")

COMMON = f"""
version = 1
name = "the one broker"
module = "{WORKLOAD.module.hex()}"
runtime = "{WORKLOAD.runtime.hex()}"
configuration = "{WORKLOAD.configuration.hex()}"
evidence_age_s = {{ min = -60, max = 60 }}
"""
SNP_POLICY = (
    COMMON
    + """
platform = "snp"
debug = false
[snp]
measurement = "any"
chip_id = "any"
migration_agent = false
vmpl = { max = 0 }
tcb = { bootloader.min = 0, tee.min = 0, snp.min = 0, microcode.min = 0, fmc.min = 0 }
launch_tcb = { bootloader.min = 4, tee.min = 1, snp.min = 24, microcode.min = 219, fmc.min = 0 }
platform.alias_check_complete = true
[collateral]
crl_checked = true
age_s = { max = 31536000 }
"""
)
SGX_POLICY = (
    COMMON
    + """
platform = "sgx"
debug = false
[sgx]
mrenclave = "any"
[tcb]
status = "UpToDate"
advisories = []
evaluation_number = { min = 17 }
[collateral]
crl_checked = true
age_s = { max = 2592000 }
"""
)
NITRO_POLICY = (
    COMMON
    + """
platform = "nitro"
debug = false
[nitro.pcr]
0 = "any"
1 = "any"
2 = "any"
"""
)


def _appraise(
    policy: str, verifier: Verifier, make: Callable[[bytes], bytes], now: datetime
) -> AvowError | None:
    """Evidence by `make`, which gets the report data; None when the policy accepts it."""
    claims = Claims(NONCE, Role.DOCUMENT, WORKLOAD, b"", int(now.timestamp()))
    report_data, paths = batch([(claims, DOCUMENT_BINDER)])
    content = Evidence(
        verifier.platform, make(report_data.content), claims.encoded(), paths[0]
    ).encoded()
    expectation = Expectation(NONCE, Role.DOCUMENT, b"", DOCUMENT_BINDER)
    try:
        verified: Verified = verify_evidence(
            content, expectation, {verifier.platform: verifier}, now
        )
        parse_policy(policy, name="policy.toml").require(verified)
    except AvowError as error:
        return error
    return None


def _check(error: AvowError | None) -> str | None:
    if error is None:
        return None
    assert isinstance(error.finding, Finding), error
    return error.finding.check.number


def _stopped(attack: Callable[[], AvowError | None], defences: list[Defence]) -> None:
    for number, defence in enumerate(defences):
        with removed(defences[:number]):
            error = attack()
            assert _check(error) == defence.check, error
    with removed(defences):
        error = attack()
        assert error is None, error


@pytest.fixture(scope="module")
def amd() -> AmdPki:
    return AmdPki()


def _snp(
    amd: AmdPki,
    signer: SnpSigner,
    *,
    now: datetime = amd_pki.NOW,
    revoked: Sequence[tuple[str | None, int]] = (),
    list_age: timedelta = timedelta(days=30),
    **fields: Any,
) -> AvowError | None:
    issued = now - list_age
    crl = amd.crl(revoked, this_update=issued, next_update=issued + timedelta(days=60))
    return _appraise(
        SNP_POLICY,
        amd.verifier([crl]),
        lambda data: signer.evidence(data, **fields).encoded(),
        now,
    )


def test_a_good_chip_is_accepted(amd: AmdPki) -> None:
    assert _snp(amd, amd.chip()) is None


def test_revoked_vcek(amd: AmdPki) -> None:
    """AMD's list names issuer and serial number."""
    chip = amd.chip()
    _stopped(
        lambda: _snp(amd, chip, revoked=[("SEV-Milan", 0)]),
        [Defence("SNP5", "avow.tee.snp.verifier", "REVOCATION", inside="_revocation_claims")],
    )


def test_no_revocation_list(amd: AmdPki) -> None:
    """A verifier that was given no list cannot say that nothing was revoked: the policy refuses."""
    chip = amd.chip()
    _stopped(
        lambda: _appraise(
            SNP_POLICY, amd.verifier(), lambda data: chip.evidence(data).encoded(), amd_pki.NOW
        ),
        [replace(POLICY, check="P4")],
    )


def test_old_revocation_list(amd: AmdPki) -> None:
    """A stale list is no judgement, and no acceptance either."""
    chip = amd.chip()
    _stopped(
        lambda: _snp(amd, chip, list_age=timedelta(days=400)),
        [
            Defence("SNP5", "avow.tee.snp.verifier", "REVOCATION", inside="_check_current"),
            replace(POLICY, check="P5"),
        ],
    )


def test_vlek_after_its_end(amd: AmdPki) -> None:
    cloud = amd.cloud()
    assert _snp(amd, cloud, now=amd_pki.VLEK_UNTIL) is None
    _stopped(
        lambda: _snp(amd, cloud, now=amd_pki.VLEK_UNTIL + timedelta(seconds=1)),
        [Defence("SNP4", "avow.tee.snp.verifier", "VALIDITY")],
    )


def test_another_maker(amd: AmdPki) -> None:
    """Somebody who calls himself AMD, and signs everything as AMD would."""
    chip = AmdPki().chip()
    assert _check(_snp(amd, chip)) == "SNP2"


def test_report_of_another_chip(amd: AmdPki) -> None:
    """A report that names another chip than the certificate that comes with it."""
    chip = amd.chip()
    _stopped(
        lambda: _snp(amd, chip, chip_id=b"\x99" * 64),
        [Defence("SNP8", "avow.tee.snp.verifier", "CHIP")],
    )


def test_guest_launched_under_old_firmware(amd: AmdPki) -> None:
    """After a live update the reported TCB is the new one."""
    old = Tcb(3, 0, 8, 115).encoded(turin=False)
    assert _check(_snp(amd, amd.chip(), launch_tcb=old)) == "P5"


def test_host_without_the_alias_check(amd: AmdPki) -> None:
    """BadRAM (CVE-2024-21944): bit 5 of PLATFORM_INFO is not set."""
    assert _check(_snp(amd, amd.chip(), platform_info=0)) == "P4"


def test_guest_that_may_be_debugged(amd: AmdPki) -> None:
    """Bit 19 of the guest policy."""
    chip = amd.chip()
    _stopped(
        lambda: _snp(amd, chip, policy=amd_pki.POLICY | 1 << 19), [replace(POLICY, check="P9")]
    )


INTEL_NOW = datetime.fromisoformat("2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def intel() -> IntelPki:
    return IntelPki(INTEL_NOW)


def _collateral(intel: IntelPki) -> Collateral:
    return parse_collateral(intel.collateral("sgx").encode(), "test")


def _sgx(
    intel: IntelPki,
    *,
    now: datetime = INTEL_NOW + timedelta(days=1),
    body: Callable[[SgxBody], SgxBody] = lambda body: body,
    stapled: bool = True,
) -> AvowError | None:
    verifier = SgxVerifier(Roots(root_der=intel.root_der))
    return _appraise(
        SGX_POLICY,
        verifier,
        lambda data: encode_report(
            intel.sgx_quote(body(SgxBody(report_data=data))),
            _collateral(intel) if stapled else None,
        ),
        now,
    )


def test_a_good_enclave_is_accepted(intel: IntelPki) -> None:
    assert _sgx(intel) is None


def test_debug_enclave(intel: IntelPki) -> None:
    """Genuine, and refused by a policy that does not say `unsafe_debug`."""
    _stopped(lambda: _sgx(intel, body=lambda body: body.debug()), [replace(POLICY, check="P9")])


@pytest.mark.parametrize("days", [-1, 31, 400])
def test_old_collateral(intel: IntelPki, days: int) -> None:
    """Not yet or not any more valid: nothing can be said about the processor."""
    error = _sgx(intel, now=INTEL_NOW + timedelta(days=days))
    assert _check(error) == "SGX3"


def test_no_collateral(intel: IntelPki) -> None:
    error = _sgx(intel, stapled=False)
    assert _check(error) == "SGX2"


@pytest.fixture(scope="module")
def aws() -> NitroPki:
    return NitroPki()


def _nitro(aws: NitroPki, **fields: Any) -> AvowError | None:
    return _appraise(
        NITRO_POLICY, aws.verifier(), lambda data: aws.document(data, **fields), nitro_pki.NOW
    )


def test_a_good_nitro_enclave_is_accepted(aws: NitroPki) -> None:
    assert _nitro(aws) is None


def test_zero_pcrs(aws: NitroPki) -> None:
    """An enclave in debug mode is measured as zeros: everybody can make one."""
    zeros = nitro_pki.PCRS | {0: bytes(48), 1: bytes(48), 2: bytes(48)}
    _stopped(lambda: _nitro(aws, pcrs=zeros), [replace(POLICY, check="P9")])


def test_document_of_an_emulator(aws: NitroPki) -> None:
    """QEMU's device signs nothing."""
    error = _appraise(
        NITRO_POLICY, aws.verifier(), lambda data: nitro_pki.qemu_document(data), nitro_pki.NOW
    )
    assert _check(error) == "NIT1"
