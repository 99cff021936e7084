"""The attestation token of Arm CCA.

Arm, Realm Management Monitor specification (DEN0137) 1.0, section A7.2.3, and
draft-ffm-rats-cca-token: tag 399 around { 44234: platform token, 44241: realm token }, each a
COSE_Sign1 over a CBOR map. The platform's key (CPAK) signs the platform token, whose nonce is the
hash of the realm's key (RAK), which signs the realm token. avow's payload is the token as it is;
the realm challenge carries the 64 bytes of report data.

Two profiles are known: the published one (tag:arm.com,2023:...#1.0.0), whose realm key is a
COSE_Key, and the one before (http://arm.com/CCA-SSD/1.0.0), whose realm key is a point (SEC 1,
2.3.3). Claims without a meaning here are ignored (RFC 9711), after their form was checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from avow.evidence import cbor
from avow.tee.cose import Sign1, parse_sign1
from avow.tee.psa.report import (
    HASH_BYTES,
    IMPLEMENTATION_ID_BYTES,
    Component,
    instance_id,
    lifecycle,
    malformed,
    parts,
    sized,
)

PLATFORM_PROFILE: Final = "tag:arm.com,2023:cca_platform#1.0.0"
REALM_PROFILE: Final = "tag:arm.com,2023:realm#1.0.0"
LEGACY_PROFILE: Final = "http://arm.com/CCA-SSD/1.0.0"

# 399 in its one encoding.
_TAG_399: Final = b"\xd9\x01\x8f"
_PLATFORM, _REALM = 44234, 44241
_NONCE, _INSTANCE_ID, _PROFILE = 10, 256, 265
_LIFECYCLE, _IMPLEMENTATION_ID, _COMPONENTS, _CONFIG, _PLATFORM_HASH = 2395, 2396, 2399, 2401, 2402
_PERSONALIZATION, _REALM_HASH, _KEY, _RIM, _REMS, _KEY_HASH = (
    44235,
    44236,
    44237,
    44238,
    44239,
    44240,
)
_CHALLENGE_BYTES: Final = 64
_REM_COUNT: Final = 4
_CONFIG_BYTES_MAX: Final = 1024
# IANA's Named Information Hash Algorithm Registry.
HASHES: Final = {"sha-256": hashlib.sha256, "sha-384": hashlib.sha384, "sha-512": hashlib.sha512}
# RFC 9053, section 7.1: COSE_Key for elliptic curves with two coordinates.
_KTY, _EC2, _CRV, _X, _Y = 1, 2, -1, -2, -3
_CURVES: Final[Mapping[int, ec.EllipticCurve]] = {
    1: ec.SECP256R1(),
    2: ec.SECP384R1(),
    3: ec.SECP521R1(),
}


@dataclass(frozen=True, slots=True)
class PlatformToken:
    """What the platform's key signed."""

    profile: str
    nonce: bytes
    instance_id: bytes
    implementation_id: bytes
    lifecycle: int
    config: bytes
    components: tuple[Component, ...]
    signed: Sign1


@dataclass(frozen=True, slots=True)
class RealmToken:
    """What the realm's key signed. `key_hash` is the hash that the platform token has to name."""

    challenge: bytes
    personalization: bytes
    rim: bytes
    rems: tuple[bytes, ...]
    hash_algorithm: str
    key: ec.EllipticCurvePublicKey
    key_hash: bytes
    signed: Sign1


@dataclass(frozen=True, slots=True)
class Token:
    """Both tokens; nothing is verified yet."""

    platform: PlatformToken
    realm: RealmToken


def parse_token(content: bytes) -> Token:
    """The claims of a token. Raises `MalformedError`."""
    if content[: len(_TAG_399)] != _TAG_399:
        raise malformed("the tag 399 (a collection)", "something else")
    collection = cbor.decode_foreign(content[len(_TAG_399) :], "CCA token")
    if not isinstance(collection, dict) or set(collection) != {_PLATFORM, _REALM}:
        raise malformed("a platform token and a realm token", "something else")
    platform, realm = collection[_PLATFORM], collection[_REALM]
    if not isinstance(platform, bytes) or not isinstance(realm, bytes):
        raise malformed("byte strings around both tokens", "something else")
    platform_token = _platform(platform)
    return Token(platform_token, _realm(realm, legacy=platform_token.profile == LEGACY_PROFILE))


def _platform(content: bytes) -> PlatformToken:
    signed, fields = _claims(content, "CCA platform token")
    profile = fields.get(_PROFILE)
    if profile not in (PLATFORM_PROFILE, LEGACY_PROFILE) or not isinstance(profile, str):
        raise malformed(f"the profile {PLATFORM_PROFILE}", repr(profile)[:80])
    _hash_name(fields, _PLATFORM_HASH)
    return PlatformToken(
        profile=profile,
        nonce=sized(fields, _NONCE, "platform challenge", HASH_BYTES),
        instance_id=instance_id(fields, _INSTANCE_ID),
        implementation_id=sized(
            fields, _IMPLEMENTATION_ID, "implementation id", (IMPLEMENTATION_ID_BYTES,)
        ),
        lifecycle=lifecycle(fields, _LIFECYCLE),
        config=sized(fields, _CONFIG, "platform configuration", range(_CONFIG_BYTES_MAX + 1)),
        components=parts(fields.get(_COMPONENTS)),
        signed=signed,
    )


def _realm(content: bytes, *, legacy: bool) -> RealmToken:
    signed, fields = _claims(content, "CCA realm token")
    if fields.get(_PROFILE) != (None if legacy else REALM_PROFILE):
        raise malformed(
            "no realm profile" if legacy else f"the profile {REALM_PROFILE}",
            repr(fields.get(_PROFILE))[:80],
        )
    hash_algorithm = _hash_name(fields, _REALM_HASH)
    key_hash_algorithm = _hash_name(fields, _KEY_HASH)
    measured = (HASHES[hash_algorithm]().digest_size,)
    rems = fields.get(_REMS)
    if not isinstance(rems, list) or len(rems) != _REM_COUNT:
        raise malformed(f"{_REM_COUNT} extensible measurements", "others")
    encoded = fields.get(_KEY)
    if not isinstance(encoded, bytes):
        raise malformed("a realm public key", "none")
    return RealmToken(
        challenge=sized(fields, _NONCE, "realm challenge", (_CHALLENGE_BYTES,)),
        personalization=sized(fields, _PERSONALIZATION, "personalization value", (64,)),
        rim=sized(fields, _RIM, "realm initial measurement", measured),
        rems=tuple(sized({0: rem}, 0, "realm extensible measurement", measured) for rem in rems),
        hash_algorithm=hash_algorithm,
        key=_point(signed, encoded) if legacy else _cose_key(encoded),
        key_hash=HASHES[key_hash_algorithm](encoded).digest(),
        signed=signed,
    )


def _claims(content: bytes, what: str) -> tuple[Sign1, dict[int | str, cbor.Value]]:
    signed = parse_sign1(content, what)
    fields = cbor.decode_foreign(signed.payload, what)
    if not isinstance(fields, dict):
        raise malformed("a map of claims", "something else")
    return signed, fields


def _hash_name(fields: Mapping[int | str, cbor.Value], key: int) -> str:
    name = fields.get(key)
    if not isinstance(name, str) or name not in HASHES:
        raise malformed(f"a hash algorithm of {', '.join(HASHES)}", "none or another")
    return name


def _point(signed: Sign1, content: bytes) -> ec.EllipticCurvePublicKey:
    curve = signed.algorithm.curve()
    if len(content) != 2 * signed.algorithm.half_bytes + 1:
        raise malformed(f"a point on {curve.name} as realm public key", f"{len(content)} bytes")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, content)
    except ValueError as error:
        raise malformed(f"a point on {curve.name} as realm public key", "another") from error


def _cose_key(content: bytes) -> ec.EllipticCurvePublicKey:
    fields = cbor.decode_foreign(content, "realm public key")
    if not isinstance(fields, dict) or fields.get(_KTY) != _EC2:
        raise malformed("a COSE_Key with two coordinates as realm public key", "something else")
    number = fields.get(_CRV)
    curve = _CURVES.get(number) if type(number) is int else None
    if curve is None:
        raise malformed("a curve of NIST's for the realm public key", repr(number)[:40])
    size = ((curve.key_size + 7) // 8,)
    x, y = (int.from_bytes(sized(fields, key, "coordinate", size), "big") for key in (_X, _Y))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError as error:
        raise malformed(f"a point on {curve.name} as realm public key", "another") from error
