"""An attested peer in front of a real broker, and what its clients need to know."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avow.client import AttestedContext, AttestedSocket
from avow.testing.attested_peer import AttestedPeer, Serve, attested_peer, echo
from avow.testing.pki import Authority

PATIENCE_S = 20.0


@dataclass(frozen=True)
class AttestedEndpoint:
    """`folder` holds ca.pem and policy.toml; `authority` signed the peer's certificate."""

    peer: AttestedPeer
    folder: Path
    authority: Authority

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.toml"

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.peer.port}"

    @property
    def options(self) -> list[str]:
        """What the commands need to accept the peer."""
        return ["--cafile", str(self.ca), "--policy", str(self.policy)]

    def context(self, **more: Any) -> AttestedContext:
        """A context that accepts the peer."""
        return AttestedContext(self.policy, **{"cafile": self.ca, **more})

    def connect(
        self, context: AttestedContext | None = None, host: str = "localhost"
    ) -> AttestedSocket:
        """An attested connection; `host` is the name that the certificate has to have."""
        sock = socket.create_connection(("127.0.0.1", self.peer.port), PATIENCE_S)
        return (context or self.context()).wrap_socket(sock, server_hostname=host)


@contextmanager
def attested_endpoint(folder: Path, serve: Serve = echo) -> Iterator[AttestedEndpoint]:
    """A peer that answers with what it gets, or as `serve` says."""
    authority = Authority()
    with attested_peer(folder, authority=authority, serve=serve) as peer:
        yield AttestedEndpoint(peer, folder, authority)
