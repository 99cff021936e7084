"""avow's errors as paho-mqtt and aiomqtt need them: an attempt to connect that failed.

Both take only an `OSError` for that. Any other exception ends paho's network thread for good, and
leaves an aiomqtt client locked. So each of these is both: the typed error, with its finding, and a
`ConnectionError`.
"""

from __future__ import annotations

from avow.errors import AvowError, DeniedError, MalformedError, UnavailableError, UntrustedError


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
