"""Files, folders and modules that the pages for contributors and pyproject.toml name are there."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "docs/architecture.md"]
GENERATED = {".git", ".venv", ".cache", "build", "dist", "runs", "__pycache__"}
"""Folders that no checkout has, or that are no part of the project."""
SUFFIXES = ("py", "md", "toml", "yaml", "yml", "txt", "json", "html", "in", "mod")
HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
PLACEHOLDER = re.compile(r"(x|<[\w-]+>|NAME)(\.\w+)?")
"""The last part of a path to a file that the reader is to write."""


def walk() -> Iterator[str]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in GENERATED and not name.endswith("_cache")]
        for name in (*folders, *files):
            yield (Path(folder) / name).relative_to(ROOT).as_posix()


TREE = sorted(walk())
TOP = {path for path in TREE if "/" not in path}


def is_there(name: str) -> bool:
    """Tell whether the tree has a path that is, or ends in, what is named; `{a,b}` and `*` as a shell has them."""
    name = name.removeprefix("./").rstrip("/")
    alternatives = [part.split(",") for part in re.findall(r"\{([^}]*)\}", name)]
    template = re.sub(r"\{[^}]*\}", "{}", name)
    for chosen in itertools.product(*alternatives):
        pattern = template.format(*chosen)
        pattern = pattern.removesuffix("/**").removesuffix("/*")
        if not any(fnmatch(path, pattern) or fnmatch(path, f"*/{pattern}") for path in TREE):
            return False
    return True


def module_is_there(name: str) -> bool:
    """Tell whether a dotted name is a module of ours, or stands in one."""
    parts = name.split(".")
    return any(
        is_there("/".join(parts[:length]) + ending)
        for length in range(max(2, len(parts) - 1), len(parts) + 1)
        for ending in (".py", "/__init__.py")
    )


def looks_like_a_path(token: str) -> bool:
    first, _, rest = token.partition("/")
    if "://" in token or token.startswith(("/", "~", "-", "$")) or first in GENERATED:
        return False
    if not rest:
        return "/" in token or bool(re.fullmatch(r"[\w*-]+\.(py|toml|md)", token))
    return bool(re.fullmatch(r"\.?[\w.*{},<>-]+(/[\w.*{},<>-]+)*/?", token)) and not (
        HOST.fullmatch(first) and not first.endswith(SUFFIXES)
    )


def tokens(text: str) -> Iterator[str]:
    yield from (word.strip("()[]\"'`:;,!") for word in text.split())


def named_in_page(page: str) -> Iterator[str]:
    """Yield the paths and modules that a page names: in code, in drawings of the tree and in links."""
    text = (ROOT / page).read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for language, content in fences:
        if language:
            yield from commands(content)
        else:  # a drawing of the tree: names, then two spaces, then what they hold
            for line in content.splitlines():
                column = re.split(r"\s{2,}", re.sub(r"^[\s│├└─]*", "", line))[0]
                yield from filter(looks_like_a_path, tokens(column))
    for code in re.findall(r"`([^`\n]+)`", prose):
        words = list(tokens(code))
        yield from commands(code) if len(words) > 1 else filter(looks_like_a_path, words)
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        if "://" not in target:
            yield os.path.normpath(Path(page).parent / target)


def commands(text: str) -> Iterator[str]:
    """Yield the paths in commands and manifests: only those that begin with a folder of ours."""
    for token in tokens(text):
        if token.split("/")[0] in TOP and looks_like_a_path(token):
            yield token


def named_in_project() -> Iterator[str]:
    """Yield the paths that pyproject.toml names in values, keys and comments."""
    text = (ROOT / "pyproject.toml").read_text()
    comments = re.findall(r"#\s(.*)", text)
    for token in itertools.chain(*map(tokens, [*strings(tomllib.loads(text)), *comments])):
        token = token.rstrip(".")
        if looks_like_a_path(token) and not token.startswith("Apache"):
            yield token


def strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            yield from value
            yield from itertools.chain(*map(strings, value.values()))
        case list():
            yield from itertools.chain(*map(strings, value))


def missing(names: Iterator[str]) -> list[str]:
    """Return the names that stand for nothing; for a file that the reader is to write its folder counts."""
    unknown = []
    for name in dict.fromkeys(names):
        folder, _, last = name.rstrip("/").rpartition("/")
        if not is_there(folder if folder and PLACEHOLDER.fullmatch(last) else name):
            unknown.append(name)
    return unknown


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_what_is_there(page: str) -> None:
    assert missing(named_in_page(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_modules_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    modules = set(re.findall(r"\b(dapt_(?:contract|operator|trainer)(?:\.\w+)+)", text))
    assert sorted(name for name in modules if not module_is_there(name)) == []


def test_pyproject_names_only_what_is_there() -> None:
    names = list(named_in_project())
    assert "operator/src/dapt_contract/version.py" in names
    assert missing(iter(names)) == []


def test_what_is_not_there_is_found() -> None:
    assert missing(
        iter(["operator/src/nothing.py", "no_folder/x.py", "nothing.py", "docs/{index,none}.md"])
    ) == [
        "operator/src/nothing.py",
        "no_folder/x.py",
        "nothing.py",
        "docs/{index,none}.md",
    ]
    assert missing(iter(["stages/x.py", "docs/{index,training}.md", "tests/**", "examples/*.yaml"])) == []
    assert module_is_there("dapt_operator.plan")
    assert not module_is_there("dapt_operator.nothing.at_all")
