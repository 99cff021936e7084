"""Passes the commands of one opener on to a resource manager, and its answers back.

A program of its own, for the TCTI "cmd:" of tpm2-tss: `python tpm_relay.py SOCKET`. It imports
nothing of avow, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable

HEADER_BYTES = 10


def message(receive: Callable[[int], bytes]) -> bytes:
    """A command or an answer, whose second field is its size (TPM 2.0 Library, Part 1, section
    18); nothing at the end."""
    content = b""
    size = HEADER_BYTES
    while len(content) < size:
        part = receive(size - len(content))
        if not part:
            return b""
        content += part
        if len(content) == HEADER_BYTES:
            size = int.from_bytes(content[2:6], "big")
    return content


def main() -> None:
    """Until standard input, or the resource manager, ends."""
    # Whoever opened it may be killed at any time, also while it waits for an answer.
    with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(BrokenPipeError):
        link.connect(sys.argv[1])
        while command := message(lambda size: os.read(sys.stdin.fileno(), size)):
            link.sendall(command)
            os.write(sys.stdout.fileno(), message(link.recv))


if __name__ == "__main__":
    main()
