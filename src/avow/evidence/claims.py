"""What avow itself says inside its evidence: a CBOR map, with EAT's keys where they exist.

RFC 9711 (EAT), section 4: 10 eat_nonce, 265 eat_profile, 268 bootseed. RFC 8392: 6 iat. The
others are of private use and specified in docs/spec/evidence.md.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass

from avow.errors import MalformedError
from avow.evidence import cbor

PROFILE = "tag:avow.example,2026:evidence-1"
NONCE_BYTES = 32
DIGEST_BYTES = 32
BOOT_ID_BYTES = 32
USER_DATA_BYTES_MAX = 1024
_TIME_MAX_S = 2**40

_IAT, _NONCE, _PROFILE, _BOOTSEED = 6, 10, 265, 268
_ROLE, _MODULE, _RUNTIME, _CONFIGURATION, _KEY, _USER_DATA = (
    -70001,
    -70002,
    -70003,
    -70004,
    -70005,
    -70006,
)


class Role(enum.IntEnum):
    """What the evidence was made for. Evidence for one role never serves in another."""

    SERVER = 1
    CLIENT = 2
    # A file that `avow attest` writes; it proves nothing about a connection.
    DOCUMENT = 3
    # The extension of a certificate (RA-TLS); it proves who has the key, not when.
    CERTIFICATE = 4
    # What a program in the sandbox asks for, with user data of its own choice in it.
    PROGRAM = 5

    @property
    def has_key(self) -> bool:
        """False where there is no connection, and so no key to name."""
        return self not in (Role.DOCUMENT, Role.PROGRAM)


@dataclass(frozen=True, slots=True)
class Workload:
    """What runs: SHA-256 of the module, of the runtime's manifest and of the configuration.

    `boot_id` (32 bytes) is drawn at each start of the process.
    """

    module: bytes
    runtime: bytes
    configuration: bytes
    boot_id: bytes


@dataclass(frozen=True, slots=True)
class Claims:
    """One set of claims, for one nonce (32 bytes).

    `key` is the SHA-256 (32 bytes) of the SubjectPublicKeyInfo of the key that the sender proves to
    hold, or empty where there is none (roles DOCUMENT and PROGRAM). `issued_at_s` is the sender's
    clock, in seconds since 1970; freshness comes from the nonce, not from it. `user_data` (0 to
    1024 bytes) is the only field that a guest program can choose.
    """

    nonce: bytes
    role: Role
    workload: Workload
    key: bytes
    issued_at_s: int
    user_data: bytes = b""

    def encoded(self) -> bytes:
        """The deterministic CBOR encoding. Raises `MalformedError` for sizes that cannot be."""
        return _encode(self)


# Claims are encoded for the leaf and for the envelope, one right after the other.
@functools.lru_cache(maxsize=16)
def _encode(claims: Claims) -> bytes:
    _check_sizes(claims)
    fields: dict[int | str, cbor.Value] = {
        _IAT: claims.issued_at_s,
        _NONCE: claims.nonce,
        _PROFILE: PROFILE,
        _BOOTSEED: claims.workload.boot_id,
        _ROLE: int(claims.role),
        _MODULE: claims.workload.module,
        _RUNTIME: claims.workload.runtime,
        _CONFIGURATION: claims.workload.configuration,
        _KEY: claims.key,
        _USER_DATA: claims.user_data,
    }
    return cbor.encode(fields)


def decode_claims(content: bytes) -> Claims:
    """The claims that `content` encodes. Raises `MalformedError`."""
    fields = cbor.decode(content, "claims")
    if not isinstance(fields, dict) or set(fields) != {
        _IAT,
        _NONCE,
        _PROFILE,
        _BOOTSEED,
        _ROLE,
        _MODULE,
        _RUNTIME,
        _CONFIGURATION,
        _KEY,
        _USER_DATA,
    }:
        raise _malformed("exactly the ten claims of the profile", "others")
    if fields[_PROFILE] != PROFILE:
        raise _malformed(f"the profile {PROFILE}", repr(fields[_PROFILE])[:80])
    issued_at_s = fields[_IAT]
    role = fields[_ROLE]
    if type(issued_at_s) is not int or type(role) is not int:
        raise _malformed("whole numbers as time and role", "others")
    if role not in Role._value2member_map_:
        raise _malformed("a role from 1 to 5", str(role))
    claims = Claims(
        nonce=_bytes(fields[_NONCE]),
        role=Role(role),
        workload=Workload(
            module=_bytes(fields[_MODULE]),
            runtime=_bytes(fields[_RUNTIME]),
            configuration=_bytes(fields[_CONFIGURATION]),
            boot_id=_bytes(fields[_BOOTSEED]),
        ),
        key=_bytes(fields[_KEY]),
        issued_at_s=issued_at_s,
        user_data=_bytes(fields[_USER_DATA]),
    )
    _check_sizes(claims)
    return claims


def _bytes(value: cbor.Value) -> bytes:
    if not isinstance(value, bytes):
        raise _malformed("byte strings", type(value).__name__)
    return value


def _check_sizes(claims: Claims) -> None:
    workload = claims.workload
    sizes = {
        "nonce": (len(claims.nonce), NONCE_BYTES),
        "module digest": (len(workload.module), DIGEST_BYTES),
        "runtime digest": (len(workload.runtime), DIGEST_BYTES),
        "configuration digest": (len(workload.configuration), DIGEST_BYTES),
        "boot id": (len(workload.boot_id), BOOT_ID_BYTES),
        "key digest": (len(claims.key), DIGEST_BYTES if claims.role.has_key else 0),
    }
    for name, (actual, expected) in sizes.items():
        if actual != expected:
            raise _malformed(f"a {name} of {expected} bytes", f"{actual}")
    if len(claims.user_data) > USER_DATA_BYTES_MAX:
        raise _malformed(
            f"user data of at most {USER_DATA_BYTES_MAX} bytes", f"{len(claims.user_data)}"
        )
    if not 0 <= claims.issued_at_s <= _TIME_MAX_S:
        raise _malformed("a time after 1970", f"{claims.issued_at_s}")


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in the claims, got {actual}; fetch the evidence again"
    )
