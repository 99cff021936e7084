"""The simulated platform: a signature over the report data, and claims that say its worth."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import MalformedError, UnavailableError, UntrustedError
from avow.evidence import cbor
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.report_data import ReportData, batch
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee.simulated.attester import SimulatedAttester
from avow.tee.simulated.report import decode_report
from avow.tee.simulated.verifier import SimulatedVerifier

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)


def _report_data() -> ReportData:
    claims = Claims(bytes(32), Role.DOCUMENT, WORKLOAD, b"", 1)
    return batch([(claims, bytes(64))])[0]


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_round_trip() -> None:
    attester = SimulatedAttester()
    attester.measure(WORKLOAD)
    data = _report_data()
    authenticated = SimulatedVerifier().authenticate(attester.quote(data), NOW)
    assert authenticated.platform == "simulated"
    assert authenticated.bound == data.content
    assert authenticated.binding == "report data"
    assert authenticated.claims == {"debug": True, "simulated": True}
    assert not authenticated.measured
    for name, value in authenticated.claims.items():
        kind = kind_of(name)
        assert kind is not None
        assert is_value_of(kind, value)


def test_every_changed_byte_is_refused() -> None:
    report = SimulatedAttester().quote(_report_data())
    for place in range(len(report)):
        for bit in (0x01, 0x80):
            changed = report[:place] + bytes([report[place] ^ bit]) + report[place + 1 :]
            with pytest.raises((MalformedError, UntrustedError)) as caught:
                SimulatedVerifier().authenticate(changed, NOW)
            assert caught.value.finding is not None


def test_shorter_and_longer_are_refused() -> None:
    report = SimulatedAttester().quote(_report_data())
    for changed in (*(report[:size] for size in range(len(report))), report + b"\0"):
        with pytest.raises(MalformedError):
            SimulatedVerifier().authenticate(changed, NOW)


def test_one_key_does_not_sign_for_another() -> None:
    ours = decode_report(SimulatedAttester().quote(_report_data()))
    theirs = decode_report(SimulatedAttester().quote(_report_data()))
    mixed = cbor.encode(
        {"key": theirs.key, "signature": ours.signature, "report_data": ours.report_data}
    )
    with pytest.raises(UntrustedError, match="SIM2"):
        SimulatedVerifier().authenticate(mixed, NOW)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"key": bytes(65), "signature": bytes(64)},
        {"key": bytes(65), "signature": bytes(64), "report_data": bytes(64), "more": 1},
        {"key": bytes(64), "signature": bytes(64), "report_data": bytes(64)},
        {"key": bytes(65), "signature": bytes(63), "report_data": bytes(64)},
        {"key": bytes(65), "signature": bytes(64), "report_data": "x" * 64},
        {"key": bytes(65), "signature": bytes(64), "report_data": bytes(64)},
    ],
)
def test_other_fields(fields: dict[int | str, cbor.Value]) -> None:
    with pytest.raises(MalformedError, match="SIM1"):
        SimulatedVerifier().authenticate(cbor.encode(fields), NOW)


def test_a_key_from_a_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1())))
    keys = {
        decode_report(SimulatedAttester.from_file(path).quote(_report_data())).key for _ in range(2)
    }
    assert len(keys) == 1


def test_other_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    for content in (
        b"",
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
        _pem(ec.generate_private_key(ec.SECP384R1())),
        _pem(rsa.generate_private_key(65537, 2048)),
    ):
        path.write_bytes(content)
        with pytest.raises(MalformedError, match="P-256 private key"):
            SimulatedAttester.from_file(path)
    with pytest.raises(UnavailableError, match="openssl genpkey"):
        SimulatedAttester.from_file(tmp_path / "none")


@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    with pytest.raises(MalformedError):
        SimulatedVerifier().authenticate(content, NOW)
