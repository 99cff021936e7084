"""Starts the brokers that are compared: fresh, on one core, with the same bounds lifted."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
_START_S = 60.0
_STOP_S = 15.0


class BrokerError(Exception):
    """A broker did not start or stop; the message holds what it wrote."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: an authority, and a server certificate for 127.0.0.1 with its key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Running:
    """A started broker."""

    pid: int
    port: int
    tls_port: int


def make_certificate(folder: Path) -> Certificate:
    """One self-signed certificate (ECDSA P-256), for every broker and trusted by the clients."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "avow bench")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(folder / "cert.pem", folder / "cert.pem", folder / "key.pem")
    files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    files.key.chmod(0o600)
    return files


class Broker:
    """Something to start: `name` is unique in a comparison, `version` chooses the targets."""

    name: str
    version: str

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        """Writes the configuration into `folder`; the command that starts the broker with it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


class Mosquitto(Broker):
    """mosquitto without Nagle and without limits on queued or in-flight messages."""

    def __init__(self, path: Path, libraries: Path | None = None) -> None:
        self.path = path.resolve()
        self._libraries = libraries
        done = subprocess.run(
            [self.path, "-h"],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment(),
        )
        found = re.search(r"version (\S+)", done.stdout)
        if found is None:
            raise BrokerError(f"{path} is no mosquitto that runs here: {done.stderr.strip()}")
        self.version = found[1]
        self.name = f"mosquitto {self.version}"

    def environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self._libraries is not None:
            environment["LD_LIBRARY_PATH"] = str(self._libraries)
        return environment

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        lines = [
            "per_listener_settings false",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            "max_queued_messages 0",
            "max_inflight_messages 0",
            "persistence false",
            "sys_interval 0",
            "log_dest none",
            f"listener {port} {HOST}",
            f"listener {tls_port} {HOST}",
            "tls_version tlsv1.3",
            f"certfile {certificate.cert}",
            f"keyfile {certificate.key}",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # else it becomes a user that may not read our files
        config = folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        return [str(self.path), "-c", str(config)]


class Avow(Broker):
    """The broker of this checkout, as the interpreter that runs the bench finds it."""

    def __init__(self) -> None:
        import avow

        self.name = "avow"
        self.version = getattr(avow, "__version__", "")
        self.python = Path(sys.executable)

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        config = folder / "avow.toml"
        config.write_text(
            f"""\
allow_anonymous = true

[[listeners]]
url = "mqtt://{HOST}:{port}"

[[listeners]]
url = "mqtts://{HOST}:{tls_port}"
cert = "{certificate.cert}"
key = "{certificate.key}"

[limits]
queued_bytes_max = {2**32 - 1}
queued_messages_max = {2**31}
inflight_max = 65535
receive_maximum = 65535
memory_budget_bytes = {3 * 2**30}
sys_interval_ms = 0
persist_sessions = false

[log]
level = "error"
"""
        )
        return [str(self.python), "-m", "avow", "broker", "--config", str(config)]


class Reflector(Broker):
    """Forwards and does nothing else: shows what generator and kernel can do at most."""

    name = "ceiling"
    version = ""

    def environment(self) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def command(
        self, folder: Path, port: int, tls_port: int, certificate: Certificate
    ) -> list[str]:
        command = [sys.executable, "-m", "bench.loadgen.reflector", "--port", str(port)]
        command += ["--tls-port", str(tls_port), "--cert", str(certificate.cert)]
        return [*command, "--key", str(certificate.key)]


def free_port() -> int:
    """One that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def two_cores() -> tuple[int | None, int | None]:
    """One for a broker and one for what loads it; None where this process has only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """What is started inside runs on this core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def started(
    broker: Broker, folder: Path, certificate: Certificate, core: int | None
) -> Iterator[Running]:
    """The broker, ready for connections; stopped at the end."""
    port, tls_port = free_port(), free_port()
    command = broker.command(folder, port, tls_port, certificate)
    log = _log(folder, broker)
    with log.open("wb") as output, pinned(core):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=broker.environment(),
        )
    try:
        for number in (port, tls_port):
            _wait_for(process, number, broker.name, log)
        yield Running(process.pid, port, tls_port)
        if process.poll() is not None:
            raise BrokerError(f"{broker.name} ended: {_tail(log)}")
    finally:
        _stop(process)


def _log(folder: Path, broker: Broker) -> Path:
    return folder / f"{type(broker).__name__.lower()}.log"


def tail(folder: Path, broker: Broker) -> str:
    """The end of what the broker wrote when it was last started."""
    return _tail(_log(folder, broker))


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip() or "(it wrote nothing)"


def _wait_for(process: subprocess.Popen[bytes], port: int, name: str, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise BrokerError(f"{name} ended at once: {_tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    raise BrokerError(f"{name} does not listen after {_START_S:.0f} s: {_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
