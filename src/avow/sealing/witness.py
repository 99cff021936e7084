"""The witness protocol: bytes in, bytes out (docs/spec/freshness.md, "Witness").

A witness is another machine's memory of stores: of each, the sequence, the anchor and the root hash
of the newest commit that it was told of. Requests are signed by the store, answers by the witness.
All messages have one length; all numbers are little-endian.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import struct
from dataclasses import dataclass, replace
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from avow.errors import MalformedError, UntrustedError

PUBLIC_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 32
CHALLENGE_BYTES: Final = 32
STORE_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32
_MAGIC: Final = b"AVOWWITN"
_VERSION: Final = 1
_SIGNATURE_BYTES: Final = 64
# magic, version, zero, challenge.
_GREETING: Final = struct.Struct("<8s I I 32s")
# kind, number, nonce, store key, store id, expected digest, sequence, anchor, digest, branch.
_REQUEST: Final = struct.Struct("<I I 32s 32s 16s 32s Q Q 32s 32s")
# status, number, nonce, store key, store id, sequence, anchor, digest, branch, acceptances.
_ANSWER: Final = struct.Struct("<I I 32s 32s 16s Q Q 32s 32s Q")
GREETING_BYTES: Final = _GREETING.size
REQUEST_BYTES: Final = _REQUEST.size + _SIGNATURE_BYTES
ANSWER_BYTES: Final = _ANSWER.size + _SIGNATURE_BYTES
_REQUEST_LABEL: Final = b"avow witness request v1"
_ANSWER_LABEL: Final = b"avow witness answer v1"
_KEY_LABEL: Final = b"avow witness store key v1"
NOTHING: Final = bytes(DIGEST_BYTES)


class Kind(enum.IntEnum):
    """What a store asks for."""

    READ = 1
    ADVANCE = 2
    ACCEPT = 3


class Status(enum.IntEnum):
    """How it went. Whatever it is, the answer holds what is remembered now."""

    DONE = 0
    UNKNOWN = 1
    CONFLICT = 2
    STALE = 3
    FULL = 4


@dataclass(frozen=True, slots=True)
class State:
    """One commit of a store: its number, its anchor value, its root hash and its branch (32 bytes
    each)."""

    sequence: int
    anchor: int
    digest: bytes
    branch: bytes


_NO_STATE: Final = State(0, 0, NOTHING, NOTHING)


@dataclass(frozen=True, slots=True)
class StoreName:
    """Who a store is for a witness: its public key (32 bytes), which alone counts, and its id (16
    bytes), by which people find it."""

    key: bytes
    store_id: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """`expected` is the root hash that the store takes to be the one remembered, 32 zero bytes for
    none; for READ that and `state` are zeros. `number` counts the requests of a connection, from 1.
    """

    kind: Kind
    number: int
    nonce: bytes
    store: StoreName
    expected: bytes = NOTHING
    state: State = _NO_STATE

    def encoded(self) -> bytes:
        """The request without its signature."""
        return _REQUEST.pack(
            self.kind,
            self.number,
            self.nonce,
            self.store.key,
            self.store.store_id,
            self.expected,
            self.state.sequence,
            self.state.anchor,
            self.state.digest,
            self.state.branch,
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What a witness remembers of one store; `acceptances` counts how often its owner accepted an
    older state."""

    state: State
    acceptances: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """`record` is what is remembered after the request, None for nothing."""

    status: Status
    record: Record | None


def store_key(secret: bytes, store_id: bytes) -> Ed25519PrivateKey:
    """The key that a store signs with; `secret` (32 bytes) lies inside of the store."""
    derived = HKDF(hashes.SHA256(), 32, salt=store_id, info=_KEY_LABEL).derive(secret)
    return Ed25519PrivateKey.from_private_bytes(derived)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The public key (32 bytes)."""
    return key.public_key().public_bytes_raw()


def parse_public_key(text: str) -> bytes:
    """The witness's public key (32 bytes) from the Base64 that `avow witness` prints.

    Raises `MalformedError`.
    """
    try:
        key = base64.b64decode(text, validate=True)
        Ed25519PublicKey.from_public_bytes(key)
    except (binascii.Error, ValueError) as error:
        raise _bad_key(text) from error
    if public_key_text(key) != text:
        raise _bad_key(text)
    return key


def public_key_text(key: bytes) -> str:
    """A public key as people pass it on: Base64, 44 characters."""
    return base64.b64encode(key).decode("ascii")


def encode_greeting(challenge: bytes) -> bytes:
    """What a witness sends first; `challenge` are 32 fresh random bytes."""
    return _GREETING.pack(_MAGIC, _VERSION, 0, challenge)


def decode_greeting(content: bytes) -> bytes:
    """The challenge (32 bytes). Raises `MalformedError`."""
    if len(content) == GREETING_BYTES:
        magic, version, zero, challenge = _GREETING.unpack(content)
        if (magic, version, zero) == (_MAGIC, _VERSION, 0):
            return bytes(challenge)
    raise MalformedError(
        f"expected the greeting of a witness ({GREETING_BYTES} bytes, version {_VERSION}), "
        "got something else; check that `avow witness` listens at that address, and is of "
        "the same version"
    )


def sign_request(
    request: Request, key: Ed25519PrivateKey, challenge: bytes, witness: bytes
) -> bytes:
    """The request as it is sent, for the connection with `challenge` to the witness with the public
    key `witness`."""
    content = request.encoded()
    return content + key.sign(_REQUEST_LABEL + witness + challenge + content)


def open_request(content: bytes, challenge: bytes, witness: bytes, number: int) -> Request:
    """The request that `content` is, as the `number`th of the connection.

    Raises `MalformedError`, and `UntrustedError` where its store did not sign it for here and now.
    """
    if len(content) != REQUEST_BYTES:
        raise _malformed_request(f"{REQUEST_BYTES} bytes", f"{len(content)}")
    unsigned, signature = content[: _REQUEST.size], content[_REQUEST.size :]
    kind, counted, nonce, key, store_id, expected, *state = _REQUEST.unpack(unsigned)
    if kind not in set(Kind):
        raise _malformed_request("a kind from 1 to 3", f"{kind}")
    request = Request(Kind(kind), counted, nonce, StoreName(key, store_id), expected, State(*state))
    reads = request.kind is Kind.READ
    if reads and (expected, request.state) != (NOTHING, _NO_STATE):
        raise _malformed_request("nothing but zeros in a reading", "something else")
    if not reads and (0 in {request.state.sequence, request.state.anchor}):
        raise _malformed_request("a sequence and an anchor above 0", "0")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(
            signature, _REQUEST_LABEL + witness + challenge + unsigned
        )
    except (InvalidSignature, ValueError) as error:
        raise UntrustedError(
            "expected a request that its store signed for this connection and this "
            "witness's key, got another signature; check whether the store's --anchor "
            "names another key, or whether something else connects here"
        ) from error
    if counted != number:
        raise UntrustedError(
            f"expected request {number} of this connection, got {counted}; somebody repeats "
            "or drops requests"
        )
    return request


def decide(record: Record | None, request: Request) -> Answer:
    """What a witness that remembers `record` of the request's store does. A record other than the
    one given has to be durable before the answer leaves.
    """
    if request.kind is Kind.READ:
        return Answer(Status.UNKNOWN if record is None else Status.DONE, record)
    known = NOTHING if record is None else record.state.digest
    if record is not None and record.state == request.state:
        # Asked again after the answer was lost.
        return Answer(Status.DONE, record)
    if not hmac.compare_digest(known, request.expected):
        return Answer(Status.UNKNOWN if record is None else Status.CONFLICT, record)
    if record is None:
        return Answer(Status.DONE, Record(request.state))
    if request.kind is Kind.ACCEPT:
        changed = replace(record, state=request.state, acceptances=record.acceptances + 1)
        return Answer(Status.DONE, changed)
    new, old = request.state, record.state
    if new.sequence <= old.sequence or new.anchor < old.anchor:
        return Answer(Status.STALE, record)
    return Answer(Status.DONE, replace(record, state=new))


def sign_answer(
    answer: Answer, request: Request, key: Ed25519PrivateKey, challenge: bytes
) -> bytes:
    """The answer to `request` as it is sent."""
    record = answer.record or Record(_NO_STATE)
    content = _ANSWER.pack(
        answer.status,
        request.number,
        request.nonce,
        request.store.key,
        request.store.store_id,
        record.state.sequence,
        record.state.anchor,
        record.state.digest,
        record.state.branch,
        record.acceptances,
    )
    return content + key.sign(_signed_answer(content, request, challenge))


def open_answer(content: bytes, request: Request, witness: bytes, challenge: bytes) -> Answer:
    """The answer of the witness with the public key `witness` to exactly this request.

    Raises `MalformedError` and `UntrustedError`.
    """
    if len(content) != ANSWER_BYTES:
        raise _malformed_answer(f"{ANSWER_BYTES} bytes", f"{len(content)}")
    unsigned, signature = content[: _ANSWER.size], content[_ANSWER.size :]
    try:
        Ed25519PublicKey.from_public_bytes(witness).verify(
            signature, _signed_answer(unsigned, request, challenge)
        )
    except InvalidSignature as error:
        raise UntrustedError(
            "expected an answer to this request signed by the witness "
            f"{public_key_text(witness)}, got another signature; somebody else answers, or "
            "repeats an old answer: check who is at that address, and which key `avow "
            "witness` prints there"
        ) from error
    status, number, nonce, key, store_id, *remembered, acceptances = _ANSWER.unpack(unsigned)
    asked = (request.number, request.nonce, request.store.key, request.store.store_id)
    if (number, nonce, key, store_id) != asked or status not in set(Status):
        raise _malformed_answer("one for this request", "one for another")
    state = State(*remembered)
    if status == Status.UNKNOWN or (state == _NO_STATE and status == Status.FULL):
        if state != _NO_STATE or acceptances:
            raise _malformed_answer("nothing of an unknown store", "something")
        return Answer(Status(status), None)
    if 0 in {state.sequence, state.anchor}:
        raise _malformed_answer("a sequence and an anchor above 0", "0")
    return Answer(Status(status), Record(state, acceptances))


def _signed_answer(content: bytes, request: Request, challenge: bytes) -> bytes:
    """An answer stands for its request, all of it, on its connection."""
    return _ANSWER_LABEL + challenge + hashlib.sha256(request.encoded()).digest() + content


def _malformed_request(expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in a request to the witness, got {actual}; use this version "
        "of avow on the store's machine"
    )


def _malformed_answer(expected: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected {expected} in the witness's answer, got {actual}; use this version of "
        "avow for the witness"
    )


def _bad_key(text: str) -> MalformedError:
    return MalformedError(
        f"expected the Base64 of a witness's public key (44 characters), got {text[:60]!r}; "
        f"`avow witness` prints it"
    )
