"""A key that the SEV-SNP firmware derives for one guest on one chip.

Linux, include/uapi/linux/sev-guest.h (SNP_GET_DERIVED_KEY); AMD 56860, "SEV Secure Nested Paging
Firmware ABI", MSG_KEY_REQ and MSG_KEY_RSP.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from avow.errors import UnavailableError
from avow.tee.snp.attester import DEVICE, Ioctl

DERIVED_KEY_BYTES: Final = 32
# _IOWR('S', 0x1, struct snp_guest_request_ioctl), which has 32 bytes.
_SNP_GET_DERIVED_KEY: Final = 0xC0205301
# msg_version and padding, req_data, resp_data, exitinfo2.
_GUEST_REQUEST: Final = struct.Struct("<B 7x Q Q Q")
# root_key_select, rsvd, guest_field_select, vmpl, guest_svn, tcb_version.
_KEY_REQ: Final = struct.Struct("<I I Q I I Q")
_KEY_RESP_BYTES: Final = 64
# MSG_KEY_RSP: status, reserved, key.
_KEY_RSP: Final = struct.Struct(f"<I 28x {DERIVED_KEY_BYTES}s")
_MESSAGE_VERSION: Final = 1
# The chip's key. The other one, VMRK, comes from whoever migrates guests.
_ROOT_KEY_VCEK: Final = 0
_FIELD_GUEST_POLICY: Final = 1 << 0
_FIELD_MEASUREMENT: Final = 1 << 3
_FIELDS: Final = _FIELD_GUEST_POLICY | _FIELD_MEASUREMENT
_VMPL: Final = 0


def read_derived_key(path: Path = DEVICE, ioctl: Ioctl = fcntl.ioctl) -> bytes:
    """The key (32 bytes) for this chip, this launch measurement and this guest policy.

    Raises `UnavailableError`.
    """
    response = ctypes.create_string_buffer(_KEY_RESP_BYTES)
    request = ctypes.create_string_buffer(
        _KEY_REQ.pack(_ROOT_KEY_VCEK, 0, _FIELDS, _VMPL, 0, 0), _KEY_REQ.size
    )
    argument = bytearray(
        _GUEST_REQUEST.pack(
            _MESSAGE_VERSION, ctypes.addressof(request), ctypes.addressof(response), 0
        )
    )
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                ioctl(descriptor, _SNP_GET_DERIVED_KEY, argument)
            finally:
                os.close(descriptor)
        except OSError as error:
            status = _GUEST_REQUEST.unpack(argument)[3]
            raise UnavailableError(
                f"expected a derived key from {path}, got {error.strerror or error} (exitinfo2 "
                f"{status:#x}); run as root in a SEV-SNP guest at VMPL 0"
            ) from error
        status, key = _KEY_RSP.unpack(response.raw)
    finally:
        ctypes.memset(response, 0, _KEY_RESP_BYTES)
    if status != 0 or not any(key):
        raise UnavailableError(
            f"expected a derived key from {path}, got the firmware's status {status:#x}; see the "
            f"kernel's log"
        )
    return bytes(key)
