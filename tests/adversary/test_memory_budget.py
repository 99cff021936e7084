"""`memory_budget_bytes` is what a flood can make resident, and the rest is what `--check` says."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

import pytest

from avow.broker.limits import Limits
from avow.broker.memory import MIB, memory_need
from avow.testing.core_abi import Setting
from avow.testing.core_driver import CoreDriver
from avow.testing.fake_client import FakeClient
from avow.testing.mqtt import Connect, Filter, Pingreq, Publish, Subscribe
from avow.testing.pki import Authority
from bench.processes import resident_bytes
from tests.integration.service_process import service, write

# Each wave has blocks of another size, from a class of its own up to runs of pages.
SIZES = (100, 1500, 7000, 20_000, 70_000, 300)


def fill(client: FakeClient, size: int, most: int) -> list[str]:
    """Retained messages of one size until the core refuses one; their topics."""
    topics: list[str] = []
    for number in range(most):
        topic = f"{size}/{number}"
        client.send(Publish(topic, bytes(size), 1, 1, retain=True))
        acknowledgement = client.receive()
        if getattr(acknowledgement, "code", 0) == 0x97:
            return topics
        topics.append(topic)
    raise AssertionError(
        f"{most} messages of {size} bytes are more than the budget, all were taken"
    )


def test_the_cores_memory_stays_within_the_budget() -> None:
    """Whatever was kept before: pages whose blocks are free serve other sizes again."""
    budget = 16 * MIB
    core = CoreDriver(settings={Setting.MEMORY_BUDGET_BYTES: budget, Setting.PERSIST_SESSIONS: 0})
    started_bytes = core._size
    client = FakeClient(core, "flood")
    client.connect()
    for size in SIZES:
        topics = fill(client, size, 4 * budget // (size + 200))
        assert len(topics) * size > budget // 4, f"{len(topics)} of {size} bytes"
        assert core._size - started_bytes <= budget
        for topic in topics:
            client.send(Publish(topic, b"", retain=True))
    assert core.heap_bytes < budget // 4


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
def test_a_flood_makes_no_more_resident_than_is_said(tmp_path: Path, scheme: str) -> None:
    """Clients that never read, and retained messages of all sizes."""
    budget, clients = 32 * MIB, 100
    authority = Authority()
    context = ssl.create_default_context(cafile=str(authority.write(tmp_path / "ca.pem")))
    authority.issue_server().write(tmp_path, "server")
    files = 'cert = "server.pem"\nkey = "server.key"' if scheme == "mqtts" else ""
    text = f"""
        allow_anonymous = true
        [[listeners]]
        url = "{scheme}://127.0.0.1:0"
        {files}
        [limits]
        memory_budget_bytes = {budget}
        sys_interval_ms = 0
    """
    need = memory_need(
        Limits(memory_budget_bytes=budget), tls=scheme == "mqtts", password_workers=0
    )
    with (
        service("--config", str(write(tmp_path / "avow.toml", text))) as broker,
        contextlib.ExitStack() as flood,
    ):

        def client(name: str) -> socket.socket:
            sock = socket.create_connection(("127.0.0.1", broker.port(scheme)), timeout=30)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            if scheme == "mqtts":
                sock = context.wrap_socket(sock, server_hostname="localhost")
            flood.enter_context(contextlib.closing(sock))
            sock.sendall(Connect(name, version=4).encode())
            assert sock.recv(4)[:2] == b"\x20\x02"
            return sock

        resident = [resident_bytes(broker.process.pid)]
        for number in range(clients):
            client(f"deaf-{number}").sendall(Subscribe(1, [Filter("all/#")]).encode(4))
        for size in (1000, *SIZES):
            source = client(f"source-{size}")
            # The core gives up who sends more than it has memory to take in.
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                for number in range(min(20_000, 2 * budget // size)):
                    where = "all" if size == 1000 else "retained"
                    retain = size != 1000
                    source.sendall(
                        Publish(f"{where}/{size}/{number}", bytes(size), retain=retain).encode(4)
                    )
                source.sendall(Pingreq().encode(4))
                source.recv(2)
            resident.append(resident_bytes(broker.process.pid))
    assert max(resident) <= need.total(clients + len(SIZES) + 1)
    assert max(resident) - resident[0] <= budget + clients * need.each + 8 * MIB
    assert max(resident) - resident[0] > budget // 2
