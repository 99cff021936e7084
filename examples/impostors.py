"""Two that are not the broker, for the demo, and a client that is to find out.

`altered_avow` makes a copy of avow whose core has another SHA-256. `InBetween` has stolen the
broker's TLS key, so that TLS has nothing to object to: it decrypts what a client says and passes it
on to the genuine broker, evidence included; or, with `strip`, it answers the request for evidence
itself, with none.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

import avow
from avow.artefacts import CORE_NAME
from avow.channel.messages import Answer, encode
from avow.client import AttestedContext
from avow.errors import AvowError

PATIENCE_S = 10.0
# WebAssembly core specification, section 5.5.3: a custom section with the name "x" and no content.
_NO_DIFFERENCE = b"\x00\x02\x01x"


def altered_avow(folder: Path) -> Path:
    """A copy of the package in `folder`; its core does the same and is not the same."""
    copy = folder / "avow"
    shutil.copytree(Path(avow.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "_native" / CORE_NAME).open("ab") as core:
        core.write(_NO_DIFFERENCE)
    return folder


def refused_by_client(port: int, context: AttestedContext) -> AvowError | None:
    """Why a client of paho-mqtt did not go on; None if it did."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="careful", reconnect_on_failure=False)
    client.tls_set_context(context)
    try:
        client.connect("127.0.0.1", port)
    except ConnectionError as error:
        return error if isinstance(error, AvowError) else None
    client.disconnect()
    return None


class InBetween:
    """Serves connections one after the other, in a thread, until it is left."""

    def __init__(self, broker_port: int, certificate: Path, key: Path, *, strip: bool) -> None:
        self._broker_port = broker_port
        self._strip = strip
        self._stolen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._stolen.load_cert_chain(certificate, key)
        self._credulous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._credulous.check_hostname = False
        self._credulous.verify_mode = ssl.CERT_NONE
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.port = int(self._listening.getsockname()[1])
        # All that clients said, decrypted.
        self.heard = bytearray()

    def __enter__(self) -> InBetween:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return  # we have been left
            sock.settimeout(PATIENCE_S)
            with (
                contextlib.suppress(OSError),
                self._stolen.wrap_socket(sock, server_side=True) as client,
            ):
                if self._strip:
                    self._answer_without_evidence(client)
                else:
                    self._pass_on(client)

    def _answer_without_evidence(self, client: ssl.SSLSocket) -> None:
        self.heard += client.recv(65536)
        client.sendall(encode(Answer(authenticator=b"", request=b"")))
        while piece := client.recv(65536):
            self.heard += piece

    def _pass_on(self, client: ssl.SSLSocket) -> None:
        """Both ways in one thread: a TLS connection is not for two at once."""
        with (
            socket.create_connection(("127.0.0.1", self._broker_port), PATIENCE_S) as sock,
            self._credulous.wrap_socket(sock) as broker,
        ):
            for source, target in _readable(client, broker):
                piece = _read(source)
                if piece == b"":
                    return
                if piece is not None:
                    if source is client:
                        self.heard += piece
                    target.settimeout(PATIENCE_S)
                    target.sendall(piece)


def _readable(
    client: ssl.SSLSocket, broker: ssl.SSLSocket
) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Whoever has something to say, and whom it is for, until both stay silent."""
    pairs = ((client, broker), (broker, client))
    while True:
        waiting = [] if client.pending() or broker.pending() else [client, broker]
        ready = select.select(waiting, [], [], PATIENCE_S)[0] if waiting else []
        if waiting and not ready:
            return
        yield from (pair for pair in pairs if pair[0] in ready or pair[0].pending())


def _read(source: ssl.SSLSocket) -> bytes | None:
    """What there is; None when that was nothing for us, such as a session ticket."""
    source.settimeout(0)
    try:
        return source.recv(65536)
    except ssl.SSLWantReadError:
        return None
