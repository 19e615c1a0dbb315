"""Removes paths of machines, claims and buckets from what is published: of each only the last name is left."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dapt_contract.stages.publish import CardFacts
from dapt_contract.untrusted.printable import printable

_LOCAL = r"(?:adaptation|file|gs|pvc|s3)://"
_URI = re.compile(rf"{_LOCAL}.*", re.DOTALL)
_PATH = re.compile(
    # A path begins with its scheme, or with a slash where a word may begin: not within a fraction or another address.
    rf"(?:{_LOCAL}|(?:^|(?<=[\s:=(\[<\"'`]))~?/)(?![\s/])"
    # Folders may have spaces within their names, but a sentence goes on behind a comma.
    r"(?:[^/\n,;:]*[^/\s,;:]/)*"
    r"(?P<name>[^\s/,;:()\[\]\"'`]*)"
)


def shown_source(source: str) -> str:
    """Return a source as the public sees it: of paths, claims and buckets only the last name."""
    return source.rstrip("/").rsplit("/", 1)[-1] if _URI.fullmatch(source) else source


def without_paths(text: str, folders: Iterable[str] = ()) -> str:
    """Return a text with only the last name of each path in it.

    Args:
        text: a sentence or a name.
        folders: paths that may stand in it, whatever characters they have.
    """
    for folder in folders:
        text = text.replace(f"{folder}/", "")
    return _PATH.sub(lambda path: path["name"], text)


def public_facts(facts: CardFacts) -> CardFacts:
    """Return the facts of a card without any path in any of their texts, each of which is one printable line."""
    sources = [facts.base_model, *facts.domain_sources, *facts.general_sources]
    sources += [source for data in facts.tuning_data for source in data.sources]
    folders = sorted({folder for source in sources for folder in _folders(source)}, key=len, reverse=True)
    return CardFacts.model_validate(_public(facts.model_dump(), folders))


def _folders(source: str) -> Iterable[str]:
    """Yield the folder of a local source and the folders that it lies in, but not the root."""
    if not source.startswith("file://"):
        return
    folder = source.removeprefix("file://").rpartition("/")[0]
    while folder.strip("/"):
        yield folder
        folder = folder.rpartition("/")[0]


def _public(value: object, folders: list[str]) -> object:
    if isinstance(value, str):
        value = printable(value)
        return shown_source(value) if _URI.fullmatch(value) else without_paths(value, folders)
    if isinstance(value, dict):
        return {name: _public(entry, folders) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_public(entry, folders) for entry in value]
    return value
