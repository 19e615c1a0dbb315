"""Files are split at line feeds alone: people's texts hold other characters that `splitlines` takes for line breaks."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNEL_FILES = {"linux.py"}
"""Modules that read files of the kernel, which hold no text of people."""
MODULES = sorted(
    path
    for package in ("operator/src", "trainer-image/src")
    for path in (ROOT / package).rglob("*.py")
    if path.name not in KERNEL_FILES
)


def split_lines_of_files(tree: ast.AST) -> list[int]:
    """Line numbers of `splitlines` on what a file held; of a message it is harmless."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("splitlines", "readlines")
    ]
    return [
        call.lineno
        for call in calls
        if any(
            isinstance(part, ast.Attribute) and part.attr in ("read_text", "read_bytes", "read", "readlines")
            for part in ast.walk(call)
        )
    ]


def test_no_module_splits_a_file_by_unicodes_line_breaks() -> None:
    bad = {
        str(module.relative_to(ROOT)): lines
        for module in MODULES
        if (lines := split_lines_of_files(ast.parse(module.read_text(encoding="utf-8"))))
    }
    assert bad == {}


def test_the_search_finds_what_it_is_for() -> None:
    source = "a = path.read_text(encoding='utf-8').splitlines()\nb = str(error).splitlines()\nc = file.readlines()\n"
    assert split_lines_of_files(ast.parse(source)) == [1, 3]
