"""The digests of a release: `make digests` writes docs/reference/digests.md.

    python -m docs.digests [--python PATH]...

For each Python it installs avow in an empty environment from the lock files, as the quick start
does, and asks the command. The claim `runtime` depends on the files of Python and of the system, so
the page names these; `avow measure runtime` shows the parts that differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import avow
import hatch_build

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs/reference/digests.md"
# As in pyproject.toml; a test compares.
PYTHONS: Final = ("3.11", "3.12", "3.13")
ABSENT: Final = "not on this machine"
_PIP: Final = ("-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet")
_HASHES: Final = "--require-hashes"
_LOCKS: Final = ROOT / "requirements"


@dataclass(frozen=True, slots=True)
class Runtime:
    """The claim `runtime` on one Python, in hexadecimal, or a reason why there is none."""

    python: str
    without_tpm: str
    with_tpm: str


def sources() -> str:
    """SHA-256 of the Zig sources and commands, to see whether a page is of these."""
    parts = [hatch_build.source_digest(ROOT, each) for each in hatch_build.artefacts()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def natives() -> Mapping[str, str]:
    """SHA-256 of what is compiled, by the file's name."""
    built = [hatch_build.build(ROOT, each) for each in hatch_build.artefacts()]
    return {path.name: hatch_build.sha256_of(path) for path in built}


def _run(*command: str | Path, cwd: Path) -> str:
    # Nothing of the caller's Python; where packages come from is for pip's settings to say.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode()


def runtime_of(python: str, folder: Path, wheel: Path) -> Runtime:
    """Of one Python, in a new environment below `folder`."""
    _run(python, "-m", "venv", folder, cwd=ROOT)
    own = folder / "bin/python"
    _run(own, *_PIP, _HASHES, "-r", _LOCKS / "runtime.txt", cwd=folder)
    _run(own, *_PIP, "--no-deps", wheel, cwd=folder)
    version = _run(own, "-c", "import platform; print(platform.python_version())", cwd=folder)
    without = _measured(folder)
    try:
        _run(own, *_PIP, _HASHES, "-r", _LOCKS / "tpm-build.txt", cwd=folder)
        tpm = ("--no-build-isolation", "-r", _LOCKS / "tpm.txt")
        _run(own, *_PIP, _HASHES, *tpm, cwd=folder)
    except subprocess.CalledProcessError:
        return Runtime(version.strip(), without, "no libtss2 or compiler on this machine")
    return Runtime(version.strip(), without, _measured(folder))


def _measured(folder: Path) -> str:
    text = _run(folder / "bin/avow", "measure", "runtime", cwd=folder)
    return hashlib.sha256(text.encode()).hexdigest()


def page(natives: Mapping[str, str], runtimes: Sequence[Runtime]) -> str:
    """The page, in Markdown."""
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    lines = [
        f"# Digests of avow {avow.__version__}",
        "",
        "`make digests` makes this page, at each release and on any machine. `python -m",
        "docs.digests --python PATH` uses one Python. Between two releases, the sources change,",
        "and the page does not. [One table](../how-to/measurement.md) says what each digest",
        "covers.",
        "",
        "| File | SHA-256 |",
        "|---|---|",
        *(f"| `{name}` | `{digest}` |" for name, digest in natives.items()),
        "",
        "The module is the same on every machine. Pump and vault are the same on every machine of",
        f"one architecture (here {platform.machine()}).",
        "",
        "The claim `runtime` covers Python and the system's libraries too: it is the same where",
        f"these are the same files. Here they are of {system}, {' '.join(platform.libc_ver())}.",
        "Where yours differ, compare the output of `avow measure runtime`, a line for each part.",
        "What the extra `tpm` adds is compiled where it is installed; its line can differ with the",
        "compiler.",
        "",
        "| Python | `runtime` | with the extra `tpm` |",
        "|---|---|---|",
        *(
            f"| {each.python} | {_cell(each.without_tpm)} | {_cell(each.with_tpm)} |"
            for each in runtimes
        ),
        "",
        f"Made of native sources with the SHA-256 `{sources()}`.",
        "",
    ]
    return "\n".join(lines)


def _cell(digest: str) -> str:
    return f"`{digest}`" if " " not in digest else digest


def _usable(python: str) -> bool:
    """A name may be there for a version that is not."""
    if shutil.which(python) is None:
        return False
    tried = subprocess.run([python, "-c", "import venv"], capture_output=True, check=False)
    return tried.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page. 1 when something could not be built or installed."""
    parser = argparse.ArgumentParser(prog="python -m docs.digests")
    parser.add_argument("--python", action="append", metavar="PATH", help="may be repeated")
    chosen = parser.parse_args(arguments).python or [f"python{each}" for each in PYTHONS]
    runtimes: list[Runtime] = []
    try:
        files = natives()
        with tempfile.TemporaryDirectory(prefix="avow-digests-") as temporary:
            folder = Path(temporary)
            build = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
            _run(sys.executable, "-m", "pip", "wheel", "--quiet", *build, cwd=folder)
            (wheel,) = folder.glob("*.whl")
            for number, python in enumerate(chosen):
                if _usable(python):
                    runtimes.append(runtime_of(python, folder / str(number), wheel))
                else:
                    runtimes.append(Runtime(python.removeprefix("python"), ABSENT, ABSENT))
    except (hatch_build.BuildError, subprocess.CalledProcessError) as error:
        print(f"the digests could not be made: {error}", file=sys.stderr)
        return 1
    PAGE.write_text(page(files, runtimes))
    print(PAGE.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
