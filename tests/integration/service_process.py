"""`avow broker` in a process of its own, with its log as a queue of events, and a plain client."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from avow.testing.mqtt import Connack, Connect, Packet, StreamDecoder, Suback, Subscribe, ToServer
from avow.testing.mqtt import Filter as TopicFilter

PATIENCE_S = 30.0

P = TypeVar("P")


def avow(
    *arguments: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "avow", *arguments],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )


class ServiceProcess:
    """A running broker. Its log is read all the time and can be waited for."""

    def __init__(
        self, arguments: Sequence[str], *, before: Callable[[], None] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "avow", "broker", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=before,
        )
        self._entries: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def event(
        self, name: str, count: int = 1, matches: Callable[[dict[str, Any]], bool] | None = None
    ) -> dict[str, Any]:
        """Waits for the `count`-th line of the log with this event that matches."""

        def found() -> list[dict[str, Any]]:
            entries = [entry for entry in self._entries if entry["event"] == name]
            return [entry for entry in entries if matches is None or matches(entry)]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._over, PATIENCE_S)
            assert len(found()) >= count, (name, self._entries)
            return found()[count - 1]

    def entries(self) -> list[dict[str, Any]]:
        """The log so far."""
        with self._changed:
            return list(self._entries)

    def url(self, scheme: str = "mqtt", count: int = 1) -> str:
        """The URL of a listener, with its real port."""
        prefix = f"{scheme}://"
        entry = self.event("listening", count, lambda line: line["url"].startswith(prefix))
        return str(entry["url"])

    def port(self, scheme: str = "mqtt", count: int = 1) -> int:
        """The real port of a listener."""
        return int(self.url(scheme, count).rpartition(":")[2])

    def reload(self) -> None:
        """SIGHUP."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks it to stop and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def close(self) -> None:
        """Ends it for good, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        for stream in (self.process.stderr, self.process.stdout):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if not line.startswith(b"{"):
                line = json.dumps({"event": "not a log line", "text": line.decode()}).encode()
            with self._changed:
                self._entries.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()


@contextmanager
def service(*arguments: str, before: Callable[[], None] | None = None) -> Iterator[ServiceProcess]:
    """A broker that has to end with 0 when it is asked to, unless the test has ended it."""
    running = ServiceProcess(arguments, before=before)
    try:
        running.event("listening")
        yield running
        if running.process.poll() is None:
            assert running.stop() == 0, running.entries()
        assert not [line for line in running.entries() if line["level"] == "critical"]
    finally:
        running.close()


class PlainClient:
    """A blocking client of single packets, over TCP or TLS."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, version: int = 5) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="localhost")
        self._decoder = StreamDecoder(version)
        self._version = version
        self._packets: list[Packet] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *packets: ToServer | Connect) -> None:
        """Writes packets."""
        for packet in packets:
            content = (
                packet.encode() if isinstance(packet, Connect) else packet.encode(self._version)
            )
            self._socket.sendall(content)

    def receive(self, kind: type[P]) -> P:
        """The next packet, which has to be of this kind."""
        while not self._packets:
            piece = self._socket.recv(65536)
            assert piece, f"the broker closed the connection before a {kind.__name__}"
            self._packets += self._decoder.feed(piece)
        packet = self._packets.pop(0)
        assert isinstance(packet, kind), packet
        return packet

    def connect(self, **fields: Any) -> Connack:
        """CONNECT and its answer."""
        self.send(Connect(version=self._version, **fields))
        return self.receive(Connack)

    def subscribe(self, name: str, qos: int = 0) -> int:
        """SUBSCRIBE to one filter; returns the reason code."""
        self.send(Subscribe(packet_id=1, filters=[TopicFilter(name, qos)]))
        return self.receive(Suback).codes[0]

    def closed(self) -> bool:
        """Waits for the broker to close the connection, with nothing more before."""
        try:
            return self._socket.recv(1) == b"" and not self._packets
        except (ConnectionResetError, ssl.SSLError):
            return True


def write(path: Path, text: str) -> Path:
    """A file with this text; returns the path."""
    path.write_text(text)
    return path
