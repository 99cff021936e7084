"""What an avow that is installed consists of: its own files, what it depends on, and Python.

The parts are those whose code can run in a measured process. Of each there is a list of files: of
a distribution the one that its installer wrote (RECORD, "Recording installed projects" of the
Python packaging specifications), of Python, and of an avow that is edited, what lies there.

Runs in the process that compiles as well, so it imports nothing but Python's own modules.
"""

from __future__ import annotations

import base64
import csv
import os
import re
import site
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

from avow import __version__
from avow.artefacts import CORE_NAME, PUMP_NAME, VAULT_NAME
from avow.errors import UnavailableError

AVOW: Final = "avow"
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

# Written by installers, different from one machine to the next.
_UNKEPT: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Of Python's own modules: tests, programs with windows, and what builds and installs.
_NOT_FOR_SERVERS: Final = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
    }
)
# Of its extension modules those that bring in libraries for terminals, windows, and old data.
_NOT_LOADED: Final = re.compile(
    r"(_tkinter|_curses|_curses_panel|readline|_dbm|_gdbm|nis|ossaudiodev|_test\w*|_xx\w*|xx\w*)\."
)
# Whoever administers the machine writes these, to run at the start of every Python: not of this.
_NOT_PYTHONS: Final = frozenset({"sitecustomize.py", "usercustomize.py"})


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file by its name within its part. `sha256` (32 bytes) is the one that the installer wrote
    down, None where it wrote none."""

    name: str
    path: str
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """`folders` are the ones that belong to the part alone, so that nothing else may lie there."""

    name: str
    version: str
    root: str
    files: tuple[InstalledFile, ...]
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Installation:
    """All parts. `watched` are files and folders that change when the parts do."""

    python: Part
    avow: Part
    distributions: tuple[Part, ...]
    editable: bool
    watched: tuple[str, ...] = field(repr=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of all of them."""
        return self.python, self.avow, *self.distributions


def installation(package: str) -> Installation:
    """That of the avow whose package lies in the folder `package`.

    Raises `UnavailableError` when a part is not there.
    """
    roots = _roots(package)
    avow, editable = _avow(package, roots)
    distributions = tuple(_distributions(roots))
    python = _python()
    records = [os.path.join(part.root, _info(part), "RECORD") for part in distributions]
    watched = [*roots, *_folders(python.root), *_folders(package), *records]
    return Installation(python, avow, distributions, editable, tuple(watched))


def differences(whole: Installation) -> Iterator[str]:
    """What lies there and is in no list, and what is a link: a sentence each."""
    listed = {os.path.join(part.root, each.name) for part in whole.parts for each in part.files}
    for part in (whole.avow, *whole.distributions):
        yield from _links(part)
        for folder in part.folders:
            for place, folders, files in os.walk(folder):
                folders[:] = sorted(each for each in folders if each != "__pycache__")
                paths = [os.path.join(place, each) for each in (*folders, *files)]
                for path in sorted(paths):
                    if os.path.islink(path):
                        yield (
                            f"{path}: expected a file or folder of {part.name}, got a symbolic link"
                        )
                    elif os.path.isfile(path) and path not in listed | _kept_out(part):
                        yield f"{path}: expected no such file in {part.name}, got one"


def _kept_out(part: Part) -> set[str]:
    """What belongs to a part and is not measured with it."""
    info = os.path.join(part.root, _info(part))
    names = {os.path.join(info, each) for each in _UNKEPT}
    if part.name == AVOW:
        names.add(os.path.join(part.root, AVOW, "_native", CORE_NAME))
    return names


def _links(part: Part) -> Iterator[str]:
    """Folders on the way to a file that are links, and files that are."""
    places = {part.root}
    for each in part.files:
        path, steps = part.root, each.name.split("/")
        for step in steps:
            path = os.path.join(path, step)
            if path not in places:
                places.add(path)
                # What is inside of `folders` is seen by who walks there.
                if os.path.islink(path) and not any(
                    path.startswith(folder + os.sep) for folder in part.folders
                ):
                    yield f"{path}: expected a file or folder of {part.name}, got a symbolic link"


def normalised(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def modules(part: Part) -> Iterator[tuple[str, bool, InstalledFile]]:
    """Name, whether it is a package, and file, of every module of a part."""
    for each in part.files:
        stem = each.name
        for suffix in (*EXTENSION_SUFFIXES, ".py"):
            if stem.endswith(suffix):
                steps = stem.removesuffix(suffix).split("/")
                break
        else:
            continue
        package = steps[-1] == "__init__"
        steps = steps[:-1] if package else steps
        if steps and not any("." in step for step in steps):
            yield ".".join(steps), package, each


def is_source(each: InstalledFile) -> bool:
    """Whether it is compiled; an extension module is not."""
    return each.name.endswith(".py")


def _python() -> Part:
    root = os.path.realpath(sys._stdlib_dir)  # type: ignore[attr-defined]
    version = f"{sys.implementation.name}-{'.'.join(map(str, sys.version_info[:3]))}"
    files = []
    for place in _folders(root):
        inside = "lib-dynload" if os.path.basename(place) == "lib-dynload" else ""
        for name in sorted(os.listdir(place)):
            path = os.path.join(place, name)
            if not name.endswith((".py", *EXTENSION_SUFFIXES)) or name in _NOT_PYTHONS:
                continue
            if inside and _NOT_LOADED.match(name):
                continue
            # Debian has links from one of Python's files to another; others lead elsewhere.
            if os.path.isfile(path) and os.path.realpath(path).startswith(root + os.sep):
                relative = os.path.relpath(path, os.path.join(root, inside))
                files.append(InstalledFile(relative, path))
    return Part("python", version, root, tuple(sorted(files, key=lambda each: each.name)))


def _folders(root: str) -> list[str]:
    """`root` and the folders in it that may hold modules; of links none."""
    found = []
    for place, folders, _ in os.walk(root):
        found.append(place)
        folders[:] = sorted(
            each
            for each in folders
            if each not in _NOT_FOR_SERVERS and not each.startswith(("config-", "."))
        )
    return found


def _roots(package: str) -> list[str]:
    """Where distributions are: beside avow, in the virtual environment, in Python's own folders.

    As the module site finds them, which a measured process does without (PEP 405).
    """
    roots = [os.path.dirname(package)]
    base = [sys.base_prefix, sys.base_exec_prefix]
    environment = os.path.dirname(os.path.dirname(sys.executable))
    settings = _environment_settings(os.path.join(environment, "pyvenv.cfg"))
    if settings is not None:
        # Not `site.getsitepackages`: Debian's names dist-packages unless `site` has run.
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for libraries in dict.fromkeys((sys.platlibdir, "lib")):
            roots.append(os.path.join(environment, libraries, version, "site-packages"))
    if settings is None or settings.get("include-system-site-packages") == "true":
        roots += site.getsitepackages(base)
    return [each for each in dict.fromkeys(map(os.path.realpath, roots)) if os.path.isdir(each)]


def _environment_settings(path: str) -> dict[str, str] | None:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.partition("=") for line in file]
    except OSError:
        return None
    return {name.strip().lower(): value.strip().lower() for name, _, value in lines}


def _avow(package: str, roots: list[str]) -> tuple[Part, bool]:
    """Avow's own files, and whether it is not installed but run from sources that are edited."""
    here = os.path.dirname(package)
    info = _infos(here).get(AVOW)
    if info is None:
        files = tuple(_walked(package))
        return Part(AVOW, f"{__version__}+editable", here, files), True
    name, version, _ = _metadata(os.path.join(here, info))
    files = tuple(each for each in _recorded(here, info) if _is_measured(each.name))
    return Part(name, version, here, files, _own_folders(here, files)), False


def _is_measured(name: str) -> bool:
    """Of avow's own files: not the module, which has a claim of its own."""
    steps = name.split("/")
    if steps[0] != AVOW:
        return True
    native = steps[1] == "_native"
    return steps[1] != "testing" and (not native or steps[2:] in ([PUMP_NAME], [VAULT_NAME]))


def _walked(package: str) -> Iterator[InstalledFile]:
    root = os.path.dirname(package)
    for place, folders, files in os.walk(package):
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        for each in sorted(files):
            path = os.path.join(place, each)
            name = os.path.relpath(path, root)
            if _is_measured(name):
                yield InstalledFile(name, path)


def _distributions(roots: list[str]) -> Iterator[Part]:
    """The closure of what avow requires; what a marker leaves out is not installed."""
    known: dict[str, tuple[str, str]] = {}
    for root in roots:
        for name, info in _infos(root).items():
            known.setdefault(name, (root, info))
    waiting = [(name, True) for name in DISTRIBUTIONS]
    waiting += [(name, False) for name in EXTRA_DISTRIBUTIONS]
    seen: set[str] = set()
    while waiting:
        wanted, needed = waiting.pop()
        name = normalised(wanted)
        if name in seen:
            continue
        if name not in known:
            if needed:
                raise UnavailableError(
                    f"expected the distribution {name} in {' or '.join(roots)}, got none; install "
                    f"avow again"
                )
            continue
        seen.add(name)
        root, info = known[name]
        _, version, required = _metadata(os.path.join(root, info))
        files = tuple(_recorded(root, info))
        yield Part(name, version, root, files, _own_folders(root, files))
        waiting += required


def _infos(root: str) -> dict[str, str]:
    """The folders of what installers wrote, by the distribution's name."""
    found: dict[str, str] = {}
    for each in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        if each.endswith(".dist-info"):
            name = normalised(each.partition("-")[0])
            if name in found:
                raise UnavailableError(
                    f"expected one version of {name} in {root}, got {found[name]} and {each}; "
                    f"install avow again in an empty environment"
                )
            found[name] = each
    return found


def _info(part: Part) -> str:
    """The folder of what the installer wrote about a part."""
    return _infos(part.root).get(part.name, "")


def _metadata(info: str) -> tuple[str, str, list[tuple[str, bool]]]:
    """Name, version and what is required, by the file METADATA (core metadata specification)."""
    name, version = "", ""
    required: list[tuple[str, bool]] = []
    with open(os.path.join(info, "METADATA"), encoding="utf-8") as file:
        for line in file:
            key, _, value = line.rstrip("\r\n").partition(": ")
            if not key:
                break
            if key == "Name":
                name = normalised(value)
            elif key == "Version":
                version = value
            elif key == "Requires-Dist":
                required += _required(value)
    return name, version, required


def _required(requirement: str) -> Iterable[tuple[str, bool]]:
    wanted, _, marker = requirement.partition(";")
    match = _NAME.match(wanted)
    if match is not None and "extra" not in marker:
        yield match[0], not marker.strip()


def _recorded(root: str, info: str) -> Iterator[InstalledFile]:
    path = os.path.join(root, info, "RECORD")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise UnavailableError(
            f"expected a list of the files of {info.removesuffix('.dist-info')} in {path}, "
            "got none; install it with pip"
        ) from error
    for row in rows:
        name, digest = row[0], row[1] if len(row) > 1 else ""
        steps = name.split("/")
        # Programs in bin/ hold the path of this Python; no absolute name is one of a module.
        outside = ".." in steps or name.startswith("/")
        if outside or "__pycache__" in steps or steps[-1] in _UNKEPT:
            continue
        yield InstalledFile(name, os.path.join(root, name), _digest(digest))


def _digest(recorded: str) -> bytes | None:
    """Of `sha256=` and base64 for URLs without padding."""
    kind, _, value = recorded.partition("=")
    return base64.urlsafe_b64decode(f"{value}=") if kind == "sha256" else None


def _own_folders(root: str, files: Iterable[InstalledFile]) -> tuple[str, ...]:
    tops = {each.name.split("/")[0] for each in files if "/" in each.name}
    return tuple(os.path.join(root, each) for each in sorted(tops))
