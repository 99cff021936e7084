#!/usr/bin/env bash
# mqttools reads and writes a User Property as one string, so its broker refuses a message that has one (0x81,
# Malformed Packet), while it forwards one with a Content Type.
# MQTT 5.0, section 3.3.2.3.7 and 1.5.7: a User Property is a UTF-8 String Pair; [MQTT-3.3.2-17]: a server forwards
# all of them unaltered.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check mqttools==0.50.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import logging
import socket
import sys
from importlib.metadata import version

import mqttools

logging.disable()
with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]


async def forwarded(properties: bytes) -> bytes:
    """Subscribes to t and publishes to it with these properties; the packet that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    body = b"\x00\x01t" + bytes((len(properties),)) + properties + b"payload"
    for packet in (
        b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c",
        b"\x82\x07\x00\x01\x00\x00\x01t\x00",
        bytes((0x30, len(body))) + body,
    ):
        writer.write(packet)
        _, length = head = await reader.readexactly(2)
        answer = head + await reader.readexactly(length)
    writer.close()
    return answer


async def main() -> tuple[bytes, bytes]:
    broker = mqttools.Broker(("127.0.0.1", PORT))
    serving = asyncio.create_task(broker.serve_forever())
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", PORT)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            break
    content = await forwarded(b"\x03\x00\x02ct")
    user = await forwarded(b"\x26\x00\x01k\x00\x01v")
    serving.cancel()
    return content, user


print("mqttools", version("mqttools"))
print("expected: the message comes back with its property, in both")
content, user = asyncio.run(main())
print("Content Type: ", content)
print("User Property:", user)
sys.exit(0 if content[0] == 0x30 and user == b"\xe0\x02\x81\x00" else 1)
PYTHON
