"""Owner keys: 32 bytes that open a sealed store (docs/spec/freshness.md, "Keys").

A key that the owner keeps in a file is used as it is. What a platform gives (a seal key, a derived
key, a secret that a TPM unsealed) is bound to what runs, by HKDF (RFC 5869) over its digests.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from avow.errors import DeniedError, MalformedError, UnavailableError, counted

KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
_SECRET_BYTES_MIN: Final = 16
_LABEL: Final = b"avow owner key v1"
_TEXT: Final = re.compile(rb"[0-9a-fA-F]{64}\n")
_FILE_MODE: Final = 0o600
_NOT_THE_OWNERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class KeyBinding:
    """What a platform's key is bound to: three SHA-256 digests (32 bytes each).

    `module` is of the bytes that run, `configuration` of what they run with (for a program: its
    grants), `runtime` of the runtime's manifest.
    """

    module: bytes
    configuration: bytes
    runtime: bytes

    def __post_init__(self) -> None:
        if any(len(each) != DIGEST_BYTES for each in (self.module, self.configuration)) or (
            len(self.runtime) != DIGEST_BYTES
        ):
            raise MalformedError(
                f"expected digests of {DIGEST_BYTES} bytes of module, configuration and runtime, "
                f"got others; measure them again"
            )


def source_in(folder: Path, source: str) -> str:
    """`source`, as in `--key`, with the path that it names taken from `folder`, if it names one."""
    kind, colon, path = source.partition(":")
    return f"{kind}:{folder / path}" if kind in {"file", "tpm"} and colon and path else source


def is_bound(source: str) -> bool:
    """Whether a key from `source`, as in `--key`, is bound to what runs: those of platforms are."""
    return not source.startswith("file:") and source != "provisioned"


def bind_key(secret: bytes, binding: KeyBinding) -> bytes:
    """The owner key (32 bytes) that a platform's `secret` (16 bytes or more) stands for.

    HKDF-SHA256 without salt; info is the label and the three digests. Raises `MalformedError`.
    """
    if len(secret) < _SECRET_BYTES_MIN or not any(secret):
        raise MalformedError(
            f"expected a secret of {_SECRET_BYTES_MIN} bytes or more, not all zero, from "
            f"the platform, got {counted(len(secret), 'byte')}; check that the platform is "
            "provisioned with its keys"
        )
    info = _LABEL + binding.module + binding.configuration + binding.runtime
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def checked_key(key: bytes, source: str) -> bytes:
    """`key`, if it can be an owner key: 32 bytes, not all zero. Raises `MalformedError`."""
    if len(key) != KEY_BYTES or not any(key):
        raise MalformedError(
            f"expected a key of {KEY_BYTES} bytes, not all zero, from {source}, got "
            f"{counted(len(key), 'byte')}{'' if any(key) else ', all zero'}; make a new one"
        )
    return key


def parse_key_text(content: bytes, name: str) -> bytes:
    """The key (32 bytes) that a key file's 64 hexadecimal digits and one line end are.

    Raises `MalformedError`, which names the file and never what is in it.
    """
    if not _TEXT.fullmatch(content):
        raise MalformedError(
            f"expected 64 hexadecimal digits and a line end in the key file {name}, got something "
            f"else; `openssl rand -hex 32` writes one"
        )
    return checked_key(bytes.fromhex(content[:-1].decode("ascii")), f"the key file {name}")


def key_text(key: bytes) -> bytes:
    """What a key file holds for `key`."""
    return key.hex().encode("ascii") + b"\n"


def read_key_file(path: Path) -> bytes:
    """The key in a file that belongs to this user or to root and that nobody else may read.

    Raises `UnavailableError`, `DeniedError` for a file that others may read, and `MalformedError`.
    """
    size = len(key_text(bytes(KEY_BYTES))) + 1
    return parse_key_text(read_small_file(path, size, "key file", _check_private), str(path))


def read_small_file(
    path: Path,
    size_bytes: int,
    what: str,
    check: Callable[[os.stat_result, Path], None] = lambda status, path: None,
) -> bytes:
    """The first `size_bytes` of a regular file, which is `what` to whoever named it.

    `check` may refuse the file that is open. Raises `UnavailableError`, and what `check` raises.
    """
    try:
        # Without O_NONBLOCK, to open a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Of the file that is open, not of the path: that may name another by now.
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnavailableError(
                    f"expected a regular file as the {what} {path}, got another kind; correct the "
                    f"path"
                )
            check(status, path)
            return os.read(descriptor, size_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnavailableError(
            f"expected to read the {what} {path}, got {error.strerror}; correct the path"
        ) from error


def _check_private(status: os.stat_result, path: Path) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise DeniedError(
            f"expected the key file {path} to belong to this user or to root, got the user id "
            f"{status.st_uid}; take it over with chown, or make a new key"
        )
    if status.st_mode & _NOT_THE_OWNERS:
        raise DeniedError(
            f"expected a key file that only its owner may read, got {path} with the mode "
            f"{stat.S_IMODE(status.st_mode):04o}; `chmod 600 {path}`, and consider who may "
            "have read it already"
        )


def write_key_file(path: Path, key: bytes) -> None:
    """A new key file, durable, with the mode 0600. Raises `UnavailableError` if there is one."""
    write_new_file(path, key_text(checked_key(key, "its maker")), "key file")


def write_new_file(path: Path, content: bytes, what: str) -> None:
    """A new file, whole and durable or not at all, that only its owner may read.

    Raises `UnavailableError`, also when there is a file already: it is never replaced.
    """
    # Not the process's number: in a container that is often the same again after a crash.
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # The umask may have taken its owner's bits as well.
                os.fchmod(descriptor, _FILE_MODE)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, does not replace what is there.
            os.link(draft, path)
        finally:
            draft.unlink()
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UnavailableError(
            f"expected to write the new {what} {path}, got {error.strerror}; an existing one is "
            f"never replaced: choose another path"
        ) from error
