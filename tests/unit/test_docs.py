"""The documentation: generated pages are current, commands on pages do what the pages say."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import hatch_build
from avow.cli import cli
from avow.cli.anchors import check_anchor
from avow.cli.store_keys import owner_key
from docs import generate, zig_source

ROOT = Path(generate.__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
RUN_TIMEOUT_S = 240
# Written on pages; they may be taken on the machine that tests.
PORTS = (1884, 7420, 8883, 8884, 8899)

# `<!-- run -->`, `<!-- run in background -->`, `<!-- prints -->` and `<!-- file NAME -->` before a
# fenced block say what the block is; readers do not see them.
BLOCK = re.compile(
    r"<!-- (?P<kind>run|run in background|prints|file (?P<name>[\w.]+)) -->\n"
    r"```\w+\n(?P<text>.*?)```\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Step:
    """A block that is run, and what it has to print, if the page says so."""

    text: str
    background: bool
    prints: str | None = None


def steps_of(page: str) -> list[Step]:
    """The runnable blocks of a page; files become steps that write them."""
    steps: list[Step] = []
    for block in BLOCK.finditer(page):
        if block["name"]:
            steps.append(Step(f"cat >{block['name']} <<'END'\n{block['text']}END\n", False))
        elif block["kind"] == "prints":
            steps[-1] = Step(steps[-1].text, steps[-1].background, block["text"])
        else:
            steps.append(Step(block["text"], block["kind"] != "run"))
    return steps


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _commands(folder: Path, port: int) -> Path:
    """A folder for PATH with `python` and `avow`.

    Port 1883, the default, may be taken on the machine that tests, so `avow` is given another one
    where the page relies on the default.
    """
    folder.mkdir()
    # No symbolic link: Python would not find its environment behind one.
    (folder / "python").write_text(f"#!/bin/bash\nexec '{sys.executable}' \"$@\"\n")
    (folder / "avow").write_text(
        "#!/bin/bash\n"
        'case "$1 $*" in\n'
        "    *://* | *--config* | measure* | user* | policy* | attest* | verify* | tee*) ;;\n"
        "    provision* | witness* | run* | store*) ;;\n"
        f"    broker*) set -- \"$@\" --listen 'mqtt://127.0.0.1:{port}' ;;\n"
        f"    *) set -- \"$@\" 'mqtt://127.0.0.1:{port}' ;;\n"
        "esac\n"
        f"exec '{sys.executable}' -m avow \"$@\"\n"
    )
    for command in folder.iterdir():
        command.chmod(0o755)
    return folder


def _script(steps: list[Step], logs: Path) -> str:
    """One shell for the whole page, so that variables and the working folder stay."""
    parts = ["set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT\n"]
    for number, step in enumerate(steps):
        out = f">'{logs}/{number}.out' 2>'{logs}/{number}.err'"
        if step.background:
            parts.append(
                f"{{ exec {step.text.strip()}; }} {out} &\n"
                f"until grep -q listening '{logs}/{number}.err'; do kill -0 $!; sleep 0.1; done\n"
            )
        else:
            parts.append(f"{{\n{step.text}}} {out}\n")
        parts.append(f"echo {number}\n")
    return "".join(parts)


def run_page(page: str, folder: Path) -> list[str]:
    """Runs the blocks of a page in `folder` and returns what each printed; fails as they do."""
    port = _free_port()
    for number in PORTS:
        page = re.sub(rf"\b{number}\b", str(_free_port()), page)
    steps = steps_of(page)
    logs = folder.parent / "logs"
    logs.mkdir()
    commands = _commands(folder.parent / "bin", port)
    done = subprocess.run(
        ["bash", "-c", _script(steps, logs)],
        cwd=folder,
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
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
    printed = [(logs / f"{number}.out").read_text() for number in range(len(steps))]
    for step, output in zip(steps, printed, strict=True):
        assert step.prints is None or output == step.prints, f"after:\n{step.text}"
    return printed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder to work in."""
    place = tmp_path / "work"
    place.mkdir()
    return place


@pytest.mark.openssl
def test_attested_clients_work(folder: Path) -> None:
    printed = run_page((DOCS / "how-to/attested-clients.md").read_text(), folder)
    assert any("not judged" in output for output in printed)
    assert any('"judged": true' in output for output in printed)


@pytest.mark.openssl
def test_quick_start_works(folder: Path) -> None:
    printed = run_page((DOCS / "quick-start.md").read_text(), folder)
    assert "room/door open\n" in printed
    assert "room/door closed\n" in printed
    assert printed.count("room/door locked\n") == 2
    assert any("SIMULATED" in output and "accepted" in output for output in printed)


def test_sealed_stores_work_as_described(folder: Path) -> None:
    printed = run_page((DOCS / "how-to/sealed-store.md").read_text(), folder)
    assert any("damages: 0\n" in each for each in printed)
    assert any("exit code 104\nthe first line\n" in each for each in printed)
    assert any("notes.txt" in each for each in printed)


@pytest.mark.openssl
def test_provisioning_works(folder: Path) -> None:
    printed = run_page((DOCS / "how-to/provision.md").read_text(), folder)
    assert any("taken: keys store; files tls.crt, tls.key, users\n" in each for each in printed)


@pytest.mark.openssl
@pytest.mark.tpm
def test_attesting_with_a_tpm_works(folder: Path) -> None:
    try:
        printed = run_page((DOCS / "how-to/tpm.md").read_text(), folder)
    finally:
        process = folder / "swtpm.pid"
        if process.exists():
            os.kill(int(process.read_text()), signal.SIGTERM)
    assert "room/door locked\n" in printed
    assert any("--tee auto would take tpm" in output for output in printed)


def test_witness_says_what_stores_are_given(folder: Path) -> None:
    printed = run_page((DOCS / "how-to/witness.md").read_text(), folder)
    check_anchor(printed[1].strip())


@pytest.mark.openssl
def test_a_key_file_as_described_is_taken(folder: Path) -> None:
    run_page((DOCS / "how-to/store-keys.md").read_text(), folder)
    assert len(owner_key(f"file:{folder / 'owner.key'}")) == 32


def test_measurement_is_reproduced_as_described(folder: Path) -> None:
    shutil.copytree(ROOT / "core", folder / "core")
    installed, by_hand = run_page((DOCS / "how-to/measurement.md").read_text(), folder)
    assert by_hand.split()[0] == installed.strip()


@pytest.mark.openssl
def test_policies_work_as_described(folder: Path) -> None:
    printed = run_page((DOCS / "how-to/policy.md").read_text(), folder)
    assert any("WARNING: it accepts simulated evidence" in each for each in printed)
    assert any(each.startswith("accepted: warning\n") for each in printed)
    assert any(each.startswith("REFUSED: contraindicated\n") for each in printed)


def test_described_command_is_the_one_that_builds() -> None:
    _, by_hand = steps_of((DOCS / "how-to/measurement.md").read_text())
    words = by_hand.text.replace("\\\n", " ").split("\n")[0].split()
    assert words[:3] == ["python", "-m", "ziglang"]
    assert tuple(words[3:-1]) == hatch_build.core().command


def test_runnable_blocks_are_found() -> None:
    marks = sum(
        len(re.findall(r"^<!-- (?:run|run in background) -->$", path.read_text(), re.MULTILINE))
        for path in DOCS.rglob("*.md")
    )
    files = {page: steps_of((DOCS / page).read_text()) for page in PAGES}
    runs = sum(not step.text.startswith("cat >") for steps in files.values() for step in steps)
    assert marks == runs > 0
    assert {page for page, steps in files.items() if steps} == {
        "quick-start.md",
        "how-to/measurement.md",
        "how-to/run.md",
        "how-to/sealed-store.md",
        "how-to/store-keys.md",
        "how-to/witness.md",
        "how-to/attested-clients.md",
        "how-to/policy.md",
        "how-to/provision.md",
        "how-to/tpm.md",
    }


@pytest.mark.parametrize(
    "page",
    [
        "<!-- run -->\n```sh\nfalse\n```\n",
        "<!-- run -->\n```sh\nno-such-command\n```\n",
        "<!-- run in background -->\n```sh\navow broker --unknown\n```\n",
    ],
)
def test_failing_block_fails(page: str, folder: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="block 0 failed"):
        run_page(page, folder)


def test_other_output_fails(folder: Path) -> None:
    page = "<!-- run -->\n```sh\necho a\n```\n\n<!-- prints -->\n```text\nb\n```\n"
    with pytest.raises(AssertionError, match="echo a"):
        run_page(page, folder)


def test_generated_pages_are_current() -> None:
    assert not generate.stale(), "run `make docs` and commit docs/reference"


def test_stale_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    assert set(generate.stale()) == set(generate.PAGES)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "limits.md").write_text("old")
    assert generate.stale() == ["limits.md"]


def test_constants_are_read_with_their_comments() -> None:
    source = (
        "/// Of the first.\n"
        "/// Two lines.\n"
        "pub const first: u32 = 2 * 1024;\n"
        "pub const second: u64 = first + 0xF;\n"
        "const private: u32 = 1;\n"
    )
    assert list(zig_source.constants(source)) == [
        ("first", 2048, "Of the first. Two lines."),
        ("second", 2063, ""),
    ]


TABLE = """
/// Where it stands.
pub const State = enum { off, on };
pub const Effect = enum {
    none,
    /// Make light,
    /// at once.
    shine,
};
pub const machine = [_]MachineRow{
    .{ .state = .off, .event = .press, .next = .on, .effect = .shine }, // [MQTT-1.2.3-4]
    .{ .state = .on, .event = .press, .next = .off, .effect = .none },
};
"""


def test_tables_are_read_with_their_comments() -> None:
    first, second = zig_source.tables(TABLE)["machine"]
    assert first.fields == {"state": "off", "event": "press", "next": "on", "effect": "shine"}
    assert (first.comment, second.comment) == ("[MQTT-1.2.3-4]", "")
    assert zig_source.enums(TABLE) == {
        "State": {"off": "", "on": ""},
        "Effect": {"none": "", "shine": "Make light, at once."},
    }
    assert zig_source.purposes(TABLE) == {"State": "Where it stands."}


@pytest.mark.parametrize("row", [".{ .state = off() },", "row(.off, .press),"])
def test_table_of_another_form_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match="this page can"):
        zig_source.tables(f"pub const machine = [_]MachineRow{{\n    {row}\n}};\n")


def test_site_is_built_without_warnings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").is_file()


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def _mentioned_commands(text: str) -> list[str]:
    """Command lines of avow in shell blocks and between backticks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shell = re.sub(r"\$\(.*?\)", "", "\n".join(blocks).replace("\\\n", " "))
    found = re.findall(r"(?:^|[|&;(] ?)(avow [^|&;#)\n]*)", shell, re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return found + [" ".join(code.split()) for code in re.findall(r"`(avow [^`]+)`", prose)]


def _unknown(line: str) -> list[str]:
    """What of a command line does not exist."""
    words = line.split()[1:]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
        name = words.pop(0)
        inner = command.get_command(click.Context(command), name)
        if inner is None:
            return [name]
        command = inner
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    known |= {"--help", "-h", "--version"}
    options = [re.split("[=.,]", word)[0] for word in words if re.match("--?[a-zA-Z]", word)]
    return [option for option in options if option not in known]


def test_commands_that_are_mentioned_exist() -> None:
    pages = [ROOT / "README.md", *(DOCS / page for page in PAGES)]
    mentioned = [line for page in pages for line in _mentioned_commands(page.read_text())]
    assert len(mentioned) > 50
    assert {line: unknown for line in mentioned if (unknown := _unknown(line))} == {}


def test_a_command_that_does_not_exist_is_noticed() -> None:
    page = "Say `avow measure\nbrker --all`.\n```sh\nx | avow sub \\\n  --wrong -t a # --no\n```\n"
    lines = _mentioned_commands(page)
    assert lines == ["avow sub    --wrong -t a ", "avow measure brker --all"]
    assert [_unknown(line) for line in lines] == [["--wrong"], ["brker"]]
    assert _unknown("avow brker") == ["brker"]
    assert _unknown("avow policy init --brker") == ["--brker"]


def test_make_targets_are_those_that_are_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    described = re.findall(r"^([a-z]+):[^#\n]*## ", makefile, re.MULTILINE)
    assert sorted(phony.split()) == sorted(described)
    text = (ROOT / "README.md").read_text() + "".join((DOCS / p).read_text() for p in PAGES)
    mentioned = set(re.findall(r"\bmake ([a-z]+)\b(?=[`\n ]*[`\n])", text))
    assert mentioned <= set(described), mentioned - set(described)


def test_versions_that_are_to_be_installed_are_the_pinned_ones() -> None:
    pinned = set(re.findall(r'"([\w-]+==[\w.]+)"', (ROOT / "pyproject.toml").read_text()))
    for page in PAGES:
        named = re.findall(r"\b[\w-]+==\d[\w.]*", (DOCS / page).read_text())
        assert set(named) <= pinned, page


# `avow` on package indexes is a project of somebody else.
INSTALLS_ANOTHER = re.compile(
    r"(?:pipx?3?|uvx?|pip\s+tool|poetry|pipenv)\s+(?:\w+\s+)*(?:-\S+\s+)*[`'\"]?avow(?![\w.-]|/)"
)


def test_nothing_installs_somebody_elses_project() -> None:
    for line in (
        "pip install 'avow[tpm]'",
        "python -m pip install --upgrade avow",
        "pip install avow",
        "uv tool install avow",
        "pipx run avow",
        "uvx avow",
    ):
        assert INSTALLS_ANOTHER.search(line), line
    assert not INSTALLS_ANOTHER.search("pip install . && avow broker")
    assert not INSTALLS_ANOTHER.search("pip install '.[tpm]'; pip install ./avow-1.0.whl")
    here = Path(__file__)
    rooms = ("docs", "src", "examples", "bench", "tests", "findings", ".ci")
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    wrong = []
    for path in files:
        if path != here and path.suffix not in (".pyc", ".so", ".wasm"):
            text = path.read_bytes().decode(errors="replace")
            found = (str(path.relative_to(ROOT)), *INSTALLS_ANOTHER.findall(text))
            wrong += [found] if found[1:] else []
    assert wrong == []
