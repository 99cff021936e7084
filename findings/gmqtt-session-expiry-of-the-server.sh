#!/usr/bin/env bash
# gmqtt tells on_connect the Session Expiry Interval that the client asked for, not the one in CONNACK.
# MQTT 5.0, section 3.2.2.3.2: the server uses the property to say that it uses another value than the
# one in CONNECT, so the value in CONNACK is the one in force.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check gmqtt==0.8.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys
from importlib.metadata import version

import gmqtt


async def main(**asked: int) -> dict:
    """Connects to a server that answers with Session Expiry Interval 5; the properties that on_connect gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, length = await reader.readexactly(2)
        await reader.readexactly(length)
        writer.write(b"\x20\x08\x00\x00\x05\x11\x00\x00\x00\x05")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = gmqtt.Client("c", **asked)
    client.set_config({"reconnect_retries": 0})
    seen = asyncio.get_running_loop().create_future()
    client.on_connect = lambda _client, _flags, _code, properties: seen.set_result(properties)
    await client.connect("127.0.0.1", server.sockets[0].getsockname()[1])
    properties = await asyncio.wait_for(seen, 10)
    await client.disconnect()
    server.close()
    return properties


print("gmqtt", version("gmqtt"))
print("expected: session_expiry_interval 5, as the server said, in both")
without = asyncio.run(main())
asked = asyncio.run(main(session_expiry_interval=100))
print("nothing asked:", without)
print("100 asked:    ", asked)
still = without["session_expiry_interval"] == [5] and asked["session_expiry_interval"] == 100
sys.exit(0 if still else 1)
PYTHON
