"""Writes the test vectors of docs/spec: whole exchanges and trees of evidence from fixed inputs.

    python -m avow.testing.channel_vectors docs/spec/vectors

Everything in them is public, the private keys too: they are SHA-256 digests of short texts.
Signatures are deterministic (RFC 6979), so that the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import new, sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from avow.channel.attested_identity import AttestedIdentity, make_identity
from avow.channel.binding import EXPORTED_BYTES, EXPORTER_LABELS, own_binder
from avow.channel.exchange import AskClients, ClientSettings, ServerSettings
from avow.channel.messages import HEADER_BYTES
from avow.channel.session import HashName, TlsFacts
from avow.evidence.claims import Claims, Role, Workload
from avow.evidence.envelope import Evidence, decode_evidence
from avow.evidence.report_data import ReportData, batch, leaf
from avow.tee.simulated.report import SimulatedReport, signed_bytes
from avow.testing.attested_channel import (
    CLIENT_CONTEXT,
    NOW,
    SERVER_CONTEXT,
    WORKLOAD,
    Conversation,
    PromptPlatform,
    conversation,
    facts_pair,
    judge,
)

Vectors = dict[str, Any]
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def known_key(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that everybody knows: SHA-256 of `name`, modulo the order of the curve."""
    scalar = int.from_bytes(sha256(name.encode()).digest(), "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


@dataclass(frozen=True)
class FixedAttester:
    """The simulated platform with deterministic signatures."""

    key: ec.EllipticCurvePrivateKey
    platform: str = "simulated"

    def measure(self, workload: Workload) -> None:
        """Nothing."""

    def quote(self, report_data: ReportData) -> bytes:
        """The report."""
        point = self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        algorithm = ec.ECDSA(SHA256(), deterministic_signing=True)
        r, s = decode_dss_signature(self.key.sign(signed_bytes(report_data.content), algorithm))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return SimulatedReport(point, signature, report_data.content).encoded()


def exchanges() -> list[Vectors]:
    """A server's evidence under SHA-256, and evidence of both under SHA-384 and mutual TLS."""
    return [
        _exchange("server evidence, no client certificate", "sha256", mutual=False),
        _exchange("evidence of both, with a client certificate", "sha384", mutual=True),
    ]


def _exchange(title: str, hash_name: HashName, *, mutual: bool) -> Vectors:
    secret = new(hash_name, b"avow test exporter secret").digest()
    client_spki = _spki(known_key("avow test client TLS key")) if mutual else b""
    server_spki = _spki(known_key("avow test server TLS key"))
    facts = facts_pair(
        secret, hash_name=hash_name, client_spki=client_spki, server_spki=server_spki
    )
    server = make_identity("simulated", WORKLOAD, NOW, key=known_key("avow test server instance"))
    client = make_identity(
        "simulated",
        replace(WORKLOAD, module=bytes([5]) * 32),
        NOW,
        key=known_key("avow test client instance"),
    )
    talk = conversation(
        ClientSettings(judge=judge(without=True), identity=client if mutual else None),
        ServerSettings(
            identity=server,
            ask_clients=AskClients.ALWAYS if mutual else AskClients.NEVER,
            judge=judge(without=True) if mutual else None,
        ),
        facts,
    )
    attester = FixedAttester(known_key("avow test platform"))
    talk.client_platform = PromptPlatform(attester)
    talk.server_platform = PromptPlatform(attester)
    talk.run()
    vectors: Vectors = {
        "title": title,
        "hash": hash_name,
        "exporter_secret": secret.hex(),
        "client_tls_spki": client_spki.hex(),
        "server_tls_spki": server_spki.hex(),
        "time_s": int(NOW.timestamp()),
        "server": _direction(talk, Role.SERVER, facts[1], server, CLIENT_CONTEXT),
    }
    if mutual:
        vectors["client"] = _direction(talk, Role.CLIENT, facts[0], client, SERVER_CONTEXT)
    vectors["frames"] = [
        {
            "sender": sender,
            "header": frame[:HEADER_BYTES].hex(),
            "content": frame[HEADER_BYTES:].rstrip(b"\0").hex(),
        }
        for sender, frame in talk.sent
    ]
    return vectors


def _direction(
    talk: Conversation, sender: Role, facts: TlsFacts, own: AttestedIdentity, context: bytes
) -> Vectors:
    """What one sender computes, in the order of the specification."""
    outcome = talk.client_outcome if sender is Role.SERVER else talk.server_outcome
    if outcome is None:
        raise AssertionError(f"the exchange failed: {talk.client_error} {talk.server_error}")
    evidence = decode_evidence(outcome.evidence)
    size = new(facts.hash_name).digest_size
    exchange = talk.client if sender is Role.SERVER else talk.server
    name = sender.name.lower().encode()
    binder = own_binder(facts, sender, context, own.spki)
    return {
        "instance_private_key": f"{own._key.private_numbers().private_value:064x}",
        "certificate": own.certificate.hex(),
        "context": context.hex(),
        "request": exchange._own_request_bytes.hex(),
        "exported": facts.export(EXPORTER_LABELS[sender], EXPORTED_BYTES, context).hex(),
        "binder": binder.hex(),
        "claims": evidence.claims.hex(),
        "leaf": leaf(evidence.claims, binder).hex(),
        "evidence": outcome.evidence.hex(),
        "handshake_context": facts.export(
            b"EXPORTER-" + name + b" authenticator handshake context", size, b""
        ).hex(),
        "finished_key": facts.export(
            b"EXPORTER-" + name + b" authenticator finished key", size, b""
        ).hex(),
    }


def trees() -> list[Vectors]:
    """Batches of one, two, three and five requests."""
    attester = FixedAttester(known_key("avow test platform"))
    return [_tree(attester, count) for count in (1, 2, 3, 5)]


def _tree(attester: FixedAttester, count: int) -> Vectors:
    requests = [
        (
            Claims(bytes([number]) * 31 + b"\xff", Role.SERVER, WORKLOAD, bytes(32), 1_700_000_000),
            bytes([0x80 + number]) * 64,
        )
        for number in range(count)
    ]
    report_data, paths = batch(requests)
    report = attester.quote(report_data)
    return {
        "report_data": report_data.content.hex(),
        "sha256_of_report_data": sha256(report_data.content).hexdigest(),
        "report": report.hex(),
        "requests": [
            {
                "claims": claims.encoded().hex(),
                "binder": binder.hex(),
                "leaf": leaf(claims.encoded(), binder).hex(),
                "path": [[step.sibling.hex(), step.sibling_is_left] for step in path],
                "evidence": Evidence("simulated", report, claims.encoded(), path).encoded().hex(),
            }
            for (claims, binder), path in zip(requests, paths, strict=True)
        ],
    }


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def files() -> dict[str, str]:
    """The files' names and contents."""
    return {
        name: json.dumps(content, indent=1) + "\n"
        for name, content in (("attested-channel.json", exchanges()), ("evidence.json", trees()))
    }


def main(arguments: Sequence[str]) -> None:
    """Writes the files into a folder."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    main(sys.argv[1:])
