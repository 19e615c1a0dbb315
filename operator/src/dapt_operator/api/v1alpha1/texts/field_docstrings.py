"""Reads the docstrings under the fields of a block, which are the descriptions in its schema.

Sources are read and parsed here, when a schema is generated. pydantic's `use_attribute_docstrings` does it when a class
is defined: that took a third of the CPU time of every command, none of which shows a description.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise


def field_docstrings(block: type) -> dict[str, str]:
    """Return the docstring under each field by the field's name, inherited ones included."""
    texts: dict[str, str] = {}
    for ancestor in reversed(block.__mro__):
        texts |= _class_docstrings(ancestor.__module__).get(ancestor.__qualname__, {})
    return texts


@cache
def _class_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings under the fields of every class of a module; none where it has no source, as in a shell."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return {}
    return dict(_docstrings_by_class(ast.parse(source), ""))


def _docstrings_by_class(node: ast.AST, prefix: str) -> list[tuple[str, dict[str, str]]]:
    """Return (qualified name, docstrings) of every class below a node."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            found.append((f"{prefix}{child.name}", _docstrings_below(child)))
            found += _docstrings_by_class(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            found += _docstrings_by_class(child, f"{prefix}{child.name}.<locals>.")
    return found


def _docstrings_below(node: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for statement, following in pairwise(node.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    texts[statement.target.id] = inspect.cleandoc(text)
    return texts
