#!/usr/bin/env bash
# gmqtt takes a Receive Maximum of 1 in CONNACK for an invalid value and sends as many at once as it likes.
# With 2 it lets only one message be under way, and then raises.
# MQTT 5.0, section 3.2.2.3.3: only 0 is an error; 3.3.4 [MQTT-3.3.4-7]: a client does not have more than
# Receive Maximum QoS 1 and QoS 2 messages unacknowledged.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check gmqtt==0.8.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import logging
import sys
from importlib.metadata import version

import gmqtt

logging.disable()


async def unacknowledged(receive_maximum: int) -> tuple[int, str]:
    """Publishes four messages with QoS 1 to a server that acknowledges none; how many it gets, and the error."""
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        try:
            while True:
                kind, length = await reader.readexactly(2)
                await reader.readexactly(length)
                if kind == 0x10:
                    writer.write(b"\x20\x06\x00\x00\x03\x21" + receive_maximum.to_bytes(2, "big"))
                seen += kind & 0xF0 == 0x30
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = gmqtt.Client("c")
    client.set_config({"reconnect_retries": 0})
    await client.connect("127.0.0.1", server.sockets[0].getsockname()[1])
    error = "no error"
    try:
        for number in range(4):
            client.publish("t", str(number), qos=1)
    except OverflowError as raised:
        error = repr(raised)
    await asyncio.sleep(0.5)
    await client.disconnect()
    server.close()
    return seen, error


print("gmqtt", version("gmqtt"))
print("expected: never more messages at once than Receive Maximum, and as many as that")
seen = {maximum: asyncio.run(unacknowledged(maximum)) for maximum in (1, 2, 3)}
for maximum, (count, error) in seen.items():
    print(f"Receive Maximum {maximum}: {count} at once, {error}")
sys.exit(0 if [count for count, _ in seen.values()] == [4, 1, 2] else 1)
PYTHON
