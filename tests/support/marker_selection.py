"""Decides, before a test module is imported, whether a marker expression (`-m`) can select any of its tests.

Importing torch and transformers takes longer than most tests: a run that wants none of the tests with toy models must
not import their modules to learn so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Set
from itertools import product
from pathlib import Path

_NAMED_MARKS = re.compile(r"\bmark\.(\w+)")
_WORDS_OF_EXPRESSIONS = {"and", "or", "not", "True", "False"}


def can_select(expression: str, path: Path, conftests: Iterable[Path] = ()) -> bool:
    """Whether some test of the module may match the expression.

    Args:
        expression: what `-m` was given, of marker names, `and`, `or`, `not` and parentheses.
        path: the test module.
        conftests: the conftest.py files that hold for it, which may add markers too.
    """
    certain = module_marks(path)
    possible = named_marks([path, *conftests])
    names = marks_of_expression(expression)
    uncertain = sorted(names & possible - certain)
    fixed = {name: name in certain for name in names}
    return any(
        eval(expression, {"__builtins__": {}}, fixed | dict(zip(uncertain, values, strict=True)))
        for values in product((False, True), repeat=len(uncertain))
    )


def marks_of_expression(expression: str) -> Set[str]:
    """Markers that a marker expression speaks of."""
    return set(re.findall(r"\w+", expression)) - _WORDS_OF_EXPRESSIONS


def module_marks(path: Path) -> Set[str]:
    """Markers that `pytestmark` gives to every test of a module."""
    text = path.read_text(encoding="utf-8")
    if "pytestmark" not in text:
        return set()
    return {
        mark
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
        and [ast.unparse(target) for target in statement.targets] == ["pytestmark"]
        for mark in _marks_in(statement.value)
    }


def _marks_in(value: ast.expr) -> Iterator[str]:
    """Yield the markers of an expression or of the elements of a list; what is computed is left out."""
    for element in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
        called = element.func if isinstance(element, ast.Call) else element
        if isinstance(called, ast.Attribute) and ast.unparse(called.value) == "pytest.mark":
            yield called.attr


def named_marks(paths: Iterable[Path]) -> Set[str]:
    """Every marker that the files speak of, in whatever way."""
    return {mark for path in paths for mark in _NAMED_MARKS.findall(path.read_text(encoding="utf-8"))}
