"""The tests as text: which functions assert which claims, found without importing or collecting anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TestSource:
    """A test function: where it stands, the claims that it asserts, and its text."""

    __test__ = False
    path: Path
    name: str
    claims: tuple[str, ...]
    text: str


def tests(root: Path) -> Iterator[TestSource]:
    """Every test of the chapter folders below ``root`` that asserts a claim."""
    for path in sorted(root.glob("test_*/test_*.py")):
        yield from tests_in(path)


def tests_in(path: Path) -> Iterator[TestSource]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and (claims := asserted(node)):
            first = min(decorator.lineno for decorator in node.decorator_list)
            yield TestSource(path, node.name, claims, "\n".join(lines[first - 1 : node.end_lineno]))


def asserted(function: ast.FunctionDef) -> tuple[str, ...]:
    return tuple(
        argument.value
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "claim"
        for argument in decorator.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    )
