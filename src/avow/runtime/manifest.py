"""The runtime's manifest: what else than the module runs in the process, by digest.

It is a text with one line for each part, `NAME VERSION SHA-256`, in the order of the names; its
SHA-256 is the claim `runtime`. The parts are

- `avow`: its own files with the native pump and vault. An avow that is run from sources which are
  edited has `+editable` behind its version;
- every distribution that avow depends on at run time, by its files;
- `python`: Python's own modules, those for windows, tests and building left out;
- `code`: what all of these are compiled to, which is what is run;
- `interpreter`: the file that runs it;
- `library:NAME`: each library of the system that can be mapped.

The digest of a part with many files is the SHA-256 of lines `PATH SHA-256`, in the order of the
paths, each ended by a line feed; for `code` the path is the name of a module. Compiled copies that
Python writes (`__pycache__`) are never read, so they are in none.

Not part of it: the kernel, and the measured module, which has a claim of its own.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from avow.errors import UnavailableError, UntrustedError
from avow.runtime.boot import (
    BARE_ENVIRONMENT,
    CODE,
    FLAGS,
    BootError,
    Image,
    identity,
    image_path,
    make_image,
)
from avow.runtime.installation import (
    AVOW,
    Installation,
    InstalledFile,
    Part,
    differences,
    installation,
    is_source,
    modules,
)
from avow.runtime.sealed import sealed

PACKAGE: Final = str(Path(__file__).resolve().parent.parent)
_SHOWN_MAX: Final = 5
_INTERPRETER: Final = "/proc/self/exe"
_THREADS: Final = 4
# What a process that is not measured has run to be told.
_PRINTER: Final = "avow.cli.runtime_manifest"

# What changes with a file; see `avow.runtime.boot.identity`.
Identity = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One part of the runtime. `sha256` is hexadecimal."""

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


@dataclass(frozen=True, slots=True)
class Measurement:
    """The manifest, what was wrong with the installation (a sentence each), and every file that was
    hashed with what it was then."""

    manifest: RuntimeManifest
    wrong: tuple[str, ...]
    files: Mapping[str, Identity] = field(repr=False)

    def right(self) -> RuntimeManifest:
        """The manifest of an installation with which nothing is wrong. Raises `UntrustedError`."""
        if not self.wrong:
            return self.manifest
        shown = "; ".join(self.wrong[:_SHOWN_MAX])
        more = len(self.wrong) - _SHOWN_MAX
        rest = f"; and {more} more" if more > 0 else ""
        raise UntrustedError(
            "expected the files of avow and of what it depends on as they were installed, "
            f"got changed ones: {shown}{rest}; `avow measure runtime` lists them all; "
            "install avow again in an empty environment"
        )


@functools.cache
def runtime_manifest() -> RuntimeManifest:
    """The manifest of this installation: made once a process, at most half a second.

    A process that is not a measured one has a measured one make it. Raises `UnavailableError` when
    a part is not there, `UntrustedError` when one is not as its installer wrote down.
    """
    return measurement().right() if sealed() is not None else _asked()


@functools.cache
def measurement() -> Measurement:
    """What a measured process is. Raises `UnavailableError`, also in one that is not measured."""
    this = sealed()
    if this is None:
        raise UnavailableError(
            "expected a measured process, got one that was started in "
            "another way; start it with the command `avow`"
        )
    return measured(installation(PACKAGE), this.finder.image)


def _asked() -> RuntimeManifest:
    boot = os.path.join(PACKAGE, "runtime", "boot.py")
    done = subprocess.run(
        # No environment of a caller: an empty file.
        [sys.executable, *FLAGS, boot, "0", _PRINTER],
        stdin=subprocess.DEVNULL,
        env=BARE_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UntrustedError(done.stderr.strip())
    return RuntimeManifest(tuple(Entry(*line.split(" ")) for line in done.stdout.splitlines()))


def measured(whole: Installation, image: Image) -> Measurement:
    """Hashes an installation and the code that a process runs of it.

    Raises `UnavailableError` for a file that cannot be read.
    """
    libraries = list(image.header["libraries"])
    interpreter = os.path.realpath(_INTERPRETER)
    paths = [each.path for part in whole.parts for each in part.files]
    found = _hashed([*paths, *libraries, interpreter])
    wrong = list(differences(whole))
    wrong += _altered(whole, found)
    wrong += _stale(whole, image, found)
    entries = [_entry(part, found) for part in whole.parts]
    entries.append(Entry("code", str(sys.implementation.cache_tag), code_digest(image)))
    entries.append(Entry("interpreter", whole.python.version, found[interpreter].sha256.hex()))
    entries += _library_entries({path: found[path].sha256 for path in libraries})
    manifest = RuntimeManifest(tuple(sorted(entries, key=lambda each: each.name)))
    return Measurement(manifest, tuple(wrong), {path: each.was for path, each in found.items()})


def wrong_code() -> list[str]:
    """Where this process's code is not what its sources are compiled to, a sentence each.

    Compiles all of them, which takes seconds: for people who look for a difference. Raises
    `UnavailableError`.
    """
    this = sealed()
    if this is None:
        return []
    try:
        made = make_image(PACKAGE, keep=False).modules
    except BootError as error:
        raise UnavailableError(f"{error}; install avow again") from error
    path = image_path(PACKAGE)
    return [
        f"{path}: expected the code of {name} as its source gives it, got other code; "
        "remove the file: Python makes it again"
        for name, entry in sorted(this.finder.image.modules.items())
        if name not in made or made[name][5] != entry[5]
    ]


def code_digest(image: Image) -> str:
    """Over all modules that can be imported and are Python, in hexadecimal."""
    lines = (
        f"{name} {entry[5].hex()}\n"
        for name, entry in sorted(image.modules.items())
        if entry[0] == CODE
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Hashed:
    sha256: bytes
    was: Identity


def _hashed(paths: Iterable[str]) -> dict[str, _Hashed]:
    # hashlib lets other threads run; the largest first, so that none waits for one at the end.
    unique = sorted(set(paths), key=_size, reverse=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(unique, pool.map(_hash, unique), strict=True))


def _size(path: str) -> int:
    found = identity(path)
    return 0 if found is None else found[0]


def _hash(path: str) -> _Hashed:
    try:
        with open(path, "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            content = file.readall()
    except OSError as error:
        raise UnavailableError(
            f"expected the installed file {path}, got {error.strerror}; install avow again"
        ) from error
    was = before.st_size, before.st_ino, before.st_mtime_ns, before.st_ctime_ns
    return _Hashed(hashlib.sha256(content).digest(), was)


def _altered(whole: Installation, found: Mapping[str, _Hashed]) -> Iterable[str]:
    for part in whole.parts:
        for each in part.files:
            here = found[each.path].sha256
            if each.sha256 is not None and each.sha256 != here:
                yield (
                    f"{each.path}: expected sha256:{each.sha256.hex()} as {part.name} was "
                    f"installed, got sha256:{here.hex()}"
                )


def _stale(whole: Installation, image: Image, found: Mapping[str, _Hashed]) -> Iterable[str]:
    """Where the code in the image is not that of the sources, or files have changed since."""
    wanted: dict[str, InstalledFile] = {}
    for part in whole.parts:
        for name, _, each in modules(part):
            if is_source(each):
                wanted.setdefault(name, each)
    for name, entry in image.modules.items():
        if entry[0] == CODE and (name not in wanted or entry[6] != found[wanted[name].path].sha256):
            yield f"{entry[1]}: expected the source of the code of {name}, got another"
    then = dict(image.header["sources"])
    for path, hashed in found.items():
        if path in then and then[path] != hashed.was:
            yield f"{path}: expected it as avow started with it, got a newer one"


def _entry(part: Part, found: Mapping[str, _Hashed]) -> Entry:
    # Of avow, names as in its folder, wherever that is.
    lines = sorted(
        (each.name.removeprefix(f"{AVOW}/") if part.name == AVOW else each.name, each.path)
        for each in part.files
    )
    digest = hashlib.sha256()
    for name, path in lines:
        digest.update(f"{name} {found[path].sha256.hex()}\n".encode())
    return Entry(part.name, part.version, digest.hexdigest())


def _library_entries(libraries: Mapping[str, bytes]) -> Iterable[Entry]:
    names = Counter(os.path.basename(path) for path in libraries)
    for path, sha256 in libraries.items():
        name = os.path.basename(path)
        shown = name if names[name] == 1 else path
        yield Entry(f"library:{shown.replace(' ', '%20')}", "-", sha256.hex())
