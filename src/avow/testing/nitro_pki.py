"""AWS as far as Nitro Enclaves need it: a root, its chain, documents, and the kernel's /dev/nsm.

Chains have AWS's shape: root, region, zone, instance, and a signing certificate for three hours.
Nothing outside of tests trusts these roots. `qemu_document` is what QEMU's nitro-enclave machine
answers: a document that nobody has signed.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from avow.tee.nitro.verifier import NitroVerifier
from avow.testing.cose_signer import ES384, sign1

NOW: Final = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)
HOURS: Final = timedelta(hours=1)
PCRS: Final = {
    index: hashlib.sha384(f"PCR {index}".encode()).digest() if index < 5 else bytes(48)
    for index in range(16)
}
DEBUG_PCRS: Final = PCRS | {index: bytes(48) for index in (0, 1, 2)}
MODULE_ID: Final = "i-0123456789abcdef0-enc0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Use:
    """What a certificate may be used for."""

    authority: bool
    path_length: int | None = None
    cert_sign: bool = True
    critical: str | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    name: str,
    issuer: Issued | None,
    use: Use,
    *,
    curve: ec.EllipticCurve | None = None,
    hash_: hashes.SHA256 | hashes.SHA384 | None = None,
    valid: tuple[datetime, datetime] = (NOW - HOURS, NOW + 3 * HOURS),
    issuer_name: str | None = None,
    public_key: rsa.RSAPublicKey | None = None,
) -> Issued:
    """A certificate; without an issuer it signs itself. `public_key` replaces that of its key."""
    key = ec.generate_private_key(curve or ec.SECP384R1())
    subject = _name(name)
    above = subject if issuer is None else issuer.certificate.subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above if issuer_name is None else _name(issuer_name))
        .public_key(public_key or key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(use.authority, use.path_length), critical=True)
        .add_extension(_key_usage(use.cert_sign), critical=True)
    )
    if use.critical is not None:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(use.critical), b"\5\0")
        builder = builder.add_extension(unknown, critical=True)
    signer = key if issuer is None else issuer.key
    return Issued(builder.sign(signer, hash_ or hashes.SHA384()), key)


class NitroPki:
    """A root with one chain to one enclave."""

    def __init__(self) -> None:
        self.root = issue("aws.nitro-enclaves", None, Use(True))
        self.region = issue("region.aws.nitro-enclaves", self.root, Use(True, 2))
        self.zone = issue("zone.aws.nitro-enclaves", self.region, Use(True, 1))
        self.instance = issue("i-0.aws.nitro-enclaves", self.zone, Use(True, 0))
        self.enclave = issue("i-0-enc0.aws", self.instance, Use(False, cert_sign=False))

    @property
    def chain(self) -> list[Issued]:
        """From the root to the certificate that signs documents."""
        return [self.root, self.region, self.zone, self.instance, self.enclave]

    def verifier(self) -> NitroVerifier:
        """A verifier that trusts this root and no other."""
        return NitroVerifier({hashlib.sha256(self.root.der).digest()})

    def document(
        self,
        user_data: bytes | None,
        *,
        chain: list[Issued] | None = None,
        pcrs: Mapping[int, bytes] = PCRS,
        **fields: Any,
    ) -> bytes:
        """A signed document; `fields` replace or add to the payload's."""
        chain = self.chain if chain is None else chain
        payload = payload_of(user_data, [each.der for each in chain], pcrs) | fields
        return self.sign(payload, chain[-1].key)

    def sign(self, payload: Mapping[Any, Any], key: ec.EllipticCurvePrivateKey) -> bytes:
        """A COSE_Sign1 over any payload, without tag as AWS writes it."""
        return sign1(cbor2.dumps(payload), key, ES384, tagged=False)


def payload_of(
    user_data: bytes | None, chain: list[bytes], pcrs: Mapping[int, bytes]
) -> dict[Any, Any]:
    """The fields of a document in the order in which the hypervisor writes them."""
    return {
        "module_id": MODULE_ID,
        "digest": "SHA384",
        "timestamp": int(NOW.timestamp() * 1000),
        "pcrs": dict(pcrs),
        "certificate": chain[-1],
        "cabundle": chain[:-1],
        "public_key": None,
        "user_data": user_data,
        "nonce": None,
    }


def qemu_document(
    user_data: bytes | None, chain: list[bytes] | None = None, signature: bytes = bytes(64)
) -> bytes:
    """What QEMU's hw/virtio/virtio-nsm.c answers: zeros as certificates and as signature."""
    payload = payload_of(user_data, chain or [bytes(64), bytes(64)], PCRS)
    protected = cbor2.dumps({1: -35})
    return cbor2.dumps([protected, {}, cbor2.dumps(payload), signature])


class NsmDevice:
    """The kernel's side of /dev/nsm: give `ioctl` to the attester, with any path that opens."""

    def __init__(self, answer: Callable[[dict[Any, Any]], Any]) -> None:
        self._answer = answer
        self.requests: list[bytes] = []

    def ioctl(self, descriptor: int, request: int, argument: bytearray) -> int:
        """NSM_IOCTL_RAW as drivers/misc/nsm.c has it."""
        if request != 0xC0200A00:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        address, length, into, room = struct.unpack("<QQQQ", argument)
        if length > 0x1000:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        content = ctypes.string_at(address, length)
        self.requests.append(content)
        answer = cbor2.dumps(self._answer(cbor2.loads(content)))[:room]
        ctypes.memmove(into, answer, len(answer))
        struct.pack_into("<Q", argument, 24, len(answer))
        return 0


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Amazon"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "AWS"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=cert_sign,
        encipher_only=False,
        decipher_only=False,
    )
