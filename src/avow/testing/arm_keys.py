"""Arm's devices as far as PSA and CCA tokens need them: keys, tokens, and the kernel's /dev/tee0.

The keys stand for those that a maker provisions and publishes; nothing outside of tests knows them.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.tee.cca.report import (
    LEGACY_PROFILE,
    PLATFORM_PROFILE,
    REALM_PROFILE,
    REALM_PROFILE_2,
)
from avow.tee.cca.verifier import CcaVerifier
from avow.tee.cose import Algorithm
from avow.tee.psa.report import PROFILE_DRAFT, PROFILE_RFC
from avow.tee.psa.verifier import PsaVerifier
from avow.testing.cose_signer import ES256, ES384, sign1

IMPLEMENTATION_ID: Final = hashlib.sha256(b"an implementation of the tests").digest()
MEASUREMENT: Final = hashlib.sha256(b"firmware").digest()
SIGNER_ID: Final = hashlib.sha256(b"the firmware's signer").digest()
BOOT_SEED: Final = bytes(range(32))
SECURED: Final = 0x3000
RIM: Final = hashlib.sha256(b"realm").digest()
REMS: Final = tuple(hashlib.sha256(bytes([index])).digest() for index in range(4))
PERSONALIZATION: Final = bytes(range(64))
REALM_INSTANCE_ID: Final = b"\1" + bytes(range(32))
COMPONENT: Final[dict[Any, Any]] = {1: "BL", 2: MEASUREMENT, 4: "1.2.3", 5: SIGNER_ID, 6: "sha-256"}

# RFC 9783's claims by those of PSA_IOT_PROFILE_1.
_OLD: Final = {
    2394: -75001,
    2395: -75002,
    2396: -75003,
    268: -75004,
    2398: -75005,
    2399: -75006,
    10: -75008,
    256: -75009,
    2400: -75010,
}


@dataclass(frozen=True, slots=True)
class PsaDevice:
    """A device with its IAK; its instance id is made of the public key, as TF-M does it."""

    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False
    )
    algorithm: Algorithm = ES256

    @property
    def instance_id(self) -> bytes:
        """33 bytes."""
        return instance_id(self.key)

    def verifier(self) -> PsaVerifier:
        """A verifier that knows this device and no other."""
        return PsaVerifier({self.instance_id: self.key.public_key()})

    def claims(self, nonce: bytes) -> dict[Any, Any]:
        """The claims of a token of RFC 9783."""
        return {
            265: PROFILE_RFC,
            10: nonce,
            256: self.instance_id,
            2394: -1,
            2395: SECURED,
            2396: IMPLEMENTATION_ID,
            268: BOOT_SEED,
            2398: "0604565272829-10010",
            2399: [COMPONENT],
            2400: "verifier.example",
        }

    def draft_claims(self, nonce: bytes) -> dict[Any, Any]:
        """The claims of the RFC's drafts, which TF-M 1.6 writes: the boot seed is 2397."""
        claims = self.claims(nonce) | {265: PROFILE_DRAFT, 2397: BOOT_SEED}
        del claims[268]
        return claims

    def old_claims(self, nonce: bytes) -> dict[Any, Any]:
        """The claims of PSA_IOT_PROFILE_1."""
        claims = self.claims(nonce)
        del claims[265]
        return {-75000: "PSA_IOT_PROFILE_1"} | {_OLD[key]: claims[key] for key in claims}

    def token(self, claims: object) -> bytes:
        """A token over any claims."""
        return sign1(cbor2.dumps(claims), self.key, self.algorithm)


@dataclass(frozen=True, slots=True)
class CcaPlatform:
    """A platform with its CPAK and a realm's RAK."""

    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1()), repr=False
    )
    realm_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1()), repr=False
    )

    @property
    def instance_id(self) -> bytes:
        """33 bytes."""
        return instance_id(self.key)

    def verifier(self) -> CcaVerifier:
        """A verifier that knows this platform and no other."""
        return CcaVerifier({self.instance_id: self.key.public_key()})

    def platform_claims(self, *, legacy: bool = False) -> dict[Any, Any]:
        """What the platform says."""
        return {
            265: LEGACY_PROFILE if legacy else PLATFORM_PROFILE,
            10: hashlib.sha256(self.encoded_realm_key(legacy=legacy)).digest(),
            2396: IMPLEMENTATION_ID,
            256: self.instance_id,
            2401: b"\1\2\3",
            2395: SECURED,
            2399: [COMPONENT],
            2400: "verifier.example",
            2402: "sha-256",
        }

    def realm_claims(self, challenge: bytes, *, legacy: bool = False) -> dict[Any, Any]:
        """What the realm management monitor says."""
        claims: dict[Any, Any] = {
            10: challenge,
            44235: PERSONALIZATION,
            44236: "sha-256",
            44237: self.encoded_realm_key(legacy=legacy),
            44238: RIM,
            44239: list(REMS),
            44240: "sha-256",
        }
        return claims if legacy else {265: REALM_PROFILE} | claims

    def realm_claims_2(self, challenge: bytes) -> dict[Any, Any]:
        """The same by RMM 2.0, section A7.2.3.1, as TF-RMM writes it: instance id, MEC policy."""
        own = {265: REALM_PROFILE_2, 256: REALM_INSTANCE_ID, 44243: 1}
        return self.realm_claims(challenge) | own

    def encoded_realm_key(self, *, legacy: bool = False) -> bytes:
        """A COSE_Key, or a point in the profile before."""
        public = self.realm_key.public_key()
        if legacy:
            return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return cose_key(public)

    def token(self, platform: object, realm: object) -> bytes:
        """A token over any claims."""
        return collection(
            sign1(cbor2.dumps(platform), self.key, ES384),
            sign1(cbor2.dumps(realm), self.realm_key, ES384),
        )

    def plain_token(self, challenge: bytes, *, legacy: bool = False) -> bytes:
        """A token as a platform writes it."""
        return self.token(
            self.platform_claims(legacy=legacy), self.realm_claims(challenge, legacy=legacy)
        )


def collection(platform: object, realm: object) -> bytes:
    """Both tokens in one, with tag 399."""
    return cbor2.dumps(cbor2.CBORTag(399, {44234: platform, 44241: realm}))


def records(platform: object, realm: object) -> bytes:
    """Both tokens in one as of draft-ffm-rats-cca-token-02: with tag 907, each as CMW record."""
    return cbor2.dumps(cbor2.CBORTag(907, {44234: [263, platform], 44241: [263, realm]}))


def cose_key(public: ec.EllipticCurvePublicKey) -> bytes:
    """RFC 9053, section 7.1.1."""
    numbers, size = public.public_numbers(), (public.curve.key_size + 7) // 8
    curve = {"secp256r1": 1, "secp384r1": 2, "secp521r1": 3}[public.curve.name]
    return cbor2.dumps(
        {1: 2, -1: curve, -2: numbers.x.to_bytes(size, "big"), -3: numbers.y.to_bytes(size, "big")}
    )


def instance_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    """An EAT UEID of the type RAND, from the SHA-256 of the public key."""
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return b"\1" + hashlib.sha256(point).digest()


class TeeDevice:
    """The kernel's side of /dev/tee0 (drivers/tee/tee_core.c) with one trusted application.

    `answer` gets the nonce and gives the token. Give `ioctl` to the attester, with any path that
    opens.
    """

    def __init__(self, application: uuid.UUID, answer: Callable[[bytes], bytes]) -> None:
        self._application = application
        self._answer = answer
        self._shared: dict[int, int] = {}
        self.implementation = 1
        self.result = 0
        self.sessions: list[int] = []
        self.closed: list[int] = []

    def ioctl(self, descriptor: int, request: int, argument: bytearray) -> int:
        """TEE_IOC_VERSION, SHM_ALLOC, OPEN_SESSION, INVOKE and CLOSE_SESSION."""
        calls = {
            0x800CA400: self._version,
            0xC010A401: self._allocate,
            0x8010A402: self._open,
            0x8010A403: self._invoke,
            0x8004A405: self._close,
        }
        if request not in calls:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return calls[request](argument)

    def _version(self, argument: bytearray) -> int:
        struct.pack_into("<3I", argument, 0, self.implementation, 1, 0xD)
        return 0

    def _allocate(self, argument: bytearray) -> int:
        size, flags, _ = struct.unpack("<QIi", argument)
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        descriptor = os.memfd_create("tee-shm")
        os.ftruncate(descriptor, size)
        number = len(self._shared)
        # A reference of its own, as the kernel has one, until the device is dropped.
        self._shared[number] = os.dup(descriptor)
        struct.pack_into("<QIi", argument, 0, size, 0, number)
        return descriptor

    def _open(self, argument: bytearray) -> int:
        address, length = struct.unpack("<QQ", argument)
        name, _, login, _, _, _, _, params = struct.unpack(
            "<16s16s6I", ctypes.string_at(address, length)
        )
        if login or params:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        found = name == self._application.bytes
        self.sessions += [len(self.sessions) + 1] if found else []
        answer = (len(self.sessions), 0, 0) if found else (0, 0xFFFF0008, 3)
        ctypes.memmove(address + 40, struct.pack("<3I", *answer), 12)
        return 0

    def _invoke(self, argument: bytearray) -> int:
        address, length = struct.unpack("<QQ", argument)
        content = ctypes.string_at(address, length)
        function, session, _, _, _, count = struct.unpack_from("<6I", content)
        if count != 4 or length != 24 + 4 * 32 or session not in self.sessions:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        params = [struct.unpack_from("<4Q", content, 24 + 32 * index) for index in range(count)]
        if function or [param[0] for param in params] != [5, 7, 0, 0]:
            ctypes.memmove(address + 12, struct.pack("<2I", 0xFFFF0006, 4), 8)
            return 0
        (_, start, size, number), (_, into, room, other) = params[:2]
        token = self._answer(os.pread(self._shared[number], size, start))
        if len(token) <= room:
            os.pwrite(self._shared[other], token, into)
        result = self.result if len(token) <= room else 0xFFFF0010
        ctypes.memmove(address + 12, struct.pack("<2I", result, 4), 8)
        ctypes.memmove(address + 24 + 32 + 16, struct.pack("<Q", len(token)), 8)
        return 0

    def _close(self, argument: bytearray) -> int:
        self.closed.append(struct.unpack("<I", argument)[0])
        return 0

    def drop(self) -> None:
        """Gives the shared memory back."""
        while self._shared:
            os.close(self._shared.popitem()[1])
