"""`avow broker` in a process of its own, found by what its log says."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

from avow.testing.pki import Authority
from tests.integration.interop.endpoint import SCHEMES, Endpoint

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
# The console script's own line, so that the tests do not depend on what is in PATH.
AVOW = (sys.executable, "-c", "from avow.cli import main; main()")


class BrokerProcess:
    """Starts on free ports with a listener of each kind; leaving the `with` block drains it."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        self._ca = authority.write(folder / "ca.pem")
        cert, key = authority.issue_server().write(folder, "server")
        listen = [word for scheme in SCHEMES for word in ("--listen", f"{scheme}://127.0.0.1:0")]
        self._command = [*AVOW, "broker", "--allow-anonymous", *listen]
        self._command += ["--cert", str(cert), "--key", str(key)]
        self._lines: list[str] = []
        self._opened: queue.Queue[str | None] = queue.Queue()
        self.endpoints: dict[str, Endpoint] = {}

    def __enter__(self) -> BrokerProcess:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()
        while len(self.endpoints) < len(SCHEMES):
            url = self._opened.get(timeout=START_TIMEOUT_S)
            assert url is not None, f"the broker has ended:\n{self.log()}"
            scheme, _, rest = url.partition("://")
            host, _, port = rest.rpartition(":")
            self.endpoints[scheme] = Endpoint(scheme, host, int(port), self._ca)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._reader.join(STOP_TIMEOUT_S)
        assert code == 0, f"the broker ended with {code}:\n{self.log()}"

    def still_runs(self) -> bool:
        """False when the broker has ended by itself."""
        return self._process.poll() is None

    def log(self) -> str:
        """What the broker has written so far."""
        return "".join(self._lines)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.append(line)
                if line.startswith("{") and (entry := json.loads(line))["event"] == "listening":
                    self._opened.put(entry["url"])
        self._opened.put(None)
