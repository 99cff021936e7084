"""Frames and authenticators: exact parsers that raise one kind of error and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from avow.channel import checks
from avow.channel.attested_identity import make_identity
from avow.channel.authenticator import (
    CERTIFICATE_BYTES_MAX,
    PLATFORMS_MAX,
    Request,
    decode_request,
    encode_request,
    make_authenticator,
    open_authenticator,
)
from avow.channel.binding import EXPORTER_LABELS, binder
from avow.channel.messages import (
    FIRST_BYTE,
    HEADER_BYTES,
    LARGE_BODY_BYTES,
    SENTENCE_BYTES_MAX,
    SMALL_BODY_BYTES,
    Accepted,
    Answer,
    Category,
    ClientEvidence,
    FrameType,
    Message,
    Open,
    Refused,
    decode_body,
    decode_header,
    encode,
    refusal_of,
)
from avow.channel.octets import Octets, vector
from avow.errors import (
    AvowError,
    Check,
    DeniedError,
    MalformedError,
    UnavailableError,
    UntrustedError,
)
from avow.evidence.claims import Role
from avow.testing.attested_channel import CLIENT_CONTEXT, NOW, WORKLOAD, facts_pair, identity

MESSAGES: list[Message] = [
    Open(False, b"request"),
    Open(True, b""),
    Answer(b"authenticator", b"request"),
    Answer(b"", b""),
    ClientEvidence(b"authenticator"),
    Accepted(),
    Refused(Category.UNAVAILABLE, "AZ12", "expected that it works"),
]


def decoded(frame: bytes) -> Message:
    kind, length = decode_header(frame[:HEADER_BYTES])
    body = frame[HEADER_BYTES:]
    assert len(body) == length
    return decode_body(kind, body)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_come_back(message: Message) -> None:
    assert decoded(encode(message)) == message


def test_one_size_whatever_is_inside() -> None:
    for small in (Open(False, bytes(100)), Open(True, b""), Accepted()):
        assert len(encode(small)) == 512
    assert len(encode(Refused(Category.DENIED, "C1", "x" * SENTENCE_BYTES_MAX))) == 512
    for size in (0, 1_184, 5_000, LARGE_BODY_BYTES - 6):
        assert len(encode(Answer(bytes(size), b""))) == 32 * 1024
    with pytest.raises(MalformedError):
        encode(Answer(bytes(LARGE_BODY_BYTES - 5), b""))


def test_first_byte_is_nobody_elses() -> None:
    connect, get = 0x10, ord("G")  # MQTT 5.0, section 2.1, and a WebSocket's request
    assert {FIRST_BYTE, connect, get} == {0xA0, 0x10, 0x47}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xa0\0\1",
        b"\x10\0\1\xfc",
        b"\xa5\0\1\xfc",
        b"\xa0\0\1\xfb",
        b"\xa0\0\1\xfd",
        b"\xa1\0\0\0",
        b"\xa1\xff\xff\xff",
        b"\xa2\x01\x00\x00",
        b"\xa3\0\0\0",
    ],
)
def test_headers_that_are_none(header: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        decode_header(header)
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.FRAME


def small(content: bytes) -> bytes:
    return content.ljust(SMALL_BODY_BYTES, b"\0")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (FrameType.OPEN, small(b"\1\2\0\0\0")),
        (FrameType.OPEN, small(b"\1\x81\0\0\0")),
        (FrameType.OPEN, small(b"\1\0\0\2\0")),
        (FrameType.OPEN, small(b"\1\0\xff\xff\xff")),
        (FrameType.OPEN, small(b"\1\0\0\0\0\1")),
        (FrameType.ACCEPTED, small(b"\1")),
        (FrameType.ACCEPTED, small(b"").replace(b"\0", b"\xff")),
        (FrameType.REFUSED, small(b"\0\2C1\0\1x")),
        (FrameType.REFUSED, small(b"\5\2C1\0\1x")),
        (FrameType.REFUSED, small(b"\1\2c1\0\1x")),
        (FrameType.REFUSED, small(b"\1\1C\0\1x")),
        (FrameType.REFUSED, small(b"\1\x08ABCD1234\0\1x")),
        (FrameType.REFUSED, small(b"\1\2C1\0\0")),
        (FrameType.REFUSED, small(b"\1\2C1\0\1\n")),
        (FrameType.REFUSED, small(b"\1\2C1\0\x05\x1b[31m")),
        (FrameType.REFUSED, small(b"\1\2C1\0\2\xc3\xa4")),
        (FrameType.REFUSED, small(b"\1\2C1\1\x91" + b"x" * 401)),
        (FrameType.ANSWER, bytes(5)),
        (FrameType.ANSWER, b"\0\0\1\0" + bytes(LARGE_BODY_BYTES - 5) + b"\1"),
        (FrameType.EVIDENCE, b"\0\0\0" + bytes(LARGE_BODY_BYTES - 4) + b"\1"),
        (FrameType.EVIDENCE, b"\0\xff\xff" + bytes(LARGE_BODY_BYTES - 3)),
    ],
)
def test_bodies_that_are_none(kind: FrameType, body: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        decode_body(kind, body)
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.FRAME


def test_other_version() -> None:
    with pytest.raises(UnavailableError) as caught:
        decode_body(FrameType.OPEN, small(b"\2\0\0\0\0"))
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.VERSION


@given(kind=st.sampled_from(FrameType), body=st.binary(max_size=700))
def test_any_body(kind: FrameType, body: bytes) -> None:
    """One encoding a message, and no other error."""
    try:
        message = decode_body(kind, body)
    except (MalformedError, UnavailableError):
        return
    content = encode(message)[HEADER_BYTES:]
    assert content.rstrip(b"\0") == body.rstrip(b"\0")


@pytest.mark.parametrize(
    ("kind", "category"),
    [
        (MalformedError, Category.MALFORMED),
        (UntrustedError, Category.UNTRUSTED),
        (DeniedError, Category.DENIED),
        (UnavailableError, Category.UNAVAILABLE),
    ],
)
def test_refusals_say_the_check_and_no_value(kind: type[AvowError], category: Category) -> None:
    check = Check("P7", "the thing holds", "a test")
    error = kind.at(check, expected="SECRET", actual="SECRET", advice="SECRET")
    refusal = refusal_of(error)
    assert refusal == Refused(category, "P7", "expected that the thing holds")
    assert decoded(encode(refusal)) == refusal
    assert refusal_of(kind("SECRET")).check == "C3"
    assert "SECRET" not in refusal_of(kind("SECRET")).sentence


def test_every_check_fits_into_a_refusal() -> None:
    numbers = [check.number for check in checks.CHECKS]
    assert numbers == [f"C{number}" for number in range(1, len(numbers) + 1)]
    for check in checks.CHECKS:
        refusal = refusal_of(DeniedError.at(check, expected="", actual="", advice=""))
        assert decoded(encode(refusal)) == refusal
        assert "?" not in refusal.sentence


# Vectors of TLS


def test_octets() -> None:
    octets = Octets(b"\1\0\2ab\3", "test")
    assert octets.number(1) == 1
    assert octets.vector(2, 1, 2) == b"ab"
    with pytest.raises(MalformedError):
        octets.end()
    assert octets.rest() == b"\3"
    octets.end()
    with pytest.raises(MalformedError):
        octets.take(1)
    with pytest.raises(MalformedError):
        Octets(b"\1", "test").vector(1, 0, 9)
    with pytest.raises(MalformedError):
        Octets(b"\0", "test").vector(1, 1, 9)
    with pytest.raises(MalformedError):
        Octets(b"\2ab", "test").vector(1, 0, 1)
    with pytest.raises(MalformedError):
        vector(bytes(256), 1)


# Requests


@pytest.mark.parametrize("requester", [Role.CLIENT, Role.SERVER])
def test_requests_come_back(requester: Role) -> None:
    request = Request(CLIENT_CONTEXT, ("simulated", "tpm"))
    assert decode_request(requester, encode_request(requester, request)) == request


def test_request_to_the_byte() -> None:
    content = encode_request(Role.CLIENT, Request(CLIENT_CONTEXT, ("tpm",)))
    assert content == (
        bytes([17]) + b"\0\0\x39" + b"\x20" + CLIENT_CONTEXT + b"\0\x16"
        b"\0\x0d\0\4\0\2\4\3" + b"\xff\xa0\0\0" + b"\xff\xa1\0\6\0\4\3tpm"
    )


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:-1],
        lambda c: c + b"\0",
        lambda c: b"\x0d" + c[1:],
        lambda c: changed(c, b"\4\3", b"\4\1"),
        lambda c: changed(c, b"\0\x0d", b"\0\x0e"),
        lambda c: changed(c, b"\xff\xa0", b"\xff\xa2"),
        lambda c: changed(c, b"\xff\xa1", b"\xff\xa0"),
        lambda c: changed(c, b"\3tpm\3sgx", b"\3tpm\3tpm"),
        lambda c: changed(c, b"\3tpm\3sgx", b"\3tpm\3SGX"),
        lambda c: changed(c, b"\3tpm\3sgx", b"\3tpm\4sgx"),
        lambda c: changed(c, b"\3tpm\3sgx", b"\3tpm\0sgx"),
        lambda c: changed(c, b"\3tpm\3sgx", b"\3tpm\3s\0x"),
        lambda c: b"",
    ],
)
def test_requests_that_are_none(change: Callable[[bytes], bytes]) -> None:
    content = change(encode_request(Role.CLIENT, Request(CLIENT_CONTEXT, ("tpm", "sgx"))))
    with pytest.raises(MalformedError) as caught:
        decode_request(Role.CLIENT, content)
    assert caught.value.finding is not None
    assert caught.value.finding.check is checks.REQUEST


def test_requests_with_no_platform_or_too_many() -> None:
    names = tuple("abcdefghijklmnopq"[: n + 2] for n in range(PLATFORMS_MAX - 1))
    assert len(names) < PLATFORMS_MAX
    decode_request(Role.CLIENT, encode_request(Role.CLIENT, Request(CLIENT_CONTEXT, names)))
    for wrong in ((), tuple(f"{a}{b}" for a in "abcd" for b in "abcde")):
        with pytest.raises(MalformedError):
            decode_request(Role.CLIENT, encode_request(Role.CLIENT, Request(CLIENT_CONTEXT, wrong)))


@given(content=st.binary(max_size=200), requester=st.sampled_from([Role.CLIENT, Role.SERVER]))
def test_any_request(content: bytes, requester: Role) -> None:
    for candidate in (content, bytes([17]) + len(content).to_bytes(3, "big") + content):
        try:
            request = decode_request(requester, candidate)
        except (MalformedError, UntrustedError):
            continue
        assert encode_request(requester, request) == candidate


# Authenticators


REQUEST = encode_request(Role.CLIENT, Request(CLIENT_CONTEXT, ("simulated",)))


def authenticator(
    certificate: bytes | None = None,
    sign: Callable[[bytes], bytes] | None = None,
    evidence: bytes = b"evidence",
) -> bytes:
    own = identity()
    return make_authenticator(
        Role.SERVER,
        facts=facts_pair()[1],
        request=REQUEST,
        context=CLIENT_CONTEXT,
        certificate=own.certificate if certificate is None else certificate,
        evidence=evidence,
        sign=own.sign if sign is None else sign,
    )


def opened(content: bytes, sender: Role = Role.SERVER, request: bytes = REQUEST) -> bytes:
    return open_authenticator(
        sender, content, facts=facts_pair()[0], request=request, context=CLIENT_CONTEXT
    ).evidence


def refused(content: bytes, check: Check, **settings: object) -> None:
    with pytest.raises((MalformedError, UntrustedError)) as caught:
        opened(content, **settings)  # type: ignore[arg-type]
    assert caught.value.finding is not None
    assert caught.value.finding.check is check


def test_authenticators_come_back() -> None:
    assert opened(authenticator()) == b"evidence"


def test_every_flipped_bit() -> None:
    content = authenticator()
    for place in range(len(content)):
        for bit in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[place] ^= bit
            with pytest.raises((MalformedError, UntrustedError)):
                opened(bytes(damaged))


def test_every_truncation_and_an_extension() -> None:
    content = authenticator()
    for length in range(len(content)):
        with pytest.raises((MalformedError, UntrustedError)):
            opened(content[:length])
    refused(content + b"\0", checks.AUTHENTICATOR)


def test_sender_is_in_the_labels() -> None:
    refused(authenticator(), checks.FINISHED, sender=Role.CLIENT)


def test_request_is_in_the_transcript() -> None:
    other = encode_request(Role.CLIENT, Request(CLIENT_CONTEXT, ("simulated", "tpm")))
    refused(authenticator(), checks.FINISHED, request=other)


def test_key_that_signs_is_that_of_the_certificate() -> None:
    refused(authenticator(sign=identity().sign), checks.SIGNATURE)


def test_key_that_signs_something_else() -> None:
    own = identity()
    refused(authenticator(own.certificate, lambda content: own.sign(content[1:])), checks.SIGNATURE)


def test_other_kinds_of_keys() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    other = make_identity("simulated", WORKLOAD, NOW, key=key)
    refused(authenticator(other.certificate, other.sign), checks.KEY)
    rsa_key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, rsa_key.public_key(), 1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .sign(rsa_key, SHA256())
    )
    refused(authenticator(certificate.public_bytes(Encoding.DER)), checks.KEY)


def test_certificates_that_are_none() -> None:
    refused(authenticator(b"not a certificate"), checks.KEY)
    refused(authenticator(bytes(CERTIFICATE_BYTES_MAX + 1)), checks.AUTHENTICATOR)


def test_certificate_without_evidence() -> None:
    """An ordinary exported authenticator is no evidence."""
    own = identity()
    entry = vector(own.certificate, 3) + vector(b"", 2)
    certificate = bytes([11]) + vector(vector(CLIENT_CONTEXT, 1) + vector(entry, 3), 3)
    verify = bytes([15]) + vector(b"\4\3" + vector(bytes(70), 2), 3)
    finished = bytes([20]) + vector(bytes(32), 3)
    refused(certificate + verify + finished, checks.PRESENT)


def test_chain_of_certificates() -> None:
    """One entry, so that nobody asks which of two keys the evidence is about."""
    content = authenticator()
    end = 4 + int.from_bytes(content[1:4], "big")
    body = content[4:end]
    entries = body[1 + 32 + 3 :]
    certificate = bytes([11]) + vector(body[:33] + vector(entries + entries, 3), 3)
    refused(certificate + content[end:], checks.AUTHENTICATOR)


@given(st.binary(max_size=300))
def test_any_authenticator(content: bytes) -> None:
    for candidate in (content, bytes([11]) + len(content).to_bytes(3, "big") + content):
        with pytest.raises((MalformedError, UntrustedError)) as caught:
            opened(candidate)
        assert caught.value.finding is not None


# Binder


def test_binder_tells_everything_apart() -> None:
    plain = {
        "sender_spki": b"s",
        "receiver_spki": b"r",
        "key_spki": b"k",
        "exported": bytes(32),
    }
    seen = {binder(Role.SERVER, **plain), binder(Role.CLIENT, **plain)}
    for name in plain:
        seen.add(binder(Role.SERVER, **{**plain, name: bytes([1]) * 32}))
    seen.add(binder(Role.SERVER, **{**plain, "receiver_spki": b""}))
    seen.add(binder(Role.SERVER, **{**plain, "sender_spki": b"r", "receiver_spki": b"s"}))
    assert len(seen) == 8
    assert len(set(EXPORTER_LABELS.values())) == 2
    zeros = binder(Role.SERVER, **{**plain, "receiver_spki": b""})
    assert (
        zeros
        == hashlib.sha512(
            b"avow binder v1\x01"
            + hashlib.sha512(b"s").digest()
            + bytes(64)
            + hashlib.sha512(b"k").digest()
            + bytes(32)
        ).digest()
    )


# Identity


def test_identity_keeps_its_key_to_itself() -> None:
    own = identity()
    text = repr(own)
    assert "_key" not in text
    assert "EllipticCurve" not in text
    again = own.with_workload(WORKLOAD)
    assert again.spki == own.spki
    assert again.sign(b"x") == own.sign(b"x")
    assert identity().spki != own.spki
