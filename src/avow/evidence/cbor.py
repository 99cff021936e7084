"""CBOR as avow writes it: the deterministic encoding of RFC 8949, section 4.2.1.

One value has one encoding, so that a digest over it means something. What a decoder is lenient
about (another order of keys, a longer form of a number, an indefinite length, a duplicate key, a
tag, bytes after the end) is an error here: such bytes were not written by avow. What vendors sign
inside their tokens is read by `decode_foreign`, which leaves them their order of keys and their
form of lengths: signatures are over the bytes, and AWS writes maps of indefinite length (RFC 8949,
section 3.2.1).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, NoReturn

import cbor2

from avow.errors import MalformedError, counted

Value = int | bytes | str | bool | None | list["Value"] | dict["int | str", "Value"]

_DEPTH_MAX = 16
# Tags that cbor2 would turn into objects of its own: dates, big numbers, fractions, regular
# expressions, MIME messages, addresses, shared and referenced values, sets.
_BUILT_IN_TAGS = (
    *range(6),
    *(25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799),
)


def encode(value: Value) -> bytes:
    """The one encoding of `value`."""
    return cbor2.dumps(value, canonical=True)


def decode(content: bytes, what: str) -> Value:
    """The value that `content` is the one encoding of; `what` names it in the error.

    Raises `MalformedError` for everything else.
    """
    try:
        value: Any = cbor2.loads(
            content,
            tag_hook=_refuse_tag,
            semantic_decoders=_REFUSED,
            max_depth=_DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
        if not _plain(value) or cbor2.dumps(value, canonical=True) != content:
            raise _malformed(what, "another encoding or type")
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise _malformed(what, "bytes that are none") from error
    return value  # type: ignore[no-any-return]


def decode_foreign(content: bytes, what: str) -> Value:
    """The value in CBOR that somebody else wrote, in whatever order of keys; `what` names it.

    Only values that `Value` has, without tags, duplicate keys or bytes after the end. Raises
    `MalformedError` for everything else, and says what it was.
    """
    stream = BytesIO(content)
    try:
        value: Any = cbor2.CBORDecoder(
            stream,
            tag_hook=_refuse_tag,
            semantic_decoders=_REFUSED,
            max_depth=_DEPTH_MAX,
            allow_indefinite=True,
            allow_duplicate_keys=False,
        ).decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise _foreign(what, f"other bytes ({error})") from error
    if stream.tell() != len(content):
        raise _foreign(what, f"{counted(len(content) - stream.tell(), 'byte')} after its end")
    if not _plain(value):
        raise _foreign(what, "a type that has no place in it")
    return value  # type: ignore[no-any-return]


def _refuse_tag(*_: object) -> NoReturn:
    raise ValueError("a tag")


_REFUSED: Any = dict.fromkeys(_BUILT_IN_TAGS, _refuse_tag)


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) in (int, str) and _plain(each) for key, each in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or type(value) in (int, bytes, str, bool)


def _malformed(what: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected the {what} in deterministic CBOR (RFC 8949, section 4.2.1), got {actual}; "
        f"fetch it again from where it was made"
    )


def _foreign(what: str, actual: str) -> MalformedError:
    return MalformedError(
        f"expected the {what} in CBOR (RFC 8949) without tags or duplicate keys, got {actual}; "
        f"fetch it again from where it was made"
    )
