"""Attacks on the real process: around the access rules, on its memory, on its platform, on the
proxy's port."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from avow.channel.exchange import ClientExchange, ClientSettings
from avow.channel.judge import Judge
from avow.channel.session import facts_of
from avow.errors import AvowError
from avow.tee.platforms import verifiers
from avow.testing.mqtt import (
    Connack,
    Connect,
    Filter,
    Properties,
    Property,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Will,
)
from avow.testing.swtpm import SoftwareTpm
from tests.integration.attested_clients import (
    AttestedClient,
    broker_policy,
    client_policy,
    judge_of,
    own_evidence,
)
from tests.integration.attested_endpoint import attested_endpoint
from tests.integration.service_process import PATIENCE_S, ServiceProcess, service, write
from tests.integration.test_proxy import proxy
from tests.integration.test_service_attested import World, attesting, world

__all__ = ["world"]

RULES = """---
[[acl]]
effect = "allow"
access = "both"
pattern = "secret"
tier = "warning"

[[acl]]
effect = "allow"
access = "publish"
pattern = "plant/+/command"
tier = "warning"

[[acl]]
effect = "deny"
access = "both"
pattern = "secret"

[[acl]]
effect = "deny"
access = "publish"
pattern = "plant/+/command"

[[acl]]
effect = "allow"
access = "both"
pattern = "#"
"""
NOT_AUTHORISED = 0x87
LASTING = Properties([(Property.SESSION_EXPIRY_INTERVAL, 3600)])


def command(text: bytes) -> Will:
    return Will("plant/7/command", text, 1)


def connect(client: AttestedClient, will: Will | None = None, *, name: str) -> Connack:
    """Takes up the session of this name, or begins it."""
    client.send(Connect(name, clean_start=False, will=will, properties=LASTING))
    packet = client.next_packet()
    assert isinstance(packet, Connack)
    return packet


def published(client: AttestedClient, topic: str) -> int:
    client.send(Publish(topic, topic.encode(), 1, 1))
    packet = client.next_packet()
    assert isinstance(packet, Puback), packet
    return packet.code


def subscribed(client: AttestedClient, *filters: str) -> list[int]:
    client.send(Subscribe(1, [Filter(each, 1) for each in filters]))
    packet = client.next_packet()
    assert isinstance(packet, Suback), packet
    return packet.codes


def received(client: AttestedClient) -> bytes:
    packet = client.next_packet()
    assert isinstance(packet, Publish), packet
    assert isinstance(packet.payload, bytes)
    if packet.packet_id is not None:
        client.send(Puback(packet.packet_id))
    return packet.payload


def breaks(client: AttestedClient) -> None:
    """Without a DISCONNECT, so that the will is published."""
    client.__exit__()


def test_the_session_of_the_attested_gives_nothing_to_others(world: World) -> None:
    """Somebody without evidence takes up the controller's session, by its client identifier."""
    write(world.folder / "clients.toml", client_policy())
    config = world.config('client_policy = "clients.toml"', rest=RULES)
    judge = judge_of(broker_policy("--config", str(config)))
    with (
        service(*attesting(config)) as running,
        own_evidence(judge) as (settings, issuer),
        AttestedClient(running.port("mqtts")) as watcher,
    ):
        port = running.port("mqtts")
        connect(watcher, name="watcher")
        assert subscribed(watcher, "plant/+/command") == [1]
        controller = AttestedClient(port)
        controller.attest(settings, issuer=issuer)
        connect(controller, command(b"by the controller"), name="controller")
        assert subscribed(controller, "secret", "open") == [1, 1]
        breaks(controller)
        # Its will is what the attested connection had said.
        assert received(watcher) == b"by the controller"
        with AttestedClient(port) as colleague:
            colleague.attest(settings, issuer=issuer)
            connect(colleague, name="colleague")
            assert published(colleague, "secret") < 0x80
            assert published(colleague, "open") < 0x80
        impostors = [ClientSettings(judge=judge), None]
        for settings_of_impostor in impostors:
            with AttestedClient(port) as impostor:
                if settings_of_impostor is not None:
                    impostor.attest(settings_of_impostor)
                refused = connect(impostor, command(b"by the impostor"), name="controller")
                assert refused.code == NOT_AUTHORISED
            with AttestedClient(port) as impostor:
                if settings_of_impostor is not None:
                    impostor.attest(settings_of_impostor)
                assert connect(impostor, name="controller").session_present
                if settings_of_impostor is impostors[0]:
                    # What waits for the session: only what anybody may read.
                    assert received(impostor) == b"open"
                assert published(impostor, "plant/7/command") == NOT_AUTHORISED
                assert subscribed(impostor, "secret") == [NOT_AUTHORISED]
        with AttestedClient(port) as again:
            again.attest(settings, issuer=issuer)
            connect(again, name="controller")
            assert published(again, "plant/7/command") < 0x80
            # The next that the watcher gets is said by the attested one.
            assert received(watcher) == b"plant/7/command"


def test_evidence_is_of_one_connection(world: World) -> None:
    """An attested client that connects again without evidence is nobody again."""
    write(world.folder / "clients.toml", client_policy())
    config = world.config('client_policy = "clients.toml"', rest=RULES)
    judge = judge_of(broker_policy("--config", str(config)))
    with service(*attesting(config)) as running, own_evidence(judge) as (settings, issuer):
        for attests in (True, False, True):
            with AttestedClient(running.port("mqtts")) as client:
                if attests:
                    client.attest(settings, issuer=issuer)
                connect(client, name="controller")
                code = published(client, "plant/7/command")
                assert (code < 0x80) == attests


def resident_bytes(process: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_a_flood_of_openings_takes_little_memory(world: World) -> None:
    """Two hundred ask for evidence and read none of it. Others are served, and what it costs is
    known: an answer of 32 KiB and a TLS connection each."""
    config = world.config()
    settings = ClientSettings(judge=judge_of(broker_policy("--config", str(config))))
    with service(*attesting(config)) as running, contextlib.ExitStack() as flood:
        with AttestedClient(running.port("mqtts")) as client:
            client.attest(settings)
            client.connected("before")
        before = resident_bytes(running.process.pid)
        for _ in range(200):
            each = flood.enter_context(AttestedClient(running.port("mqtts")))
            exchange = ClientExchange(
                facts_of(each.tls, "client"),
                settings,
                context=secrets.token_bytes(32),
                now=datetime.now(UTC),
            )
            each.write_bytes(exchange.to_send())
        with AttestedClient(running.port("mqtts")) as client:
            client.attest(settings)
            client.connected("meanwhile")
        assert resident_bytes(running.process.pid) - before < 200 * 160 * 1024


@pytest.mark.tpm
def test_a_tpm_that_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host stops the TPM. Whoever wants evidence is refused in time; nobody else notices."""
    config = world.config(rest='---\n[attestation]\ntee = "tpm"\nquote_timeout_s = 1.0\n')
    with SoftwareTpm() as tpm:
        monkeypatch.setenv("AVOW_TPM_TCTI", tpm.tcti)
        with service("--config", str(config)) as running:
            anything = ClientSettings(judge=Judge(verifiers(), None))
            with AttestedClient(running.port("mqtts")) as client:
                assert client.attest(anything).verified is not None
            os.kill(tpm.pid, signal.SIGSTOP)
            try:
                for _ in range(2):
                    assert_refused(running, anything, "C21")
                    with AttestedClient(running.port("mqtts")) as plain:
                        assert plain.connected("plain").code == 0
            finally:
                os.kill(tpm.pid, signal.SIGCONT)
            assert running.event("attestation refused", matches=by_quote)
            with AttestedClient(running.port("mqtts")) as plain:
                assert plain.connected("plain").code == 0


def by_quote(line: dict[str, object]) -> bool:
    return line["check"] == "C19"


def assert_refused(running: ServiceProcess, settings: ClientSettings, check: str) -> None:
    with (
        AttestedClient(running.port("mqtts")) as client,
        pytest.raises(AvowError, match=f"check {check}"),
    ):
        client.attest(settings)


def test_the_proxy_is_for_this_host_alone(tmp_path: Path) -> None:
    """Its port speaks without TLS for whoever reaches it, with the evidence of this machine."""
    with attested_endpoint(tmp_path) as endpoint, proxy(endpoint) as running:
        with running.connect() as client:
            client.sendall(b"\x10")
            assert client.recv(1) == b"\x10"
        for address in other_addresses():
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((address, running.port), PATIENCE_S)
        # The kernel's list of listening sockets says the same.
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = {row[1] for row in rows if row[3] == "0A"}
        ports = {each for each in listening if each.endswith(f":{running.port:04X}")}
        assert ports == {f"0100007F:{running.port:04X}"}


def other_addresses() -> set[str]:
    """Addresses of this machine that other machines could use, and another one of its own."""
    found = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), 0, socket.AF_INET)}
    return {"127.0.0.2", *(str(each) for each in found if each != "127.0.0.1")}


def test_a_broken_tls_connection_ends_what_was_attested(world: World) -> None:
    """Bytes that somebody adds to an attested connection end it; nothing of them is MQTT."""
    write(world.folder / "clients.toml", client_policy())
    config = world.config('client_policy = "clients.toml"', rest=RULES)
    judge = judge_of(broker_policy("--config", str(config)))
    with (
        service(*attesting(config)) as running,
        own_evidence(judge) as (settings, issuer),
        AttestedClient(running.port("mqtts")) as client,
    ):
        client.attest(settings, issuer=issuer)
        connect(client, name="controller")
        packet = Publish("plant/7/command", b"x", 1, 1).encode()
        record = b"\x17\x03\x03" + len(packet).to_bytes(2, "big") + packet
        descriptor = client.tls.fileno()
        with socket.socket(fileno=os.dup(descriptor)) as beside:
            beside.sendall(record)
        assert client.closed()
