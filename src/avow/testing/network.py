"""A network for simulations: byte streams that delay, split and break, all from one seed."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Pipe:
    """One direction of a connection: bytes come out in order, late, and in other pieces."""

    chance: random.Random
    delay_max_ms: int = 40
    queue: deque[tuple[int, bytes]] = field(default_factory=deque)
    last_ms: int = 0

    def put(self, now_ms: int, data: bytes) -> None:
        """Bytes enter; each piece has a delay of its own, and none overtakes another."""
        while data:
            size = len(data)
            if size > 1 and self.chance.random() < 0.3:
                size = self.chance.randrange(1, size)
            piece, data = data[:size], data[size:]
            at_ms = now_ms + int(self.chance.random() ** 3 * self.delay_max_ms)
            self.last_ms = max(self.last_ms, at_ms)
            self.queue.append((self.last_ms, piece))

    def take(self, now_ms: int) -> bytes:
        """The bytes that have arrived by now."""
        if not self.queue or self.queue[0][0] > now_ms:
            return b""
        pieces = []
        while self.queue and self.queue[0][0] <= now_ms:
            pieces.append(self.queue.popleft()[1])
        return b"".join(pieces)

    def cut(self) -> bytes:
        """The connection breaks: a random part of what is under way still arrives."""
        pieces = [piece for _, piece in self.queue]
        self.queue.clear()
        return b"".join(pieces[: self.chance.randrange(len(pieces) + 1)])

    @property
    def empty(self) -> bool:
        """Nothing is under way."""
        return not self.queue
