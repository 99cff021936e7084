"""Answers as Gramine's /dev/attestation does, in memory.

What it shares with Gramine, as tests rely on it: without remote attestation `attestation_type` is
"none" and `quote` is not there; `user_report_data` takes 64 bytes; `quote` is made anew at each
read, over what was written last, and zeros before; `keys/` has the seal keys, outside of an enclave
none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_REPORT_DATA_BYTES = 64


@dataclass
class GramineDirectory:
    """`driver` makes a quote over 64 bytes; it may raise `OSError`."""

    root: Path
    driver: Callable[[bytes], bytes]
    attestation_type: str = "dcap"
    user_report_data: bytes = bytes(_REPORT_DATA_BYTES)
    keys: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, path: Path, content: bytes) -> None:
        """open, write and close."""
        if path != self.root / "user_report_data" or self.attestation_type == "none":
            raise _os_error(errno.ENOENT, path)
        if len(content) != _REPORT_DATA_BYTES:
            raise _os_error(errno.EINVAL, path)
        self.user_report_data = content

    def read(self, path: Path) -> bytes:
        """open and read to the end."""
        if path == self.root / "attestation_type":
            return self.attestation_type.encode()
        if path.parent == self.root / "keys" and path.name in self.keys:
            return self.keys[path.name]
        if path != self.root / "quote" or self.attestation_type == "none":
            raise _os_error(errno.ENOENT, path)
        return self.driver(self.user_report_data)


def _os_error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))
