"""A TPM as avow uses it, through tpm2-pytss (which needs the system's libtss2) and its TCTIs.

Every call ends, and everything that goes wrong is an `UnavailableError`. A connection that failed
or that gave no answer in time is given up, and the next use opens another. What was loaded through
the one is never named to the other: `TpmKey.generation` and `TpmDevice.undisturbed` see to it.
"""

from __future__ import annotations

import atexit
import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from avow.errors import UnavailableError, counted
from avow.tee.tpm.connection import (
    Connection,
    Loaded,
    LostTpmError,
    StalledError,
    load_library,
    refusal_of,
    was_restarted,
)
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

# Connections that wait for an answer that is overdue cost a thread and a descriptor each. For how
# long the next one is not tried while none of them has got it: longer each time, and much longer
# when they are many.
_STALLED_MANY: Final = 16
_PAUSE_S: Final = 1.0
_PAUSE_MAX_S: Final = 60.0
_PAUSE_OF_MANY_S: Final = 3600.0

# TPM_RC, and what somebody can do about it.
_ADVICE_ELSE: Final = "`tpm2_rc_decode` explains the code; see the kernel's log (`dmesg`)"
_ADVICE_OPEN: Final = "check that the TPM is enabled, and that this user may use it (group tss)"
_ADVICE_LOST: Final = (
    "the connection to the TPM failed, or the TPM was restarted: see the kernel's log "
    "(`dmesg`) or that of the program that acts as TPM; avow opens it again at the next use"
)
_ADVICE_STALLED: Final = (
    "the TPM, or something on the way to it, hangs: see the kernel's log (`dmesg`); avow "
    "asks again at the next use"
)
_HAS_PASSWORD: Final = (
    "a hierarchy has a password that avow does not know: clear it with `tpm2_changeauth` "
    "or, if it is the endorsement hierarchy's, name a key of your own in AVOW_TPM_AK_HANDLE"
)
_IS_FULL: Final = (
    "name a TPM with a resource manager, such as device:/dev/tpmrm0; without one, what "
    "killed programs leave in the TPM stays until `tpm2_flushcontext` or a restart"
)
_IS_BUSY: Final = "the TPM is busy: try again in a while"
_ADVICE: Final = {
    **dict.fromkeys((0x08E, 0x0A2), _HAS_PASSWORD),  # AUTH_FAIL, BAD_AUTH
    **dict.fromkeys((0x902, 0x903), _IS_FULL),  # OBJECT_MEMORY, SESSION_MEMORY
    **dict.fromkeys(
        (0x90A, 0x920, 0x922, 0x923), _IS_BUSY
    ),  # TESTING, NV_RATE, RETRY, NV_UNAVAILABLE
    0x14B: "remove an unused index with `tpm2_nvundefine`",  # NV_SPACE
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TpmKey:
    """A key in the TPM: its handle in this process, TPMT_PUBLIC, its qualified name, and the
    generation of the connection that it was loaded through."""

    handle: Any
    public: bytes
    qualified_name: bytes
    generation: int


class TpmDevice:
    """An open TPM. Calls may come from any thread and are done one after the other."""

    def __init__(self, tcti: str, timeout_s: float) -> None:
        """`tcti` as in tpm2-tools: "device:/dev/tpmrm0" or "swtpm:path=SOCKET"."""
        self._tcti = tcti
        self._timeout_s = timeout_s
        # Held while something that takes several commands is under way.
        self._turn = threading.RLock()
        self._depth = 0
        self._closed = False
        self._generation = 0
        self._connection: Connection | None = None
        self._left: dict[int, Loaded] = {}
        self._stalled: list[Connection] = []
        self._pause_s = _PAUSE_S
        self._not_before_s = 0.0
        with self.undisturbed():
            pass
        # Without a resource manager (swtpm) nobody else would make room for the next program.
        atexit.register(self._close_at_exit)

    @property
    def generation(self) -> int:
        """How often the TPM was opened. Another one means that keys have to be made or loaded
        again, and that the registers may have been reset."""
        return self._generation

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """In here the connection stays the same, and no other thread uses it. One that was given
        up is opened anew first, never in between. Raises `UnavailableError`."""
        with self._turn:
            if not self._depth:
                self._reopen()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def close(self) -> None:
        """Lets go of the TPM, and has it forget what was loaded."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self._close_at_exit)
            connection, self._connection = self._connection, None
            if connection is None or connection.lost:
                return
            self._depth += 1
            try:
                for handle in list(connection.loaded):
                    self._run_on(connection, partial(connection.esapi.flush_context, handle))
            finally:
                self._depth -= 1
                connection.close(self._timeout_s)

    def _close_at_exit(self) -> None:
        # A TPM that does not answer must not keep the process from ending.
        with contextlib.suppress(UnavailableError):
            self.close()

    def retried(self, function: Callable[[], _T]) -> _T:
        """`function()`, and once more at once, over a new connection, when the TPM failed or was
        restarted. One that hangs is not asked again. Raises `UnavailableError`."""
        try:
            return function()
        except LostTpmError:
            return function()

    def call(self, function: Callable[[Any, Any], _T]) -> _T:
        """`function(ESAPI, tpm2_pytss)` on the TPM's thread, where it may raise the TPM's errors.
        What it carries from call to call has to stay in one `undisturbed`.

        Raises `UnavailableError`; its cause is the TPM's error, where there was one.
        """
        library = load_library()
        return self._run(lambda esapi: function(esapi, library))

    @contextmanager
    def loaded(self, load: Callable[[Any, Any], Any]) -> Iterator[Any]:
        """The object or session (an ESYS_TR) that `load` put into the TPM's memory, which has few
        places, until the end. Raises `UnavailableError`."""
        library = load_library()

        def load_and_note(esapi: Any) -> Any:
            handle = load(esapi, library)
            self._live().note(handle)
            return handle

        with self.undisturbed():
            handle = self._run(load_and_note)
            try:
                yield handle
            finally:
                # What happened before says more than that the TPM could not forget afterwards.
                with contextlib.suppress(UnavailableError):
                    self._flush(handle)

    def make_primary(self, template: bytes) -> TpmKey:
        """The primary key of the endorsement hierarchy that belongs to `template`."""
        library = load_library()
        public, _ = library.TPMT_PUBLIC.unmarshal(template)
        area = library.TPM2B_PUBLIC(publicArea=public)

        def make(esapi: Any) -> TpmKey:
            handle, *_ = esapi.create_primary(None, area, library.ESYS_TR.ENDORSEMENT)
            self._live().note(handle)
            return self._read_key(esapi, handle)

        rsa = public.type == library.TPM2_ALG.RSA
        return self._run(make, max(self._timeout_s, _RSA_KEY_TIMEOUT_S if rsa else 0.0))

    def open_persistent(self, handle: int) -> TpmKey:
        """The key at a persistent handle (0x81000000 and above)."""
        return self._run(lambda esapi: self._read_key(esapi, esapi.tr_from_tpmpublic(handle)))

    def parent_of(self, key: TpmKey) -> bytes:
        """The handle of the hierarchy (4 bytes) or the qualified name of the persistent key that
        `key` is a child of."""
        public = parse_public(key.public)
        for parent in self._run(lambda esapi: list(self._possible_parents(esapi))):
            if name_of(public.name_algorithm, parent + public.name) == key.qualified_name:
                return parent
        raise UnavailableError(
            f"expected the parent of the attestation key to be a persistent key of the TPM at "
            f"{self._tcti}, got none that fits; use an attestation key that avow makes"
        )

    def quote(self, key: TpmKey, pcrs: Iterable[int], data: bytes) -> tuple[bytes, bytes]:
        """TPM2_Quote: TPMS_ATTEST and TPMT_SIGNATURE."""
        selection = _selection(pcrs)

        def quote(esapi: Any) -> tuple[bytes, bytes]:
            attest, signature = esapi.quote(self._handle(key), selection, data)
            return bytes(attest), signature.marshal()

        return self._run(quote)

    def read_pcrs(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """TPM2_PCR_Read of the SHA-256 bank: each value has 32 bytes."""
        numbers = sorted(pcrs)

        def read(esapi: Any) -> dict[int, bytes]:
            values: dict[int, bytes] = {}
            for start in range(0, len(numbers), _READ_AT_ONCE_MAX):
                part = numbers[start : start + _READ_AT_ONCE_MAX]
                _, _, digests = esapi.pcr_read(_selection(part))
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
        handle = load_library().ESYS_TR(number)
        self._run(lambda esapi: esapi.pcr_reset(handle))

    def extend_pcr(self, number: int, digest: bytes) -> None:
        """TPM2_PCR_Extend of the SHA-256 bank by a digest of 32 bytes."""
        library = load_library()
        handle = library.ESYS_TR(number)
        value = library.TPMT_HA(
            hashAlg=library.TPM2_ALG.SHA256, digest=library.TPMU_HA(sha256=digest)
        )
        values = library.TPML_DIGEST_VALUES([value])
        self._run(lambda esapi: esapi.pcr_extend(handle, values))

    def read_nv(self, index: int) -> bytes:
        """All of the area at an index of the TPM's memory, with the area's password or, where that
        does not do, the owner's; both empty."""
        library = load_library()

        def read(esapi: Any) -> bytes:
            area = esapi.tr_from_tpmpublic(index)
            public, _ = esapi.nv_read_public(area)
            size = int(public.nvPublic.dataSize)
            own = int(public.nvPublic.attributes) & int(library.TPMA_NV.AUTHREAD)
            reader = area if own else library.ESYS_TR.OWNER
            return b"".join(
                bytes(
                    esapi.nv_read(
                        area, min(_NV_CHUNK_BYTES, size - offset), offset, auth_handle=reader
                    )
                )
                for offset in range(0, size, _NV_CHUNK_BYTES)
            )

        return self._run(read)

    def activate(self, key: TpmKey, kind: EndorsementKey, credential: Credential) -> bytes:
        """TPM2_ActivateCredential: the secret, if this TPM has `key` and the endorsement key."""
        library = load_library()
        id_object = library.TPM2B_ID_OBJECT(credential.id_object)
        encrypted = library.TPM2B_ENCRYPTED_SECRET(credential.encrypted_secret)
        roles = library.ESYS_TR

        def activate(esapi: Any, ek: TpmKey) -> bytes:
            session = esapi.start_auth_session(
                roles.NONE,
                roles.NONE,
                library.TPM2_SE.POLICY,
                library.TPMT_SYM_DEF(algorithm=library.TPM2_ALG.NULL),
                library.TPM2_ALG.SHA256,
            )
            try:
                esapi.policy_secret(roles.ENDORSEMENT, session)
                secret = esapi.activate_credential(
                    self._handle(key), self._handle(ek), id_object, encrypted, session2=session
                )
            finally:
                esapi.flush_context(session)
            return bytes(secret)

        with self.undisturbed():
            ek = self.make_primary(kind.template)
            try:
                return self._run(lambda esapi: activate(esapi, ek))
            finally:
                with contextlib.suppress(UnavailableError):
                    self.forget(ek)

    def forget(self, key: TpmKey) -> None:
        """Removes a key that was made here from the TPM's memory, which has room for three."""
        with self.undisturbed():
            self._flush(self._handle(key))

    def _flush(self, handle: Any) -> None:
        connection = self._live()
        self._run(lambda esapi: esapi.flush_context(handle))
        connection.loaded.pop(handle, None)

    def _handle(self, key: TpmKey) -> Any:
        """The key's handle. Under another connection the same number may be something else."""
        if key.generation != self._generation:
            raise self._unavailable("a key of before it was opened anew", _ADVICE_LOST)
        return key.handle

    def _read_key(self, esapi: Any, handle: Any) -> TpmKey:
        public, _, qualified_name = esapi.read_public(handle)
        area = public.publicArea.marshal()
        return TpmKey(handle, area, bytes(qualified_name), self._generation)

    def _possible_parents(self, esapi: Any) -> Iterable[bytes]:
        library = load_library()
        for hierarchy in _HIERARCHIES:
            yield struct.pack(">I", hierarchy)
        _, found = esapi.get_capability(library.TPM2_CAP.HANDLES, _PERSISTENT_FIRST, _HANDLES_MAX)
        for handle in found.data.handles:
            _, _, qualified_name = esapi.read_public(esapi.tr_from_tpmpublic(handle))
            yield bytes(qualified_name)

    def _live(self) -> Connection:
        if self._connection is None or self._connection.lost:
            actual = "it was closed" if self._closed else "the connection ended before"
            raise self._unavailable(actual, _ADVICE_LOST)
        return self._connection

    def _run(self, function: Callable[[Any], _T], timeout_s: float | None = None) -> _T:
        """`function(ESAPI)` on the TPM's thread, for at most the time that a TPM is given."""
        with self.undisturbed():
            connection = self._live()
            return self._run_on(connection, lambda: function(connection.esapi), timeout_s)

    def _run_on(
        self, connection: Connection, function: Callable[[], _T], timeout_s: float | None = None
    ) -> _T:
        if connection.lost:
            raise self._unavailable("the connection ended before", _ADVICE_LOST)
        try:
            return connection.run(function, self._timeout_s if timeout_s is None else timeout_s)
        except UnavailableError:
            raise
        except StalledError as error:
            self._give_up(connection, 0)
            raise self._unavailable(str(error), _ADVICE_STALLED) from error
        except (connection.library.TSS2_Exception, RuntimeError, OSError, ValueError) as error:
            code = refusal_of(error)
            if code is None or was_restarted(code):
                self._give_up(connection, self._timeout_s)
                raise LostTpmError(self._text(str(error), _ADVICE_LOST)) from error
            raise self._unavailable(str(error), _ADVICE.get(code, _ADVICE_ELSE)) from error

    def _give_up(self, connection: Connection, wait_s: float) -> None:
        """It is not used again. What it had loaded may still take places in the TPM."""
        self._left |= {each.handle: each for each in connection.loaded.values()}
        if not connection.close(wait_s):
            self._stalled.append(connection)

    def _reopen(self) -> None:
        if self._closed:
            raise self._unavailable("it was closed", "open it again")
        if self._connection is not None and not self._connection.lost:
            return
        self._wait_for_stalled()
        connection = Connection()
        try:
            connection.open(self._tcti, self._timeout_s)
        except StalledError as error:
            self._give_up(connection, 0)
            raise self._unavailable(str(error), _ADVICE_STALLED) from error
        except (connection.library.TSS2_Exception, RuntimeError, OSError, ValueError) as error:
            connection.close(self._timeout_s)
            raise self._unavailable(str(error), _ADVICE_OPEN) from error
        if self._left:
            # A refusal only means that there is nothing left to flush.
            with contextlib.suppress(UnavailableError):
                self._run_on(connection, lambda: connection.clear(self._left))
            if connection.lost:
                raise self._unavailable("the connection ended at once", _ADVICE_LOST)
            self._left = {}
        self._connection = connection
        self._generation += 1

    def _wait_for_stalled(self) -> None:
        """A command that comes back after all is the sign that the TPM answers again. While none
        does, another connection is tried now and then: a late answer may never come."""
        waiting = self._stalled
        if waiting:
            waiting[-1].ended(self._timeout_s)
            self._stalled = [each for each in waiting if not each.ended(0)]
        if not self._stalled or len(self._stalled) < len(waiting):
            self._pause_s, self._not_before_s = _PAUSE_S, 0.0
            return
        now_s = time.monotonic()
        if now_s < self._not_before_s:
            raise self._unavailable(
                f"no answer yet on {counted(len(self._stalled), 'connection')} of before, and the "
                f"next is tried in {self._not_before_s - now_s:.0f} s",
                _ADVICE_STALLED,
            )
        many = len(self._stalled) >= _STALLED_MANY
        self._not_before_s = now_s + (_PAUSE_OF_MANY_S if many else self._pause_s)
        self._pause_s = min(_PAUSE_MAX_S, 2 * self._pause_s)

    def _unavailable(self, actual: str, advice: str) -> UnavailableError:
        return UnavailableError(self._text(actual, advice))

    def _text(self, actual: str, advice: str) -> str:
        return f"expected the TPM at {self._tcti} to work, got: {actual}; {advice}"


def _selection(pcrs: Iterable[int]) -> str:
    return "sha256:" + ",".join(map(str, sorted(pcrs)))
