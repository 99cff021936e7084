"""Certificates, keys and revocation lists from PEM files, checked when they are loaded.

What OpenSSL would discover at some client's handshake (an expired certificate, a key that belongs
to another certificate, a stale revocation list) is refused at the start instead, with the name of
the file. Times are arguments: nothing here reads a clock.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from avow.channel.named_files import Read, read_named_file
from avow.errors import MalformedError, UntrustedError
from avow.evidence.validity import advice_at

# The kinds that TLS can sign a handshake with.
ServerKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


def load_chain(
    path: Path, now: datetime, *, read: Read = read_named_file
) -> list[x509.Certificate]:
    """A server's certificate followed by its intermediates; each has to be valid at `now`."""
    chain = _load_certificates(path, "certificate", read)
    for certificate in chain:
        _check_validity(certificate, path, now)
    return chain


def load_authorities(
    path: Path, now: datetime, *, read: Read = read_named_file
) -> list[x509.Certificate]:
    """The authorities that client certificates may come from; at least one is valid at `now`.

    A bundle usually keeps an expired root beside its successor: OpenSSL refuses chains through it,
    so it does no harm, and only a bundle of nothing else is an error.
    """
    authorities = _load_certificates(path, "client CA", read)
    if all(not _valid(certificate, now) for certificate in authorities):
        _check_validity(authorities[0], path, now)
    return authorities


def read_key(path: Path, *, read: Read = read_named_file) -> ServerKey:
    """The private key in a file, whichever certificate it belongs to.

    Raises `MalformedError`, or `UnavailableError` where the file cannot be read; no message holds
    key bytes.
    """
    content = read(path, "private key")
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise MalformedError(
            f"expected an unencrypted private key, got one with a passphrase in {path}; "
            f"decrypt it with `openssl pkey -in {path.name} -out ...` and protect it with chmod 600"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedError(
            f"expected a PEM private key, got something else in {path}; "
            f"correct the path or write the key as PEM"
        ) from error
    if not isinstance(key, ServerKey):
        raise MalformedError(
            f"expected an RSA, EC or Ed25519 private key, got another kind in {path}; "
            f"make a key of one of these kinds"
        )
    return key


def load_key(
    path: Path,
    certificate: x509.Certificate,
    certificate_path: Path,
    *,
    read: Read = read_named_file,
) -> ServerKey:
    """The private key of `certificate`. Raises as `read_key`, and for a key of another one."""
    key = read_key(path, read=read)
    try:
        certified = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedError(
            f"expected a certificate of an RSA, EC or Ed25519 key, got one of another kind or a "
            f"damaged one in {certificate_path}; issue it again"
        ) from error
    if _public_bytes(key) != certified.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise MalformedError(
            f"expected the private key of the certificate in {certificate_path}, got another key "
            f"in {path}; name the two files that belong together"
        )
    return key


def load_revocation_lists(
    path: Path, now: datetime, *, read: Read = read_named_file
) -> list[x509.CertificateRevocationList]:
    """The CRLs of one file, none of them stale: with a stale one OpenSSL refuses every client."""
    content = read(path, "revocation list")
    marker = b"-----END X509 CRL-----"
    pieces = [piece for piece in content.split(marker)[:-1] if piece.strip()]
    if not pieces:
        raise MalformedError(
            f"expected a PEM revocation list, got none in {path}; "
            f"correct the path or write the CRL as PEM"
        )
    lists = []
    for piece in pieces:
        try:
            crl = x509.load_pem_x509_crl(piece + marker + b"\n")
        except (ValueError, x509.InvalidVersion) as error:
            raise MalformedError(
                f"expected a PEM revocation list, got a damaged one in {path}; fetch it again"
            ) from error
        if crl.next_update_utc is not None and crl.next_update_utc < now:
            raise UntrustedError(
                f"expected a current revocation list, got one in {path} that was due for renewal "
                f"at {crl.next_update_utc:%Y-%m-%d %H:%M:%S} UTC; fetch a new one"
            )
        if now < crl.last_update_utc:
            raise UntrustedError(
                f"expected a current revocation list, got one in {path} that is valid only from "
                f"{crl.last_update_utc:%Y-%m-%d %H:%M:%S} UTC; "
                + advice_at(now, crl.last_update_utc, "")
            )
        lists.append(crl)
    return lists


def _load_certificates(path: Path, what: str, read: Read) -> list[x509.Certificate]:
    content = read(path, what)
    try:
        return x509.load_pem_x509_certificates(content)
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedError(
            f"expected PEM certificates, got something else in {path}; "
            f"correct the path or write the {what} as PEM"
        ) from error


def _valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _check_validity(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    if now > certificate.not_valid_after_utc:
        raise UntrustedError(
            f"expected a valid certificate, got one in {path} that expired at "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC; renew it"
        )
    if now < certificate.not_valid_before_utc:
        raise UntrustedError(
            f"expected a valid certificate, got one in {path} that is valid only from "
            f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC; "
            + advice_at(now, certificate.not_valid_before_utc, "")
        )


def _public_bytes(key: ServerKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
