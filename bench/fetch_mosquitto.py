"""Unpacks Debian's newest mosquitto beside its own libraries, without installing anything.

    python bench/fetch_mosquitto.py [--suite unstable] [--dest DIR] [--mirror URL]

The mirror is the one that apt uses on this machine, whichever form its sources have. Prints the
path of a start script that `python -m bench --peer PATH` takes. apt checks Debian's signatures; the
system's package lists and its installed packages are not touched.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

# A line for each of its sources, whether they are in sources.list or in *.sources: apt-get(8).
SOURCES = ("apt-get", "--print-uris", "update")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEFAULT_DEST = Path.home() / ".cache" / "avow-bench"
# Dependencies that only an installed service needs.
NOT_NEEDED = {"systemd", "sysvinit-utils", "libsystemd-shared", "libc-gconv-modules-extra"}


class FetchError(Exception):
    """What could not be fetched, and what apt said."""


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise FetchError(f"{shlex.join(command[:1] + command[-2:])} failed: {done.stderr.strip()}")
    return done.stdout


def mirror_of(sources: str) -> str:
    """The URL of Debian's archive among those that apt would fetch lists from. Errors: FetchError.

    It is the one that ends in `debian`, as mirrors do; security updates and packages of others have
    other names.
    """
    for line in sources.splitlines():
        url, found, _ = line.partition("/dists/")
        if found and url.endswith("/debian"):
            return url.removeprefix("'")
    raise FetchError(
        "expected a mirror of Debian (a URL that ends in /debian) among apt's sources, got none; "
        "name one by --mirror URL"
    )


def _apt_options(folder: Path, suite: str, mirror: str) -> list[str]:
    """A private apt: its own sources, lists, cache, and no package installed."""
    for name in ("lists/partial", "cache/archives/partial", "packages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    source = folder / "sources.list"
    source.write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "",
        # A mirror may be a snapshot whose lists have run out; their signatures are checked still.
        "Acquire::Check-Valid-Until": "false",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def fetch(dest: Path, suite: str, mirror: str) -> Path:
    """Downloads and unpacks; the path of the start script. Errors: FetchError."""
    folder = (dest / suite).resolve()
    options = _apt_options(folder, suite, mirror)
    _run(["apt-get", *options, "--quiet", "update"], folder)
    plan = ["apt-get", *options, "--simulate", "--no-install-recommends", "install", "mosquitto"]
    names = [line.split()[1] for line in _run(plan, folder).splitlines() if line[:5] == "Inst "]
    wanted = [name for name in names if name not in NOT_NEEDED]
    if "mosquitto" not in wanted:
        raise FetchError(f"{suite} has no mosquitto for this machine")
    _run(["apt-get", *options, "--quiet", "download", *wanted], folder / "packages")
    root = folder / "root"
    for package in sorted((folder / "packages").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(root)], folder)
    return _start_script(root, folder / "mosquitto")


def _start_script(root: Path, script: Path) -> Path:
    """The broker needs the C library it was built for, so that library's own loader starts it."""
    loaders = sorted(root.glob("usr/lib*/ld-linux-*.so.*"))
    loaders += sorted(root.glob("usr/lib/*/ld-linux-*.so.*"))
    if not loaders:
        raise FetchError(f"no dynamic loader below {root}")
    libraries = sorted({str(found.parent) for found in root.glob("usr/lib/**/*.so.*")})
    # Some packages leave the links with the libraries' own names to ldconfig (-n: no cache).
    _run(["/sbin/ldconfig", "-n", *libraries], root)
    command = [loaders[0], "--library-path", ":".join(libraries), root / "usr/sbin/mosquitto"]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
    script.chmod(0o755)
    return script


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dest", type=Path, default=DEFAULT_DEST, help=f"default: {DEFAULT_DEST}")
    parser.add_argument("--suite", default="unstable", help="Debian suite (default: unstable)")
    parser.add_argument("--mirror", metavar="URL", help="default: the one in apt's sources")
    arguments = parser.parse_args()
    try:
        mirror = arguments.mirror or mirror_of(_run(list(SOURCES), Path.cwd()))
        print(fetch(arguments.dest, arguments.suite, mirror))
    except (FetchError, OSError) as error:
        print(f"mosquitto could not be fetched: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
