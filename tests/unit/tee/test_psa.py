"""PSA tokens of mock devices: every refusal by its check, both profiles, and OP-TEE's /dev/tee0."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import AvowError, Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.report_data import ReportData, batch
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee.psa import verifier as psa
from avow.tee.psa.attester import APPLICATION, PsaAttester
from avow.tee.psa.report import is_secured, parse_token
from avow.tee.psa.verifier import PsaVerifier
from avow.testing.arm_keys import (
    BOOT_SEED,
    COMPONENT,
    IMPLEMENTATION_ID,
    MEASUREMENT,
    SIGNER_ID,
    PsaDevice,
    TeeDevice,
)
from avow.testing.cose_signer import ES384

NOW = datetime(2025, 6, 1, tzinfo=UTC)
DATA = bytes(range(64))


@pytest.fixture(scope="module")
def device() -> PsaDevice:
    return PsaDevice()


@pytest.fixture
def report_data() -> ReportData:
    claims = Claims(bytes(32), Role.DOCUMENT, Workload(*[bytes(32)] * 4), b"", 0)
    return batch([(claims, bytes(64))])[0]


def refused(
    verifier: PsaVerifier, token: bytes, check: Check, error: type[AvowError] = UntrustedError
) -> None:
    with pytest.raises(error) as caught:
        verifier.authenticate(token, NOW)
    assert caught.value.finding is not None
    assert caught.value.finding.check is check


@pytest.mark.parametrize("profile", ["claims", "draft_claims", "old_claims"])
def test_a_token_is_proven(device: PsaDevice, profile: str) -> None:
    claims = getattr(device, profile)(DATA)
    proven = device.verifier().authenticate(device.token(claims), NOW)
    assert (proven.platform, proven.bound, proven.binding) == ("psa", DATA, "report data")
    assert proven.claims["debug"] is False
    assert proven.claims["psa.client_id"] == -1
    assert proven.claims["psa.boot_seed"] == BOOT_SEED
    assert proven.claims["psa.implementation_id"] == IMPLEMENTATION_ID
    assert proven.claims["psa.instance_id"] == device.instance_id
    assert proven.claims["psa.software"] == (f"BL:{MEASUREMENT.hex()}:{SIGNER_ID.hex()}",)
    for name, value in proven.claims.items():
        kind = kind_of(name)
        assert kind is not None, name
        assert is_value_of(kind, value), name


def test_the_boot_seed_of_each_profile(device: PsaDevice) -> None:
    """RFC 9783, section 4.3.2: claim 268 of EAT; 2397 is that of the drafts, and -75004 older."""
    for profile, key, other in (
        ("claims", 268, 2397),
        ("draft_claims", 2397, 268),
        ("old_claims", -75004, 268),
    ):
        claims = getattr(device, profile)(DATA)
        assert claims.pop(key) == BOOT_SEED
        seed = bytes(range(100, 132))
        token = device.token({**claims, key: seed, other: b"no meaning here"})
        assert device.verifier().authenticate(token, NOW).claims["psa.boot_seed"] == seed
        if key != -75004:
            token = device.token({**claims, other: BOOT_SEED})
            assert device.verifier().authenticate(token, NOW).claims["psa.boot_seed"] == b""


def test_a_token_that_is_no_signature(device: PsaDevice) -> None:
    """A COSE_Mac0 is good CBOR: the message says what it is."""
    mac = b"\xd1" + cbor2.dumps([cbor2.dumps({1: 5}), {}, cbor2.dumps(device.claims(DATA)), DATA])
    with pytest.raises(MalformedError, match=r"COSE_Sign1 \(tag 18\).*got a COSE_Mac0 \(tag 17\)"):
        device.verifier().authenticate(mac, NOW)
    refused(device.verifier(), mac, psa.FORM, MalformedError)


def test_larger_keys() -> None:
    device = PsaDevice(ec.generate_private_key(ec.SECP384R1()), ES384)
    token = device.token(device.claims(DATA))
    assert device.verifier().authenticate(token, NOW).bound == DATA


def test_what_may_be_missing(device: PsaDevice) -> None:
    claims = device.claims(DATA)
    for key in (268, 2398, 2400):
        del claims[key]
    claims[2399] = [{2: MEASUREMENT, 5: SIGNER_ID}]
    claims[12345] = {"unknown": [1, None, True]}
    proven = device.verifier().authenticate(device.token(claims), NOW).claims
    assert proven["psa.boot_seed"] == b""
    assert proven["psa.software"] == (f":{MEASUREMENT.hex()}:{SIGNER_ID.hex()}",)
    old = device.old_claims(DATA)
    for key in (-75000, -75005, -75006, -75010):
        del old[key]
    old[-75007] = 1
    proven = device.verifier().authenticate(device.token(old), NOW).claims
    assert proven["psa.profile"] == "PSA_IOT_PROFILE_1"
    assert proven["psa.software"] == ()


def test_a_device_that_nobody_endorsed(device: PsaDevice) -> None:
    token = device.token(device.claims(DATA))
    refused(PsaVerifier({}), token, psa.KEY, UnavailableError)
    refused(PsaDevice().verifier(), token, psa.KEY, UnavailableError)


def test_a_device_that_says_it_is_another(device: PsaDevice) -> None:
    other = PsaDevice()
    token = other.token(device.claims(DATA))
    refused(device.verifier(), token, psa.SIGNATURE)


@pytest.mark.parametrize("size", [32, 48])
def test_a_nonce_that_is_no_report_data(device: PsaDevice, size: int) -> None:
    refused(device.verifier(), device.token(device.claims(DATA[:size])), psa.DATA)


def test_lifecycles() -> None:
    for state in range(0x10000):
        secured = 0x3000 <= state <= 0x30FF
        assert is_secured(state) is secured


@pytest.mark.parametrize(
    ("state", "debug"),
    [(0x3000, False), (0x30FF, False), (0, True), (0xFF, True), (0x1000, True), (0x2000, True),
     (0x4000, True), (0x5001, True), (0x60FF, True)],
)  # fmt: skip
def test_only_secured_is_not_debug(device: PsaDevice, state: int, debug: bool) -> None:
    token = device.token(device.claims(DATA) | {2395: state})
    claims = device.verifier().authenticate(token, NOW).claims
    assert (claims["debug"], claims["psa.lifecycle"]) == (debug, state)


def test_a_key_that_everybody_has_is_debug() -> None:
    """OP-TEE's example key, as it stands in its source."""
    private = int("f3bd0c07a81fb932781ed52752f60cc89a6be5e51934fe01938ddb55d8f77801", 16)
    device = PsaDevice(ec.derive_private_key(private, ec.SECP256R1()))
    token = device.token(device.claims(DATA))
    assert device.verifier().authenticate(token, NOW).claims["debug"] is True


BAD: tuple[dict[Any, Any], ...] = (
    {265: "http://arm.com/psa/3.0.0"},
    {265: None},
    {265: 1},
    {10: bytes(31)},
    {10: bytes(63)},
    {10: bytes(65)},
    {10: "nonce"},
    {10: [DATA, DATA]},
    {256: b"\2" + bytes(32)},
    {256: b"\1" + bytes(31)},
    {256: b"\1" + bytes(33)},
    {256: "\1"},
    {2394: 2**31},
    {2394: -(2**31) - 1},
    {2394: True},
    {2394: "1"},
    {2395: 0x100},
    {2395: 0x3100},
    {2395: 0x7000},
    {2395: -1},
    {2395: "secured"},
    {2396: bytes(31)},
    {2396: bytes(33)},
    {268: bytes(7)},
    {268: bytes(33)},
    {268: None},
    {268: "boot seed"},
    {2399: []},
    {2399: {}},
    {2399: [1]},
    {2399: [COMPONENT] * 65},
    {2399: [{key: value for key, value in COMPONENT.items() if key != 2}]},
    {2399: [{key: value for key, value in COMPONENT.items() if key != 5}]},
    {2399: [COMPONENT | {2: bytes(31)}]},
    {2399: [COMPONENT | {5: b""}]},
    {2399: [COMPONENT | {1: 1}]},
    {2399: [COMPONENT | {1: "a:b"}]},
    {2399: [COMPONENT | {1: "a\nb"}]},
    {2399: [COMPONENT | {1: "a" * 65}]},
    {2399: [COMPONENT | {4: b"1"}]},
)


@pytest.mark.parametrize("claims", BAD, ids=lambda each: str(each)[:40])
def test_claims_of_other_types_and_sizes(device: PsaDevice, claims: dict[Any, Any]) -> None:
    token = device.token(device.claims(DATA) | claims)
    refused(device.verifier(), token, psa.FORM, MalformedError)


@pytest.mark.parametrize("key", [265, 10, 256, 2394, 2395, 2396, 2399])
def test_claims_that_are_missing(device: PsaDevice, key: int) -> None:
    claims = device.claims(DATA)
    del claims[key]
    refused(device.verifier(), device.token(claims), psa.FORM, MalformedError)


@pytest.mark.parametrize("key", [-75001, -75002, -75003, -75004, -75006, -75008, -75009])
def test_old_claims_that_are_missing(device: PsaDevice, key: int) -> None:
    claims = device.old_claims(DATA)
    del claims[key]
    refused(device.verifier(), device.token(claims), psa.FORM, MalformedError)


@pytest.mark.parametrize(
    "claims",
    [
        {-75006: None, -75007: True},
        {-75006: None, -75007: 2},
        {-75000: "PSA_IOT_PROFILE_2"},
        {-75000: 1},
        {-75007: 1},
        {-75004: bytes(31)},
    ],
    ids=str,
)
def test_old_claims_of_other_types(device: PsaDevice, claims: dict[Any, Any]) -> None:
    token = device.token(device.old_claims(DATA) | claims)
    refused(device.verifier(), token, psa.FORM, MalformedError)


@pytest.mark.parametrize("payload", [[], 1, None, b"", "claims"])
def test_payloads_that_are_no_map(device: PsaDevice, payload: object) -> None:
    refused(device.verifier(), device.token(payload), psa.FORM, MalformedError)


def test_tags_and_floats_inside(device: PsaDevice) -> None:
    for value in (cbor2.CBORTag(1, 0), 1.5, cbor2.undefined):
        token = device.token(device.claims(DATA) | {9999: value})
        refused(device.verifier(), token, psa.FORM, MalformedError)


def test_no_byte_can_be_changed(device: PsaDevice) -> None:
    token, verifier = device.token(device.claims(DATA)), device.verifier()
    for place in range(len(token)):
        changed = token[:place] + bytes((token[place] ^ 0x80,)) + token[place + 1 :]
        with pytest.raises(AvowError):
            verifier.authenticate(changed, NOW)
    for changed in (token + b"\0", token[:-1]):
        refused(verifier, changed, psa.FORM, MalformedError)


@given(content=st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_token(content)


@given(data=st.data())
def test_mutated_claims(device: PsaDevice, data: st.DataObject) -> None:
    claims = device.claims(DATA)
    key = data.draw(st.sampled_from(sorted(claims)))
    claims[key] = data.draw(
        st.none() | st.booleans() | st.integers() | st.binary() | st.text() | st.lists(st.none())
    )
    try:
        device.verifier().authenticate(device.token(claims), NOW)
    except (MalformedError, UnavailableError, UntrustedError):
        return


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    path = tmp_path / "tee0"
    path.touch()
    return path


@pytest.fixture
def kernel(device: PsaDevice) -> Iterator[TeeDevice]:
    made = TeeDevice(APPLICATION, lambda nonce: device.token(device.claims(nonce)))
    yield made
    made.drop()


def test_op_tee_is_asked(
    device: PsaDevice, opened: Path, kernel: TeeDevice, report_data: ReportData
) -> None:
    attester = PsaAttester(opened, ioctl=kernel.ioctl)
    for _ in range(2):
        proven = device.verifier().authenticate(attester.quote(report_data), NOW)
        assert proven.bound == report_data.content
    assert kernel.closed == kernel.sessions == [1, 2]


def test_no_trusted_application(opened: Path, kernel: TeeDevice, report_data: ReportData) -> None:
    attester = PsaAttester(opened, uuid.UUID(int=1), kernel.ioctl)
    with pytest.raises(UnavailableError, match="install it"):
        attester.quote(report_data)


def test_another_tee(opened: Path, kernel: TeeDevice, report_data: ReportData) -> None:
    kernel.implementation = 2
    with pytest.raises(UnavailableError, match="another kind of TEE"):
        PsaAttester(opened, ioctl=kernel.ioctl).quote(report_data)


def test_an_application_that_fails(
    opened: Path, kernel: TeeDevice, report_data: ReportData
) -> None:
    kernel.result = 0xFFFF0001
    with pytest.raises(UnavailableError, match="0xffff0001"):
        PsaAttester(opened, ioctl=kernel.ioctl).quote(report_data)
    assert kernel.closed == [1]


@pytest.mark.parametrize(
    "answer",
    [
        lambda nonce: b"",
        lambda nonce: b"no token",
        lambda nonce: bytes(20000),
        lambda nonce: PsaDevice().token(PsaDevice().claims(bytes(64))),
    ],
)
def test_answers_that_are_none(
    opened: Path, report_data: ReportData, answer: Callable[[bytes], bytes]
) -> None:
    kernel = TeeDevice(APPLICATION, answer)
    with pytest.raises(UnavailableError):
        PsaAttester(opened, ioctl=kernel.ioctl).quote(report_data)
    kernel.drop()


def test_no_device(tmp_path: Path, report_data: ReportData) -> None:
    with pytest.raises(UnavailableError, match="group tee"):
        PsaAttester(tmp_path / "tee0").quote(report_data)


def test_not_the_device(opened: Path, report_data: ReportData) -> None:
    """A file in its place, with the kernel's own ioctl."""
    with pytest.raises(UnavailableError):
        PsaAttester(opened).quote(report_data)


def test_checks_are_numbered_in_order() -> None:
    assert [check.number for check in psa.CHECKS] == [f"PSA{n}" for n in range(1, 5)]
