"""A real mosquitto that is a bridge to the broker, and clients that listen on either side.

`AVOW_MOSQUITTO` names another mosquitto than the system's, for example the start script that
`python bench/fetch_mosquitto.py` prints.
"""

from __future__ import annotations

import getpass
import os
import queue
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PATIENCE_S = 30.0
TOPICS = ("up/# out 2", "down/# in 2", "both/# both 2")
STATE = "$SYS/broker/connection/+/state"


def program() -> str:
    """The mosquitto to try. Debian puts it where only root looks."""
    path = os.environ.get("AVOW_MOSQUITTO") or shutil.which(
        "mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    )
    assert path is not None, "mosquitto is not installed: apt-get install mosquitto"
    return path


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Bridge:
    """A mosquitto process with one bridge, and its log.

    `settings` are the lines of its configuration that name the bridge.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.port = free_port()
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "log_dest stderr",
            # As root it would become another user, who cannot read in `folder`.
            f"user {getpass.getuser()}",
            *settings,
            "restart_timeout 1",
        ]
        configuration = folder / f"mosquitto-{self.port}.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self.process = subprocess.Popen(
            [program(), "-v", "-c", str(configuration)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._log: list[str] = []
        self._changed = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._log.append(line)
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def said(self, pattern: str, count: int = 1) -> None:
        """Waits for the `count`-th line of its log that has this."""

        def enough() -> bool:
            return sum(bool(re.search(pattern, line)) for line in self._log) >= count

        with self._changed:
            self._changed.wait_for(lambda: enough() or self._over, PATIENCE_S)
            assert enough(), f"mosquitto did not say {pattern!r} {count} times: {self._log}"

    def kill(self) -> None:
        """SIGKILL, and the log to its end."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def bridge(folder: Path, remote_port: int, *settings: str) -> Iterator[Bridge]:
    """A bridge named attic, whose subscriptions the broker has granted."""
    lines = ("connection attic", f"address 127.0.0.1:{remote_port}")
    topics = (f"topic {topic}" for topic in TOPICS)
    with subscribed(Bridge(folder, *lines, *topics, *settings), 2) as running:
        yield running


@contextmanager
def subscribed(running: Bridge, count: int) -> Iterator[Bridge]:
    """The bridge, when the broker has answered its `count` SUBSCRIBEs; killed at the end."""
    try:
        running.said(r"Received SUBACK", count)
        yield running
    finally:
        running.kill()


@dataclass(frozen=True)
class Heard:
    """A message as it came."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


class Ear:
    """A client of MQTT 5 that hears what its filters match, with the retained flag as published."""

    def __init__(self, port: int, *filters: str, session: str = "") -> None:
        """With `session`, a client identifier, the session outlives the connection."""
        self._heard: queue.Queue[Heard] = queue.Queue()
        self._granted: queue.Queue[int] = queue.Queue()
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=session, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.on_message = self._message
        self._client.on_subscribe = lambda *arguments: self._granted.put(arguments[2])
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if session:
            properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=not session, properties=properties)
        self._client.loop_start()
        if filters:
            options = SubscribeOptions(qos=2, retainAsPublished=True)
            self._client.subscribe([(name, options) for name in filters])
            self._granted.get(timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._heard.put(Heard(message.topic, bytes(message.payload), message.qos, message.retain))

    def next(self) -> Heard:
        """The next message, whatever it is."""
        return self._heard.get(timeout=PATIENCE_S)

    def say(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        """Publishes, and waits until the broker has it."""
        self._client.publish(topic, payload, qos, retain).wait_for_publish(PATIENCE_S)
