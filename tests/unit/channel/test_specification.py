"""The vectors of docs/spec, computed again from the text of the specification alone.

Nothing of `avow` is used by `Reader`: it is the other implementation that the specification is for.
Then `avow` itself has to give the same bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.channel import checks
from avow.channel.exchange import (
    CLIENT_TRANSITIONS,
    DEADLINE_S,
    SERVER_TRANSITIONS,
    Transition,
)
from avow.evidence import origin
from avow.testing import channel_vectors

ROOT = Path(__file__).resolve().parents[3]
SPEC = ROOT / "docs/spec"
CHANNEL: list[dict[str, Any]] = json.loads((SPEC / "vectors/attested-channel.json").read_text())
EVIDENCE: list[dict[str, Any]] = json.loads((SPEC / "vectors/evidence.json").read_text())


def test_vectors_are_what_avow_computes() -> None:
    for name, content in channel_vectors.files().items():
        assert (SPEC / "vectors" / name).read_text() == content, (
            "run `python -m avow.testing.channel_vectors docs/spec/vectors`"
        )


# Another implementation


def hkdf_expand_label(secret: bytes, label: bytes, context: bytes, length: int, name: str) -> bytes:
    """RFC 8446, section 7.1, for lengths up to one block."""
    info = length.to_bytes(2, "big")
    info += bytes([6 + len(label)]) + b"tls13 " + label + bytes([len(context)]) + context
    return hmac.digest(secret, info + b"\1", name)[:length]


def tls_exporter(secret: bytes, label: bytes, context: bytes, length: int, name: str) -> bytes:
    """RFC 8446, section 7.5."""
    empty = hashlib.new(name, b"").digest()
    derived = hkdf_expand_label(secret, label, empty, len(empty), name)
    return hkdf_expand_label(
        derived, b"exporter", hashlib.new(name, context).digest(), length, name
    )


def digest_or_zeros(spki: bytes) -> bytes:
    return hashlib.sha512(spki).digest() if spki else bytes(64)


def root(leaf: bytes, path: list[list[Any]]) -> bytes:
    node = leaf
    for sibling, is_left in path:
        pair = sibling + node if is_left else node + sibling
        node = hashlib.sha512(b"avow evidence v1 tree" + pair).digest()
    return node


def leaf_of(claims: bytes, binder: bytes) -> bytes:
    return hashlib.sha512(b"avow evidence v1" + hashlib.sha512(claims).digest() + binder).digest()


def simulated_report_data(report: bytes) -> bytes:
    """Verifies the signature of the simulated platform."""
    fields = cbor2.loads(report)
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), fields["key"])
    r, s = (
        int.from_bytes(half, "big") for half in (fields["signature"][:32], fields["signature"][32:])
    )
    key.verify(
        encode_dss_signature(r, s),
        b"avow simulated v1" + fields["report_data"],
        ec.ECDSA(SHA256()),
    )
    return bytes(fields["report_data"])


def split(content: bytes, widths: list[int]) -> list[bytes]:
    """Vectors one after the other, each behind a length of so many bytes; nothing may be left."""
    parts = []
    for width in widths:
        length = int.from_bytes(content[:width], "big")
        parts.append(content[width : width + length])
        assert len(parts[-1]) == length
        content = content[width + length :]
    assert not content
    return parts


class Reader:
    """One direction of one exchange, as the receiver sees it."""

    def __init__(self, exchange: dict[str, Any], sender: str) -> None:
        self.values = {name: bytes.fromhex(value) for name, value in exchange[sender].items()}
        self.hash = exchange["hash"]
        self.secret = bytes.fromhex(exchange["exporter_secret"])
        self.sender = sender
        receiver = "client" if sender == "server" else "server"
        self.sender_spki = bytes.fromhex(exchange[f"{sender}_tls_spki"])
        self.receiver_spki = bytes.fromhex(exchange[f"{receiver}_tls_spki"])
        self.exchange = exchange

    def export(self, label: str, context: bytes, length: int) -> bytes:
        return tls_exporter(self.secret, label.encode(), context, length, self.hash)

    def frame(self, kind: int) -> bytes:
        """The body of the frame, with its padding."""
        for frame in self.exchange["frames"]:
            header = bytes.fromhex(frame["header"])
            if header[0] == kind:
                length = int.from_bytes(header[1:], "big")
                return bytes.fromhex(frame["content"]).ljust(length, b"\0")
        raise AssertionError("no such frame")

    def authenticator(self) -> bytes:
        body = self.frame(0xA1 if self.sender == "server" else 0xA2)
        length = int.from_bytes(body[:3], "big")
        return body[3 : 3 + length]

    def request(self) -> bytes:
        if self.sender == "server":
            body = self.frame(0xA0)[2:]
        else:
            body = self.frame(0xA1)[3 + len(Reader(self.exchange, "server").authenticator()) :]
        length = int.from_bytes(body[:3], "big")
        return body[3 : 3 + length]


DIRECTIONS = [
    pytest.param(exchange, sender, id=f"{exchange['title']}: {sender}")
    for exchange in CHANNEL
    for sender in ("server", "client")
    if sender in exchange
]


@pytest.mark.parametrize(("exchange", "sender"), DIRECTIONS)
def test_request(exchange: dict[str, Any], sender: str) -> None:
    reader = Reader(exchange, sender)
    context = reader.values["context"]
    names = b"\x09simulated"
    extensions = (
        b"\x00\x0d\x00\x04\x00\x02\x04\x03"
        + b"\xff\xa0\x00\x00"
        + b"\xff\xa1"
        + (len(names) + 2).to_bytes(2, "big")
        + len(names).to_bytes(2, "big")
        + names
    )
    body = b"\x20" + context + len(extensions).to_bytes(2, "big") + extensions
    kind = 17 if sender == "server" else 13
    expected = bytes([kind]) + len(body).to_bytes(3, "big") + body
    assert reader.request() == reader.values["request"] == expected


@pytest.mark.parametrize(("exchange", "sender"), DIRECTIONS)
def test_binder(exchange: dict[str, Any], sender: str) -> None:
    reader = Reader(exchange, sender)
    exported = reader.export(
        f"EXPERIMENTAL avow evidence of the {sender}", reader.values["context"], 32
    )
    assert exported == reader.values["exported"]
    key = x509.load_der_x509_certificate(reader.values["certificate"]).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    binder = hashlib.sha512(
        b"avow binder v1"
        + (b"\x01" if sender == "server" else b"\x02")
        + digest_or_zeros(reader.sender_spki)
        + digest_or_zeros(reader.receiver_spki)
        + hashlib.sha512(spki).digest()
        + exported
    ).digest()
    assert binder == reader.values["binder"]


@pytest.mark.parametrize(("exchange", "sender"), DIRECTIONS)
def test_authenticator(exchange: dict[str, Any], sender: str) -> None:
    reader = Reader(exchange, sender)
    size = hashlib.new(reader.hash).digest_size
    handshake_context = reader.export(
        f"EXPORTER-{sender} authenticator handshake context", b"", size
    )
    finished_key = reader.export(f"EXPORTER-{sender} authenticator finished key", b"", size)
    assert handshake_context == reader.values["handshake_context"]
    assert finished_key == reader.values["finished_key"]
    rest = reader.authenticator()
    messages: dict[int, bytes] = {}
    while rest:
        length = 4 + int.from_bytes(rest[1:4], "big")
        messages[rest[0]], rest = rest[:length], rest[length:]
    assert list(messages) == [11, 15, 20]
    context, entries = split(messages[11][4:], [1, 3])
    assert context == reader.values["context"]
    certificate, extensions = split(entries, [3, 2])
    assert certificate == reader.values["certificate"]
    assert extensions[:2] == b"\xff\xa0"
    (extension,) = split(extensions[2:], [2])
    (evidence,) = split(extension, [2])
    assert evidence == reader.values["evidence"]
    transcript = handshake_context + reader.request() + messages[11]
    signed = b"\x20" * 64 + b"Exported Authenticator" + b"\0"
    signed += hashlib.new(reader.hash, transcript).digest()
    assert messages[15][4:6] == b"\x04\x03"
    (signature,) = split(messages[15][6:], [2])
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, signed, ec.ECDSA(SHA256()))
    mac = hmac.digest(
        finished_key, hashlib.new(reader.hash, transcript + messages[15]).digest(), reader.hash
    )
    assert messages[20][4:] == mac


@pytest.mark.parametrize(("exchange", "sender"), DIRECTIONS)
def test_evidence_of_an_exchange(exchange: dict[str, Any], sender: str) -> None:
    reader = Reader(exchange, sender)
    collection = cbor2.loads(reader.values["evidence"])
    assert collection["__cmwc_t"] == "tag:avow.example,2026:cmw-1"
    claims_type, claims, indicator = collection["claims"]
    assert (claims_type, indicator) == ("application/eat-ucs+cbor", 4)
    assert claims == reader.values["claims"]
    fields = cbor2.loads(claims)
    assert fields[10] == reader.values["context"]
    assert fields[-70001] == (1 if sender == "server" else 2)
    assert fields[6] == exchange["time_s"]
    key = x509.load_der_x509_certificate(reader.values["certificate"]).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert fields[-70005] == hashlib.sha256(spki).digest()
    leaf = leaf_of(claims, reader.values["binder"])
    assert leaf == reader.values["leaf"]
    report_type, report, _ = collection["report"]
    assert report_type == "application/vnd.avow.report.simulated+cbor"
    path = cbor2.loads(collection["path"][1])
    assert simulated_report_data(report) == root(leaf, path)


@pytest.mark.parametrize("exchange", CHANNEL, ids=lambda exchange: exchange["title"])
def test_frames(exchange: dict[str, Any]) -> None:
    headers = [frame["header"] for frame in exchange["frames"]]
    if "client" in exchange:
        assert headers == ["a00001fc", "a1007ffc", "a2007ffc", "a30001fc"]
    else:
        assert headers == ["a00001fc", "a1007ffc", "a30001fc"]
    opening = bytes.fromhex(exchange["frames"][0]["content"])
    assert opening[:2] == bytes([1, "client" in exchange])


@pytest.mark.parametrize("tree", EVIDENCE, ids=lambda tree: str(len(tree["requests"])))
def test_tree(tree: dict[str, Any]) -> None:
    report_data = bytes.fromhex(tree["report_data"])
    assert hashlib.sha256(report_data).hexdigest() == tree["sha256_of_report_data"]
    assert simulated_report_data(bytes.fromhex(tree["report"])) == report_data
    leaves = []
    for request in tree["requests"]:
        claims = bytes.fromhex(request["claims"])
        leaf = leaf_of(claims, bytes.fromhex(request["binder"]))
        assert leaf.hex() == request["leaf"]
        leaves.append(leaf)
        path = [[bytes.fromhex(sibling), is_left] for sibling, is_left in request["path"]]
        assert root(leaf, path) == report_data
        collection = cbor2.loads(bytes.fromhex(request["evidence"]))
        assert cbor2.loads(collection["path"][1]) == path
        # Another leaf does not come out where this one does.
        assert root(hashlib.sha512(leaf).digest(), path) != report_data
    while len(leaves) > 1:
        leaves = [
            root(leaves[index], [[leaves[index + 1], False]])
            if index + 1 < len(leaves)
            else leaves[index]
            for index in range(0, len(leaves), 2)
        ]
    assert leaves == [report_data]


# The text


def channel_text() -> str:
    return (SPEC / "attested-channel.md").read_text()


def test_every_check_is_specified() -> None:
    rows = re.findall(r"^\| (C\d+) \| ([^|]+?) \|", channel_text(), re.MULTILINE)
    assert rows == [(check.number, check.title) for check in checks.CHECKS]


def test_every_check_of_evidence_is_specified() -> None:
    text = (SPEC / "evidence.md").read_text()
    rows = re.findall(r"^\| (E\d+) \| ([^|]+?) \|", text, re.MULTILINE)
    assert rows == [(check.number, check.title) for check in origin.CHECKS]


@pytest.mark.parametrize(
    ("heading", "table"), [("Client", CLIENT_TRANSITIONS), ("Server", SERVER_TRANSITIONS)]
)
def test_state_diagrams_are_the_tables(heading: str, table: tuple[Transition, ...]) -> None:
    match = re.search(
        rf"^### {heading}\n.*?```mermaid\nstateDiagram-v2\n(.*?)```", channel_text(), re.M | re.S
    )
    assert match is not None
    drawn = re.findall(r"^    (\w+) --> (\w+): ([^,\n]+)", match[1], re.MULTILINE)
    assert drawn == [(start.name, end.name, event.value) for start, event, end in table]


def test_deadline_is_specified() -> None:
    assert f"{DEADLINE_S:g} seconds" in channel_text()
