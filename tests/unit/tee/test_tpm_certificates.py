"""Certificates of TPM makers as they are written and kept: names out of order, padding, chains."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import MalformedError, UntrustedError
from avow.tee import der
from avow.tee.tpm.certificates import certificates_in, in_order, read_certificate, read_pem
from avow.tee.tpm.chain import AK_USAGE, EK_USAGE, Anchors, check_chain
from avow.tee.tpm.enrolment import EK_CERTIFICATE
from avow.testing.tpm_maker import DAY, TpmAuthority

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
EK = ec.generate_private_key(ec.SECP256R1()).public_key()

AUTHORITY = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
DECRYPTS = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
AGREES = x509.KeyUsage(False, False, False, False, True, False, False, False, False)
SIGNS = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
BOTH = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
ISSUES = x509.KeyUsage(False, False, True, False, False, True, False, False, False)


def der_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def tlv(content: bytes) -> asn1.TLV:
    return asn1.decode_der(asn1.TLV, content)


def unordered_name() -> bytes:
    """One relative name of three attributes in the order of Nuvoton, which is not that of DER."""
    attributes = [
        asn1.encode_der(
            der.Attribute(oid=x509.ObjectIdentifier(oid), value=tlv(asn1.encode_der(text)))
        )
        for oid, text in (("2.5.4.3", "Mock TPM Root"), ("2.5.4.10", "Mock"), ("2.5.4.6", "TW"))
    ]
    content = b"".join(sorted(attributes, reverse=True))
    inner = bytes((0x31, len(content))) + content
    return bytes((0x30, len(inner))) + inner


def renamed(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
    *,
    subject: bool,
) -> bytes:
    """The certificate with the unordered name as issuer (and subject), signed again by `key`."""
    outer = asn1.decode_der(der.Signed, der_of(certificate))
    body = asn1.decode_der(der.Certificate, asn1.encode_der(outer.content))
    body.issuer = tlv(unordered_name())
    if subject:
        body.subject = tlv(unordered_name())
    signed = asn1.encode_der(body)
    outer.content = tlv(signed)
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    outer.signature = asn1.BitString(signature, 0)
    return asn1.encode_der(outer)


@pytest.fixture(scope="module", params=["ecc", "rsa"])
def maker(request: pytest.FixtureRequest) -> TpmAuthority:
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return TpmAuthority("mock", now=NOW, key=rsa_key if request.param == "rsa" else None)


def test_names_out_of_order(maker: TpmAuthority) -> None:
    """The signature is over the bytes as they are."""
    root = renamed(maker.certificate, maker.key, subject=True)
    leaf = renamed(
        x509.load_der_x509_certificate(maker.certify_ek(EK)[0]), maker.key, subject=False
    )
    for each in (root, leaf):
        with pytest.raises(ValueError, match="Ordering"):
            x509.load_der_x509_certificate(each)
    pinned = read_certificate(root)
    assert pinned.encoded == root
    assert pinned.is_issued_by(pinned.parsed)
    chain = check_chain((leaf,), Anchors((pinned.parsed,)), EK_USAGE, NOW, EK_CERTIFICATE)
    assert chain.leaf.public_key() == EK
    other = ec.generate_private_key(ec.SECP256R1())
    for wrong in (
        renamed(read_certificate(leaf).parsed, other, subject=False),
        # Put into the order of DER it is not what was signed.
        der_of(read_certificate(leaf).parsed),
    ):
        with pytest.raises(UntrustedError, match="TPM9"):
            check_chain((wrong,), Anchors((pinned.parsed,)), EK_USAGE, NOW, EK_CERTIFICATE)


def test_no_bit_of_an_unordered_certificate_can_be_changed(maker: TpmAuthority) -> None:
    pinned = read_certificate(renamed(maker.certificate, maker.key, subject=True)).parsed
    good = renamed(
        x509.load_der_x509_certificate(maker.certify_ek(EK)[0]), maker.key, subject=False
    )
    for place in range(len(good)):
        changed = good[:place] + bytes((good[place] ^ 1,)) + good[place + 1 :]
        with pytest.raises((MalformedError, UntrustedError)):
            check_chain((changed,), Anchors((pinned,)), EK_USAGE, NOW, EK_CERTIFICATE)


def test_one_odd_root_leaves_the_others_usable(maker: TpmAuthority) -> None:
    odd = renamed(maker.certificate, maker.key, subject=True)
    good = der_of(maker.certificate)
    text = b"".join(x509_pem(each) + b"some words between\n" for each in (good, odd, good))
    assert read_pem(text) == (good, odd, good)
    for bad in (b"", b"no certificate", x509_pem(good)[:-30], x509_pem(good[:-1]), x509_pem(b"x")):
        with pytest.raises(ValueError, match=r"."):
            read_pem(bad)


def x509_pem(content: bytes) -> bytes:
    import base64

    lines = base64.encodebytes(content)
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"


LINE = [TpmAuthority("mock root", now=NOW)]
for _number in range(6):
    LINE.append(TpmAuthority(f"mock {_number}", parent=LINE[-1], now=NOW))
CHAIN = LINE[-1].certify_ek(EK)


def test_padding_is_no_part_of_a_certificate() -> None:
    leaf = CHAIN[0]
    for pad in (b"", b"\xff" * 431, bytes(431)):
        assert certificates_in(leaf + pad) == (leaf,)
        assert certificates_in(leaf + pad + CHAIN[1] + pad) == (leaf, CHAIN[1])
        assert certificates_in(pad) == ()
    for bad in (
        leaf[:-1],
        leaf + b"\x01",
        b"\x31" + leaf[1:],
        b"\x30\x80\0\0",
        b"\x30",
        leaf * 2 + b"0",
    ):
        with pytest.raises(MalformedError, match="--chain"):
            certificates_in(bad)


@given(content=st.binary(max_size=64))
def test_any_area(content: bytes) -> None:
    try:
        found = certificates_in(content)
    except MalformedError:
        return
    assert all(each[0] == 0x30 for each in found)


def test_a_chain_of_seven_is_put_in_order() -> None:
    """Intel's firmware TPMs: six below the root, in whatever order the TPM keeps them."""
    assert len(CHAIN) == 7
    stored = (der_of(LINE[0].certificate), *reversed(CHAIN[1:]), CHAIN[3])
    assert in_order(CHAIN[0], stored) == CHAIN
    assert in_order(CHAIN[0], ()) == CHAIN[:1]
    assert in_order(CHAIN[0], CHAIN[2:]) == CHAIN[:1]
    stranger = der_of(TpmAuthority("mock 5", now=NOW).certificate)
    assert in_order(CHAIN[0], (stranger, *CHAIN[1:])) == CHAIN
    checked = check_chain(CHAIN, LINE[0].anchors(), EK_USAGE, NOW, EK_CERTIFICATE)
    assert checked.leaf.public_key() == EK


def without_usage(
    leaf_usage: x509.KeyUsage | None, issuer_usage: x509.ObjectIdentifier | None
) -> tuple[bytes, Anchors]:
    """An endorsement key's certificate without extended key usage, and its maker."""
    root = TpmAuthority("mock", now=NOW)
    own = (
        root.begin(root.name, root.key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(AUTHORITY, critical=True)
    )
    if issuer_usage is not None:
        own = own.add_extension(x509.ExtendedKeyUsage([issuer_usage]), critical=False)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "218557372616137117")])
    leaf = root.begin(name, EK).add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    if leaf_usage is not None:
        leaf = leaf.add_extension(leaf_usage, critical=True)
    anchors = Anchors((own.sign(root.key, hashes.SHA256()),))
    return der_of(leaf.sign(root.key, hashes.SHA256())), anchors


@pytest.mark.parametrize("usage", [DECRYPTS, AGREES])
def test_an_endorsement_key_that_does_not_say_its_usage(usage: x509.KeyUsage) -> None:
    """Google's virtual TPMs since 2022: RFC 5280, section 4.2.1.12, allows every use."""
    leaf, anchors = without_usage(usage, EK_USAGE)
    assert check_chain((leaf,), anchors, EK_USAGE, NOW, EK_CERTIFICATE)
    # An attestation key's certificate has to say it.
    with pytest.raises(UntrustedError, match="got one for none"):
        check_chain((leaf,), anchors, AK_USAGE, NOW, EK_CERTIFICATE)


@pytest.mark.parametrize(
    ("usage", "issuer"),
    [
        (SIGNS, EK_USAGE),
        (BOTH, EK_USAGE),
        (ISSUES, EK_USAGE),
        (None, EK_USAGE),
        (DECRYPTS, None),
        (DECRYPTS, AK_USAGE),
    ],
)
def test_certificates_without_usage_of_other_keys(
    usage: x509.KeyUsage | None, issuer: x509.ObjectIdentifier | None
) -> None:
    leaf, anchors = without_usage(usage, issuer)
    with pytest.raises(UntrustedError, match="got one for none"):
        check_chain((leaf,), anchors, EK_USAGE, NOW + DAY / 2, EK_CERTIFICATE)
