"""CCA tokens of mock platforms: every refusal by its check, both profiles, and configfs-tsm."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
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
from avow.tee.cca import verifier as cca
from avow.tee.cca.attester import CcaAttester
from avow.tee.cca.report import parse_token
from avow.tee.cca.verifier import CcaVerifier
from avow.tee.configfs_tsm import REPORTS, TsmReports
from avow.testing.arm_keys import (
    COMPONENT,
    REALM_INSTANCE_ID,
    REMS,
    RIM,
    CcaPlatform,
    collection,
    cose_key,
    records,
)
from avow.testing.cose_signer import ES256, ES384, sign1
from avow.testing.tsm_directory import TsmDirectory

NOW = datetime(2025, 6, 1, tzinfo=UTC)
DATA = bytes(range(64))


@pytest.fixture(scope="module")
def platform() -> CcaPlatform:
    return CcaPlatform()


@pytest.fixture
def report_data() -> ReportData:
    claims = Claims(bytes(32), Role.DOCUMENT, Workload(*[bytes(32)] * 4), b"", 0)
    return batch([(claims, bytes(64))])[0]


def refused(
    verifier: CcaVerifier, token: bytes, check: Check, error: type[AvowError] = UntrustedError
) -> None:
    with pytest.raises(error) as caught:
        verifier.authenticate(token, NOW)
    assert caught.value.finding is not None
    assert caught.value.finding.check is check


@pytest.mark.parametrize("legacy", [False, True])
def test_a_token_is_proven(platform: CcaPlatform, legacy: bool) -> None:
    proven = platform.verifier().authenticate(platform.plain_token(DATA, legacy=legacy), NOW)
    assert (proven.platform, proven.bound, proven.binding) == ("cca", DATA, "report data")
    assert proven.claims["debug"] is False
    assert proven.claims["cca.rim"] == RIM
    assert tuple(proven.claims[f"cca.rem.{index}"] for index in range(4)) == REMS
    assert proven.claims["psa.instance_id"] == platform.instance_id
    for name, value in proven.claims.items():
        kind = kind_of(name)
        assert kind is not None, name
        assert is_value_of(kind, value), name


def halves(
    platform: CcaPlatform, own: dict[Any, Any], realm: dict[Any, Any]
) -> tuple[bytes, bytes]:
    """Both signed tokens."""
    parts = cbor2.loads(platform.token(own, realm)).value
    return parts[44234], parts[44241]


@pytest.mark.parametrize("legacy", [False, True])
def test_the_outer_form_of_tag_907(platform: CcaPlatform, legacy: bool) -> None:
    """TF-RMM 0.9.0 and draft-ffm-rats-cca-token-02; both signed tokens are the same."""
    old = platform.plain_token(DATA, legacy=legacy)
    parts = cbor2.loads(old).value
    token = records(parts[44234], parts[44241])
    claims = platform.verifier().authenticate(token, NOW).claims
    assert claims == platform.verifier().authenticate(old, NOW).claims
    for place in range(len(token)):
        changed = token[:place] + bytes((token[place] ^ 0x80,)) + token[place + 1 :]
        with pytest.raises(AvowError):
            platform.verifier().authenticate(changed, NOW)


def test_the_realm_profile_of_rmm_2(platform: CcaPlatform) -> None:
    realm = platform.realm_claims_2(DATA)
    second = platform.platform_claims() | {265: "tag:arm.com,2024:cca_platform#2.0.0"}
    for own in (platform.platform_claims(), second):
        token = records(*halves(platform, own, realm))
        claims = platform.verifier().authenticate(token, NOW).claims
        assert claims["cca.instance_id"] == REALM_INSTANCE_ID
        assert claims["cca.mec_policy"] == "private"
        assert "cca.lfa_policy" not in claims
        assert claims["cca.rim"] == RIM
        for name, value in claims.items():
            kind = kind_of(name)
            assert kind is not None, name
            assert is_value_of(kind, value), name
    for mec, lfa, words in ((0, 0, ("shared", "disallow")), (1, 1, ("private", "allow"))):
        realm |= {44243: mec, 44244: lfa}
        token = platform.token(platform.platform_claims(), realm)
        claims = platform.verifier().authenticate(token, NOW).claims
        assert (claims["cca.mec_policy"], claims["cca.lfa_policy"]) == words


@pytest.mark.parametrize(
    "claims",
    [
        {256: bytes(33)},
        {256: b"\1" + bytes(31)},
        {256: None},
        {44243: 2},
        {44243: -1},
        {44243: True},
        {44243: "private"},
        {44243: None},
        {44244: 2},
        {44244: True},
        {44244: None},
        {44257: bytes(32)},
        {265: "tag:arm.com,2024:realm#3.0.0"},
    ],
    ids=str,
)
def test_claims_of_rmm_2_of_other_types(platform: CcaPlatform, claims: dict[Any, Any]) -> None:
    token = platform.token(platform.platform_claims(), platform.realm_claims_2(DATA) | claims)
    refused(platform.verifier(), token, cca.FORM, MalformedError)


@pytest.mark.parametrize("key", [256, 265, 44243])
def test_claims_of_rmm_2_that_are_missing(platform: CcaPlatform, key: int) -> None:
    realm = platform.realm_claims_2(DATA)
    del realm[key]
    token = platform.token(platform.platform_claims(), realm)
    refused(platform.verifier(), token, cca.FORM, MalformedError)


def test_a_realm_with_devices_is_refused_in_words(platform: CcaPlatform) -> None:
    """What the devices are is in a third token, which is not read."""
    mine, realm = halves(platform, platform.platform_claims(), platform.realm_claims_2(DATA))
    content = {44234: [263, mine], 44241: [263, realm], 44258: [263, b"devices"]}
    collected = cbor2.dumps(cbor2.CBORTag(907, content))
    named = platform.realm_claims_2(DATA) | {44257: bytes(32)}
    for token in (collected, platform.token(platform.platform_claims(), named)):
        with pytest.raises(MalformedError, match="without assigned devices"):
            platform.verifier().authenticate(token, NOW)


def test_records_that_are_none(platform: CcaPlatform) -> None:
    mine, realm = halves(platform, platform.platform_claims(), platform.realm_claims(DATA))

    def wrapped(one: object, other: object, tag: int = 907) -> bytes:
        return cbor2.dumps(cbor2.CBORTag(tag, {44234: one, 44241: other}))

    assert platform.verifier().authenticate(wrapped([263, mine], [263, realm]), NOW)
    for token in (
        wrapped(mine, realm),
        wrapped([263, mine], realm),
        wrapped([263, mine], [263, realm], tag=399),
        wrapped([263, mine], [263, realm], tag=908),
        wrapped([264, mine], [263, realm]),
        wrapped([True, mine], [263, realm]),
        wrapped(["application/eat+cwt", mine], [263, realm]),
        wrapped([263, mine, 4], [263, realm]),
        wrapped([263], [263, realm]),
        wrapped([263, "token"], [263, realm]),
        wrapped([263, realm], [263, mine]),
        wrapped([263, mine], [263, realm]) + b"\0",
    ):
        refused(platform.verifier(), token, cca.FORM, MalformedError)


@pytest.mark.parametrize("name", ["sha-256", "sha-384", "sha-512"])
def test_hashes_of_the_realms_key(platform: CcaPlatform, name: str) -> None:
    digest = hashlib.new(name.replace("-", ""), platform.encoded_realm_key()).digest()
    token = platform.token(
        platform.platform_claims() | {10: digest}, platform.realm_claims(DATA) | {44240: name}
    )
    assert platform.verifier().authenticate(token, NOW).bound == DATA


def test_measurements_of_another_size(platform: CcaPlatform) -> None:
    large = {44236: "sha-512", 44238: bytes(64), 44239: [bytes(64)] * 4}
    token = platform.token(platform.platform_claims(), platform.realm_claims(DATA) | large)
    assert platform.verifier().authenticate(token, NOW).claims["cca.rim"] == bytes(64)


def test_a_platform_that_nobody_endorsed(platform: CcaPlatform) -> None:
    token = platform.plain_token(DATA)
    refused(CcaVerifier({}), token, cca.KEY, UnavailableError)
    refused(CcaPlatform().verifier(), token, cca.KEY, UnavailableError)


def test_a_platform_that_says_it_is_another(platform: CcaPlatform) -> None:
    other = CcaPlatform(realm_key=platform.realm_key)
    token = other.token(platform.platform_claims(), platform.realm_claims(DATA))
    refused(platform.verifier(), token, cca.PLATFORM)


def test_a_realm_token_of_another_platform(platform: CcaPlatform) -> None:
    """Each half is genuine: the platform has not named the key of the other half."""
    other = CcaPlatform(key=platform.key)
    mine = sign1(cbor2.dumps(platform.platform_claims()), platform.key, ES384)
    theirs = sign1(cbor2.dumps(other.realm_claims(DATA)), other.realm_key, ES384)
    refused(platform.verifier(), collection(mine, theirs), cca.BINDING)


def test_a_realm_token_by_another_key(platform: CcaPlatform) -> None:
    mine = sign1(cbor2.dumps(platform.platform_claims()), platform.key, ES384)
    forger = ec.generate_private_key(ec.SECP384R1())
    forged = sign1(cbor2.dumps(platform.realm_claims(DATA)), forger, ES384)
    refused(platform.verifier(), collection(mine, forged), cca.REALM)


def test_a_key_of_another_strength(platform: CcaPlatform) -> None:
    small = ec.generate_private_key(ec.SECP256R1())
    mine = sign1(cbor2.dumps(platform.platform_claims()), platform.key, ES384)
    weak = sign1(cbor2.dumps(platform.realm_claims(DATA)), small, ES256)
    refused(platform.verifier(), collection(mine, weak), cca.REALM)


@pytest.mark.parametrize(
    ("state", "debug"),
    [(0x3000, False), (0x3003, False), (0, True), (0x4000, True), (0x5000, True)],
)
def test_only_secured_is_not_debug(platform: CcaPlatform, state: int, debug: bool) -> None:
    token = platform.token(platform.platform_claims() | {2395: state}, platform.realm_claims(DATA))
    assert platform.verifier().authenticate(token, NOW).claims["debug"] is debug


def test_a_message_about_a_size_is_short(platform: CcaPlatform) -> None:
    """It once listed every length that a platform configuration may have."""
    token = platform.token(platform.platform_claims() | {2401: None}, platform.realm_claims(DATA))
    with pytest.raises(MalformedError, match="platform configuration of 0 to 1024 bytes") as caught:
        platform.verifier().authenticate(token, NOW)
    assert len(str(caught.value)) < 400


POINT = cbor2.loads(cose_key(ec.generate_private_key(ec.SECP384R1()).public_key()))

BAD_PLATFORM: tuple[dict[Any, Any], ...] = (
    {265: "tag:arm.com,2023:cca_platform#2.0.0"},
    {265: "tag:arm.com,2024:cca_platform#2.0.0"},
    {265: None},
    {265: []},
    {10: bytes(31)},
    {256: b"\2" + bytes(32)},
    {256: bytes(32)},
    {2395: 0x7000},
    {2395: 0x3FFF},
    {2396: bytes(33)},
    {2399: []},
    {2399: [COMPONENT | {2: b""}]},
    {2401: "config"},
    {2401: bytes(1025)},
    {2402: "md5"},
    {2402: None},
    {2402: []},
    {2402: b"sha-256"},
)
BAD_REALM: tuple[dict[Any, Any], ...] = (
    {265: "tag:arm.com,2026:realm#2.0.0"},
    {265: None},
    {10: bytes(32)},
    {10: bytes(65)},
    {44235: bytes(63)},
    {44236: "sha-1"},
    {44236: 1},
    {44236: "sha-512"},
    {44237: b""},
    {44237: "key"},
    {44237: cbor2.dumps([1, 2])},
    {44237: cbor2.dumps(2)},
    {44237: b"\4" + bytes(96)},
    {44237: cbor2.dumps(POINT | {1: 1})},
    {44237: cbor2.dumps(POINT | {-1: 6})},
    {44237: cbor2.dumps(POINT | {-1: True})},
    {44237: cbor2.dumps(POINT | {-1: 1})},
    {44237: cbor2.dumps(POINT | {-2: bytes(48)})},
    {44237: cbor2.dumps(POINT | {-3: bytes(47)})},
    {44237: cbor2.dumps(POINT | {-3: True})},
    {44237: cbor2.dumps(POINT) + b"\0"},
    {44238: bytes(31)},
    {44238: bytes(48)},
    {44239: list(REMS[:3])},
    {44239: [*REMS, bytes(32)]},
    {44239: [*REMS[:3], bytes(31)]},
    {44239: [*REMS[:3], None]},
    {44240: "sha-1"},
    {44240: None},
    {44240: ["sha-256"]},
)


@pytest.mark.parametrize("claims", BAD_PLATFORM, ids=lambda each: str(each)[:40])
def test_platform_claims_of_other_types(platform: CcaPlatform, claims: dict[Any, Any]) -> None:
    token = platform.token(platform.platform_claims() | claims, platform.realm_claims(DATA))
    refused(platform.verifier(), token, cca.FORM, MalformedError)


# Keys are random, and names of tests have to be the same in each process that runs some.
@pytest.mark.parametrize("claims", BAD_REALM, ids=lambda each: str(each)[:10])
def test_realm_claims_of_other_types(platform: CcaPlatform, claims: dict[Any, Any]) -> None:
    token = platform.token(platform.platform_claims(), platform.realm_claims(DATA) | claims)
    refused(platform.verifier(), token, cca.FORM, MalformedError)


@pytest.mark.parametrize("key", [265, 10, 256, 2395, 2396, 2399, 2401, 2402])
def test_platform_claims_that_are_missing(platform: CcaPlatform, key: int) -> None:
    claims = platform.platform_claims()
    del claims[key]
    token = platform.token(claims, platform.realm_claims(DATA))
    refused(platform.verifier(), token, cca.FORM, MalformedError)


@pytest.mark.parametrize("key", [265, 10, 44235, 44236, 44237, 44238, 44239, 44240])
def test_realm_claims_that_are_missing(platform: CcaPlatform, key: int) -> None:
    claims = platform.realm_claims(DATA)
    del claims[key]
    token = platform.token(platform.platform_claims(), claims)
    refused(platform.verifier(), token, cca.FORM, MalformedError)


@pytest.mark.parametrize("payload", [[], [265, 10], "text", None, 1])
def test_payloads_that_are_no_map(platform: CcaPlatform, payload: object) -> None:
    for token in (
        platform.token(payload, platform.realm_claims(DATA)),
        platform.token(platform.platform_claims(), payload),
    ):
        refused(platform.verifier(), token, cca.FORM, MalformedError)


def test_profiles_go_together(platform: CcaPlatform) -> None:
    for old_platform, old_realm in ((True, False), (False, True)):
        token = platform.token(
            platform.platform_claims(legacy=old_platform),
            platform.realm_claims(DATA, legacy=old_realm),
        )
        refused(platform.verifier(), token, cca.FORM, MalformedError)


@pytest.mark.parametrize("point", [b"", bytes(97), b"\2" + bytes(48), b"\4" + bytes(96)])
def test_points_of_the_old_profile(platform: CcaPlatform, point: bytes) -> None:
    claims = platform.realm_claims(DATA, legacy=True) | {44237: point}
    token = platform.token(platform.platform_claims(legacy=True), claims)
    refused(platform.verifier(), token, cca.FORM, MalformedError)


def test_collections_that_are_none(platform: CcaPlatform) -> None:
    good = platform.plain_token(DATA)
    parts = cbor2.loads(good).value
    for token in (
        b"",
        good[3:],
        b"\xd9\x01\x90" + good[3:],
        b"\xda\x00\x00\x01\x8f" + good[3:],
        good + b"\0",
        cbor2.dumps(cbor2.CBORTag(399, {44234: parts[44234]})),
        cbor2.dumps(cbor2.CBORTag(399, dict(parts) | {1: b""})),
        cbor2.dumps(cbor2.CBORTag(399, [1])),
        collection(parts[44234], "realm"),
        collection(None, parts[44241]),
        collection(parts[44241], parts[44234]),
    ):
        refused(platform.verifier(), token, cca.FORM, MalformedError)


def test_no_byte_can_be_changed(platform: CcaPlatform) -> None:
    token, verifier = platform.plain_token(DATA), platform.verifier()
    for place in range(len(token)):
        changed = token[:place] + bytes((token[place] ^ 0x80,)) + token[place + 1 :]
        with pytest.raises(AvowError):
            verifier.authenticate(changed, NOW)


@given(content=st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    for token in (content, b"\xd9\x01\x8f" + content):
        with pytest.raises(MalformedError):
            parse_token(token)


@given(data=st.data())
def test_mutated_claims(platform: CcaPlatform, data: st.DataObject) -> None:
    sides = [platform.platform_claims(), platform.realm_claims(DATA)]
    side = data.draw(st.sampled_from(sides))
    side[data.draw(st.sampled_from(sorted(side)))] = data.draw(
        st.none() | st.booleans() | st.integers() | st.binary() | st.text() | st.lists(st.binary())
    )
    try:
        platform.verifier().authenticate(platform.token(*sides), NOW)
    except (MalformedError, UnavailableError, UntrustedError):
        return


def test_the_kernel_is_asked(platform: CcaPlatform, report_data: ReportData) -> None:
    directory = TsmDirectory(
        REPORTS, lambda inblob, _: (platform.plain_token(inblob), b""), "arm_cca_guest"
    )
    attester = CcaAttester(TsmReports(REPORTS, directory))
    proven = platform.verifier().authenticate(attester.quote(report_data), NOW)
    assert proven.bound == report_data.content


def test_a_kernel_that_answers_otherwise(platform: CcaPlatform, report_data: ReportData) -> None:
    for answer in (b"no token", platform.plain_token(bytes(64))):
        directory = TsmDirectory(REPORTS, lambda *_, answer=answer: (answer, b""), "arm_cca_guest")
        attester = CcaAttester(TsmReports(REPORTS, directory))
        with pytest.raises(UnavailableError):
            attester.quote(report_data)


def test_checks_are_numbered_in_order() -> None:
    assert [check.number for check in cca.CHECKS] == [f"CCA{n}" for n in range(1, 6)]
