"""A resource manager in front of a software TPM, as Linux has one at /dev/tpmrm0.

Several openers share one TPM: each has loaded objects and sessions of its own, which are saved and
flushed after every command and loaded before the next one, and are gone when it closes, also when
it is killed. Handles of objects are virtual. This follows drivers/char/tpm/tpm2-space.c in Linux,
with its three objects and three sessions for each opener, as far as avow needs it.

TPM 2.0 Library, Part 3, sections 28.2 (TPM2_ContextSave) to 28.4 (TPM2_FlushContext); Part 2,
sections 8.9 (TPMA_CC) and 7.2 (TPM_HT).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from avow.testing import tpm_relay
from avow.testing.swtpm import SoftwareTpm
from avow.testing.tpm_relay import HEADER_BYTES, message

SLOTS: Final = 3
_OBJECT: Final = 0x80
_SESSIONS: Final = (0x02, 0x03)
_VIRTUAL_FIRST: Final = 0x80FFFFFF
_NO_SESSIONS: Final = 0x8001
_CC_CONTEXT_LOAD: Final = 0x161
_CC_CONTEXT_SAVE: Final = 0x162
_CC_FLUSH_CONTEXT: Final = 0x165
_CC_GET_CAPABILITY: Final = 0x17A
_CAP_HANDLES: Final = 1
_CAP_COMMANDS: Final = 2
_COMMANDS_MAX: Final = 256
# TPMA_CC.
_INDEX: Final = 0xFFFF
_VENDOR: Final = 1 << 29
_ANSWERS_HANDLE: Final = 1 << 28
_RC_OBJECT_MEMORY: Final = 0x902
_RC_SESSION_MEMORY: Final = 0x903
_RC_HANDLE: Final = 0x08B
_PATIENCE_S: Final = 30.0

# From a command to the answer that its opener gets without the TPM; None passes it on.
Answer = Callable[[bytes], bytes | None]


def code_of(command: bytes) -> int:
    """TPM_CC of a command."""
    return int(struct.unpack_from(">I", command, 6)[0])


def refused(code: int) -> bytes:
    """An answer that is this TPM_RC alone."""
    return struct.pack(">HII", _NO_SESSIONS, HEADER_BYTES, code)


class _RefusedError(Exception):
    """The TPM, or a place that is full, refused with this TPM_RC."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{code:#x}")
        self.code = code


@dataclass
class _Space:
    """What one opener has: contexts of objects by their place, and of sessions by their handle."""

    objects: list[bytes | None] = field(default_factory=lambda: [None] * SLOTS)
    sessions: dict[int, bytes] = field(default_factory=dict)


class SharedTpm:
    """Runs until it is left. `instead` may answer in place of the TPM, for errors that it makes
    seldom."""

    def __init__(self, tpm: SoftwareTpm) -> None:
        self._tpm = tpm
        self._turn = threading.Condition()
        self._openers = 0
        self._commands: dict[int, int] = {}
        self._ended = contextlib.ExitStack()
        self.instead: Answer = lambda command: None

    @property
    def tcti(self) -> str:
        """How tpm2-tss finds it. One opener is one process that passes its commands on, since
        the TCTI for swtpm makes a new connection for each command."""
        relay = Path(tpm_relay.__file__)
        return f"cmd:{sys.executable} -I -S {relay} {self._path}"

    def handles(self, *kinds: int) -> list[int]:
        """What the TPM itself has of objects (0x80000000), sessions that are loaded (0x02000000)
        and that are saved (0x03000000), once all who opened it are gone."""
        found: list[int] = []
        with self._turn:
            self._turn.wait_for(lambda: not self._openers, _PATIENCE_S)
            for first in kinds:
                content = struct.pack(">III", _CAP_HANDLES, first, _COMMANDS_MAX)
                answer = self._sent(_CC_GET_CAPABILITY, content)
                (count,) = struct.unpack_from(">I", answer, HEADER_BYTES + 5)
                found += struct.unpack_from(f">{count}I", answer, HEADER_BYTES + 9)
        return found

    def __enter__(self) -> Self:
        folder = self._ended.enter_context(tempfile.TemporaryDirectory(prefix="tpmrm"))
        self._path = Path(folder) / "socket"
        self._link = self._ended.enter_context(socket.socket(socket.AF_UNIX))
        self._link.connect(str(self._tpm.folder / "socket"))
        self._commands = self._attributes()
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self._path))
        listening.listen()
        accepting = threading.Thread(target=self._accept, args=(listening,), daemon=True)
        self._ended.callback(accepting.join)
        self._ended.callback(listening.close)
        # To close a socket does not wake who waits for connections to it; this does.
        self._ended.callback(listening.shutdown, socket.SHUT_RDWR)
        accepting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                link, _ = listening.accept()
            except OSError:
                return
            with self._turn:
                self._openers += 1
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        space = _Space()
        # The TPM, or who opened it, may go away at any time.
        with link, contextlib.suppress(OSError):
            while command := message(link.recv):
                with self._turn:
                    answer = self.instead(command) or self._in_space(space, command)
                link.sendall(answer)
        with self._turn:
            with contextlib.suppress(OSError):
                for handle in space.sessions:
                    self._flush(handle)
            self._openers -= 1
            self._turn.notify_all()

    def _in_space(self, space: _Space, command: bytes) -> bytes:
        loaded: dict[int, int] = {}
        try:
            for place, context in enumerate(space.objects):
                if context is not None:
                    loaded[place] = self._load(context)
            for context in space.sessions.values():
                self._load(context)
            answer = self._send(self._mapped(command, loaded))
            return self._answered(space, command, answer, loaded)
        except _RefusedError as error:
            return refused(error.code)
        finally:
            self._save(space, loaded)

    def _mapped(self, command: bytes, loaded: dict[int, int]) -> bytes:
        """`command` with the TPM's own handles."""
        code = code_of(command)
        # That of TPM2_FlushContext is a parameter.
        count = 1 if code == _CC_FLUSH_CONTEXT else self._commands.get(code, 0) >> 25 & 7
        content = bytearray(command)
        for offset in range(HEADER_BYTES, HEADER_BYTES + 4 * count, 4):
            (handle,) = struct.unpack_from(">I", content, offset)
            if handle >> 24 == _OBJECT:
                if _VIRTUAL_FIRST - handle not in loaded:
                    raise _RefusedError(_RC_HANDLE)
                struct.pack_into(">I", content, offset, loaded[_VIRTUAL_FIRST - handle])
        return bytes(content)

    def _answered(
        self, space: _Space, command: bytes, answer: bytes, loaded: dict[int, int]
    ) -> bytes:
        """`answer` with a virtual handle where it has one."""
        names_one = self._commands.get(code_of(command), 0) & _ANSWERS_HANDLE
        if struct.unpack_from(">I", answer, 6) != (0,) or not names_one:
            return answer
        (handle,) = struct.unpack_from(">I", answer, HEADER_BYTES)
        if handle >> 24 in _SESSIONS:
            if len(space.sessions) == SLOTS:
                self._flush(handle)
                raise _RefusedError(_RC_SESSION_MEMORY)
            space.sessions[handle] = b""
        elif handle >> 24 == _OBJECT:
            free = [place for place in range(SLOTS) if place not in loaded]
            if not free:
                self._flush(handle)
                raise _RefusedError(_RC_OBJECT_MEMORY)
            loaded[free[0]] = handle
            virtual = struct.pack(">I", _VIRTUAL_FIRST - free[0])
            return answer[:HEADER_BYTES] + virtual + answer[HEADER_BYTES + 4 :]
        return answer

    def _save(self, space: _Space, loaded: dict[int, int]) -> None:
        """Empties the TPM for the next opener. What was flushed meanwhile cannot be saved."""
        for place in range(SLOTS):
            handle = loaded.get(place)
            space.objects[place] = None if handle is None else self._saved(handle)
            if handle is not None and space.objects[place] is not None:
                self._flush(handle)
        for handle in list(space.sessions):
            context = self._saved(handle)
            if context is None:
                del space.sessions[handle]
            else:
                space.sessions[handle] = context

    def _load(self, context: bytes) -> int:
        answer = self._sent(_CC_CONTEXT_LOAD, context)
        if struct.unpack_from(">I", answer, 6) != (0,):
            raise _RefusedError(struct.unpack_from(">I", answer, 6)[0])
        return int(struct.unpack_from(">I", answer, HEADER_BYTES)[0])

    def _saved(self, handle: int) -> bytes | None:
        answer = self._sent(_CC_CONTEXT_SAVE, struct.pack(">I", handle))
        return answer[HEADER_BYTES:] if struct.unpack_from(">I", answer, 6) == (0,) else None

    def _flush(self, handle: int) -> None:
        self._sent(_CC_FLUSH_CONTEXT, struct.pack(">I", handle))

    def _attributes(self) -> dict[int, int]:
        """TPMA_CC of every command that the TPM has."""
        answer = self._sent(
            _CC_GET_CAPABILITY, struct.pack(">III", _CAP_COMMANDS, 0, _COMMANDS_MAX)
        )
        (count,) = struct.unpack_from(">I", answer, HEADER_BYTES + 5)
        found = struct.unpack_from(f">{count}I", answer, HEADER_BYTES + 9)
        return {each & (_INDEX | _VENDOR): each for each in found}

    def _sent(self, code: int, content: bytes) -> bytes:
        return self._send(
            struct.pack(">HII", _NO_SESSIONS, HEADER_BYTES + len(content), code) + content
        )

    def _send(self, command: bytes) -> bytes:
        self._link.sendall(command)
        return message(self._link.recv)
