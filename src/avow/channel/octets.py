"""Reading and writing the vectors of TLS (RFC 8446, section 3.4): big-endian, length first."""

from __future__ import annotations

from avow.errors import MalformedError, counted


def vector(content: bytes, length_bytes: int) -> bytes:
    """`content` behind its length in `length_bytes` bytes. Raises `MalformedError` if too long."""
    if len(content) >= 256**length_bytes:
        raise MalformedError(
            f"expected at most {256**length_bytes - 1} bytes, got {len(content)}; "
            f"use evidence with fewer certificates or less collateral"
        )
    return len(content).to_bytes(length_bytes, "big") + content


class Octets:
    """Reads `content` from its start to its end; `what` names it in errors.

    Every method raises `MalformedError` when fewer bytes are left than it needs.
    """

    def __init__(self, content: bytes, what: str) -> None:
        self._content = content
        self._what = what
        self._place = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._content) - self._place

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self._place
        end = start + count
        if end > len(self._content):
            raise self._malformed(f"{counted(count, 'byte')} more", f"{self.left}")
        self._place = end
        return self._content[start:end]

    def number(self, count: int) -> int:
        """The next `count` bytes as a number."""
        return int.from_bytes(self.take(count), "big")

    def vector(self, length_bytes: int, minimum: int, maximum: int) -> bytes:
        """A vector of `minimum` to `maximum` bytes behind a length of `length_bytes` bytes."""
        length = self.number(length_bytes)
        if not minimum <= length <= maximum:
            raise self._malformed(f"a vector of {minimum} to {maximum} bytes", f"{length}")
        return self.take(length)

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(self.left)

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            raise self._malformed("the end", f"{counted(self.left, 'byte')} more")

    def _malformed(self, expected: str, actual: str) -> MalformedError:
        return MalformedError(
            f"expected {expected} in the {self._what}, got {actual}; connect again, and report "
            "it if this persists"
        )
