"""The messages of provisioning, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.channel.messages import Category
from avow.channel.provisioning_checks import CHECKS, KEYS
from avow.channel.provisioning_messages import (
    ANSWER_BYTES_MAX,
    BLOCK_BYTES,
    FILE_BYTES_MAX,
    HEADER_BYTES,
    SECRETS_BYTES_MAX,
    FrameType,
    Message,
    NotTaken,
    Secrets,
    Taken,
    decode,
    decode_header,
    encode,
    frame_bytes,
    not_taken_of,
)
from avow.errors import DeniedError, MalformedError
from avow.evidence import cbor

ALL = tuple(FrameType)
SPEC = Path(__file__).parents[3] / "docs/spec/provisioning.md"
KEY = bytes(range(32))
SECRETS = Secrets({"store": KEY}, {"tls.crt": b"certificate", "users": b""})
MESSAGES: list[Message] = [
    SECRETS,
    Secrets({}, {"a": bytes(FILE_BYTES_MAX)}),
    Taken(("store",), ("tls.crt", "users")),
    NotTaken(Category.DENIED, "PR3", "expected the first key, got another"),
    NotTaken(Category.MALFORMED, "", "no"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_comes_back_and_fills_blocks(message: Message) -> None:
    frame = encode(message)
    assert len(frame) % BLOCK_BYTES == 0
    assert decode(frame, ALL) == message


def test_the_bytes_of_a_message() -> None:
    """As docs/spec/provisioning.md has them."""
    frame = encode(Secrets({"k": KEY}, {"f": b"\x01\x02"}))
    content = bytes.fromhex("a3 0101 02 a1 616b 5820") + KEY + bytes.fromhex("03 a1 6166 42 0102")
    assert frame == (b"\xb0" + len(content).to_bytes(4, "big") + content).ljust(4096, b"\0")
    example = [frame[:1], frame[1:5], content[:1], content[1:2], content[2:3]]
    assert (
        " ".join(SPEC.read_text().partition("For example")[2].split()).find(
            " ".join(part.hex() for part in example)
        )
        > 0
    )


def test_the_specification_has_every_check_and_bound() -> None:
    text = SPEC.read_text()
    for check in CHECKS:
        assert f"| {check.number} | {check.title} |" in text
    for number in (SECRETS_BYTES_MAX, ANSWER_BYTES_MAX, FILE_BYTES_MAX, BLOCK_BYTES):
        assert f"{number:,}" in text
    for kind in FrameType:
        assert f"| 0x{kind:02X} | {kind.name} |" in text


@pytest.mark.parametrize("message", [*MESSAGES[:1], *MESSAGES[2:]])
def test_every_byte_counts(message: Message) -> None:
    """No byte can be changed without an error or another message, the padding neither."""
    frame = encode(message)
    length = HEADER_BYTES + int.from_bytes(frame[1:5], "big")
    for place in [*range(length + 3), len(frame) - 1]:
        changed = bytearray(frame)
        changed[place] ^= 0x01
        try:
            found = decode(bytes(changed), ALL)
        except MalformedError:
            continue
        assert found != message


@pytest.mark.parametrize("message", MESSAGES[2:])
def test_cut_and_prolonged_messages(message: Message) -> None:
    frame = encode(message)
    for wrong in (frame[:-1], frame + b"\0", frame + bytes(BLOCK_BYTES), frame[:4], b""):
        with pytest.raises(MalformedError):
            decode(wrong, ALL)


def test_a_message_has_its_place() -> None:
    with pytest.raises(MalformedError, match="TAKEN or REFUSED"):
        decode(encode(SECRETS), (FrameType.TAKEN, FrameType.REFUSED))


@pytest.mark.parametrize("length", [0, 2**20 + 1, 2**32 - 1])
def test_a_length_that_cannot_be_is_refused_at_the_header(length: int) -> None:
    with pytest.raises(MalformedError):
        decode_header(b"\xb0" + length.to_bytes(4, "big"), ALL)


def framed(kind: FrameType, content: cbor.Value) -> bytes:
    encoded = cbor.encode(content)
    frame = bytes([kind]) + len(encoded).to_bytes(4, "big") + encoded
    return frame.ljust(frame_bytes(len(encoded)), b"\0")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (FrameType.SECRETS, []),
        (FrameType.SECRETS, {1: 1, 2: {}, 3: {}}),
        (FrameType.SECRETS, {1: 2, 2: {"k": KEY}, 3: {}}),
        (FrameType.SECRETS, {1: True, 2: {"k": KEY}, 3: {}}),
        (FrameType.SECRETS, {1: 1, 2: {"k": KEY}}),
        (FrameType.SECRETS, {1: 1, 2: {"k": KEY}, 3: {}, 4: 0}),
        (FrameType.SECRETS, {1: 1, 2: {"k": KEY[:-1]}, 3: {}}),
        (FrameType.SECRETS, {1: 1, 2: {"k": KEY + b"x"}, 3: {}}),
        (FrameType.SECRETS, {1: 1, 2: {f"k{n}": KEY for n in range(9)}, 3: {}}),
        (FrameType.SECRETS, {1: 1, 2: {}, 3: {f"f{n}": b"" for n in range(65)}}),
        (FrameType.SECRETS, {1: 1, 2: {}, 3: {"f": "text"}}),
        (FrameType.SECRETS, {1: 1, 2: {}, 3: {"f": bytes(FILE_BYTES_MAX + 1)}}),
        (FrameType.SECRETS, {1: 1, 2: [KEY], 3: {}}),
        (FrameType.SECRETS, {1: 1, 2: {7: KEY}, 3: {}}),
        *(
            (FrameType.SECRETS, {1: 1, 2: {}, 3: {name: b""}})
            for name in ("", "../x", "a/b", ".x", "x" * 65, "a b", "ä", "a\n")
        ),
        (FrameType.TAKEN, {1: 1, 2: ["b", "a"], 3: []}),
        (FrameType.TAKEN, {1: 1, 2: ["a", "a"], 3: []}),
        (FrameType.TAKEN, {1: 1, 2: [], 3: [b"a"]}),
        (FrameType.TAKEN, {1: 1, 2: {}, 3: []}),
        (FrameType.REFUSED, {1: 1, 2: 0, 3: "", 4: "x"}),
        (FrameType.REFUSED, {1: 1, 2: 5, 3: "", 4: "x"}),
        (FrameType.REFUSED, {1: 1, 2: 1, 3: "pr1", 4: "x"}),
        (FrameType.REFUSED, {1: 1, 2: 1, 3: "", 4: ""}),
        (FrameType.REFUSED, {1: 1, 2: 1, 3: "", 4: "\x1b[31m"}),
        (FrameType.REFUSED, {1: 1, 2: 1, 3: "", 4: "x" * 1025}),
    ],
)
def test_other_contents(kind: FrameType, content: cbor.Value) -> None:
    with pytest.raises(MalformedError) as caught:
        decode(framed(kind, content), ALL)
    assert caught.value.finding is not None
    assert KEY.hex() not in str(caught.value)


def test_another_encoding_of_the_same_content() -> None:
    frame = bytearray(encode(SECRETS))
    # Version 1 in two bytes.
    longer = frame[:5] + b"\xa3\x01\x18\x01" + frame[8:-1]
    longer[1:5] = (int.from_bytes(frame[1:5], "big") + 1).to_bytes(4, "big")
    with pytest.raises(MalformedError, match="deterministic"):
        decode(bytes(longer), ALL)


def test_what_does_not_fit_is_not_sent() -> None:
    files = {f"f{number}": bytes(FILE_BYTES_MAX) for number in range(3)}
    with pytest.raises(MalformedError, match="1048576"):
        encode(Secrets({}, files))
    with pytest.raises(MalformedError):
        encode(Secrets())


def test_secrets_do_not_show() -> None:
    assert KEY.hex() not in repr(SECRETS)
    assert "certificate" not in repr(SECRETS)


def test_an_error_becomes_a_refusal_that_can_be_sent() -> None:
    error = DeniedError.at(KEYS, expected="a\nb" + "ö" * 2000, actual="c", advice="d")
    refusal = not_taken_of(error)
    assert (refusal.category, refusal.check) == (Category.DENIED, "PR3")
    assert decode(encode(refusal), ALL) == refusal


@given(st.binary(max_size=200))
def test_other_bytes(content: bytes) -> None:
    padded = content.ljust(BLOCK_BYTES, b"\0")
    for frame in (content, padded, b"\xb0" + len(content).to_bytes(4, "big") + padded[:-5]):
        try:
            decode(frame, ALL)
        except MalformedError:
            continue
        raise AssertionError(content)
