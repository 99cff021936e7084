#!/usr/bin/env bash
# gmqtt hands a QoS 2 message to its user twice when the session is resumed before PUBREL.
# MQTT 5.0, section 4.4 [MQTT-4.4.0-1]: a server sends an unacknowledged PUBLISH again, with DUP, when the
# session is resumed; 4.3.3 [MQTT-4.3.3-10]: until PUBREL the receiver answers it with PUBREC and delivers
# no duplicate onward.
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
BODY = b"\x00\x01t\x00\x01\x00once"  # topic t, packet identifier 1, no properties


async def main() -> list[str]:
    said: list[str] = []
    connections = 0
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The first connection ends at the PUBREC, as a network may; the second one resumes the session."""
        nonlocal connections
        connections += 1
        resumed = connections > 1
        try:
            while True:
                kind, length = await reader.readexactly(2)
                body = await reader.readexactly(length)
                if kind == 0x10:
                    writer.write(b"\x20\x03" + bytes((resumed, 0, 0)))
                    writer.write(bytes((0x3C if resumed else 0x34, len(BODY))) + BODY)
                elif kind == 0x50:
                    said.append("server: PUBREC came")
                    if not resumed:
                        break
                    writer.write(b"\x62\x02" + body[:2])
                elif kind == 0x70:
                    said.append("server: PUBCOMP came")
                    done.set()
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = gmqtt.Client("c", clean_session=False, session_expiry_interval=60)
    client.set_config({"reconnect_retries": 3, "reconnect_delay": 0})

    def message(_client, topic, payload, qos, given) -> int:
        said.append(f"user: message {payload!r} with QoS {qos}, DUP {given['dup']}")
        return 0

    client.on_message = message
    await client.connect("127.0.0.1", server.sockets[0].getsockname()[1])
    await asyncio.wait_for(done.wait(), 20)
    await client.disconnect()
    server.close()
    return said


print("gmqtt", version("gmqtt"))
print("expected: the user gets the message once")
lines = asyncio.run(main())
print(*lines, sep="\n")
sys.exit(0 if sum(line.startswith("user:") for line in lines) == 2 else 1)
PYTHON
