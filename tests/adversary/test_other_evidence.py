"""Genuine evidence of the genuine broker, made for something else than this connection.

Files that `avow attest` writes, certificates for RA-TLS, and a broker that runs the right program
with other listeners.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from avow.broker.config_file import Overrides, load_configuration
from avow.broker.measured_configuration import configuration_digest
from avow.channel.attestation import ServerAttestation
from avow.channel.ra_tls import CMW_EXTENSION, evidence_in, judge_certificate, make_credential
from avow.errors import AvowError
from avow.evidence.claims import Claims, Role
from avow.evidence.envelope import Evidence, decode_evidence
from avow.evidence.origin import DOCUMENT_BINDER
from avow.evidence.report_data import batch
from avow.tee.simulated.attester import SimulatedAttester
from avow.testing.pki import Authority
from tests.adversary.removal import Defence, removed
from tests.adversary.scene import GENUINE, NOW, World, check_of, judge, stopped_by_each
from tests.adversary.test_connection_attacks import BOUND, KEY, NONCE, ROLE

HOUR = timedelta(hours=1)


def with_evidence(make: Callable[[], Evidence]) -> Callable[[World], AvowError | None]:
    """A server that has the genuine instance's key, and shows this evidence for a connection."""

    def attack(world: World) -> AvowError | None:
        talk = world.talk()
        talk.server_platform.change = lambda _: make()
        talk.run()
        return None if talk.client_outcome is not None else talk.client_error

    return attack


def document() -> Evidence:
    """What `avow attest` writes into a file."""
    claims = Claims(b"\x77" * 32, Role.DOCUMENT, GENUINE, b"", int(NOW.timestamp()))
    report_data, (path,) = batch([(claims, DOCUMENT_BINDER)])
    report = SimulatedAttester().quote(report_data)
    return Evidence("simulated", report, claims.encoded(), path)


def certificate() -> x509.Certificate:
    """What a broker with `ra_tls = true` shows in its handshake."""
    attestation = ServerAttestation(
        SimulatedAttester(),
        module=GENUINE.module,
        runtime=GENUINE.runtime,
        quotes_per_s=1000,
        waiting_max=10,
        quote_timeout_s=5,
    )
    attestation.measure(GENUINE.configuration, NOW)
    attestation.start()
    try:
        return make_credential(attestation, NOW, HOUR).certificate
    finally:
        attestation.stop()


def of_a_certificate() -> Evidence:
    return decode_evidence(evidence_in(certificate()))


@pytest.mark.parametrize("make", [document, of_a_certificate])
def test_evidence_of_another_kind_is_none_for_a_connection(make: Callable[[], Evidence]) -> None:
    stopped_by_each(with_evidence(make), [NONCE, ROLE, KEY, BOUND], in_the_end=True)


def certificate_around(evidence: bytes) -> x509.Certificate:
    """A certificate of somebody's own key, with this evidence in it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "avow attested server")])
    head = b"\x04\x82" + len(evidence).to_bytes(2, "big")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.UnrecognizedExtension(CMW_EXTENSION, head + evidence), critical=False)
        .sign(key, SHA256())
    )


def of_a_connection() -> bytes:
    outcome = World().talk().run().client_outcome
    assert outcome is not None
    return outcome.evidence


@pytest.mark.parametrize(
    ("make", "defences"),
    [
        (of_a_connection, [NONCE, ROLE, KEY, BOUND]),
        (lambda: document().encoded(), [NONCE, ROLE, KEY, BOUND]),
        # Of the same kind, copied into a certificate with another key.
        (lambda: of_a_certificate().encoded(), [NONCE, KEY, BOUND]),
    ],
    ids=["connection", "document", "another certificate"],
)
def test_evidence_of_another_kind_is_none_in_a_certificate(
    make: Callable[[], bytes], defences: list[Defence]
) -> None:
    shown = certificate_around(make())

    def attack() -> str | None:
        try:
            judge_certificate(shown, judge(), NOW)
        except AvowError as error:
            return check_of(error)
        return None

    for number, defence in enumerate(defences):
        with removed(defences[:number]):
            assert attack() == defence.check
    with removed(defences):
        assert attack() is None


def test_a_certificate_after_its_end() -> None:
    """RA-TLS says nothing about now: the certificate's end bounds how old it may be."""
    shown = certificate()
    validity = Defence("C11", "avow.channel.ra_tls", "PRESENT", inside="judge_certificate")
    late = NOW + HOUR + timedelta(seconds=1)
    assert judge_certificate(shown, judge(), NOW).result is not None
    with pytest.raises(AvowError) as caught:
        judge_certificate(shown, judge(), late)
    assert check_of(caught.value) == "C11"
    with removed([validity]), pytest.raises(AvowError) as caught:
        judge_certificate(shown, judge(), late)
    # The policy of the scene has its own word about age.
    assert check_of(caught.value) == "P5"


CONFIGURATION = """
[[listeners]]
url = "mqtts://127.0.0.1:8883"
cert = "server.pem"
key = "server.key"
client_ca = "ca.pem"
require_certificate = true
evidence_for = "authorised"
unattested_clients = false
client_policy = "clients.toml"
require_client_evidence = true
"""
CLIENTS = """
version = 1
name = "controllers"
unsafe_simulated = true
platform = "simulated"
module = "any"
runtime = "any"
configuration = "any"
evidence_age_s = { min = -300, max = 300 }
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('evidence_for = "authorised"', 'evidence_for = "anyone"'),
        (
            'unattested_clients = false\nclient_policy = "clients.toml"\n'
            "require_client_evidence = true\n",
            'unattested_clients = true\nclient_policy = "clients.toml"\n',
        ),
        ("require_client_evidence = true", "require_client_evidence = false"),
        ("require_certificate = true", "require_certificate = false"),
        ('client_policy = "clients.toml"', 'client_policy = "others.toml"'),
        ('client_ca = "ca.pem"', 'client_ca = "other-ca.pem"'),
        ("[[listeners]]", '[[listeners]]\nurl = "mqtt://127.0.0.1:1883"\n\n[[listeners]]'),
        ("[[listeners]]", "allow_anonymous = true\n\n[[listeners]]"),
        (
            CONFIGURATION,
            CONFIGURATION + '\n[[acl]]\neffect = "allow"\naccess = "both"\npattern = "#"\n',
        ),
    ],
)
def test_a_broker_with_other_listeners_has_another_configuration(
    tmp_path: Path, old: str, new: str
) -> None:
    """The evidence is the same at every listener, and names all of them: a weaker one, or one more,
    is another configuration, and the policy stops it (test_other_programs_are_stopped)."""
    Authority().issue_server().write(tmp_path, "server")
    Authority().write(tmp_path / "ca.pem")
    Authority().write(tmp_path / "other-ca.pem")
    (tmp_path / "clients.toml").write_text(CLIENTS)
    (tmp_path / "others.toml").write_text(CLIENTS.replace("max = 300", "max = 301"))
    file = tmp_path / "avow.toml"
    digests = []
    for text in (CONFIGURATION, CONFIGURATION.replace(old, new, 1), CONFIGURATION):
        file.write_text(text)
        digests.append(configuration_digest(load_configuration(file, Overrides())))
    assert digests[0] == digests[2] != digests[1]


def test_the_files_that_a_listener_names_count(tmp_path: Path) -> None:
    """The same name with other rules inside: somebody else's clients are let in."""
    Authority().issue_server().write(tmp_path, "server")
    Authority().write(tmp_path / "ca.pem")
    file = tmp_path / "avow.toml"
    file.write_text(CONFIGURATION)
    digests = set()
    for module in ("any", "01" * 32, "02" * 32):
        text = CLIENTS.replace('module = "any"', f'module = "{module}"')
        (tmp_path / "clients.toml").write_text(text)
        digests.add(configuration_digest(load_configuration(file, Overrides())))
    assert len(digests) == 3
