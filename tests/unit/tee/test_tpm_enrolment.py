"""The authority's side of enrolment: who gets no challenge, and who no certificate.

That a TPM opens what is made here, and only the right one, is tried on swtpm in
tests/integration/test_tpm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from avow.errors import AvowError, MalformedError, UntrustedError
from avow.tee.tpm.chain import AK_USAGE
from avow.tee.tpm.credential import Credential
from avow.tee.tpm.enrolment import (
    Challenger,
    Issuer,
    Kept,
    Request,
    decode_credential,
    decode_kept,
    decode_request,
    encode_credential,
)
from avow.tee.tpm.quote import spki_digest
from avow.tee.tpm.structures import parse_public
from avow.tee.tpm.templates import EK_ECC
from avow.testing.tpm_forge import ATTRIBUTES, ForgedKey, tpm2b
from avow.testing.tpm_maker import TpmAuthority

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ROOT = TpmAuthority("mock maker", now=NOW)
LINE = TpmAuthority("mock line", parent=ROOT, now=NOW)
AK = ForgedKey()
EK = ec.generate_private_key(ec.SECP256R1()).public_key()
SECRET, SEED = b"s" * 32, b"e" * 32


def ek_public(key: ec.EllipticCurvePublicKey = EK, template: bytes = EK_ECC.template) -> bytes:
    point = key.public_numbers()
    x, y = (number.to_bytes(32, "big") for number in (point.x, point.y))
    return template[:-68] + tpm2b(x) + tpm2b(y)


def with_attributes(clear: int = 0, set_: int = 0) -> bytes:
    attributes = int.from_bytes(EK_ECC.template[4:8], "big") & ~clear | set_
    return EK_ECC.template[:4] + attributes.to_bytes(4, "big") + EK_ECC.template[8:]


REQUEST = Request(AK.public, ek_public(), LINE.certify_ek(EK))


def refusal(request: Request, now: datetime = NOW) -> str:
    with pytest.raises(AvowError) as caught:
        Challenger(ROOT.anchors()).challenge(request, now, SECRET, SEED)
    assert caught.value.finding is not None
    return caught.value.finding.check.number


def test_a_genuine_tpm_gets_a_challenge() -> None:
    kept, credential = Challenger(ROOT.anchors()).challenge(REQUEST, NOW, SECRET, SEED)
    assert kept.secret == SECRET
    assert SECRET not in credential.id_object
    again = Challenger(ROOT.anchors()).challenge(REQUEST, NOW, SECRET, SEED)[1]
    # With an ECC key the seed comes from a fresh key pair.
    assert again != credential


@pytest.mark.parametrize(
    "attributes",
    [ATTRIBUTES & ~0x10000, ATTRIBUTES & ~0x2, ATTRIBUTES & ~0x20, ATTRIBUTES | 0x20000],
)
def test_attestation_keys_that_could_sign_lies(attributes: int) -> None:
    ak = ForgedKey(attributes=attributes).public
    assert refusal(replace(REQUEST, ak=ak)) == "TPM2"


def test_endorsement_keys_of_unknown_makers() -> None:
    stranger = TpmAuthority("mock maker", now=NOW)
    assert refusal(replace(REQUEST, ek_certificates=stranger.certify_ek(EK))) == "TPM9"
    # Without the certificate in between.
    assert refusal(replace(REQUEST, ek_certificates=LINE.certify_ek(EK)[:1])) == "TPM9"
    assert refusal(REQUEST, NOW + timedelta(days=2)) == "TPM9"
    # A certificate for another purpose by the same maker, as one of an attestation key.
    other = LINE.certify_ek(EK, AK_USAGE)
    assert refusal(replace(REQUEST, ek_certificates=other)) == "TPM9"


def test_endorsement_keys_that_are_not_the_certified_one() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert refusal(replace(REQUEST, ek=ek_public(other))) == "TPM10"


@pytest.mark.parametrize(
    "template",
    [
        with_attributes(clear=0x2),
        with_attributes(clear=0x20),
        with_attributes(clear=0x10000),
        with_attributes(clear=0x20000),
        with_attributes(set_=0x40000),
        EK_ECC.template.replace(b"\x00\x06\x00\x80", b"\x00\x06\x01\x00"),
    ],
    ids=["not fixed", "imported", "not restricted", "no storage key", "signs", "AES-256"],
)
def test_keys_that_are_no_endorsement_keys(template: bytes) -> None:
    assert refusal(replace(REQUEST, ek=ek_public(template=template))) == "TPM10"


def test_a_certificate_only_for_the_right_answer() -> None:
    owner = TpmAuthority("mock enrolment", now=NOW)
    kept, _ = Challenger(ROOT.anchors()).challenge(REQUEST, NOW, SECRET, SEED)
    issuer = Issuer(owner.certificate, owner.key)
    for wrong in (b"", SECRET[:-1], SECRET[:-1] + b"t", SECRET + b"s"):
        with pytest.raises(UntrustedError, match="TPM11"):
            issuer.issue(kept, wrong, NOW, timedelta(1), 1)
    issued = issuer.issue(kept, SECRET, NOW, timedelta(1), 1)
    assert spki_digest(parse_public(AK.public).key) == spki_digest(AK.key.public_key())
    assert issued.public_key() == AK.key.public_key()
    issued.verify_directly_issued_by(owner.certificate)
    assert kept.ek_digest in issued.public_bytes(Encoding.DER)


CASES: tuple[tuple[Callable[[bytes], object], bytes], ...] = (
    (decode_request, REQUEST.encoded()),
    (decode_credential, encode_credential(Credential(b"object", b"secret"))),
    (decode_kept, Kept(parse_public(AK.public), b"e" * 32, SECRET).encoded()),
)


@pytest.mark.parametrize(("decode", "content"), CASES, ids=["request", "challenge", "kept"])
def test_messages_have_one_form(decode: Callable[[bytes], object], content: bytes) -> None:
    decoded = decode(content)
    again = encode_credential(decoded) if isinstance(decoded, Credential) else decoded
    assert isinstance(again, bytes) or again.encoded() == content  # type: ignore[attr-defined]
    for length in range(len(content)):
        with pytest.raises(MalformedError):
            decode(content[:length])
    for bad in (content + b"\0", b"\xa0", b"\x80", b"\xa1\x62ak\x40"):
        with pytest.raises(MalformedError):
            decode(bad)


def test_requests_with_many_certificates() -> None:
    """Intel's firmware TPMs have six below the root."""
    for count in (6, 8):
        request = replace(REQUEST, ek_certificates=(b"certificate",) * count)
        assert decode_request(request.encoded()) == request
    with pytest.raises(MalformedError, match="1 to 8"):
        decode_request(replace(REQUEST, ek_certificates=(b"certificate",) * 9).encoded())


def test_requests_without_certificates() -> None:
    with pytest.raises(MalformedError):
        decode_request(replace(REQUEST, ek_certificates=()).encoded())
    with pytest.raises(MalformedError):
        Challenger(ROOT.anchors()).challenge(REQUEST, NOW, b"short", SEED)
