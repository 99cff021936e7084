"""Both sides are attested: only attested clients may publish commands, and everybody may watch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from avow.runtime.manifest import runtime_manifest
from avow.testing.attested_peer import policy_text
from avow.testing.pki import Authority
from tests.integration.service_process import ServiceProcess, avow, service

KEY = "5f" * 32

BROKER = """\
allow_anonymous = true

[attestation]
tee = "simulated"

[[listeners]]
url = "wss://127.0.0.1:0"
cert = "server.pem"
key = "server.key"
client_policy = "clients.toml"

[[listeners]]
url = "mqtts://127.0.0.1:0"
cert = "server.pem"
key = "server.key"
psk_file = "keys"

[[acl]]
effect = "allow"
access = "publish"
pattern = "plant/+/command"
tier = "warning"

[[acl]]
effect = "allow"
access = "both"
pattern = "plant/+/program"
module = "sha256:{module}"

[[acl]]
effect = "allow"
access = "subscribe"
pattern = "plant/#"
"""


@dataclass(frozen=True)
class Plant:
    folder: Path
    broker: ServiceProcess

    def publish(
        self, *options: str, scheme: str = "wss", topic: str = "plant/1/command"
    ) -> tuple[int, str]:
        """Tries to publish a command; the exit code, and what was said."""
        done = avow(
            *("pub", f"{scheme}://localhost:{self.broker.port(scheme)}"),
            *("-t", topic, "-m", "stop", "-q", "1", "-r"),
            *("--policy", str(self.folder / "policy.toml"), *options),
        )
        return done.returncode, done.stderr.decode()


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    authority = Authority()
    authority.write(folder / "ca.pem")
    authority.issue_server().write(folder, "server")
    (folder / "keys").write_text(f"sensor:{KEY}\n")
    (folder / "wrong").write_text(f"sensor:{'00' * 32}\n")
    for name in ("keys", "wrong"):
        (folder / name).chmod(0o600)
    runtime = runtime_manifest().digest
    clients = policy_text(runtime, runtime=runtime.hex())
    clients = re.sub(r"configuration = .*", 'configuration = "any"', clients)
    (folder / "clients.toml").write_text(clients)
    config = folder / "avow.toml"
    config.write_text(BROKER.format(module=runtime.hex()))
    made = avow(
        *("policy", "init", "--broker", "--platform", "simulated"),
        *("--config", str(config), "-o", str(folder / "policy.toml")),
    )
    assert made.returncode == 0, made.stderr
    with service("--config", str(config)) as running:
        yield Plant(folder, running)


def test_only_attested_clients_may_publish(plant: Plant) -> None:
    ca = ("--cafile", str(plant.folder / "ca.pem"))
    code, said = plant.publish(*ca)
    assert code == 3
    assert "Not authorized" in said
    attested = (*ca, "--tee", "simulated")
    code, said = plant.publish(*attested)
    assert code == 0, said
    # The rule names the very digest that the client's evidence has as module: nobody has measured
    # that it runs, so the rule does not fit.
    code, said = plant.publish(*attested, topic="plant/1/program")
    assert code == 3
    assert "Not authorized" in said
    # And a file of its choice cannot be named at all.
    code, said = plant.publish(*attested, "--module", str(plant.folder / "avow.toml"))
    assert code == 2
    assert "--module" in said
    done = avow(
        *("sub", f"wss://localhost:{plant.broker.port('wss')}", "-t", "plant/#", "-C", "1"),
        *("-W", "20", "--policy", str(plant.folder / "policy.toml"), *ca),
    )
    assert (done.returncode, done.stdout) == (0, b"stop\n")


def test_a_pre_shared_key_in_place_of_certificates(plant: Plant) -> None:
    code, said = plant.publish("--psk", str(plant.folder / "keys"), scheme="mqtts")
    assert code == 3
    assert "Not authorized" in said
    code, said = plant.publish("--psk", str(plant.folder / "wrong"), scheme="mqtts")
    assert code == 1
    assert "TLS 1.3" in said
    url = f"mqtts://localhost:{plant.broker.port('mqtts')}"
    shown = avow(
        "inspect",
        url,
        "--policy",
        str(plant.folder / "policy.toml"),
        "--psk",
        str(plant.folder / "keys"),
    )
    assert shown.returncode == 0, shown.stderr
    assert b"none: a pre-shared key" in shown.stdout
