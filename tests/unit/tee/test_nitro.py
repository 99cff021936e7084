"""Nitro Enclaves on a mock AWS: every refusal by its check, the parser, and /dev/nsm."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import AvowError, Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.report_data import ReportData, batch
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee.nitro import verifier as nitro
from avow.tee.nitro.attester import NitroAttester
from avow.tee.nitro.report import parse_document
from avow.tee.nitro.verifier import NitroVerifier
from avow.testing.cose_signer import ES256, ES384, sign1
from avow.testing.nitro_pki import (
    DEBUG_PCRS,
    HOURS,
    MODULE_ID,
    NOW,
    PCRS,
    Issued,
    NitroPki,
    NsmDevice,
    Use,
    issue,
    payload_of,
    qemu_document,
)

DATA = bytes(range(64))


@pytest.fixture(scope="module")
def pki() -> NitroPki:
    return NitroPki()


@pytest.fixture
def report_data() -> ReportData:
    claims = Claims(bytes(32), Role.DOCUMENT, Workload(*[bytes(32)] * 4), b"", 0)
    return batch([(claims, bytes(64))])[0]


def refused(
    verifier: NitroVerifier,
    document: bytes,
    check: Check,
    error: type[AvowError] = UntrustedError,
) -> None:
    with pytest.raises(error) as caught:
        verifier.authenticate(document, NOW)
    assert caught.value.finding is not None
    assert caught.value.finding.check is check


def test_a_document_is_proven(pki: NitroPki) -> None:
    proven = pki.verifier().authenticate(pki.document(DATA), NOW)
    assert (proven.platform, proven.bound, proven.binding) == ("nitro", DATA, "report data")
    assert proven.claims["debug"] is False
    assert proven.claims["nitro.module_id"] == MODULE_ID
    assert proven.claims["nitro.pcr.4"] == PCRS[4]
    for name, value in proven.claims.items():
        kind = kind_of(name)
        assert kind is not None, name
        assert is_value_of(kind, value), name


def test_a_tag_may_be_there(pki: NitroPki) -> None:
    assert pki.verifier().authenticate(b"\xd2" + pki.document(DATA), NOW).bound == DATA


@pytest.mark.parametrize("zeros", [(0,), (1,), (2,), (0, 1, 2)])
def test_zeros_as_measurement_are_debug_mode(pki: NitroPki, zeros: tuple[int, ...]) -> None:
    pcrs = PCRS | {index: bytes(48) for index in zeros}
    assert pki.verifier().authenticate(pki.document(DATA, pcrs=pcrs), NOW).claims["debug"] is True


def test_only_aws_is_trusted_by_default(pki: NitroPki) -> None:
    refused(NitroVerifier(), pki.document(DATA), nitro.ROOT)
    refused(NitroPki().verifier(), pki.document(DATA), nitro.ROOT)


def test_what_an_emulator_answers(pki: NitroPki) -> None:
    refused(pki.verifier(), qemu_document(DATA), nitro.FORM, MalformedError)
    # As if it were patched to give a signature of the right size, and a genuine chain.
    refused(pki.verifier(), qemu_document(DATA, signature=bytes(96)), nitro.ROOT)
    chain = [each.der for each in pki.chain]
    refused(pki.verifier(), qemu_document(DATA, chain, bytes(96)), nitro.SIGNATURE)


def test_another_key_below_the_root(pki: NitroPki) -> None:
    other = NitroPki()
    for place in range(1, 5):
        chain = [*pki.chain[:place], *other.chain[place:]]
        refused(pki.verifier(), pki.document(DATA, chain=chain), nitro.CHAIN)


def test_a_signature_by_another_key(pki: NitroPki) -> None:
    payload = payload_of(DATA, [each.der for each in pki.chain], PCRS)
    other = ec.generate_private_key(ec.SECP384R1())
    refused(pki.verifier(), pki.sign(payload, other), nitro.SIGNATURE)


def test_names_have_to_fit(pki: NitroPki) -> None:
    leaf = issue("enclave", pki.instance, Use(False, cert_sign=False), issuer_name="else")
    refused(pki.verifier(), pki.document(DATA, chain=[*pki.chain[:-1], leaf]), nitro.CHAIN)


def test_weaker_signatures_and_keys(pki: NitroPki) -> None:
    use = Use(False, cert_sign=False)
    leaf = issue("enclave", pki.instance, use, hash_=hashes.SHA256())
    refused(pki.verifier(), pki.document(DATA, chain=[*pki.chain[:-1], leaf]), nitro.CHAIN)
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    for weak in (
        issue("enclave", pki.instance, use, curve=ec.SECP256R1()),
        issue("enclave", pki.instance, use, public_key=other),
    ):
        payload = payload_of(DATA, [*(each.der for each in pki.chain[:-1]), weak.der], PCRS)
        document = pki.sign(payload, pki.enclave.key)
        refused(pki.verifier(), document, nitro.FORM, MalformedError)


def chains_of_wrong_use(pki: NitroPki) -> dict[str, list[Issued]]:
    """Genuine signatures by keys that were not meant for it."""
    below = Use(False, cert_sign=False)
    no_authority = issue("i", pki.zone, Use(False))
    no_signing = issue("i", pki.zone, Use(True, 0, cert_sign=False))
    too_long = issue("zone", pki.region, Use(True, 0))
    third = issue("i", too_long, Use(True, 0))
    upper = pki.chain[:3]
    return {
        "not an authority": [*upper, no_authority, issue("e", no_authority, below)],
        "may not sign": [*upper, no_signing, issue("e", no_signing, below)],
        "too long": [*pki.chain[:2], too_long, third, issue("e", third, below)],
        "leaf issues": [*upper, pki.instance, pki.enclave, issue("e", pki.enclave, below)],
        "authority signs": pki.chain[:4],
        "leaf is an authority": [*pki.chain[:4], issue("e", pki.instance, Use(True, 0, False))],
        "leaf may not sign": [*pki.chain[:4], issue("e", pki.instance, Use(False))],
        "unknown critical": [*pki.chain[:4],
                             issue("e", pki.instance, replace(below, critical="1.2.3.4"))],
    }  # fmt: skip


def test_every_certificate_is_used_as_it_may(pki: NitroPki) -> None:
    for chain in chains_of_wrong_use(pki).values():
        refused(pki.verifier(), pki.document(DATA, chain=chain), nitro.USE)


def test_times_are_looked_at_although_the_chain_is_kept(pki: NitroPki) -> None:
    verifier, document = pki.verifier(), pki.document(DATA)
    second = timedelta(seconds=1)
    for when in (NOW - HOURS, NOW + 3 * HOURS):
        assert verifier.authenticate(document, when)
    for when in (NOW - HOURS - second, NOW + 3 * HOURS + second):
        with pytest.raises(UntrustedError, match="NIT5"):
            verifier.authenticate(document, when)


@pytest.mark.parametrize("place", range(5))
def test_validity_of_every_certificate(place: int) -> None:
    pki, early = NitroPki(), (NOW - 2 * HOURS, NOW - HOURS)
    uses = (Use(True), Use(True, 2), Use(True, 1), Use(True, 0), Use(False, cert_sign=False))
    chain: list[Issued] = []
    for index, use in enumerate(uses):
        above = chain[-1] if chain else None
        valid = early if index == place else (NOW - HOURS, NOW + HOURS)
        chain.append(issue(f"{index}.aws", above, use, valid=valid))
    verifier = NitroVerifier({hashlib.sha256(chain[0].der).digest()})
    refused(verifier, pki.document(DATA, chain=chain), nitro.VALIDITY)


@pytest.mark.parametrize("user_data", [None, b"", bytes(63), bytes(65), bytes(32)])
def test_user_data_that_is_no_report_data(pki: NitroPki, user_data: bytes | None) -> None:
    document = pki.document(user_data, nonce=DATA, public_key=DATA)
    assert pki.verifier().prove(document, NOW).nonce == DATA
    refused(pki.verifier(), document, nitro.DATA)


BAD_FIELDS: tuple[dict[Any, Any], ...] = (
    {"module_id": ""},
    {"module_id": b"i-0"},
    {"digest": "SHA256"},
    {"digest": b"SHA384"},
    {"timestamp": 0},
    {"timestamp": -1},
    {"timestamp": 2**63},
    {"timestamp": True},
    {"timestamp": "now"},
    {"pcrs": {}},
    {"pcrs": []},
    {"pcrs": [bytes(48)] * 3},
    {"module_id": "i" * 16384},
    {"pcrs": PCRS | {32: bytes(48)}},
    {"pcrs": PCRS | {-1: bytes(48)}},
    {"pcrs": PCRS | {"3": bytes(48)}},
    {"pcrs": PCRS | {3: bytes(32)}},
    {"pcrs": PCRS | {3: bytes(64)}},
    {"pcrs": PCRS | {3: "0"}},
    {"pcrs": PCRS | {3: "0" * 48}},
    {"pcrs": {index: pcr for index, pcr in PCRS.items() if index != 2}},
    {"certificate": b""},
    {"certificate": bytes(1025)},
    {"certificate": None},
    {"cabundle": []},
    {"cabundle": [b""]},
    {"cabundle": [bytes(1025)]},
    {"cabundle": [b"x"] * 8},
    {"cabundle": b"x"},
    {"public_key": b""},
    {"public_key": bytes(1025)},
    {"public_key": "key"},
    {"user_data": bytes(513)},
    {"nonce": bytes(513)},
    {"nonce": 1},
    {"nitrotpm_pcrs": PCRS},
    {1: b""},
)


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=lambda each: str(each)[:40])
def test_fields_of_other_types_and_sizes(pki: NitroPki, fields: dict[Any, Any]) -> None:
    payload = payload_of(DATA, [each.der for each in pki.chain], PCRS) | fields
    refused(pki.verifier(), pki.sign(payload, pki.enclave.key), nitro.FORM, MalformedError)


@pytest.mark.parametrize(
    "name", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"]
)
def test_fields_that_are_missing(pki: NitroPki, name: str) -> None:
    payload = payload_of(DATA, [each.der for each in pki.chain], PCRS)
    del payload[name]
    refused(pki.verifier(), pki.sign(payload, pki.enclave.key), nitro.FORM, MalformedError)


@pytest.mark.parametrize(
    "payload",
    [[], ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"], "text", None],
)
def test_payloads_that_are_no_map(pki: NitroPki, payload: Any) -> None:
    refused(pki.verifier(), pki.sign(payload, pki.enclave.key), nitro.FORM, MalformedError)


def indefinite(payload: Mapping[Any, Any]) -> bytes:
    """As AWS writes it since 2025: a map of indefinite length, with definite ones inside."""
    return b"\xbf" + cbor2.dumps(payload)[1:] + b"\xff"


def test_a_payload_of_indefinite_length(pki: NitroPki) -> None:
    payload = payload_of(DATA, [each.der for each in pki.chain], PCRS)
    assert len(payload) < 24  # so that its head is one byte
    for tagged in (False, True):
        document = sign1(indefinite(payload), pki.chain[-1].key, ES384, tagged=tagged)
        assert pki.verifier().authenticate(document, NOW).bound == DATA
    changed = {**payload, "module_id": "another"}
    genuine = cbor2.loads(sign1(indefinite(payload), pki.chain[-1].key, ES384, tagged=False))
    forged = cbor2.dumps([*genuine[:2], indefinite(changed), genuine[3]])
    refused(pki.verifier(), forged, nitro.SIGNATURE)


def test_a_payload_of_indefinite_length_has_each_name_once(pki: NitroPki) -> None:
    """Signed by the enclave's key, and still refused."""
    body = indefinite(payload_of(DATA, [each.der for each in pki.chain], PCRS))
    twice = body[:-1] + cbor2.dumps("user_data") + cbor2.dumps(bytes(64)) + b"\xff"
    tag = body[:-1] + cbor2.dumps("nonce2") + b"\xc1\x01\xff"
    for payload in (twice, tag, body + b"\0", body + b"\xff", body[:-1]):
        document = sign1(payload, pki.chain[-1].key, ES384)
        refused(pki.verifier(), document, nitro.FORM, error=MalformedError)


def test_optional_fields_may_be_missing(pki: NitroPki) -> None:
    payload = payload_of(DATA, [each.der for each in pki.chain], PCRS)
    del payload["nonce"], payload["public_key"]
    assert pki.verifier().authenticate(pki.sign(payload, pki.enclave.key), NOW).bound == DATA


def test_another_algorithm(pki: NitroPki) -> None:
    payload = cbor2.dumps(payload_of(DATA, [each.der for each in pki.chain], PCRS))
    document = sign1(payload, ec.generate_private_key(ec.SECP256R1()), ES256, tagged=False)
    refused(pki.verifier(), document, nitro.FORM, MalformedError)


def test_no_byte_can_be_changed(pki: NitroPki) -> None:
    verifier, document = pki.verifier(), pki.document(DATA, pcrs=DEBUG_PCRS)
    for place in range(len(document)):
        changed = document[:place] + bytes((document[place] ^ 0x80,)) + document[place + 1 :]
        with pytest.raises(AvowError):
            verifier.prove(changed, NOW)
    for changed in (document + b"\0", document[:-1]):
        with pytest.raises(MalformedError):
            verifier.prove(changed, NOW)


@given(content=st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_document(content)


def test_the_module_is_asked_for_report_data(
    pki: NitroPki, report_data: ReportData, tmp_path: Path
) -> None:
    device = tmp_path / "nsm"
    device.touch()
    module = NsmDevice(
        lambda request: {
            "Attestation": {"document": pki.document(request["Attestation"]["user_data"])}
        }
    )
    document = NitroAttester(device, module.ioctl).quote(report_data)
    assert pki.verifier().authenticate(document, NOW).bound == report_data.content
    assert [cbor2.loads(request) for request in module.requests] == [
        {"Attestation": {"user_data": report_data.content, "nonce": None, "public_key": None}}
    ]


def _fails(request: dict[Any, Any]) -> Any:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: {"Error": "InvalidOperation"},
        lambda request: {"Attestation": {}},
        lambda request: {"Attestation": {"document": "text"}},
        lambda request: {"Attestation": {"document": b"no document"}},
        lambda request: {"Attestation": {"document": bytes(20000)}},
        lambda request: {"Attestation": {"document": NitroPki().document(bytes(64))}},
        lambda request: [],
        lambda request: ["Error"],
        lambda request: ["Attestation"],
        lambda request: {"Attestation": ["document"]},
        _fails,
    ],
)
def test_answers_that_are_none(
    report_data: ReportData, tmp_path: Path, answer: Callable[[dict[Any, Any]], Any]
) -> None:
    device = tmp_path / "nsm"
    device.touch()
    with pytest.raises(UnavailableError):
        NitroAttester(device, NsmDevice(answer).ioctl).quote(report_data)


def test_the_modules_error_is_named(report_data: ReportData, tmp_path: Path) -> None:
    device = tmp_path / "nsm"
    device.touch()
    module = NsmDevice(lambda request: {"Error": "BufferTooSmall"})
    with pytest.raises(UnavailableError, match="BufferTooSmall"):
        NitroAttester(device, module.ioctl).quote(report_data)


def test_no_device(report_data: ReportData, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="run inside a Nitro enclave"):
        NitroAttester(tmp_path / "nsm").quote(report_data)


def test_not_the_device(report_data: ReportData, tmp_path: Path) -> None:
    """A file in its place, with the kernel's own ioctl."""
    device = tmp_path / "nsm"
    device.touch()
    with pytest.raises(UnavailableError):
        NitroAttester(device).quote(report_data)


def test_checks_are_numbered_in_order() -> None:
    assert [check.number for check in nitro.CHECKS] == [f"NIT{n}" for n in range(1, 8)]
