"""Text that ships with the interpreter: the standard library's code, its docstrings, and another package's code.

General: the code with the docstrings taken out. Strong shift: the docstrings and the pydoc topics, English prose about
the same things. Weak shift: the code, without docstrings, of pip and what it carries: the language of the general
side, other subjects and other hands. Nothing is downloaded; what the corpus is made of is named by its digest.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

WEAK_PACKAGE = "pip"
WEAK_CHARACTERS = 3_000_000
"""Enough for every run on the weak shift to read no text twice; more would only cost time."""
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "turtledemo", "encodings", "pydoc_data"}
"""Tests are missing from slim images; encodings and pydoc_data are tables."""
_PART_CHARACTERS = 1500
SHORTEST_CHARACTERS = 40


def general() -> list[str]:
    """The standard library's code without docstrings, in parts of some thousand characters."""
    return [part for code, _ in _modules(_standard_library()) for part in parts(code)]


def strong() -> list[str]:
    """Its docstrings, and what `help()` says of the language."""
    from pydoc_data.topics import topics

    said = [text for _, docstrings in _modules(_standard_library()) for text in docstrings]
    said += [part for _, topic in sorted(topics.items()) for part in parts(topic)]
    return [text for text in said if len(text) >= SHORTEST_CHARACTERS]


def weak() -> list[str]:
    """Code of the other package without docstrings, in parts taken evenly from all of it."""
    spec = importlib.util.find_spec(WEAK_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    found = [part for code, _ in _modules(Path(spec.origin).parent) for part in parts(code)]
    every = max(1, sum(map(len, found)) // WEAK_CHARACTERS)
    return found[::every]


def weak_version() -> str:
    """Name and version of the package of the weak shift."""
    return f"{WEAK_PACKAGE} {importlib.metadata.version(WEAK_PACKAGE)}"


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(code without docstrings, docstrings) of each module below a folder, in the order of their names."""
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            try:
                yield split(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError, ValueError):
                continue  # samples of broken code


def split(source: str) -> tuple[str, list[str]]:
    """A module's code without its docstrings, and the docstrings.

    Raises:
        SyntaxError: it is no module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes
        tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                docstrings.append(text)
                first = node.body[0]
                assert first.end_lineno is not None
                for number in range(first.lineno - 1, first.end_lineno):
                    lines[number] = ""
    return "".join(lines), docstrings


def parts(text: str) -> Iterator[str]:
    """The text cut at blank lines, so that no part is much longer than wanted and many can be held out."""
    part: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if size >= _PART_CHARACTERS and line.isspace():
            yield "".join(part).strip("\n")
            part, size = [], 0
        part.append(line)
        size += len(line)
    rest = "".join(part).strip("\n")
    if len(rest) >= SHORTEST_CHARACTERS:
        yield rest
