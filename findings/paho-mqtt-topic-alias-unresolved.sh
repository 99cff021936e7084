#!/usr/bin/env bash
# paho-mqtt (Python) gives its user an empty topic for a message that comes with a Topic Alias alone, though
# its own CONNECT allowed the server aliases.
# MQTT 5.0, section 3.3.2.3.4: the receiver keeps the mapping of an alias and sets the topic by it when the
# Topic Name is empty.
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check paho-mqtt==2.2.0
"$folder/venv/bin/python" - <<'PYTHON'
import socket
import sys
import threading
from importlib.metadata import version

from paho.mqtt.client import CallbackAPIVersion, Client
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

listener = socket.create_server(("127.0.0.1", 0))


def serve() -> None:
    """Sends a message with topic t and alias 1, then one with alias 1 alone."""
    connection, _ = listener.accept()
    connection.recv(4096)
    connection.sendall(b"\x20\x03\x00\x00\x00")
    connection.sendall(b"\x30\x0c\x00\x01t\x03\x23\x00\x01first")
    connection.sendall(b"\x30\x0c\x00\x00\x03\x23\x00\x01second")
    while connection.recv(4096):
        pass


threading.Thread(target=serve, daemon=True).start()
client = Client(CallbackAPIVersion.VERSION2, "c", protocol=MQTTProtocolVersion.MQTTv5)
seen = []
client.on_message = lambda _client, _data, message: seen.append((message.topic, message.payload))
allowed = Properties(PacketTypes.CONNECT)
allowed.TopicAliasMaximum = 5
client.connect("127.0.0.1", listener.getsockname()[1], properties=allowed)
for _ in range(100):
    client.loop(0.1)
    if len(seen) == 2:
        break
client.disconnect()
print("paho-mqtt", version("paho-mqtt"))
print("expected: both messages with topic 't'")
print(*seen, sep="\n")
sys.exit(0 if seen == [("t", b"first"), ("", b"second")] else 1)
PYTHON
