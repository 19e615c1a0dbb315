"""`python -m dapt_trainer.tokenization.grow_model grow FOLDER TARGET`: a model's matrices with rows for new tokens.

`... check FOLDER FIRST_ID` says whether they can grow, and writes nothing.

In a process of its own, because it needs torch (numpy knows no bfloat16), which prepare never imports. `TARGET` holds
the grown tokenizer and `extension.json` already. The model's class, built without weights, says which tensors belong to
the vocabulary; then the files of the weights that hold them are written anew, and all others linked. No other file is
ever in memory, and nothing is loaded, resized and saved by a library that may tie, cast or drop on the way.

Rows are found by token id. A matrix that is longer than the vocabulary (padded, for speed) has rows already where the
first new ids lie; those are overwritten, and it grows only by what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapt_contract.layout import EXTENDED_MODEL

EXTENSION = "extension.json"
"""In the grown model's folder: the first new id, and the constituents of each new token in order."""
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class GrowError(Exception):
    """This model's matrices cannot be grown; the message says why."""


@dataclass(frozen=True)
class Extension:
    """Which rows are new."""

    first_id: int
    constituents: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> range:
        """Of the new tokens."""
        return range(self.first_id, self.first_id + len(self.constituents))


def write_extension(folder: Path, extension: Extension) -> None:
    """Leave a note of what is new beside the model."""
    content = {
        "first_id": extension.first_id,
        "constituents": [list(ids) for ids in extension.constituents],
    }
    (folder / EXTENSION).write_text(json.dumps(content) + "\n")


def read_extension(folder: Path) -> Extension:
    """The note.

    Raises:
        FileNotFoundError: the folder's tokenizer has not grown.
    """
    content = json.loads((folder / EXTENSION).read_text())
    return Extension(int(content["first_id"]), tuple(tuple(ids) for ids in content["constituents"]))


def new_token_ids(work: Path) -> tuple[int, ...]:
    """Ids of the new tokens of an adaptation; none where its tokenizer did not grow."""
    try:
        return tuple(read_extension(work / EXTENDED_MODEL).ids)
    except FileNotFoundError:
        return ()


def grow_model(folder: Path, target: Path) -> None:
    """Write weights and configuration of the grown model into `target`, which names at least one new token.

    Raises:
        GrowError: a tensor of the vocabulary is missing, or is not one that can be grown.
    """
    extension = read_extension(target)
    config = json.loads((folder / "config.json").read_text())
    stored, files, old = _found(folder, extension.first_id)
    rows = max(old, extension.ids.stop)  # as many as before where the padding holds all new tokens
    for file in sorted(set(files.values())):
        wanted = {name for name in stored if files[name] == file}
        if wanted:
            _rewrite(folder / file, target / file, wanted, extension, rows)
        else:
            _link(folder / file, target / file)
    if (folder / _INDEX).is_file():
        _write_index(folder, target)
    config["vocab_size"] = rows
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def check_model(folder: Path, first_id: int) -> None:
    """Whether `grow_model` will find what it needs.

    Raises:
        GrowError: it will not.
    """
    _found(folder, first_id)


def _found(folder: Path, first_id: int) -> tuple[tuple[str, ...], dict[str, str], int]:
    """The stored tensors of the vocabulary, the input embedding first; the files of all tensors; rows of the embedding.

    Raises:
        GrowError: see `grow_model`; also when the embedding is shorter than the vocabulary.
    """
    from safetensors import safe_open

    files = _files(folder)
    stored = _stored_names(vocabulary_of(folder), folder, files)
    with safe_open(folder / files[stored[0]], "pt") as file:
        rows = int(file.get_slice(stored[0]).get_shape()[0])
    if rows < first_id:
        raise GrowError(f"its embedding has {rows} rows for {first_id} tokens")
    return stored, files, rows


@dataclass(frozen=True)
class Vocabulary:
    """The tensors with a row for each token, and what is known of all others."""

    required: tuple[str, ...]
    """Input embedding, then an untied head and the head's bias."""
    tied: tuple[str, ...]
    """A head that shares the embedding's tensor; some files hold it twice."""
    shapes: dict[str, tuple[int, ...]]
    """Of all tensors of the model."""


def vocabulary_of(folder: Path) -> Vocabulary:
    """What the model's class says, built without weights.

    Raises:
        GrowError: there is a tensor with a row for each token that is neither embedding nor head.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    modules = {id(module): name for name, module in model.named_modules()}
    entry, head = model.get_input_embeddings(), model.get_output_embeddings()
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    required = [f"{modules[id(entry)]}.weight"]
    tied: list[str] = []
    if head is not None:
        is_tied = bool(config.tie_word_embeddings) or head.weight is entry.weight
        (tied if is_tied else required).append(f"{modules[id(head)]}.weight")
        if getattr(head, "bias", None) is not None:
            required.append(f"{modules[id(head)]}.bias")
    rows = entry.weight.shape[0]
    for name, shape in shapes.items():
        if shape[:1] == (rows,) and name not in (*required, *tied) and _depends(config, name):
            raise GrowError(f"{type(model).__name__} has a further tensor with a row for each token ({name})")
    return Vocabulary(tuple(required), tuple(tied), shapes)


def _depends(config: Any, name: str) -> bool:
    """Whether the tensor's length follows the vocabulary: in a toy other sizes can be equal by chance."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    longer = copy.deepcopy(config)
    longer.vocab_size = config.vocab_size + 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(longer, trust_remote_code=False)
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers()])
    return bool(tensors[name].shape[0] == longer.vocab_size)


def _files(folder: Path) -> dict[str, str]:
    """File of each stored tensor."""
    from safetensors import safe_open

    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
    return found


def _stored_names(vocabulary: Vocabulary, folder: Path, files: dict[str, str]) -> tuple[str, ...]:
    """Under which names the files hold the tensors.

    The model's own name, that without the prefix of its core, or (transformers renames the heads of some
    architectures when it reads them) the one stored tensor of that shape that the model has no name for.

    Raises:
        GrowError: one that must be there is not.
    """
    from safetensors import safe_open

    prefixes = {name.partition(".")[0] for name in vocabulary.shapes}
    unknown = [
        name
        for name in files
        if name not in vocabulary.shapes
        and not any(f"{prefix}.{name}" in vocabulary.shapes for prefix in prefixes)
    ]
    stored: list[str] = []
    for name in (*vocabulary.required, *vocabulary.tied):
        own = [candidate for candidate in (name, name.partition(".")[2]) if candidate in files]
        if own:
            stored.append(own[0])
            continue
        if name in vocabulary.tied:
            continue
        alike = []
        for other in unknown:
            with safe_open(folder / files[other], "pt") as file:
                if tuple(file.get_slice(other).get_shape()) == vocabulary.shapes[name]:
                    alike.append(other)
        if len(alike) != 1:
            raise GrowError(f"its weights have no tensor {name}")
        stored.append(alike[0])
    return tuple(stored)


def _rewrite(origin: Path, target: Path, wanted: set[str], extension: Extension, rows: int) -> None:
    """Write one file of the weights anew, with the wanted tensors grown."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(origin, "pt") as file:
        metadata = file.metadata() or {"format": "pt"}
        tensors = {
            name: grown(file.get_tensor(name), extension, rows) if name in wanted else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 (not a mapping)
        }
    save_file(tensors, target, metadata=metadata)


def grown(old: Any, extension: Extension, rows: int) -> Any:
    """A matrix or bias [rows, ...] of the same type: the old rows, and the constituents' means at the new ids.

    Args:
        old: [old rows, ...]; all means are read from it.
        extension: which ids are new.
        rows: of the result.
    """
    import torch

    from dapt_trainer.tokenization.new_rows import constituent_mean_rows

    matrix = torch.empty((rows, *old.shape[1:]), dtype=old.dtype)
    matrix[: old.shape[0]] = old
    matrix[torch.tensor(list(extension.ids))] = constituent_mean_rows(old, extension.constituents)
    return matrix


def _write_index(folder: Path, target: Path) -> None:
    """The index of several files: the same names, the new total."""
    index = json.loads((folder / _INDEX).read_text())
    if "total_size" in index.get("metadata", {}):
        change = sum(
            (target / name).stat().st_size - (folder / name).stat().st_size
            for name in set(index["weight_map"].values())
        )
        index["metadata"]["total_size"] += change
    (target / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _link(origin: Path, target: Path) -> None:
    try:
        os.link(origin, target)
    except OSError:
        shutil.copyfile(origin, target)


def main(arguments: list[str]) -> None:
    """Do as the arguments say."""
    what, folder, argument = arguments
    warnings.simplefilter("ignore")
    try:
        if what == "check":
            check_model(Path(folder), int(argument))
        else:
            grow_model(Path(folder), Path(argument))
    except GrowError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
