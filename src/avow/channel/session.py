"""What an exchange has to know of the TLS connection below it, and what that has to be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL

from avow.channel.checks import NOT_RESUMED, TLS_1_3
from avow.channel.tls import session_reused
from avow.errors import MalformedError, UntrustedError

# How many certificates are not parsed again.
CERTIFICATES_KEPT: Final = 256

HashName = Literal["sha256", "sha384"]
Export = Callable[[bytes, int, bytes], bytes]


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """One finished TLS 1.3 handshake, seen from one end.

    `hash_name` is the hash of the cipher suite. `own_spki` and `peer_spki` are the DER encodings of
    the SubjectPublicKeyInfo of the certificates that were sent in the handshake, empty where none
    was (a client without a certificate; a pre-shared key). `export(label, length, context)` is the
    exporter of RFC 8446, section 7.5; the connection must stay open while it is used.
    """

    hash_name: HashName
    own_spki: bytes
    peer_spki: bytes
    export: Export = field(repr=False)


def check_handshake(connection: SSL.Connection, *, external_psk: bool = False) -> None:
    """The checks on a finished handshake: TLS 1.3 (C1), and nothing resumed (C2).

    `external_psk` says that it was authenticated with a pre-shared key from a file instead of with
    certificates; OpenSSL reports that as a resumed session. Raises `UntrustedError`.
    """
    if connection.get_protocol_version() != SSL.TLS1_3_VERSION:
        raise UntrustedError.at(
            TLS_1_3,
            expected="TLS 1.3",
            actual=connection.get_protocol_version_name(),
            advice="have both sides use TLS 1.3, which attestation needs",
        )
    if session_reused(connection) and not external_psk:
        raise UntrustedError.at(
            NOT_RESUMED,
            expected="a full handshake",
            actual="a resumed session",
            advice="connect without a saved session or ticket",
        )


def facts_of(
    connection: SSL.Connection, end: Literal["client", "server"], *, external_psk: bool = False
) -> TlsFacts:
    """The facts of a connection whose handshake has finished; `end` is the one that we are.

    `external_psk` is as of `check_handshake`, which is made here. Raises `UntrustedError`, and
    `MalformedError` as `peer_certificate`.
    """
    check_handshake(connection, external_psk=external_psk)
    own, peer = b"", None
    if not external_psk:
        peer = peer_certificate(connection)
        # OpenSSL tells a client which certificate it has, not whether it was asked for it. A server
        # that asks names its authorities.
        if end == "server" or connection.get_client_ca_list():
            own = _own_spki(connection)
    return TlsFacts(
        hash_name=_hash_of(connection.get_cipher_name() or ""),
        own_spki=own,
        peer_spki=_spki(peer),
        # An exchange asks for the same few values more than once.
        export=functools.lru_cache(maxsize=8)(connection.export_keying_material),
    )


def peer_certificate(connection: SSL.Connection) -> x509.Certificate | None:
    """The certificate that the peer has shown, if any.

    OpenSSL takes certificates that cannot be read here, and where nobody verifies them, anybody can
    make one. Raises `MalformedError` for these.
    """
    with _readable():
        return connection.get_peer_certificate(as_cryptography=True)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise MalformedError(
            "expected a certificate of X.509 version 3 with a key of a known kind from the "
            "peer, got another; have the peer's certificate issued again"
        ) from error


def _hash_of(cipher_suite: str) -> HashName:
    """RFC 8446, appendix B.4: the name of a cipher suite of TLS 1.3 ends in its hash."""
    if cipher_suite.endswith("_SHA256"):
        return "sha256"
    if cipher_suite.endswith("_SHA384"):
        return "sha384"
    raise UntrustedError.at(
        TLS_1_3,
        expected="a cipher suite of TLS 1.3",
        actual=repr(cipher_suite),
        advice="have both sides use TLS 1.3, which attestation needs",
    )


# A context has one certificate, from before its first connection to its end: to read it out of each
# connection costs more than the rest of the facts.
_own_spkis: WeakKeyDictionary[SSL.Context, bytes] = WeakKeyDictionary()


def _own_spki(connection: SSL.Connection) -> bytes:
    context = connection.get_context()
    found = _own_spkis.get(context)
    if found is None:
        found = _own_spkis[context] = _spki(connection.get_certificate(as_cryptography=True))
    return found


def _spki(certificate: x509.Certificate | None) -> bytes:
    return b"" if certificate is None else _spki_of(certificate.public_bytes(Encoding.DER))


@functools.lru_cache(maxsize=CERTIFICATES_KEPT)
def _spki_of(certificate: bytes) -> bytes:
    """Of a certificate in DER. A listener has one, and clients meet the same servers again."""
    with _readable():
        key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
