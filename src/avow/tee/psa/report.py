"""The PSA attestation token.

RFC 9783 (profile tag:psacertified.org,2023:psa#tfm, and http://arm.com/psa/2.0.0 of its drafts,
which TF-M 1.6 writes), sections 4 and 5, and draft-tschofenig-rats-psa-token-00 (PSA_IOT_PROFILE_1)
with other numbers for the claims. avow's payload is the token as it is: a COSE_Sign1 over a CBOR
map. The nonce carries the 64 bytes of report data. Claims without a meaning here are ignored
(RFC 9711), after their form was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from avow.errors import MalformedError
from avow.evidence import cbor
from avow.tee.cose import Sign1, parse_sign1

HASH_BYTES: Final = (32, 48, 64)
IMPLEMENTATION_ID_BYTES: Final = 32
INSTANCE_ID_BYTES: Final = 33
_UEID_RAND: Final = 1
_COMPONENTS_MAX: Final = 64
_CLIENT_ID_MAX: Final = 2**31
PROFILE_1: Final = "PSA_IOT_PROFILE_1"
PROFILE_DRAFT: Final = "http://arm.com/psa/2.0.0"
PROFILE_RFC: Final = "tag:psacertified.org,2023:psa#tfm"
# RFC 9783, section 4.3.1: the states are ranges of 256 values, at every 0x1000.
_STATES: Final = 7
_SECURED: Final = 3


@dataclass(frozen=True, slots=True)
class _Keys:
    """The numbers of the claims in a profile; `none` is the claim that there are no components."""

    profile: int
    client_id: int
    lifecycle: int
    implementation_id: int
    boot_seed: int
    components: int
    nonce: int
    instance_id: int
    none: int | None


_KEYS_1: Final = _Keys(-75000, -75001, -75002, -75003, -75004, -75006, -75008, -75009, -75007)
# RFC 9783, section 4.3.2: the boot seed is EAT's (268); the drafts had one of their own.
_KEYS_RFC: Final = _Keys(265, 2394, 2395, 2396, 268, 2399, 10, 256, None)
_KEYS_DRAFT: Final = replace(_KEYS_RFC, boot_seed=2397)
_KEYS_2: Final = {PROFILE_DRAFT: _KEYS_DRAFT, PROFILE_RFC: _KEYS_RFC}


@dataclass(frozen=True, slots=True)
class Component:
    """One measured software component (RFC 9783, section 4.4.1)."""

    kind: str
    measurement: bytes
    signer_id: bytes
    version: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.measurement.hex()}:{self.signer_id.hex()}"


@dataclass(frozen=True, slots=True)
class Token:
    """A token's claims; nothing is verified yet. `boot_seed` is empty where it is absent."""

    profile: str
    nonce: bytes
    instance_id: bytes
    implementation_id: bytes
    client_id: int
    lifecycle: int
    boot_seed: bytes
    components: tuple[Component, ...]
    signed: Sign1


def is_secured(lifecycle: int) -> bool:
    """The one state in which nobody can debug (RFC 9783, section 4.3.1)."""
    return lifecycle >> 8 == _SECURED << 4


def parse_token(content: bytes) -> Token:
    """The claims of a token. Raises `MalformedError`."""
    signed = parse_sign1(content, "PSA token")
    fields = cbor.decode_foreign(signed.payload, "PSA token")
    if not isinstance(fields, dict):
        raise malformed("a map of claims", "something else")
    profile, keys = _profile(fields)
    client_id = fields.get(keys.client_id)
    if type(client_id) is not int or not -_CLIENT_ID_MAX <= client_id < _CLIENT_ID_MAX:
        raise malformed("a client id of 32 bits", "something else")
    components = fields.get(keys.components)
    if keys.none is not None and (components is None) != _says_none(fields.get(keys.none)):
        raise malformed("software components, or the claim that there are none", "neither or both")
    return Token(
        profile=profile,
        nonce=sized(fields, keys.nonce, "nonce", HASH_BYTES),
        instance_id=instance_id(fields, keys.instance_id),
        implementation_id=sized(
            fields, keys.implementation_id, "implementation id", (IMPLEMENTATION_ID_BYTES,)
        ),
        client_id=client_id,
        lifecycle=lifecycle(fields, keys.lifecycle),
        boot_seed=_boot_seed(fields, keys),
        components=() if keys.none is not None and components is None else parts(components),
        signed=signed,
    )


def _profile(fields: Mapping[int | str, cbor.Value]) -> tuple[str, _Keys]:
    if _KEYS_RFC.profile in fields:
        profile = fields[_KEYS_RFC.profile]
        if isinstance(profile, str) and profile in _KEYS_2:
            return profile, _KEYS_2[profile]
        raise malformed(f"the profile {PROFILE_RFC} or {PROFILE_DRAFT}", repr(profile)[:80])
    # The old profile may leave its name out.
    profile = fields.get(_KEYS_1.profile, PROFILE_1)
    if profile != PROFILE_1:
        raise malformed(f"the profile {PROFILE_1}", repr(profile)[:80])
    return PROFILE_1, _KEYS_1


def _says_none(value: cbor.Value) -> bool:
    return type(value) is int and value == 1


def _boot_seed(fields: Mapping[int | str, cbor.Value], keys: _Keys) -> bytes:
    if keys is _KEYS_1:
        return sized(fields, keys.boot_seed, "boot seed", (32,))
    if keys.boot_seed not in fields:
        return b""
    return sized(fields, keys.boot_seed, "boot seed", range(8, 33))


def sized(
    fields: Mapping[int | str, cbor.Value], key: int, name: str, sizes: tuple[int, ...] | range
) -> bytes:
    """The bytes of a claim, which has to be there and to have one of `sizes`."""
    value = fields.get(key)
    if not isinstance(value, bytes) or len(value) not in sizes:
        lengths = (
            f"{sizes[0]} to {sizes[-1]}"
            if isinstance(sizes, range)
            else " or ".join(map(str, sizes))
        )
        raise malformed(f"a {name} of {lengths} bytes", "none or another")
    return value


def instance_id(fields: Mapping[int | str, cbor.Value], key: int) -> bytes:
    """An EAT UEID of the type RAND (RFC 9783, section 4.2.1)."""
    value = sized(fields, key, "instance id", (INSTANCE_ID_BYTES,))
    if value[0] != _UEID_RAND:
        raise malformed(f"an instance id that begins with {_UEID_RAND}", f"{value[0]}")
    return value


def lifecycle(fields: Mapping[int | str, cbor.Value], key: int) -> int:
    """A value in one of the ranges that have a name."""
    value = fields.get(key)
    if type(value) is not int or not 0 <= value >> 12 < _STATES or value & 0xF00:
        raise malformed("a security lifecycle that has a name", repr(value)[:40])
    return value


def parts(value: cbor.Value) -> tuple[Component, ...]:
    """The software components; there is at least one."""
    if not isinstance(value, list) or not 0 < len(value) <= _COMPONENTS_MAX:
        raise malformed(f"1 to {_COMPONENTS_MAX} software components", "something else")
    components: list[Component] = []
    for fields in value:
        if not isinstance(fields, dict):
            raise malformed("software components that are maps", "something else")
        components.append(
            Component(
                kind=_text(fields, 1),
                measurement=sized(fields, 2, "measurement", HASH_BYTES),
                signer_id=sized(fields, 5, "signer id", HASH_BYTES),
                version=_text(fields, 4),
            )
        )
    return tuple(components)


def _text(fields: Mapping[int | str, cbor.Value], key: int) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str) or len(value) > 64 or not value.isprintable() or ":" in value:
        raise malformed("printable texts without colon in software components", "others")
    return value


def malformed(expected: str, actual: str) -> MalformedError:
    """The error of this form and of CCA's."""
    return MalformedError(f"expected {expected} in the token, got {actual}; ask again")
