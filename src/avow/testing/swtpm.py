"""A real TPM in software: swtpm (apt-get install swtpm), with its own state and sockets."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self


class SoftwareTpm:
    """One swtpm process. Starting and stopping it again keeps its keys, as cutting power does."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` holds state and sockets; without it a new one, removed at the end.

        A socket's path has at most 107 bytes, so that a test's own folder may be too deep.
        """
        self._own = tempfile.TemporaryDirectory(prefix="tpm") if folder is None else None
        self.folder = Path(self._own.name) if self._own is not None else Path(str(folder))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """How tpm2-tss finds it."""
        return f"swtpm:path={self.folder / 'socket'}"

    @property
    def pid(self) -> int:
        """The process, to stop or to suspend it."""
        if self._process is None:
            raise ValueError("expected a swtpm that runs, got none; call start() first")
        return self._process.pid

    def start(self) -> None:
        """Returns when it listens: swtpm writes its number into a pipe after it has bound both
        sockets."""
        pipe = self.folder / "ready"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        ready = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._process = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self.folder}",
                "--server",
                f"type=unixio,path={self.folder / 'socket'}",
                "--ctrl",
                f"type=unixio,path={self.folder / 'socket.ctrl'}",
                "--flags",
                "not-need-init,startup-clear",
                "--pid",
                f"file={pipe}",
                "--log",
                f"file={self.folder / 'log'},truncate",
            ],
        )
        ended = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(ready, select.POLLIN)
            poll.register(ended, select.POLLIN)
            if ended in dict(poll.poll()):
                raise RuntimeError(f"swtpm ended with {self._process.wait()} before it listened")
        finally:
            os.close(ended)
            os.close(ready)

    def stop(self) -> None:
        """Ends the process, if it runs; the state stays."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._own is not None:
            self._own.cleanup()
