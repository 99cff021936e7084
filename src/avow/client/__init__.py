"""Attested connections for MQTT clients: paho-mqtt, aiomqtt, the command line, the local proxy.

What is named here is imported when it is used: a plain `avow pub` needs no verifiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avow.client.attested_context import AttestedContext
    from avow.client.attested_socket import AttestedSocket
    from avow.client.connection_errors import (
        DeniedPeerError,
        MalformedPeerError,
        UnavailablePeerError,
        UntrustedPeerError,
    )

__all__ = [
    "AttestedContext",
    "AttestedSocket",
    "DeniedPeerError",
    "MalformedPeerError",
    "UnavailablePeerError",
    "UntrustedPeerError",
]


def __getattr__(name: str) -> Any:
    if name == "AttestedContext":
        from avow.client import attested_context as module
    elif name == "AttestedSocket":
        from avow.client import attested_socket as module  # type: ignore[no-redef]
    elif name in __all__:
        from avow.client import connection_errors as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
