"""A TPM as avow uses it, through tpm2-pytss (which needs the system's libtss2) and its TCTIs.

Every call ends: the commands run on a thread of their own, and a TPM that does not answer in time
is given up for good. Everything that goes wrong is an `UnavailableError`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from avow.errors import UnavailableError
from avow.tee.detection import INSTALL_BINDING
from avow.tee.tpm.credential import Credential
from avow.tee.tpm.structures import name_of, parse_public
from avow.tee.tpm.templates import EndorsementKey

# Part 2, section 7.4, TPM_RH: where primary keys may be.
_ENDORSEMENT: Final = 0x4000000B
_HIERARCHIES: Final = (_ENDORSEMENT, 0x40000001, 0x4000000C)
_PERSISTENT_FIRST: Final = 0x81000000
_HANDLES_MAX: Final = 64
_READ_AT_ONCE_MAX: Final = 8
_NV_CHUNK_BYTES: Final = 512
# A chip looks for two primes, for as long as that takes; Linux waits for five minutes.
_RSA_KEY_TIMEOUT_S: Final = 60.0

# Part 2, section 6.6: errors of format 1 (bit 7) also name a parameter, handle or session.
_FORMAT_1: Final = 0x80
_FORMAT_1_CODE: Final = 0xBF
_FORMAT_0_CODE: Final = 0xFFF
# TPM_RC, and what somebody can do about it.
_ADVICE_ELSE: Final = "see that it is switched on and that this user may use it (group tss)"
_HAS_PASSWORD: Final = (
    "a hierarchy has a password, and avow has none: take it away with `tpm2_changeauth`, or, if it "
    "is the endorsement hierarchy's, name a key of yours in AVOW_TPM_AK_HANDLE"
)
_IS_FULL: Final = (
    "name a TPM with a resource manager, as device:/dev/tpmrm0 is; without one, what programs that "
    "were killed have left in it stays until `tpm2_flushcontext` or a restart"
)
_IS_BUSY: Final = "it is there and busy: try again in a while"
_ADVICE: Final = {
    **dict.fromkeys((0x08E, 0x0A2), _HAS_PASSWORD),  # AUTH_FAIL, BAD_AUTH
    **dict.fromkeys((0x902, 0x903), _IS_FULL),  # OBJECT_MEMORY, SESSION_MEMORY
    **dict.fromkeys(
        (0x90A, 0x920, 0x922, 0x923), _IS_BUSY
    ),  # TESTING, NV_RATE, RETRY, NV_UNAVAILABLE
    0x14B: "remove an index that nobody uses any more with `tpm2_nvundefine`",  # NV_SPACE
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TpmKey:
    """A key in the TPM: its handle there, TPMT_PUBLIC, and its qualified name."""

    handle: int
    public: bytes
    qualified_name: bytes


class TpmDevice:
    """An open TPM. Calls may come from any thread and are done one after the other."""

    def __init__(self, tcti: str, timeout_s: float) -> None:
        """`tcti` as in tpm2-tools: "device:/dev/tpmrm0" or "swtpm:path=SOCKET"."""
        self._tcti = tcti
        self._timeout_s = timeout_s
        self._given_up = ""
        self._made: list[TpmKey] = []
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        library = _library()
        thread = threading.Thread(target=_serve, args=(self._calls,), name="tpm", daemon=True)
        thread.start()
        self._esapi: Any = self._run(lambda: library.ESAPI(tcti))
        # Without a resource manager (swtpm) nobody else would make room for the next program.
        atexit.register(self._close_at_exit)

    def close(self) -> None:
        """Lets go of the TPM, and has it forget the keys that were made."""
        if self._given_up:
            return
        atexit.unregister(self._close_at_exit)
        try:
            for key in list(self._made):
                self.forget(key)
            self._run(self._esapi.close)
        finally:
            self._given_up = "it was closed"
            self._calls.put(None)

    def _close_at_exit(self) -> None:
        # A TPM that does not answer must not keep the process from ending.
        with contextlib.suppress(UnavailableError):
            self.close()

    def call(self, function: Callable[[Any, Any], _T]) -> _T:
        """`function(ESAPI, tpm2_pytss)` on the TPM's thread, where it may raise the TPM's errors.

        Raises `UnavailableError`; its cause is the TPM's error, where there was one.
        """
        library = _library()
        return self._run(lambda: function(self._esapi, library))

    def make_primary(self, template: bytes) -> TpmKey:
        """The primary key of the endorsement hierarchy that belongs to `template`."""
        library = _library()
        public, _ = library.TPMT_PUBLIC.unmarshal(template)
        area = library.TPM2B_PUBLIC(publicArea=public)

        def make() -> TpmKey:
            handle, *_ = self._esapi.create_primary(None, area, library.ESYS_TR.ENDORSEMENT)
            return self._read_key(handle)

        rsa = public.type == library.TPM2_ALG.RSA
        key = self._run(make, max(self._timeout_s, _RSA_KEY_TIMEOUT_S if rsa else 0.0))
        self._made.append(key)
        return key

    def open_persistent(self, handle: int) -> TpmKey:
        """The key at a persistent handle (0x81000000 and above)."""
        return self._run(lambda: self._read_key(self._esapi.tr_from_tpmpublic(handle)))

    def parent_of(self, key: TpmKey) -> bytes:
        """The handle of the hierarchy (4 bytes) or the qualified name of the persistent key that
        `key` is a child of."""
        public = parse_public(key.public)
        for parent in self._run(lambda: list(self._possible_parents())):
            if name_of(public.name_algorithm, parent + public.name) == key.qualified_name:
                return parent
        raise UnavailableError(
            f"expected the parent of the attestation key to be a persistent key of the TPM at "
            f"{self._tcti}, got none that fits; use an attestation key that avow makes"
        )

    def quote(self, key: TpmKey, pcrs: Iterable[int], data: bytes) -> tuple[bytes, bytes]:
        """TPM2_Quote: TPMS_ATTEST and TPMT_SIGNATURE."""
        selection = _selection(pcrs)

        def quote() -> tuple[bytes, bytes]:
            attest, signature = self._esapi.quote(key.handle, selection, data)
            return bytes(attest), signature.marshal()

        return self._run(quote)

    def read_pcrs(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """TPM2_PCR_Read of the SHA-256 bank: each value has 32 bytes."""
        numbers = sorted(pcrs)

        def read() -> dict[int, bytes]:
            values: dict[int, bytes] = {}
            for start in range(0, len(numbers), _READ_AT_ONCE_MAX):
                part = numbers[start : start + _READ_AT_ONCE_MAX]
                _, _, digests = self._esapi.pcr_read(_selection(part))
                if len(digests) != len(part):
                    raise UnavailableError(
                        f"expected a bank of SHA-256 PCRs in the TPM at {self._tcti}, got none; "
                        f"switch it on with `tpm2_pcrallocate sha256:all` or in the firmware"
                    )
                values |= {
                    number: bytes(value) for number, value in zip(part, digests, strict=True)
                }
            return values

        return self._run(read)

    def reset_pcr(self, number: int) -> None:
        """TPM2_PCR_Reset."""
        handle = _library().ESYS_TR(number)
        self._run(lambda: self._esapi.pcr_reset(handle))

    def extend_pcr(self, number: int, digest: bytes) -> None:
        """TPM2_PCR_Extend of the SHA-256 bank by a digest of 32 bytes."""
        library = _library()
        handle = library.ESYS_TR(number)
        value = library.TPMT_HA(
            hashAlg=library.TPM2_ALG.SHA256, digest=library.TPMU_HA(sha256=digest)
        )
        values = library.TPML_DIGEST_VALUES([value])
        self._run(lambda: self._esapi.pcr_extend(handle, values))

    def read_nv(self, index: int) -> bytes:
        """All of the area at an index of the TPM's memory, with the area's password or, where that
        does not do, the owner's; both empty."""
        library = _library()

        def read() -> bytes:
            area = self._esapi.tr_from_tpmpublic(index)
            public, _ = self._esapi.nv_read_public(area)
            size = int(public.nvPublic.dataSize)
            own = int(public.nvPublic.attributes) & int(library.TPMA_NV.AUTHREAD)
            reader = area if own else library.ESYS_TR.OWNER
            return b"".join(
                bytes(
                    self._esapi.nv_read(
                        area, min(_NV_CHUNK_BYTES, size - offset), offset, auth_handle=reader
                    )
                )
                for offset in range(0, size, _NV_CHUNK_BYTES)
            )

        return self._run(read)

    def activate(self, key: TpmKey, kind: EndorsementKey, credential: Credential) -> bytes:
        """TPM2_ActivateCredential: the secret, if this TPM has `key` and the endorsement key."""
        library = _library()
        id_object = library.TPM2B_ID_OBJECT(credential.id_object)
        encrypted = library.TPM2B_ENCRYPTED_SECRET(credential.encrypted_secret)
        ek = self.make_primary(kind.template)
        roles = library.ESYS_TR

        def activate() -> bytes:
            session = self._esapi.start_auth_session(
                roles.NONE,
                roles.NONE,
                library.TPM2_SE.POLICY,
                library.TPMT_SYM_DEF(algorithm=library.TPM2_ALG.NULL),
                library.TPM2_ALG.SHA256,
            )
            try:
                self._esapi.policy_secret(roles.ENDORSEMENT, session)
                secret = self._esapi.activate_credential(
                    key.handle, ek.handle, id_object, encrypted, session2=session
                )
            finally:
                self._esapi.flush_context(session)
            return bytes(secret)

        try:
            return self._run(activate)
        finally:
            self.forget(ek)

    def forget(self, key: TpmKey) -> None:
        """Removes a key that was made here from the TPM's memory, which has room for three."""
        self._made.remove(key)
        self._run(lambda: self._esapi.flush_context(key.handle))

    def _read_key(self, handle: Any) -> TpmKey:
        public, _, qualified_name = self._esapi.read_public(handle)
        return TpmKey(handle, public.publicArea.marshal(), bytes(qualified_name))

    def _possible_parents(self) -> Iterable[bytes]:
        library = _library()
        for hierarchy in _HIERARCHIES:
            yield struct.pack(">I", hierarchy)
        _, found = self._esapi.get_capability(
            library.TPM2_CAP.HANDLES, _PERSISTENT_FIRST, _HANDLES_MAX
        )
        for handle in found.data.handles:
            _, _, qualified_name = self._esapi.read_public(self._esapi.tr_from_tpmpublic(handle))
            yield bytes(qualified_name)

    def _run(self, function: Callable[[], _T], timeout_s: float | None = None) -> _T:
        """`function()` on the TPM's thread, for at most the time that a TPM is given."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if self._given_up:
            raise self._unavailable(self._given_up)
        call = _Call(function, _library().TSS2_Exception)
        self._calls.put(call)
        if not call.done.wait(timeout_s):
            self._given_up = f"no answer within {timeout_s:g} s"
            raise self._unavailable(self._given_up)
        if isinstance(call.error, UnavailableError):
            raise call.error
        if not call.completed:
            advice = _ADVICE.get(refusal_of(call.error) or 0, _ADVICE_ELSE)
            raise self._unavailable(str(call.error), advice) from call.error
        result: _T = call.result
        return result

    def _unavailable(self, actual: str, advice: str = _ADVICE_ELSE) -> UnavailableError:
        return UnavailableError(
            f"expected the TPM at {self._tcti} to work, got: {actual}; {advice}"
        )


def refusal_of(error: BaseException | None) -> int | None:
    """Which TPM_RC the TPM refused with, without the number of the parameter, handle or session;
    None when it was no refusal of the TPM."""
    code: int | None = getattr(error, "rc", None)
    if code is None or code >> 16:
        return None
    return code & (_FORMAT_1_CODE if code & _FORMAT_1 else _FORMAT_0_CODE)


class _Call:
    """One function for the thread, and how it ended."""

    def __init__(self, function: Callable[[], Any], failure: type[Exception]) -> None:
        self._function = function
        self._failures = (failure, UnavailableError, RuntimeError, OSError, ValueError)
        self.done = threading.Event()
        self.completed = False
        self.result: Any = None
        self.error: Exception | None = None

    def __call__(self) -> None:
        try:
            self.result = self._function()
            self.completed = True
        except self._failures as error:
            self.error = error
        finally:
            self.done.set()


def _serve(calls: queue.SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call()


def _selection(pcrs: Iterable[int]) -> str:
    return "sha256:" + ",".join(map(str, sorted(pcrs)))


def _library() -> Any:
    """tpm2-pytss. It is compiled against libtss2, so it is imported only where a TPM is used."""
    # libtss2 writes every error to the standard error itself, also those that are expected here.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        import tpm2_pytss
    except ImportError as error:
        raise UnavailableError(
            f"expected tpm2-pytss for the TPM, got none ({error}); {INSTALL_BINDING}"
        ) from error
    return tpm2_pytss
