"""AMD as far as SEV-SNP needs it: a root, signing keys, chips that sign reports, revocation lists.

Names, extensions and signatures are as AMD makes them, serial number zero included, which the
X.509 builder of `cryptography` refuses: so the certificates are encoded here. RSA keys have 2,048
bits instead of 4,096, to be quick. Nothing outside of tests trusts these roots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from avow.tee import der
from avow.tee.snp.certificates import AMD_ARC
from avow.tee.snp.report import (
    LAYOUT,
    SIGNED_BYTES,
    SigningKey,
    SnpEvidence,
    Tcb,
    encode_signature,
)
from avow.tee.snp.verifier import MILAN, Product, SnpVerifier

FROM: Final = datetime(2024, 1, 1, tzinfo=UTC)
NOW: Final = datetime(2025, 6, 1, tzinfo=UTC)
UNTIL: Final = datetime(2031, 1, 1, tzinfo=UTC)
VLEK_UNTIL: Final = datetime(2025, 12, 10, tzinfo=UTC)
CHIP_ID: Final = hashlib.sha512(b"a chip of the tests").digest()
TCB: Final = Tcb(bootloader=4, tee=1, snp=24, microcode=219)
# SMT allowed, and the bit that has to be one.
POLICY: Final = 0x30000
# Simultaneous multithreading, TSME, ECC, alias check complete: what a machine of AWS says.
PLATFORM_INFO: Final = 0x27
CPUS: Final = {"milan": (0x19, 0x01, 0x01), "genoa": (0x19, 0x11, 0x01), "turin": (0x1A, 0x02, 0)}

_ALGORITHM: Final = bytes.fromhex(
    "304606092a864886f70d01010a3039a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101"
)
_PSS: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


def amd_name(common_name: str) -> bytes:
    """A name in DER with AMD's attributes."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    ).public_bytes()


@dataclass(frozen=True, slots=True)
class Template:
    """One certificate to be; change a field with `dataclasses.replace`."""

    subject: str
    issuer: str
    public_key: bytes
    extensions: Mapping[str, tuple[bool, bytes]]
    serial_number: int = 0
    not_before: datetime = FROM
    not_after: datetime = UNTIL

    def signed_by(self, key: rsa.RSAPrivateKey, algorithm: bytes = _ALGORITHM) -> bytes:
        """The certificate in DER."""
        body = der.Certificate(
            version=2,
            serial_number=self.serial_number,
            algorithm=_tlv(algorithm),
            issuer=_tlv(amd_name(self.issuer)),
            validity=der.Validity(
                not_before=asn1.UTCTime(self.not_before), not_after=asn1.UTCTime(self.not_after)
            ),
            subject=_tlv(amd_name(self.subject)),
            public_key=_tlv(self.public_key),
            extensions=_extensions(self.extensions),
        )
        return _signed(asn1.encode_der(body), key, algorithm)


class AmdPki:
    """One generation of processors: ARK, ASK, ASVK. Use one for many tests: RSA keys are slow."""

    def __init__(self, product: Product = MILAN) -> None:
        self.product = product
        title = product.titles[0]
        self.ark_key, self.ask_key, self.asvk_key = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3)
        )
        authority = authority_extensions()
        self.ark_template = Template(
            f"ARK-{title}", f"ARK-{title}", public_key(self.ark_key), authority, 65536
        )
        self.ask_template = replace(
            self.ark_template,
            subject=f"SEV-{title}",
            public_key=public_key(self.ask_key),
            serial_number=65537,
        )
        self.asvk_template = replace(
            self.ark_template,
            subject=f"SEV-VLEK-{title}",
            public_key=public_key(self.asvk_key),
            serial_number=65793,
        )
        self.ark = self.ark_template.signed_by(self.ark_key)
        self.ask = self.ask_template.signed_by(self.ark_key)
        self.asvk = self.asvk_template.signed_by(self.ark_key)

    @property
    def roots(self) -> dict[bytes, Product]:
        """What a verifier in a test trusts."""
        return {hashlib.sha256(self.ark).digest(): self.product}

    def verifier(self, crls: Sequence[bytes] = ()) -> SnpVerifier:
        """A verifier that trusts this root and no other."""
        return SnpVerifier(self.roots, crls)

    def chip(self, **changes: Any) -> SnpSigner:
        """A processor with its VCEK; `changes` are fields of its `Template`."""
        key = ec.generate_private_key(ec.SECP384R1())
        template = Template(
            "SEV-VCEK",
            self.ask_template.subject,
            public_key(key),
            self.vek_extensions(chip_id=CHIP_ID[:8] if self.product.turin_order else CHIP_ID),
        )
        certificate = replace(template, **changes).signed_by(self.ask_key)
        return SnpSigner(self, key, SigningKey.VCEK, (certificate, self.ask, self.ark))

    def cloud(self, **changes: Any) -> SnpSigner:
        """A processor with a VLEK loaded, which ends on 2025-12-10."""
        key = ec.generate_private_key(ec.SECP384R1())
        template = Template(
            "SEV-VLEK",
            self.asvk_template.subject,
            public_key(key),
            self.vek_extensions(csp_id="CN=cloud.example"),
            not_after=VLEK_UNTIL,
        )
        certificate = replace(template, **changes).signed_by(self.asvk_key)
        return SnpSigner(self, key, SigningKey.VLEK, (certificate, self.asvk, self.ark))

    def vek_extensions(
        self,
        *,
        tcb: Tcb = TCB,
        chip_id: bytes | None = None,
        csp_id: str | None = None,
        title: str | None = None,
    ) -> dict[str, tuple[bool, bytes]]:
        """AMD's extensions (57230, chapter 3).

        With structVersion 1, as AMD makes them for Turin, the product has no stepping, 3.9 is the
        FMC's level and there is no 3.4.
        """
        turin = self.product.turin_order
        named = title or (self.product.titles[0] if turin else f"{self.product.titles[0]}-B0")
        values: dict[str, bytes] = {
            "1": asn1.encode_der(int(turin)),
            "2": asn1.encode_der(asn1.IA5String(named)),
            **({"3.9": asn1.encode_der(tcb.fmc)} if turin else {}),
            "3.1": asn1.encode_der(tcb.bootloader),
            "3.2": asn1.encode_der(tcb.tee),
            "3.3": asn1.encode_der(tcb.snp),
            **({} if turin else {"3.4": asn1.encode_der(0)}),
            **{f"3.{number}": asn1.encode_der(0) for number in (5, 6, 7)},
            "3.8": asn1.encode_der(tcb.microcode),
        }
        if chip_id is not None:
            values["4"] = chip_id
        if csp_id is not None:
            values["5"] = asn1.encode_der(asn1.IA5String(csp_id))
        return {f"{AMD_ARC}.{oid}": (False, value) for oid, value in values.items()}

    def crl(
        self,
        revoked: Sequence[tuple[str | None, int]] = (),
        *,
        this_update: datetime = datetime(2025, 5, 1, tzinfo=UTC),
        next_update: datetime | None = datetime(2025, 7, 1, tzinfo=UTC),
        issuer: str | None = None,
        key: rsa.RSAPrivateKey | None = None,
        extensions: Mapping[str, tuple[bool, bytes]] | None = None,
    ) -> bytes:
        """A list by the root. An entry is the issuer's common name, where it is not the root's (an
        indirect list), and the serial number."""
        entries = [
            der.Revoked(
                serial_number=serial_number,
                date=asn1.UTCTime(this_update),
                extensions=None if name is None else _extensions({_ISSUER: (True, _general(name))}),
            )
            for name, serial_number in revoked
        ]
        body = der.RevocationList(
            version=1,
            algorithm=_tlv(_ALGORITHM),
            issuer=_tlv(amd_name(issuer or self.ark_template.subject)),
            this_update=asn1.UTCTime(this_update),
            next_update=None if next_update is None else asn1.UTCTime(next_update),
            revoked=entries or None,
            extensions=_extensions(extensions) if extensions else None,
        )
        return _signed(asn1.encode_der(body), key or self.ark_key, _ALGORITHM)


@dataclass(frozen=True, slots=True)
class SnpSigner:
    """A key that signs reports, with its chain."""

    pki: AmdPki
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    kind: SigningKey
    chain: tuple[bytes, bytes, bytes]

    def report(self, report_data: bytes, **fields: Any) -> bytes:
        """A report (1,184 bytes). `fields` are those of `report_bytes`."""
        turin = self.pki.product.turin_order
        chip_id = CHIP_ID[:8].ljust(64, b"\0") if turin else CHIP_ID
        tcb = TCB.encoded(turin=turin)
        defaults: dict[str, Any] = {
            "report_data": report_data,
            "flags": self.kind << 2,
            "cpuid": bytes(CPUS[self.pki.product.name]),
            "reported_tcb": tcb,
            "launch_tcb": tcb,
            "committed_tcb": tcb,
            "current_tcb": tcb,
            "chip_id": chip_id if self.kind is SigningKey.VCEK else bytes(64),
        }
        return self.sign(report_bytes(**(defaults | fields)))

    def sign(self, body: bytes) -> bytes:
        """Signs the 672 bytes in front of the signature, whatever they are."""
        r, s = decode_dss_signature(self.key.sign(body, ec.ECDSA(hashes.SHA384())))
        return body + encode_signature(r, s)

    def evidence(
        self, report_data: bytes, *, crl: bytes | None = None, **fields: Any
    ) -> SnpEvidence:
        """A report with its chain."""
        return SnpEvidence(self.report(report_data, **fields), self.chain, crl)


def report_bytes(
    *,
    report_data: bytes,
    version: int = 3,
    guest_svn: int = 0,
    policy: int = POLICY,
    family_id: bytes = bytes(16),
    image_id: bytes = bytes(16),
    vmpl: int = 0,
    algorithm: int = 1,
    current_tcb: bytes = TCB.encoded(turin=False),
    platform_info: int = PLATFORM_INFO,
    flags: int = 0,
    reserved: int = 0,
    measurement: bytes = bytes(range(48)),
    host_data: bytes = bytes(32),
    id_key_digest: bytes = bytes(48),
    author_key_digest: bytes = bytes(48),
    report_id: bytes = bytes(32),
    report_id_ma: bytes = b"\xff" * 32,
    reported_tcb: bytes = TCB.encoded(turin=False),
    cpuid: bytes = bytes(CPUS["milan"]),
    chip_id: bytes = CHIP_ID,
    committed_tcb: bytes = TCB.encoded(turin=False),
    versions: bytes = bytes(8),
    launch_tcb: bytes = TCB.encoded(turin=False),
    end: bytes = b"",
) -> bytes:
    """A report without its signature (672 bytes); every field can be set, reserved ones too."""
    cpuid = b"" if version == 2 else cpuid
    body = LAYOUT.pack(
        version, guest_svn, policy, family_id, image_id,
        vmpl, algorithm, current_tcb, platform_info,
        flags, reserved,
        report_data, measurement, host_data,
        id_key_digest, author_key_digest,
        report_id, report_id_ma,
        reported_tcb, cpuid, chip_id,
        committed_tcb, versions,
        launch_tcb, end,
    )  # fmt: skip
    assert len(body) == SIGNED_BYTES
    return body


def authority_extensions() -> dict[str, tuple[bool, bytes]]:
    """A certificate authority's: basic constraints, keyCertSign and cRLSign."""
    return {
        "2.5.29.19": (True, bytes.fromhex("30030101ff")),
        "2.5.29.15": (True, bytes.fromhex("03020106")),
    }


_ISSUER: Final = "2.5.29.29"


def _general(common_name: str) -> bytes:
    name = amd_name(common_name)
    return _length(0x30, _length(0xA4, name))


def _length(tag: int, content: bytes) -> bytes:
    assert len(content) < 256
    return bytes((tag, 0x81, len(content)) if len(content) > 127 else (tag, len(content))) + content


def _extensions(values: Mapping[str, tuple[bool, bytes]]) -> list[der.Extension]:
    return [
        der.Extension(oid=x509.ObjectIdentifier(oid), critical=critical, value=value)
        for oid, (critical, value) in values.items()
    ]


def _signed(content: bytes, key: rsa.RSAPrivateKey, algorithm: bytes) -> bytes:
    signature = key.sign(content, _PSS, hashes.SHA384())
    return asn1.encode_der(
        der.Signed(
            content=_tlv(content),
            algorithm=_tlv(algorithm),
            signature=asn1.BitString(signature, 0),
        )
    )


def public_key(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The SubjectPublicKeyInfo in DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _tlv(content: bytes) -> asn1.TLV:
    return asn1.decode_der(asn1.TLV, content)
