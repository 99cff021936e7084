"""Runs the commands of a page as its reader would: in order, in one shell, from nothing.

The reader has a checkout, avow installed in its `.venv` by the words of the quick start, an empty
home and an empty folder. Comments before a fenced block, which readers do not see, say what the
block is:

- `<!-- install -->`: run once for all pages,
- `<!-- run -->`, `<!-- run in background -->`: a command,
- `<!-- prints -->`: what the command before it prints,
- `<!-- file NAME -->`: a file that the reader writes,
- `<!-- not run: REASON -->`: nothing of it is run.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUN_TIMEOUT_S = 560
# Written on pages; they may be taken on the machine that tests.
PORTS = (1884, 7420, 8883, 8884, 8885, 8886, 8899, 9100)

BLOCK = re.compile(
    r"^<!-- (?P<kind>install|run|run in background|prints|file (?P<name>[\w./-]+)|"
    r"not run: (?P<reason>[^>]+)) -->\n```\w+\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
ACTIVATE = ". .venv/bin/activate"
# Not of the checkout: what was built from it, and what tools keep.
_IGNORED = (".git", ".venv", "build", "dist", "site", "__pycache__", ".*_cache", ".hypothesis")


@dataclass(frozen=True)
class Step:
    """A block that is run, and what it has to print, if the page says so."""

    text: str
    kind: str = "run"
    prints: str | None = None


def steps_of(page: str) -> list[Step]:
    """The runnable blocks of a page; files become steps that write them."""
    steps: list[Step] = []
    for block in BLOCK.finditer(page):
        if block["name"]:
            parent = Path(block["name"]).parent
            steps.append(
                Step(f"mkdir -p {parent}\ncat >{block['name']} <<'END'\n{block['text']}END\n")
            )
        elif block["kind"] == "prints":
            steps[-1] = Step(steps[-1].text, steps[-1].kind, block["text"])
        elif not block["reason"]:
            steps.append(Step(block["text"], block["kind"]))
    return steps


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Reader:
    """Whoever reads pages: where avow is installed, and an empty folder and home for one page."""

    checkout: Path
    place: Path
    given: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, page: str) -> list[str]:
        """Runs the blocks of `page`; returns what each printed. Fails as they do."""
        for number in PORTS:
            page = re.sub(rf"\b{number}\b", str(free_port()), page)
        steps = steps_of(page)
        folder = self.place / "work"
        venv = self.checkout / ".venv"
        if ACTIVATE in "".join(step.text for step in steps if step.kind != "install"):
            copy_checkout(folder)
            move_environment(venv, folder / ".venv")
        else:
            folder.mkdir()
        for name, content in self.given.items():
            (folder / name).write_bytes(content)
        home, logs = self.place / "home", self.place / "logs"
        home.mkdir()
        logs.mkdir()
        environment = {
            **bare_environment(home),
            **self.environment,
            "PATH": f"{venv}/bin:{bare_environment(home)['PATH']}",
        }
        return _run(steps, folder, logs, environment)


def bare_environment(home: Path) -> dict[str, str]:
    """What a shell has at its start, and of this machine's how packages are downloaded."""
    kept = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "npm_")
    return {
        **{name: text for name, text in os.environ.items() if name.startswith(kept)},
        "PIP_CACHE_DIR": _pip_cache(),
        # To build a C library takes longer than all the rest of a page.
        "ZIG_GLOBAL_CACHE_DIR": str(ROOT / "build/sandbox/zig-cache/global"),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    }


def _pip_cache() -> str:
    told = os.environ.get("PIP_CACHE_DIR")
    return told or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pip")


def copy_checkout(folder: Path) -> None:
    """The files of this checkout, with what was compiled from them, so that it is not again."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*_IGNORED))
    (folder / "build").mkdir()
    for stamp in (ROOT / "build").glob("*.stamp"):
        shutil.copy2(stamp, folder / "build")
    # Locked by who writes to them; what is there is compared with its inputs before it is used.
    for name in ("sandbox", "zig-cache"):
        shared = ROOT / "build" / name
        shared.mkdir(parents=True, exist_ok=True)
        (folder / "build" / name).symlink_to(shared)


def move_environment(venv: Path, to: Path) -> None:
    """A virtual environment like `venv`: its scripts name the interpreter by a whole path."""
    shutil.copytree(venv, to, symlinks=True, copy_function=_copy_or_link)
    for file in (*(to / "bin").iterdir(), to / "pyvenv.cfg"):
        if file.is_file() and not file.is_symlink():
            file.write_bytes(file.read_bytes().replace(bytes(venv), bytes(to)))


def _copy_or_link(source: str, target: str) -> None:
    """A copy, but of the compiler another name: it is most of the bytes, and stays as it is."""
    take = os.link if "ziglang" in Path(source).parts else shutil.copy2
    take(source, target)


def install(folder: Path) -> Path:
    """The checkout below `folder`, installed as the quick start says; made by the first who asks.

    Shared by the processes of one test run.
    """
    checkout = folder / "checkout"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "installed"
        if not done.exists():
            copy_checkout(checkout)
            home, logs = folder / "home", folder / "logs"
            home.mkdir()
            logs.mkdir()
            steps = [
                Step(step.text)
                for step in steps_of((DOCS / "quick-start.md").read_text())
                if step.kind == "install"
            ]
            _run(steps, checkout, logs, bare_environment(home))
            done.touch()
    return checkout


# Where a page relies on the default port, which may be taken here, another one is named.
_AVOW = """
avow() {{
    case "$1 $*" in
        *://* | *--config* | *--check*) ;;
        broker\\ *) set -- "$@" --listen 'mqtt://127.0.0.1:{port}' ;;
        pub\\ * | sub\\ * | inspect\\ *) set -- "$@" 'mqtt://127.0.0.1:{port}' ;;
    esac
    if [ "${{BACKGROUND:-}}" ]; then exec env avow "$@"; fi
    env avow "$@"
}}
"""


def _script(steps: Sequence[Step], logs: Path) -> str:
    """One shell for the whole page, so that variables and the working folder stay."""
    parts = ["set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT\n"]
    parts.append(_AVOW.format(port=free_port()))
    for number, step in enumerate(steps):
        out = f">'{logs}/{number}.out' 2>'{logs}/{number}.err'"
        if step.kind == "run in background":
            parts.append(
                f"{{ BACKGROUND=yes; {step.text.strip()}\n}} {out} &\n"
                f"until grep -q listening '{logs}/{number}.err'; do kill -0 $!; sleep 0.1; done\n"
            )
        elif step.kind == "run":
            parts.append(f"{{\n{step.text}}} {out}\n")
        parts.append(f"echo {number}\n")
    return "".join(parts)


def _run(
    steps: Sequence[Step], folder: Path, logs: Path, environment: Mapping[str, str]
) -> list[str]:
    """What each step printed."""
    done = subprocess.run(
        ["bash", "--norc", "-c", _script(steps, logs)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    reached = len(done.stdout.split())
    if done.returncode != 0:
        said = "".join(path.read_text() for path in sorted(logs.glob(f"{reached}.*")))
        text = steps[reached].text if reached < len(steps) else "(the end)"
        pytest.fail(f"block {reached} failed ({done.returncode}):\n{text}\n{said}{done.stderr}")
    printed = []
    for number, step in enumerate(steps):
        log = logs / f"{number}.out"
        printed.append(log.read_text() if log.exists() else "")
        assert step.prints is None or printed[-1] == step.prints, f"after:\n{step.text}"
    return printed
