"""Lists the files of a model's folder that are taken, and reads its JSON files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dapt_contract.base import JsonObject
from dapt_trainer.data.input_problems import first_line
from dapt_trainer.digests import SIDE_FILES
from dapt_trainer.errors import InputError

FIELD = "spec.model.source"
INDEX = "model.safetensors.index.json"
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
    weights = [name for name in paths if name.endswith(".safetensors")]
    # transformers looks for the single file first, and reads an index only where there is none.
    if "model.safetensors" in weights:
        return [name for name in small if name != INDEX] + ["model.safetensors"]
    if INDEX in paths:
        return small + _indexed_weights(origin, weights, source)
    raise InputError(
        f"{FIELD}: {source}: neither model.safetensors nor {INDEX} is there, only {weights[0]}; transformers finds "
        "weights by these names: download the complete model, or rename the file"
    )


def _indexed_weights(origin: Path, weights: list[str], source: str) -> list[str]:
    """Return the files of weights that the index names."""
    weight_map = read_json(origin / INDEX, source).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{FIELD}: {source}: {INDEX} has no weight_map; download the model again")
    indexed = sorted({str(name) for name in weight_map.values()})
    if missing := [name for name in indexed if name not in weights]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{FIELD}: {source}: {missing[0]}{more} is missing, which {INDEX} names; download the model again"
        )
    return indexed


def read_json(path: Path, source: str) -> JsonObject:
    """Read a JSON object from the model's folder; return an empty one when there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{FIELD}: {source}: {path.name} is not readable JSON ({first_line(error)}); download the model again"
        ) from error
    return value if isinstance(value, dict) else {}
