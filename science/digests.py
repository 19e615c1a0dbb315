"""Names of what a result depends on: code without its comments and docstrings, and settings."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

DIGITS = 12


def digest_of(*parts: Any) -> str:
    """Hexadecimal digits that name values: strings, numbers, and frozen dataclasses by their fields."""
    text = "\x00".join(_text(part) for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        part = {"kind": type(part).__name__, **dataclasses.asdict(part)}
    return json.dumps(part, sort_keys=True, default=repr)


@functools.cache
def code_digest(*modules: str) -> str:
    """Of the modules' syntax trees: comments, docstrings and layout may change, what is computed may not."""
    return digest_of(*(_tree(name) for name in modules))


def _tree(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return tree_of(Path(spec.origin).read_text())


def tree_of(source: str) -> str:
    """The syntax tree of a module as text, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [item for item in body if not _is_bare_string(item)]
            node.body = kept  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_bare_string(item: Any) -> bool:
    return (
        isinstance(item, ast.Expr)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    )
