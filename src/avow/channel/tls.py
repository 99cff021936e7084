"""Server-side TLS by OpenSSL: TLS 1.3 unless 1.2 is asked for, no early data, no resumption.

Why no resumption: a resumed connection has not proven the client's certificate again, and its
exporter is not bound to a fresh handshake. pyOpenSSL cannot stop OpenSSL from sending session
tickets, so they are made useless instead: `OP_NO_TICKET` turns them into names of cache entries,
and there is no cache. `Acceptor` checks `session_reused` besides. Early data is off because
OpenSSL accepts none unless a server asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from avow.channel.certificate_words import SET_THE_CLOCK, is_not_yet_valid
from avow.channel.certificates import (
    load_authorities,
    load_chain,
    load_key,
    load_revocation_lists,
)
from avow.channel.named_files import Read, read_named_file
from avow.errors import MalformedError

TlsVersion = Literal["1.2", "1.3"]

# With TLS 1.2 only suites with forward secrecy and AEAD; those of TLS 1.3 all are.
_TLS_1_2_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
# The depth of a client's chain: leaf, three intermediates, root.
_CHAIN_DEPTH_MAX = 4


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What one TLS listener is made of: paths of PEM files and what is asked of clients.

    Without `certificate` and `key` the context has none, unless one is made for it (`Credential`).
    """

    certificate: Path | None
    key: Path | None
    client_ca: Path | None = None
    crl: Path | None = None
    require_certificate: bool = True
    minimum: TlsVersion = "1.3"


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate that was made in this process, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def server_context(
    tls: ServerTls,
    now: datetime,
    *,
    credential: Credential | None = None,
    read: Read = read_named_file,
) -> SSL.Context:
    """Loads and checks every file, and returns the context for new connections.

    `credential` takes the place of the files of the certificate and its key. `read` reads all
    files: from the disk, or what was provisioned. Raises `UnavailableError`, `MalformedError` or
    `UntrustedError` that names the file.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(
        SSL.TLS1_2_VERSION if tls.minimum == "1.2" else SSL.TLS1_3_VERSION
    )
    context.set_cipher_list(_TLS_1_2_CIPHERS)
    context.set_options(
        SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | int(Binding().lib.SSL_OP_NO_RENEGOTIATION)
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # Without it a client that offers an old session is refused instead of given a full handshake.
    context.set_session_id(b"avow")
    # An idle connection then holds no record buffers.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    if credential is not None:
        context.use_certificate(credential.certificate)
        context.use_privatekey(credential.key)
    elif tls.certificate is not None and tls.key is not None:
        _use_certificate(context, tls.certificate, tls.key, now, read)
    if tls.client_ca is None:
        context.set_verify(SSL.VERIFY_NONE)
    else:
        _ask_for_client_certificates(context, tls.client_ca, tls, now, read)
    return context


def _use_certificate(
    context: SSL.Context, path: Path, key_path: Path, now: datetime, read: Read
) -> None:
    chain = load_chain(path, now, read=read)
    key = load_key(key_path, chain[0], path, read=read)
    with openssl_accepts(
        "a certificate", path, "use an RSA key of at least 2048 bits or an EC key"
    ):
        context.use_certificate(chain[0])
        for intermediate in chain[1:]:
            context.add_extra_chain_cert(intermediate)
        context.use_privatekey(key)


def _ask_for_client_certificates(
    context: SSL.Context, client_ca: Path, tls: ServerTls, now: datetime, read: Read
) -> None:
    store = context.get_cert_store()
    if store is None:
        raise MalformedError("expected an X.509 store in the TLS context, got none; report this")
    authorities = load_authorities(client_ca, now, read=read)
    with openssl_accepts("authorities", client_ca, "fetch them again"):
        for authority in authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))
            context.add_client_ca(authority)
    if tls.crl is not None:
        lists = load_revocation_lists(tls.crl, now, read=read)
        with openssl_accepts("revocation lists", tls.crl, "fetch them again"):
            for crl in lists:
                store.add_crl(crl)
        # Every certificate of the chain is looked up: a revoked intermediate counts, and an
        # authority without a CRL in the file makes its clients' handshakes fail.
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
    required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if tls.require_certificate else 0
    context.set_verify(SSL.VERIFY_PEER | required)
    context.set_verify_depth(_CHAIN_DEPTH_MAX)


@contextmanager
def openssl_accepts(what: str, path: Path, advice: str) -> Iterator[None]:
    """Around what is given to OpenSSL out of `path`. Raises `MalformedError` where it will not have
    it: it reads more strictly here, and less strictly there, than who has read it before."""
    try:
        yield
    except (SSL.Error, crypto.Error) as error:
        raise MalformedError(
            f"expected {what} that OpenSSL accepts, got {reason_of(error)!r} for {path}; {advice}"
        ) from error


def session_reused(connection: SSL.Connection) -> bool:
    """True when the finished handshake resumed an older session."""
    return bool(Binding().lib.SSL_session_reused(connection._ssl))


def certificate_failure(connection: SSL.Connection) -> str:
    """Why OpenSSL did not accept the peer's certificate, and what to do; empty when it did."""
    library = Binding().lib
    code = library.SSL_get_verify_result(connection._ssl)
    if code == 0:
        return ""
    said = str(Binding().ffi.string(library.X509_verify_cert_error_string(code)).decode())
    if is_not_yet_valid(code):
        return f"{said}; {SET_THE_CLOCK}"
    return said


def reason_of(error: SSL.Error | crypto.Error) -> str:
    """OpenSSL's own words for an error, or a plain one when it gave none."""
    if isinstance(error, SSL.ZeroReturnError):
        return "the peer closed the connection"
    if isinstance(error, SSL.SysCallError):
        return "the connection was lost"
    reasons = error.args[0] if error.args else []
    if isinstance(reasons, list) and reasons:
        return str(reasons[-1][-1]) or "a TLS error"
    return "a TLS error"
