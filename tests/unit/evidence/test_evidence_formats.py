"""Claims, paths and the envelope: one encoding each; everything else is one documented error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avow.errors import MalformedError
from avow.evidence import cbor
from avow.evidence.claims import Claims, Role, Workload, decode_claims
from avow.evidence.envelope import (
    EVIDENCE_BYTES_MAX,
    Evidence,
    decode_evidence,
    report_type,
)
from avow.evidence.report_data import PATH_STEPS_MAX, Step

DIGEST = st.binary(min_size=32, max_size=32)
WORKLOADS = st.builds(Workload, module=DIGEST, runtime=DIGEST, configuration=DIGEST, boot_id=DIGEST)
CLAIMS = st.builds(
    Claims,
    nonce=DIGEST,
    role=st.sampled_from([Role.SERVER, Role.CLIENT, Role.CERTIFICATE]),
    workload=WORKLOADS,
    key=DIGEST,
    issued_at_s=st.integers(0, 2**40),
    user_data=st.binary(max_size=1024),
)
STEPS = st.builds(Step, sibling=st.binary(min_size=64, max_size=64), sibling_is_left=st.booleans())
EVIDENCE = st.builds(
    Evidence,
    platform=st.sampled_from(["tpm", "snp", "simulated"]),
    report=st.binary(min_size=1, max_size=2000),
    claims=st.binary(max_size=500),
    path=st.lists(STEPS, max_size=PATH_STEPS_MAX).map(tuple),
)
SAMPLE = Claims(
    nonce=bytes(range(32)),
    role=Role.SERVER,
    workload=Workload(b"m" * 32, b"r" * 32, b"c" * 32, b"b" * 32),
    key=b"k" * 32,
    issued_at_s=1_790_000_000,
    user_data=b"hello",
)
PATH = (Step(b"s" * 64, True), Step(b"t" * 64, False))
WRAPPED = Evidence("snp", b"report", SAMPLE.encoded(), PATH)


@given(CLAIMS)
def test_claims_survive_their_encoding(claims: Claims) -> None:
    assert decode_claims(claims.encoded()) == claims


@given(EVIDENCE)
def test_evidence_survives_its_encoding(evidence: Evidence) -> None:
    assert decode_evidence(evidence.encoded()) == evidence


@given(st.binary(max_size=400))
def test_noise_is_malformed(noise: bytes) -> None:
    for decode in (decode_claims, decode_evidence):
        with pytest.raises(MalformedError):
            decode(noise)


@pytest.mark.parametrize("decode", [decode_claims, decode_evidence])
def test_every_truncation_and_extension_is_malformed(decode: object) -> None:
    content = SAMPLE.encoded() if decode is decode_claims else WRAPPED.encoded()
    assert callable(decode)
    decode(content)
    for length in range(len(content)):
        with pytest.raises(MalformedError):
            decode(content[:length])
    for extra in (b"\0", b"\xf6", content):
        with pytest.raises(MalformedError):
            decode(content + extra)


def test_no_flipped_bit_goes_unnoticed() -> None:
    """Each flip is an error or gives other claims: no bit of the encoding is without meaning."""
    content = SAMPLE.encoded()
    for index in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[index // 8] ^= 1 << index % 8
        try:
            assert decode_claims(bytes(flipped)) != SAMPLE
        except MalformedError:
            continue


def test_no_flipped_bit_of_the_envelope_goes_unnoticed() -> None:
    content = WRAPPED.encoded()
    for index in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[index // 8] ^= 1 << index % 8
        try:
            assert decode_evidence(bytes(flipped)) != WRAPPED
        except MalformedError:
            continue


@pytest.mark.parametrize(
    "wrong",
    [
        replace(SAMPLE, nonce=b""),
        replace(SAMPLE, nonce=b"n" * 31),
        replace(SAMPLE, nonce=b"n" * 33),
        replace(SAMPLE, key=b""),
        replace(SAMPLE, key=b"k" * 31),
        replace(SAMPLE, role=Role.DOCUMENT),
        replace(SAMPLE, user_data=b"u" * 1025),
        replace(SAMPLE, issued_at_s=-1),
        replace(SAMPLE, issued_at_s=2**40 + 1),
        replace(SAMPLE, workload=replace(SAMPLE.workload, module=b"m" * 31)),
        replace(SAMPLE, workload=replace(SAMPLE.workload, runtime=b"")),
        replace(SAMPLE, workload=replace(SAMPLE.workload, configuration=b"c" * 33)),
        replace(SAMPLE, workload=replace(SAMPLE.workload, boot_id=b"b" * 16)),
    ],
)
def test_claims_of_other_sizes_cannot_be_written(wrong: Claims) -> None:
    with pytest.raises(MalformedError):
        wrong.encoded()


def _fields() -> dict[int | str, cbor.Value]:
    fields = cbor.decode(SAMPLE.encoded(), "claims")
    assert isinstance(fields, dict)
    return fields


@pytest.mark.parametrize("key", list(_fields()))
def test_each_claim_is_needed(key: int) -> None:
    fields = _fields()
    del fields[key]
    with pytest.raises(MalformedError):
        decode_claims(cbor.encode(fields))


@pytest.mark.parametrize("key", list(_fields()))
def test_each_claim_has_a_type(key: int) -> None:
    others: list[cbor.Value] = [None, True, [], "text", b"u" * 1025, 2**64]
    for other in others:
        with pytest.raises(MalformedError):
            decode_claims(cbor.encode({**_fields(), key: other}))


def test_a_further_claim_is_malformed() -> None:
    with pytest.raises(MalformedError):
        decode_claims(cbor.encode({**_fields(), -70007: b""}))


def test_booleans_are_no_numbers() -> None:
    """In Python True == 1; a role of true must not pass for a server's."""
    with pytest.raises(MalformedError):
        decode_claims(cbor.encode({**_fields(), -70001: True}))


def _records() -> dict[int | str, cbor.Value]:
    collection = cbor.decode(WRAPPED.encoded(), "evidence")
    assert isinstance(collection, dict)
    return collection


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("__cmwc_t", "tag:somebody.else,2026:cmw-1"),
        ("claims", ["application/json", b"", 4]),
        ("claims", ["application/eat-ucs+cbor", b"", 2]),
        ("claims", ["application/eat-ucs+cbor", b"", True]),
        ("claims", ["application/eat-ucs+cbor", "text", 4]),
        ("claims", ["application/eat-ucs+cbor", b""]),
        ("claims", b""),
        ("report", [report_type("snp"), b"", 4]),
        ("report", [report_type("SNP"), b"r", 4]),
        ("report", [report_type("snp") + "\n", b"r", 4]),
        ("report", [report_type("x" * 17), b"r", 4]),
        ("path", ["application/vnd.avow.path+cbor", b"", 4]),
        ("path", ["application/vnd.avow.path+cbor", cbor.encode([[b"s" * 64]]), 4]),
        ("path", ["application/vnd.avow.path+cbor", cbor.encode([[b"s" * 63, True]]), 4]),
        ("path", ["application/vnd.avow.path+cbor", cbor.encode([[b"s" * 64, 1]]), 4]),
        ("path", ["application/vnd.avow.path+cbor", cbor.encode([[b"s" * 64, True]] * 17), 4]),
        ("more", ["application/json", b"", 4]),
    ],
)
def test_other_collections_are_malformed(key: str, value: cbor.Value) -> None:
    with pytest.raises(MalformedError):
        decode_evidence(cbor.encode({**_records(), key: value}))


def test_large_evidence_is_neither_written_nor_read() -> None:
    largest = EVIDENCE_BYTES_MAX - len(Evidence("snp", b"", b"").encoded()) - 2
    fits = Evidence("snp", b"r" * largest, b"")
    assert decode_evidence(fits.encoded()) == fits
    with pytest.raises(MalformedError, match="at most"):
        Evidence("snp", b"r" * (largest + 1), b"").encoded()
    with pytest.raises(MalformedError, match="at most"):
        decode_evidence(b"\0" * (EVIDENCE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "content",
    [
        b"\xc1\x1a\x00\x00\x00\x00",  # a date
        b"\xd8\x23\x63(a+",  # a regular expression
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
        b"\xd9\xd9\xf7\x01",  # the tag that says "this is CBOR"
        b"\xd9\x03\xe7\x01",  # a tag that nobody knows
        b"\xa2\x01\x02\x01\x03",  # a key twice
        b"\xa2\x02\x00\x01\x00",  # keys in another order
        b"\x9f\x01\xff",  # an indefinite length
        b"\x18\x01",  # a number in a longer form
        b"\x58\x01a",  # a length in a longer form
        b"\xf9\x00\x00",  # a float
        b"\xf7",  # undefined
        b"\xe1",  # a simple value
        b"\xa1\x41a\x01",  # a byte string as key
        b"\xc2\x41\x01",  # a big number
        b"\x81" * 17 + b"\x01",  # too deep
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # a list of 2^64 - 1
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",  # a byte string of 8 EiB
        b"\x62\xff\xff",  # no UTF-8
        b"\x01\x01",  # two values
        b"",
    ],
    ids=lambda content: content[:8].hex(),
)
def test_lenient_encodings_are_malformed(content: bytes) -> None:
    with pytest.raises(MalformedError):
        cbor.decode(content, "sample")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"\xbf\x01\x02\xff", {1: 2}),
        (b"\xbf\xff", {}),
        (b"\x9f\x01\x9f\xff\xff", [1, []]),
        (b"\x5f\x41a\x41b\xff", b"ab"),
        (b"\x7f\x61a\x61b\xff", "ab"),
        (b"\xa1\x01\xbf\x02\x80\xff", {1: {2: []}}),
    ],
    ids=lambda each: each.hex() if isinstance(each, bytes) else "",
)
def test_others_may_write_indefinite_lengths(content: bytes, value: cbor.Value) -> None:
    """RFC 8949, section 3.2: AWS does; what is signed is the bytes."""
    assert cbor.decode_foreign(content, "sample") == value
    with pytest.raises(MalformedError):
        cbor.decode(content, "sample")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xbf\x01\x02\x01\x03\xff", "Duplicate map key"),
        (b"\xbf\x01\x02\x18\x01\x03\xff", "Duplicate map key"),
        (b"\xbf\x61a\x02\x7f\x61a\xff\x03\xff", "Duplicate map key"),
        (b"\xa1\x01\xbf\x02\x03\x02\x03\xff", "Duplicate map key"),
        (b"\xbf\x01\x02\xff\x00", "1 byte after its end"),
        (b"\xbf\x01\x02\xff\xff", "1 byte after its end"),
        (b"\xbf\x01\x02", "other bytes"),
        (b"\xbf\x01\xff", "other bytes"),
        (b"\x9f\x01", "other bytes"),
        (b"\xff", "other bytes"),
        (b"\x81\xff", "other bytes"),
        (b"\xa1\xff\x01", "other bytes"),
        (b"\xa1\x01\xff", "other bytes"),
        (b"\x5f\x61a\xff", "other bytes"),
        (b"\x5f\x5f\x41a\xff\xff", "other bytes"),
        (b"\x7f\x41a\xff", "other bytes"),
        (b"\x7f\x61\xc3\x61\xa9\xff", "other bytes"),
        (b"\x1f", "other bytes"),
        (b"\x9f" * 17 + b"\xff" * 17, "nesting depth"),
        (b"\xbf\x01\xc1\x01\xff", "tag 1"),
        (b"\x9f\xd8\x1c\x80\xff", "tag 28"),
        (b"\xd1\x80", "tag 17"),
        (b"\xbf\x41a\x01\xff", "a type that has no place"),
        (b"\x9f\xf7\xff", "a type that has no place"),
        (b"\x9f\xf9\x00\x00\xff", "a type that has no place"),
    ],
    ids=lambda each: each[:8].hex() if isinstance(each, bytes) else "",
)
def test_what_stays_refused_beside_indefinite_lengths(content: bytes, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        cbor.decode_foreign(content, "sample")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=20)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(0, 99) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_values_survive(value: cbor.Value) -> None:
    assert cbor.decode(cbor.encode(value), "sample") == value


@given(st.binary(max_size=64))
def test_what_is_decoded_was_encoded_so(content: bytes) -> None:
    try:
        value = cbor.decode(content, "sample")
    except MalformedError:
        return
    assert cbor.encode(value) == content
