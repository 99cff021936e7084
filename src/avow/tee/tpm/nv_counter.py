"""A counter and a hash in a TPM's memory that the host cannot turn back, nor speak for.

TPM 2.0 Library, Part 3, section 31 (TPM2_NV_DefineSpace, TPM2_NV_Increment, TPM2_NV_Extend,
TPM2_NV_Read); Part 2, section 13 (TPM_NT, TPMA_NV, TPMS_NV_PUBLIC).

docs/spec/freshness.md says why a plain read would be worth nothing: the host carries the commands.
Each of them here is in an HMAC session under the indices' authorisation value, which nobody knows
but the TPM and the sealed store.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from avow.errors import DeniedError, MalformedError, UnavailableError, UntrustedError
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.sessions import answered, hmac_session, refusal, storage_key
from avow.tee.tpm.structures import ALG_SHA256, name_of

# TCG "Registry of Reserved TPM 2.0 Handles and Localities": NV indices for the owner.
# The one after it is used as well.
INDICES: Final = range(0x01800000, 0x01BFFFFF)
AUTHORISATION_BYTES: Final = 32
HASH_BYTES: Final = 32
_LABEL: Final = b"avow tpm counter v1"
# TPMA_NV; the type is TPM_NT in bits 4 to 7.
_AUTHWRITE: Final = 1 << 2
_AUTHREAD: Final = 1 << 18
# Nobody is locked out by another's wrong guesses; at 32 random bytes there is nothing to guess.
_NO_DA: Final = 1 << 25
_WRITTEN: Final = 1 << 29
_ATTRIBUTES: Final = _AUTHWRITE | _AUTHREAD | _NO_DA
# TPM_RC.
_RC_HANDLE: Final = 0x08B
_RC_AUTH_FAIL: Final = 0x08E
_RC_BAD_AUTH: Final = 0x0A2


def counter_authorisation(secret: bytes, store_id: bytes) -> bytes:
    """The authorisation value (32 bytes) for the counter of the store with `secret` (32 bytes)."""
    return HKDF(hashes.SHA256(), AUTHORISATION_BYTES, salt=store_id, info=_LABEL).derive(secret)


@dataclass(frozen=True, slots=True)
class NvKind:
    """A type of index: what messages call it, TPM_NT, and how many bytes it holds."""

    name: str
    type: int
    size_bytes: int


COUNTER: Final = NvKind("counter", 1, 8)
EXTENDED: Final = NvKind("hash", 4, HASH_BYTES)


def nv_public(index: int, kind: NvKind, *, written: bool) -> bytes:
    """TPMS_NV_PUBLIC of such an index: all that there is to know of it but what it holds."""
    attributes = _ATTRIBUTES | kind.type << 4 | (_WRITTEN if written else 0)
    return struct.pack(">IHIHH", index, ALG_SHA256, attributes, 0, kind.size_bytes)


@dataclass(frozen=True, slots=True)
class _Area:
    index: int
    kind: NvKind


class NvCounter:
    """A counter and, at the index after it, a hash that is extended; for one store. Whoever has
    another authorisation value is refused.

    All methods raise `UnavailableError` when the TPM does not work, `DeniedError` when an index
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
        """`parent` is the Name that the TPM's storage key must have when the indices are made."""
        if index not in INDICES or len(authorisation) != AUTHORISATION_BYTES:
            raise MalformedError(
                f"expected an index from {INDICES[0]:#010x} to {INDICES[-1]:#010x} and "
                f"{AUTHORISATION_BYTES} bytes to authorise with, got {index:#010x} and "
                f"{len(authorisation)}; choose another index"
            )
        self._device = device
        self._count = _Area(index, COUNTER)
        self._hash = _Area(index + 1, EXTENDED)
        self._authorisation = authorisation
        self._parent = parent
        self._closes_device = closes_device

    def read(self) -> tuple[int, bytes] | None:
        """Number and hash (32 bytes); None when they were not made, or not to the end."""
        with self._device.undisturbed():
            count, counted = self._find(self._count)
            extended, written = self._find(self._hash)
            # It counts last.
            if count is None or not counted:
                return None
            if extended is None or not written:
                raise UnavailableError(
                    f"expected a hash of avow's at {self._hash.index:#010x} beside the counter, "
                    f"got none, as somebody removed it; remove the counter too, or choose another "
                    f"index, and have the owner accept the store"
                )
            return int.from_bytes(self._read(self._count, count), "big"), self._read(
                self._hash, extended
            )

    def begin(self) -> tuple[int, bytes]:
        """Makes both where they are not, extends, counts once, and returns what they are then."""
        if self._find(self._count)[1]:
            raise UnavailableError(
                f"expected a new counter at {self._count.index:#010x}, got one that is in "
                "use already; choose another index"
            )
        for area in (self._hash, self._count):
            if self._find(area)[0] is None:
                self._define(area)
        extended = self.extend(bytes(HASH_BYTES))
        return self.increment(), extended

    def increment(self) -> int:
        """Counts one, and returns what the TPM then says."""
        with self._device.undisturbed():
            handle = self._existing(self._count)
            self._in_session(
                lambda esapi, session: esapi.nv_increment(
                    handle, auth_handle=handle, session1=session
                )
            )
            return int.from_bytes(self._read(self._count, handle), "big")

    def extend(self, nonce: bytes) -> bytes:
        """Extends the hash by `nonce` (32 bytes), and returns what the TPM then says."""
        with self._device.undisturbed():
            handle = self._existing(self._hash)
            self._in_session(
                lambda esapi, session: esapi.nv_extend(
                    handle, nonce, auth_handle=handle, session1=session
                )
            )
            return self._read(self._hash, handle)

    def close(self) -> None:
        """Lets go of the TPM, if it was opened for this counter."""
        if self._closes_device:
            self._device.close()

    def _existing(self, area: _Area) -> Any:
        handle, _ = self._find(area)
        if handle is None:
            raise UnavailableError(
                f"expected avow's {area.kind.name} at {area.index:#010x}, got none, as somebody "
                f"removed it; choose another index, and have the owner accept the store"
            )
        return handle

    def _read(self, area: _Area, handle: Any) -> bytes:
        size = area.kind.size_bytes
        content: bytes = self._in_session(
            lambda esapi, session: bytes(
                esapi.nv_read(handle, size, 0, auth_handle=handle, session1=session)
            )
        )
        if len(content) != size:
            raise UntrustedError(
                f"expected {size} bytes at {area.index:#010x}, got {len(content)}; do not trust "
                f"this machine"
            )
        return content

    def _in_session(self, command: Any) -> Any:
        """The session has no key but the authorisation value: its HMACs prove who knows that."""
        with hmac_session(self._device) as session:
            try:
                return answered(self._device, lambda esapi, library: command(esapi, session))
            except UnavailableError as error:
                if refusal(error) in {_RC_BAD_AUTH, _RC_AUTH_FAIL}:
                    raise DeniedError(
                        f"expected the counter at {self._count.index:#010x} to be this "
                        "store's, got one with another authorisation, which belongs to "
                        "another store; choose another index"
                    ) from error
                raise

    def _find(self, area: _Area) -> tuple[Any, bool]:
        """The index, ready to be authorised, and whether it was written; both as the host says. A
        lie about them ends in a refusal by the TPM or an answer without a valid HMAC: that of the
        command is over the Name that belongs to what the host says."""

        def find(esapi: Any, library: Any) -> tuple[Any, bytes]:
            try:
                handle = esapi.tr_from_tpmpublic(area.index)
            except library.TSS2_Exception as error:
                if error.rc & 0xBF == _RC_HANDLE:
                    return None, b""
                raise
            public, name = esapi.nv_read_public(handle)
            esapi.tr_set_auth(handle, self._authorisation)
            names.extend((bytes(name), bytes(esapi.tr_get_name(handle))))
            return handle, public.nvPublic.marshal()

        names: list[bytes] = []
        handle, public = self._device.call(find)
        if handle is None:
            return None, False
        for written in (False, True):
            wanted = nv_public(area.index, area.kind, written=written)
            if hmac.compare_digest(public, wanted):
                _check_names(area, name_of(ALG_SHA256, wanted), names)
                return handle, written
        raise DeniedError(
            f"expected a {area.kind.name} of avow's at {area.index:#010x}, got something else "
            f"({public.hex()}); choose another index"
        )

    def _define(self, area: _Area) -> None:
        def define(esapi: Any, library: Any, session: Any) -> None:
            content = nv_public(area.index, area.kind, written=False)
            public, _ = library.TPMS_NV_PUBLIC.unmarshal(content)
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


def _check_names(area: _Area, wanted: bytes, told: Sequence[bytes]) -> None:
    """tpm2-tss computes its HMACs with the Name that it was told, and does not compare it with the
    area that it was told. Another Name would have them speak of another index, such as one that
    this store counted with before."""
    for name in told:
        if not hmac.compare_digest(name, wanted):
            raise UntrustedError(
                f"expected the Name {wanted.hex()} of the index {area.index:#010x}, got "
                f"{name.hex()}: something between avow and the TPM changes its answers; do "
                "not trust this machine"
            )
