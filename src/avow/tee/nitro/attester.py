"""Asks the Nitro Secure Module for documents, through /dev/nsm.

Linux, include/uapi/linux/nsm.h (6.8 and newer; AWS's own driver before has the same interface): one
request that carries CBOR to the module and back. The messages are those of AWS's
aws-nitro-enclaves-nsm-api, `Request::Attestation` and its response.

The module's PCRs 16 to 31 can be extended by an enclave, and avow leaves them alone: they are not
reset when a program starts again, and the module's digest is in avow's claims.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from avow.errors import MalformedError, UnavailableError
from avow.evidence import cbor
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.nitro.report import parse_document

DEVICE: Final = Path("/dev/nsm")
# _IOWR(0x0A, 0, struct nsm_raw), which has 32 bytes.
_NSM_IOCTL_RAW: Final = 0xC0200A00
_RESPONSE_BYTES_MAX: Final = 0x3000
# Address and length of the request, address and length of the response.
_RAW: Final = struct.Struct("<Q Q Q Q")

# As `fcntl.ioctl`: file descriptor, request, argument that is changed in place.
Ioctl = Callable[[int, int, bytearray], int]


class NitroAttester:
    """The attesting side of Nitro Enclaves."""

    def __init__(self, path: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> None:
        self._path = path
        self._ioctl = ioctl

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Attester`."""
        return "nitro"

    def measure(self, workload: Workload) -> None:
        """See `avow.evidence.roles.Attester`. No register of the platform is reset at a start."""

    def quote(self, report_data: ReportData) -> bytes:
        """See `avow.evidence.roles.Attester`."""
        fields: dict[int | str, cbor.Value] = {
            "user_data": report_data.content,
            "nonce": None,
            "public_key": None,
        }
        response = self._exchange(cbor.encode({"Attestation": fields}))
        try:
            answer = cbor.decode_foreign(response, "answer of the Nitro Secure Module")
            document = _document(answer)
            user_data = parse_document(document).user_data
        except MalformedError as error:
            raise UnavailableError(f"{error}; {self._path} gave this") from error
        if user_data != report_data.content:
            raise UnavailableError(
                "expected a document over the data that was asked for, got one over other "
                f"data; check what {self._path} is"
            )
        return document

    def _exchange(self, request: bytes) -> bytes:
        sent = ctypes.create_string_buffer(request, len(request))
        received = ctypes.create_string_buffer(_RESPONSE_BYTES_MAX)
        argument = bytearray(
            _RAW.pack(
                ctypes.addressof(sent),
                len(request),
                ctypes.addressof(received),
                _RESPONSE_BYTES_MAX,
            )
        )
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, _NSM_IOCTL_RAW, argument)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnavailableError(
                f"expected a document from {self._path}, got {error.strerror or error}; run "
                "inside a Nitro enclave whose kernel has the driver nsm"
            ) from error
        length: int = _RAW.unpack(argument)[3]
        return received.raw[:length]


def _document(answer: cbor.Value) -> bytes:
    if isinstance(answer, dict) and set(answer) == {"Error"}:
        raise UnavailableError(
            f"expected a document from the Nitro Secure Module, got the error "
            f"{str(answer['Error'])[:80]}; see AWS's description of its error codes"
        )
    if isinstance(answer, dict) and set(answer) == {"Attestation"}:
        inner = answer["Attestation"]
        if isinstance(inner, dict) and set(inner) == {"document"}:
            document = inner["document"]
            if isinstance(document, bytes):
                return document
    raise MalformedError(
        "expected a document in the module's answer, got something else; ask again"
    )
