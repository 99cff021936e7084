"""Asks OP-TEE for PSA tokens, through Linux's /dev/tee0.

Linux, include/uapi/linux/tee.h. What answers is the trusted application veraison_attestation of
linaro-swg/optee_examples (command 0: nonce in, token out), which has OP-TEE's pseudo trusted
application of the same name (core/pta/veraison_attestation) sign over the caller's measurement. A
pseudo trusted application itself talks to trusted applications only. Linux has no other interface
for PSA tokens: TF-M's is a call of a partition on the microcontroller it runs on.

OP-TEE calls its application a proof of concept: docs/platforms/psa.md says what it does not prove.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from avow.errors import MalformedError, UnavailableError
from avow.evidence.claims import Workload
from avow.evidence.report_data import ReportData
from avow.tee.psa.report import parse_token

DEVICE: Final = Path("/dev/tee0")
APPLICATION: Final = uuid.UUID("a6b53b34-855f-11ee-b9d1-0242ac120002")
_GET_TOKEN: Final = 0

# _IOR(0xA4, 0, 12), _IOWR(0xA4, 1, 16), _IOR(0xA4, 2 and 3, 16), _IOR(0xA4, 5, 4).
_VERSION: Final = 0x800CA400
_SHM_ALLOC: Final = 0xC010A401
_OPEN_SESSION: Final = 0x8010A402
_INVOKE: Final = 0x8010A403
_CLOSE_SESSION: Final = 0x8004A405
# impl_id, impl_caps, gen_caps.
_VERSION_DATA: Final = struct.Struct("<3I")
_OP_TEE: Final = 1
# size, flags, id.
_SHM_DATA: Final = struct.Struct("<QIi")
# Pointer and length.
_BUFFER: Final = struct.Struct("<QQ")
# uuid, client's uuid, login, cancel_id, session, ret, ret_origin, num_params.
_OPEN_ARG: Final = struct.Struct("<16s16s6I")
# func, session, cancel_id, ret, ret_origin, num_params.
_INVOKE_ARG: Final = struct.Struct("<6I")
# attr, offset, size, id of the shared memory.
_PARAM: Final = struct.Struct("<4Q")
_MEMREF_INPUT, _MEMREF_INOUT = 5, 7
# GlobalPlatform's calls have four parameters.
_NO_PARAM: Final = bytes(_PARAM.size)

_PAGE: Final = 4096
_TOKEN_BYTES_MAX: Final = 2 * _PAGE

# As `fcntl.ioctl`: file descriptor, request, argument that is changed in place.
Ioctl = Callable[[int, int, bytearray], int]


class PsaAttester:
    """The attesting side of PSA on OP-TEE. `application` is the UUID of the trusted application."""

    def __init__(
        self,
        path: Path = DEVICE,
        application: uuid.UUID = APPLICATION,
        ioctl: Ioctl = fcntl.ioctl,
    ) -> None:
        self._path = path
        self._application = application
        self._ioctl = ioctl

    @property
    def platform(self) -> str:
        """See `avow.evidence.roles.Attester`."""
        return "psa"

    def measure(self, workload: Workload) -> None:
        """See `avow.evidence.roles.Attester`. The platform has no register for it."""

    def quote(self, report_data: ReportData) -> bytes:
        """See `avow.evidence.roles.Attester`."""
        try:
            token = self._token(report_data.content)
        except OSError as error:
            raise UnavailableError(
                f"expected a PSA token through {self._path}, got {error.strerror or error}; "
                f"run where OP-TEE has the attestation application, as a user of the group tee"
            ) from error
        try:
            nonce = parse_token(token).nonce
        except MalformedError as error:
            raise UnavailableError(f"{error}; the trusted application gave this") from error
        if nonce != report_data.content:
            raise UnavailableError(
                "expected a token over the data that was asked for, got one over other "
                "data; check which trusted application answers"
            )
        return token

    def _token(self, nonce: bytes) -> bytes:
        with ExitStack() as opened:
            device = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, device)
            version = bytearray(_VERSION_DATA.size)
            self._ioctl(device, _VERSION, version)
            if _VERSION_DATA.unpack(version)[0] != _OP_TEE:
                raise UnavailableError(
                    f"expected OP-TEE behind {self._path}, got another kind of TEE; "
                    f"run on a device with OP-TEE"
                )
            number, memory = opened.enter_context(self._shared_memory(device))
            session = opened.enter_context(self._session(device))
            memory[: len(nonce)] = nonce
            size = self._invoke(device, session, number, len(nonce))
            return bytes(memory[_PAGE : _PAGE + size])

    @contextmanager
    def _shared_memory(self, device: int) -> Iterator[tuple[int, mmap.mmap]]:
        argument = bytearray(_SHM_DATA.pack(_PAGE + _TOKEN_BYTES_MAX, 0, 0))
        descriptor = self._ioctl(device, _SHM_ALLOC, argument)
        try:
            with mmap.mmap(descriptor, _PAGE + _TOKEN_BYTES_MAX) as memory:
                yield _SHM_DATA.unpack(argument)[2], memory
        finally:
            os.close(descriptor)

    @contextmanager
    def _session(self, device: int) -> Iterator[int]:
        content = _OPEN_ARG.pack(self._application.bytes, bytes(16), 0, 0, 0, 0, 0, 0)
        answer = _OPEN_ARG.unpack(self._call(device, _OPEN_SESSION, content))
        session, result, origin = answer[4], answer[5], answer[6]
        if result:
            raise UnavailableError(
                f"expected the trusted application {self._application}, got OP-TEE's error "
                f"{result:#x} of origin {origin}; install it where OP-TEE finds it"
            )
        try:
            yield session
        finally:
            self._ioctl(device, _CLOSE_SESSION, bytearray(struct.pack("<I", session)))

    def _invoke(self, device: int, session: int, number: int, nonce_bytes: int) -> int:
        """Has the token written to the shared memory `number`; returns its size."""
        params = (
            _PARAM.pack(_MEMREF_INPUT, 0, nonce_bytes, number)
            + _PARAM.pack(_MEMREF_INOUT, _PAGE, _TOKEN_BYTES_MAX, number)
            + 2 * _NO_PARAM
        )
        head = _INVOKE_ARG.pack(_GET_TOKEN, session, 0, 0, 0, len(params) // _PARAM.size)
        answer = self._call(device, _INVOKE, head + params)
        _, _, _, result, origin, _ = _INVOKE_ARG.unpack_from(answer)
        size: int = _PARAM.unpack_from(answer, _INVOKE_ARG.size + _PARAM.size)[2]
        if result or size > _TOKEN_BYTES_MAX:
            raise UnavailableError(
                f"expected a token of at most {_TOKEN_BYTES_MAX} bytes, got {size} bytes and "
                f"OP-TEE's error {result:#x} of origin {origin}; see the log of the secure world"
            )
        return size

    def _call(self, device: int, request: int, content: bytes) -> bytes:
        """One of the calls that take a pointer to their argument."""
        held = ctypes.create_string_buffer(content, len(content))
        self._ioctl(device, request, bytearray(_BUFFER.pack(ctypes.addressof(held), len(content))))
        return held.raw
