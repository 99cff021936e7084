#!/usr/bin/env bash
# amqtt (Python broker) keeps the first QoS when a client subscribes to the same filter again with another one.
# MQTT 3.1.1, section 3.8.4 [MQTT-3.8.4-3]: a second subscription with an identical topic filter completely replaces
# the first one, and its maximum QoS may differ. SUBACK grants the new one.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check amqtt==0.12.1
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import logging
import socket
import sys
from importlib.metadata import version

from amqtt.broker import Broker

logging.disable()
with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]
CONFIG = {
    "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{PORT}"}},
    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
}


async def delivered(*asked: int) -> tuple[list[int], int]:
    """Subscribes to t with each QoS in turn, then publishes there with QoS 1; the QoS granted, and the one delivered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)

    async def packet(kind: int) -> bytes:
        while True:
            first, length = await asyncio.wait_for(reader.readexactly(2), 10)
            body = await reader.readexactly(length)
            if first & 0xF0 == kind:
                return bytes((first,)) + body

    writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01" + b"c")
    await packet(0x20)
    granted = []
    for number, qos in enumerate(asked, 1):
        writer.write(bytes((0x82, 6, 0, number, 0, 1, 0x74, qos)))
        granted.append((await packet(0x90))[-1])
    writer.write(b"\x32\x06\x00\x01t\x00\x09x")
    qos = (await packet(0x30))[0] >> 1 & 3
    writer.close()
    return granted, qos


async def main() -> list[tuple[list[int], int]]:
    broker = Broker(CONFIG)
    await broker.start()
    found = [await delivered(1), await delivered(0, 1), await delivered(1, 0)]
    await broker.shutdown()
    return found


print("amqtt", version("amqtt"))
print("expected: the QoS granted last is the QoS delivered")
found = asyncio.run(main())
for granted, qos in found:
    print(f"granted {granted}, delivered with QoS {qos}")
sys.exit(found != [([1], 1), ([0, 1], 0), ([1, 0], 1)])
PYTHON
