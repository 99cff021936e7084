"""Who made a SEV-SNP report: AMD's root, its signing key, the chip's or cloud's key, the report.

Sources: Firmware ABI Specification (AMD 56860, cited as ABI) and VCEK Certificate and KDS Interface
Specification (AMD 57230, cited as KDS). Whether the guest, its firmware and its policy will do is
for `avow.policy`.

On revocation: AMD's list is issued by the root and names the signing keys (ASK, ASVK) by their
serial numbers. All VCEKs and VLEKs have the serial number zero, so that a list cannot name one of
them without naming all that the same signing key made; by RFC 5280, section 5.3.3, an entry (issuer
ASK, serial zero) means just that, and is followed. One chip, or one patch level, is refused by
naming `snp.chip_id` or the `snp.tcb.*` in the policy. A VLEK ends with its certificate.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from avow.errors import Check, MalformedError, UnavailableError, UntrustedError
from avow.evidence.roles import Authenticated
from avow.evidence.validity import advice_at
from avow.evidence.vocabulary import ClaimValue
from avow.tee.snp.certificates import (
    AMD_ARC,
    Certificate,
    RevocationList,
    is_signed_by,
    parse_certificate,
    parse_crl,
)
from avow.tee.snp.report import (
    CHIP_ID_BYTES,
    Cpu,
    Report,
    SigningKey,
    SnpEvidence,
    Tcb,
    bit_numbers,
    decode_evidence,
    decode_tcb,
    parse_report,
)

FORM: Final = Check("SNP1", "report and certificates are well-formed", "AMD 56860; RFC 5280")
ROOT: Final = Check("SNP2", "the root is AMD's", "KDS, chapter 2; pinned by SHA-256")
CHAIN: Final = Check("SNP3", "the root signed the signing key, and that the signer", "KDS, 3")
VALIDITY: Final = Check("SNP4", "every certificate is valid now", "RFC 5280, 4.1.2.5")
REVOCATION: Final = Check("SNP5", "no certificate is revoked", "RFC 5280, 5; KDS, 4")
SIGNER: Final = Check("SNP6", "the signer is of the kind that the report says", "ABI, report: 48h")
TCB: Final = Check("SNP7", "the signer's certificate is for the reported TCB", "KDS, 3.1")
CHIP: Final = Check("SNP8", "the signer's certificate is for this chip", "KDS, 3.1; ABI, report")
SIGNATURE: Final = Check("SNP9", "the signer signed the report", "ABI, report: 2A0h")
ASKER: Final = Check("SNP10", "the guest asked for the report, not the host", "ABI, report: 30h")
CHECKS: Final = (
    FORM, ROOT, CHAIN, VALIDITY, REVOCATION, SIGNER, TCB, CHIP, SIGNATURE, ASKER,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Product:
    """A generation of processors. `models` are CPUID (family, first model, last model)."""

    name: str
    models: tuple[tuple[int, int, int], ...]
    # As certificates of chips name their product; the first one names the generation.
    titles: tuple[str, ...]
    turin_order: bool = False

    def has(self, cpu: Cpu) -> bool:
        """True when the processor is one of this generation."""
        return any(
            cpu.family == family and first <= cpu.model <= last
            for family, first, last in self.models
        )


MILAN: Final = Product("milan", ((0x19, 0x00, 0x0F),), ("Milan",))
# Bergamo and Siena have models of their own and Genoa's signing keys.
GENOA: Final = Product(
    "genoa", ((0x19, 0x10, 0x1F), (0x19, 0xA0, 0xAF)), ("Genoa", "Bergamo", "Siena")
)
TURIN: Final = Product("turin", ((0x1A, 0x00, 0x1F),), ("Turin",), turin_order=True)

# SHA-256 of the ARKs in DER, as published by AMD's key distribution service.
AMD_ROOTS: Final[Mapping[bytes, Product]] = {
    bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"): MILAN,
    bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"): GENOA,
    bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"): TURIN,
}

_T = TypeVar("_T")

_AGAIN: Final = "ask again; if this persists, the evidence was altered or is not genuine"
_CERTIFICATES: Final = "fetch the certificates for this chip and TCB from AMD again"
_VMPL_MAX: Final = 3
_CHAINS_KEPT: Final = 64

_STRUCT_VERSION, _PRODUCT_NAME = f"{AMD_ARC}.1", f"{AMD_ARC}.2"
_HWID, _CSP_ID = f"{AMD_ARC}.4", f"{AMD_ARC}.5"
_SPL: Final = {
    "bootloader": f"{AMD_ARC}.3.1",
    "tee": f"{AMD_ARC}.3.2",
    "snp": f"{AMD_ARC}.3.3",
    "microcode": f"{AMD_ARC}.3.8",
}
# KDS, chapter 3: from structVersion 1 on (Turin) the FMC's level is there and spl_4 is not.
_SPL_4: Final = f"{AMD_ARC}.3.4"
_SPL_RESERVED: Final = tuple(f"{AMD_ARC}.3.{number}" for number in (5, 6, 7))
_SPL_FMC: Final = f"{AMD_ARC}.3.9"
# Turin's hardware identifiers have 8 bytes; the report fills up with zeros.
TURIN_HWID_BYTES: Final = 8
_HWID_BYTES: Final = {False: (CHIP_ID_BYTES,), True: (TURIN_HWID_BYTES, CHIP_ID_BYTES)}


@dataclass(frozen=True, slots=True)
class Signer:
    """What a VCEK's or VLEK's certificate says: the chip's HWID (64 bytes), or whose cloud."""

    kind: SigningKey
    tcb: Tcb
    chip_id: bytes
    csp_id: str
    key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Chain:
    """Certificates whose signatures are good; times and revocation are not looked at."""

    product: Product
    certificates: tuple[Certificate, Certificate, Certificate]
    signer: Signer


class SnpVerifier:
    """Proves reports of SEV-SNP. Safe to call from several threads.

    `roots` are the SHA-256 of trusted ARKs. `crls` (DER) are looked at in addition to one that the
    evidence carries; each must be current. Raises `MalformedError` for a list that is none.
    """

    def __init__(
        self, roots: Mapping[bytes, Product] = AMD_ROOTS, crls: Sequence[bytes] = ()
    ) -> None:
        self._roots = dict(roots)
        self._crls = tuple((parse_crl(crl).issuer, crl) for crl in crls)
        # Keyed by the exact bytes: RSA signatures are verified once.
        self._chain = lru_cache(maxsize=_CHAINS_KEPT)(self._prove_chain)
        self._crl = lru_cache(maxsize=_CHAINS_KEPT)(_prove_crl)

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Verifier`."""
        return "snp"

    def authenticate(self, report: bytes, now: datetime) -> Authenticated:
        """See `avow.evidence.roles.Verifier`. `report` is the payload of `snp.report`."""
        try:
            evidence = decode_evidence(report)
        except MalformedError as error:
            raise _malformed(error) from error
        return self.prove(evidence, now)

    def prove(self, evidence: SnpEvidence, now: datetime) -> Authenticated:
        """The same for a report with its chain, as another platform may carry it."""
        try:
            report = parse_report(evidence.report)
            chain = self._chain(evidence.chain)
            claims = self._revocation_claims(chain, evidence, now)
            _check_validity(chain, now)
            _check_signer(report, chain)
            _check_signature(report, chain.signer)
            claims |= _claims(report, chain)
        except MalformedError as error:
            raise _malformed(error) from error
        return Authenticated("snp", report.report_data, "report data", claims)

    def _prove_chain(self, encoded: tuple[bytes, bytes, bytes]) -> Chain:
        product = self._roots.get(hashlib.sha256(encoded[2]).digest())
        if product is None:
            raise UntrustedError.at(
                ROOT,
                expected="one of AMD's root certificates",
                actual=f"SHA-256 {hashlib.sha256(encoded[2]).hexdigest()}",
                advice="use a release of avow that knows this generation of processors",
            )
        leaf = parse_certificate(encoded[0], "VCEK or VLEK")
        intermediate = parse_certificate(encoded[1], "ASK or ASVK")
        root = parse_certificate(encoded[2], "ARK")
        kind = _kind(leaf, intermediate, product)
        for certificate, issuer in ((intermediate, root), (leaf, intermediate)):
            if not (
                issuer.is_authority
                and issuer.signs_certificates
                and certificate.issuer == issuer.subject
                and is_signed_by(certificate.signed, certificate.signature, issuer)
            ):
                raise UntrustedError.at(
                    CHAIN,
                    expected=f"{certificate.common_name} signed by {issuer.common_name}",
                    actual="a signature, name or use that does not fit",
                    advice=_CERTIFICATES,
                )
        return Chain(product, (leaf, intermediate, root), _signer(leaf, kind, product))

    def _revocation_claims(
        self, chain: Chain, evidence: SnpEvidence, now: datetime
    ) -> dict[str, ClaimValue]:
        """Follows every list of this root; says how old the oldest is."""
        leaf, intermediate, root = chain.certificates
        encoded = [crl for issuer, crl in self._crls if issuer == root.subject]
        if evidence.crl is not None:
            encoded.append(evidence.crl)
        lists = [self._crl(crl, evidence.chain[2]) for crl in encoded]
        for crl in lists:
            _check_current(crl, now)
            for certificate in (leaf, intermediate):
                if (certificate.issuer, certificate.serial_number) in crl.revoked:
                    raise UntrustedError.at(
                        REVOCATION,
                        expected=f"{certificate.common_name} not on AMD's revocation list",
                        actual=f"its issuer and serial number {certificate.serial_number} there",
                        advice="do not trust this machine; ask its operator",
                    )
        if not lists:
            return {"collateral.crl_checked": False}
        oldest = min(crl.this_update for crl in lists)
        return {
            "collateral.crl_checked": True,
            "collateral.age_s": int((now - oldest).total_seconds()),
        }


def _prove_crl(encoded: bytes, root_encoded: bytes) -> RevocationList:
    crl = parse_crl(encoded)
    root = parse_certificate(root_encoded, "ARK")
    if not (
        crl.issuer == root.subject
        and root.signs_crls
        and is_signed_by(crl.signed, crl.signature, root)
    ):
        raise UntrustedError.at(
            REVOCATION,
            expected=f"a revocation list signed by {root.common_name}",
            actual="another issuer or signature",
            advice="fetch the list from AMD again",
        )
    return crl


def _check_current(crl: RevocationList, now: datetime) -> None:
    if not crl.this_update <= now <= crl.next_update:
        raise UnavailableError.at(
            REVOCATION,
            expected=f"a revocation list for {now:%Y-%m-%d %H:%M}",
            actual=f"one from {crl.this_update:%Y-%m-%d %H:%M} to {crl.next_update:%Y-%m-%d %H:%M}",
            advice=advice_at(
                now,
                crl.this_update,
                "fetch the list from AMD again",
            ),
        )


def _kind(leaf: Certificate, intermediate: Certificate, product: Product) -> SigningKey:
    names = (leaf.common_name, intermediate.common_name)
    if names == ("SEV-VCEK", f"SEV-{product.titles[0]}"):
        return SigningKey.VCEK
    if names == ("SEV-VLEK", f"SEV-VLEK-{product.titles[0]}"):
        return SigningKey.VLEK
    raise UntrustedError.at(
        CHAIN,
        expected=f"a VCEK or VLEK and its signing key of {product.titles[0]}",
        actual=" and ".join(repr(name[:40]) for name in names),
        advice=_CERTIFICATES,
    )


def _signer(leaf: Certificate, kind: SigningKey, product: Product) -> Signer:
    """Reads AMD's extensions (KDS, 3.1)."""
    title = _text(leaf, _PRODUCT_NAME)
    if title.split("-")[0] not in product.titles:
        raise UntrustedError.at(
            CHAIN,
            expected=f"a certificate for {product.titles[0]}",
            actual=f"one for {title[:40]!r}",
            advice=_CERTIFICATES,
        )
    try:
        key = load_der_public_key(leaf.public_key)
    except (ValueError, TypeError) as error:
        raise MalformedError(f"expected a public key, got other bytes ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise MalformedError("expected a key on P-384 in the certificate, got another")
    chip = kind is SigningKey.VCEK
    if (_HWID in leaf.extensions, _CSP_ID in leaf.extensions) != (chip, not chip):
        raise MalformedError("expected a hardware id in a VCEK and a cloud in a VLEK, got others")
    return Signer(
        kind=kind,
        tcb=_certified_tcb(leaf, product),
        chip_id=_hardware_id(leaf, product) if chip else bytes(CHIP_ID_BYTES),
        csp_id="" if chip else _text(leaf, _CSP_ID),
        key=key,
    )


def _certified_tcb(leaf: Certificate, product: Product) -> Tcb:
    """The patch levels that a certificate is for (KDS, chapter 3)."""
    version = _decoded(leaf, _STRUCT_VERSION, int)
    if version != int(product.turin_order):
        raise MalformedError(
            f"expected structVersion {int(product.turin_order)} in a certificate for "
            f"{product.titles[0]}, got {version}; use a release of avow that knows it"
        )
    levels = {name: _level(leaf, oid) for name, oid in _SPL.items()}
    reserved = _SPL_RESERVED
    if product.turin_order:
        levels["fmc"] = _level(leaf, _SPL_FMC)
    if not product.turin_order or _SPL_4 in leaf.extensions:
        reserved = (_SPL_4, *reserved)
    if any(_level(leaf, oid) for oid in reserved):
        raise MalformedError("expected zero as reserved patch levels, got others; report this")
    return Tcb(**levels)


def _text(leaf: Certificate, oid: str) -> str:
    return _decoded(leaf, oid, asn1.IA5String).as_str()


def _level(leaf: Certificate, oid: str) -> int:
    level = _decoded(leaf, oid, int)
    if not 0 <= level <= 255:
        raise MalformedError(f"expected a patch level up to 255, got {level}; report this")
    return level


def _hardware_id(leaf: Certificate, product: Product) -> bytes:
    content = leaf.extensions[_HWID]
    sizes = _HWID_BYTES[product.turin_order]
    if len(content) not in sizes:
        # AMD writes the bytes as they are; some of its certificates have them as OCTET STRING.
        content = _decoded(leaf, _HWID, bytes)
    if len(content) not in sizes:
        raise MalformedError(f"expected a hardware id of {sizes[0]} bytes, got {len(content)}")
    return content.ljust(CHIP_ID_BYTES, b"\0")


def _decoded(leaf: Certificate, oid: str, kind: type[_T]) -> _T:
    try:
        return asn1.decode_der(kind, leaf.extensions[oid])
    except (KeyError, ValueError) as error:
        raise MalformedError(
            f"expected the extension {oid} in {leaf.common_name}, got none or other bytes; "
            f"fetch the certificate from AMD again"
        ) from error


def _check_validity(chain: Chain, now: datetime) -> None:
    for certificate in chain.certificates:
        if not certificate.not_before <= now <= certificate.not_after:
            raise UntrustedError.at(
                VALIDITY,
                expected=f"{certificate.common_name} valid at {now:%Y-%m-%d %H:%M}",
                actual=f"valid from {certificate.not_before:%Y-%m-%d %H:%M} to "
                f"{certificate.not_after:%Y-%m-%d %H:%M}",
                advice=advice_at(
                    now,
                    certificate.not_before,
                    "have the other side fetch its certificate again",
                ),
            )


def _check_signer(report: Report, chain: Chain) -> None:
    signer, product = chain.signer, chain.product
    if report.vmpl > _VMPL_MAX:
        raise UntrustedError.at(
            ASKER,
            expected=f"a report that VMPL 0 to {_VMPL_MAX} of the guest asked for",
            actual=f"VMPL {report.vmpl:#x}",
            advice="ask the guest for its report, not the host",
        )
    if report.signing_key is not signer.kind:
        raise UntrustedError.at(
            SIGNER,
            expected=f"a report signed by the {report.signing_key.name}",
            actual=f"the certificate of a {signer.kind.name}",
            advice=_CERTIFICATES,
        )
    masked = report.chip_key_masked and signer.kind is SigningKey.VCEK
    if masked or any(report.author_key_digest) != report.author_key_enabled:
        raise UntrustedError.at(
            SIGNER,
            expected="MASK_CHIP_KEY and AUTHOR_KEY_EN that agree with the report",
            actual="a masked chip key" if masked else "a digest of an author key that does not",
            advice="ask the operator to let the chip sign" if masked else _AGAIN,
        )
    tcb = decode_tcb(report.reported_tcb, turin=product.turin_order)
    if tcb != signer.tcb:
        raise UntrustedError.at(
            TCB, expected=str(tcb), actual=str(signer.tcb), advice=_CERTIFICATES
        )
    # The host may mask the chip's identity (MASK_CHIP_ID); a VLEK is of no chip.
    if (
        signer.kind is SigningKey.VCEK
        and any(report.chip_id)
        and not hmac.compare_digest(report.chip_id, signer.chip_id)
    ) or (report.cpu is not None and not product.has(report.cpu)):
        raise UntrustedError.at(
            CHIP,
            expected=f"the {product.titles[0]} chip {signer.chip_id.hex()}",
            actual=f"chip {report.chip_id.hex()}, {report.cpu or 'of unknown model'}",
            advice=_CERTIFICATES,
        )


def _check_signature(report: Report, signer: Signer) -> None:
    try:
        signer.key.verify(
            encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384())
        )
    except InvalidSignature as error:
        raise UntrustedError.at(
            SIGNATURE,
            expected=f"a good signature of the {signer.kind.name}",
            actual="one that does not verify",
            advice=_AGAIN,
        ) from error


def _claims(report: Report, chain: Chain) -> dict[str, ClaimValue]:
    signer = chain.signer
    claims: dict[str, ClaimValue] = {
        "debug": report.debug,
        "snp.measurement": report.measurement,
        "snp.host_data": report.host_data,
        "snp.id_key_digest": report.id_key_digest,
        "snp.author_key_digest": report.author_key_digest,
        "snp.family_id": report.family_id,
        "snp.image_id": report.image_id,
        "snp.vmpl": report.vmpl,
        "snp.guest_svn": report.guest_svn,
        "snp.policy": report.policy,
        "snp.migration_agent": report.migration_agent,
        "snp.smt": report.smt,
        # What AMD certified, also where the report masks it; the same where it does not.
        "snp.chip_id": signer.chip_id if signer.kind is SigningKey.VCEK else report.chip_id,
        "snp.csp_id": signer.csp_id,
        "snp.signer": signer.kind.name.lower(),
        "snp.product": chain.product.name,
        "snp.platform_info": report.platform_info,
    }
    tcbs = {"tcb": report.reported_tcb, "launch_tcb": report.launch_tcb,
            "committed_tcb": report.committed_tcb, "current_tcb": report.current_tcb}  # fmt: skip
    for name, content in tcbs.items():
        tcb = decode_tcb(content, turin=chain.product.turin_order)
        claims |= {f"snp.{name}.{level}": number for level, number in asdict(tcb).items()}
    claims |= {f"snp.platform.{name}": flag for name, flag in report.platform_flags.items()}
    vectors = {"launch": report.launch_mitigations, "current": report.current_mitigations}
    for name, vector in vectors.items():
        if vector is not None:
            claims[f"snp.mitigations.{name}"] = bit_numbers(vector)
    return claims


def _malformed(error: MalformedError) -> MalformedError:
    return MalformedError.at(
        FORM, expected="well-formed evidence", actual=f"other bytes ({error})", advice=_AGAIN
    )
