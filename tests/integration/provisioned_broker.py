"""An owner with a key, secrets and a policy, and brokers that wait for them."""

from __future__ import annotations

import functools
import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from avow.broker.users import User, add_user, new_user
from avow.channel.provisioning_owner import OwnerKey, new_owner_key
from avow.cli import run
from avow.testing.pki import Authority
from tests.integration.service_process import ServiceProcess, write

STORE_KEY = bytes(range(100, 132))
PASSWORD = "correct horse battery staple"


@functools.cache
def user(name: str, password: str) -> User:
    """Hashing a password takes long on purpose."""
    return new_user(name, password)


def command(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """`avow` in this process, which saves its start."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(arguments)
    said = (out.getvalue().encode(), err.getvalue().encode())
    return subprocess.CompletedProcess(arguments, int(code), *said)


@dataclass
class Owner:
    """What lies on the owner's own machine, in `folder`; the broker's configuration lies beside."""

    folder: Path
    key: OwnerKey
    authority: Authority

    @property
    def config(self) -> Path:
        """What the broker runs with: nothing in it is secret."""
        return self.folder / "avow.toml"

    @property
    def digest(self) -> str:
        """As a configuration names the owner."""
        return "sha256:" + self.key.digest.hex()

    def configure(self, *, rest: str = "", owner: str | None = None) -> Path:
        """Writes the configuration and the policy that accepts it."""
        text = f"""
password_file = "provisioned:users"
{rest.partition("---")[0]}
[provisioning]
listen = "127.0.0.1:0"
owner = "{owner or self.digest}"
[[listeners]]
url = "mqtts://127.0.0.1:0"
cert = "provisioned:tls.crt"
key = "provisioned:tls.key"
{rest.partition("---")[2]}
"""
        write(self.config, text)
        self.accept()
        return self.config

    def accept(self) -> None:
        """Writes the policy that accepts the configuration as it is."""
        path = str(self.folder / "policy.toml")
        options = ("--broker", "--platform", "simulated", "--config", str(self.config))
        done = command("policy", "init", *options, "--force", "-o", path)
        assert done.returncode == 0, done.stderr

    def secrets(
        self,
        *,
        users: dict[str, str] | None = None,
        store_key: bytes | None = STORE_KEY,
        private_key: Path | None = None,
    ) -> Path:
        """Writes the file of secrets, with a new certificate and these users."""
        _, key = self.authority.issue_server().write(self.folder, "server")
        path = self.folder / "users"
        path.unlink(missing_ok=True)
        for name, password in (users or {"alice": PASSWORD}).items():
            add_user(path, user(name, password))
        keys = "" if store_key is None else f'[keys]\nstore = "hex:{store_key.hex()}"\n'
        text = f"""version = 1
owner_key = "owner.pem"
{keys}
[files]
"tls.crt" = "file:server.pem"
"tls.key" = "file:{private_key or key}"
users = "file:users"
"""
        secrets = write(self.folder / "secrets.toml", text)
        secrets.chmod(0o600)
        return secrets

    def arguments(self, port: int, *options: str) -> list[str]:
        """Of `avow`, to provision with the files of this folder."""
        return [
            "provision",
            f"127.0.0.1:{port}",
            str(self.folder / "secrets.toml"),
            *("--policy", str(self.folder / "policy.toml")),
            *options,
        ]

    def provision(self, port: int, *options: str) -> subprocess.CompletedProcess[bytes]:
        """Does it."""
        return command(*self.arguments(port, *options))


def owner_in(folder: Path) -> Owner:
    """An owner with a key and an authority."""
    key = new_owner_key()
    path = folder / "owner.pem"
    path.touch(mode=0o600)
    path.write_bytes(key.pem())
    authority = Authority()
    authority.write(folder / "ca.pem")
    return Owner(folder, key, authority)


@contextmanager
def waiting_broker(config: Path) -> Iterator[ServiceProcess]:
    """A broker that listens for its owner; it ends with 0."""
    running = ServiceProcess(("--tee", "simulated", "--config", str(config)))
    try:
        running.event("listening for its owner")
        yield running
        if running.process.poll() is None:
            assert running.stop() == 0, running.entries()
        assert not [line for line in running.entries() if line["level"] == "critical"]
    finally:
        running.close()


def owners_port(running: ServiceProcess) -> int:
    """Where the broker listens for its owner."""
    return int(running.event("listening for its owner")["port"])
