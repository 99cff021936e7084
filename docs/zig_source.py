"""Reads what the documentation shows out of Zig sources: constants, enums, tables of records.

It knows the few forms that `core/src/limits.zig` and `core/src/transitions.zig` use, and raises
`ValueError` for another one, so that nothing is left out in silence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple


def constants(source: str) -> Iterator[tuple[str, int, str]]:
    """The integer constants of a Zig file in order: name, value, the comment above them.

    A comment stands for the constants that follow it without an empty line between.
    """
    known: dict[str, int] = {}
    comment: list[str] = []
    for line in source.splitlines():
        if line.startswith("///"):
            comment.append(line.removeprefix("///").strip())
        elif match := re.match(r"pub const (\w+): u\w+ = ([^;]+);", line):
            name, expression = match.groups()
            known[name] = _value(ast.parse(expression, mode="eval").body, known)
            yield name, known[name], " ".join(comment)
            comment = []
        else:
            comment = []


def _value(node: ast.expr, known: dict[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, known), _value(node.right, known)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.FloorDiv | ast.Div):
            return left // right
        if isinstance(node.op, ast.LShift):
            return left << right
    raise ValueError(f"no constant that this page can show: {ast.unparse(node)}")


class Row(NamedTuple):
    """A record of a table: its fields by name, all of them enum values, and its comment."""

    fields: dict[str, str]
    comment: str


def tables(source: str) -> dict[str, list[Row]]:
    """The arrays of records of a file by name: `pub const name = [_]TypeRow{ .{ ... }, ... };`."""
    return {
        name: [_row(line.strip()) for line in body.strip().splitlines()]
        for name, body in re.findall(
            r"^pub const (\w+) = \[_\]\w+\{\n(.*?)^\};", source, re.DOTALL | re.MULTILINE
        )
    }


def _row(line: str) -> Row:
    match = re.fullmatch(r"\.\{ (.*?) \},(?: // (.*))?", line)
    if match is None:
        raise ValueError(f"no record that this page can show: {line}")
    fields = dict(re.findall(r"\.(\w+) = \.(\w+)", match[1]))
    if len(fields) != match[1].count("="):
        raise ValueError(f"a field that this page cannot show: {line}")
    return Row(fields, match[2] or "")


def enums(source: str) -> dict[str, dict[str, str]]:
    """The enums of a file by name: each value with the comment above it."""
    found: dict[str, dict[str, str]] = {}
    for name, body in re.findall(r"^pub const (\w+) = enum \{(.*?)\};", source, re.DOTALL | re.M):
        comment: list[str] = []
        values = found.setdefault(name, {})
        for line in body.strip().splitlines():
            text = line.strip()
            if text.startswith("///"):
                comment.append(text.removeprefix("///").strip())
            else:
                for value in filter(None, (word.strip() for word in text.split(","))):
                    values[value] = " ".join(comment)
                    comment = []
    return found


def purposes(source: str) -> dict[str, str]:
    """The comment directly above each public constant that has one."""
    return {
        name: " ".join(line.removeprefix("///").strip() for line in comment.strip().splitlines())
        for comment, name in re.findall(r"((?:^///.*\n)+)^pub const (\w+)", source, re.MULTILINE)
    }
