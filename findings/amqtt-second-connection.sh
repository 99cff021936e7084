#!/usr/bin/env bash
# amqtt (Python broker) leaves the first connection of a client identifier open when a second one connects with it:
# both are served, each without the other's subscriptions.
# MQTT 3.1.1, section 3.1.4 [MQTT-3.1.4-2]: if the client identifier stands for a client that is connected already,
# the server disconnects that one.
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


async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01" + b"c")
    await asyncio.wait_for(reader.readexactly(4), 10)
    return reader, writer


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """What a PINGREQ brings, two seconds at most after it."""
    try:
        writer.write(b"\xc0\x00")
        got = await asyncio.wait_for(reader.read(2), 2)
    except (TimeoutError, ConnectionError) as error:
        return type(error).__name__
    return "PINGRESP" if got == b"\xd0\x00" else f"closed ({got.hex()})"


async def main() -> tuple[str, str]:
    broker = Broker(CONFIG)
    await broker.start()
    first = await connect()
    second = await connect()
    # The second one's answer comes first: the broker has had its time to close the first one.
    late = await answer(*second)
    early = await answer(*first)
    for _, writer in (first, second):
        writer.close()
    await broker.shutdown()
    return early, late


print("amqtt", version("amqtt"))
print("expected: the first connection is closed, the second one gets PINGRESP")
early, late = asyncio.run(main())
print(f"first connection: {early}; second one: {late}")
sys.exit((early, late) != ("PINGRESP", "PINGRESP"))
PYTHON
