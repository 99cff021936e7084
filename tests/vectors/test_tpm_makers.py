"""Certificates of real makers of TPMs: Google's endorsement keys, a root of Nuvoton."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509

from avow.errors import MalformedError, UntrustedError
from avow.tee.tpm.certificates import read_certificate, read_pem
from avow.tee.tpm.chain import EK_USAGE, Anchors, check_chain
from avow.tee.tpm.enrolment import EK_CERTIFICATE
from tests.vectors.evidence_files import case, flips

pytestmark = pytest.mark.cases

NOW = datetime(2024, 6, 1, tzinfo=UTC)
GCP = "gcp-ek-no-eku/"


@pytest.mark.parametrize("kind", ["rsa", "ecc"])
def test_an_endorsement_key_of_google(kind: str) -> None:
    (leaf,) = read_pem(case(f"{GCP}internal_test_certificates_pca_tpm_{kind}_enc_cert.pem"))
    between = case(f"{GCP}server_ca-certs_gcp_ek_ak_ca_intermediate_v3.crt")
    root = read_certificate(case(f"{GCP}server_ca-certs_gcp_ek_ak_ca_root.crt")).parsed
    anchors = Anchors((root,))
    chain = check_chain((leaf, between), anchors, EK_USAGE, NOW, EK_CERTIFICATE)
    assert chain.leaf.serial_number
    signed = chain.leaf.tbs_certificate_bytes
    before, _, after = leaf.partition(signed)
    for changed in (before + each + after for each in flips(signed)):
        with pytest.raises((MalformedError, UntrustedError)):
            check_chain((changed, between), anchors, EK_USAGE, NOW, EK_CERTIFICATE)


def test_a_root_of_nuvoton() -> None:
    (encoded,) = read_pem(case("nuvoton-ek-roots/NUVO_1110.pem"))
    root = read_certificate(encoded)
    assert "Nuvoton TPM Root CA 1110" in root.parsed.subject.rfc4514_string()
    assert root.is_issued_by(root.parsed)
    for changed in flips(encoded):
        try:
            assert not read_certificate(changed).is_issued_by(root.parsed)
        except (ValueError, x509.InvalidVersion):
            continue
