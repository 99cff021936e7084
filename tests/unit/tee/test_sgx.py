"""SGX on a mock of Intel's PKI: each refusal, every changed byte, the attesting side."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import AvowError, Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence import cbor
from avow.evidence.roles import Authenticated
from avow.tee.intel import vouching
from avow.tee.intel.collateral import Collateral
from avow.tee.intel.stapling import StapledCollateral
from avow.tee.intel.vouching import Roots, Voucher
from avow.tee.sgx import verifier as sgx
from avow.tee.sgx.attester import SgxAttester
from avow.tee.sgx.report import FORMAT, decode_enclave_report, decode_report, encode_report
from avow.tee.sgx.verifier import SgxVerifier
from avow.testing.gramine_directory import GramineDirectory
from avow.testing.intel_pki import CollateralSettings, IntelPki, SgxBody, TcbLevel, TdxBody
from tests.unit.tee.intel_world import (
    LATER,
    NOW,
    WORKLOAD,
    assert_in_vocabulary,
    changed,
    collateral,
    intel,
    report_data,
)

BODY = SgxBody(bytes(range(64)), config_id=bytes(range(64)))
ROOT = Path("/dev/attestation")


def _verifier(*collaterals: Collateral) -> SgxVerifier:
    return SgxVerifier(Roots(collaterals, intel().root_der))


def _report(body: SgxBody = BODY, settings: CollateralSettings | None = None) -> bytes:
    return encode_report(intel().sgx_quote(body), collateral("sgx", settings))


def _refused(report: bytes, error: type[AvowError], check: Check, now: datetime = LATER) -> str:
    with pytest.raises(error) as caught:
        _verifier().authenticate(report, now)
    assert caught.value.finding is not None
    assert caught.value.finding.check == check
    return str(caught.value)


def test_claims() -> None:
    authenticated = _verifier().authenticate(_report(), LATER)
    assert_in_vocabulary(authenticated)
    assert authenticated.platform == "sgx"
    assert authenticated.bound == BODY.report_data
    assert authenticated.binding == "report data"
    assert authenticated.claims == {
        "debug": False,
        "sgx.mrenclave": BODY.mrenclave,
        "sgx.mrsigner": BODY.mrsigner,
        "sgx.isv_prod_id": 7,
        "sgx.isv_svn": 3,
        "sgx.attributes": BODY.attributes,
        "sgx.config_id": BODY.config_id,
        "tcb.status": "UpToDate",
        "tcb.advisories": (),
        "tcb.evaluation_number": 18,
        "tcb.date_age_s": 366 * 86400,
        "collateral.age_s": 86400,
        "collateral.crl_checked": True,
    }


def test_levels_and_advisories_are_claims() -> None:
    settings = CollateralSettings(
        levels=(TcbLevel(svn=9), TcbLevel("OutOfDate", advisories=("INTEL-SA-00001",))),
        qe_status="OutOfDate",
        qe_advisories=("INTEL-SA-00002",),
        evaluation_number=21,
    )
    claims = _verifier().authenticate(_report(settings=settings), LATER).claims
    assert claims["tcb.status"] == "OutOfDate"
    assert claims["tcb.advisories"] == ("INTEL-SA-00001", "INTEL-SA-00002")
    assert claims["tcb.evaluation_number"] == 21


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        (CollateralSettings(pck_revoked=True), sgx.VOUCHED),
        (CollateralSettings(pck_ca_revoked=True), sgx.VOUCHED),
        (CollateralSettings(tcb_signing_revoked=True), sgx.VOUCHED),
        (CollateralSettings(levels=(TcbLevel(svn=4),)), sgx.TCB_LEVEL),
        (CollateralSettings(levels=(TcbLevel("Revoked"),)), sgx.TCB_LEVEL),
        (CollateralSettings(qe_status="Revoked"), sgx.TCB_LEVEL),
        (CollateralSettings(fmspc=bytes(6)), sgx.VOUCHED),
    ],
)
def test_what_intel_has_revoked_or_does_not_list(
    settings: CollateralSettings, check: Check
) -> None:
    _refused(_report(settings=settings), UntrustedError, check)


def test_debug_is_for_the_policy() -> None:
    assert _verifier().authenticate(_report(BODY.debug()), LATER).claims["debug"] is True
    assert _verifier().authenticate(_report(), LATER).claims["debug"] is False


def test_another_root() -> None:
    with pytest.raises(UntrustedError) as caught:
        SgxVerifier().authenticate(_report(), LATER)
    assert caught.value.finding is not None
    assert caught.value.finding.check == sgx.VOUCHED
    report = encode_report(IntelPki(NOW).sgx_quote(BODY), collateral("sgx"))
    _refused(report, UntrustedError, sgx.VOUCHED)


def test_collateral_of_tdx() -> None:
    report = encode_report(intel().sgx_quote(BODY), collateral("tdx"))
    _refused(report, UntrustedError, sgx.VOUCHED)


def test_no_collateral() -> None:
    report = encode_report(intel().sgx_quote(BODY), None)
    said = _refused(report, UnavailableError, sgx.COLLATERAL)
    assert "SGX collateral for FMSPC 00AABBCCDDEE" in said
    with pytest.raises(UnavailableError, match="FMSPC"):
        _verifier(collateral("tdx")).authenticate(report, LATER)
    with pytest.raises(UnavailableError, match="FMSPC"):
        _verifier(collateral("sgx", CollateralSettings(fmspc=bytes(6)))).authenticate(report, LATER)


def test_own_collateral_goes_first() -> None:
    own = collateral("sgx", CollateralSettings(evaluation_number=30))
    assert _verifier(own).authenticate(_report(), LATER).claims["tcb.evaluation_number"] == 30


def test_the_newer_of_two_own() -> None:
    older = collateral("sgx", CollateralSettings(evaluation_number=10))
    newer = collateral("sgx", issued=LATER)
    report = encode_report(intel().sgx_quote(BODY), None)
    for both in ((older, newer), (newer, older)):
        claims = _verifier(*both).authenticate(report, LATER).claims
        assert claims["tcb.evaluation_number"] == 18


def test_own_collateral_that_has_run_out_gives_way() -> None:
    own = collateral("sgx", issued=NOW - timedelta(days=60))
    assert _verifier(own).authenticate(_report(), LATER).claims["collateral.age_s"] == 86400


def test_collateral_out_of_date() -> None:
    assert _verifier().authenticate(_report(), NOW)
    assert _verifier().authenticate(_report(), NOW + timedelta(days=30, seconds=-1))
    ended = _refused(_report(), UnavailableError, sgx.CURRENT, NOW + timedelta(days=30))
    assert "out of date" in ended
    early = _refused(_report(), UnavailableError, sgx.CURRENT, NOW - timedelta(seconds=1))
    assert "not valid yet" in early
    assert "set this machine's clock" in early


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "pck_crl", "root_ca_crl"])
def test_each_part_of_the_collateral_runs_out(part: str) -> None:
    older = CollateralSettings(issued_apart={part: NOW - timedelta(days=20)})
    claims = _verifier().authenticate(_report(settings=older), LATER).claims
    # The root's list lives for a year, so its age says nothing.
    assert claims["collateral.age_s"] == (1 if part == "root_ca_crl" else 21) * 86400
    now = NOW + timedelta(days=10)
    _refused(_report(settings=older), UnavailableError, sgx.CURRENT, now)
    newer = CollateralSettings(issued_apart={part: LATER})
    _refused(_report(settings=newer), UnavailableError, sgx.CURRENT, NOW)


def test_the_older_evaluation_counts() -> None:
    for platform, quoting in ((21, 20), (20, 21)):
        settings = CollateralSettings(evaluation_number=platform, qe_evaluation_number=quoting)
        claims = _verifier().authenticate(_report(settings=settings), LATER).claims
        assert claims["tcb.evaluation_number"] == 20


def test_the_debug_bit() -> None:
    """What dcap-qvl would have to let through first."""
    assert decode_enclave_report(BODY.debug().encoded()).debug
    assert not decode_enclave_report(BODY.encoded()).debug


def test_the_debug_bit_is_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Voucher, "vouch", lambda *_: {})
    report = encode_report(intel().sgx_quote(BODY.debug()), None)
    assert _verifier().authenticate(report, LATER).claims["debug"] is True


def test_certificates_out_of_date() -> None:
    settings = CollateralSettings(valid_for=timedelta(days=3650))
    _refused(_report(settings=settings), UntrustedError, sgx.VOUCHED, NOW + timedelta(days=366))


def _judged(report: bytes) -> Authenticated | AvowError:
    try:
        return _verifier(collateral("sgx")).authenticate(report, LATER)
    except AvowError as error:
        return error


def test_every_changed_byte_of_the_quote() -> None:
    """A change in the chain is refused too, or leaves the certificates that count as they are."""
    quote = intel().sgx_quote(BODY)
    good = _judged(encode_report(quote, None))
    signed = len(quote) - len(decode_report(encode_report(quote, None)).quote.chain)
    for place, content in enumerate(changed(quote)):
        judged = _judged(encode_report(content, None))
        if place < signed:
            assert isinstance(judged, MalformedError | UntrustedError)
        if isinstance(judged, AvowError):
            assert judged.finding is not None
        else:
            assert judged == good


@pytest.mark.parametrize("name", [*collateral("sgx").texts, *collateral("sgx").blobs])
def test_every_changed_byte_of_the_collateral(name: str) -> None:
    """What is signed cannot be changed. Certificates that nothing needs may be: the chain of the
    CRL's issuer, and the root's own certificate."""
    quote = intel().sgx_quote(BODY)
    said = collateral("sgx").value()
    assert isinstance(said, dict)
    good = _verifier().authenticate(encode_report(quote, collateral("sgx")), LATER)
    part = said[name]
    content = part.encode() if isinstance(part, str) else part
    assert isinstance(content, bytes)
    for other in changed(content):
        value = other.decode() if isinstance(part, str) else other
        fields: dict[int | str, cbor.Value] = {"quote": quote, "collateral": {**said, name: value}}
        try:
            authenticated = _verifier().authenticate(cbor.encode(fields), LATER)
        except (MalformedError, UntrustedError, UnavailableError):
            continue
        assert name.endswith("_chain")
        assert authenticated == good


def test_shorter_and_longer() -> None:
    quote = intel().sgx_quote(BODY)
    for content in (*(quote[:size] for size in range(0, len(quote), 13)), quote + b"\0"):
        _refused(encode_report(content, None), MalformedError, FORMAT)
    report = encode_report(quote, None)
    for content in (report[:-1], report + b"\0", b""):
        _refused(content, MalformedError, FORMAT)


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (0, b"\x02"),
        (0, b"\x04"),
        (2, b"\x03"),
        (4, b"\x81"),
        (48 + 20, b"\x01"),
        (48 + 96, b"\x01"),
        (48 + 160, b"\x01"),
        (48 + 303, b"\x01"),
        (48 + 384, b"\x00"),
        (48 + 384 + 4 + 64 + 64 + 384 + 64, b"\xff\xff"),
        (48 + 384 + 4 + 64 + 64 + 384 + 64 + 2 + 32, b"\x03"),
    ],
)
def test_other_formats(offset: int, content: bytes) -> None:
    quote = bytearray(intel().sgx_quote(BODY))
    quote[offset : offset + len(content)] = content
    _refused(encode_report(bytes(quote), None), MalformedError, FORMAT)


def test_a_quote_of_tdx() -> None:
    quote = intel().tdx_quote(TdxBody(bytes(64)))
    _refused(encode_report(quote, None), MalformedError, FORMAT)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"quote": "text"},
        {"quote": b"", "more": 1},
        {"quote": b"", "collateral": None},
        {"quote": b"", "collateral": {}},
        {"collateral": {}},
        [],
    ],
)
def test_other_reports(fields: Any) -> None:
    _refused(cbor.encode(fields), MalformedError, FORMAT)


@given(st.binary(max_size=2000), st.integers(0, 5000))
def test_any_bytes(content: bytes, place: int) -> None:
    for candidate in (content, encode_report(content, None)):
        with pytest.raises(MalformedError):
            decode_report(candidate)
    quote = intel().sgx_quote(BODY)
    mixed = quote[:place] + content + quote[place + len(content) :]
    judged = _judged(encode_report(mixed, None))
    assert isinstance(judged, AvowError) or judged.bound == BODY.report_data


def test_a_panic_in_rust_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyO3 raises panics as a BaseException that can be told by its module only."""
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def parse_quote(quote: bytes) -> None:
        raise panic("index out of range")

    monkeypatch.setattr(vouching.dcap_qvl, "parse_quote", parse_quote)
    assert "panic" in _refused(_report(), UntrustedError, sgx.VOUCHED)


def test_what_is_no_panic_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_quote(quote: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vouching.dcap_qvl, "parse_quote", parse_quote)
    with pytest.raises(KeyboardInterrupt):
        _verifier().authenticate(_report(), LATER)


def _gramine(**changes: Any) -> GramineDirectory:
    directory = GramineDirectory(
        ROOT, lambda data: intel().sgx_quote(replace(BODY, report_data=data))
    )
    return replace(directory, **changes)


def test_attester() -> None:
    data = report_data()
    attester = SgxAttester(_gramine(), ROOT, lambda: collateral("sgx"))
    attester.measure(WORKLOAD)
    authenticated = _verifier().authenticate(attester.quote(data), LATER)
    assert authenticated.bound == data.content
    assert not authenticated.measured


def test_attester_cuts_padding_off() -> None:
    directory = _gramine()
    driver = directory.driver
    directory.driver = lambda data: driver(data) + bytes(100)
    report = SgxAttester(directory, ROOT).quote(report_data())
    assert _verifier(collateral("sgx")).authenticate(report, LATER)
    directory.driver = lambda data: driver(data) + bytes(100) + b"x"
    with pytest.raises(UnavailableError, match="Gramine's log"):
        SgxAttester(directory, ROOT).quote(report_data())


@pytest.mark.parametrize("kind", ["none", "epid"])
def test_attester_without_dcap(kind: str) -> None:
    with pytest.raises(UnavailableError, match="attestation type dcap"):
        SgxAttester(_gramine(attestation_type=kind), ROOT)


def test_attester_outside_of_gramine() -> None:
    with pytest.raises(UnavailableError, match="run in Gramine"):
        SgxAttester(_gramine(), Path("/elsewhere"))


def test_attester_gets_a_quote_over_other_data() -> None:
    directory = _gramine(driver=lambda data: intel().sgx_quote(BODY))
    with pytest.raises(UnavailableError, match="over other data"):
        SgxAttester(directory, ROOT).quote(report_data())


def test_attester_when_gramine_fails() -> None:
    def fail(data: bytes) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(UnavailableError, match="AESM"):
        SgxAttester(_gramine(driver=fail), ROOT).quote(report_data())


def test_stapled_collateral_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "collateral.json"
    path.write_text(intel().collateral("sgx"))
    stapled = StapledCollateral(path)
    assert stapled().issued_at == NOW
    new = tmp_path / "new.json"
    new.write_text(intel().collateral("sgx", issued=LATER))
    new.replace(path)
    assert stapled().issued_at == LATER
    path.write_text("half of a")
    assert stapled().issued_at == LATER
    path.unlink()
    assert stapled().issued_at == LATER
    for content in (None, "other"):
        if content is not None:
            path.write_text(content)
        with pytest.raises((UnavailableError, MalformedError), match="ollateral"):
            StapledCollateral(path)
