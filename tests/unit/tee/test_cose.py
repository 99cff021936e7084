"""COSE_Sign1: what is taken, and everything that is not."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import Check, MalformedError, UntrustedError
from avow.tee.cose import ES256, ES384, ES512, Algorithm, parse_sign1, signed_bytes
from avow.testing.cose_signer import sign1

CHECK = Check("T1", "a signature", "RFC 9052")
ALGORITHMS = (ES256, ES384, ES512)
KEYS = {each.name: ec.generate_private_key(each.curve()) for each in ALGORITHMS}
KEY = KEYS["ES256"]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda each: each.name)
@pytest.mark.parametrize("tagged", [False, True])
def test_a_good_signature(algorithm: Algorithm, tagged: bool) -> None:
    parts = parse_sign1(sign1(b"payload", KEYS[algorithm.name], algorithm, tagged=tagged), "token")
    assert parts.payload == b"payload"
    assert parts.algorithm is algorithm
    assert parts.key_id is None
    parts.verify(KEYS[algorithm.name].public_key(), CHECK)


def test_what_is_signed() -> None:
    """RFC 9052, section 4.4: an array of a context, the header, no external data, the payload."""
    assert signed_bytes(b"\xa0", b"p") == b"\x84\x6aSignature1\x41\xa0\x40\x41p"


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda each: each.name)
def test_another_key(algorithm: Algorithm) -> None:
    parts = parse_sign1(sign1(b"payload", KEYS[algorithm.name], algorithm), "token")
    with pytest.raises(UntrustedError, match="T1"):
        parts.verify(ec.generate_private_key(algorithm.curve()).public_key(), CHECK)
    for other, key in KEYS.items():
        if other != algorithm.name:
            with pytest.raises(UntrustedError, match="expected a key on"):
                parts.verify(key.public_key(), CHECK)


def test_every_bit_of_it() -> None:
    content = sign1(b"payload", KEY, ES256, tagged=False)
    for place in range(len(content) * 8):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises((MalformedError, UntrustedError)):
            parse_sign1(bytes(changed), "token").verify(KEY.public_key(), CHECK)


def test_a_key_identifier_is_read() -> None:
    for content in (
        sign1(b"payload", KEY, ES256, protected={1: -7, 4: b"key"}),
        sign1(b"payload", KEY, ES256, unprotected={4: b"key"}),
    ):
        parts = parse_sign1(content, "token")
        parts.verify(KEY.public_key(), CHECK)
        assert parts.key_id == b"key"


HEADERS: tuple[dict[str, dict[Any, Any]], ...] = (
    {"protected": {}},
    {"protected": {1: -8}},
    {"protected": {1: -257}},
    {"protected": {1: 5}},
    {"protected": {1: "ES256"}},
    {"protected": {1: True}},
    {"protected": {1: None}},
    {"protected": {1: -7, 2: [100], 100: 1}},
    {"protected": {1: -7, 100: 1}},
    {"protected": {1: -7, 4: 1}},
    {"protected": {}, "unprotected": {1: -7}},
    {"unprotected": {1: -7}},
    {"unprotected": {33: b"certificate"}},
    {"protected": {1: -7, 4: b"a"}, "unprotected": {4: b"b"}},
)


@pytest.mark.parametrize("headers", HEADERS, ids=str)
def test_headers_that_are_not_taken(headers: dict[str, dict[Any, Any]]) -> None:
    content = sign1(
        b"payload",
        KEY,
        ES256,
        protected=headers.get("protected"),
        unprotected=headers.get("unprotected"),
    )
    with pytest.raises(MalformedError):
        parse_sign1(content, "token")


@pytest.mark.parametrize(
    ("tag", "name"),
    [(16, "COSE_Encrypt0"), (17, "COSE_Mac0"), (96, "COSE_Encrypt"), (97, "COSE_Mac"),
     (98, "COSE_Sign")],
)  # fmt: skip
def test_other_messages_are_named(tag: int, name: str) -> None:
    content = cbor2.dumps(cbor2.CBORTag(tag, [b"", {}, b"payload", b""]))
    with pytest.raises(MalformedError, match=rf"COSE_Sign1 \(tag 18\).*{name} \(tag {tag}\)"):
        parse_sign1(content, "token")


GOOD = cbor2.loads(sign1(b"payload", KEY, ES256, tagged=False))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xd2",
        cbor2.dumps([]),
        cbor2.dumps(GOOD[:3]),
        cbor2.dumps([*GOOD, b""]),
        cbor2.dumps({0: 1}),
        cbor2.dumps([GOOD[0], {}, None, GOOD[3]]),
        cbor2.dumps([GOOD[0], {}, "payload", GOOD[3]]),
        cbor2.dumps([GOOD[0], {}, b"payload", "s" * 64]),
        cbor2.dumps([GOOD[0], {}, b"payload", [1] * 64]),
        cbor2.dumps([{1: -7}, {}, b"payload", GOOD[3]]),
        cbor2.dumps([GOOD[0], [], b"payload", GOOD[3]]),
        cbor2.dumps([GOOD[0], {}, b"payload", GOOD[3] + b"\0"]),
        cbor2.dumps([GOOD[0], {}, b"payload", GOOD[3][:-1]]),
        cbor2.dumps([cbor2.dumps([1, -7]), {}, b"payload", GOOD[3]]),
        cbor2.dumps([GOOD[0] + b"\0", {}, b"payload", GOOD[3]]),
        cbor2.dumps([b"\xa2\x01\x26\x01\x26", {}, b"payload", GOOD[3]]),
        cbor2.dumps(GOOD) + b"\0",
        b"\xd2" * 2 + cbor2.dumps(GOOD),
        b"\xd8\x12" + cbor2.dumps(GOOD),
        b"\xd1" + cbor2.dumps(GOOD),
        b"\x9f" + b"".join(map(cbor2.dumps, [*GOOD, b""])) + b"\xff",
        b"\x9f" + b"".join(map(cbor2.dumps, GOOD)),
        b"\x9f" + b"".join(map(cbor2.dumps, GOOD)) + b"\xff\xff",
    ],
    ids=lambda each: each.hex()[:12],
)
def test_other_structures(content: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_sign1(content, "token")


def test_an_array_of_indefinite_length() -> None:
    content = b"\x9f" + b"".join(map(cbor2.dumps, GOOD)) + b"\xff"
    for whole in (content, b"\xd2" + content):
        parse_sign1(whole, "token").verify(KEY.public_key(), CHECK)


@given(content=st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_sign1(content, "token")
