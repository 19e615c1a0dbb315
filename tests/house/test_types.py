"""Keeps the trainer's values typed: `Any` only where a library gives it."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / "trainer-image" / "src" / "dapt_trainer"
MAX_ANY_IN_TRAINER = 8
"""Annotations and type aliases of the trainer that name `Any`. Lower it when one goes; to raise it needs a reason."""


def any_uses(source: str) -> int:
    """Return how often a module names `Any` outside its imports."""
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(ast.parse(source)))


def test_any_is_counted_in_annotations_and_aliases() -> None:
    assert any_uses("from typing import Any\nRow = dict[str, Any]\ndef f(a: Any, *b: int) -> Any: ...\n") == 3


def test_the_trainer_names_any_only_where_a_library_gives_it() -> None:
    by_package: Counter[str] = Counter()
    for path in TRAINER.rglob("*.py"):
        folder = path.relative_to(TRAINER).parts[0]
        by_package[folder] += any_uses(path.read_text())
    assert by_package.total() <= MAX_ANY_IN_TRAINER, dict(by_package)
