#!/usr/bin/env bash
# aiomqtt's Topic.matches says that "#" and "+/…" match topics that begin with "$"; paho-mqtt, which it is built on,
# says no. A client that takes both "#" and "$SYS/#" and sorts its messages by it treats each of $SYS twice.
# MQTT 5.0 and 3.1.1, section 4.7.2 [MQTT-4.7.2-1]: a topic filter that starts with a wildcard does not match topic
# names that begin with "$".
# Exit code 0: still so. Any other: it has changed, or the script could not run; its last lines say which.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check aiomqtt==2.5.1 paho-mqtt==2.2.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from aiomqtt import Topic
from paho.mqtt.client import topic_matches_sub

CASES = (("#", "$SYS/broker/uptime"), ("+/broker/uptime", "$SYS/broker/uptime"), ("$SYS/#", "$SYS/broker/uptime"))
print("aiomqtt", version("aiomqtt"), "with paho-mqtt", version("paho-mqtt"))
print("expected: [False, False, True]")
aiomqtt = [Topic(topic).matches(filter_) for filter_, topic in CASES]
paho = [topic_matches_sub(filter_, topic) for filter_, topic in CASES]
print("aiomqtt:  ", aiomqtt)
print("paho-mqtt:", paho)
sys.exit(aiomqtt != [True, True, True] or paho != [False, False, True])
PYTHON
