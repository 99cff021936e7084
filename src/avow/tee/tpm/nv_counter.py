"""A counter in a TPM's memory that the host cannot turn back, nor speak for.

TPM 2.0 Library, Part 3, section 31 (TPM2_NV_DefineSpace, TPM2_NV_Increment, TPM2_NV_Read); Part 2,
section 13 (TPMA_NV, TPMS_NV_PUBLIC). docs/spec/freshness.md says why a plain read would be worth
nothing: the host carries the commands. Each of them here is in an HMAC session under the index's
authorisation value, which nobody knows but the TPM and the sealed store.
"""

from __future__ import annotations

import hmac
import struct
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from avow.errors import DeniedError, MalformedError, UnavailableError, UntrustedError
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.sessions import answered, hmac_session, refusal, storage_key
from avow.tee.tpm.structures import ALG_SHA256

# TCG "Registry of Reserved TPM 2.0 Handles and Localities": NV indices for the owner.
INDICES: Final = range(0x01800000, 0x01C00000)
AUTHORISATION_BYTES: Final = 32
_LABEL: Final = b"avow tpm counter v1"
_VALUE_BYTES: Final = 8
# TPMA_NV.
_AUTHWRITE: Final = 1 << 2
_COUNTER: Final = 1 << 4
_AUTHREAD: Final = 1 << 18
# Nobody is locked out by another's wrong guesses; at 32 random bytes there is nothing to guess.
_NO_DA: Final = 1 << 25
_WRITTEN: Final = 1 << 29
_ATTRIBUTES: Final = _AUTHWRITE | _COUNTER | _AUTHREAD | _NO_DA
# TPM_RC.
_RC_HANDLE: Final = 0x08B
_RC_AUTH_FAIL: Final = 0x08E
_RC_BAD_AUTH: Final = 0x0A2


def counter_authorisation(secret: bytes, store_id: bytes) -> bytes:
    """The authorisation value (32 bytes) for the counter of the store with `secret` (32 bytes)."""
    return HKDF(hashes.SHA256(), AUTHORISATION_BYTES, salt=store_id, info=_LABEL).derive(secret)


def nv_public(index: int, *, written: bool) -> bytes:
    """TPMS_NV_PUBLIC of such a counter: all that there is to know of it but its value."""
    attributes = _ATTRIBUTES | (_WRITTEN if written else 0)
    return struct.pack(">IHIHH", index, ALG_SHA256, attributes, 0, _VALUE_BYTES)


class NvCounter:
    """The counter at one index, for one store. Whoever has another authorisation value is refused.

    All methods raise `UnavailableError` when the TPM does not work, `DeniedError` when the index
    belongs to somebody else, and `UntrustedError` when somebody else answers for the TPM.
    """

    def __init__(
        self,
        device: TpmDevice,
        index: int,
        authorisation: bytes,
        *,
        parent: bytes | None = None,
        closes_device: bool = False,
    ) -> None:
        """`parent` is the Name that the TPM's storage key must have when the counter is made."""
        if index not in INDICES or len(authorisation) != AUTHORISATION_BYTES:
            raise MalformedError(
                f"expected an index from {INDICES[0]:#010x} to {INDICES[-1]:#010x} and "
                f"{AUTHORISATION_BYTES} bytes to authorise with, got {index:#010x} and "
                f"{len(authorisation)}; choose another index"
            )
        self._device = device
        self._index = index
        self._authorisation = authorisation
        self._parent = parent
        self._closes_device = closes_device

    def read(self) -> int | None:
        """The value; None when there is no counter, or one that never counted."""
        handle, written = self._find()
        return None if handle is None or not written else self._read(handle)

    def begin(self) -> int:
        """Makes the counter where there is none, counts once, and returns its first value."""
        handle, written = self._find()
        if written:
            raise UnavailableError(
                f"expected a new counter at {self._index:#010x}, got one that has counted already; "
                f"choose another index"
            )
        if handle is None:
            self._define()
        return self.increment()

    def increment(self) -> int:
        """Counts one, and returns what the TPM then says."""
        handle, _ = self._find()
        if handle is None:
            raise UnavailableError(
                f"expected the counter at {self._index:#010x}, got none: somebody removed it"
            )
        self._in_session(
            lambda esapi, session: esapi.nv_increment(handle, auth_handle=handle, session1=session)
        )
        return self._read(handle)

    def close(self) -> None:
        """Lets go of the TPM, if it was opened for this counter."""
        if self._closes_device:
            self._device.close()

    def _read(self, handle: Any) -> int:
        content: bytes = self._in_session(
            lambda esapi, session: bytes(
                esapi.nv_read(handle, _VALUE_BYTES, 0, auth_handle=handle, session1=session)
            )
        )
        if len(content) != _VALUE_BYTES:
            raise UntrustedError(
                f"expected {_VALUE_BYTES} bytes of the counter at {self._index:#010x}, got "
                f"{len(content)}; do not trust this machine"
            )
        return int.from_bytes(content, "big")

    def _in_session(self, command: Any) -> Any:
        """The session has no key but the authorisation value: its HMACs prove who knows that."""
        with hmac_session(self._device) as session:
            try:
                return answered(self._device, lambda esapi, library: command(esapi, session))
            except UnavailableError as error:
                if refusal(error) in {_RC_BAD_AUTH, _RC_AUTH_FAIL}:
                    raise DeniedError(
                        f"expected the counter at {self._index:#010x} to be this store's, got that "
                        f"it has another authorisation: it belongs to another store; choose "
                        f"another index"
                    ) from error
                raise

    def _find(self) -> tuple[Any, bool]:
        """The index, ready to be authorised, and whether it has counted; both as the host says. A
        lie about them ends in a refusal by the TPM or an answer without a valid HMAC."""

        def find(esapi: Any, library: Any) -> tuple[Any, bytes]:
            try:
                handle = esapi.tr_from_tpmpublic(self._index)
            except library.TSS2_Exception as error:
                if error.rc & 0xBF == _RC_HANDLE:
                    return None, b""
                raise
            public, _ = esapi.nv_read_public(handle)
            esapi.tr_set_auth(handle, self._authorisation)
            return handle, public.nvPublic.marshal()

        handle, public = self._device.call(find)
        for written in (False, True):
            if hmac.compare_digest(public, nv_public(self._index, written=written)):
                return handle, written
        if handle is None:
            return None, False
        raise DeniedError(
            f"expected a counter of avow's at {self._index:#010x}, got something else "
            f"({public.hex()}); choose another index"
        )

    def _define(self) -> None:
        def define(esapi: Any, library: Any, session: Any) -> None:
            public, _ = library.TPMS_NV_PUBLIC.unmarshal(nv_public(self._index, written=False))
            esapi.nv_define_space(
                self._authorisation,
                library.TPM2B_NV_PUBLIC(nvPublic=public),
                library.ESYS_TR.OWNER,
                session1=session,
            )

        # The only time that the authorisation value crosses the bus.
        with (
            storage_key(self._device, self._parent) as key,
            hmac_session(self._device, key, decrypt=True) as session,
        ):
            answered(self._device, lambda esapi, library: define(esapi, library, session))
