"""SEV-SNP on a mock AMD: every refusal by its check, and the report's parser."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import AvowError, Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence import cbor
from avow.evidence.vocabulary import is_value_of, kind_of
from avow.tee import der
from avow.tee.snp import verifier as snp
from avow.tee.snp.certificates import AMD_ARC, parse_certificate, parse_crl
from avow.tee.snp.report import SnpEvidence, Tcb, decode_evidence, decode_tcb, parse_report
from avow.tee.snp.verifier import GENOA, TURIN, SnpVerifier
from avow.testing.amd_pki import (
    CHIP_ID,
    FROM,
    NOW,
    POLICY,
    TCB,
    UNTIL,
    VLEK_UNTIL,
    AmdPki,
    SnpSigner,
    amd_name,
    authority_extensions,
    public_key,
)

DATA = bytes(range(64))
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def pki() -> AmdPki:
    return AmdPki()


@pytest.fixture(scope="module")
def chip(pki: AmdPki) -> SnpSigner:
    return pki.chip()


@pytest.fixture(scope="module")
def cloud(pki: AmdPki) -> SnpSigner:
    return pki.cloud()


def refused(
    verifier: SnpVerifier,
    evidence: SnpEvidence,
    check: Check,
    *,
    error: type[AvowError] = UntrustedError,
    now: datetime = NOW,
) -> None:
    with pytest.raises(error) as caught:
        verifier.authenticate(evidence.encoded(), now)
    assert caught.value.finding is not None
    assert caught.value.finding.check is check


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_version_is_proven(chip: SnpSigner, version: int) -> None:
    evidence = chip.evidence(DATA, version=version, vmpl=2, guest_svn=7)
    proven = chip.pki.verifier().authenticate(evidence.encoded(), NOW)
    assert proven.bound == DATA
    assert proven.binding == "report data"
    assert proven.measured == {}
    assert proven.claims["snp.vmpl"] == 2
    assert proven.claims["snp.guest_svn"] == 7
    assert proven.claims["snp.chip_id"] == CHIP_ID
    assert proven.claims["snp.tcb.microcode"] == TCB.microcode
    for name, value in proven.claims.items():
        kind = kind_of(name)
        assert kind is not None, name
        assert is_value_of(kind, value), name


def test_debug_migration_and_smt_are_claims(chip: SnpSigner) -> None:
    verifier = chip.pki.verifier()
    plain = verifier.prove(chip.evidence(DATA, policy=1 << 17), NOW).claims
    assert (plain["debug"], plain["snp.migration_agent"], plain["snp.smt"]) == (False,) * 3
    for bit, name in ((16, "snp.smt"), (18, "snp.migration_agent"), (19, "debug")):
        claims = verifier.prove(chip.evidence(DATA, policy=1 << 17 | 1 << bit), NOW).claims
        assert [key for key in ("debug", "snp.migration_agent", "snp.smt") if claims[key]] == [name]


def test_other_generations() -> None:
    for product, title, cpuid in (
        (GENOA, "Genoa-B1", (0x19, 0x11, 1)),
        (GENOA, "Siena-B0", (0x19, 0xA0, 1)),
        (TURIN, "Turin", (0x1A, 0x02, 1)),
    ):
        pki = AmdPki(product)
        tcb = Tcb(3, 1, 20, 70, fmc=2 if product is TURIN else 0)
        chip_id = CHIP_ID[:8] if product is TURIN else CHIP_ID
        signer = pki.chip(extensions=pki.vek_extensions(tcb=tcb, chip_id=chip_id, title=title))
        evidence = signer.evidence(
            DATA, cpuid=bytes(cpuid), reported_tcb=tcb.encoded(turin=product is TURIN)
        )
        claims = pki.verifier().authenticate(evidence.encoded(), NOW).claims
        assert claims["snp.product"] == product.name
        assert claims["snp.tcb.fmc"] == tcb.fmc
        assert claims["snp.chip_id"] == chip_id.ljust(64, b"\0")


def test_only_amd_is_trusted_by_default(chip: SnpSigner) -> None:
    refused(SnpVerifier(), chip.evidence(DATA), snp.ROOT)


def test_another_amd(chip: SnpSigner) -> None:
    other = AmdPki()
    refused(other.verifier(), chip.evidence(DATA), snp.ROOT)
    # Its own intermediate under the right root.
    forged = SnpEvidence(chip.report(DATA), (other.chip().chain[0], other.ask, chip.pki.ark))
    refused(chip.pki.verifier(), forged, snp.CHAIN)
    # Its own signer under the right intermediate.
    forged = SnpEvidence(chip.report(DATA), (other.chip().chain[0], chip.pki.ask, chip.pki.ark))
    refused(chip.pki.verifier(), forged, snp.CHAIN)


def test_a_signing_key_that_is_no_authority(pki: AmdPki, chip: SnpSigner) -> None:
    for extensions in ({}, {"2.5.29.15": (True, bytes.fromhex("03020106"))},
                       {"2.5.29.19": (True, bytes.fromhex("30030101ff"))},
                       {"2.5.29.19": (True, bytes.fromhex("30030101ff")),
                        "2.5.29.15": (True, bytes.fromhex("03020780"))}):  # fmt: skip
        template = dataclasses.replace(pki.ask_template, extensions=extensions)
        ask = template.signed_by(pki.ark_key)
        evidence = SnpEvidence(chip.report(DATA), (chip.chain[0], ask, pki.ark))
        refused(pki.verifier(), evidence, snp.CHAIN)


def test_a_signer_of_another_product(pki: AmdPki) -> None:
    for title in ("Genoa-B0", "Milano-B0", ""):
        signer = pki.chip(extensions=pki.vek_extensions(chip_id=CHIP_ID, title=title or "-"))
        refused(pki.verifier(), signer.evidence(DATA), snp.CHAIN)


def test_a_vcek_by_the_clouds_signing_key(pki: AmdPki) -> None:
    vcek = pki.chip()
    swapped = pki.chip(subject="SEV-VLEK")
    for leaf, issuer in ((vcek.chain[0], pki.asvk), (swapped.chain[0], pki.ask)):
        evidence = SnpEvidence(vcek.report(DATA), (leaf, issuer, pki.ark))
        refused(pki.verifier(), evidence, snp.CHAIN)


@pytest.mark.parametrize("which", ["ark", "ask", "vcek"])
def test_validity_of_every_certificate(pki: AmdPki, which: str) -> None:
    late = {"not_before": NOW + DAY}
    early = {"not_after": NOW - DAY}
    for times in (late, early):
        root = pki.ark_template
        if which == "ark":
            ark = dataclasses.replace(root, **times).signed_by(pki.ark_key)  # type: ignore[arg-type]
        else:
            ark = pki.ark
        ask = pki.ask
        if which == "ask":
            template = dataclasses.replace(pki.ask_template, **times)  # type: ignore[arg-type]
            ask = template.signed_by(pki.ark_key)
        signer = pki.chip(**(times if which == "vcek" else {}))
        evidence = SnpEvidence(signer.report(DATA), (signer.chain[0], ask, ark))
        trusted = SnpVerifier({hashlib.sha256(ark).digest(): pki.product})
        refused(trusted, evidence, snp.VALIDITY)


def test_times_are_looked_at_although_the_chain_is_kept(chip: SnpSigner, cloud: SnpSigner) -> None:
    verifier = chip.pki.verifier()
    evidence = chip.evidence(DATA)
    verifier.prove(evidence, UNTIL)
    refused(verifier, evidence, snp.VALIDITY, now=UNTIL + timedelta(seconds=1))
    verifier.prove(evidence, FROM)
    refused(verifier, evidence, snp.VALIDITY, now=FROM - timedelta(seconds=1))
    ended = cloud.evidence(DATA)
    assert verifier.prove(ended, VLEK_UNTIL).claims["snp.signer"] == "vlek"
    refused(verifier, ended, snp.VALIDITY, now=VLEK_UNTIL + timedelta(seconds=1))


def test_a_list_that_revokes_nothing_here(pki: AmdPki, chip: SnpSigner) -> None:
    # Serial zero of the root's own is no VCEK, and another issuer's serial is no ASK.
    crl = pki.crl([(None, 0), ("ARK-Genoa", 65537), ("SEV-VLEK-Milan", 0)])
    for verifier, carried in ((pki.verifier([crl]), None), (pki.verifier(), crl)):
        claims = verifier.prove(chip.evidence(DATA, crl=carried), NOW).claims
        assert claims["collateral.crl_checked"] is True
        assert claims["collateral.age_s"] == 31 * 24 * 3600
    assert pki.verifier().prove(chip.evidence(DATA), NOW).claims["collateral.crl_checked"] is False


def test_revoked(pki: AmdPki, chip: SnpSigner, cloud: SnpSigner) -> None:
    for signer, entry in (
        (chip, (None, 65537)),
        (chip, ("SEV-Milan", 0)),
        (cloud, (None, 65793)),
        (cloud, ("SEV-VLEK-Milan", 0)),
    ):
        crl = pki.crl([entry])
        refused(pki.verifier([crl]), signer.evidence(DATA), snp.REVOCATION)
        refused(pki.verifier(), signer.evidence(DATA, crl=crl), snp.REVOCATION)


def test_an_issuer_holds_for_the_entries_after_it(pki: AmdPki, chip: SnpSigner) -> None:
    """RFC 5280, section 5.3.3."""
    crl = pki.crl([("SEV-Milan", 5), (None, 0)])
    refused(pki.verifier([crl]), chip.evidence(DATA), snp.REVOCATION)


def test_a_carried_list_does_not_replace_the_verifiers_own(pki: AmdPki, chip: SnpSigner) -> None:
    evidence = chip.evidence(DATA, crl=pki.crl())
    refused(pki.verifier([pki.crl([(None, 65537)])]), evidence, snp.REVOCATION)


def test_lists_that_are_not_current(pki: AmdPki, chip: SnpSigner) -> None:
    for crl in (
        pki.crl(this_update=NOW + DAY, next_update=NOW + 2 * DAY),
        pki.crl(this_update=NOW - 2 * DAY, next_update=NOW - DAY),
    ):
        refused(pki.verifier([crl]), chip.evidence(DATA), snp.REVOCATION, error=UnavailableError)
    early = pki.verifier([pki.crl(this_update=NOW + DAY, next_update=NOW + 2 * DAY)])
    with pytest.raises(UnavailableError, match="set this machine's clock"):
        early.authenticate(chip.evidence(DATA).encoded(), NOW)


def test_lists_by_somebody_else(pki: AmdPki, chip: SnpSigner) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = pki.crl(key=other)
    refused(pki.verifier([forged]), chip.evidence(DATA), snp.REVOCATION)
    refused(pki.verifier(), chip.evidence(DATA, crl=forged), snp.REVOCATION)
    # One by the signing key would let it clear itself.
    by_ask = pki.crl(issuer="SEV-Milan", key=pki.ask_key)
    refused(pki.verifier(), chip.evidence(DATA, crl=by_ask), snp.REVOCATION)
    # Its own, under another's name.
    renamed = chip.evidence(DATA, crl=pki.crl(issuer="ARK-Genoa"))
    refused(pki.verifier(), renamed, snp.REVOCATION)
    # The user's lists of other generations say nothing about this one.
    claims = pki.verifier([pki.crl(issuer="ARK-Genoa")]).prove(chip.evidence(DATA), NOW).claims
    assert claims["collateral.crl_checked"] is False


def test_lists_that_cannot_be_followed(pki: AmdPki) -> None:
    for crl in (
        pki.crl(next_update=None),
        pki.crl(extensions={"2.5.29.27": (True, b"\2\1\0")}),
        pki.crl(extensions={"2.5.29.27": (False, b"\2\1\0")}),
        pki.crl(extensions={"1.2.3": (True, b"\2\1\0")}),
    ):
        with pytest.raises(MalformedError):
            parse_crl(crl)
        with pytest.raises(MalformedError):
            pki.verifier([crl])


def test_a_report_that_names_another_kind_of_signer(chip: SnpSigner, cloud: SnpSigner) -> None:
    verifier = chip.pki.verifier()
    refused(verifier, chip.evidence(DATA, flags=1 << 2), snp.SIGNER)
    refused(verifier, cloud.evidence(DATA, flags=0), snp.SIGNER)
    refused(verifier, chip.evidence(DATA, flags=7 << 2), snp.SIGNER)


def test_masking_and_author_key(chip: SnpSigner, cloud: SnpSigner) -> None:
    verifier = chip.pki.verifier()
    refused(verifier, chip.evidence(DATA, flags=2), snp.SIGNER)
    assert verifier.prove(cloud.evidence(DATA, flags=1 << 2 | 2), NOW)
    digest = b"\1" * 48
    refused(verifier, chip.evidence(DATA, flags=1), snp.SIGNER)
    refused(verifier, chip.evidence(DATA, author_key_digest=digest), snp.SIGNER)
    claims = verifier.prove(chip.evidence(DATA, flags=1, author_key_digest=digest), NOW).claims
    assert claims["snp.author_key_digest"] == digest


@pytest.mark.parametrize("level", ["bootloader", "tee", "snp", "microcode"])
def test_a_certificate_for_another_tcb(chip: SnpSigner, level: str) -> None:
    for step in (-1, 1):
        tcb = dataclasses.replace(TCB, **{level: getattr(TCB, level) + step})
        evidence = chip.evidence(DATA, reported_tcb=tcb.encoded(turin=False))
        refused(chip.pki.verifier(), evidence, snp.TCB)


def test_a_certificate_for_another_fmc() -> None:
    pki = AmdPki(TURIN)
    tcb = dataclasses.replace(TCB, fmc=1)
    evidence = pki.chip().evidence(DATA, reported_tcb=tcb.encoded(turin=True))
    refused(pki.verifier(), evidence, snp.TCB)


def test_another_chip(chip: SnpSigner) -> None:
    other = bytes((CHIP_ID[0] ^ 1,)) + CHIP_ID[1:]
    refused(chip.pki.verifier(), chip.evidence(DATA, chip_id=other), snp.CHIP)
    refused(chip.pki.verifier(), chip.evidence(DATA, cpuid=bytes((0x1A, 2, 1))), snp.CHIP)
    # A host may mask the chip's identity; the certificate still has it.
    claims = chip.pki.verifier().prove(chip.evidence(DATA, chip_id=bytes(64)), NOW).claims
    assert claims["snp.chip_id"] == CHIP_ID


def test_a_vlek_on_a_chip_that_is_named(cloud: SnpSigner) -> None:
    claims = cloud.pki.verifier().prove(cloud.evidence(DATA, chip_id=CHIP_ID), NOW).claims
    assert claims["snp.chip_id"] == CHIP_ID


def test_names_have_to_fit(pki: AmdPki) -> None:
    signer = pki.chip(issuer="SEV-Genoa")
    refused(pki.verifier(), signer.evidence(DATA), snp.CHAIN)


def test_a_signing_key_that_is_not_rsa(pki: AmdPki, chip: SnpSigner) -> None:
    key = public_key(ec.generate_private_key(ec.SECP384R1()))
    ask = dataclasses.replace(pki.ask_template, public_key=key).signed_by(pki.ark_key)
    evidence = SnpEvidence(chip.report(DATA), (chip.chain[0], ask, pki.ark))
    refused(pki.verifier(), evidence, snp.CHAIN)


def reopened(content: bytes) -> tuple[der.Signed, der.Certificate]:
    outer = asn1.decode_der(der.Signed, content)
    return outer, outer.content.parse(der.Certificate)


def closed(outer: der.Signed, body: der.Certificate | der.RevocationList) -> bytes:
    outer.content = asn1.decode_der(asn1.TLV, asn1.encode_der(body))
    return asn1.encode_der(outer)


def test_forms_of_certificates(pki: AmdPki) -> None:
    """What is signed by nobody any more, but refused for its form before that matters."""
    other = asn1.decode_der(asn1.TLV, bytes.fromhex("300d06092a864886f70d01010c0500"))
    assert parse_certificate(closed(*reopened(pki.ask)), "ASK").common_name == "SEV-Milan"
    bad: list[bytes] = []
    outer, body = reopened(pki.ask)
    body.version = 1
    bad.append(closed(outer, body))
    outer, body = reopened(pki.ask)
    body.algorithm = other
    bad.append(closed(outer, body))
    outer, body = reopened(pki.ask)
    outer.algorithm = other
    bad.append(closed(outer, body))
    outer, body = reopened(pki.ask)
    body.algorithm = outer.algorithm = other
    bad.append(closed(outer, body))
    outer, body = reopened(pki.ask)
    outer.signature = asn1.BitString(bytes(512), 1)
    bad.append(closed(outer, body))
    outer, body = reopened(pki.ask)
    body.extensions = [*body.extensions, body.extensions[0]]
    bad.append(closed(outer, body))
    for names in ([], ["SEV-Milan", "SEV-VCEK"]):
        outer, body = reopened(pki.ask)
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
        body.subject = asn1.decode_der(asn1.TLV, x509.Name(attributes).public_bytes())
        bad.append(closed(outer, body))
    for content in bad:
        with pytest.raises(MalformedError):
            parse_certificate(content, "ASK")


def test_forms_of_lists(pki: AmdPki) -> None:
    def parts() -> tuple[der.Signed, der.RevocationList]:
        outer = asn1.decode_der(der.Signed, pki.crl([("SEV-Milan", 5)]))
        return outer, outer.content.parse(der.RevocationList)

    def entry(oid: str, critical: bool, value: bytes) -> list[der.Extension]:
        return [der.Extension(oid=x509.ObjectIdentifier(oid), critical=critical, value=value)]

    assert len(parse_crl(closed(*parts())).revoked) == 1
    other = asn1.decode_der(asn1.TLV, bytes.fromhex("300d06092a864886f70d01010c0500"))
    bad: list[bytes] = []
    for version in (None, 0, 2):
        outer, body = parts()
        body.version = version
        bad.append(closed(outer, body))
    outer, body = parts()
    body.algorithm = other
    bad.append(closed(outer, body))
    name = amd_name("SEV-Milan")
    for extensions in (
        entry("1.2.3", True, b"\5\0"),
        entry("2.5.29.29", True, b"\x30\0"),
        entry("2.5.29.29", True, b"\x30\2\x82\0"),
        entry("2.5.29.29", True, b"\x30\x81" + bytes((len(name),)) + name),
        entry("2.5.29.29", True, b"\x30\4\xa4\0\xa4\0"),
        entry("2.5.29.21", False, b"\x0a\1\1") * 2,
    ):
        outer, body = parts()
        assert body.revoked
        body.revoked[0].extensions = extensions
        bad.append(closed(outer, body))
    for content in bad:
        with pytest.raises(MalformedError):
            parse_crl(content)
    outer, body = parts()
    assert body.revoked
    body.revoked[0].extensions = entry("2.5.29.21", False, b"\x0a\1\1")
    assert len(parse_crl(closed(outer, body)).revoked) == 1


def test_a_hardware_id_as_octet_string(pki: AmdPki) -> None:
    signer = pki.chip(extensions=pki.vek_extensions(chip_id=b"\x04\x40" + CHIP_ID))
    assert pki.verifier().prove(signer.evidence(DATA), NOW).claims["snp.chip_id"] == CHIP_ID


def test_certificates_with_other_extensions(pki: AmdPki) -> None:
    good = pki.vek_extensions(chip_id=CHIP_ID)
    arc = "1.3.6.1.4.1.3704.1"
    bad: list[dict[str, tuple[bool, bytes]]] = [
        pki.vek_extensions(),
        pki.vek_extensions(chip_id=CHIP_ID, csp_id="CN=both"),
        pki.vek_extensions(chip_id=CHIP_ID[:-1]),
        pki.vek_extensions(chip_id=b"\x04\x3f" + CHIP_ID[:-1]),
        good | {f"{arc}.3.5": (False, b"\2\1\1")},
        good | {f"{arc}.3.8": (False, b"\2\2\1\0")},
        good | {f"{arc}.3.8": (False, b"\2\1\1\0")},
        good | {f"{arc}.2": (False, b"\x0c\x05Milan")},
        good | {"1.2.3": (True, b"\5\0")},
        {oid: value for oid, value in good.items() if oid != f"{arc}.3.3"},
    ]
    for extensions in bad:
        signer = pki.chip(extensions=extensions)
        refused(pki.verifier(), signer.evidence(DATA), snp.FORM, error=MalformedError)


def test_a_root_that_may_not_sign_lists(pki: AmdPki, chip: SnpSigner) -> None:
    extensions = authority_extensions() | {"2.5.29.15": (True, bytes.fromhex("03020204"))}
    ark = dataclasses.replace(pki.ark_template, extensions=extensions).signed_by(pki.ark_key)
    verifier = SnpVerifier({hashlib.sha256(ark).digest(): pki.product})
    chain = (chip.chain[0], pki.ask, ark)
    assert verifier.prove(SnpEvidence(chip.report(DATA), chain), NOW)
    refused(verifier, SnpEvidence(chip.report(DATA), chain, pki.crl()), snp.REVOCATION)


def test_a_signer_with_another_kind_of_key(pki: AmdPki) -> None:
    for key in (ec.generate_private_key(ec.SECP256R1()), pki.ask_key):
        signer = pki.chip(public_key=public_key(key))
        refused(pki.verifier(), signer.evidence(DATA), snp.FORM, error=MalformedError)


def test_a_report_signed_by_another_key(pki: AmdPki, chip: SnpSigner) -> None:
    evidence = SnpEvidence(pki.chip().report(DATA), chip.chain)
    refused(pki.verifier(), evidence, snp.SIGNATURE)


def test_a_report_that_the_host_asked_for(chip: SnpSigner) -> None:
    for vmpl in (4, 0xFFFFFFFF):
        refused(chip.pki.verifier(), chip.evidence(DATA, vmpl=vmpl), snp.ASKER)


def test_no_byte_can_be_changed(chip: SnpSigner) -> None:
    verifier = chip.pki.verifier()
    report = chip.report(DATA)
    for place in range(len(report)):
        changed = report[:place] + bytes((report[place] ^ 0x80,)) + report[place + 1 :]
        with pytest.raises(AvowError):
            verifier.prove(SnpEvidence(changed, chip.chain), NOW)


RESERVED: tuple[dict[str, Any], ...] = (
    {"version": 1},
    {"version": 6},
    {"algorithm": 2},
    {"reserved": 1},
    {"flags": 1 << 5},
    {"flags": 2 << 2},
    {"policy": POLICY | 1 << 26},
    {"policy": POLICY & ~(1 << 17)},
    {"cpuid": bytes((0x19, 1, 1, 1))},
    {"cpuid": bytes((0x19, 1, 1)) + bytes(20) + b"\1"},
    {"versions": b"\0\0\0\1\0\0\0\0"},
    {"versions": b"\0\0\0\0\0\0\0\1"},
    {"end": b"\1"},
    {"version": 4, "end": b"\1"},
    {"version": 5, "end": bytes(16) + b"\1"},
    {"version": 5, "end": bytes(167) + b"\1"},
    {"reported_tcb": b"\4\1\1\0\0\0\x18\xdb"},
)


@pytest.mark.parametrize("fields", RESERVED, ids=str)
def test_what_has_no_name_is_zero(chip: SnpSigner, fields: dict[str, Any]) -> None:
    """Signed by the chip, and still refused: the firmware is one that nobody here knows."""
    refused(chip.pki.verifier(), chip.evidence(DATA, **fields), snp.FORM, error=MalformedError)


def test_a_cpuid_in_version_2(chip: SnpSigner) -> None:
    body = bytearray(chip.report(DATA, version=2)[:0x2A0])
    body[0x188] = 0x19
    evidence = SnpEvidence(chip.sign(bytes(body)), chip.chain)
    refused(chip.pki.verifier(), evidence, snp.FORM, error=MalformedError)


def test_the_mitigation_vectors_of_version_5(chip: SnpSigner) -> None:
    verifier = chip.pki.verifier()
    end = struct.pack("<QQ", 5, 1 << 63)
    claims = verifier.prove(chip.evidence(DATA, version=5, end=end), NOW).claims
    assert claims["snp.mitigations.launch"] == ("0", "2")
    assert claims["snp.mitigations.current"] == ("63",)
    for version in (2, 3, 4):
        claims = verifier.prove(chip.evidence(DATA, version=version), NOW).claims
        assert not [name for name in claims if name.startswith("snp.mitigations")]


@pytest.mark.parametrize("turin", [False, True])
def test_every_tcb_is_a_claim(pki: AmdPki, turin: bool) -> None:
    """After a live update the guest runs on other firmware than it was launched under."""
    signer = (AmdPki(TURIN) if turin else pki).chip()
    fmc = 7 if turin else 0
    tcbs = {
        "launch_tcb": Tcb(1, 0, 8, 115, fmc),
        "committed_tcb": Tcb(4, 1, 24, 219, fmc),
        "current_tcb": Tcb(5, 2, 25, 220, fmc),
    }
    encoded = {name: tcb.encoded(turin=turin) for name, tcb in tcbs.items()}
    claims = signer.pki.verifier().prove(signer.evidence(DATA, **encoded), NOW).claims
    for name, tcb in {**tcbs, "tcb": TCB}.items():
        for level, number in dataclasses.asdict(tcb).items():
            assert claims[f"snp.{name}.{level}"] == number


@pytest.mark.parametrize("field", ["launch_tcb", "committed_tcb", "current_tcb"])
def test_no_tcb_has_reserved_bytes(chip: SnpSigner, field: str) -> None:
    evidence = chip.evidence(DATA, **{field: b"\4\1\1\0\0\0\x18\xdb"})
    refused(chip.pki.verifier(), evidence, snp.FORM, error=MalformedError)


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0, "smt"),
        (1, "tsme"),
        (2, "ecc"),
        (3, "rapl_disabled"),
        (4, "ciphertext_hiding"),
        (5, "alias_check_complete"),
        (6, "iommu_write_safe"),
        (7, "tio"),
    ],
)
def test_bits_of_platform_info_are_claims(chip: SnpSigner, bit: int, name: str) -> None:
    claims = chip.pki.verifier().prove(chip.evidence(DATA, platform_info=1 << bit), NOW).claims
    assert claims["snp.platform_info"] == 1 << bit
    flags = {key: value for key, value in claims.items() if key.startswith("snp.platform.")}
    assert [key for key, value in flags.items() if value] == [f"snp.platform.{name}"]
    assert len(flags) == 8


def test_the_extensions_of_structure_1() -> None:
    """AMD 57230, chapter 3: Turin's certificates have the FMC's level, and no 3.4."""
    pki = AmdPki(TURIN)
    plain = pki.vek_extensions(chip_id=CHIP_ID[:8])
    assert f"{AMD_ARC}.3.4" not in plain
    for oid, value in (("1", 0), ("1", 2), ("3.4", 1), ("3.5", 1), ("3.9", None)):
        changed = {**plain, f"{AMD_ARC}.{oid}": (False, asn1.encode_der(value or 0))}
        if value is None:
            del changed[f"{AMD_ARC}.{oid}"]
        signer = pki.chip(extensions=changed)
        refused(pki.verifier(), signer.evidence(DATA), snp.FORM, error=MalformedError)


@pytest.mark.parametrize("oid", ["1", "3.4", "3.1"])
def test_the_extensions_of_structure_0(pki: AmdPki, oid: str) -> None:
    extensions = pki.vek_extensions(chip_id=CHIP_ID)
    del extensions[f"{AMD_ARC}.{oid}"]
    signer = pki.chip(extensions=extensions)
    refused(pki.verifier(), signer.evidence(DATA), snp.FORM, error=MalformedError)


def test_the_signature_has_one_form(chip: SnpSigner) -> None:
    report = chip.report(DATA)
    for place in (0x2A0 + 48, 0x2A0 + 71, 0x2A0 + 72 + 48, 0x2A0 + 144, 0x49F):
        changed = bytearray(report)
        changed[place] = 1
        with pytest.raises(MalformedError):
            parse_report(bytes(changed))


@pytest.mark.parametrize("turin", [False, True])
@given(content=st.binary(min_size=8, max_size=8))
def test_tcb_versions(turin: bool, content: bytes) -> None:
    try:
        tcb = decode_tcb(content, turin=turin)
    except MalformedError:
        return
    assert tcb.encoded(turin=turin) == content


@given(content=st.binary(max_size=1300))
def test_report_of_any_bytes(content: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_report(content)


@given(size=st.integers(0, 1500))
def test_report_of_any_size(size: int) -> None:
    if size != 1184:
        with pytest.raises(MalformedError, match="1184 bytes"):
            parse_report(b"\2\0\0\0".ljust(size, b"\0")[:size])


@given(content=st.binary(max_size=200))
def test_any_bytes_as_certificate_and_list(content: bytes) -> None:
    for parse in (lambda each: parse_certificate(each, "certificate"), parse_crl):
        with pytest.raises(MalformedError):
            parse(content)


@given(data=st.data())
def test_mutated_certificates(pki: AmdPki, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([pki.ask, pki.crl([("SEV-Milan", 0)])])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    parsers: tuple[Callable[[bytes], object], ...] = (
        lambda each: parse_certificate(each, "certificate"),
        parse_crl,
    )
    for parse in parsers:
        try:
            parse(bytes(content))
        except MalformedError:
            continue


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        cbor.encode([]),
        cbor.encode(["report", "chain"]),
        cbor.encode({"report": b"", "chain": []}),
        cbor.encode({"report": b"", "chain": [b"", b"", b""], "more": b""}),
        cbor.encode({"report": "", "chain": [b"", b"", b""]}),
        cbor.encode({"report": b"", "chain": [b"", "", b""]}),
        cbor.encode({"report": b"", "chain": ["", b"", b""]}),
        cbor.encode({"report": b"", "chain": [b"", b"", ""]}),
        cbor.encode({"report": b"", "chain": "abc"}),
        cbor.encode({"report": b"", "chain": [b"", b"", b""], "crl": None}),
        cbor.encode({"report": b"", "chain": [b"", b"", b""]}) + b"\0",
        cbor.encode({"chain": [b"", b"", b""]}),
    ],
)
def test_payloads_that_are_none(payload: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_evidence(payload)
    with pytest.raises(MalformedError) as caught:
        SnpVerifier().authenticate(payload, NOW)
    assert caught.value.finding is not None
    assert caught.value.finding.check is snp.FORM


def test_payload_there_and_back(chip: SnpSigner) -> None:
    for evidence in (chip.evidence(DATA), chip.evidence(DATA, crl=chip.pki.crl())):
        assert decode_evidence(evidence.encoded()) == evidence


def test_checks_are_numbered_in_order() -> None:
    assert [check.number for check in snp.CHECKS] == [f"SNP{n}" for n in range(1, 11)]


def test_now_may_be_in_any_time_zone(chip: SnpSigner) -> None:
    assert chip.pki.verifier().prove(chip.evidence(DATA), NOW.astimezone(UTC))
