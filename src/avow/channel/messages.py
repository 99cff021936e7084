"""The frames of the exchange: type (1 byte), length of the body (3 bytes), body.

The body of each type has one length and is filled up with zeros, so that an observer
of the encrypted stream learns nothing from lengths. docs/spec/attested-channel.md, section
"Frames". All numbers are big-endian.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from avow.channel.checks import FRAME, VERSION
from avow.channel.octets import Octets, vector
from avow.errors import (
    AvowError,
    DeniedError,
    MalformedError,
    UnavailableError,
    UntrustedError,
)

PROTOCOL_VERSION: Final = 1
HEADER_BYTES: Final = 4
# The whole frame is 512 bytes or 32 KiB, which the evidence of every platform fits into, Intel's
# collateral included: a second size for large evidence would tell what kind it is.
SMALL_BODY_BYTES: Final = 512 - HEADER_BYTES
LARGE_BODY_BYTES: Final = 32 * 1024 - HEADER_BYTES
SENTENCE_BYTES_MAX: Final = 400

_OFFERS: Final = 0x01
_CHECK_NUMBER = re.compile(r"[A-Z]{1,4}[0-9]{1,3}")
_AGAIN: Final = "connect again, and report it if this persists"


class FrameType(enum.IntEnum):
    """No packet of MQTT that a client may begin with, and no text, starts with one of these."""

    OPEN = 0xA0
    ANSWER = 0xA1
    EVIDENCE = 0xA2
    ACCEPTED = 0xA3
    REFUSED = 0xA4


# The first byte that a client sends decides: an exchange, or MQTT at once.
FIRST_BYTE: Final = int(FrameType.OPEN)

_BODY_BYTES: Final = {
    FrameType.OPEN: SMALL_BODY_BYTES,
    FrameType.ANSWER: LARGE_BODY_BYTES,
    FrameType.EVIDENCE: LARGE_BODY_BYTES,
    FrameType.ACCEPTED: SMALL_BODY_BYTES,
    FrameType.REFUSED: SMALL_BODY_BYTES,
}


class Category(enum.IntEnum):
    """Which branch of the tree of errors a refusal belongs to."""

    MALFORMED = 1
    UNTRUSTED = 2
    DENIED = 3
    UNAVAILABLE = 4


@dataclass(frozen=True, slots=True)
class Open:
    """The client begins. `request` is an authenticator request, empty when it does not ask."""

    offers_evidence: bool
    request: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's authenticator (empty when not asked) and its own request (empty: none)."""

    authenticator: bytes
    request: bytes


@dataclass(frozen=True, slots=True)
class ClientEvidence:
    """The client's authenticator."""

    authenticator: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The sender goes on with MQTT."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The sender closes. `check` is the check's number; `sentence` is printable ASCII."""

    category: Category
    check: str
    sentence: str


Message = Open | Answer | ClientEvidence | Accepted | Refused


def encode(message: Message) -> bytes:
    """The whole frame. Raises `MalformedError` when the content does not fit."""
    match message:
        case Open():
            flags = _OFFERS if message.offers_evidence else 0
            content = bytes([PROTOCOL_VERSION, flags]) + vector(message.request, 3)
            kind = FrameType.OPEN
        case Answer():
            content = vector(message.authenticator, 3) + vector(message.request, 3)
            kind = FrameType.ANSWER
        case ClientEvidence():
            content = vector(message.authenticator, 3)
            kind = FrameType.EVIDENCE
        case Accepted():
            content = b""
            kind = FrameType.ACCEPTED
        case Refused():
            content = (
                bytes([message.category])
                + vector(message.check.encode("ascii"), 1)
                + vector(message.sentence.encode("ascii"), 2)
            )
            kind = FrameType.REFUSED
    length = _BODY_BYTES[kind]
    if len(content) > length:
        raise MalformedError.at(
            FRAME,
            expected=f"at most {length} bytes in {kind.name}",
            actual=f"{len(content)}",
            advice="use evidence with fewer certificates or less collateral",
        )
    return bytes([kind]) + length.to_bytes(3, "big") + content.ljust(length, b"\0")


def frame_bytes(kind: FrameType) -> int:
    """The length of every frame of this type."""
    return HEADER_BYTES + _BODY_BYTES[kind]


def decode_header(header: bytes) -> tuple[FrameType, int]:
    """Type and body length of the frame that starts with these 4 bytes.

    Raises `MalformedError` (check C3) for an unknown type and for a length that the type does not
    have: nothing is ever stored for a length of 64 MiB.
    """
    if len(header) != HEADER_BYTES:
        raise _malformed(f"a header of {HEADER_BYTES} bytes", f"{len(header)}")
    if header[0] not in FrameType._value2member_map_:
        raise _malformed(
            "a message of an attestation exchange", f"the first byte 0x{header[0]:02x}"
        )
    kind = FrameType(header[0])
    length = int.from_bytes(header[1:], "big")
    if length != _BODY_BYTES[kind]:
        raise _malformed(f"{kind.name} with a body of {_BODY_BYTES[kind]} bytes", f"{length}")
    return kind, length


def decode_body(kind: FrameType, body: bytes) -> Message:
    """The message with this body, which has the length that its header said.

    Raises `MalformedError` (check C3), or `UnavailableError` (C5) for another version.
    """
    try:
        return _decode_body(kind, Octets(body, f"message {kind.name}"))
    except MalformedError as error:
        if error.finding is not None:
            raise
        raise _malformed("a well-formed message", str(error)) from error


def _decode_body(kind: FrameType, octets: Octets) -> Message:
    message: Message
    match kind:
        case FrameType.OPEN:
            message = _decode_open(octets)
        case FrameType.ANSWER:
            message = Answer(_content(octets), _content(octets))
        case FrameType.EVIDENCE:
            message = ClientEvidence(_content(octets))
        case FrameType.ACCEPTED:
            message = Accepted()
        case FrameType.REFUSED:
            message = _decode_refused(octets)
    padding = octets.rest()
    if padding != bytes(len(padding)):
        raise _malformed(f"zeros after the content of {kind.name}", "other bytes")
    return message


def _content(octets: Octets) -> bytes:
    return octets.vector(3, 0, LARGE_BODY_BYTES)


def _decode_open(octets: Octets) -> Open:
    version = octets.number(1)
    if version != PROTOCOL_VERSION:
        raise UnavailableError.at(
            VERSION,
            expected=f"version {PROTOCOL_VERSION}",
            actual=f"version {version}",
            advice="use the same release of avow on both sides",
        )
    flags = octets.number(1)
    if flags & ~_OFFERS:
        raise _malformed("no flag but 0x01", f"0x{flags:02x}")
    return Open(bool(flags & _OFFERS), _content(octets))


def _decode_refused(octets: Octets) -> Refused:
    category = octets.number(1)
    if category not in Category._value2member_map_:
        raise _malformed("a category from 1 to 4", f"{category}")
    check = octets.vector(1, 2, 7).decode("latin-1")
    sentence = octets.vector(2, 1, SENTENCE_BYTES_MAX)
    # It goes to a terminal or a log of somebody who does not trust the sender.
    if not _CHECK_NUMBER.fullmatch(check) or not all(0x20 <= byte < 0x7F for byte in sentence):
        raise _malformed("a check's number and a printable sentence", "other bytes")
    return Refused(Category(category), check, sentence.decode("ascii"))


def refusal_of(error: AvowError) -> Refused:
    """What the peer is told about `error`: the check and its title, never a value.

    The values say what a policy accepts, and what somebody in between would have to show.
    """
    category = Category.MALFORMED
    for kind, number in (
        (UntrustedError, Category.UNTRUSTED),
        (DeniedError, Category.DENIED),
        (UnavailableError, Category.UNAVAILABLE),
    ):
        if isinstance(error, kind):
            category = number
    check = FRAME if error.finding is None else error.finding.check
    sentence = check.title.encode("ascii", "replace").decode("ascii")
    return Refused(category, check.number, f"expected that {sentence}"[:SENTENCE_BYTES_MAX])


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError.at(FRAME, expected=expected, actual=actual, advice=_AGAIN)
