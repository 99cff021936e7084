"""The attestation token of Arm CCA.

Arm, Realm Management Monitor specification (DEN0137) 1.0 and 2.0, section A7.2.3, and
draft-ffm-rats-cca-token: a map { 44234: platform token, 44241: realm token }, each a COSE_Sign1
over a CBOR map. From draft 02 on (TF-RMM 0.9.0) the map has tag 907 and each token is
[263, token], a CMW record of the CoAP content format application/eat+cwt; before, it has tag 399
and the tokens themselves. The platform's key (CPAK) signs the platform token, whose nonce is the
hash of the realm's key (RAK), which signs the realm token. avow's payload is the token as it is;
the realm challenge carries the 64 bytes of report data.

The realm's key is a COSE_Key in the profiles with a tag as name, and a point (SEC 1, 2.3.3) in the
one before them (http://arm.com/CCA-SSD/1.0.0). Claims without a meaning here are ignored (RFC
9711), after their form was checked; a realm with assigned devices is refused, since what they are
is in a third token that is not read here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from avow.errors import MalformedError, counted
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
PLATFORM_PROFILE_2: Final = "tag:arm.com,2024:cca_platform#2.0.0"
REALM_PROFILE: Final = "tag:arm.com,2023:realm#1.0.0"
REALM_PROFILE_2: Final = "tag:arm.com,2024:realm#2.0.0"
LEGACY_PROFILE: Final = "http://arm.com/CCA-SSD/1.0.0"
# The profiles of realm tokens by that of the platform token; None is a token without a profile.
PAIRS: Final[Mapping[str, tuple[str | None, ...]]] = {
    LEGACY_PROFILE: (None,),
    PLATFORM_PROFILE: (REALM_PROFILE, REALM_PROFILE_2),
    PLATFORM_PROFILE_2: (REALM_PROFILE_2,),
}

# Both tags in their one encoding.
_TAG_399: Final = b"\xd9\x01\x8f"
_TAG_907: Final = b"\xd9\x03\x8b"
_EAT_CWT: Final = 263
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
# RMM 2.0, A7.2.3.1.8, .9 and .12; the devices' own token in the collection is 44258.
_MEC_POLICY, _LFA_POLICY, _DEVICES_HASH, _DEVICES = 44243, 44244, 44257, 44258
MEC_POLICIES: Final = ("shared", "private")
LFA_POLICIES: Final = ("disallow", "allow")
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
    """What the realm's key signed. `key_hash` is the hash that the platform token has to name.

    `instance_id` (33 bytes) and `mec_policy` are there in profile 2.0.0 only, and `lfa_policy` may
    be missing there too.
    """

    challenge: bytes
    personalization: bytes
    rim: bytes
    rems: tuple[bytes, ...]
    hash_algorithm: str
    key: ec.EllipticCurvePublicKey
    key_hash: bytes
    signed: Sign1
    instance_id: bytes | None = None
    mec_policy: str | None = None
    lfa_policy: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """Both tokens; nothing is verified yet."""

    platform: PlatformToken
    realm: RealmToken


def parse_token(content: bytes) -> Token:
    """The claims of a token. Raises `MalformedError`."""
    tag, rest = content[: len(_TAG_907)], content[len(_TAG_907) :]
    if tag not in (_TAG_399, _TAG_907):
        raise malformed("the tag 907 or 399 (a collection)", "something else")
    collection = cbor.decode_foreign(rest, "CCA token")
    if isinstance(collection, dict) and _DEVICES in collection:
        raise _has_devices()
    if not isinstance(collection, dict) or set(collection) != {_PLATFORM, _REALM}:
        raise malformed("a platform token and a realm token", "something else")
    read = _record if tag == _TAG_907 else _bytes
    platform_token = _platform(read(collection[_PLATFORM]))
    return Token(platform_token, _realm(read(collection[_REALM]), platform_token.profile))


def _record(value: cbor.Value) -> bytes:
    """The token in a CMW record (RFC 9999) of type and value."""
    if not isinstance(value, list) or len(value) != 2 or type(value[0]) is not int:
        raise malformed("each token with its content format", "something else")
    if value[0] != _EAT_CWT:
        raise malformed(f"the content format {_EAT_CWT} (application/eat+cwt)", str(value[0]))
    return _bytes(value[1])


def _bytes(value: cbor.Value) -> bytes:
    if not isinstance(value, bytes):
        raise malformed("byte strings around both tokens", "something else")
    return value


def _has_devices() -> MalformedError:
    return MalformedError(
        "expected the token of a realm without assigned devices, got one with devices "
        "(44257, 44258); detach the devices, or use a release of avow that reads their "
        "token"
    )


def _platform(content: bytes) -> PlatformToken:
    signed, fields = _claims(content, "CCA platform token")
    profile = fields.get(_PROFILE)
    if not isinstance(profile, str) or profile not in PAIRS:
        raise malformed(
            f"the profile {PLATFORM_PROFILE} or {PLATFORM_PROFILE_2}", repr(profile)[:80]
        )
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


def _realm(content: bytes, platform_profile: str) -> RealmToken:
    signed, fields = _claims(content, "CCA realm token")
    profile = fields.get(_PROFILE)
    expected = PAIRS[platform_profile]
    if (_PROFILE in fields) != (None not in expected) or profile not in expected:
        raise malformed(
            " or ".join(f"the profile {each}" if each else "no realm profile" for each in expected),
            repr(profile)[:80],
        )
    second = profile == REALM_PROFILE_2
    if second and _DEVICES_HASH in fields:
        raise _has_devices()
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
        key=_point(signed, encoded) if profile is None else _cose_key(encoded),
        key_hash=HASHES[key_hash_algorithm](encoded).digest(),
        signed=signed,
        instance_id=instance_id(fields, _INSTANCE_ID) if second else None,
        mec_policy=_choice(fields, _MEC_POLICY, MEC_POLICIES) if second else None,
        lfa_policy=_choice(fields, _LFA_POLICY, LFA_POLICIES)
        if second and _LFA_POLICY in fields
        else None,
    )


def _choice(fields: Mapping[int | str, cbor.Value], key: int, names: tuple[str, ...]) -> str:
    """The name of a number that counts from zero."""
    number = fields.get(key)
    if type(number) is not int or not 0 <= number < len(names):
        raise malformed(f"0 to {len(names) - 1} ({', '.join(names)}) as {key}", "none or another")
    return names[number]


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
        raise malformed(
            f"a point on {curve.name} as realm public key", f"{counted(len(content), 'byte')}"
        )
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
