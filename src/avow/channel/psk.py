"""TLS with pre-shared keys from a file, for devices that are too small for certificates.

TLS 1.3 only, and only together with an ephemeral key exchange (psk_dhe_ke of RFC 8446, section
4.2.9): a key that leaks later opens no recording. The hash of a key is SHA-256, which is what the
RFC says for keys that name none (section 4.2.11), and what clients with OpenSSL's older callback
use, such as mosquitto's. An identity travels in the clear.

OpenSSL calls a handshake with such a key resumed. What tells it from a resumed ticket: the server's
callback has given the key of an identity to this very connection, and a ticket cannot have won,
because the contexts of `avow.channel.tls` neither keep sessions nor accept tickets.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from cryptography.hazmat.bindings._rust import _openssl
from OpenSSL import SSL

from avow.channel.named_files import Read, read_named_file, read_named_text
from avow.channel.tls import session_reused
from avow.errors import MalformedError, UntrustedError, counted

IDENTITY_BYTES_MAX: Final = 128
# Whoever records a handshake can try keys against it, so a key has to be one that nobody guesses.
KEY_BYTES_MIN: Final = 16
KEY_BYTES_MAX: Final = 64

# TLS_AES_128_GCM_SHA256: any suite with SHA-256 serves, it is the hash that belongs to a key.
_SUITE: Final = b"\x13\x01"
_CLIENT_SUITES: Final = b"TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
_SERVER_SUITES: Final = _CLIENT_SUITES + b":TLS_AES_256_GCM_SHA384"

_LINE = re.compile(r"([^:]+):([0-9A-Fa-f]*)")


@dataclass(frozen=True, slots=True)
class PreSharedKey:
    """A printable identity of 1 to 128 bytes, and its key of 16 to 64 bytes."""

    identity: str
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PreSharedKeys:
    """All keys of one file, by identity."""

    by_identity: Mapping[bytes, PreSharedKey] = field(repr=False)

    def __len__(self) -> int:
        return len(self.by_identity)

    def of(self, identity: str) -> PreSharedKey | None:
        """The key of an identity."""
        return self.by_identity.get(identity.encode())


def load_pre_shared_keys(path: Path, *, read: Read = read_named_file) -> PreSharedKeys:
    """Reads `identity:key` lines with the key in hexadecimal digits, as mosquitto's psk_file.

    Empty lines and those that begin with # mean nothing. Raises `UnavailableError` or
    `MalformedError`; no message holds a key.
    """
    return parse_pre_shared_keys(
        read_named_text(path, "pre-shared keys", read=read), name=str(path)
    )


def parse_pre_shared_keys(text: str, *, name: str) -> PreSharedKeys:
    """The keys in the text of a file; `name` names it in the error, a `MalformedError`."""
    found: dict[bytes, PreSharedKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key = _parse(line.strip(), name, number)
        if key.identity.encode() in found:
            raise _malformed(name, number, "each identity once", "one again", "keep one of them")
        found[key.identity.encode()] = key
    return PreSharedKeys(found)


def _parse(line: str, name: str, number: int) -> PreSharedKey:
    match = _LINE.fullmatch(line)
    if match is None or len(match[2]) % 2:
        raise _malformed(
            name, number, "identity:key with hexadecimal digits", "something else", "correct it"
        )
    identity, key = match[1], bytes.fromhex(match[2])
    if not identity.isprintable() or len(identity.encode()) > IDENTITY_BYTES_MAX:
        raise _malformed(
            name,
            number,
            f"a printable identity of at most {IDENTITY_BYTES_MAX} bytes",
            "another",
            "choose a plain name",
        )
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise _malformed(
            name,
            number,
            f"a key of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes",
            f"{counted(len(key), 'byte')}",
            "make one with `openssl rand -hex 32`",
        )
    return PreSharedKey(identity, key)


def _malformed(name: str, number: int, expected: str, actual: str, advice: str) -> MalformedError:
    return MalformedError(f"expected {expected} in line {number} of {name}, got {actual}; {advice}")


def serve_keys(context: SSL.Context, keys: PreSharedKeys) -> None:
    """New connections of this server context may be authenticated with one of `keys`.

    A client that offers none of them gets the ordinary handshake with the server's certificate, if
    the context has one. The suites with SHA-256 go first, because no other fits a key.
    """
    _server_keys[context] = keys
    context.set_tls13_ciphersuites(_SERVER_SUITES)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    _openssl.lib.SSL_CTX_set_psk_find_session_callback(_pointer(context), _callbacks()[0])


def key_identity(connection: SSL.Connection) -> str | None:
    """Server: the identity whose key authenticated this finished handshake; None without one."""
    if not session_reused(connection):
        # A key may have been found and not used; then the certificate counted.
        return None
    return _found.get(connection)


def offer_key(context: SSL.Context, key: PreSharedKey) -> None:
    """New connections of this client context offer `key` and are content with nothing else.

    Call `require_key` after the handshake.
    """
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_CLIENT_SUITES)
    # A server that knows no key would answer with a certificate, and there is nobody to trust.
    context.set_verify(SSL.VERIFY_PEER)
    ffi = _openssl.ffi
    _client_keys[context] = (key, ffi.new("unsigned char[]", key.identity.encode()))
    _openssl.lib.SSL_CTX_set_psk_use_session_callback(_pointer(context), _callbacks()[1])


def require_key(connection: SSL.Connection) -> None:
    """Client: raises `UntrustedError` unless the handshake was authenticated with the key.

    A context of `offer_key` on which nobody calls `set_session` can have resumed nothing else.
    """
    if not session_reused(connection):
        raise UntrustedError(
            "expected a server that proves that it knows the pre-shared key, got one that "
            "does not use it; compare identity and key with the server's psk_file"
        )


# The keys of a context, and the identity that a handshake has found. A pyOpenSSL object that is
# gone takes its entry with it.
_server_keys: WeakKeyDictionary[SSL.Context, PreSharedKeys] = WeakKeyDictionary()
_client_keys: WeakKeyDictionary[SSL.Context, tuple[PreSharedKey, Any]] = WeakKeyDictionary()
_found: WeakKeyDictionary[SSL.Connection, str] = WeakKeyDictionary()


@functools.cache
def _callbacks() -> tuple[Any, Any]:
    """One pair for the whole process, never freed: a connection may outlive its pyOpenSSL objects.

    OpenSSL calls them while it reads or writes a ClientHello and at no other time. The pump, which
    gets connections after their handshake, can never reach them: TLS 1.3 has no renegotiation.
    """
    ffi = _openssl.ffi
    find = ffi.callback(
        "int(SSL *, unsigned char *, size_t, SSL_SESSION **)", _find_session, error=0
    )
    use = ffi.callback(
        "int(SSL *, EVP_MD *, unsigned char **, size_t *, SSL_SESSION **)", _use_session, error=0
    )
    return find, use


def _find_session(ssl: Any, identity: Any, identity_bytes: int, session: Any) -> int:
    """SSL_psk_find_session_cb_func: 1 with a session, 1 without (go on), 0 to give up."""
    session[0] = _openssl.ffi.NULL
    connection = _connection_of(ssl)
    if connection is None:
        return 0
    # A second ClientHello, or a second identity, takes back what an earlier one found.
    _found.pop(connection, None)
    keys = _server_keys.get(connection.get_context())
    name = bytes(_openssl.ffi.buffer(identity, identity_bytes))
    key = None if keys is None else keys.by_identity.get(name)
    if key is None:
        return 1
    made = _session_of(ssl, key)
    if made is None:
        return 0
    _found[connection] = key.identity
    session[0] = made
    return 1


def _use_session(ssl: Any, digest: Any, identity: Any, identity_bytes: Any, session: Any) -> int:
    """SSL_psk_use_session_cb_func."""
    session[0] = _openssl.ffi.NULL
    connection = _connection_of(ssl)
    if connection is None or connection.get_context() not in _client_keys:
        return 0
    key, name = _client_keys[connection.get_context()]
    made = _session_of(ssl, key)
    if made is None:
        return 0
    # OpenSSL copies the identity; it lives as long as the context.
    identity[0], identity_bytes[0] = name, len(key.identity.encode())
    session[0] = made
    return 1


def _connection_of(ssl: Any) -> SSL.Connection | None:
    mapping: Any = SSL.Connection
    found: SSL.Connection | None = mapping._reverse_mapping.get(ssl)
    return found


def _session_of(ssl: Any, key: PreSharedKey) -> Any:
    """What OpenSSL takes a key as; it belongs to the caller, who gives it to OpenSSL."""
    lib, ffi = _openssl.lib, _openssl.ffi
    session = lib.Cryptography_SSL_SESSION_new()
    suite = lib.SSL_CIPHER_find(ssl, _SUITE)
    if session == ffi.NULL:
        return None
    if (
        suite == ffi.NULL
        or lib.SSL_SESSION_set1_master_key(session, key.key, len(key.key)) != 1
        or lib.SSL_SESSION_set_cipher(session, suite) != 1
        or lib.SSL_SESSION_set_protocol_version(session, SSL.TLS1_3_VERSION) != 1
    ):
        lib.SSL_SESSION_free(session)
        return None
    return session


def _pointer(context: SSL.Context) -> Any:
    private: Any = context
    return private._context
