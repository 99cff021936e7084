#!/usr/bin/env bash
# amqtt (Python broker) says Session Present to a client whose last session was a clean one that has ended.
# MQTT 3.1.1, section 3.1.2.4 [MQTT-3.1.2-6]: a session of Clean Session 1 lasts as long as its connection, and its
# state is not used again in a later one; 3.2.2.2 [MQTT-3.2.2-3]: without a stored session Session Present is 0.
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


async def session_present(clean: bool) -> bool:
    """Connects, and disconnects when the answer is there; whether CONNACK says that there is a session."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    flags = bytes((2 if clean else 0,))
    writer.write(b"\x10\x0d\x00\x04MQTT\x04" + flags + b"\x00\x3c\x00\x01" + b"c")
    acknowledged = await asyncio.wait_for(reader.readexactly(4), 10)
    writer.write(b"\xe0\x00")
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return acknowledged[2] == 1


async def main() -> list[bool]:
    broker = Broker(CONFIG)
    await broker.start()
    found = [await session_present(clean) for clean in (True, True, False)]
    await broker.shutdown()
    return found


print("amqtt", version("amqtt"))
print("Clean Session:   [1, 1, 0]")
print("expected:        [False, False, False]")
found = asyncio.run(main())
print("Session Present:", found)
sys.exit(found != [False, False, True])
PYTHON
