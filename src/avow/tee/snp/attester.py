"""Asks a SEV-SNP guest's firmware for reports, and finds the certificates that go with them.

Through configfs-tsm where the kernel has it (Linux 6.7 and newer), else through /dev/sev-guest
(include/uapi/linux/sev-guest.h, request SNP_GET_EXT_REPORT). Either way the host may hand over a
table of certificates: SEV-ES Guest-Hypervisor Communication Block Standardization (AMD 56421),
section 4.1.8.1. What the host leaves out comes from files that the user fetched from AMD.

There is no register that a guest could extend on SEV-SNP: `measure` does nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.configfs_tsm import TsmReports
from avow.tee.snp.certificates import Certificate, parse_certificate
from avow.tee.snp.report import (
    REPORT_BYTES,
    Report,
    SigningKey,
    SnpEvidence,
    decode_tcb,
    parse_report,
)
from avow.tee.snp.verifier import GENOA, MILAN, TURIN, TURIN_HWID_BYTES

DEVICE: Final = Path("/dev/sev-guest")
TSM_PROVIDER: Final = "sev_guest"

# AMD 56421, section 4.1.8.1; AMD's own tools for the last one.
_VCEK: Final = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
_VLEK: Final = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
_ASK: Final = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
_ARK: Final = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
_CRL: Final = uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")
_ENTRY: Final = struct.Struct("<16s I I")

# _IOWR('S', 0x2, struct snp_guest_request_ioctl), which has 32 bytes.
_SNP_GET_EXT_REPORT: Final = 0xC0205302
# msg_version and padding, req_data, resp_data, exitinfo2.
_GUEST_REQUEST: Final = struct.Struct("<B 7x Q Q Q")
# user_data, vmpl, reserved; certs_address, certs_len, padding.
_EXT_REPORT_REQ: Final = struct.Struct("<64s I 28x Q I 4x")
_REPORT_RESP_BYTES: Final = 4000
# MSG_REPORT_RSP (AMD 56860): status, size of the report, reserved.
_REPORT_RSP: Final = struct.Struct("<I I 24x")
# SEV_FW_BLOB_MAX_SIZE: the largest table that the driver takes. Asking for all at once spares the
# guest a second request, each of which takes a message number.
_CERTS_BYTES: Final = 0x4000
_MESSAGE_VERSION: Final = 1
_CHAIN_MAX: Final = 3
_KDS: Final = "https://kdsintf.amd.com"

# As `fcntl.ioctl`: file descriptor, request, argument that is changed in place.
Ioctl = Callable[[int, int, bytearray], int]


class ReportSource(Protocol):
    """Where reports come from."""

    def report(self, report_data: bytes, vmpl: int | None) -> tuple[bytes, bytes]:
        """The report and the host's table of certificates, which may be empty.

        Raises `UnavailableError`.
        """


class TsmSource:
    """Through configfs-tsm."""

    def __init__(self, reports: TsmReports) -> None:
        self._reports = reports

    def report(self, report_data: bytes, vmpl: int | None) -> tuple[bytes, bytes]:
        """See `ReportSource`."""
        report = self._reports.report(TSM_PROVIDER, report_data, privlevel=vmpl)
        return report.outblob, report.auxblob


class DeviceSource:
    """Through /dev/sev-guest."""

    def __init__(self, path: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._path = path
        self._ioctl = ioctl

    def report(self, report_data: bytes, vmpl: int | None) -> tuple[bytes, bytes]:
        """See `ReportSource`."""
        certs = ctypes.create_string_buffer(_CERTS_BYTES)
        response = ctypes.create_string_buffer(_REPORT_RESP_BYTES)
        request = ctypes.create_string_buffer(
            _EXT_REPORT_REQ.pack(report_data, vmpl or 0, ctypes.addressof(certs), _CERTS_BYTES),
            _EXT_REPORT_REQ.size,
        )
        argument = bytearray(
            _GUEST_REQUEST.pack(
                _MESSAGE_VERSION, ctypes.addressof(request), ctypes.addressof(response), 0
            )
        )
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, _SNP_GET_EXT_REPORT, argument)
            finally:
                os.close(descriptor)
        except OSError as error:
            status = _GUEST_REQUEST.unpack(argument)[3]
            raise UnavailableError(
                f"expected a report from {self._path}, got {error.strerror or error} "
                f"(exitinfo2 {status:#x}); run as root in a SEV-SNP guest, with a VMPL that is "
                f"not above the guest's own"
            ) from error
        status, size = _REPORT_RSP.unpack_from(response)
        if status != 0 or size != REPORT_BYTES:
            raise UnavailableError(
                f"expected a report of {REPORT_BYTES} bytes from {self._path}, got {size} and the "
                f"firmware's status {status:#x}; see the kernel's log"
            )
        return response.raw[_REPORT_RSP.size : _REPORT_RSP.size + REPORT_BYTES], certs.raw


class SnpAttester:
    """The attesting side of SEV-SNP.

    `vmpl` (0 to 3) is the privilege level that the report shall name. None leaves it to the driver,
    which takes its own; /dev/sev-guest is then asked for 0, and refuses in a guest that is not at
    VMPL 0. `certificates` (DER, any order) fill up what the host leaves out, `crl`
    (DER) is sent along.
    """

    def __init__(
        self,
        source: ReportSource,
        *,
        vmpl: int | None = None,
        certificates: Sequence[bytes] = (),
        crl: bytes | None = None,
    ) -> None:
        self._source = source
        self._vmpl = vmpl
        self._certificates = tuple(certificates)
        self._crl = crl

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Attester`."""
        return "snp"

    def measure(self, workload: Workload) -> None:
        """See `avow.evidence.roles.Attester`. The platform has no register for it."""

    def quote(self, report_data: ReportData) -> bytes:
        """See `avow.evidence.roles.Attester`."""
        content, table = self._source.report(report_data.content, self._vmpl)
        try:
            report = parse_report(content)
            entries = parse_certificate_table(table)
        except MalformedError as error:
            raise UnavailableError(f"{error}; the guest's firmware or host gave this") from error
        if report.report_data != report_data.content:
            raise UnavailableError(
                "expected a report over the data that was asked for, got one over other data; "
                "another program asked at the same time: try again"
            )
        given = [entries[kind] for kind in (_VCEK, _VLEK, _ASK, _ARK) if kind in entries]
        chain = find_chain(report, (*given, *self._certificates))
        return SnpEvidence(content, chain, self._crl or entries.get(_CRL)).encoded()


def parse_certificate_table(content: bytes) -> dict[uuid.UUID, bytes]:
    """The host's table: what each GUID names. Raises `MalformedError`.

    Entries of GUID, offset and length, ended by one of zeros; AMD 56421, section 4.1.8.1. The host
    fills up with zeros, and an absent table is zeros or nothing.
    """
    entries: dict[uuid.UUID, bytes] = {}
    if not content:
        return entries
    for start in range(0, len(content) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(content, start)
        name = uuid.UUID(bytes=guid)
        if name.int == offset == length == 0:
            if any(place < start + _ENTRY.size for place in _offsets(content, start)):
                break
            return entries
        if offset + length > len(content) or name in entries:
            break
        entries[name] = content[offset : offset + length]
    raise MalformedError(
        f"expected a table of certificates from the host, got {len(content)} other bytes; ask the "
        f"host's operator, or give the certificates as files"
    )


def _offsets(content: bytes, end: int) -> list[int]:
    return [_ENTRY.unpack_from(content, start)[1] for start in range(0, end, _ENTRY.size)]


def find_chain(report: Report, candidates: Sequence[bytes]) -> tuple[bytes, bytes, bytes]:
    """The signer's certificate of `report`, its issuer, and AMD's root, out of `candidates`.

    Raises `UnavailableError` naming what is missing and where AMD has it.
    """
    pool: list[tuple[bytes, Certificate]] = []
    for content in candidates:
        try:
            pool.append((content, parse_certificate(content, "certificate")))
        except MalformedError:
            # The host's word is not needed: what is missing is named below.
            continue
    chain = [
        entry
        for entry in pool
        if entry[1].common_name == f"SEV-{report.signing_key.name}"
        and _has_signed(entry[1], report)
    ][:1]
    while chain and len(chain) < _CHAIN_MAX:
        issuers = [entry for entry in pool if entry[1].subject == chain[-1][1].issuer]
        if not issuers:
            break
        chain.append(issuers[0])
    if len(chain) != _CHAIN_MAX:
        found = ", ".join(sorted(entry[1].common_name for entry in pool)) or "none"
        raise UnavailableError(
            f"expected the certificates {report.signing_key.name}, ASK or ASVK and ARK for this "
            f"report, got {found}; {_where_amd_has_them(report)}"
        )
    return chain[0][0], chain[1][0], chain[2][0]


def _where_amd_has_them(report: Report) -> str:
    """The addresses of AMD's service (57230, chapter 4) for the signer of a report."""
    product = next(
        (each for each in (MILAN, GENOA, TURIN) if report.cpu is not None and each.has(report.cpu)),
        None,
    )
    # A report of version 2 does not say its processor; there is none of Turin.
    name = "PRODUCT" if product is None else product.titles[0]
    which = " (PRODUCT is Milan or Genoa)" if product is None else ""
    kind = report.signing_key.name.lower()
    chain = f"{_KDS}/{kind}/v1/{name}/cert_chain"
    if report.signing_key is not SigningKey.VCEK:
        return f"ask the operator of the cloud for the VLEK, fetch {chain}{which}, and give both"
    if not any(report.chip_id):
        return (
            f"the host masks the chip's id, so ask its operator for the VCEK, fetch "
            f"{chain}{which}, and give both"
        )
    turin = product is TURIN
    tcb = decode_tcb(report.reported_tcb, turin=turin)
    hwid = report.chip_id[: TURIN_HWID_BYTES if turin else None].hex()
    fmc = f"fmcSPL={tcb.fmc:02}&" if turin else ""
    return (
        f"fetch {_KDS}/vcek/v1/{name}/{hwid}?{fmc}blSPL={tcb.bootloader:02}&teeSPL={tcb.tee:02}"
        f"&snpSPL={tcb.snp:02}&ucodeSPL={tcb.microcode:02} and {chain}{which}, and give both files"
    )


def _has_signed(certificate: Certificate, report: Report) -> bool:
    try:
        key = load_der_public_key(certificate.public_key)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(
            encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384())
        )
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
