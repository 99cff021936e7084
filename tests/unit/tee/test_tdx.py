"""TDX on a mock of Intel's PKI: each refusal, every changed byte, RTMR3, the attesting side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import AvowError, Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence import cbor
from avow.evidence.claims import Workload
from avow.tee.configfs_tsm import TsmReports
from avow.tee.intel.collateral import Collateral
from avow.tee.intel.vouching import Roots
from avow.tee.tdx import rtmr
from avow.tee.tdx import verifier as tdx
from avow.tee.tdx.attester import RunTimeRegister, TdxAttester
from avow.tee.tdx.report import FORMAT, decode_report, encode_report
from avow.tee.tdx.verifier import TdxVerifier
from avow.testing.intel_pki import CollateralSettings, IntelPki, SgxBody, TcbLevel, TdxBody
from avow.testing.tsm_directory import TsmDirectory
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

OTHER = replace(WORKLOAD, configuration=b"d" * 32)
BODY = TdxBody(
    bytes(range(64)),
    mrconfigid=b"\x01" * 48,
    mrowner=b"\x02" * 48,
    mrownerconfig=b"\x03" * 48,
    rtmrs=(b"\x10" * 48, b"\x11" * 48, b"\x12" * 48, bytes(48)),
)
ROOT = Path("/sys/kernel/config/tsm/report")


def _verifier(*collaterals: Collateral) -> TdxVerifier:
    return TdxVerifier(Roots(collaterals, intel().root_der))


def _report(
    body: TdxBody = BODY, settings: CollateralSettings | None = None, log: rtmr.Log | None = None
) -> bytes:
    version = 5 if body.version == 15 else 4
    quote = intel().tdx_quote(body, version=version)
    return encode_report(quote, collateral("tdx", settings), log)


def _refused(report: bytes, error: type[AvowError], check: Check) -> str:
    with pytest.raises(error) as caught:
        _verifier().authenticate(report, LATER)
    assert caught.value.finding is not None
    assert caught.value.finding.check == check
    return str(caught.value)


@pytest.mark.parametrize(("version", "kind"), [(4, 10), (5, 10), (5, 15)])
def test_claims(version: int, kind: int) -> None:
    body = replace(BODY, version=kind)
    report = encode_report(intel().tdx_quote(body, version=version), collateral("tdx"), None)
    authenticated = _verifier().authenticate(report, LATER)
    assert_in_vocabulary(authenticated)
    assert authenticated.platform == "tdx"
    assert authenticated.bound == BODY.report_data
    assert authenticated.binding == "report data"
    assert not authenticated.measured
    assert authenticated.claims == {
        "debug": False,
        "tdx.mrtd": BODY.mrtd,
        "tdx.mrconfigid": BODY.mrconfigid,
        "tdx.mrowner": BODY.mrowner,
        "tdx.mrownerconfig": BODY.mrownerconfig,
        "tdx.rtmr.0": BODY.rtmrs[0],
        "tdx.rtmr.1": BODY.rtmrs[1],
        "tdx.rtmr.2": BODY.rtmrs[2],
        "tdx.rtmr.3": BODY.rtmrs[3],
        "tdx.mrseam": BODY.mrseam,
        "tdx.mrsignerseam": BODY.mrsignerseam,
        "tdx.attributes": BODY.attributes,
        "tdx.sept_ve_disable": True,
        "tdx.migratable": False,
        "tdx.mrservicetd": bytes(48),
        "tdx.xfam": BODY.xfam,
        "tcb.status": "UpToDate",
        "tcb.advisories": (),
        "tcb.evaluation_number": 18,
        "tcb.date_age_s": 366 * 86400,
        "collateral.age_s": 86400,
        "collateral.crl_checked": True,
    }


@pytest.mark.parametrize(
    ("body", "claim", "value"),
    [
        (BODY.debug(), "debug", True),
        # Profiling (bits 4 to 6) and a reserved bit of TUD.
        (replace(BODY, attributes=bytes.fromhex("1000001000000000")), "debug", True),
        (replace(BODY, attributes=bytes.fromhex("4000001000000000")), "debug", True),
        (replace(BODY, attributes=bytes(8)), "tdx.sept_ve_disable", False),
        (replace(BODY, attributes=bytes.fromhex("0000003000000000")), "tdx.migratable", True),
        (replace(BODY, version=15, mrservicetd=b"\x01" * 48), "tdx.mrservicetd", b"\x01" * 48),
    ],
)
def test_what_is_for_the_policy(body: TdxBody, claim: str, value: object) -> None:
    """Genuine, although dcap-qvl would have refused it: a claim says what it is."""
    claims = _verifier().authenticate(_report(body), LATER).claims
    ordinary = _verifier().authenticate(_report(), LATER).claims
    assert claims[claim] == value
    assert ordinary[claim] != value
    named = {claim, "tdx.attributes", "tdx.sept_ve_disable"}
    assert {name: of for name, of in claims.items() if name not in named} == {
        name: of for name, of in ordinary.items() if name not in named
    }


@pytest.mark.parametrize("bit", [1, 7, 8, 15, 23, 26, 32, 61])
def test_reserved_attributes(bit: int) -> None:
    attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
    words = _refused(_report(replace(BODY, attributes=attributes)), UntrustedError, tdx.ATTRIBUTES)
    assert f"reserved bits {bit};" in words


@pytest.mark.parametrize("days", [-366, 366])
def test_a_clock_that_is_wrong(days: int) -> None:
    """Nobody is accused of changing evidence."""
    now = NOW + timedelta(days=days)
    stapled = collateral("tdx", issued=now)
    report = encode_report(intel().tdx_quote(BODY), stapled, None)
    with pytest.raises(UntrustedError, match="set this machine's clock") as caught:
        _verifier().authenticate(report, now)
    assert "2025-01-01T00:00:00Z to 2027-01-01T00:00:00Z" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        (CollateralSettings(pck_revoked=True), tdx.VOUCHED),
        (CollateralSettings(levels=(TcbLevel(svn=4),)), tdx.TCB_LEVEL),
        (CollateralSettings(levels=(TcbLevel("Revoked"),)), tdx.TCB_LEVEL),
    ],
)
def test_what_intel_has_revoked_or_does_not_list(
    settings: CollateralSettings, check: Check
) -> None:
    _refused(_report(settings=settings), UntrustedError, check)


def test_collateral() -> None:
    quote = intel().tdx_quote(BODY)
    said = _refused(encode_report(quote, None, None), UnavailableError, tdx.COLLATERAL)
    assert "TDX collateral for FMSPC 00AABBCCDDEE" in said
    old = collateral("tdx", issued=NOW - timedelta(days=60))
    assert "out of date" in _refused(encode_report(quote, old, None), UnavailableError, tdx.CURRENT)
    _refused(encode_report(quote, collateral("sgx"), None), UntrustedError, tdx.VOUCHED)
    report = encode_report(quote, None, None)
    assert _verifier(collateral("sgx"), collateral("tdx")).authenticate(report, LATER)


def test_another_root() -> None:
    report = encode_report(IntelPki(NOW).tdx_quote(BODY), collateral("tdx"), None)
    _refused(report, UntrustedError, tdx.VOUCHED)
    with pytest.raises(UntrustedError):
        TdxVerifier().authenticate(_report(), LATER)


@pytest.mark.parametrize("version", [10, 15])
def test_every_changed_byte_of_the_quote(version: int) -> None:
    own = _verifier(collateral("tdx"))
    quote = intel().tdx_quote(replace(BODY, version=version), version=5)
    chain = decode_report(encode_report(quote, None, None)).quote.chain
    for content in list(changed(quote))[: len(quote) - len(chain)]:
        with pytest.raises((MalformedError, UntrustedError)) as caught:
            own.authenticate(encode_report(content, None, None), LATER)
        assert caught.value.finding is not None


def test_shorter_and_longer() -> None:
    quote = intel().tdx_quote(BODY)
    for content in (*(quote[:size] for size in range(0, len(quote), 13)), quote + b"\0"):
        _refused(encode_report(content, None, None), MalformedError, FORMAT)


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (0, b"\x03"),
        (0, b"\x04"),
        (4, b"\x00"),
        (48, b"\x01"),
        (48, b"\x04"),
        (50, b"\x49"),
        (54 + 584 + 4 + 64 + 64, b"\x05"),
        (54 + 584 + 4 + 64 + 64 + 2, b"\x00"),
    ],
)
def test_other_formats(offset: int, content: bytes) -> None:
    quote = bytearray(intel().tdx_quote(BODY, version=5))
    quote[offset : offset + len(content)] = content
    _refused(encode_report(bytes(quote), None, None), MalformedError, FORMAT)


def test_bytes_after_the_certification_data() -> None:
    """Inside of the signature data, whose size is right."""
    quote = bytearray(intel().tdx_quote(BODY) + b"\0")
    place = 48 + 584
    size = int.from_bytes(quote[place : place + 4], "little") + 1
    quote[place : place + 4] = size.to_bytes(4, "little")
    _refused(encode_report(bytes(quote), None, None), MalformedError, FORMAT)


def test_a_quote_of_sgx() -> None:
    quote = intel().sgx_quote(SgxBody(bytes(64)))
    _refused(encode_report(quote, None, None), MalformedError, FORMAT)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"quote": "text"},
        {"quote": b"", "more": 1},
        {"quote": b"", "collateral": None},
        {"quote": b"", "log": None},
        {"quote": b"", "log": [["module", bytes(32)]]},
        {"quote": b"", "log": [["module", bytes(32)]] * 3},
        {"quote": b"", "log": [["module", bytes(31)], ["runtime", b""], ["configuration", b""]]},
        {"quote": b"", "log": [["module"], ["runtime"], ["configuration"]]},
        {"quote": b"", "log": [1, 2, 3]},
        {"log": []},
        [],
    ],
)
def test_other_reports(fields: Any) -> None:
    _refused(cbor.encode(fields), MalformedError, FORMAT)


@given(st.binary(max_size=2000))
def test_any_bytes(content: bytes) -> None:
    for candidate in (content, encode_report(content, None, None)):
        with pytest.raises(MalformedError):
            decode_report(candidate)


def _extended(*workloads: Workload) -> tuple[rtmr.Log, TdxBody]:
    log = tuple(event for workload in workloads for event in rtmr.events_of(workload))
    return log, replace(BODY, rtmrs=(*BODY.rtmrs[:3], rtmr.replayed(log)))


def test_rtmr3_as_specified() -> None:
    """By hand, so that another implementation can follow the text."""
    register = bytes(48)
    for name, digest in ((b"module", b"m"), (b"runtime", b"r"), (b"configuration", b"c")):
        event = hashlib.sha384(b"avow rtmr3 v1" + name + b"\0" + digest * 32).digest()
        register = hashlib.sha384(register + event).digest()
    assert rtmr.replayed(rtmr.events_of(WORKLOAD)) == register


def test_measured() -> None:
    log, body = _extended(WORKLOAD)
    assert _verifier().authenticate(_report(body, log=log), LATER).measured == {
        "module": WORKLOAD.module,
        "runtime": WORKLOAD.runtime,
        "configuration": WORKLOAD.configuration,
    }


def test_measured_after_another_configuration() -> None:
    log, body = _extended(WORKLOAD, OTHER)
    measured = _verifier().authenticate(_report(body, log=log), LATER).measured
    assert measured["configuration"] == OTHER.configuration


@pytest.mark.parametrize("name", ["module", "runtime"])
def test_not_measured_when_something_else_ran_before(name: str) -> None:
    log, body = _extended(replace(WORKLOAD, **{name: b"x" * 32}), WORKLOAD)
    assert not _verifier().authenticate(_report(body, log=log), LATER).measured


def test_an_empty_log_measures_nothing() -> None:
    assert not _verifier().authenticate(_report(log=()), LATER).measured


@pytest.mark.parametrize(
    "log",
    [
        (),
        rtmr.events_of(OTHER),
        rtmr.events_of(WORKLOAD) * 2,
    ],
)
def test_a_log_that_does_not_explain_the_register(log: rtmr.Log) -> None:
    _, body = _extended(WORKLOAD)
    _refused(_report(body, log=log), UntrustedError, tdx.LOG)


class _Register:
    """RTMR3 as a file: what is written is extended. In place of the kernel."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "rtmr3:sha384"
        self.file.write_bytes(bytes(48))
        self.log_file = folder / "run" / "log.cbor"
        self.writes = 0

    def extend(self, content: bytes) -> None:
        assert len(content) == 48
        self.file.write_bytes(hashlib.sha384(self.file.read_bytes() + content).digest())
        self.writes += 1

    @property
    def value(self) -> bytes:
        return self.file.read_bytes()


class _ExtendingRegister(RunTimeRegister):
    def __init__(self, register: _Register) -> None:
        super().__init__(register.file, register.log_file, register.extend)


@pytest.fixture
def register(tmp_path: Path) -> _Register:
    return _Register(tmp_path)


def _directory(register: _Register) -> TsmDirectory:
    def driver(inblob: bytes, privlevel: int) -> tuple[bytes, bytes]:
        body = replace(BODY, report_data=inblob, rtmrs=(*BODY.rtmrs[:3], register.value))
        # Intel's quoting enclave fills its buffer with zeros.
        return intel().tdx_quote(body) + bytes(70), b""

    return TsmDirectory(ROOT, driver, "tdx_guest", hidden=frozenset({"auxblob", "privlevel"}))


def _attester(register: _Register, directory: TsmDirectory | None = None) -> TdxAttester:
    directory = _directory(register) if directory is None else directory
    return TdxAttester(
        TsmReports(ROOT, directory), _ExtendingRegister(register), lambda: collateral("tdx")
    )


def test_attester(register: _Register) -> None:
    data = report_data()
    attester = _attester(register)
    attester.measure(WORKLOAD)
    authenticated = _verifier().authenticate(attester.quote(data), LATER)
    assert authenticated.bound == data.content
    assert authenticated.measured["module"] == WORKLOAD.module
    assert register.writes == 3
    attester.measure(OTHER)
    authenticated = _verifier().authenticate(attester.quote(data), LATER)
    assert authenticated.measured["configuration"] == OTHER.configuration


def test_attester_started_again(register: _Register) -> None:
    """The register and its log outlive the process."""
    for _ in range(2):
        attester = _attester(register)
        attester.measure(WORKLOAD)
    authenticated = _verifier().authenticate(attester.quote(report_data()), LATER)
    assert authenticated.measured["module"] == WORKLOAD.module
    assert register.writes == 6


def _without_register(register: _Register) -> None:
    register.file.unlink()
    register.file.with_name("unused").write_bytes(bytes(48))


def _extended_by_another(register: _Register) -> None:
    register.extend(bytes(48))


def _broken_log(register: _Register) -> None:
    register.log_file.parent.mkdir()
    register.log_file.write_bytes(b"broken")


@pytest.mark.parametrize("spoil", [_without_register, _extended_by_another, _broken_log])
def test_attester_without_a_log(register: _Register, spoil: Callable[[_Register], None]) -> None:
    spoil(register)
    writes = register.writes
    attester = _attester(register)
    attester.measure(WORKLOAD)
    assert register.writes == writes
    if register.file.exists():
        report = attester.quote(report_data())
        assert decode_report(report).log is None
        assert not _verifier().authenticate(report, LATER).measured


def test_another_program_measures_after_us(register: _Register) -> None:
    """Its events would contradict our claims: no log, rather than evidence that is refused."""
    ours, theirs = _attester(register), _attester(register)
    ours.measure(WORKLOAD)
    theirs.measure(OTHER)
    report = ours.quote(report_data())
    assert decode_report(report).log is None
    assert _verifier().authenticate(report, LATER)
    assert decode_report(theirs.quote(report_data())).log is not None


def test_something_else_extends_after_us(register: _Register) -> None:
    attester = _attester(register)
    attester.measure(WORKLOAD)
    register.extend(bytes(48))
    report = attester.quote(report_data())
    assert decode_report(report).log is None
    assert not _verifier().authenticate(report, LATER).measured


def test_a_run_that_ended_between_log_and_register(register: _Register) -> None:
    """One event is in the log and not in the register; the measurement was not whole."""
    event = rtmr.events_of(WORKLOAD)[0]
    register.extend(event.extended())
    register.log_file.parent.mkdir()
    register.log_file.write_bytes(rtmr.encode_log(rtmr.events_of(WORKLOAD)[:2]))
    attester = _attester(register)
    attester.measure(WORKLOAD)
    report = attester.quote(report_data())
    assert decode_report(report).log == rtmr.events_of(WORKLOAD) * 2
    assert _verifier().authenticate(report, LATER).measured["module"] == WORKLOAD.module


def test_a_full_log(register: _Register) -> None:
    attester = _attester(register)
    for _ in range(rtmr.EVENTS_MAX // 3 + 2):
        attester.measure(WORKLOAD)
    log = decode_report(attester.quote(report_data())).log
    assert log is not None
    assert len(log) <= rtmr.EVENTS_MAX


def test_attester_gets_a_quote_over_other_data(register: _Register) -> None:
    directory = _directory(register)
    directory.driver = lambda *_: (intel().tdx_quote(BODY), b"")
    with pytest.raises(UnavailableError, match="over other data"):
        _attester(register, directory).quote(report_data())


@pytest.mark.parametrize("blob", [b"x", bytes(5000)])
def test_attester_gets_no_quote(register: _Register, blob: bytes) -> None:
    directory = _directory(register)
    directory.driver = lambda *_: (blob, b"")
    with pytest.raises(UnavailableError, match="quote generation service"):
        _attester(register, directory).quote(report_data())


def test_the_real_register_takes_one_write(tmp_path: Path) -> None:
    """Through the real file operations: a file does not extend, so no log explains it."""
    file = tmp_path / "rtmr3:sha384"
    file.write_bytes(bytes(48))
    register = RunTimeRegister(file, tmp_path / "log")
    register.extend(WORKLOAD)
    assert file.read_bytes() == rtmr.events_of(WORKLOAD)[2].extended()
    kept = register.kept()
    assert kept == rtmr.events_of(WORKLOAD)
    assert not rtmr.explains(kept, file.read_bytes())


def test_no_access(tmp_path: Path) -> None:
    register = RunTimeRegister(tmp_path, tmp_path / "log")
    with pytest.raises(UnavailableError, match="run as root"):
        register.extend(WORKLOAD)
