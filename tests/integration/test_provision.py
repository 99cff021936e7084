"""`avow provision` and the real broker: who gets in, what is taken, and where it stays."""

from __future__ import annotations

import json
import re
import socket
import ssl
from pathlib import Path

import pytest

from avow.testing.mqtt import Puback, Publish
from tests.integration.provisioned_broker import (
    PASSWORD,
    STORE_KEY,
    Owner,
    command,
    owner_in,
    owners_port,
    waiting_broker,
)
from tests.integration.service_process import PlainClient, ServiceProcess, avow, write


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    made = owner_in(tmp_path)
    made.configure()
    made.secrets()
    return made


def logs_in(owner: Owner, running: ServiceProcess, password: str, user: str = "alice") -> int:
    """The reason code of a login over TLS, with a certificate of the owner's authority."""
    context = ssl.create_default_context(cafile=str(owner.folder / "ca.pem"))
    with PlainClient(running.port("mqtts"), context) as client:
        return client.connect(client_id="c", username=user, password=password.encode()).code


def certificate_of(running: ServiceProcess) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", running.port("mqtts"))
    with (
        socket.create_connection(address) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        return tls.getpeercert(binary_form=True) or b""


def listens(running: ServiceProcess) -> bool:
    return any(line["event"] == "listening" for line in running.entries())


def test_a_broker_waits_for_its_owner_serves_with_what_it_got_and_keeps_it_in_memory(
    owner: Owner,
) -> None:
    private_key = (owner.folder / "server.key").read_bytes()
    before = sorted(owner.folder.rglob("*"))
    with waiting_broker(owner.config) as running:
        assert not listens(running)
        done = avow(*owner.arguments(owners_port(running)))
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().splitlines()[-1] == (
            "taken: keys store; files tls.crt, tls.key, users"
        )
        # Broken on purpose: what was handed over is not read from the disk again.
        for name in ("server.pem", "server.key", "users", "secrets.toml", "owner.pem"):
            (owner.folder / name).write_bytes(b"nothing of use")
        assert logs_in(owner, running, PASSWORD) == 0
        assert logs_in(owner, running, "guess") == 0x86
        running.reload()
        running.event("reloaded")
        assert logs_in(owner, running, PASSWORD) == 0
        line = running.event("provisioned")
        assert (line["keys"], line["files"]) == (["store"], ["tls.crt", "tls.key", "users"])
        arguments = Path(f"/proc/{running.process.pid}/cmdline").read_bytes()
        limits = Path(f"/proc/{running.process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    assert sorted(owner.folder.rglob("*")) == before
    said = json.dumps(running.entries()).encode() + arguments
    said += done.stdout + done.stderr
    for secret in (
        STORE_KEY.hex().encode(),
        PASSWORD.encode(),
        b"$argon2id$",
        *private_key.splitlines()[1:-1],
    ):
        assert secret not in said


def test_the_owner_rotates_certificates_and_users_but_not_the_store_key(owner: Owner) -> None:
    with waiting_broker(owner.config) as running:
        port = owners_port(running)
        assert owner.provision(port).returncode == 0
        first = certificate_of(running)
        # A new certificate, another password, the same key.
        owner.secrets(users={"alice": "another"})
        assert owner.provision(port).returncode == 0
        assert certificate_of(running) != first
        assert logs_in(owner, running, "another") == 0
        assert logs_in(owner, running, PASSWORD) == 0x86
        second = certificate_of(running)
        owner.secrets(users={"mallory": "m"}, store_key=bytes(reversed(STORE_KEY)))
        refused = owner.provision(port)
        assert refused.returncode == 3
        assert b"PR3" in refused.stderr
        # All or nothing: the users that came with the other key were not taken either.
        assert logs_in(owner, running, "m", "mallory") == 0x86
        assert certificate_of(running) == second
        # Without a key at all: it stays.
        owner.secrets(users={"alice": "third"}, store_key=None)
        assert owner.provision(port).returncode == 0
        assert logs_in(owner, running, "third") == 0


def test_secrets_that_cannot_be_used_are_refused_in_words_and_awaited_again(owner: Owner) -> None:
    with waiting_broker(owner.config) as running:
        port = owners_port(running)
        _, other = owner.authority.issue_server().write(owner.folder, "other")
        owner.secrets(private_key=other)
        done = owner.provision(port)
        assert done.returncode == 1
        assert b"expected the private key of the certificate" in done.stderr
        assert not listens(running)
        owner.secrets()
        assert owner.provision(port).returncode == 0
        assert logs_in(owner, running, PASSWORD) == 0


def test_a_node_that_the_policy_refuses_gets_nothing(owner: Owner) -> None:
    policy = (owner.folder / "policy.toml").read_text()
    with waiting_broker(owner.config) as running:
        # Of another configuration: this one lets everybody in.
        owner.configure(rest="allow_anonymous = true\n")
        done = owner.provision(owners_port(running))
        assert done.returncode == 3
        assert b"configuration" in done.stderr
        assert not [line for line in running.entries() if line["event"] == "provisioned"]
        # The policy for the one that runs is still right.
        write(owner.folder / "policy.toml", policy)
        assert owner.provision(owners_port(running)).returncode == 0


def test_a_stranger_gets_no_evidence_and_provisions_nothing(owner: Owner) -> None:
    with waiting_broker(owner.config) as running:
        stranger = owner.folder / "stranger.pem"
        made = command("provision", "--new-owner-key", str(stranger))
        assert made.returncode == 0
        assert made.stdout.startswith(b'owner = "sha256:')
        assert stranger.stat().st_mode & 0o777 == 0o600
        done = owner.provision(owners_port(running), "--owner-key", str(stranger))
        assert done.returncode == 3
        assert b"C9" in done.stderr
        assert running.event("provisioning refused")["check"] == "C9"
        assert not listens(running)
        # Who speaks without asking for evidence.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with PlainClient(owners_port(running), context) as plain:
            plain._socket.sendall(b"\xb0" + bytes(4095))
            assert plain.closed()
        assert running.event("provisioning refused", 2)["check"] == "C18"


def test_what_was_measured_stays_once_there_are_secrets(owner: Owner) -> None:
    """Who owns the disk opens the broker up and has it read its configuration again."""
    with waiting_broker(owner.config) as running:
        assert owner.provision(owners_port(running)).returncode == 0
        text = owner.config.read_text()
        write(owner.config, "allow_anonymous = true\n" + text)
        running.reload()
        line = running.event("reload refused")
        assert "to which the owner has handed secrets" in line["reason"]
        assert logs_in(owner, running, "guess") == 0x86


def test_a_file_that_changes_between_measuring_and_using_is_noticed(owner: Owner) -> None:
    """The owner has judged the authority whose clients come in; then somebody puts another one."""
    owner.configure(rest='---client_ca = "ca.pem"\n')
    with waiting_broker(owner.config) as running:
        type(owner.authority)().write(owner.folder / "ca.pem")
        done = owner.provision(owners_port(running))
        assert done.returncode == 3
        assert b"as the evidence says" in done.stderr
        assert not listens(running)


def test_the_owner_reads_why_a_broker_cannot_start(owner: Owner) -> None:
    """Its secrets are right, and its port belongs to somebody else."""
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        url = f"mqtts://127.0.0.1:{occupied.getsockname()[1]}"
        text = owner.configure().read_text().replace("mqtts://127.0.0.1:0", url)
        write(owner.config, text)
        owner.accept()
        running = ServiceProcess(("--tee", "simulated", "--config", str(owner.config)))
        try:
            done = owner.provision(owners_port(running))
            assert done.returncode == 1
            assert b"expected a free port" in done.stderr
            assert running.wait() == 2
        finally:
            running.close()


def test_the_owners_key_opens_the_brokers_store_and_another_one_does_not(owner: Owner) -> None:
    """What is on the disk is of no use without the owner."""
    owner.configure(rest='---[store]\ndirectory = "state"\nkey = "provisioned"\n')
    context = ssl.create_default_context(cafile=str(owner.folder / "ca.pem"))
    with waiting_broker(owner.config) as running:
        assert not (owner.folder / "state").exists()
        assert owner.provision(owners_port(running)).returncode == 0
        with PlainClient(running.port("mqtts"), context) as client:
            client.connect(client_id="c", username="alice", password=PASSWORD.encode())
            client.send(Publish("room", b"kept", qos=1, packet_id=1, retain=True))
            assert client.receive(Puback).code < 0x80
        running.process.kill()
        running.wait()
    with waiting_broker(owner.config) as running:
        assert owner.provision(owners_port(running)).returncode == 0
        with PlainClient(running.port("mqtts"), context) as client:
            client.connect(client_id="d", username="alice", password=PASSWORD.encode())
            assert client.subscribe("room") == 0
            assert client.receive(Publish).payload == b"kept"
    running = ServiceProcess(("--tee", "simulated", "--config", str(owner.config)))
    try:
        owner.secrets(store_key=bytes(reversed(STORE_KEY)))
        done = owner.provision(owners_port(running))
        assert done.returncode == 3
        assert b"PR5" in done.stderr
        assert running.wait() == 104
    finally:
        running.close()


def test_bad_input(owner: Owner) -> None:
    nobody = owner.provision(9)
    assert nobody.returncode == 1
    assert b"127.0.0.1:9" in nobody.stderr
    key = str(owner.folder / "owner.pem")
    (owner.folder / "secrets.toml").write_text('version = 1\n[keys]\nstore = "hex:00ff"\n')
    short = owner.provision(9, "--owner-key", key)
    assert short.returncode == 2
    assert b"64 hexadecimal digits for the key 'store'" in short.stderr
    assert b"00ff" not in short.stderr
    # Nobody could judge a broker without a platform.
    alone = command("broker", "--config", str(owner.config), "--check")
    assert alone.returncode == 2
    assert b"expected a platform with [provisioning]" in alone.stderr
    checked = command("broker", "--config", str(owner.config), "--check", "--tee", "simulated")
    assert checked.returncode == 0
    assert b"from the owner" in checked.stdout
