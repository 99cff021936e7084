"""The witness protocol: the document's vectors, and every message that is not one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import MalformedError, UntrustedError
from avow.sealing import witness
from avow.sealing.witness import (
    ANSWER_BYTES,
    GREETING_BYTES,
    NOTHING,
    REQUEST_BYTES,
    Answer,
    Kind,
    Record,
    Request,
    State,
    Status,
    StoreName,
    decide,
    decode_greeting,
    encode_greeting,
    open_answer,
    open_request,
    parse_public_key,
    public_bytes,
    public_key_text,
    sign_answer,
    sign_request,
    store_key,
)

VECTORS = Path(__file__).resolve().parents[3] / "docs/spec/vectors/freshness.json"
STORE_ID = bytes(range(16))
STORE = store_key(bytes(range(32)), STORE_ID)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = public_bytes(WITNESS)
CHALLENGE = b"\x08" * 32
NAME = StoreName(public_bytes(STORE), STORE_ID)
A, B, C = b"\x0a" * 32, b"\x0b" * 32, b"\x0c" * 32
E, F = b"\x0e" * 32, b"\x0f" * 32
ADVANCE = Request(Kind.ADVANCE, 2, b"\x09" * 32, NAME, A, State(18, 5, B, E))
READ = Request(Kind.READ, 2, b"\x09" * 32, NAME)
KNOWN = Record(State(17, 4, A, F))


def vectors() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(VECTORS.read_text())
    return content


def state_of(entry: dict[str, Any]) -> State:
    digest, branch = bytes.fromhex(entry["digest"]), bytes.fromhex(entry["branch"])
    return State(entry["sequence"], entry["anchor"], digest, branch)


def record_of(entry: dict[str, Any] | None) -> Record | None:
    return None if entry is None else Record(state_of(entry), entry["acceptances"])


def test_keys_and_greeting_of_the_vectors() -> None:
    file = vectors()
    key = store_key(bytes.fromhex(file["secret"]), bytes.fromhex(file["store_id"]))
    assert key.private_bytes_raw().hex() == file["store_private_key"]
    assert public_bytes(key).hex() == file["store_key"]
    assert public_key_text(bytes.fromhex(file["witness_key"])) == file["witness_key_text"]
    assert encode_greeting(bytes.fromhex(file["challenge"])).hex() == file["greeting"]


@pytest.mark.parametrize("case", vectors()["exchanges"], ids=lambda case: case["title"])
def test_exchanges_of_the_vectors(case: dict[str, Any]) -> None:
    asked = Request(
        Kind[case["kind"].upper()],
        case["number"],
        bytes.fromhex(case["nonce"]),
        NAME,
        bytes.fromhex(case["expected"]),
        state_of(case["state"]),
    )
    sent = sign_request(asked, STORE, CHALLENGE, PUBLIC)
    assert sent.hex() == case["request"]
    received = open_request(sent, CHALLENGE, PUBLIC, case["number"])
    assert received == asked
    answer = decide(record_of(case["remembered"]), received)
    assert answer == Answer(Status[case["status"].upper()], record_of(case["then"]))
    content = sign_answer(answer, received, WITNESS, CHALLENGE)
    assert content.hex() == case["answer"]
    assert open_answer(content, asked, PUBLIC, CHALLENGE) == answer


@pytest.mark.parametrize(
    "content",
    [
        b"",
        encode_greeting(CHALLENGE)[:-1],
        encode_greeting(CHALLENGE) + b"\0",
        b"AVOWWITM" + encode_greeting(CHALLENGE)[8:],
        encode_greeting(CHALLENGE)[:8] + b"\x02" + encode_greeting(CHALLENGE)[9:],
        encode_greeting(CHALLENGE)[:15] + b"\x01" + encode_greeting(CHALLENGE)[16:],
    ],
)
def test_greetings_that_are_none(content: bytes) -> None:
    with pytest.raises(MalformedError, match="greeting of a witness"):
        decode_greeting(content)
    assert decode_greeting(encode_greeting(CHALLENGE)) == CHALLENGE


@pytest.mark.parametrize("request_", [ADVANCE, READ], ids=["advance", "read"])
def test_every_bit_of_a_request_counts(request_: Request) -> None:
    content = sign_request(request_, STORE, CHALLENGE, PUBLIC)
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((MalformedError, UntrustedError)):
            open_request(bytes(changed), CHALLENGE, PUBLIC, request_.number)


@pytest.mark.parametrize("answer", [Answer(Status.DONE, KNOWN), Answer(Status.UNKNOWN, None)])
def test_every_bit_of_an_answer_counts(answer: Answer) -> None:
    content = sign_answer(answer, ADVANCE, WITNESS, CHALLENGE)
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UntrustedError):
            open_answer(bytes(changed), ADVANCE, PUBLIC, CHALLENGE)


@pytest.mark.parametrize("length", [0, 1, REQUEST_BYTES - 1, REQUEST_BYTES + 1])
def test_length_of_a_request(length: int) -> None:
    content = sign_request(ADVANCE, STORE, CHALLENGE, PUBLIC).ljust(length, b"\0")[:length]
    with pytest.raises(MalformedError, match=f"{REQUEST_BYTES} bytes"):
        open_request(content, CHALLENGE, PUBLIC, 2)


@pytest.mark.parametrize("length", [0, 1, ANSWER_BYTES - 1, ANSWER_BYTES + 1])
def test_length_of_an_answer(length: int) -> None:
    answer = Answer(Status.DONE, KNOWN)
    content = sign_answer(answer, ADVANCE, WITNESS, CHALLENGE).ljust(length, b"\0")[:length]
    with pytest.raises(MalformedError, match=f"{ANSWER_BYTES} bytes"):
        open_answer(content, ADVANCE, PUBLIC, CHALLENGE)


def test_a_request_is_for_one_place_and_time() -> None:
    content = sign_request(ADVANCE, STORE, CHALLENGE, PUBLIC)
    other = public_bytes(Ed25519PrivateKey.generate())
    for challenge, public in ((b"\x01" * 32, PUBLIC), (CHALLENGE, other)):
        with pytest.raises(UntrustedError, match="signed for this connection"):
            open_request(content, challenge, public, 2)
    for number in (1, 3):
        with pytest.raises(UntrustedError, match="repeats or drops"):
            open_request(content, CHALLENGE, PUBLIC, number)


@pytest.mark.parametrize(
    "asked",
    [
        replace(READ, expected=A),
        replace(READ, state=State(1, 0, NOTHING, NOTHING)),
        replace(READ, state=State(0, 0, NOTHING, E)),
        replace(ADVANCE, state=State(0, 5, B, NOTHING)),
        replace(ADVANCE, state=State(5, 0, B, NOTHING)),
        replace(ADVANCE, kind=Kind.ACCEPT, state=State(0, 5, B, NOTHING)),
    ],
)
def test_requests_that_mean_nothing(asked: Request) -> None:
    content = sign_request(asked, STORE, CHALLENGE, PUBLIC)
    with pytest.raises(MalformedError):
        open_request(content, CHALLENGE, PUBLIC, asked.number)


def test_an_answer_is_for_one_request() -> None:
    """Another nonce, store, number, kind or state; another connection; another witness."""
    answer = Answer(Status.DONE, KNOWN)
    content = sign_answer(answer, ADVANCE, WITNESS, CHALLENGE)
    other = public_bytes(Ed25519PrivateKey.generate())
    for asked in (
        replace(ADVANCE, nonce=C),
        replace(ADVANCE, store=StoreName(other, STORE_ID)),
        replace(ADVANCE, store=StoreName(NAME.key, bytes(16))),
        replace(ADVANCE, number=3),
        replace(ADVANCE, kind=Kind.ACCEPT),
        replace(ADVANCE, expected=C),
        replace(ADVANCE, state=State(18, 5, C, E)),
        replace(ADVANCE, state=State(18, 5, B, F)),
        READ,
    ):
        with pytest.raises(UntrustedError, match="or repeats an old answer"):
            open_answer(content, asked, PUBLIC, CHALLENGE)
    with pytest.raises(UntrustedError):
        open_answer(content, ADVANCE, PUBLIC, C)
    with pytest.raises(UntrustedError, match="signed by the witness"):
        open_answer(content, ADVANCE, other, CHALLENGE)


def forged(status: int, record: Record) -> bytes:
    """What the witness's key signs, though no witness says it."""
    honest = sign_answer(Answer(Status.DONE, record), ADVANCE, WITNESS, CHALLENGE)
    content = status.to_bytes(4, "little") + honest[4:-64]
    return content + WITNESS.sign(witness._signed_answer(content, ADVANCE, CHALLENGE))


@pytest.mark.parametrize(
    ("status", "record"),
    [
        (5, KNOWN),
        (2**32 - 1, KNOWN),
        (Status.UNKNOWN, KNOWN),
        (Status.UNKNOWN, Record(State(0, 0, NOTHING, NOTHING), 1)),
        (Status.DONE, Record(State(0, 0, NOTHING, NOTHING))),
        (Status.DONE, Record(State(0, 4, A, NOTHING))),
        (Status.CONFLICT, Record(State(17, 0, A, NOTHING))),
        (Status.FULL, Record(State(17, 0, A, NOTHING))),
    ],
)
def test_answers_that_mean_nothing(status: int, record: Record) -> None:
    with pytest.raises(MalformedError):
        open_answer(forged(status, record), ADVANCE, PUBLIC, CHALLENGE)


@given(st.binary(max_size=REQUEST_BYTES + 40))
def test_any_bytes_are_refused(content: bytes) -> None:
    for parse in (
        decode_greeting,
        lambda given: open_request(given, CHALLENGE, PUBLIC, 1),
        lambda given: open_answer(given, ADVANCE, PUBLIC, CHALLENGE),
    ):
        with pytest.raises((MalformedError, UntrustedError)):
            parse(content)


STATES = st.builds(
    State,
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([A, B, C]),
    st.sampled_from([E, F]),
)


@given(
    st.none() | st.builds(Record, STATES, st.integers(0, 2)),
    st.sampled_from([Kind.READ, Kind.ADVANCE, Kind.ACCEPT]),
    st.sampled_from([NOTHING, A, B, C]),
    STATES,
)
def test_what_a_witness_never_does(
    record: Record | None, kind: Kind, expected: bytes, state: State
) -> None:
    answer = decide(record, Request(kind, 1, bytes(32), NAME, expected, state))
    if answer.record == record:
        return
    # It changed: then somebody asked for exactly that, knew what was there, and went forwards.
    assert answer.status is Status.DONE
    assert kind is not Kind.READ
    assert answer.record is not None
    assert answer.record.state == state
    assert expected == (NOTHING if record is None else record.state.digest)
    if record is not None and kind is Kind.ADVANCE:
        assert state.sequence > record.state.sequence
        assert state.anchor >= record.state.anchor
        assert answer.record.acceptances == record.acceptances
    elif record is not None:
        assert answer.record.acceptances == record.acceptances + 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        public_key_text(PUBLIC)[:-1],
        public_key_text(PUBLIC) + "=",
        public_key_text(PUBLIC) + "\n",
        public_key_text(PUBLIC).replace("/", "_").replace("+", "-"),
        # The same key, but for bits that say nothing.
        public_key_text(PUBLIC)[:-2] + "1=",
        public_key_text(PUBLIC + b"\0"),
        "n" * 44,
        "\u00e9" * 44,
    ],
)
def test_public_keys_that_are_none(text: str) -> None:
    with pytest.raises(MalformedError, match="`avow witness` prints it"):
        parse_public_key(text)
    assert parse_public_key(public_key_text(PUBLIC)) == PUBLIC


def test_stores_have_keys_of_their_own() -> None:
    keys = {
        public_bytes(store_key(secret, store_id))
        for secret in (bytes(32), b"\x01" * 32)
        for store_id in (bytes(16), b"\x01" * 16)
    }
    assert len(keys) == 4


def test_lengths_of_the_document() -> None:
    assert (GREETING_BYTES, REQUEST_BYTES, ANSWER_BYTES) == (48, 264, 240)
