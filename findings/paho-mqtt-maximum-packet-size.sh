#!/usr/bin/env bash
# paho-mqtt (Python) ends a connection whose CONNACK has a Maximum Packet Size above 268435455.
# MQTT 5.0, section 3.2.2.3.6: the property is a Four Byte Integer, and only 0 is an error. A server
# that takes every packet there is may well say 268435460, the size of the largest one.
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


def connect(maximum: int) -> str:
    """Connects to a server that answers with this Maximum Packet Size and then only listens."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        properties = b"\x27" + maximum.to_bytes(4, "big")
        body = b"\x00\x00" + bytes((len(properties),)) + properties
        connection.sendall(b"\x20" + bytes((len(body),)) + body)
        while connection.recv(4096):
            pass
        connection.close()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    client = Client(CallbackAPIVersion.VERSION2, "c", protocol=MQTTProtocolVersion.MQTTv5)
    said = []
    client.on_connect = lambda *given: said.append(f"connected ({given[3]})")
    client.on_disconnect = lambda *given: said.append(f"disconnected ({given[3]})")
    client.connect("127.0.0.1", listener.getsockname()[1])
    for _ in range(20):
        if client.loop(0.1) or said:
            break
    client.disconnect()
    listener.close()
    return said[0] if said else "nothing"


print("paho-mqtt", version("paho-mqtt"))
print("expected: connected, whatever the Maximum Packet Size is, unless it is 0")
seen = {maximum: connect(maximum) for maximum in (268_435_455, 268_435_456, 268_435_460)}
for maximum, what in seen.items():
    print(f"{maximum}: {what}")
still = seen[268_435_455].startswith("connected") and not any(
    seen[maximum].startswith("connected") for maximum in (268_435_456, 268_435_460)
)
sys.exit(0 if still else 1)
PYTHON
