"""Sessions with a TPM over a bus that is not trusted (TPM 2.0 Library, Part 1, section 19).

A session is *salted*: its key comes from a secret that only the TPM with a certain storage primary
key can open. Its HMACs then prove that this TPM answered, and its encryption hides parameters from
who listens. That much needs the right storage key: whoever answers in place of the TPM from the
start can name a key of his own, unless the name of the right one is known.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from avow.errors import UnavailableError, UntrustedError
from avow.tee.tpm.connection import refusal_of
from avow.tee.tpm.device import TpmDevice
from avow.tee.tpm.structures import ALG_SHA256, name_of
from avow.tee.tpm.templates import STORAGE_ECC

NAME_BYTES: Final = 34
# TSS 2.0 Overview and Common Structures: the layer ESAPI, and its error for a wrong response HMAC.
_RESPONSE_NOT_AUTHENTIC: Final = 0x7001B

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StorageKey:
    """The storage primary key, loaded: its handle in this process, and its Name (34 bytes)."""

    handle: Any
    name: bytes


def answered(device: TpmDevice, function: Callable[[Any, Any], _T]) -> _T:
    """`device.call(function)`, for commands in a session.

    Raises `UntrustedError` for an answer that the TPM did not make, and else `UnavailableError`.
    """
    try:
        return device.call(function)
    except UnavailableError as error:
        if getattr(error.__cause__, "rc", None) == _RESPONSE_NOT_AUTHENTIC:
            raise UntrustedError(
                "expected an answer that the TPM authenticated, got another one: something "
                "between avow and the TPM changes or repeats answers; do not trust this "
                "machine"
            ) from error
        raise


def refusal(error: UnavailableError) -> int | None:
    """Which TPM_RC is the cause of `error`; see `refusal_of`."""
    return refusal_of(error.__cause__)


@contextmanager
def storage_key(device: TpmDevice, pinned: bytes | None) -> Iterator[StorageKey]:
    """The storage primary key of the owner hierarchy, which has to have no password.

    `pinned` is the Name that it must have. Raises `UntrustedError` for another one.
    """

    publics: list[bytes] = []

    def make(esapi: Any, library: Any) -> Any:
        public, _ = library.TPMT_PUBLIC.unmarshal(STORAGE_ECC)
        area = library.TPM2B_PUBLIC(publicArea=public)
        handle, made, *_ = esapi.create_primary(None, area, library.ESYS_TR.OWNER)
        publics.append(made.publicArea.marshal())
        return handle

    with device.loaded(make) as handle:
        # Of the bytes that the salt is encrypted to, not of what the TPM says that their Name is.
        name = name_of(ALG_SHA256, publics[0])
        if pinned is not None and not hmac.compare_digest(name, pinned):
            raise UntrustedError(
                f"expected the TPM whose storage key has the name {pinned.hex()}, got one "
                f"with {name.hex()}: this is another machine, its TPM was cleared, or "
                "something answers in the TPM's place; name the right TPM, or make new "
                "keys and anchors"
            )
        yield StorageKey(handle, name)


@contextmanager
def hmac_session(device: TpmDevice, key: StorageKey | None = None, **uses: bool) -> Iterator[Any]:
    """A session, salted to `key` where there is one. `uses`: `decrypt` (the first parameter of a
    command goes encrypted), `encrypt` (that of an answer comes so), `audit`."""

    def start(esapi: Any, library: Any) -> Any:
        roles, algorithms = library.ESYS_TR, library.TPM2_ALG
        symmetric = library.TPMT_SYM_DEF(
            algorithm=algorithms.AES,
            keyBits=library.TPMU_SYM_KEY_BITS(aes=128),
            mode=library.TPMU_SYM_MODE(aes=algorithms.CFB),
        )
        session = esapi.start_auth_session(
            roles.NONE if key is None else key.handle,
            roles.NONE,
            library.TPM2_SE.HMAC,
            symmetric,
            algorithms.SHA256,
        )
        attributes = library.TPMA_SESSION.CONTINUESESSION
        for use, wanted in uses.items():
            if wanted:
                attributes |= getattr(library.TPMA_SESSION, use.upper())
        esapi.trsess_set_attributes(session, attributes)
        return session

    with device.loaded(start) as session:
        yield session


@contextmanager
def policy_session(device: TpmDevice) -> Iterator[Any]:
    """A session that collects a policy. It authenticates nothing: use another one beside it."""

    def start(esapi: Any, library: Any) -> Any:
        roles = library.ESYS_TR
        return esapi.start_auth_session(
            roles.NONE,
            roles.NONE,
            library.TPM2_SE.POLICY,
            library.TPMT_SYM_DEF(algorithm=library.TPM2_ALG.NULL),
            library.TPM2_ALG.SHA256,
        )

    with device.loaded(start) as session:
        yield session
