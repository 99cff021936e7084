"""The client's side of TLS by OpenSSL itself: TLS 1.3 only, names checked, no resumption.

The name is checked by OpenSSL during the handshake (X509_VERIFY_PARAM_set1_host and set1_ip), as
the standard library has it done: nothing is sent to a server with another name.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL, crypto

from avow.channel.certificate_words import certificate_advice
from avow.channel.certificates import load_chain, load_key
from avow.channel.checks import SERVER
from avow.channel.named_files import read_named_file
from avow.channel.psk import load_pre_shared_keys, offer_key
from avow.channel.tls import openssl_accepts
from avow.client.options import ClientTls
from avow.errors import MalformedError, UnavailableError, UntrustedError

# openssl/x509_vfy.h: `*` stands for a whole label, as the standard library has it.
_NO_PARTIAL_WILDCARDS: Final = 0x4


def client_context(tls: ClientTls, now: datetime) -> SSL.Context:
    """Loads every file that `tls` names. One context serves any number of connections.

    Raises `UnavailableError`, `MalformedError` or `UntrustedError` that names the file.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    if tls.psk is not None:
        _use_key(context, tls, tls.psk)
    elif tls.unsafe_no_verify:
        context.set_verify(SSL.VERIFY_NONE)
    else:
        context.set_verify(SSL.VERIFY_PEER)
        _trust(context, tls.cafile)
    if tls.certificate is not None:
        _use_certificate(context, tls.certificate, tls.key, now)
    elif tls.key is not None:
        raise MalformedError("expected --cert with --key, got none; name the certificate's file")
    return context


def expect_server(connection: SSL.Connection, host: str) -> None:
    """Has OpenSSL accept only a certificate for `host`, a name or an IP address.

    Raises `MalformedError` for what cannot be a name.
    """
    library, bindings = Binding().lib, Binding().ffi
    parameters = library.SSL_get0_param(connection._ssl)
    try:
        address = ipaddress.ip_address(host).packed
    except ValueError:
        name = _ascii_name(host)
        # RFC 6066, section 3: names only, never addresses.
        connection.set_tlsext_host_name(name)
        library.X509_VERIFY_PARAM_set_hostflags(parameters, _NO_PARTIAL_WILDCARDS)
        taken = library.X509_VERIFY_PARAM_set1_host(parameters, name, len(name))
    else:
        taken = library.X509_VERIFY_PARAM_set1_ip(
            parameters, bindings.from_buffer(address), len(address)
        )
    if taken != 1:
        raise MalformedError(f"expected a host's name or address, got {host!r}; correct it")


def certificate_error(connection: SSL.Connection, host: str) -> UntrustedError | None:
    """Why OpenSSL refused the server's certificate; None when that was not what went wrong."""
    library = Binding().lib
    code = library.SSL_get_verify_result(connection._ssl)
    if code == 0:
        return None
    said = Binding().ffi.string(library.X509_verify_cert_error_string(code)).decode()
    return UntrustedError.at(
        SERVER,
        expected=f"a certificate for {host} from a trusted authority",
        actual=f"one that fails with {said!r}",
        advice=certificate_advice(code),
    )


def _use_key(context: SSL.Context, tls: ClientTls, path: Path) -> None:
    if tls != ClientTls(psk=path):
        raise MalformedError(
            "expected a pre-shared key or certificates, got both; choose one of them"
        )
    keys = list(load_pre_shared_keys(path).by_identity.values())
    if len(keys) != 1:
        raise MalformedError(
            f"expected one line identity:key in {path}, got {len(keys)}; a client has one key"
        )
    offer_key(context, keys[0])


def _ascii_name(host: str) -> bytes:
    try:
        name = host.encode("idna")
    except UnicodeError as error:
        raise MalformedError(
            f"expected a host's name or address, got {host!r}; correct it"
        ) from error
    if not name or b"\0" in name or host.startswith("."):
        raise MalformedError(f"expected a host's name or address, got {host!r}; correct it")
    return name


def _trust(context: SSL.Context, cafile: Path | None) -> None:
    if cafile is None:
        context.set_default_verify_paths()
        return
    content = read_named_file(cafile, "CA certificate")
    store = context.get_cert_store()
    if store is None:
        raise UnavailableError("expected an X.509 store in the TLS context, got none; report this")
    try:
        authorities = x509.load_pem_x509_certificates(content)
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedError(
            f"expected PEM certificates, got something else in {cafile}; correct --cafile"
        ) from error
    with openssl_accepts("authorities", cafile, "correct --cafile"):
        for authority in authorities:
            store.add_cert(crypto.X509.from_cryptography(authority))


def _use_certificate(
    context: SSL.Context, certificate: Path, key: Path | None, now: datetime
) -> None:
    chain = load_chain(certificate, now)
    # As with the `ssl` module, one file may hold both.
    private_key = load_key(key if key is not None else certificate, chain[0], certificate)
    with openssl_accepts(
        "a certificate", certificate, "use an RSA key of at least 2048 bits or an EC key"
    ):
        context.use_certificate(chain[0])
        for intermediate in chain[1:]:
            context.add_extra_chain_cert(intermediate)
        context.use_privatekey(private_key)
