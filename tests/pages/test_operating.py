"""The operators' page: its unit, files and modes, below another root than that of the machine."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avow.cli.exit_codes import ExitCode
from tests.integration.mosquitto_bridge import Bridge, Ear, Heard, subscribed
from tests.pages.running import BLOCK, DOCS, Reader, bare_environment, free_port

PAGE = (DOCS / "how-to/operate.md").read_text()
FILES = {block["name"]: block["text"] for block in BLOCK.finditer(PAGE) if block["name"]}
MODES = {
    path: int(mode, 8)
    for path, mode in re.findall(r"^\| `(/\S+)` \| [\w:]+ \| (0[0-7]{3}) \|", PAGE, re.MULTILINE)
}


(CHECK,) = re.findall(r"^sudo -u avow (.* broker --check .*)$", PAGE, re.MULTILINE)


def _values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", FILES["avow.service"], re.MULTILINE)


class Host:
    """The page's machine: its paths lie below a folder, its ports are free ones."""

    def __init__(self, reader: Reader) -> None:
        self.root = reader.place
        self._avow = reader.checkout / ".venv/bin/avow"
        self._ports = {number: str(free_port()) for number in ("8883", "9100")}
        self.url = f"mqtts://localhost:{self._ports['8883']}"
        self.metrics = f"http://127.0.0.1:{self._ports['9100']}/metrics"
        for folder in ("etc/avow", "var/lib/avow", "home"):
            (self.root / folder).mkdir(parents=True)
        self.environment = bare_environment(self.root / "home")

    def here(self, text: str) -> str:
        """The same with this machine's paths, addresses and ports."""
        text = text.replace("/opt/avow/bin/avow", str(self._avow)).replace("0.0.0.0", "127.0.0.1")
        for number, free in self._ports.items():
            text = re.sub(rf"\b{number}\b", free, text)
        return re.sub(r"/(?=etc/avow|var/lib/avow)", f"{self.root}/", text)

    def run(self, command: str, **more: str) -> str:
        """Runs a line of the page; returns what it printed."""
        done = subprocess.run(
            shlex.split(self.here(command)),
            env={**self.environment, **more},
            input="correct horse\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lay_out(self) -> None:
        """The files of the page's table, with its modes."""
        config = Path(self.here("/etc/avow/avow.toml"))
        config.write_text(self.here(FILES["avow.toml"]))
        self.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 "
            "-subj /CN=localhost -addext subjectAltName=DNS:localhost "
            "-keyout /etc/avow/server.key -out /etc/avow/server.pem"
        )
        self.run("/opt/avow/bin/avow user add ada --password-stdin --file /etc/avow/avow.users")
        Path(self.here("/var/lib/avow/owner.key")).write_text(os.urandom(32).hex() + "\n")
        for path, mode in MODES.items():
            if Path(self.here(path)).exists():
                Path(self.here(path)).chmod(mode)

    @contextmanager
    def service(self) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
        """The unit's process, from ExecStart on."""
        (command,) = _values("ExecStart")
        process = subprocess.Popen(
            shlex.split(self.here(command)), env=self.environment, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        with process, process.stderr:
            try:
                yield process, iter(process.stderr)
            finally:
                process.kill()


def _wait_for(event: str, log: Iterator[str]) -> None:
    seen = []
    for line in log:
        seen.append(line)
        if event in line:
            return
    pytest.fail(f"no line with {event!r}: {''.join(seen)}")


@pytest.mark.openssl
def test_the_unit_runs_what_the_page_describes(reader: Reader) -> None:
    host = Host(reader)
    host.lay_out()
    said = host.run(CHECK)
    assert "configuration is valid" in said
    assert "can read" not in said
    with host.service() as (process, log):
        _wait_for("listening", log)
        _publish(host)
        (reload,) = _values("ExecReload")
        host.run(reload.replace("$MAINPID", str(process.pid)))
        _wait_for("reloaded", log)
        with urllib.request.urlopen(host.metrics, timeout=10) as answer:
            shown = answer.read().decode()
        for name in re.findall(r"^\| `(avow_\w+)` \|", PAGE, re.MULTILINE):
            assert f"# TYPE {name} " in shown, name
        assert Path(host.here("/var/lib/avow/state")).stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ExitCode.OK


def _publish(host: Host) -> None:
    host.run(
        f"/opt/avow/bin/avow pub --cafile /etc/avow/server.pem -u ada -q 1 "
        f"-t people/ada/door -m open {host.url}",
        AVOW_PASSWORD="correct horse",
    )


@pytest.mark.openssl
@pytest.mark.mosquitto
def test_a_mosquitto_joins_with_the_lines_of_the_page(reader: Reader) -> None:
    host = Host(reader)
    host.lay_out()
    lines = host.here(FILES["bridge.conf"]).replace("broker.example", "localhost")
    lines = lines.replace("/etc/mosquitto/certs/avow.pem", host.here("/etc/avow/server.pem"))
    with host.service() as (_, log):
        _wait_for("listening", log)
        with (
            subscribed(Bridge(host.root, *lines.splitlines()), 1) as link,
            Ear(link.port, "site/#") as there,
        ):
            _publish(host)
            assert there.next() == Heard("site/door", b"open", 1, False)
            there.say("site/lamp", b"on", retain=True)
            assert there.next().topic == "site/lamp"
            heard = host.run(
                f"/opt/avow/bin/avow sub --cafile /etc/avow/server.pem -u ada --count 1 --verbose "
                f"-t people/ada/lamp {host.url}",
                AVOW_PASSWORD="correct horse",
            )
            assert heard == "people/ada/lamp on\n"


def test_exit_codes_of_the_page_are_those_of_the_broker() -> None:
    section = PAGE.partition("## Exit codes")[2].partition("##")[0]
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| (yes|no)\b", section, re.MULTILINE)
    again = {int(code): word == "yes" for code, word in rows}
    stores = set(range(ExitCode.WRONG_KEY, ExitCode.STORAGE + 1))
    assert set(again) == {
        ExitCode.OK,
        ExitCode.FAILED,
        ExitCode.USAGE,
        ExitCode.INTERNAL,
        *stores,
    }
    (never_again,) = _values("RestartPreventExitStatus")
    # `Restart=on-failure` does not start what ended with 0.
    stays_down = {code for code, is_started in again.items() if not is_started} - {ExitCode.OK}
    assert {int(code) for code in never_again.split()} == stays_down
    # systemd applies the list to the main process only: a check before it would be repeated.
    assert _values("ExecStartPre") == []
