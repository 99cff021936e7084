"""Checks E1 to E9: each is the only one that stops its attack, so each removed makes one fail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from avow.errors import AvowError, MalformedError, UnavailableError, UntrustedError
from avow.evidence import cbor, origin
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.envelope import Evidence
from avow.evidence.origin import Expectation, Verified, verify_evidence
from avow.evidence.report_data import Step, batch
from avow.evidence.roles import Authenticated
from avow.evidence.vocabulary import ClaimValue

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)
CLAIMS = Claims(
    nonce=b"n" * 32,
    role=Role.SERVER,
    workload=WORKLOAD,
    key=b"k" * 32,
    issued_at_s=int(NOW.timestamp()) - 7,
)
BINDER = b"B" * 64
EXPECTATION = Expectation(b"n" * 32, Role.SERVER, b"k" * 32, BINDER)


@dataclass
class Signer:
    """A platform whose "signature" is the report itself: what it says was signed, was signed."""

    platform: str = "snp"
    form: str = "report data"
    claims: dict[str, ClaimValue] = field(default_factory=lambda: {"debug": False})
    measured: dict[str, bytes] = field(default_factory=dict)

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        assert now == NOW
        if self.form == "sha256":
            return Authenticated(self.platform, report, "sha256", self.claims, self.measured)
        return Authenticated(self.platform, report, "report data", self.claims, self.measured)


def _evidence(claims: Claims = CLAIMS, *, binder: bytes = BINDER, platform: str = "snp") -> bytes:
    report_data, paths = batch([(claims, binder)])
    return Evidence(platform, report_data.content, claims.encoded(), paths[0]).encoded()


def _verify(
    content: bytes,
    *,
    expectation: Expectation = EXPECTATION,
    signer: Signer | None = None,
) -> Verified:
    signer = signer or Signer()
    return verify_evidence(content, expectation, {"snp": signer}, NOW)


def _check_of(error: AvowError) -> str:
    assert error.finding is not None
    assert error.finding.check in origin.CHECKS
    assert error.finding.expected in str(error)
    assert error.finding.advice in str(error)
    return error.finding.check.number


def test_good_evidence_gives_claims() -> None:
    verified = _verify(_evidence())
    assert verified.platform == "snp"
    assert verified.nonce == CLAIMS.nonce
    assert verified.verified_at == NOW
    assert verified.claims == {
        "platform": "snp",
        "role": "server",
        "module": b"m" * 32,
        "runtime": b"r" * 32,
        "configuration": b"c" * 32,
        "boot_id": b"b" * 32,
        "key": b"k" * 32,
        "user_data": b"",
        "evidence_age_s": 7,
        "module_measured": False,
        "debug": False,
    }


def test_many_share_a_signature() -> None:
    others = [(replace(CLAIMS, nonce=bytes([number]) * 32), bytes(64)) for number in range(5)]
    report_data, paths = batch([*others, (CLAIMS, BINDER)])
    evidence = Evidence("snp", report_data.content, CLAIMS.encoded(), paths[5])
    assert _verify(evidence.encoded()).nonce == CLAIMS.nonce


def test_a_platform_without_room_signs_a_digest() -> None:
    report_data, _ = batch([(CLAIMS, BINDER)])
    digest = hashlib.sha256(report_data.content).digest()
    evidence = Evidence("snp", digest, CLAIMS.encoded())
    assert _verify(evidence.encoded(), signer=Signer(form="sha256"))
    with pytest.raises(UntrustedError) as caught:
        _verify(_evidence(), signer=Signer(form="sha256"))
    assert _check_of(caught.value) == "E7"


def test_a_complete_log_says_that_the_module_was_measured() -> None:
    log = {"module": b"m" * 32, "runtime": b"r" * 32, "configuration": b"c" * 32}
    assert _verify(_evidence(), signer=Signer(measured=log)).claims["module_measured"] is True
    del log["runtime"]
    assert _verify(_evidence(), signer=Signer(measured=log)).claims["module_measured"] is False


def _noise() -> Verified:
    return _verify(b"noise")


def _claims_that_are_none() -> Verified:
    return _verify(Evidence("snp", b"r" * 64, cbor.encode({1: 2})).encoded())


def _other_platform() -> Verified:
    return _verify(_evidence(platform="nitro"))


def _other_nonce() -> Verified:
    return _verify(_evidence(replace(CLAIMS, nonce=b"o" * 32)))


def _other_role() -> Verified:
    return _verify(_evidence(replace(CLAIMS, role=Role.CLIENT)))


def _other_key() -> Verified:
    return _verify(_evidence(replace(CLAIMS, key=b"l" * 32)))


def _other_connection() -> Verified:
    return _verify(_evidence(binder=b"C" * 64))


def _swapped_claims() -> Verified:
    """The module changed under the same signature."""
    report_data, _ = batch([(CLAIMS, BINDER)])
    other = replace(CLAIMS, workload=replace(WORKLOAD, module=b"x" * 32))
    return _verify(Evidence("snp", report_data.content, other.encoded()).encoded())


def _path_of_another_leaf() -> Verified:
    other = (replace(CLAIMS, nonce=b"o" * 32), bytes(64))
    report_data, paths = batch([other, (CLAIMS, BINDER)])
    return _verify(Evidence("snp", report_data.content, CLAIMS.encoded(), paths[0]).encoded())


def _path_that_goes_on() -> Verified:
    report_data, _ = batch([(CLAIMS, BINDER)])
    path = (Step(bytes(64), True),)
    return _verify(Evidence("snp", report_data.content, CLAIMS.encoded(), path).encoded())


def _other_log() -> Verified:
    return _verify(_evidence(), signer=Signer(measured={"module": b"x" * 32}))


def _log_of_something_else() -> Verified:
    return _verify(_evidence(), signer=Signer(measured={"firmware": b""}))


def _unknown_claim() -> Verified:
    return _verify(_evidence(), signer=Signer(claims={"debug": False, "colour": "red"}))


def _claim_of_another_type() -> Verified:
    return _verify(_evidence(), signer=Signer(claims={"debug": 0}))


def _claim_that_is_avows_own() -> Verified:
    return _verify(_evidence(), signer=Signer(claims={"debug": False, "module": b"x" * 32}))


@pytest.mark.parametrize(
    ("attack", "number", "error"),
    [
        (_noise, "E1", MalformedError),
        (_other_platform, "E2", UnavailableError),
        (_claims_that_are_none, "E3", MalformedError),
        (_other_nonce, "E4", UntrustedError),
        (_other_role, "E5", UntrustedError),
        (_other_key, "E6", UntrustedError),
        (_other_connection, "E7", UntrustedError),
        (_swapped_claims, "E7", UntrustedError),
        (_path_of_another_leaf, "E7", UntrustedError),
        (_path_that_goes_on, "E7", UntrustedError),
        (_other_log, "E8", UntrustedError),
        (_log_of_something_else, "E8", UntrustedError),
        (_unknown_claim, "E9", UntrustedError),
        (_claim_of_another_type, "E9", UntrustedError),
        (_claim_that_is_avows_own, "E9", UntrustedError),
    ],
)
def test_refusals(attack: Callable[[], Verified], number: str, error: type[AvowError]) -> None:
    with pytest.raises(error) as caught:
        attack()
    assert _check_of(caught.value) == number


def test_checks_are_numbered_in_order() -> None:
    assert [check.number for check in origin.CHECKS] == [
        f"E{number}" for number in range(1, len(origin.CHECKS) + 1)
    ]
