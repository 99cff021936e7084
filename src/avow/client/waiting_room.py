"""Clients of the proxy that were accepted and are not connected to the server yet.

A client costs the server a handshake and a quote, so it has to say something first: the first byte
of MQTT, or the whole request for a WebSocket, which is judged here. Until then it holds no
connection's place and no thread, only a descriptor, for a short time.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from avow.channel.address import host_and_port
from avow.channel.web_origin import (
    HEAD_BYTES_MAX,
    WebRule,
    check_web_request,
    head_end,
    refusal_response,
)
from avow.client.socket_owner import owner_of
from avow.errors import AvowError, MalformedError

# How many wait at most, silent or for a place, and how long one may stay silent.
WAITING_MAX: Final = 256
SILENT_S: Final = 10.0
# MQTT 5.0, section 2.1.2: a client's first packet is CONNECT [MQTT-3.1.0-1].
_CONNECT: Final = b"\x10"


@dataclass(slots=True, eq=False)
class Waiting:
    """One client. `owner` is whose it is: a user of this machine, or another machine. `begun` is
    what was read of it already."""

    local: socket.socket
    peer: str
    owner: str
    since_s: float = field(default_factory=time.monotonic)
    begun: bytes = b""


class WaitingRoom:
    """For one thread, which waits on `selector`; the descriptors of silent clients are in it."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        web: WebRule | None,
        waiting_max: int = WAITING_MAX,
        silent_s: float = SILENT_S,
    ) -> None:
        """`web` is there when clients speak WebSocket."""
        self._selector = selector
        self._web = web
        self._waiting_max = waiting_max
        self._silent_s = silent_s
        self._silent: dict[Waiting, None] = {}
        # Those that wait for a place, the first that came first.
        self.ready: deque[Waiting] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another client can come: a silent one gives way."""
        return len(self.ready) < self._waiting_max

    @property
    def ends_in_s(self) -> float | None:
        """When the next silent client has to go."""
        first = next(iter(self._silent), None)
        if first is None:
            return None
        return max(0.0, first.since_s + self._silent_s - time.monotonic())

    def add(self, local: socket.socket, host: str, port: int) -> Waiting | None:
        """A new client; returns the one that had to go for it: the longest silent one of whoever
        has most of them."""
        gone = None
        if len(self._silent) + len(self.ready) >= self._waiting_max:
            crowd = Counter(each.owner for each in self._silent).most_common(1)[0][0]
            gone = next(each for each in self._silent if each.owner == crowd)
            self._drop(gone)
        local.setblocking(False)
        client = Waiting(local, host_and_port(host, port), owner_of(local))
        self._silent[client] = None
        self._selector.register(local, selectors.EVENT_READ, client)
        return gone

    def hear(self, client: Waiting) -> None:
        """It said something. Raises an `AvowError` for what no client of this proxy says, when it
        has been told and is gone."""
        try:
            ready = self._hear_mqtt(client) if self._web is None else self._hear_web(client)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(client)
            return
        except AvowError as error:
            if self._web is not None:
                with contextlib.suppress(OSError):
                    client.local.send(refusal_response(error))
            self._drop(client)
            raise
        if ready:
            self._silent.pop(client)
            self._selector.unregister(client.local)
            client.local.setblocking(True)
            self.ready.append(client)

    def expire(self) -> list[Waiting]:
        """Those that were silent for too long; they are gone."""
        late = []
        while self.ends_in_s == 0.0:
            late.append(next(iter(self._silent)))
            self._drop(late[-1])
        return late

    def close(self) -> None:
        """Ends all of them."""
        for client in list(self._silent):
            self._drop(client)
        for client in self.ready:
            client.local.close()
        self.ready.clear()

    def _hear_mqtt(self, client: Waiting) -> bool:
        first = client.local.recv(1, socket.MSG_PEEK)
        if not first:
            self._drop(client)
            return False
        if first != _CONNECT:
            raise MalformedError(
                f"expected MQTT, which begins with the byte 10, got {first.hex()}; a web "
                "page or another program has connected: give this address only to MQTT "
                "clients"
            )
        return True

    def _hear_web(self, client: Waiting) -> bool:
        assert self._web is not None
        piece = client.local.recv(HEAD_BYTES_MAX)
        if not piece:
            self._drop(client)
            return False
        client.begun += piece
        end = head_end(client.begun)
        if end is None:
            return False
        check_web_request(client.begun[:end], self._web)
        return True

    def _drop(self, client: Waiting) -> None:
        self._silent.pop(client)
        self._selector.unregister(client.local)
        client.local.close()
