"""The client's side of WebSocket framing (RFC 6455), exact enough to catch a wrong server."""

from __future__ import annotations

import base64
import hashlib
import struct

from avow.errors import MalformedError

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def client_frame(
    opcode: int,
    payload: bytes,
    *,
    final: bool = True,
    mask: bytes | None = b"\x1b\x7f\x03\xe9",
    reserved: int = 0,
    length_bytes: int | None = None,
) -> bytes:
    """One frame as a client sends it (5.2). `length_bytes` (0, 2, 8) forces a longer length."""
    head = bytes(((0x80 if final else 0) | reserved << 4 | opcode,))
    masked = 0x80 if mask is not None else 0
    size = len(payload)
    form = length_bytes
    if form is None:
        form = 0 if size < 126 else 2 if size < 65536 else 8
    if form == 0:
        head += bytes((masked | size,))
    elif form == 2:
        head += struct.pack(">BH", masked | 126, size)
    else:
        head += struct.pack(">BQ", masked | 127, size)
    if mask is None:
        return head + payload
    repeated = (mask * (size // 4 + 1))[:size]
    body = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + mask + body.to_bytes(size, "big")


def server_frame(data: bytes, at: int = 0) -> tuple[int, bytes, int] | None:
    """(opcode, payload, end) of the frame at `at`, or None when it is not complete."""
    if len(data) - at < 2:
        return None
    first, second = data[at], data[at + 1]
    if first & 0x70:
        raise MalformedError(f"a server's frame has reserved bits: {first:#04x}")
    if second & 0x80:
        raise MalformedError("a server's frame is masked (RFC 6455, 5.1)")
    if not first & 0x80:
        raise MalformedError("a server fragments, which it never needs to")
    opcode, size, start = first & 0x0F, second & 0x7F, at + 2
    if opcode not in (BINARY, CLOSE, PING, PONG):
        raise MalformedError(f"a server's frame has opcode {opcode} [MQTT-6.0.0-1]")
    extra = {126: 2, 127: 8}.get(size, 0)
    if extra:
        if len(data) - start < extra:
            return None
        size = int.from_bytes(data[start : start + extra], "big")
        start += extra
        if size < 126 or (extra == 8 and size < 65536):
            raise MalformedError("a server's frame has a longer length field than needed")
    if opcode >= CLOSE and size > 125:
        raise MalformedError("a control frame has more than 125 bytes (RFC 6455, 5.5)")
    if len(data) - start < size:
        return None
    return opcode, data[start : start + size], start + size


class WebSocketClient:
    """Upgrade and framing of one connection. `control` collects what is not binary data."""

    def __init__(self, *, protocol: bytes = b"mqtt") -> None:
        """`protocol` is the subprotocol that the server has to choose."""
        self.upgraded = False
        self._protocol = protocol
        self.response = b""
        self.control: list[tuple[int, bytes]] = []
        self._key = base64.b64encode(b"the sample nonce")
        self._buffer = b""

    def upgrade(
        self,
        *,
        path: str = "/mqtt",
        protocols: str | None = "mqtt",
        version: str = "13",
        extra: str = "",
    ) -> bytes:
        """The HTTP request of RFC 6455, 4.1."""
        lines = [
            f"GET {path} HTTP/1.1",
            # An address, which no rule asks about. As long as the name was that stood here when the
            # simulation's seeds were chosen: another length makes other simulations of them.
            "Host: 127.100.100.10:8083",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self._key.decode()}",
            f"Sec-WebSocket-Version: {version}",
        ]
        if protocols is not None:
            lines.append(f"Sec-WebSocket-Protocol: {protocols}")
        return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode()

    def binary(self, data: bytes) -> bytes:
        """The data in one masked binary frame."""
        return client_frame(BINARY, data)

    def feed(self, data: bytes) -> bytes:
        """Payload bytes of the binary frames that `data` completes."""
        self._buffer += data
        if not self.upgraded:
            self._read_response()
            if not self.upgraded:
                return b""
        out = b""
        at = 0
        while (one := server_frame(self._buffer, at)) is not None:
            opcode, payload, at = one
            if opcode == BINARY:
                out += payload
            else:
                self.control.append((opcode, payload))
        self._buffer = self._buffer[at:]
        return out

    def _read_response(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        self.response = head
        lines = head.split(b"\r\n")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        if not lines[0].startswith(b"HTTP/1.1 101"):
            return
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID).digest())
        if fields.get(b"sec-websocket-accept") != accept:
            raise MalformedError(f"Sec-WebSocket-Accept is not {accept!r}: {head!r}")
        if fields.get(b"sec-websocket-protocol") != self._protocol:
            raise MalformedError(
                f"the subprotocol is not {self._protocol!r} [MQTT-6.0.0-4]: {head!r}"
            )
        if fields.get(b"upgrade", b"").lower() != b"websocket":
            raise MalformedError(f"no Upgrade: websocket: {head!r}")
        if fields.get(b"connection", b"").lower() != b"upgrade":
            raise MalformedError(f"no Connection: Upgrade: {head!r}")
        self.upgraded = True
        self._buffer = rest
