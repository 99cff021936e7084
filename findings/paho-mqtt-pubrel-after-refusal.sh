#!/usr/bin/env bash
# paho-mqtt (Python) answers a PUBREC that refuses the message with PUBREL, and never says it is refused.
# MQTT 5.0, section 4.3.3 [MQTT-4.3.3-4]: PUBREL follows a PUBREC whose Reason Code is less than 0x80; a
# PUBREC with 0x80 or more acknowledges the PUBLISH and ends the exchange (section 4.4 [MQTT-4.4.0-2]).
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


def publish(qos: int) -> tuple[list[int], list[str]]:
    """The kinds of packets that a server gets which refuses each message (0x87), and what on_publish says."""
    listener = socket.create_server(("127.0.0.1", 0))
    kinds: list[int] = []
    said: list[str] = []

    def serve() -> None:
        connection, _ = listener.accept()
        stream = connection.makefile("rb")
        while head := stream.read(2):
            kind, length = head
            body = stream.read(length)
            kinds.append(kind)
            if kind == 0x10:
                connection.sendall(b"\x20\x03\x00\x00\x00")
            elif kind & 0xF0 == 0x30:
                answer = 0x40 if kind & 0x02 else 0x50
                connection.sendall(bytes((answer, 3)) + body[3:5] + b"\x87")
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    client = Client(CallbackAPIVersion.VERSION2, "c", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_publish = lambda *given: said.append(str(given[3]))
    client.on_connect = lambda *given: client.publish("t", "x", qos)
    client.connect("127.0.0.1", listener.getsockname()[1])
    for _ in range(20):
        client.loop(0.1)
    client.disconnect()
    listener.close()
    return [kind for kind in kinds if kind not in (0x10, 0xE0)], said


print("paho-mqtt", version("paho-mqtt"))
print("expected: no PUBREL (0x62); on_publish says Not authorized, for QoS 2 as for QoS 1")
seen = {qos: publish(qos) for qos in (1, 2)}
for qos, (kinds, said) in seen.items():
    print(f"QoS {qos}: server got {[hex(kind) for kind in kinds]}, on_publish said {said}")
sys.exit(0 if seen == {1: ([0x32], ["Not authorized"]), 2: ([0x34, 0x62], [])} else 1)
PYTHON
