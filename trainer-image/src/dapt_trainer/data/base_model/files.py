"""Lists the files of a model's folder that are taken, and reads its JSON files."""

from __future__ import annotations

import re
from pathlib import Path

from dapt_contract.base import JsonObject
from dapt_contract.inputs.json_files import MAX_JSON_BYTES, BadJsonError, read_json_object
from dapt_trainer.digests import SIDE_FILES
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.stored_models.weight_files import (
    INDEX,
    MAX_INDEX_BYTES,
    SINGLE_FILE,
    BadWeightsError,
    leading_out,
    weight_files,
)

__all__ = [
    "CARD",
    "EXTENSION",
    "FACTS",
    "FIELD",
    "INDEX",
    "MAX_VOCABULARY_BYTES",
    "files_to_take",
    "is_small_file",
    "read_json",
]

FIELD = "spec.model.source"
CARD = "README.md"
"""The base model's card, whose metadata names its licence."""
FACTS = "facts.json"
"""Written next to the model by prepare."""
EXTENSION = "extension.json"
"""In the folder of an extended model: the first new id, and the constituents of each new token in order."""
_SMALL_FILES = (*SIDE_FILES, CARD)
_LEGAL = re.compile(
    r"(\w+[_-])?(licen[cs]es?|copying|notices?|us(e|age)[_-]?policy|terms[_-]of[_-]use)([._ -][\w. -]*)?",
    re.IGNORECASE,
)
"""Names of files with the terms of a model, which whoever passes the model on must pass on too."""
_FURTHER_TEMPLATES = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
MAX_VOCABULARY_BYTES = 256 * 1024 * 1024
"""Longest file that a tokenizer is read from; published ones have up to 35 MiB."""
_MAX_TEMPLATE_BYTES = 1024 * 1024
_VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip


def is_small_file(name: str) -> bool:
    """Return whether a file of a model's folder, by its path there, is taken besides the weights."""
    return name in _SMALL_FILES or bool(_LEGAL.fullmatch(name) or _FURTHER_TEMPLATES.fullmatch(name))


def files_to_take(origin: Path, source: str) -> list[str]:
    """Return the files to take: of several sets of weights the one that transformers would load.

    Args:
        origin: the model's folder.
        source: URI of the model, for messages.

    Raises:
        InputError: the index of the weights is damaged, names a file that is not there, or leaves files out.
    """
    paths = sorted(path.relative_to(origin).as_posix() for path in origin.glob("*") if path.is_file())
    templates = sorted(path.relative_to(origin).as_posix() for path in origin.glob("*/*.jinja"))
    small = [name for name in (*paths, *templates) if is_small_file(name)]
    try:
        weights = weight_files(origin)
    except BadWeightsError as error:
        raise InputError(f"{FIELD}: {source}: {error}") from error
    names = [name for name in small if name != INDEX or SINGLE_FILE not in weights]
    _check_content(origin, [*names, *weights], source)
    return [*names, *weights]


def _check_content(origin: Path, names: list[str], source: str) -> None:
    """Refuse files that are too long for what they are, and links that lead out of the model's folder.

    What a link leads to would be published with the model.
    """
    problems = []
    for name in names:
        limit, size = _max_bytes(name), (origin / name).stat().st_size
        if limit is not None and size > limit:
            problems.append(f"{name} has {size:,} bytes, and at most {limit >> 20} MiB are read; shorten it")
    if found := leading_out(origin, names):
        problems.append(
            f"{found[0]} leads to {found[1]}, outside of the model's folder; copy the file into the folder"
        )
    if problems:
        raise InputError(*(f"{FIELD}: {source}: {problem}" for problem in problems))


def _max_bytes(name: str) -> int | None:
    """Return the size from which a file is refused; None for weights, which are never read as a whole."""
    if name.endswith(".safetensors"):
        return None
    if name == INDEX:
        return MAX_INDEX_BYTES
    if name.endswith(".jinja"):
        return _MAX_TEMPLATE_BYTES
    return MAX_VOCABULARY_BYTES if name in _VOCABULARIES else MAX_JSON_BYTES


def read_json(path: Path, source: str) -> JsonObject:
    """Read a JSON object from the model's folder; return an empty one when there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}
    except BadJsonError as error:
        raise InputError(
            f"{FIELD}: {source}: {path.name} is not readable JSON ({error}); download the model again"
        ) from error
