"""An avow that is installed, in a virtual environment of its own, for whoever alters it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import avow
from avow.runtime.installation import Part, installation
from avow.runtime.manifest import PACKAGE

PATIENCE_S = 60.0
VERSION = avow.__version__
# What an attacker's code does wherever it runs: the process then shows another version.
EVIL = "import avow\navow.__version__ = 'EVIL'\n"
NONCE = "00" * 32


@dataclass(frozen=True)
class Installed:
    """`site` is where its packages are, `python` the interpreter of the environment."""

    site: Path
    python: Path
    libraries: Path

    def avow(
        self, *arguments: str, environment: Mapping[str, str] | None = None, measured: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The command; `measured` is False for one without any defence."""
        begin = ["-m", "avow"] if measured else ["-c", "from avow.cli import main; main()"]
        return subprocess.run(
            [str(self.python), *begin, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            cwd=self.libraries,
            env={**_bare(), **(environment or {})},
        )

    def version(
        self, environment: Mapping[str, str] | None = None, *, measured: bool = True
    ) -> str:
        """Which version the process says that it is: that of a command that is measured."""
        done = self.avow("measure", "broker", "--json", environment=environment, measured=measured)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return str(said["version"])

    def runtime(self, environment: Mapping[str, str] | None = None) -> str:
        """The claim `runtime` of evidence."""
        done = self.avow("measure", "--reference", environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("runtime")[1].split()[0]

    def attest(self) -> subprocess.CompletedProcess[str]:
        """Has it make evidence."""
        return self.avow(*("attest", "--tee", "simulated", "--nonce", NONCE, "-o", "evidence.cmw"))

    @property
    def image(self) -> Path:
        """The code image."""
        return self.site / "avow/__pycache__" / f"avow.{sys.implementation.cache_tag}.image"


def _bare() -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG")
    return {name: value for name, value in os.environ.items() if name in kept}


def install(folder: Path) -> Installed:
    """As pip does it, from what this environment has."""
    builder = venv.EnvBuilder(symlinks=True)
    builder.create(folder)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = folder / "lib" / version / "site-packages"
    for part in installation(PACKAGE).distributions:
        _copy(part, site)
    ignored = shutil.ignore_patterns("__pycache__", "testing")
    shutil.copytree(PACKAGE, site / "avow", ignore=ignored)
    _write_info(site)
    return Installed(site, folder / "bin/python", folder)


def _copy(part: Part, site: Path) -> None:
    for each in part.files:
        _copy_file(Path(each.path), site / each.name)
    info = next(Path(each.path).parent for each in part.files if each.name.endswith("/METADATA"))
    _copy_file(info / "RECORD", site / info.name / "RECORD")


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_info(site: Path) -> None:
    info = site / f"avow-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: avow\nVersion: {VERSION}\n")
    record(site)


def record(site: Path) -> None:
    """Writes what an installer writes of avow's files, as they are now."""
    info = site / f"avow-{VERSION}.dist-info"
    lines = []
    for path in (*sorted((site / "avow").rglob("*")), info / "METADATA"):
        if path.is_file() and "__pycache__" not in path.parts:
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
            name, size = path.relative_to(site).as_posix(), path.stat().st_size
            lines.append(f"{name},sha256={digest.decode().rstrip('=')},{size}\n")
    (info / "RECORD").write_text("".join(lines) + f"{info.name}/RECORD,,\n")


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """A file with another content, with the same times, for a while."""
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextmanager
def added(files: Mapping[Path, str | bytes]) -> Iterator[None]:
    """Files that were not there, for a while."""
    made: list[Path] = []
    for path, content in files.items():
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        made.append(path)
    try:
        yield
    finally:
        for path in reversed(made):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """To its end, with what it said."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, **options
    )
