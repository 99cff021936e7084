"""Certificates with evidence: what they prove, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.channel.attestation import ServerAttestation
from avow.channel.ra_tls import CMW_EXTENSION, evidence_in, judge_certificate, make_credential
from avow.channel.tls import Credential
from avow.errors import AvowError, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Claims, Role
from avow.evidence.envelope import Evidence
from avow.evidence.report_data import ReportData, batch
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.attested_channel import WORKLOAD, Expect, judge
from avow.testing.pki import Authority

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


def started(attester: SimulatedAttester) -> ServerAttestation:
    attestation = ServerAttestation(
        attester,
        module=WORKLOAD.module,
        runtime=WORKLOAD.runtime,
        quotes_per_s=1000,
        waiting_max=10,
        quote_timeout_s=5,
    )
    attestation.measure(WORKLOAD.configuration, NOW)
    attestation.start()
    return attestation


@pytest.fixture
def attestation() -> Iterator[ServerAttestation]:
    made = started(SimulatedAttester())
    yield made
    made.stop()


@pytest.fixture
def credential(attestation: ServerAttestation) -> Credential:
    return make_credential(attestation, NOW, HOUR)


def spki_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate_with(extension: bytes | None, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
    )
    if extension is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(CMW_EXTENSION, extension), critical=False
        )
    return builder.sign(key, SHA256())


def extension_of(certificate: x509.Certificate) -> bytes:
    value = certificate.extensions.get_extension_for_oid(CMW_EXTENSION).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def test_a_certificate_proves_the_workload_and_its_key(credential: Credential) -> None:
    judged = judge_certificate(credential.certificate, judge(), NOW)
    assert judged.result is not None
    claims = judged.verified.claims
    assert claims["module"] == WORKLOAD.module
    assert claims["role"] == "certificate"
    assert claims["key"] == sha256(spki_of(credential.certificate)).digest()


def test_it_is_an_ordinary_certificate_around_the_key(credential: Credential) -> None:
    certificate = credential.certificate
    certificate.verify_directly_issued_by(certificate)
    assert certificate.public_key() == credential.key.public_key()
    assert not certificate.extensions.get_extension_for_oid(CMW_EXTENSION).critical
    assert repr(credential).count("key") == 0


def test_keys_are_new_each_time(attestation: ServerAttestation) -> None:
    first, second = (make_credential(attestation, NOW, HOUR) for _ in range(2))
    assert spki_of(first.certificate) != spki_of(second.certificate)


def test_the_policy_is_asked(credential: Credential) -> None:
    with pytest.raises(AvowError, match="P99"):
        judge_certificate(credential.certificate, judge(Expect(bytes(32))), NOW)


def test_evidence_in_a_certificate_for_another_key_is_refused(credential: Credential) -> None:
    """Anybody can copy the extension."""
    stolen = certificate_with(
        extension_of(credential.certificate), ec.generate_private_key(ec.SECP256R1())
    )
    with pytest.raises(UntrustedError, match="E4"):
        judge_certificate(stolen, judge(), NOW)


@pytest.mark.parametrize("late", [-2 * HOUR, HOUR + timedelta(seconds=1)])
def test_its_time_is_checked(credential: Credential, late: timedelta) -> None:
    with pytest.raises(UntrustedError, match="valid now"):
        judge_certificate(credential.certificate, judge(), NOW + late)


def test_certificates_without_evidence_are_refused() -> None:
    for credential in (Authority().issue_server(),):
        with pytest.raises(UntrustedError, match="id-pe-cmw"):
            judge_certificate(credential.certificate, judge(), NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[:1],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\x0c" + content[1:],
        lambda content: content[4:],
        # Longer forms of the length that DER does not allow.
        lambda content: b"\x04\x83\0" + content[2:],
        lambda content: b"\x04\x80" + content[4:] + b"\0\0",
        lambda content: b"\x04\x81\x05hello",
    ],
)
def test_other_forms_of_the_extension_are_refused(
    credential: Credential, change: Callable[[bytes], bytes]
) -> None:
    changed = certificate_with(change(extension_of(credential.certificate)), credential.key)
    with pytest.raises(MalformedError):
        judge_certificate(changed, judge(), NOW)


def test_every_changed_byte_is_noticed(credential: Credential) -> None:
    content = extension_of(credential.certificate)
    for at in range(len(content)):
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(AvowError):
            judge_certificate(certificate_with(flipped, credential.key), judge(), NOW)


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT])
def test_evidence_for_a_connection_is_none_for_a_certificate(role: Role) -> None:
    """Even by the right platform, for the right key, nonce and binder."""
    from avow.channel import ra_tls

    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    claims = Claims(
        ra_tls._nonce(spki), role, WORKLOAD, sha256(spki).digest(), int(NOW.timestamp())
    )
    report_data, paths = batch([(claims, ra_tls._binder(spki))])
    report = SimulatedAttester().quote(report_data)
    evidence = Evidence("simulated", report, claims.encoded(), paths[0]).encoded()
    certificate = certificate_with(ra_tls._octet_string(evidence), key)
    assert evidence_in(certificate) == evidence
    with pytest.raises(UntrustedError, match="E5"):
        judge_certificate(certificate, judge(), NOW)


def test_a_key_of_another_kind_is_refused(credential: Credential) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(
            x509.UnrecognizedExtension(CMW_EXTENSION, extension_of(credential.certificate)),
            critical=False,
        )
        .sign(key, None)
    )
    with pytest.raises(UntrustedError, match="EC key"):
        judge_certificate(certificate, judge(), NOW)


class Broken(SimulatedAttester):
    """A platform that gives nothing after the start."""

    works = True

    def quote(self, report_data: ReportData) -> bytes:
        if self.works:
            self.works = False
            return super().quote(report_data)
        raise UnavailableError("expected a device, got smoke; replace it")


def test_no_evidence_no_certificate() -> None:
    attestation = started(Broken())
    try:
        with pytest.raises(UnavailableError, match="smoke"):
            make_credential(attestation, NOW, HOUR)
    finally:
        attestation.stop()
