"""The verifier of Nitro Enclaves on documents of AWS: one in production, one in debug mode."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from avow.errors import AvowError, UntrustedError
from avow.tee.nitro import verifier as nitro
from avow.tee.nitro.report import parse_document
from avow.tee.nitro.verifier import NitroVerifier
from tests.vectors.evidence_files import case, flips, vector

pytestmark = pytest.mark.vectors

# The signing certificate of each lives for three hours.
PRODUCTION = datetime(2021, 3, 17, 22, 30, tzinfo=UTC)
DEBUG = datetime(2024, 1, 24, 19, 0, tzinfo=UTC)


def test_a_document_of_an_enclave_in_production() -> None:
    document = NitroVerifier().prove(vector("nitro/document_production.bin"), PRODUCTION)
    assert document.module_id == "i-078824548edcf6519-enc01784234ec227b58"
    assert document.timestamp_ms == 1616018515685
    assert document.debug is False
    assert document.pcrs[0].hex().startswith("2d151586641b790f3b1b")
    assert sorted(document.pcrs) == list(range(16))


def test_a_document_of_an_enclave_in_debug_mode() -> None:
    document = NitroVerifier().prove(vector("nitro/document_debug.bin"), DEBUG)
    assert document.debug is True
    assert document.pcrs[0] == bytes(48)
    assert document.user_data == b"Hello World!\n"
    assert document.nonce == b"Nonce\n"


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("production", datetime(2021, 3, 17, 22, 1, tzinfo=UTC)),
        ("production", datetime(2021, 3, 18, 1, 2, tzinfo=UTC)),
        ("production", DEBUG),
        ("debug", PRODUCTION),
        ("debug", datetime(2024, 1, 24, 21, 15, tzinfo=UTC)),
    ],
)
def test_outside_of_its_three_hours(name: str, when: datetime) -> None:
    with pytest.raises(UntrustedError) as caught:
        NitroVerifier().prove(vector(f"nitro/document_{name}.bin"), when)
    assert caught.value.finding is not None
    assert caught.value.finding.check is nitro.VALIDITY


def test_what_others_bound_into_theirs_is_not_report_data() -> None:
    for name, when in (("production", PRODUCTION), ("debug", DEBUG)):
        with pytest.raises(UntrustedError, match="NIT7"):
            NitroVerifier().authenticate(vector(f"nitro/document_{name}.bin"), when)


def test_the_pinned_root_is_in_them() -> None:
    for name in ("production", "debug"):
        chain = parse_document(vector(f"nitro/document_{name}.bin")).chain
        assert hashlib.sha256(chain[0]).digest() == nitro.AWS_ROOT_G1


# us-east-1, 2025-12-25: the payload is a map of indefinite length.
INDEFINITE = datetime(2025, 12, 25, 13, 16, tzinfo=UTC)


@pytest.mark.cases
def test_a_document_of_indefinite_length() -> None:
    content, verifier = case("nitro-indefinite-map/1.cose"), NitroVerifier()
    proven = verifier.authenticate(content, INDEFINITE)
    assert (proven.platform, proven.binding, len(proven.bound)) == ("nitro", "report data", 64)
    assert proven.claims["debug"] is False
    payload = parse_document(content).signed.payload
    assert (payload[:1], payload[-1:]) == (b"\xbf", b"\xff")
    for changed in (*flips(content), content + b"\0", content[:-1], content[1:]):
        with pytest.raises(AvowError):
            verifier.prove(changed, INDEFINITE)


@pytest.mark.parametrize(("name", "when"), [("production", PRODUCTION), ("debug", DEBUG)])
def test_no_byte_can_be_changed(name: str, when: datetime) -> None:
    verifier = NitroVerifier()
    content = vector(f"nitro/document_{name}.bin")
    assert verifier.prove(content, when)
    for changed in flips(content):
        with pytest.raises(AvowError):
            verifier.prove(changed, when)
    for changed in (content + b"\0", content[:-1], content[1:]):
        with pytest.raises(AvowError):
            verifier.prove(changed, when)
