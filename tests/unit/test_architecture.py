"""The house rules that a program can check, and proof that each check can fail.

A check is a function from one file (its path in the checkout and its text) to the sentences that
say what is wrong with it. `test_checkout` runs all of them over all files; `BAD` and `GOOD` feed
each one what it must refuse and what it must let pass.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "core", "pump", "vault", "tests", "bench", "examples", "docs", ".ci")
FILES = ("hatch_build.py", "Makefile", "README.md", "CHANGELOG.md", "pyproject.toml", "mkdocs.yml")

LINES_MAX = 800
FUNCTION_LINES_MAX = 80

# What each room may import; `errors`, `artefacts`, `runtime` and avow's version are open to all.
ROOMS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "artefacts": frozenset(),
    "runtime": frozenset(),
    "evidence": frozenset(),
    "tee": frozenset({"evidence"}),
    "policy": frozenset({"evidence"}),
    "channel": frozenset({"evidence", "policy"}),
    "sealing": frozenset(),
    "sandbox": frozenset({"sealing"}),
    "broker": frozenset({"sandbox", "channel", "sealing"}),
    "fabric": frozenset({"sandbox", "channel", "policy", "sealing"}),
    "client": frozenset({"channel", "policy"}),
}
SHIPPED = frozenset(ROOMS) | {"cli"}
ROOMS["cli"] = SHIPPED
ROOMS["start"] = frozenset({"cli"})
ROOMS["__main__"] = frozenset({"start"})
ROOMS["testing"] = SHIPPED

# The one file outside cli that puts rooms together, so that programs need not: docs/decisions/0009.
WIRING: dict[str, frozenset[str]] = {
    "src/avow/client/wiring.py": frozenset({"evidence", "tee", "sandbox"}),
}

# The languages of the project and the formats of its data. JavaScript only as the site's own page
# script; C only as what users bring: programs for the sandbox (docs/decisions/0011).
SUFFIXES = frozenset(
    {"", ".py", ".zig", ".zon", ".md", ".toml", ".txt", ".json", ".yml", ".typed", ".svg", ".css"}
)

SITE_SCRIPT = PurePosixPath("docs/site.js")

Check = Callable[[PurePosixPath, str], Iterator[str]]


def _room(path: PurePosixPath) -> str | None:
    """The room that a file belongs to; None outside `src/avow` and for `avow/__init__.py`."""
    parts = path.parts
    if parts[:2] != ("src", "avow") or parts[2:] == ("__init__.py",):
        return None
    return parts[2].removesuffix(".py")


def _module(path: PurePosixPath) -> list[str]:
    """The dotted name of a file below `src`, in parts; a package's own file counts as inside it."""
    return list(path.with_suffix("").parts[1:])


def _imports(path: PurePosixPath, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import anywhere in a file, as line and absolute dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*_module(path)[: -node.level], *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _called(node: ast.Call) -> str:
    """The last part of the name of what is called, or nothing."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def imports_one_way(path: PurePosixPath, text: str) -> Iterator[str]:
    """Rooms import in one direction, and nothing shipped imports `avow.testing`."""
    if path.suffix != ".py" or path.parts[:2] != ("src", "avow"):
        return
    room = _room(path)
    if room is not None and room not in ROOMS:
        yield f"{path}: `{room}` is no room of the house"
        return
    allowed = (
        ROOMS[room] | {"errors", "artefacts", "runtime", room}
        if room is not None
        else frozenset[str]()
    )
    allowed |= WIRING.get(path.as_posix(), frozenset())
    for line, name in _imports(path, ast.parse(text)):
        parts = name.split(".")
        if parts[0] != "avow" or len(parts) == 1 or parts[1] == "__version__":
            continue
        if parts[1] not in allowed:
            yield f"{path}:{line}: `{room or 'avow'}` may not import `{name}`"


def short(path: PurePosixPath, text: str) -> Iterator[str]:
    """A file that a reader can hold in mind, and functions that fit on a screen."""
    if path.suffix not in {".py", ".zig"}:
        return
    lines = text.count("\n")
    if lines > LINES_MAX:
        yield f"{path}: {lines} lines, at most {LINES_MAX}: split it"
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines"


def well_named(path: PurePosixPath, text: str) -> Iterator[str]:
    """No name that says nothing about what is inside."""
    for part in path.parts:
        if re.fullmatch(r"(test_)?(utils?|helpers?|commons?|misc)", PurePosixPath(part).stem):
            yield f"{path}: `{part}` says nothing about what is inside"
    types: list[str] = []
    if path.suffix == ".py":
        types = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    elif path.suffix == ".zig":
        types = re.findall(r"\bconst +(\w+) *=", text)
    for name in types:
        if name.endswith("Manager"):
            yield f"{path}: `{name}` says nothing about what it does"


def _is_program(node: ast.stmt) -> bool:
    """True for what runs only when a file is started as a program."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def exits_in_cli(path: PurePosixPath, text: str) -> Iterator[str]:
    """Only the command line ends the process, and what is a program of its own."""
    if path.suffix != ".py" or _room(path) in {None, "cli", "__main__"}:
        return
    body = [node for node in ast.parse(text).body if not _is_program(node)]
    for node in (inner for statement in body for inner in ast.walk(statement)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"sys.exit", "os._exit", "os.abort", "exit", "quit", "SystemExit"}:
                yield f"{path}:{node.lineno}: `{called}` outside cli"
        elif isinstance(node, ast.Raise) and _text(node.exc) == "SystemExit":
            yield f"{path}:{node.lineno}: `raise SystemExit` outside cli"


def narrow_except(path: PurePosixPath, text: str) -> Iterator[str]:
    """Nobody catches what they did not think of, except to clean up and raise it again."""
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        names = {"everything"} if node.type is None else set(re.findall(r"\w+", _text(node.type)))
        last = node.body[-1]
        raises_again = isinstance(last, ast.Raise) and last.exc is None
        if names & {"everything", "Exception", "BaseException"} and not raises_again:
            yield f"{path}:{node.lineno}: catches {_text(node.type) or 'everything'}"


def _text(node: ast.AST | None) -> str:
    return ast.unparse(node) if node is not None else ""


# Spelled in halves so that this file passes its own check.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def finished(path: PurePosixPath, text: str) -> Iterator[str]:
    """Nothing is left for later in the code."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := UNFINISHED.search(line):
            yield f"{path}:{number}: {match[0]}"


# Calls that reach outside the process or depend on when or where it runs.
OUTSIDE = re.compile(
    r"(open|print|input"
    r"|os\.(open|environ\.\w+|getenv|listdir|scandir|stat|getcwd|urandom|mkdir|makedirs|remove)"
    r"|(.*\.)?(read_text|read_bytes|write_text|write_bytes|mkdir|exists|is_file|iterdir|glob)"
    r"|(ctypes\.)?(CDLL|PyDLL|cdll\.LoadLibrary)"
    r"|(socket|subprocess|urllib|ssl|signal|threading|multiprocessing|logging|structlog|random"
    r"|secrets|tempfile|shutil)(\.\w+)*\.[a-z]\w*"
    r"|time\.\w+|datetime\.\w+\.now)"
)
# Of those, what only makes an object.
INSIDE = re.compile(
    r"logging\.getLogger|structlog\.(stdlib\.)?get_logger|threading\.local|time\.struct_time"
)


def _at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes that run when a module is imported: not the bodies of functions."""
    for statement in body:
        if _is_program(statement) or (
            isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
        ):
            continue
        waiting: list[ast.AST] = [statement]
        while waiting:
            node = waiting.pop()
            yield node
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                waiting += [*node.decorator_list, *node.args.defaults]
                waiting += [default for default in node.args.kw_defaults if default is not None]
            elif not isinstance(node, ast.Lambda):
                waiting += ast.iter_child_nodes(node)


def quiet_import(path: PurePosixPath, text: str) -> Iterator[str]:
    """Importing a shipped module does no input or output."""
    if path.suffix != ".py" or path.parts[:2] != ("src", "avow"):
        return
    for node in _at_import(ast.parse(text).body):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if OUTSIDE.fullmatch(called) and not INSIDE.fullmatch(called):
                yield f"{path}:{node.lineno}: `{called}` runs at import"
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            yield f"{path}:{node.lineno}: reads the environment at import"


def never_skipped(path: PurePosixPath, text: str) -> Iterator[str]:
    """A test runs or it does not exist."""
    if path.suffix != ".py" or path.parts[0] != "tests":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and re.fullmatch(
            r"(pytest(\.mark)?|unittest)\.(skip\w*|xfail|importorskip)", ast.unparse(node)
        ):
            yield f"{path}:{node.lineno}: {ast.unparse(node)}"


def whole_commands(path: PurePosixPath, text: str) -> Iterator[str]:
    """A command run without its group keeps a help option of its own for the rest of the process:
    the generated reference differs then from test to test."""
    if path.suffix != ".py" or path.parts[0] != "tests":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "CliRunner().invoke":
            command = ast.unparse(node.args[0]) if node.args else ""
            if command != "cli":
                yield f"{path}:{node.lineno}: {command}; invoke avow.cli.cli with its name"


def known_language(path: PurePosixPath, text: str) -> Iterator[str]:
    """Python and Zig, and plain formats for data."""
    brought = path.suffix in {".c", ".h"} and path.parts[0] in {"examples", "bench"}
    if path.suffix not in SUFFIXES and not brought and path != SITE_SCRIPT:
        yield f"{path}: the project has no {path.suffix} files"


CHECKS: tuple[Check, ...] = (
    imports_one_way,
    short,
    well_named,
    exits_in_cli,
    narrow_except,
    finished,
    quiet_import,
    never_skipped,
    whole_commands,
    known_language,
)


def _checkout() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            parts = path.relative_to(ROOT / folder).parts
            unkept = {"__pycache__", "node_modules", "_native", "results", "zig-out"}
            if path.is_file() and not any(p in unkept or p.startswith(".") for p in parts):
                yield path
    yield from (ROOT / name for name in FILES)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_checkout(check: Check) -> None:
    wrong: list[str] = []
    for path in _checkout():
        place = PurePosixPath(path.relative_to(ROOT).as_posix())
        text = path.read_text() if place.suffix in SUFFIXES else ""
        wrong += check(place, text)
    assert not wrong, "\n".join(wrong)


def test_checkout_is_seen() -> None:
    """The walk finds what it is meant to guard, so that an empty list is no success."""
    seen = {path.relative_to(ROOT).as_posix() for path in _checkout()}
    assert {"src/avow/errors.py", "hatch_build.py", "docs/spec/core-abi.md"} <= seen
    assert "tests/unit/test_architecture.py" in seen
    assert any(name.startswith("core/src/") for name in seen)
    assert any(name.startswith("pump/src/") for name in seen)


def test_rooms_have_no_circle() -> None:
    wired = {_room(PurePosixPath(path)): rooms for path, rooms in WIRING.items()}

    def below(room: str, above: tuple[str, ...] = ()) -> None:
        assert room not in above, f"circle: {' -> '.join((*above, room))}"
        for other in ROOMS[room] | wired.get(room, frozenset()):
            if other != room:
                below(other, (*above, room))

    for room in ROOMS:
        below(room)


def _lines(count: int) -> str:
    return "x = 1\n" * count


BAD: tuple[tuple[Check, str, str], ...] = (
    (imports_one_way, "src/avow/broker/admission.py", "from avow.client import connect"),
    (imports_one_way, "src/avow/channel/tls.py", "import avow.broker.config"),
    (imports_one_way, "src/avow/sandbox/engine.py", "from ..broker import pump"),
    (imports_one_way, "src/avow/sandbox/engine.py", "from avow import broker"),
    (imports_one_way, "src/avow/policy/rules.py", "def f():\n    from avow.tee import sgx"),
    (imports_one_way, "src/avow/broker/service.py", "from avow.testing.pki import Authority"),
    (imports_one_way, "src/avow/cli/main.py", "from avow.testing.pki import Authority"),
    (imports_one_way, "src/avow/broker/x.py", "importlib.import_module('avow.testing.pki')"),
    (imports_one_way, "src/avow/broker/service.py", "from avow.cli import main"),
    (imports_one_way, "src/avow/errors.py", "from avow.broker import config"),
    (imports_one_way, "src/avow/__init__.py", "from avow.errors import AvowError"),
    (imports_one_way, "src/avow/attic/things.py", ""),
    (imports_one_way, "src/avow/client/attested.py", "from avow.tee.platforms import verifiers"),
    (imports_one_way, "src/avow/client/wiring.py", "from avow.broker.config import Listener"),
    (short, "core/src/broker.zig", _lines(LINES_MAX + 1)),
    (short, "tests/unit/test_x.py", _lines(LINES_MAX + 1)),
    (short, "src/avow/broker/x.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
    (well_named, "src/avow/broker/utils.py", ""),
    (well_named, "src/avow/common/x.py", ""),
    (well_named, "tests/helpers.py", ""),
    (well_named, "core/src/util.zig", ""),
    (well_named, "src/avow/broker/x.py", "class SessionManager:\n    pass"),
    (well_named, "core/src/x.zig", "pub const SessionManager = struct {};"),
    (exits_in_cli, "src/avow/broker/x.py", "import sys\nsys.exit(1)"),
    (exits_in_cli, "src/avow/broker/x.py", "raise SystemExit"),
    (exits_in_cli, "src/avow/broker/x.py", "raise SystemExit(2)"),
    (exits_in_cli, "src/avow/broker/x.py", "import os\nos._exit(1)"),
    (narrow_except, "src/avow/broker/x.py", "try:\n    f()\nexcept:\n    pass"),
    (narrow_except, "tests/unit/x.py", "try:\n    f()\nexcept Exception as e:\n    print(e)"),
    (narrow_except, "bench/x.py", "try:\n    f()\nexcept (OSError, BaseException):\n    pass"),
    (finished, "src/avow/broker/x.py", "# TO" + "DO: later"),
    (finished, "core/src/x.zig", "// FIX" + "ME"),
    (quiet_import, "src/avow/broker/x.py", "from pathlib import Path\nA = Path('a').read_text()"),
    (quiet_import, "src/avow/broker/x.py", "import os\nA = os.environ['HOME']"),
    (quiet_import, "src/avow/broker/x.py", "class A:\n    now = time.time()"),
    (quiet_import, "src/avow/broker/x.py", "def f(now=time.time()):\n    pass"),
    (quiet_import, "src/avow/broker/x.py", "import ctypes\nL = ctypes.CDLL('x')"),
    (quiet_import, "src/avow/broker/x.py", "for _ in range(1):\n    open('x')"),
    (quiet_import, "src/avow/broker/x.py", "structlog.configure()"),
    (never_skipped, "tests/unit/test_x.py", "@pytest.mark.skip\ndef test_x():\n    pass"),
    (never_skipped, "tests/unit/test_x.py", "@pytest.mark.skipif(True)\ndef test_x():\n    pass"),
    (never_skipped, "tests/unit/test_x.py", "def test_x():\n    pytest.skip('no')"),
    (never_skipped, "tests/unit/test_x.py", "aiomqtt = pytest.importorskip('aiomqtt')"),
    (never_skipped, "tests/unit/test_x.py", "pytestmark = pytest.mark.xfail"),
    (whole_commands, "tests/unit/test_x.py", "CliRunner().invoke(measure, ['app'])"),
    (known_language, "pump/src/pump.c", ""),
    (known_language, "tests/integration/client.js", ""),
)

GOOD: tuple[tuple[Check, str, str], ...] = (
    (imports_one_way, "src/avow/broker/service.py", "from avow.sandbox.engine import load"),
    (imports_one_way, "src/avow/broker/service.py", "from . import config\nimport wasmtime"),
    (imports_one_way, "src/avow/broker/service.py", "from ..errors import AvowError"),
    (imports_one_way, "src/avow/broker/__init__.py", "from .config import Config"),
    (imports_one_way, "src/avow/cli/__init__.py", "from avow import __version__, broker, client"),
    (imports_one_way, "src/avow/testing/driver.py", "from avow.sandbox.engine import load"),
    (imports_one_way, "src/avow/client/wiring.py", "from avow.tee.platforms import verifiers"),
    (imports_one_way, "tests/unit/test_x.py", "from avow.testing.pki import Authority"),
    (short, "core/src/broker.zig", _lines(LINES_MAX)),
    (short, "src/avow/broker/x.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)),
    (well_named, "src/avow/broker/commonwealth.py", "class Managerial:\n    pass"),
    (exits_in_cli, "src/avow/cli/__init__.py", "import sys\nsys.exit(2)"),
    (exits_in_cli, "src/avow/testing/x.py", "if __name__ == '__main__':\n    sys.exit(main())"),
    (exits_in_cli, "hatch_build.py", "raise SystemExit(main())"),
    (narrow_except, "src/avow/broker/x.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (
        narrow_except,
        "src/avow/broker/x.py",
        "try:\n    f()\nexcept BaseException:\n    g()\n    raise",
    ),
    (finished, "src/avow/broker/x.py", "# all done"),
    (quiet_import, "src/avow/broker/x.py", "def f():\n    return open('x')"),
    (quiet_import, "src/avow/broker/x.py", "log = structlog.get_logger()\nf = lambda: open('x')"),
    (quiet_import, "src/avow/broker/x.py", "if __name__ == '__main__':\n    print('x')"),
    (quiet_import, "tests/unit/test_x.py", "A = Path('a').read_text()"),
    (never_skipped, "tests/unit/test_x.py", "@pytest.mark.clause('MQTT-1.5.4-1')\ndef f(): ..."),
    (whole_commands, "tests/unit/test_x.py", "CliRunner().invoke(cli, ['measure', 'app'])"),
    (known_language, "src/avow/py.typed", ""),
)


def _name(value: object) -> str:
    return getattr(value, "__name__", "") or str(value).splitlines()[0][:40] if value else "empty"


@pytest.mark.parametrize(("check", "path", "text"), BAD, ids=_name)
def test_check_can_fail(check: Check, path: str, text: str) -> None:
    assert list(check(PurePosixPath(path), text))


@pytest.mark.parametrize(("check", "path", "text"), GOOD, ids=_name)
def test_check_can_pass(check: Check, path: str, text: str) -> None:
    assert not list(check(PurePosixPath(path), text))


def test_every_check_is_proven() -> None:
    assert {check for check, _, _ in BAD} == set(CHECKS) == {check for check, _, _ in GOOD}
