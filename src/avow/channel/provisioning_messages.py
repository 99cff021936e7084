"""The three messages of provisioning: SECRETS from the owner, TAKEN or REFUSED from the node.

A frame is type (1 byte), length of the content (4 bytes, big-endian), content, and zeros up to a
multiple of 4,096 bytes, so that an observer learns little from lengths. The content is one map in
the deterministic encoding of CBOR. docs/spec/provisioning.md.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from avow.channel.messages import Category, refusal_of
from avow.channel.provisioning_checks import MESSAGE
from avow.errors import AvowError, MalformedError, counted, well_formed
from avow.evidence import cbor

VERSION: Final = 1
HEADER_BYTES: Final = 5
BLOCK_BYTES: Final = 4096
SECRETS_BYTES_MAX: Final = 1024 * 1024
ANSWER_BYTES_MAX: Final = 16 * 1024

KEYS_MAX: Final = 8
KEY_BYTES: Final = 32
FILES_MAX: Final = 64
FILE_BYTES_MAX: Final = 512 * 1024
SENTENCE_BYTES_MAX: Final = 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHECK_NUMBER = re.compile(r"([A-Z]{1,4}[0-9]{1,3})?")
_VERSION, _KEYS, _FILES = 1, 2, 3
_CATEGORY, _CHECK, _SENTENCE = 2, 3, 4
_AGAIN: Final = "provision again, with the same release of avow on both sides"


class FrameType(enum.IntEnum):
    """None of these begins an exchange, a packet of MQTT or a text."""

    SECRETS = 0xB0
    TAKEN = 0xB1
    REFUSED = 0xB2


_CONTENT_BYTES_MAX: Final = {
    FrameType.SECRETS: SECRETS_BYTES_MAX,
    FrameType.TAKEN: ANSWER_BYTES_MAX,
    FrameType.REFUSED: ANSWER_BYTES_MAX,
}


@dataclass(frozen=True, slots=True)
class Secrets:
    """What an owner hands over: up to 8 keys of 32 bytes and up to 64 files of up to 512 KiB, by
    names of 1 to 64 letters, digits, dots, underscores and hyphens."""

    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """The names of what the node has taken, sorted."""

    keys: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotTaken:
    """Why the node has taken nothing. `check` may be empty; `sentence` is for the owner."""

    category: Category
    check: str
    sentence: str


Message = Secrets | Taken | NotTaken


def check_name(name: str) -> None:
    """Raises `MalformedError` for what is no name of a secret."""
    if not _NAME.fullmatch(name):
        raise _malformed(
            "names of 1 to 64 letters, digits, dots, underscores and hyphens", repr(name[:80])
        )


def encode(message: Message) -> bytes:
    """The whole frame. Raises `MalformedError` for what does not fit."""
    content: dict[int | str, cbor.Value] = {_VERSION: VERSION}
    match message:
        case Secrets():
            _check_secrets(message.keys, message.files)
            kind = FrameType.SECRETS
            content |= {_KEYS: _map(message.keys), _FILES: _map(message.files)}
        case Taken():
            kind = FrameType.TAKEN
            content |= {_KEYS: [*message.keys], _FILES: [*message.files]}
        case NotTaken():
            kind = FrameType.REFUSED
            content |= {
                _CATEGORY: int(message.category),
                _CHECK: message.check,
                _SENTENCE: message.sentence,
            }
    encoded = cbor.encode(content)
    if len(encoded) > _CONTENT_BYTES_MAX[kind]:
        raise _malformed(f"at most {_CONTENT_BYTES_MAX[kind]} bytes", f"{len(encoded)}")
    frame = bytes([kind]) + len(encoded).to_bytes(4, "big") + encoded
    return frame + bytes(-len(frame) % BLOCK_BYTES)


def decode_header(header: bytes, expected: tuple[FrameType, ...]) -> tuple[FrameType, int]:
    """Type and length of the content of the frame that begins with these 5 bytes.

    Raises `MalformedError` for another type than `expected` and a length that it cannot have.
    """
    if header[0] not in expected:
        raise _malformed(
            " or ".join(each.name for each in expected), f"a frame of type 0x{header[0]:02x}"
        )
    kind, length = FrameType(header[0]), int.from_bytes(header[1:HEADER_BYTES], "big")
    if not 0 < length <= _CONTENT_BYTES_MAX[kind]:
        raise _malformed(f"1 to {_CONTENT_BYTES_MAX[kind]} bytes", f"{length}")
    return kind, length


def frame_bytes(length: int) -> int:
    """How long the frame is whose content has `length` bytes."""
    return -(-(HEADER_BYTES + length) // BLOCK_BYTES) * BLOCK_BYTES


def decode(frame: bytes, expected: tuple[FrameType, ...]) -> Message:
    """The message in a whole frame. Raises `MalformedError` (PR1); no error holds a secret."""
    if len(frame) < HEADER_BYTES:
        raise _malformed("a whole frame", f"{counted(len(frame), 'byte')}")
    kind, length = decode_header(frame[:HEADER_BYTES], expected)
    if len(frame) != frame_bytes(length):
        raise _malformed(f"a frame of {frame_bytes(length)} bytes", f"{len(frame)}")
    if any(frame[HEADER_BYTES + length :]):
        raise _malformed("zeros after the content", "other bytes")
    with well_formed(MESSAGE, "message", advice=_AGAIN):
        content = cbor.decode(frame[HEADER_BYTES : HEADER_BYTES + length], "message")
    wanted = {_VERSION, _KEYS, _FILES}
    if kind is FrameType.REFUSED:
        wanted = {_VERSION, _CATEGORY, _CHECK, _SENTENCE}
    if not isinstance(content, dict) or set(content) != wanted:
        raise _malformed(f"a map with the keys {sorted(wanted)}", "another")
    if type(content[_VERSION]) is not int or content[_VERSION] != VERSION:
        raise _malformed(f"version {VERSION}", "another")
    if kind is FrameType.SECRETS:
        keys, files = _bytes_by_name(content[_KEYS]), _bytes_by_name(content[_FILES])
        _check_secrets(keys, files)
        return Secrets(keys, files)
    if kind is FrameType.TAKEN:
        return Taken(_names(content[_KEYS]), _names(content[_FILES]))
    return _not_taken(content[_CATEGORY], content[_CHECK], content[_SENTENCE])


def not_taken_of(error: AvowError) -> NotTaken:
    """What the owner is told of an error: the sentence too, as the owner may know everything."""
    refusal = refusal_of(error)
    sentence = "".join(each if each.isprintable() else " " for each in str(error))
    check = "" if error.finding is None else error.finding.check.number
    shortened = sentence.encode()[:SENTENCE_BYTES_MAX].decode(errors="ignore")
    return NotTaken(refusal.category, check, shortened or "no reason")


def _not_taken(category: cbor.Value, check: cbor.Value, sentence: cbor.Value) -> NotTaken:
    if type(category) is not int or category not in Category._value2member_map_:
        raise _malformed("a category from 1 to 4", "another")
    if not isinstance(check, str) or not _CHECK_NUMBER.fullmatch(check):
        raise _malformed("the number of a check", "something else")
    if (
        not isinstance(sentence, str)
        or not sentence.isprintable()
        or not 0 < len(sentence.encode()) <= SENTENCE_BYTES_MAX
    ):
        raise _malformed(f"a printable sentence of 1 to {SENTENCE_BYTES_MAX} bytes", "another")
    return NotTaken(Category(category), check, sentence)


def _check_secrets(keys: Mapping[str, bytes], files: Mapping[str, bytes]) -> None:
    if not keys and not files:
        raise _malformed("at least one key or file", "none")
    if len(keys) > KEYS_MAX or len(files) > FILES_MAX:
        raise _malformed(
            f"at most {KEYS_MAX} keys and {FILES_MAX} files", f"{len(keys)} and {len(files)}"
        )
    for name in (*keys, *files):
        check_name(name)
    for name, key in keys.items():
        if len(key) != KEY_BYTES:
            raise _malformed(f"{KEY_BYTES} bytes for the key {name}", f"{len(key)}")
    for name, file in files.items():
        if len(file) > FILE_BYTES_MAX:
            raise _malformed(f"at most {FILE_BYTES_MAX} bytes for {name}", f"{len(file)}")


def _map(content: Mapping[str, bytes]) -> cbor.Value:
    return dict(content.items())


def _bytes_by_name(value: cbor.Value) -> dict[str, bytes]:
    if not isinstance(value, dict):
        raise _malformed("a map of names", type(value).__name__)
    found: dict[str, bytes] = {}
    for name, content in value.items():
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise _malformed("names with byte strings", "another type")
        found[name] = content
    return found


def _names(value: cbor.Value) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _malformed("a list of names", type(value).__name__)
    names: list[str] = []
    for name in value:
        if not isinstance(name, str):
            raise _malformed("names", type(name).__name__)
        check_name(name)
        names.append(name)
    if names != sorted(set(names)):
        raise _malformed("names in order, each once", "others")
    return tuple(names)


def _malformed(expected: str, actual: str) -> MalformedError:
    return MalformedError.at(MESSAGE, expected=expected, actual=actual, advice=_AGAIN)
