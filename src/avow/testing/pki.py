"""A certificate authority for tests and the demo: certificates, client identities, CRLs.

Keys are P-256, made anew each time, and everything is valid for a day around the present unless
told otherwise. The extensions are complete enough for verifiers that read RFC 5280 strictly.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate, its issuers without the root, and its key."""

    chain: Sequence[x509.Certificate]
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The end entity's certificate."""
        return self.chain[0]

    def certificate_pem(self) -> bytes:
        """The chain, the end entity first."""
        return b"".join(entry.public_bytes(Encoding.PEM) for entry in self.chain)

    def key_pem(self) -> bytes:
        """PKCS #8 without a passphrase."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes `name`.pem and `name`.key (mode 0600) and returns the two paths."""
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(self.certificate_pem())
        key.touch(mode=0o600)
        os.chmod(key, 0o600)
        key.write_bytes(self.key_pem())
        return certificate, key


class Authority:
    """A root, or an intermediate when it has a parent."""

    def __init__(
        self,
        name: str = "avow test authority",
        *,
        parent: Authority | None = None,
        now: datetime | None = None,
    ) -> None:
        self._now = now if now is not None else datetime.now(UTC)
        self._parent = parent
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        issuer = self if parent is None else parent
        builder = (
            issuer._signed_by_us(
                self._name, self._key.public_key(), self._now - DAY, self._now + DAY
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
        )
        self.certificate = builder.sign(issuer._key, hashes.SHA256())

    def pem(self) -> bytes:
        """This authority's certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def write(self, path: Path) -> Path:
        """Writes the certificate and returns the path."""
        path.write_bytes(self.pem())
        return path

    def issue(
        self,
        common_name: str | None,
        *,
        names: Sequence[x509.GeneralName] = (),
        server: bool = False,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> Credential:
        """A certificate for a server or a client, with these alternative names."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = (
            [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        )
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            self._signed_by_us(
                x509.Name(attributes),
                key.public_key(),
                valid_from if valid_from is not None else self._now - DAY,
                valid_until if valid_until is not None else self._now + DAY,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        chain = [builder.sign(self._key, hashes.SHA256())]
        authority: Authority | None = self
        while authority is not None and authority._parent is not None:
            chain.append(authority.certificate)
            authority = authority._parent
        return Credential(chain, key)

    def issue_server(
        self, *, valid_from: datetime | None = None, valid_until: datetime | None = None
    ) -> Credential:
        """A certificate for a server on this machine: localhost, 127.0.0.1 and ::1."""
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
            x509.IPAddress(ipaddress.IPv6Address("::1")),
        ]
        return self.issue(
            "localhost", names=names, server=True, valid_from=valid_from, valid_until=valid_until
        )

    def revocation_list(
        self, revoked: Iterable[x509.Certificate] = (), *, valid_until: datetime | None = None
    ) -> bytes:
        """A CRL in PEM that names these certificates."""
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(self._now - 2 * DAY)
            .next_update(valid_until if valid_until is not None else self._now + DAY)
            .add_extension(authority_key, critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for certificate in revoked:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(self._now - DAY)
                .build()
            )
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _signed_by_us(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        valid_from: datetime,
        valid_until: datetime,
    ) -> x509.CertificateBuilder:
        """A certificate that names this authority as its issuer, not signed yet."""
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(valid_from)
            .not_valid_after(valid_until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(authority_key, critical=False)
        )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
