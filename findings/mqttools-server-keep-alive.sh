#!/usr/bin/env bash
# mqttools (client) does not take the Server Keep Alive from CONNACK: with its own 30 s and the server's 1 s it
# sends nothing for three seconds, and a server may then close the connection at 1.5 s.
# MQTT 5.0, section 3.2.2.3.14 [MQTT-3.2.2-21]: the client uses this value in place of the one it sent.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check mqttools==0.50.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys
from importlib.metadata import version

import mqttools


async def pings(own_s: int, properties: bytes) -> int:
    """Connects with this Keep Alive to a server with these CONNACK properties; PINGREQ within three seconds."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                kind, length = await reader.readexactly(2)
                await reader.readexactly(length)
                if kind == 0x10:
                    writer.write(bytes((0x20, 3 + len(properties), 0, 0, len(properties))) + properties)
                elif kind == 0xC0:
                    count += 1
                    writer.write(b"\xd0\x00")
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = mqttools.Client("127.0.0.1", port, keep_alive_s=own_s, connect_delays=[])
    await client.start()
    await asyncio.sleep(3.3)
    await client.stop()
    server.close()
    return count


print("mqttools", version("mqttools"))
print("expected: PINGREQ within the 1 s, whoever of the two says it")
own = asyncio.run(pings(1, b""))
servers = asyncio.run(pings(30, b"\x13\x00\x01"))
print(f"own Keep Alive 1 s: {own} PINGREQ in 3.3 s")
print(f"own 30 s, Server Keep Alive 1 s: {servers} PINGREQ in 3.3 s")
sys.exit(0 if own and not servers else 1)
PYTHON
