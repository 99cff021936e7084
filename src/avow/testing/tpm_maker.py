"""A mock maker of TPMs: its certificate authority, and an owner's that enrols attestation keys.

`provision` does to a software TPM what a maker does: it certifies the endorsement keys and stores
the certificates where a real TPM has them. Nothing outside tests trusts these roots.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from avow.tee.tpm.attester import TpmAttester, TpmSettings
from avow.tee.tpm.chain import EK_USAGE, Anchors
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.enrolment import Challenger, Issuer, Request
from avow.tee.tpm.structures import PublicKey, parse_public
from avow.tee.tpm.templates import EK_ECC, EK_RSA, EndorsementKey
from avow.testing.swtpm import SoftwareTpm

DAY = timedelta(days=1)
_EK_AREA_BYTES = 1600
_CHAIN_AREA_BYTES = 300
_CHAIN_FIRST = 0x01C00100


class TpmAuthority:
    """A root, or an intermediate when it has a parent. Valid for a day around `now`."""

    def __init__(
        self,
        name: str,
        *,
        parent: TpmAuthority | None = None,
        now: datetime | None = None,
        path_length: int | None = None,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> None:
        self.now = now if now is not None else datetime.now(UTC)
        self.parent = parent
        self.key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = self if parent is None else parent
        self.certificate = (
            issuer.begin(self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_ISSUES, critical=True)
            .sign(issuer.key, hashes.SHA256())
        )

    def begin(self, subject: x509.Name, key: PublicKey) -> x509.CertificateBuilder:
        """A certificate by this authority, without extensions and signature."""
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - DAY)
            .not_valid_after(self.now + DAY)
        )

    def certify_ek(
        self, key: PublicKey, usage: x509.ObjectIdentifier = EK_USAGE
    ) -> tuple[bytes, ...]:
        """The certificate of an endorsement key and those up to the root, in DER. As the profile
        demands, its subject is empty and the TPM's model is in a critical extension."""
        model = x509.DirectoryName(
            x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:4D4F434B")])
        )
        leaf = (
            self.begin(x509.Name([]), key)
            .add_extension(x509.SubjectAlternativeName([model]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        chain = [leaf]
        issuer = self
        while issuer.parent is not None:
            chain.append(issuer.certificate)
            issuer = issuer.parent
        return tuple(each.public_bytes(Encoding.DER) for each in chain)

    def revocation_list(
        self, revoked: Iterable[x509.Certificate] = (), *, until: datetime | None = None
    ) -> x509.CertificateRevocationList:
        """A list that names these certificates."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(self.now - 2 * DAY)
            .next_update(self.now + DAY if until is None else until)
        )
        for certificate in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(self.now - DAY)
                .build()
            )
        return builder.sign(self.key, hashes.SHA256())

    def anchors(self, *crls: x509.CertificateRevocationList) -> Anchors:
        """This authority pinned."""
        return Anchors((self.certificate,), crls)


_ISSUES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a verifier pins, and what the attester sends (DER)."""

    anchors: Anchors
    certificates: tuple[bytes, ...]
    ek_certificate: bytes


class Owner:
    """An enrolment authority that trusts one maker."""

    def __init__(self, maker: TpmAuthority) -> None:
        self.root = TpmAuthority("mock enrolment", now=maker.now)
        self.challenger = Challenger(maker.anchors())
        self.issuer = Issuer(self.root.certificate, self.root.key)

    def enrol(
        self, attester: TpmAttester, kind: EndorsementKey, chain: tuple[bytes, ...]
    ) -> Enrolled:
        """The whole enrolment: the TPM opens the challenge, the authority issues."""
        device = attester.device
        ek = device.make_primary(kind.template)
        device.forget(ek)
        request = Request(attester.key.public, ek.public, chain)
        now = self.root.now
        kept, credential = self.challenger.challenge(
            request, now, secrets.token_bytes(32), secrets.token_bytes(32)
        )
        answer = device.activate(attester.key, kind, credential)
        issued = self.issuer.issue(kept, answer, now, DAY, x509.random_serial_number())
        return Enrolled(self.root.anchors(), (issued.public_bytes(Encoding.DER),), chain[0])


def provision(tpm: SoftwareTpm, maker: TpmAuthority) -> dict[EndorsementKey, tuple[bytes, ...]]:
    """Certifies the TPM's endorsement keys and stores the certificates in it. The chains.

    The area of a certificate is larger than it and filled up with FFh, as on TPMs of ST; those
    above it are in areas of their own, cut where one ends (TCG EK Credential Profile, version 2.5).
    """
    device = TpmDevice(tpm.tcti, timeout_s=30)
    chains: dict[EndorsementKey, tuple[bytes, ...]] = {}
    for kind in (EK_ECC, EK_RSA):
        ek = device.make_primary(kind.template)
        device.forget(ek)
        chains[kind] = maker.certify_ek(parse_public(ek.public).key)
    device.close()
    for kind, chain in chains.items():
        write_nv(tpm, kind.certificate_index, chain[0].ljust(_EK_AREA_BYTES, b"\xff"))
    above = b"".join(dict.fromkeys(each for chain in chains.values() for each in chain[1:]))
    for number, start in enumerate(range(0, len(above), _CHAIN_AREA_BYTES)):
        part = above[start : start + _CHAIN_AREA_BYTES]
        write_nv(tpm, _CHAIN_FIRST + number, part.ljust(_CHAIN_AREA_BYTES, b"\xff"))
    return chains


def write_nv(tpm: SoftwareTpm, index: int, content: bytes) -> None:
    """Makes an area in the TPM's memory, as a maker or a hypervisor does."""
    from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

    public = TPMS_NV_PUBLIC(
        nvIndex=index,
        nameAlg=TPM2_ALG.SHA256,
        attributes=TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA,
        dataSize=len(content),
    )
    with ESAPI(tpm.tcti) as esapi:
        area = esapi.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=public))
        for offset in range(0, len(content), 512):
            esapi.nv_write(area, content[offset : offset + 512], offset, auth_handle=ESYS_TR.OWNER)


def make_persistent(tpm: SoftwareTpm, template: bytes, handle: int) -> bytes:
    """Makes a primary key and keeps it at `handle`. Its TPMT_PUBLIC."""
    from tpm2_pytss import ESAPI, ESYS_TR, TPM2B_PUBLIC, TPMT_PUBLIC

    area, _ = TPMT_PUBLIC.unmarshal(template)
    with ESAPI(tpm.tcti) as esapi:
        key, public, *_ = esapi.create_primary(
            None, TPM2B_PUBLIC(publicArea=area), ESYS_TR.ENDORSEMENT
        )
        esapi.evict_control(ESYS_TR.OWNER, key, handle)
        esapi.flush_context(key)
        encoded: bytes = public.publicArea.marshal()
    return encoded


def settings(tpm: SoftwareTpm) -> TpmSettings:
    """For the attester on this TPM."""
    return TpmSettings(tcti=tpm.tcti, timeout_s=30)
