"""The runtime's manifest: what else than the module runs in the process, by digest.

It is a text with one line for each part, `NAME VERSION SHA-256`, in the order of the names; its
SHA-256 is the claim `runtime`. Parts are avow's own files, the native pump, every distribution that
avow depends on at run time, and Python by its version. The digest of a part is the SHA-256 of lines
`PATH SHA-256`, in the order of the paths, each ended by a line feed.

Not part of it: what the launch measurement of the platform has to cover anyway (Python's own files
and those of the system), compiled copies of sources (`__pycache__`), and what an installer writes
for itself. The measured module has a claim of its own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from avow.artefacts import PUMP_NAME, VAULT_NAME
from avow.errors import UnavailableError

# As in pyproject.toml; a test compares.
DISTRIBUTIONS: Final = (
    "wasmtime",
    "cryptography",
    "pyOpenSSL",
    "cffi",
    "argon2-cffi",
    "scramp",
    "pydantic",
    "click",
    "structlog",
    "prometheus-client",
    "paho-mqtt",
    "cbor2",
    "dcap-qvl",
)
# Those of extras: part of the process where they are installed.
EXTRA_DISTRIBUTIONS: Final = ("tpm2-pytss",)

_PACKAGE: Final = Path(__file__).resolve().parent.parent
# Written by installers, different from one machine to the next.
_UNKEPT: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One part of the runtime. `sha256` is hexadecimal, or "-" for Python itself."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RuntimeManifest:
    """All parts, sorted by name."""

    entries: tuple[Entry, ...]

    @property
    def text(self) -> str:
        """The manifest itself."""
        return "".join(f"{each.name} {each.version} {each.sha256}\n" for each in self.entries)

    @property
    def digest(self) -> bytes:
        """The SHA-256 (32 bytes) of the text."""
        return hashlib.sha256(self.text.encode()).digest()


@functools.cache
def runtime_manifest() -> RuntimeManifest:
    """The manifest of this process: read once, at most 0.3 s.

    Raises `UnavailableError` when a part is not installed as its installer wrote down.
    """
    entries = [
        Entry("avow", _version_of_avow(), _digest_of_package(_PACKAGE)),
        Entry("python", f"{platform.python_implementation()}-{platform.python_version()}", "-"),
        *_distributions(),
    ]
    return RuntimeManifest(tuple(sorted(entries, key=lambda each: each.name)))


def _version_of_avow() -> str:
    from avow import __version__

    return __version__


def _digest_of_package(folder: Path) -> str:
    """Avow's own files: not the mock hardware of `testing`, of `_native` only what is not Wasm."""
    files: list[tuple[str, Path]] = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if "__pycache__" in parts or parts[0] == "testing" or not path.is_file():
            continue
        if parts[0] != "_native" or parts[1:] in {(PUMP_NAME,), (VAULT_NAME,)}:
            files.append(("/".join(parts), path))
    return _digest_of_files(files)


def _distributions() -> list[Entry]:
    """The closure of what avow requires; what a marker leaves out is not installed."""
    entries: dict[str, Entry] = {}
    waiting = [(name, True) for name in DISTRIBUTIONS]
    waiting += [(name, False) for name in EXTRA_DISTRIBUTIONS]
    while waiting:
        wanted, needed = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted).lower()
        if name in entries:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if needed:
                raise UnavailableError(
                    f"expected the distribution {name} to be installed, got none; install avow "
                    f"again"
                ) from error
            continue
        entries[name] = Entry(name, distribution.version, _digest_of_distribution(distribution))
        waiting += _required(distribution.requires or ())
    return list(entries.values())


def _required(requirements: Iterable[str]) -> Iterable[tuple[str, bool]]:
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        match = _NAME.match(wanted)
        if match is not None and "extra" not in marker:
            yield match[0], not marker.strip()


def _digest_of_distribution(distribution: importlib.metadata.Distribution) -> str:
    files: list[tuple[str, Path]] = []
    for entry in distribution.files or ():
        outside = ".." in entry.parts  # programs in bin/, which hold the path of this Python
        if outside or "__pycache__" in entry.parts or entry.name in _UNKEPT:
            continue
        files.append((entry.as_posix(), Path(str(distribution.locate_file(entry)))))
    if not files:
        raise UnavailableError(
            f"expected a list of the files of {distribution.name}, got none; install it by pip"
        )
    return _digest_of_files(files)


def _digest_of_files(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UnavailableError(
                f"expected the installed file {path}, got {error.strerror}; install avow again"
            ) from error
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()
