"""Names the files of weights that a model folder has, and finds links that lead out of it.

A folder comes from anybody: the names in its index are only text until each is the plain name of a file that lies in
the folder and holds safetensors. So what is opened is always what `digests.weights_digest` covers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dapt_contract.inputs.content_stores import content_stores
from dapt_contract.inputs.json_files import BadJsonError, read_json_object

SINGLE_FILE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
"""Longest index that is read; one of a thousand billion parameters in experts has 15 MiB."""
_SUFFIX = ".safetensors"
_MAX_SHOWN = 80


class BadWeightsError(ValueError):
    """Says in a clause why the weights of a folder cannot be used."""


def weight_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that transformers loads from a folder, sorted.

    Raises:
        BadWeightsError: there are none, or the index names something else than files of the folder.
    """
    # transformers looks for the single file first, and reads an index only where there is none.
    if (folder / SINGLE_FILE).is_file():
        return (SINGLE_FILE,)
    present = sorted(path.name for path in folder.glob(f"*{_SUFFIX}") if path.is_file())
    if (folder / INDEX).is_file():
        return tuple(sorted(set(weight_map(folder).values())))
    first = f", only {present[0]}" if present else ""
    raise BadWeightsError(
        f"neither {SINGLE_FILE} nor {INDEX} is there{first}; transformers finds weights by these names: download the "
        "complete model, or rename the file"
    )


def weight_map(folder: Path) -> dict[str, str]:
    """Return the file of each tensor by the index of a folder.

    Raises:
        BadWeightsError: the index is damaged, or names something else than files of the folder.
    """
    try:
        entries = read_json_object(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
    except (FileNotFoundError, BadJsonError) as error:
        raise BadWeightsError(f"{INDEX} is not readable JSON ({error}); download the model again") from error
    if not isinstance(entries, dict) or not entries:
        raise BadWeightsError(f"{INDEX} has no weight_map; download the model again")
    files: dict[str, str] = {}
    for tensor, name in entries.items():
        if not isinstance(name, str) or not _is_plain(name):
            raise BadWeightsError(
                f"{INDEX} names {_quoted(name)}, which is not the plain name of a {_SUFFIX} file in the folder; "
                "download the model again"
            )
        files[tensor] = name
    missing = sorted(name for name in set(files.values()) if not (folder / name).is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadWeightsError(f"{missing[0]}{more} is missing, which {INDEX} names; download the model again")
    return files


def leading_out(folder: Path, names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first of these files of a folder that a link takes out of it, with where it leads; None for none.

    A link into a store of contents to which the folder belongs is none: the hub's cache, git-annex, DVC.
    """
    real_folder = Path(os.path.realpath(folder))
    homes = [real_folder, *map(Path, content_stores(str(real_folder)))]
    for name in names:
        real = Path(os.path.realpath(folder / name))
        if not any(real.is_relative_to(home) for home in homes):
            return name, str(real)
    return None


def _is_plain(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".") and not set(name) & set("/\\\0")


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
