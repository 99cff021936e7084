"""The verifying side of `tpm` against reports that no TPM would make."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from statistics import median

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import AvowError, MalformedError, UnavailableError, UntrustedError
from avow.evidence.claims import Workload
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee.tpm import enrolment, event_log, verifier
from avow.tee.tpm.chain import AK_USAGE, Anchors
from avow.tee.tpm.event_log import Event
from avow.tee.tpm.quote import spki_digest
from avow.tee.tpm.report import Report, decode_report
from avow.tee.tpm.structures import parse_public, parse_quote, parse_signature
from avow.tee.tpm.verifier import EK_DIGEST, EK_DIGEST_HEADER, TpmVerifier
from avow.testing.tpm_forge import ATTRIBUTES, ForgedKey, Scheme, tpm2b
from avow.testing.tpm_maker import TpmAuthority

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DATA = b"d" * 32
WORKLOAD = Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32)
LOG = event_log.start(WORKLOAD)
KEY = ForgedKey()
RSA_KEY = ForgedKey("rsassa")
EK_CERTIFICATE_DIGEST = sha256(b"the certificate of an endorsement key").digest()


def refusal(report: Report | bytes, pinned: Anchors | None = None, now: datetime = NOW) -> str:
    """The number of the check that refuses a report."""
    content = report if isinstance(report, bytes) else report.encoded()
    with pytest.raises(AvowError) as caught:
        TpmVerifier(pinned).authenticate(content, now)
    assert caught.value.finding is not None
    return caught.value.finding.check.number


def certificate(
    authority: TpmAuthority,
    *,
    key: ForgedKey = KEY,
    usage: x509.ObjectIdentifier = AK_USAGE,
    ek: bytes = EK_DIGEST_HEADER + EK_CERTIFICATE_DIGEST,
    critical: bool = False,
) -> bytes:
    builder = (
        authority.begin(x509.Name([]), key.key.public_key())
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if ek:
        builder = builder.add_extension(x509.UnrecognizedExtension(EK_DIGEST, ek), critical)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.DER)


ENROLMENT = TpmAuthority("mock enrolment", now=NOW)
CERTIFIED = KEY.report(DATA, log=LOG, certificates=(certificate(ENROLMENT),))


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa", "rsapss"])
def test_accepts_every_scheme(scheme: Scheme) -> None:
    key = ForgedKey(scheme)
    authenticated = TpmVerifier().authenticate(key.report(DATA, log=LOG).encoded(), NOW)
    assert authenticated.platform == "tpm"
    assert authenticated.binding == "sha256"
    assert authenticated.bound == DATA
    assert authenticated.measured == {
        "module": WORKLOAD.module,
        "runtime": WORKLOAD.runtime,
        "configuration": WORKLOAD.configuration,
    }
    said = authenticated.claims
    assert said["tpm.ak"] == spki_digest(key.key.public_key())
    assert said["tpm.ak_origin"] == "owner"
    assert said["tpm.firmware_version"] == 0x0102030405060708
    assert said["tpm.reset_count"] == 7
    assert said["tpm.restart_count"] == 3
    assert said["tpm.clock_safe"] is True
    assert said["tpm.pcr.5"] == b"\5" * 32
    assert said["tpm.pcr.23"] == event_log.replay(LOG)


def test_accepts_longer_hashes_and_curves() -> None:
    key = ForgedKey(hash_algorithm=0x000C, curve=ec.SECP384R1())
    assert TpmVerifier().authenticate(key.report(DATA).encoded(), NOW).bound == DATA


@pytest.mark.parametrize("report", [CERTIFIED, RSA_KEY.report(DATA)], ids=["ecc", "rsa"])
def test_every_claim_is_in_the_vocabulary(report: Report) -> None:
    pinned = ENROLMENT.anchors(ENROLMENT.revocation_list())
    for name, value in TpmVerifier(pinned).authenticate(report.encoded(), NOW).claims.items():
        kind = kind_of(name)
        assert kind is not None
        assert is_value_of(kind, value)
        assert not kind.platforms or "tpm" in kind.platforms


def test_checks_are_numbered_in_order() -> None:
    numbers = [check.number for check in (*verifier.CHECKS, *enrolment.CHECKS)]
    assert numbers == [f"TPM{number}" for number in range(1, 12)]


@pytest.mark.parametrize("report", [CERTIFIED, RSA_KEY.report(DATA, log=LOG)], ids=["ecc", "rsa"])
def test_no_flipped_bit_is_accepted(report: Report) -> None:
    content = report.encoded()
    judge = TpmVerifier(ENROLMENT.anchors())
    for index in range(len(content)):
        flipped = bytearray(content)
        flipped[index] ^= 1 << index % 8
        with pytest.raises((MalformedError, UntrustedError)):
            judge.authenticate(bytes(flipped), NOW)


def test_neither_shorter_nor_longer_is_accepted() -> None:
    content = CERTIFIED.encoded()
    for length in range(0, len(content), 7):
        assert refusal(content[:length]) == "TPM1"
    assert refusal(content + b"\0") == "TPM1"


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "quote": (parse_quote, CERTIFIED.quote),
    "signature": (parse_signature, CERTIFIED.signature),
    "rsa signature": (parse_signature, RSA_KEY.report(DATA).signature),
    "public": (parse_public, CERTIFIED.ak),
    "rsa public": (parse_public, RSA_KEY.public),
    "report": (decode_report, CERTIFIED.encoded()),
}


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_take_all_bytes_and_no_more(name: str) -> None:
    parse, content = PARSERS[name]
    parse(content)
    for length in range(len(content)):
        with pytest.raises(MalformedError):
            parse(content[:length])
    with pytest.raises(MalformedError):
        parse(content + b"\0")


@pytest.mark.parametrize("name", PARSERS)
@given(st.binary(max_size=200), st.data())
def test_parsers_raise_one_error(name: str, noise: bytes, data: st.DataObject) -> None:
    parse, content = PARSERS[name]
    start = data.draw(st.integers(0, len(content)))
    for candidate in (noise, content[:start] + noise + content[start + len(noise) :]):
        try:
            parse(candidate)
        except MalformedError:
            continue


@given(st.binary(max_size=64), st.data())
def test_verifier_raises_documented_errors(noise: bytes, data: st.DataObject) -> None:
    content = CERTIFIED.encoded()
    start = data.draw(st.integers(0, len(content)))
    altered = content[:start] + noise + content[start + len(noise) :]
    try:
        TpmVerifier(ENROLMENT.anchors()).authenticate(altered, NOW)
    except (MalformedError, UntrustedError, UnavailableError) as error:
        finding = error.finding
    else:
        finding = None
    assert (finding is None) == (altered == content)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        (ATTRIBUTES & ~0x00010000, "not restricted: signs a quote that its caller wrote"),
        (ATTRIBUTES & ~0x00000002, "not fixedTPM: may be duplicated into software"),
        (ATTRIBUTES & ~0x00000010, "not fixedParent"),
        (ATTRIBUTES & ~0x00000020, "not sensitiveDataOrigin: imported, so known elsewhere"),
        (ATTRIBUTES & ~0x00040000, "does not sign"),
        (ATTRIBUTES | 0x00020000, "decrypts as well"),
        (ATTRIBUTES | 0x00080000, "signs certificates"),
    ],
)
def test_refuses_keys_that_could_sign_lies(attributes: int, why: str) -> None:
    assert refusal(ForgedKey(attributes=attributes).report(DATA)) == "TPM2", why


def test_refuses_attributes_that_the_tpm_did_not_name() -> None:
    """A free signing key that passes itself off as restricted: the quote names the true one."""
    free = ForgedKey(attributes=ATTRIBUTES & ~0x00010000)
    report = free.report(DATA)
    disguise = bytearray(report.ak)
    disguise[5] |= 0x01
    assert refusal(replace(report, ak=bytes(disguise))) == "TPM5"


def test_refuses_another_parent() -> None:
    assert refusal(replace(CERTIFIED, parent=b"\x40\x00\x00\x01")) == "TPM5"
    assert refusal(replace(CERTIFIED, parent=b"")) == "TPM1"


def test_refuses_other_attestations_and_marks() -> None:
    attest = KEY.attest(DATA, {0: bytes(32)})
    for changed in (
        replace(attest, magic=0xFF544346),
        replace(attest, kind=0x8017),
        replace(attest, safe=2),
        replace(attest, banks=0),
        replace(attest, banks=2),
        replace(attest, bank=0x0004),
        replace(attest, select_bytes=4),
    ):
        assert refusal(KEY.report(DATA, pcrs={0: bytes(32)}, attest=changed)) == "TPM1"


@pytest.mark.parametrize("size", [0, 20, 31, 33, 64])
def test_refuses_qualifying_data_of_another_size(size: int) -> None:
    assert refusal(KEY.report(b"d" * size)) == "TPM6"


def test_refuses_signatures_by_others() -> None:
    other = ForgedKey()
    report = KEY.report(DATA)
    assert refusal(replace(report, signature=other.sign(report.quote))) == "TPM4"
    assert refusal(replace(report, signature=RSA_KEY.sign(report.quote))) == "TPM4"
    zero = b"\x00\x18\x00\x0b" + tpm2b(b"") + tpm2b(b"")
    assert refusal(replace(report, signature=zero)) == "TPM4"


def test_refuses_another_scheme_than_the_keys() -> None:
    report = RSA_KEY.report(DATA)
    pss = ForgedKey("rsapss")
    pss.key = RSA_KEY.key
    assert refusal(replace(report, signature=pss.sign(report.quote))) == "TPM4"


def test_refuses_registers_that_are_not_the_quotes() -> None:
    pcrs = {0: b"\0" * 32, 1: b"\1" * 32}
    report = KEY.report(DATA, pcrs=pcrs)
    assert refusal(replace(report, pcrs={0: b"\1" * 32, 1: b"\0" * 32})) == "TPM7"
    assert refusal(replace(report, pcrs={0: b"\0" * 32, 2: b"\1" * 32})) == "TPM7"
    assert refusal(replace(report, pcrs={0: b"\0" * 32})) == "TPM7"
    assert refusal(replace(report, pcrs={**pcrs, 2: b"\2" * 32})) == "TPM7"


def test_refuses_logs_that_do_not_lead_to_the_register() -> None:
    other = event_log.start(replace(WORKLOAD, module=b"M" * 32))
    report = KEY.report(DATA, log=LOG)
    assert refusal(replace(report, log=other)) == "TPM8"
    again = (*LOG, Event("configuration", b"C" * 32))
    assert refusal(replace(report, log=again)) == "TPM8"
    assert refusal(KEY.report(DATA, log=LOG, pcrs={0: bytes(32)})) == "TPM8"


@pytest.mark.parametrize(
    "log",
    [
        LOG[:2],
        LOG[::-1],
        (*LOG, Event("module", b"M" * 32)),
        (*LOG, Event("runtime", b"R" * 32)),
        (*LOG, Event("else", b"R" * 32)),
        (*LOG, *([Event("configuration", b"C" * 32)] * event_log.EVENTS_MAX)),
        (*LOG[:2], Event("module", b"m" * 31)),
    ],
    ids=["part", "order", "second module", "second runtime", "name", "too many", "short"],
)
def test_refuses_logs_that_avow_never_writes(log: event_log.Log) -> None:
    """Whoever extends a second module, for instance, has run another one before."""
    assert refusal(KEY.report(DATA, log=log)) == "TPM1"


def test_a_stranger_writes_nothing_to_the_terminal() -> None:
    """Names in a log are the sender's; the message quotes them."""
    log = (Event("\x1b[2J\r\nall is well", b"m" * 32), *LOG)
    with pytest.raises(MalformedError) as caught:
        TpmVerifier().authenticate(KEY.report(DATA, log=log).encoded(), NOW)
    assert str(caught.value).isprintable()


def test_the_last_configuration_counts() -> None:
    log = (*LOG, Event("configuration", b"C" * 32), Event("configuration", b"D" * 32))
    authenticated = TpmVerifier().authenticate(KEY.report(DATA, log=log).encoded(), NOW)
    assert authenticated.measured["configuration"] == b"D" * 32


def test_claims_of_a_certified_key() -> None:
    said = TpmVerifier(ENROLMENT.anchors()).authenticate(CERTIFIED.encoded(), NOW).claims
    assert said["tpm.ak_origin"] == "ek"
    assert said["tpm.ek"] == EK_CERTIFICATE_DIGEST
    assert said["collateral.crl_checked"] is False


def test_a_certificate_counts_only_with_a_pinned_authority() -> None:
    said = TpmVerifier().authenticate(CERTIFIED.encoded(), NOW).claims
    assert said["tpm.ak_origin"] == "owner"
    assert "tpm.ek" not in said


def test_accepts_an_authority_in_between() -> None:
    between = TpmAuthority("mock branch", parent=ENROLMENT, now=NOW)
    chain = (certificate(between), between.certificate.public_bytes(Encoding.DER))
    report = KEY.report(DATA, certificates=chain).encoded()
    said = TpmVerifier(ENROLMENT.anchors()).authenticate(report, NOW).claims
    assert said["tpm.ak_origin"] == "ek"


def certified_by(
    authority: TpmAuthority,
    *more: bytes,
    key: ForgedKey = KEY,
    usage: x509.ObjectIdentifier = AK_USAGE,
    ek: bytes = EK_DIGEST_HEADER + EK_CERTIFICATE_DIGEST,
    critical: bool = False,
) -> Report:
    leaf = certificate(authority, key=key, usage=usage, ek=ek, critical=critical)
    return KEY.report(DATA, certificates=(leaf, *more))


def test_refuses_certificates_that_do_not_hold() -> None:
    pinned = ENROLMENT.anchors()
    impostor = TpmAuthority("mock enrolment", now=NOW)
    client = ExtendedKeyUsageOID.CLIENT_AUTH
    refused = {
        "another root of the same name": certified_by(impostor),
        "another key": certified_by(ENROLMENT, key=ForgedKey()),
        "another use": certified_by(ENROLMENT, usage=client),
        "no endorsement key": certified_by(ENROLMENT, ek=b""),
        "half a digest": certified_by(ENROLMENT, ek=EK_DIGEST_HEADER + b"e" * 31),
        "unknown and critical": certified_by(ENROLMENT, critical=True),
        "issued by a key that is no authority": certified_by(
            impostor, certificate(ENROLMENT, key=KEY)
        ),
        "no certificate": KEY.report(DATA, certificates=(b"certificate",)),
    }
    for why, report in refused.items():
        assert refusal(report, pinned) == "TPM3", why


def test_refuses_chains_that_break_in_the_middle() -> None:
    pinned = ENROLMENT.anchors()
    branch = TpmAuthority("mock branch", parent=ENROLMENT, now=NOW)
    impostor = TpmAuthority("mock branch", now=NOW)
    genuine = branch.certificate.public_bytes(Encoding.DER)
    assert refusal(certified_by(impostor, genuine), pinned) == "TPM3"


def test_refuses_more_authorities_than_one_allows() -> None:
    last = TpmAuthority("mock branch", parent=ENROLMENT, now=NOW, path_length=0)
    beyond = TpmAuthority("mock twig", parent=last, now=NOW)
    between = [each.certificate.public_bytes(Encoding.DER) for each in (beyond, last)]
    assert refusal(certified_by(beyond, *between), ENROLMENT.anchors()) == "TPM3"
    certified = certified_by(last, between[1]).encoded()
    said = TpmVerifier(ENROLMENT.anchors()).authenticate(certified, NOW).claims
    assert said["tpm.ak_origin"] == "ek"


def test_refuses_sha1_in_certificates() -> None:
    """Written by hand, since nothing here signs with SHA-1 any more."""
    sha256_with_rsa, sha1_with_rsa = (bytes.fromhex(f"2a864886f70d0101{n}") for n in ("0b", "05"))
    key = rsa.generate_private_key(65537, 2048)
    root = TpmAuthority("mock old authority", now=NOW, key=key)
    leaf = x509.load_der_x509_certificate(certificate(root))
    body = leaf.tbs_certificate_bytes.replace(sha256_with_rsa, sha1_with_rsa)
    signature = key.sign(body, padding.PKCS1v15(), hashes.SHA1())
    old = leaf.public_bytes(Encoding.DER).replace(sha256_with_rsa, sha1_with_rsa)
    old = old.replace(leaf.tbs_certificate_bytes, body)[: -len(signature)] + signature
    assert x509.load_der_x509_certificate(old).subject == leaf.subject
    assert refusal(KEY.report(DATA, certificates=(old,)), root.anchors()) == "TPM3"


def test_refuses_keys_with_unknown_attributes_or_small_exponents() -> None:
    assert refusal(ForgedKey(attributes=ATTRIBUTES | 1).report(DATA)) == "TPM1"
    at = len(RSA_KEY.public) - 2 - 256 - 4
    small = RSA_KEY.public[:at] + (3).to_bytes(4, "big") + RSA_KEY.public[at + 4 :]
    assert refusal(replace(RSA_KEY.report(DATA), ak=small)) == "TPM1"
    said = RSA_KEY.public[:at] + (65537).to_bytes(4, "big") + RSA_KEY.public[at + 4 :]
    assert parse_public(said).key == parse_public(RSA_KEY.public).key


def test_refuses_a_leaf_that_issues() -> None:
    """Who has a certified attestation key cannot certify others with it."""
    pinned = ENROLMENT.anchors()
    leaf = certificate(ENROLMENT)
    forged = TpmAuthority("forged", now=NOW)
    assert isinstance(KEY.key, ec.EllipticCurvePrivateKey)
    forged.key = KEY.key
    forged.name = x509.Name([])
    other = ForgedKey()
    below = other.report(DATA, certificates=(certificate(forged, key=other), leaf))
    assert refusal(below, pinned) == "TPM3"


@pytest.mark.parametrize("days", [-2, 2])
def test_refuses_certificates_outside_their_time(days: int) -> None:
    pinned = ENROLMENT.anchors()
    now = NOW + timedelta(days=days)
    assert refusal(CERTIFIED, pinned, now) == "TPM3"
    with pytest.raises(UntrustedError) as caught:
        TpmVerifier(pinned).authenticate(CERTIFIED.encoded(), now)
    assert ("set this machine's clock" in str(caught.value)) is (days < 0)


def test_revoked_certificates() -> None:
    leaf = x509.load_der_x509_certificate(CERTIFIED.certificates[0])
    current = ENROLMENT.anchors(ENROLMENT.revocation_list())
    said = TpmVerifier(current).authenticate(CERTIFIED.encoded(), NOW).claims
    assert said["collateral.crl_checked"] is True
    assert refusal(CERTIFIED, ENROLMENT.anchors(ENROLMENT.revocation_list([leaf]))) == "TPM3"
    old = ENROLMENT.revocation_list(until=NOW - timedelta(hours=1))
    with pytest.raises(UnavailableError, match="TPM3"):
        TpmVerifier(ENROLMENT.anchors(old)).authenticate(CERTIFIED.encoded(), NOW)
    # A list that somebody else signed says nothing.
    strangers = TpmAuthority("mock enrolment", now=NOW).revocation_list([leaf])
    said = TpmVerifier(ENROLMENT.anchors(strangers)).authenticate(CERTIFIED.encoded(), NOW).claims
    assert said["collateral.crl_checked"] is False


@pytest.mark.parametrize("report", [CERTIFIED, RSA_KEY.report(DATA, log=LOG)], ids=["ecc", "rsa"])
def test_verifying_takes_a_millisecond(report: Report) -> None:
    content, judge, took = report.encoded(), TpmVerifier(ENROLMENT.anchors()), []
    for _ in range(101):
        begin = time.process_time()
        judge.authenticate(content, NOW)
        took.append(time.process_time() - begin)
    # Time of this process, and the median, so that a busy machine does not fail it.
    assert median(took) < 0.001
