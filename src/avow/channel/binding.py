"""What ties evidence to one connection, one direction and one pair of keys.

    binder = SHA-512("avow binder v1" || role || S || R || K || exported)

`role` is one byte (1 server, 2 client: the sender of the evidence). S and R are the SHA-512 of the
SubjectPublicKeyInfo in the TLS certificates of sender and receiver, or 64 zeros where there was
none; K that of the authenticator's certificate. `exported` are 32 bytes of the TLS exporter under
the label of the role, with the context of the request. Everything has a fixed length.
docs/spec/attested-channel.md, section "Binder".
"""

from __future__ import annotations

from hashlib import sha512
from typing import Final

from avow.channel.session import TlsFacts
from avow.evidence.claims import Role

BINDER_LABEL: Final = b"avow binder v1"
EXPORTED_BYTES: Final = 32
# RFC 5705, section 4: labels that are not registered begin with "EXPERIMENTAL". An exporter gives
# both ends the same bytes, so the label has to say whose evidence it is for.
EXPORTER_LABELS: Final = {
    Role.SERVER: b"EXPERIMENTAL avow evidence of the server",
    Role.CLIENT: b"EXPERIMENTAL avow evidence of the client",
}


def binder(
    sender: Role, *, sender_spki: bytes, receiver_spki: bytes, key_spki: bytes, exported: bytes
) -> bytes:
    """The binder (64 bytes); `sender` is SERVER or CLIENT, an empty SPKI means no certificate."""
    return sha512(
        BINDER_LABEL
        + bytes([sender])
        + _digest(sender_spki)
        + _digest(receiver_spki)
        + _digest(key_spki)
        + exported
    ).digest()


def own_binder(facts: TlsFacts, own: Role, context: bytes, key_spki: bytes) -> bytes:
    """The binder for evidence that this end, `own`, sends in answer to a request's `context`."""
    return binder(
        own,
        sender_spki=facts.own_spki,
        receiver_spki=facts.peer_spki,
        key_spki=key_spki,
        exported=facts.export(EXPORTER_LABELS[own], EXPORTED_BYTES, context),
    )


def peer_binder(facts: TlsFacts, peer: Role, context: bytes, key_spki: bytes) -> bytes:
    """The binder that the evidence of the other end, `peer`, has to have."""
    return binder(
        peer,
        sender_spki=facts.peer_spki,
        receiver_spki=facts.own_spki,
        key_spki=key_spki,
        exported=facts.export(EXPORTER_LABELS[peer], EXPORTED_BYTES, context),
    )


def prepare_peer_binder(facts: TlsFacts, peer: Role, context: bytes) -> None:
    """Has the exporter's part of `peer_binder` computed, which does not depend on the answer."""
    facts.export(EXPORTER_LABELS[peer], EXPORTED_BYTES, context)


def _digest(spki: bytes) -> bytes:
    return sha512(spki).digest() if spki else bytes(64)
