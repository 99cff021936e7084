"""A mock of Intel's provisioning PKI: quotes of SGX and TDX with all that vouches for them.

Root, PCK platform CA, PCK certificate with Intel's SGX extensions, TCB signing certificate, CRLs,
TCB info and QE identity, as in Intel's PCK certificate and CRL profile and its PCS API version 4.
The root is made anew each time: only a verifier that is given it accepts what is made here.

Not mocked: PCK certificates by the processor CA, certification data other than a PEM chain (types
1 to 3), quotes version 5 around an SGX report or a TD report 1.5 of the extended kind (body 4).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

_YEAR: Final = timedelta(days=365)
_SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"
_INTEL_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_MRSIGNER: Final = {"sgx": bytes([0x51]) * 32, "tdx": bytes([0x7D]) * 32}
_QE_ATTRIBUTES: Final = bytes.fromhex("1100000000000000e700000000000000")
_QE_AUTH_DATA: Final = bytes(range(32))
_QE_PRODUCT: Final = {"sgx": 1, "tdx": 2}
_QE_SVN: Final = 8
_PCE_SVN: Final = 11
_PARTS: Final = ("tcb_info", "qe_identity", "pck_crl", "root_ca_crl")
_FMSPC: Final = bytes.fromhex("00aabbccddee")


@dataclass(frozen=True, slots=True)
class SgxBody:
    """What an enclave report says; sizes as in the format."""

    report_data: bytes
    attributes: bytes = bytes.fromhex("0500000000000000e700000000000000")
    mrenclave: bytes = b"\xe1" * 32
    mrsigner: bytes = b"\x51" * 32
    config_id: bytes = bytes(64)
    isv_prod_id: int = 7
    isv_svn: int = 3
    cpu_svn: bytes = bytes([3] * 16)
    miscselect: int = 0

    def debug(self) -> SgxBody:
        """The same with ATTRIBUTES.DEBUG set."""
        return replace(self, attributes=bytes([self.attributes[0] | 2]) + self.attributes[1:])

    def encoded(self) -> bytes:
        """384 bytes."""
        return b"".join(
            (
                self.cpu_svn,
                struct.pack("<I", self.miscselect),
                bytes(28),
                self.attributes,
                self.mrenclave,
                bytes(32),
                self.mrsigner,
                bytes(32),
                self.config_id,
                struct.pack("<HH", self.isv_prod_id, self.isv_svn),
                bytes(60),
                self.report_data,
            )
        )


@dataclass(frozen=True, slots=True)
class TdxBody:
    """What a TD report says. `version` 15 adds the two fields of TDX 1.5."""

    report_data: bytes
    tee_tcb_svn: bytes = bytes([5, 0, 2, *[0] * 13])
    mrseam: bytes = b"\x5e" * 48
    mrsignerseam: bytes = bytes(48)
    seam_attributes: bytes = bytes(8)
    # SEPT_VE_DISABLE
    attributes: bytes = bytes.fromhex("0000001000000000")
    xfam: bytes = bytes.fromhex("e702060000000000")
    mrtd: bytes = b"\x7d" * 48
    mrconfigid: bytes = bytes(48)
    mrowner: bytes = bytes(48)
    mrownerconfig: bytes = bytes(48)
    rtmrs: tuple[bytes, bytes, bytes, bytes] = (bytes(48),) * 4
    version: int = 10
    tee_tcb_svn_2: bytes = bytes(16)
    mrservicetd: bytes = bytes(48)

    def debug(self) -> TdxBody:
        """The same with TDATTRIBUTES.DEBUG set."""
        return replace(self, attributes=bytes([self.attributes[0] | 1]) + self.attributes[1:])

    def encoded(self) -> bytes:
        """584 or 648 bytes."""
        fields = (
            self.tee_tcb_svn,
            self.mrseam,
            self.mrsignerseam,
            self.seam_attributes,
            self.attributes,
            self.xfam,
            self.mrtd,
            self.mrconfigid,
            self.mrowner,
            self.mrownerconfig,
            *self.rtmrs,
            self.report_data,
        )
        more = (self.tee_tcb_svn_2, self.mrservicetd) if self.version == 15 else ()
        return b"".join((*fields, *more))


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """One level of the TCB info: reached by the mock platform when `svn` is at most 3. `tdx_svns`
    are the first TDX components; the others are zero."""

    status: str = "UpToDate"
    svn: int = 2
    date: str = "2025-01-01T00:00:00Z"
    advisories: tuple[str, ...] = ()
    tdx_svns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModuleLevel:
    """One level of a TDX module's identity: reached with `isv_svn` in TEETCBSVN[0]."""

    status: str = "UpToDate"
    isv_svn: int = 2
    date: str = "2025-01-01T00:00:00Z"
    advisories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CollateralSettings:
    """What Intel says about the mock platform, and when."""

    levels: tuple[TcbLevel, ...] = (TcbLevel(),)
    # Identities of TDX modules by their version (TEETCBSVN[1]).
    modules: Mapping[int, tuple[ModuleLevel, ...]] = field(default_factory=dict)
    qe_status: str = "UpToDate"
    qe_advisories: tuple[str, ...] = ()
    evaluation_number: int = 18
    # Of the QE identity, where it is from another evaluation.
    qe_evaluation_number: int | None = None
    # Parts that are issued apart from the others: tcb_info, qe_identity, pck_crl, root_ca_crl.
    issued_apart: Mapping[str, datetime] = field(default_factory=dict)
    valid_for: timedelta = timedelta(days=30)
    pck_revoked: bool = False
    pck_ca_revoked: bool = False
    tcb_signing_revoked: bool = False
    fmspc: bytes = _FMSPC


@dataclass
class _Signer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


class IntelPki:
    """All keys and certificates, valid for a year around `now`."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        root_key = _key()
        root = self._certificate("Mock SGX Root CA", root_key, None, path_length=1)
        self._root = _Signer(root, root_key)
        self._pck_ca = self._issued("Mock SGX PCK Platform CA", self._root, path_length=0)
        self._pck = self._issued("Mock SGX PCK Certificate", self._pck_ca, sgx=True)
        self._tcb_signing = self._issued("Mock SGX TCB Signing", self._root)
        self._attestation_key = _key()

    @property
    def root_der(self) -> bytes:
        """The root's certificate, for a verifier that shall trust it."""
        return self._root.certificate.public_bytes(Encoding.DER)

    def sgx_quote(self, body: SgxBody) -> bytes:
        """A quote version 3."""
        signed = _header(3, 0) + body.encoded()
        chain = self._chain()
        return signed + _sized(
            self._signature(signed)
            + self._attestation_point()
            + self._qe_report("sgx")
            + struct.pack("<HI", 5, len(chain))
            + chain
        )

    def tdx_quote(self, body: TdxBody, *, version: int = 4) -> bytes:
        """A quote version 4 or 5 (5 for a body of TDX 1.5)."""
        content = body.encoded()
        kind = struct.pack("<HI", 3 if body.version == 15 else 2, len(content))
        signed = _header(version, 0x81) + (kind if version == 5 else b"") + content
        chain = self._chain()
        certification = self._qe_report("tdx") + struct.pack("<HI", 5, len(chain)) + chain
        return signed + _sized(
            self._signature(signed)
            + self._attestation_point()
            + struct.pack("<HI", 6, len(certification))
            + certification
        )

    def collateral(
        self,
        tee: str,
        settings: CollateralSettings | None = None,
        *,
        issued: datetime | None = None,
    ) -> str:
        """The collateral of "sgx" or "tdx" as the JSON of dcap-qvl, issued at `now` or `issued`."""
        settings = CollateralSettings() if settings is None else settings
        issued = self.now if issued is None else issued
        moments = {part: settings.issued_apart.get(part, issued) for part in _PARTS}
        spans = {part: (start, start + settings.valid_for) for part, start in moments.items()}
        tcb_info = json.dumps(_tcb_info(tee, settings, *spans["tcb_info"]))
        qe_identity = json.dumps(_qe_identity(tee, settings, *spans["qe_identity"]))
        root_revoked = [self._pck_ca] * settings.pck_ca_revoked
        root_revoked += [self._tcb_signing] * settings.tcb_signing_revoked
        signing_chain = self._tcb_signing.pem + self._root.pem
        return json.dumps(
            {
                "pck_crl_issuer_chain": self._pck_ca.pem + self._root.pem,
                "root_ca_crl": _crl(self._root, root_revoked, *spans["root_ca_crl"]).hex(),
                "pck_crl": _crl(
                    self._pck_ca, [self._pck] * settings.pck_revoked, *spans["pck_crl"]
                ).hex(),
                "tcb_info_issuer_chain": signing_chain,
                "tcb_info": tcb_info,
                "tcb_info_signature": _raw_signature(
                    self._tcb_signing.key, tcb_info.encode()
                ).hex(),
                "qe_identity_issuer_chain": signing_chain,
                "qe_identity": qe_identity,
                "qe_identity_signature": _raw_signature(
                    self._tcb_signing.key, qe_identity.encode()
                ).hex(),
            }
        )

    def _chain(self) -> bytes:
        return (self._pck.pem + self._pck_ca.pem + self._root.pem).encode()

    def _signature(self, signed: bytes) -> bytes:
        return _raw_signature(self._attestation_key, signed)

    def _attestation_point(self) -> bytes:
        public = self._attestation_key.public_key()
        return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]

    def _qe_report(self, tee: str) -> bytes:
        """The quoting enclave's report, its signature by the PCK, and the authentication data."""
        vouched = hashlib.sha256(self._attestation_point() + _QE_AUTH_DATA).digest()
        report = SgxBody(
            vouched + bytes(32),
            attributes=_QE_ATTRIBUTES,
            mrsigner=_QE_MRSIGNER[tee],
            isv_prod_id=_QE_PRODUCT[tee],
            isv_svn=_QE_SVN,
        ).encoded()
        authentication = struct.pack("<H", len(_QE_AUTH_DATA)) + _QE_AUTH_DATA
        return report + _raw_signature(self._pck.key, report) + authentication

    def _issued(
        self, name: str, issuer: _Signer, *, path_length: int | None = None, sgx: bool = False
    ) -> _Signer:
        key = _key()
        certificate = self._certificate(name, key, issuer, path_length=path_length, sgx=sgx)
        return _Signer(certificate, key)

    def _certificate(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: _Signer | None,
        *,
        path_length: int | None = None,
        sgx: bool = False,
    ) -> x509.Certificate:
        authority = path_length is not None
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer_key = key if issuer is None else issuer.key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - _YEAR)
            .not_valid_after(self.now + _YEAR)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(_key_usage(authority), critical=True)
            .add_extension(x509.BasicConstraints(authority, path_length), critical=True)
        )
        if sgx:
            oid = x509.ObjectIdentifier(_SGX_EXTENSION)
            extension = x509.UnrecognizedExtension(oid, _sgx_extension())
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _crl(issuer: _Signer, revoked: Sequence[_Signer], issued: datetime, until: datetime) -> bytes:
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(issued)
        .next_update(until)
        .add_extension(authority_key, critical=False)
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    for signer in revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(signer.certificate.serial_number)
            .revocation_date(issued)
            .build()
        )
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def _raw_signature(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(content, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _header(version: int, tee_type: int) -> bytes:
    return struct.pack("<HHIHH", version, 2, tee_type, 0, 0) + _INTEL_VENDOR_ID + bytes(20)


def _sized(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _tcb_info(
    tee: str, settings: CollateralSettings, issued: datetime, until: datetime
) -> dict[str, Any]:
    info: dict[str, Any] = {
        "id": tee.upper(),
        "version": 3,
        "issueDate": _iso(issued),
        "nextUpdate": _iso(until),
        "fmspc": settings.fmspc.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": settings.evaluation_number,
        "tcbLevels": [_tcb_level(tee, level) for level in settings.levels],
    }
    if tee == "tdx":
        info["tdxModule"] = {
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "FF" * 8,
        }
        if settings.modules:
            info["tdxModuleIdentities"] = [
                {
                    "id": f"TDX_{version:02X}",
                    "mrsigner": "00" * 48,
                    "attributes": "00" * 8,
                    "attributesMask": "FF" * 8,
                    "tcbLevels": [_module_level(level) for level in levels],
                }
                for version, levels in settings.modules.items()
            ]
    return info


def _module_level(level: ModuleLevel) -> dict[str, Any]:
    return {
        "tcb": {"isvsvn": level.isv_svn},
        "tcbDate": level.date,
        "tcbStatus": level.status,
        "advisoryIDs": list(level.advisories),
    }


def _tcb_level(tee: str, level: TcbLevel) -> dict[str, Any]:
    tcb: dict[str, Any] = {
        "sgxtcbcomponents": [{"svn": level.svn}] * 16,
        "pcesvn": _PCE_SVN,
    }
    if tee == "tdx":
        svns = (*level.tdx_svns, *[0] * (16 - len(level.tdx_svns)))
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in svns]
    return {
        "tcb": tcb,
        "tcbDate": level.date,
        "tcbStatus": level.status,
        "advisoryIDs": list(level.advisories),
    }


def _qe_identity(
    tee: str, settings: CollateralSettings, issued: datetime, until: datetime
) -> dict[str, Any]:
    return {
        "id": "QE" if tee == "sgx" else "TD_QE",
        "version": 2,
        "issueDate": _iso(issued),
        "nextUpdate": _iso(until),
        "tcbEvaluationDataNumber": (
            settings.evaluation_number
            if settings.qe_evaluation_number is None
            else settings.qe_evaluation_number
        ),
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": _QE_MRSIGNER[tee].hex().upper(),
        "isvprodid": _QE_PRODUCT[tee],
        "tcbLevels": [
            {
                "tcb": {"isvsvn": _QE_SVN},
                "tcbDate": "2025-01-01T00:00:00Z",
                "tcbStatus": settings.qe_status,
                "advisoryIDs": list(settings.qe_advisories),
            }
        ],
    }


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _sgx_extension() -> bytes:
    """Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5."""
    svns = [_named(f"2.{number}", _integer(3)) for number in range(1, 17)]
    svns.append(_named("2.17", _integer(_PCE_SVN)))
    svns.append(_named("2.18", _tlv(4, bytes([3] * 16))))
    flags = [_named(f"7.{number}", _tlv(1, b"\xff")) for number in (1, 2, 3)]
    return _tlv(
        0x30,
        b"".join(
            (
                _named("1", _tlv(4, bytes(range(16)))),
                _named("2", _tlv(0x30, b"".join(svns))),
                _named("3", _tlv(4, bytes(2))),
                _named("4", _tlv(4, _FMSPC)),
                _named("5", _tlv(10, b"\x01")),
                _named("6", _tlv(4, bytes(range(16)))),
                _named("7", _tlv(0x30, b"".join(flags))),
            )
        ),
    )


def _named(suffix: str, value: bytes) -> bytes:
    # The arcs of 1.2.840.113741.1.13.1 in DER; what follows is below 128 everywhere.
    prefix = bytes.fromhex("2a864886f84d010d01")
    return _tlv(0x30, _tlv(6, prefix + bytes(map(int, suffix.split(".")))) + value)


def _integer(value: int) -> bytes:
    return _tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content
