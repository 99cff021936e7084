"""Every normative statement of MQTT 5.0 is tagged by a test or excused with a reason."""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


def statements() -> list[str]:
    """The identifiers of MQTT 5.0, Appendix B, and of one that only its body has (4.2-1)."""
    return (HERE / "statements-5.0.txt").read_text(encoding="ascii").split()


def excused() -> dict[str, str]:
    """Statement and reason."""
    table: dict[str, str] = tomllib.loads((HERE / "excused.toml").read_text())["statement"]
    return table


def _tags_of(function: ast.FunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call):
            continue
        name = decorator.func.id if isinstance(decorator.func, ast.Name) else ""
        if name != "clause":
            continue
        for argument in decorator.args:
            assert isinstance(argument, ast.Constant), f"{function.name}: a tag is not a literal"
            yield str(argument.value)


@functools.cache
def tagged() -> dict[str, list[str]]:
    """Statement and the tests that carry it."""
    found: dict[str, list[str]] = {}
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for tag in _tags_of(node):
                    found.setdefault(tag, []).append(f"{file.name}::{node.name}")
    return found


def test_every_statement_is_tagged_or_excused() -> None:
    reasons = excused()
    missing = [s for s in statements() if s not in tagged() and s not in reasons]
    print("statements without a test:", ", ".join(missing) or "none")
    assert not missing, f"{len(missing)} statements have neither a test nor an excuse: {missing}"


def test_every_tag_names_a_statement() -> None:
    known = set(statements())
    assert not {tag: where for tag, where in tagged().items() if tag not in known}


def test_excuses_are_about_statements_and_have_a_reason() -> None:
    known = set(statements())
    for statement, reason in excused().items():
        assert statement in known
        assert len(reason) > 20
        assert statement not in tagged(), f"{statement} is excused but has a test"


def test_the_list_of_statements_is_the_whole_one() -> None:
    assert len(statements()) == len(set(statements())) == 252
