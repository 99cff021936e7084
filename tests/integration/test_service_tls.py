"""TLS of the real process: versions, client certificates as users, CRLs, reload."""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest

from avow.testing.mqtt import Pingreq, Pingresp
from avow.testing.pki import Authority, Credential
from tests.integration.service_process import PlainClient, ServiceProcess, service, write


@dataclass
class World:
    """An authority, a server's files and clients' contexts."""

    folder: Path
    authority: Authority
    ca: Path

    def new_server_certificate(self) -> None:
        self.authority.issue_server().write(self.folder, "server")

    def context(self, credential: Credential | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if credential is not None:
            context.load_cert_chain(*credential.write(self.folder, "client"))
        return context

    def config(self, *extra: str, rules: str = "") -> tuple[str, str]:
        keys = "\n".join(extra)
        text = f"""
            [[listeners]]
            url = "mqtts://127.0.0.1:0"
            cert = "server.pem"
            key = "server.key"
            {keys}
            {rules}
        """
        return "--config", str(write(self.folder / "avow.toml", text))

    def server_serial(self, port: int) -> str:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            self.context().wrap_socket(plain, server_hostname="localhost") as client,
        ):
            certificate = client.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    authority = Authority()
    made = World(tmp_path, authority, authority.write(tmp_path / "ca.pem"))
    made.new_server_certificate()
    return made


def connects(running: ServiceProcess, context: ssl.SSLContext) -> bool:
    """False when the handshake is refused; TLS 1.3 clients learn that after their own part."""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError, AssertionError),
        PlainClient(running.port("mqtts"), context) as client,
    ):
        return client.connect(client_id="c").code == 0
    return False


def test_tls_1_3_and_1_2(world: World) -> None:
    old = world.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with service(*world.config()) as running:
        assert connects(running, world.context())
        assert not connects(running, old)
        assert running.event("handshake refused")["reason"] == "unsupported protocol"
    with service(*world.config('tls_minimum = "1.2"')) as running:
        assert connects(running, world.context())
        assert connects(running, old)


def test_common_name_is_the_user(world: World) -> None:
    rules = '[[acl]]\neffect = "allow"\naccess = "subscribe"\npattern = "devices/%u/#"'
    with service(*world.config('client_ca = "ca.pem"', rules=rules)) as running:
        context = world.context(world.authority.issue("sensor-1"))
        with PlainClient(running.port("mqtts"), context) as client:
            # What a client claims besides counts for nothing.
            assert client.connect(client_id="c", username="root", password=b"x").code == 0
            assert client.subscribe("devices/sensor-1/state") == 0
            assert client.subscribe("devices/root/state") == 0x87
        assert running.event("client connected")["user"] == "sensor-1"
        assert not connects(running, world.context())
        assert not connects(running, world.context(Authority("other").issue("sensor-1")))


def test_revocation_counts_after_a_reload_and_for_new_connections(world: World) -> None:
    crl = world.folder / "clients.crl"
    crl.write_bytes(world.authority.revocation_list())
    good, bad = world.authority.issue("good"), world.authority.issue("bad")
    arguments = world.config('client_ca = "ca.pem"', 'crl = "clients.crl"')
    with (
        service(*arguments) as running,
        PlainClient(running.port("mqtts"), world.context(bad)) as before,
    ):
        assert before.connect(client_id="before").code == 0
        crl.write_bytes(world.authority.revocation_list([bad.certificate]))
        running.reload()
        running.event("reloaded")
        assert not connects(running, world.context(bad))
        assert "verify failed" in running.event("handshake refused")["reason"]
        assert connects(running, world.context(good))
        before.send(Pingreq())
        before.receive(Pingresp)


def test_certificate_is_renewed_without_dropping_anybody(world: World) -> None:
    with service(*world.config()) as running:
        port = running.port("mqtts")
        before = world.server_serial(port)
        with PlainClient(port, world.context()) as client:
            client.connect(client_id="c")
            world.new_server_certificate()
            running.reload()
            running.event("reloaded")
            assert world.server_serial(port) != before
            client.send(Pingreq())
            client.receive(Pingresp)
            # Half a renewal: the old certificate goes on.
            renewed = world.server_serial(port)
            (world.folder / "server.key").write_text("damaged")
            running.reload()
            assert "server.key" in running.event("reload refused")["reason"]
            assert world.server_serial(port) == renewed


def test_silent_peers_do_not_hold_up_a_handshake(world: World) -> None:
    with service(*world.config()) as running:
        silent = [
            socket.create_connection(("127.0.0.1", running.port("mqtts")), timeout=10)
            for _ in range(50)
        ]
        assert connects(running, world.context())
        for peer in silent:
            peer.close()
