"""avow's errors as paho-mqtt and aiomqtt need them: an attempt to connect that failed.

Both take only an `OSError` for that. Any other exception ends paho's network thread for good, and
leaves an aiomqtt client locked. So each of these is both: the typed error, with its finding, and a
`ConnectionError`.
"""

from __future__ import annotations

from typing import Final

from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError, UntrustedError

# openssl/x509_vfy.h; the rest of the codes need no words of their own.
_NOT_YET_VALID: Final = frozenset({9, 11})
_EXPIRED: Final = frozenset({10, 12})
_NAME_MISMATCHES: Final = frozenset({62, 64})


class MalformedPeerError(MalformedError, ConnectionError):
    """The server sent what the protocol or the evidence does not allow."""


class UntrustedPeerError(UntrustedError, ConnectionError):
    """The server's certificate or evidence has no proven origin, or there was no evidence."""


class DeniedPeerError(DeniedError, ConnectionError):
    """The policy does not accept the server, or the server does not accept this client."""


class UnavailablePeerError(UnavailableError, ConnectionError):
    """The server, or what is needed to judge it, was not there."""


_KINDS: tuple[tuple[type[AvowError], type[AvowError]], ...] = (
    (MalformedError, MalformedPeerError),
    (UntrustedError, UntrustedPeerError),
    (DeniedError, DeniedPeerError),
    (UnavailableError, UnavailablePeerError),
)


def peer_error(error: AvowError) -> AvowError:
    """The same error, of the class here that is also a `ConnectionError`."""
    if isinstance(error, ConnectionError):
        return error
    for kind, connection_kind in _KINDS:
        if isinstance(error, kind):
            same = connection_kind(str(error))
            same.finding = error.finding
            return same
    same = UnavailablePeerError(str(error))
    same.finding = error.finding
    return same


def certificate_advice(code: int) -> str:
    """What to do about a server's certificate that OpenSSL refuses with this X509_V_ERR."""
    if code in _NOT_YET_VALID:
        return "set this machine's clock, which is behind"
    if code in _EXPIRED:
        return "have the server's operator renew it, or set this machine's clock"
    if code in _NAME_MISMATCHES:
        return "connect by the name that the certificate has"
    return "name the authority's file (cafile=, --cafile)"
