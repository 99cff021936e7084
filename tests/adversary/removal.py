"""Takes a defence out of the code that runs, so that a test can show what it was good for.

`removed("avow.evidence.origin", "NONCE")` recompiles a module without the statements that raise by
this check, and puts the code of its functions in place of theirs until the end of the block. An
attack that is stopped by several checks is tried again and again with one check less, and has to
succeed in the end: otherwise it was no attack, or the list of what stops it is not complete.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any


@dataclass(frozen=True)
class Defence:
    """The statements in `module` that raise by the check `constant`, whose number is `check`.

    With `inside` only those in the function of this name; then `constant` may be empty, for all
    that it raises.
    """

    check: str
    module: str
    constant: str = ""
    inside: str = ""


@contextmanager
def removed(defences: Sequence[Defence]) -> Iterator[None]:
    """The product without these defences."""
    with ExitStack() as stack:
        for module in dict.fromkeys(defence.module for defence in defences):
            mine = [defence for defence in defences if defence.module == module]
            stack.enter_context(_without(module, mine))
        yield


@contextmanager
def _without(name: str, defences: Sequence[Defence]) -> Iterator[None]:
    module = importlib.import_module(name)
    tree = ast.parse(inspect.getsource(module))
    for defence in defences:
        remover = _Remover(defence)
        tree = ast.fix_missing_locations(remover.visit(tree))
        assert remover.found, f"{name} raises nothing by {defence}"
    codes = dict(_codes(compile(tree, module.__file__ or name, "exec")))
    functions = {
        function.__qualname__: function for function in _functions(vars(module), module.__name__)
    }
    kept = {name: function.__code__ for name, function in functions.items()}
    try:
        for qualified, function in functions.items():
            code = codes.get(qualified)
            if code is not None and code.co_freevars == function.__code__.co_freevars:
                function.__code__ = code
        yield
    finally:
        for qualified, function in functions.items():
            function.__code__ = kept[qualified]


class _Remover(ast.NodeTransformer):
    def __init__(self, defence: Defence) -> None:
        self._defence = defence
        self._within: list[str] = []
        self.found = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._within.append(node.name)
        self.generic_visit(node)
        self._within.pop()
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        defence = self._defence
        here = not defence.inside or defence.inside in self._within
        if here and (not defence.constant or defence.constant in _arguments(node.exc)):
            self.found = True
            return ast.copy_location(ast.Pass(), node)
        return node


def _arguments(raised: ast.expr | None) -> set[str]:
    """The names that what is raised was made with."""
    if not isinstance(raised, ast.Call):
        return set()
    return {
        each.id if isinstance(each, ast.Name) else each.attr
        for each in raised.args
        if isinstance(each, ast.Name | ast.Attribute)
    }


def _codes(code: CodeType, prefix: str = "") -> Iterator[tuple[str, CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant, prefix)


def _functions(space: dict[str, Any] | Any, module: str) -> Iterator[FunctionType]:
    for value in list(space.values()):
        if isinstance(value, FunctionType) and value.__module__ == module:
            yield value
        elif isinstance(value, property) and isinstance(value.fget, FunctionType):
            yield value.fget
        elif inspect.isclass(value) and value.__module__ == module:
            yield from _functions(vars(value), module)
