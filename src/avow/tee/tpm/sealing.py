"""A secret that one machine's TPM gives back while its PCRs are as they were meant to be.

TPM 2.0 Library, Part 1, section 27 (sealed data), Part 3, sections 12.1 (TPM2_Create), 12.7
(TPM2_Unseal) and 23.7 (TPM2_PolicyPCR). docs/spec/freshness.md has the file's format and says what
a policy over PCRs is worth.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from avow.errors import DeniedError, MalformedError, UnavailableError, counted
from avow.evidence.claims import Workload
from avow.tee.tpm import event_log
from avow.tee.tpm.attester import ATTEMPTS, Measuring, give_way
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.sessions import (
    StorageKey,
    answered,
    hmac_session,
    policy_session,
    refusal,
    storage_key,
)
from avow.tee.tpm.structures import ALG_NULL, ALG_SHA256, FIXED_PARENT, FIXED_TPM, NO_DA, PCRS

SECRET_BYTES: Final = 32
_MAGIC: Final = b"AVOWTPMK"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8s I I")
_PART_BYTES_MAX: Final = 1024
_DIGEST_BYTES: Final = 32
# In TPMT_PUBLIC: after type, name algorithm, attributes and the policy's length.
_POLICY_AT: Final = 10
_ALG_KEYEDHASH: Final = 0x0008
_CC_POLICY_PCR: Final = 0x0000017F
# TPM_RC.
_RC_POLICY_FAIL: Final = 0x09D
_RC_PCR_CHANGED: Final = 0x128
_FORMAT_1: Final = 0x80
_REFUSALS: Final = 3


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """What a file holds: which PCRs the policy is over, TPMT_PUBLIC, and the contents of
    TPM2B_PRIVATE."""

    pcrs: tuple[int, ...]
    public: bytes
    private: bytes

    def encoded(self) -> bytes:
        """The file's content."""
        bitmap = sum(1 << number for number in self.pcrs)
        parts = b"".join(
            struct.pack("<H", len(part)) + part for part in (self.public, self.private)
        )
        return _HEAD.pack(_MAGIC, _VERSION, bitmap) + parts


def decode_blob(content: bytes, name: str) -> SealedBlob:
    """What `SealedBlob.encoded` made. `name` is the file's. Raises `MalformedError`."""
    parts: list[bytes] = []
    try:
        magic, version, bitmap = _HEAD.unpack_from(content)
        offset = _HEAD.size
        for _ in range(2):
            (size,) = struct.unpack_from("<H", content, offset)
            parts.append(content[offset + 2 : offset + 2 + size])
            if not 0 < size <= _PART_BYTES_MAX or len(parts[-1]) != size:
                raise _malformed(name, f"a part of {size} bytes")
            offset += 2 + size
    except struct.error as error:
        raise _malformed(name, f"{counted(len(content), 'byte')}") from error
    pcrs = tuple(number for number in range(PCRS) if bitmap >> number & 1)
    if (magic, version) != (_MAGIC, _VERSION) or bitmap >> PCRS or event_log.PCR not in pcrs:
        raise _malformed(name, "another head")
    if offset != len(content):
        raise _malformed(name, f"{counted(len(content) - offset, 'byte')} more")
    public = parts[0]
    policy = public[_POLICY_AT : _POLICY_AT + _DIGEST_BYTES]
    if public[:-_DIGEST_BYTES] != _template(policy)[:-2] + struct.pack(">H", _DIGEST_BYTES):
        raise _malformed(name, "the public area of another kind of object")
    return SealedBlob(pcrs, parts[0], parts[1])


def pcr_policy(values: Mapping[int, bytes]) -> bytes:
    """The digest (32 bytes) of TPM2_PolicyPCR over these PCRs of the SHA-256 bank."""
    selected = sum(1 << number for number in values).to_bytes(PCRS // 8, "little")
    selection = struct.pack(">I H B", 1, ALG_SHA256, len(selected)) + selected
    digest = hashlib.sha256(b"".join(values[number] for number in sorted(values))).digest()
    command = struct.pack(">I", _CC_POLICY_PCR)
    return hashlib.sha256(bytes(32) + command + selection + digest).digest()


def measured_pcr(workload: Workload) -> bytes:
    """The value (32 bytes) of PCR 23 while `workload` runs."""
    return event_log.replay(event_log.start(workload))


def seal(
    device: TpmDevice,
    secret: bytes,
    workload: Workload,
    pcrs: Iterable[int] = (),
    *,
    parent: bytes | None = None,
) -> tuple[SealedBlob, bytes]:
    """`secret` (32 bytes), to be given back while `workload` runs and the `pcrs` are as now.

    `workload` need not run yet: the value that PCR 23 will have is computed. `parent` is the Name
    (34 bytes) that the TPM's storage key must have; the one that it has is returned with the blob.
    Raises `UnavailableError` and `UntrustedError`.
    """
    others = sorted({*pcrs} - {event_log.PCR})
    if len(secret) != SECRET_BYTES or any(number not in range(PCRS) for number in others):
        raise MalformedError(
            f"expected a secret of {SECRET_BYTES} bytes and PCRs from 0 to {PCRS - 1}, got "
            f"{counted(len(secret), 'byte')} and {others}; name other PCRs"
        )
    with storage_key(device, parent) as key:
        values = _read_pcrs(device, key, others) | {event_log.PCR: measured_pcr(workload)}
        public = _template(pcr_policy(values))

        def create(esapi: Any, library: Any, session: Any) -> tuple[bytes, bytes]:
            area, _ = library.TPMT_PUBLIC.unmarshal(public)
            sensitive = library.TPMS_SENSITIVE_CREATE(data=secret)
            private, made, *_ = esapi.create(
                key.handle,
                library.TPM2B_SENSITIVE_CREATE(sensitive),
                library.TPM2B_PUBLIC(publicArea=area),
                session1=session,
            )
            return made.publicArea.marshal(), bytes(private)

        with hmac_session(device, key, decrypt=True) as session:
            made, private = answered(device, lambda esapi, library: create(esapi, library, session))
        return SealedBlob(tuple(sorted(values)), made, private), key.name


def unseal(
    device: TpmDevice, blob: SealedBlob, workload: Workload, *, parent: bytes | None = None
) -> bytes:
    """The secret (32 bytes). `workload` is what runs; it is measured if it was not.

    Raises `DeniedError` when the PCRs are not those of the policy or the blob is not this TPM's,
    `UnavailableError` and `UntrustedError`.
    """
    with (
        storage_key(device, parent) as key,
        hmac_session(device, key, encrypt=True) as session,
        policy_session(device) as policy,
        _loaded(device, blob, key) as handle,
    ):

        def give(esapi: Any, library: Any) -> bytes:
            esapi.policy_restart(policy)
            # Without a digest: the TPM takes its PCRs, and compares the policy when it unseals.
            esapi.policy_pcr(policy, b"", _selected(blob))
            return bytes(esapi.unseal(handle, session1=policy, session2=session))

        secret = _while_measured(device, blob, workload, give)
    if len(secret) != SECRET_BYTES:
        raise MalformedError(
            f"expected a sealed secret of {SECRET_BYTES} bytes, got {len(secret)}; the file is not "
            f"one that avow made"
        )
    return secret


def _while_measured(
    device: TpmDevice, blob: SealedBlob, workload: Workload, give: Callable[[Any, Any], bytes]
) -> bytes:
    """What `give` returns with `workload` in PCR 23.

    Several programs may share a TPM, and each measures itself when it starts. So nothing else is
    done in between, and who finds the register changed waits for a random while.
    """
    wanted = measured_pcr(workload)
    refusals = 0
    for attempt in range(ATTEMPTS):
        if not _is_measured(device, wanted):
            Measuring(device).measure(workload)
        try:
            return answered(device, give)
        except UnavailableError as error:
            code = refusal(error)
            if code not in {_RC_POLICY_FAIL, _RC_PCR_CHANGED}:
                raise
            # Another one with this workload may have put right what a third one had changed.
            refusals += code == _RC_POLICY_FAIL and _is_measured(device, wanted)
            if refusals == _REFUSALS:
                raise _denied(blob) from error
        give_way(attempt)
    raise UnavailableError(
        f"expected PCR {event_log.PCR} to stay as it was measured, got others in {ATTEMPTS} "
        "attempts; check what else uses it"
    )


@contextmanager
def _loaded(device: TpmDevice, blob: SealedBlob, key: StorageKey) -> Iterator[Any]:
    """The sealed object in the TPM. Raises `DeniedError` when `key` did not seal it."""

    def load(esapi: Any, library: Any) -> Any:
        area, _ = library.TPMT_PUBLIC.unmarshal(blob.public)
        return esapi.load(
            key.handle,
            library.TPM2B_PRIVATE(blob.private),
            library.TPM2B_PUBLIC(publicArea=area),
        )

    with ExitStack() as until_the_end:
        try:
            handle = until_the_end.enter_context(device.loaded(load))
        except UnavailableError as error:
            if (refusal(error) or 0) & _FORMAT_1:
                # It finds fault with what it is given: TPM_RC_INTEGRITY mostly.
                raise DeniedError(
                    "expected a key that this machine's TPM sealed, got another one: it "
                    "comes from another machine, the TPM was cleared since, or the file "
                    "was changed; open the store with another owner key"
                ) from error
            raise
        yield handle


def _selected(blob: SealedBlob) -> str:
    return "sha256:" + ",".join(map(str, blob.pcrs))


def _read_pcrs(device: TpmDevice, key: StorageKey, numbers: list[int]) -> dict[int, bytes]:
    """Values that the TPM authenticated: a policy over the host's own would be the host's."""

    def read(session: Any, number: int, esapi: Any, library: Any) -> list[bytes]:
        _, _, digests = esapi.pcr_read(f"sha256:{number}", session1=session)
        return [bytes(each) for each in digests]

    values: dict[int, bytes] = {}
    with hmac_session(device, key, audit=True) as session:
        for number in numbers:
            found = answered(device, functools.partial(read, session, number))
            if len(found) != 1:
                raise UnavailableError(
                    "expected a bank of SHA-256 PCRs in the TPM, got none; switch it on with "
                    "`tpm2_pcrallocate sha256:all` or in the firmware"
                )
            values[number] = found[0]
    return values


def _is_measured(device: TpmDevice, wanted: bytes) -> bool:
    return hmac.compare_digest(device.read_pcrs([event_log.PCR])[event_log.PCR], wanted)


def _template(policy: bytes) -> bytes:
    """TPMT_PUBLIC of a sealed data object: only `policy` (32 bytes) opens it."""
    attributes = FIXED_TPM | FIXED_PARENT | NO_DA
    head = struct.pack(">HHI", _ALG_KEYEDHASH, ALG_SHA256, attributes)
    return head + struct.pack(">H", len(policy)) + policy + struct.pack(">HH", ALG_NULL, 0)


def _denied(blob: SealedBlob) -> DeniedError:
    named = ", ".join(map(str, blob.pcrs))
    return DeniedError(
        f"expected the PCRs {named} as when the key was sealed, got other values: another module, "
        f"configuration or version of avow (PCR {event_log.PCR}), or another firmware or system "
        f"was started; start what the key was made for, or open the store with another owner key"
    )


def _malformed(name: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected a key that a TPM sealed for avow in {name}, got something else ({actual}); "
        f"correct the path"
    )
