"""The envelope of Intel's ECDSA quotes: header, body, signature data.

Version 3: Intel SGX ECDSA Quote Library Reference for DCAP (API), appendix A.4. Versions 4 and 5:
Intel TDX DCAP Quoting Library API, appendix A.3. All numbers are little-endian:

    header, 48 bytes: version u16, attestation key type u16 (2: ECDSA on P-256), TEE type u32
        (0: SGX, 0x81: TDX; reserved and 0 in version 3), 4 bytes, QE vendor 16, user data 20
    body: 384 bytes (SGX) or 584 (TD report 1.0); in version 5 after its type u16 and size u32,
        2: TD report 1.0, 3: TD report 1.5 (648 bytes)
    signature data, after its size u32:
        signature 64, attestation key 64, then the certification data; in version 3 itself, in 4
        and 5 inside of type u16 (6) and size u32:
        QE report 384, its signature 64, authentication data after its size u16,
        certification data after its type u16 (5: the PCK's chain in PEM) and its size u32

Every size has to add up to the end. What Intel's software appends to fill its buffer (zeros) is
cut off by the attesting side.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from avow.errors import Check, MalformedError, counted

SGX_BODY_BYTES: Final = 384
TD_REPORT_10_BYTES: Final = 584
TD_REPORT_15_BYTES: Final = 648
REPORT_DATA_BYTES: Final = 64

_HEADER: Final = struct.Struct("<HHI4s16s20s")
_ECDSA_P256: Final = 2
_TEE_TYPES: Final = {3: 0, 4: 0x81, 5: 0x81}
_BODIES_OF_5: Final = {2: TD_REPORT_10_BYTES, 3: TD_REPORT_15_BYTES}
_PCK_CHAIN: Final = 5
_QE_REPORT: Final = 6
_SIGNATURE_BYTES: Final = 64
_KEY_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote taken apart; nothing is verified.

    `qe_report` is the quoting enclave's (384 bytes), `chain` the PCK's, in PEM.
    """

    content: bytes
    version: int
    body: bytes
    qe_report: bytes
    chain: bytes

    @property
    def qe_isv_svn(self) -> int:
        """ISVSVN of the quoting enclave: two bytes at 258 of an enclave report."""
        return int.from_bytes(self.qe_report[258:260], "little")


class _Reader:
    def __init__(self, content: bytes, check: Check) -> None:
        self._content = content
        self._check = check
        self.offset = 0

    def take(self, size: int, what: str) -> bytes:
        part = self._content[self.offset : self.offset + size]
        if len(part) != size:
            raise malformed(self._check, f"{what} of {size} bytes", f"{counted(len(part), 'byte')}")
        self.offset += size
        return part

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def end(self, what: str) -> None:
        left = len(self._content) - self.offset
        if left:
            raise malformed(self._check, f"the end after {what}", f"{counted(left, 'byte')} more")


def decode_quote(content: bytes, check: Check) -> Quote:
    """The quote of version 3, 4 or 5 that `content` is, to the last byte.

    `check` is the platform's, for the error: `MalformedError`.
    """
    reader = _Reader(content, check)
    quote = _read_quote(reader, content, check)
    reader.end("the signature data")
    return quote


def without_padding(content: bytes, check: Check) -> bytes:
    """The quote without the zeros that fill a buffer after it. Raises `MalformedError`."""
    reader = _Reader(content, check)
    _read_quote(reader, content, check)
    if any(content[reader.offset :]):
        raise malformed(check, "nothing but zeros after the quote", "other bytes")
    return content[: reader.offset]


def _read_quote(reader: _Reader, content: bytes, check: Check) -> Quote:
    version, key_type, tee_type, _, _, _ = _HEADER.unpack(reader.take(_HEADER.size, "a header"))
    if version not in _TEE_TYPES:
        raise malformed(check, "a quote of version 3, 4 or 5", f"version {version}")
    if key_type != _ECDSA_P256:
        raise malformed(check, "an attestation key of type 2", f"type {key_type}")
    if tee_type != _TEE_TYPES[version]:
        raise malformed(
            check,
            f"the TEE type {_TEE_TYPES[version]:#x} in version {version}",
            f"{tee_type:#x}",
        )
    body = reader.take(_body_size(reader, version, check), "a report")
    size = reader.number(4, "the size of the signature data")
    data = _Reader(reader.take(size, "signature data"), check)
    data.take(_SIGNATURE_BYTES, "a signature")
    data.take(_KEY_BYTES, "an attestation key")
    if version > 3:
        kind = data.number(2, "the type of the certification data")
        if kind != _QE_REPORT:
            raise malformed(check, "certification data of type 6", f"type {kind}")
        size = data.number(4, "the size of the certification data")
        outer, data = data, _Reader(data.take(size, "certification data"), check)
        outer.end("the certification data")
    qe_report, chain = _read_certification(data, check)
    return Quote(content[: reader.offset], version, body, qe_report, chain)


def _body_size(reader: _Reader, version: int, check: Check) -> int:
    if version == 3:
        return SGX_BODY_BYTES
    if version == 4:
        return TD_REPORT_10_BYTES
    kind = reader.number(2, "the type of the report")
    size = reader.number(4, "the size of the report")
    if _BODIES_OF_5.get(kind) != size:
        raise malformed(
            check,
            "a TD report 1.0 of 584 or 1.5 of 648 bytes",
            f"type {kind} of {size} bytes",
        )
    return size


def _read_certification(data: _Reader, check: Check) -> tuple[bytes, bytes]:
    """The QE report and the PCK's chain."""
    qe_report = data.take(SGX_BODY_BYTES, "a QE report")
    data.take(_SIGNATURE_BYTES, "a signature of the QE report")
    data.take(data.number(2, "the size of the authentication data"), "authentication data")
    kind = data.number(2, "the type of the PCK's data")
    if kind != _PCK_CHAIN:
        raise malformed(check, "the PCK's certificate chain (type 5)", f"type {kind}")
    chain = data.take(data.number(4, "the size of the PCK's chain"), "a certificate chain")
    data.end("the PCK's chain")
    return qe_report, chain


def malformed(check: Check, expected: str, actual: str) -> MalformedError:
    """The error of everything that is no quote."""
    return MalformedError.at(
        check, expected=expected, actual=actual, advice="fetch the evidence again"
    )
