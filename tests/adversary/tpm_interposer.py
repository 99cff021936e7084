"""Somebody on the bus between avow and its TPM: sees everything, and answers as it likes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from avow.testing.swtpm import SoftwareTpm

# TPM 2.0 Library, Part 2, section 6.5.2, TPM_CC.
CREATE_PRIMARY = 0x131
NV_DEFINE_SPACE = 0x12A
NV_INCREMENT = 0x134
NV_READ = 0x14E
NV_READ_PUBLIC = 0x169
UNSEAL = 0x15E
PCR_READ = 0x17E
PCR_RESET = 0x13D
QUOTE = 0x158

# From a command and the TPM's answer to the answer that avow gets.
Change = Callable[[bytes, bytes], bytes]


def code_of(command: bytes) -> int:
    """TPM_CC of a command."""
    code: int = struct.unpack_from(">I", command, 6)[0]
    return code


@dataclass
class Interposer:
    """Listens as a swtpm does, in front of one."""

    tpm: SoftwareTpm
    change: Change = lambda command, answer: answer
    # When this says so, a command is not passed on; it gives the answer itself.
    swallow: Callable[[bytes], bytes | None] = lambda command: None
    # From avow's command to the one that the TPM gets.
    redirect: Callable[[bytes], bytes] = lambda command: command
    seen: list[tuple[bytes, bytes]] = field(default_factory=list)
    _ended: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        self.folder = Path(self._ended.enter_context(TemporaryDirectory(prefix="bus")))
        self._listen("socket", self._commands)
        self._listen("socket.ctrl", _copy)
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.close()

    @property
    def tcti(self) -> str:
        """How tpm2-tss finds it."""
        return f"swtpm:path={self.folder / 'socket'}"

    @property
    def traffic(self) -> bytes:
        """All that was seen."""
        return b"".join(command + answer for command, answer in self.seen)

    def answers_to(self, code: int) -> list[bytes]:
        """The TPM's answers to the commands of one kind."""
        return [answer for command, answer in self.seen if code_of(command) == code]

    def _listen(self, name: str, serve: Callable[[socket.socket, socket.socket], None]) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.folder / name))
        listening.listen()
        self._ended.callback(listening.close)
        # To close a socket does not wake who waits for connections to it; this does.
        self._ended.callback(lambda: listening.shutdown(socket.SHUT_RDWR))

        def accept() -> None:
            while True:
                try:
                    ours, _ = listening.accept()
                except OSError:
                    return
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(str(self.tpm.folder / name))
                threading.Thread(target=self._pass, args=(serve, ours, theirs), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    @staticmethod
    def _pass(
        serve: Callable[[socket.socket, socket.socket], None],
        ours: socket.socket,
        theirs: socket.socket,
    ) -> None:
        with ours, theirs, contextlib.suppress(OSError):
            serve(ours, theirs)

    def _commands(self, ours: socket.socket, theirs: socket.socket) -> None:
        while command := _message(ours):
            answer = self.swallow(command)
            if answer is None:
                theirs.sendall(self.redirect(command))
                answer = _message(theirs)
                self.seen.append((command, answer))
                answer = self.change(command, answer)
            ours.sendall(answer)


def _message(link: socket.socket) -> bytes:
    """A command or an answer: its second field is its size (Part 1, section 18.9)."""
    content = b""
    size = 10
    while len(content) < size:
        part = link.recv(size - len(content))
        if not part:
            return b""
        content += part
        if len(content) >= 6:
            size = struct.unpack_from(">I", content, 2)[0]
    return content


def _copy(ours: socket.socket, theirs: socket.socket) -> None:
    def back() -> None:
        with contextlib.suppress(OSError):
            while part := theirs.recv(4096):
                ours.sendall(part)
            ours.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=back, daemon=True)
    thread.start()
    while part := ours.recv(4096):
        theirs.sendall(part)
    theirs.shutdown(socket.SHUT_RDWR)
    thread.join()
