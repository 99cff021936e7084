"""Where a test reaches the broker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCHEMES = ("mqtt", "mqtts", "ws", "wss")


@dataclass(frozen=True)
class Endpoint:
    """One listener of the running broker; `ca` is the authority of its certificate."""

    scheme: str
    host: str
    port: int
    ca: Path

    @property
    def encrypted(self) -> bool:
        return self.scheme in {"mqtts", "wss"}

    @property
    def websocket(self) -> bool:
        return self.scheme in {"ws", "wss"}

    @property
    def url(self) -> str:
        path = "/mqtt" if self.websocket else ""
        return f"{self.scheme}://{self.host}:{self.port}{path}"
