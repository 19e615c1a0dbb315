"""Tests read what the packages offer: no private attribute or name of ours, and few of the libraries'."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_LIBRARIES = {
    "_attn_implementation",  # transformers offers no other way to read which attention a model uses
    "_changing", "_indexing", "_spawning", "_watching", "_webhooks",  # what kopf was given, by its kind of handler
    "_exit",  # of os
    "_loglikelihood_tokens",  # lm-eval's name for what a model of its has to implement
}  # fmt: skip


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield the private attributes of anything but `self` and `cls`, and the private names imported or replaced."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if is_own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            names = [str(value.value) for value in node.args[1:2] if isinstance(value, ast.Constant)]
        else:
            continue
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def test_private_names_are_found_where_they_are_used() -> None:
    source = (
        "from dapt_operator.plan.decide import _hidden\n"
        "cluster._stored[key]\n"
        "self._own = module._helper()\n"
        "print(value.__dict__, value.public)\n"
        'monkeypatch.setattr(module, "_LIMIT", 3)\n'
    )
    assert sorted(private_names(ast.parse(source))) == ["_LIMIT", "_helper", "_hidden", "_stored"]


def test_no_test_reaches_behind_what_a_package_offers() -> None:
    files = [path for path in sorted((ROOT / "tests").rglob("*.py")) if "components" not in path.parts]
    assert len(files) > 200
    reached = {
        str(path.relative_to(ROOT)): names
        for path in files
        if (names := sorted(set(private_names(ast.parse(path.read_text()))) - OF_LIBRARIES))
    }
    assert reached == {}
