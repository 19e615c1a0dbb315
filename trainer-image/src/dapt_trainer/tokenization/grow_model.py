"""Writes a model's matrices with rows for new tokens.

    python -m dapt_trainer.tokenization.grow_model grow FOLDER TARGET      writes the extended model
    python -m dapt_trainer.tokenization.grow_model check FOLDER FIRST_ID   fails when that is not possible

It runs in a process of its own, because it needs torch (numpy has no bfloat16), which prepare never imports. `TARGET`
holds the extended tokenizer and `extension.json` already. The model's class, built without weights, says which tensors
belong to the vocabulary; the files of weights that hold them are rewritten, and all others linked. One file at a time
is in memory, and no library loads, resizes and saves the model: it may tie, cast or drop tensors on the way.

Rows are found by token id. A matrix that is longer than the vocabulary (padded, for speed) has rows at the first new
ids already; those are overwritten, and the matrix grows only by the rows that it lacks.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_contract.layout import EXTENDED_MODEL
from dapt_trainer.data.base_model.files import EXTENSION, INDEX

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig


class GrowError(Exception):
    """Says why a model's matrices cannot be extended."""


@dataclass(frozen=True)
class Extension:
    """Says which rows are new, and from which old rows each starts."""

    first_id: int
    constituents: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> range:
        """Return the ids of the new tokens."""
        return range(self.first_id, self.first_id + len(self.constituents))


def write_extension(folder: Path, extension: Extension) -> None:
    """Write `extension.json` into the extended model's folder."""
    content = {
        "first_id": extension.first_id,
        "constituents": [list(ids) for ids in extension.constituents],
    }
    (folder / EXTENSION).write_text(json.dumps(content) + "\n")


def read_extension(folder: Path) -> Extension:
    """Read `extension.json`.

    Raises:
        FileNotFoundError: the folder's tokenizer is not extended.
    """
    content = json.loads((folder / EXTENSION).read_text())
    return Extension(int(content["first_id"]), tuple(tuple(ids) for ids in content["constituents"]))


def new_token_ids(work: Path) -> tuple[int, ...]:
    """Return the ids of the new tokens of an adaptation; none where its tokenizer is not extended."""
    try:
        return tuple(read_extension(work / EXTENDED_MODEL).ids)
    except FileNotFoundError:
        return ()


def grow_model(folder: Path, target: Path) -> None:
    """Write weights and configuration of the extended model into `target`, whose extension has at least one token.

    Raises:
        GrowError: a tensor of the vocabulary is missing, or cannot be extended.
    """
    extension = read_extension(target)
    config = json.loads((folder / "config.json").read_text())
    stored = _find_vocabulary(folder, extension.first_id)
    rows = max(stored.rows, extension.ids.stop)  # as many as before where the padding holds all new tokens
    for file in sorted(set(stored.files.values())):
        names = {name for name in stored.names if stored.files[name] == file}
        if names:
            _rewrite(folder / file, target / file, names, extension, rows)
        else:
            _link(folder / file, target / file)
    if (folder / INDEX).is_file():
        _write_index(folder, target)
    config["vocab_size"] = rows
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def check_model(folder: Path, first_id: int) -> None:
    """Check that `grow_model` will find what it needs.

    Raises:
        GrowError: it will not.
    """
    _find_vocabulary(folder, first_id)


@dataclass(frozen=True)
class _StoredVocabulary:
    """Locates the tensors of the vocabulary in the files of a model."""

    names: tuple[str, ...]
    """Names in the files, the input embedding first."""
    files: dict[str, str]
    """File of each tensor of the model."""
    rows: int
    """Rows of the input embedding."""


def _find_vocabulary(folder: Path, first_id: int) -> _StoredVocabulary:
    """Find the tensors of the vocabulary.

    Raises:
        GrowError: see `grow_model`; also when the embedding is shorter than the vocabulary.
    """
    from safetensors import safe_open

    files = _files(folder)
    names = _stored_names(vocabulary_of(folder), folder, files)
    with safe_open(folder / files[names[0]], "pt") as file:
        rows = int(file.get_slice(names[0]).get_shape()[0])
    if rows < first_id:
        raise GrowError(f"its embedding has {rows} rows for {first_id} tokens")
    return _StoredVocabulary(names, files, rows)


@dataclass(frozen=True)
class Vocabulary:
    """Names the tensors with a row for each token, as the model's class has them."""

    required: tuple[str, ...]
    """Input embedding, then an untied head and the head's bias."""
    tied: tuple[str, ...]
    """A head that shares the embedding's tensor; some files hold it twice."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of all tensors of the model."""


def vocabulary_of(folder: Path) -> Vocabulary:
    """Build the model's class without weights and return its vocabulary.

    Raises:
        GrowError: there is a tensor with a row for each token that is neither embedding nor head.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation=None)
    modules = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    required = [f"{modules[id(embedding)]}.weight"]
    tied: list[str] = []
    if head is not None:
        is_tied = bool(config.tie_word_embeddings) or head.weight is embedding.weight
        (tied if is_tied else required).append(f"{modules[id(head)]}.weight")
        if getattr(head, "bias", None) is not None:
            required.append(f"{modules[id(head)]}.bias")
    rows = embedding.weight.shape[0]
    # A tensor that has a row for each token and is not extended would leave the new tokens without theirs.
    for name, shape in shapes.items():
        if shape[:1] == (rows,) and name not in (*required, *tied) and _follows_vocabulary(config, name):
            raise GrowError(f"{type(model).__name__} has a further tensor with a row for each token ({name})")
    return Vocabulary(tuple(required), tuple(tied), shapes)


def _follows_vocabulary(config: PretrainedConfig, name: str) -> bool:
    """Return whether the tensor's length depends on the vocabulary: in a toy other sizes can be equal by chance."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    longer = copy.deepcopy(config)
    longer.vocab_size = config.vocab_size + 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(longer, trust_remote_code=False, attn_implementation=None)
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers()])
    return bool(tensors[name].shape[0] == longer.vocab_size)


def _files(folder: Path) -> dict[str, str]:
    """Return the file of each stored tensor."""
    from safetensors import safe_open

    files: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files |= dict.fromkeys(file.keys(), path.name)
    return files


def _stored_names(vocabulary: Vocabulary, folder: Path, files: dict[str, str]) -> tuple[str, ...]:
    """Return the names under which the files hold the tensors of the vocabulary.

    A name is the model's own, that without the prefix of its core, or (transformers renames the heads of some
    architectures when it reads them) that of the one stored tensor of the same shape that the model has no name for.

    Raises:
        GrowError: a required tensor is missing.
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
        spellings = [spelling for spelling in (name, name.partition(".")[2]) if spelling in files]
        if spellings:
            stored.append(spellings[0])
            continue
        if name in vocabulary.tied:
            continue
        same_shape = []
        for other in unknown:
            with safe_open(folder / files[other], "pt") as file:
                if tuple(file.get_slice(other).get_shape()) == vocabulary.shapes[name]:
                    same_shape.append(other)
        if len(same_shape) != 1:
            raise GrowError(f"its weights have no tensor {name}")
        stored.append(same_shape[0])
    return tuple(stored)


def _rewrite(origin: Path, target: Path, names: set[str], extension: Extension, rows: int) -> None:
    """Write a copy of one file of weights in which the named tensors are extended."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(origin, "pt") as file:
        metadata = file.metadata() or {"format": "pt"}
        tensors = {
            name: grown(file.get_tensor(name), extension, rows) if name in names else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 (not a mapping)
        }
    save_file(tensors, target, metadata=metadata)


def grown(old: Tensor, extension: Extension, rows: int) -> Tensor:
    """Return a matrix or bias [rows, ...] of the same type: the old rows, and the constituents' means at the new ids.

    Args:
        old: [old rows, ...]; all means are read from it.
        extension: which ids are new.
        rows: of the result.
    """
    import torch

    from dapt_trainer.tokenization.new_rows import constituent_mean_rows

    # The type of the old rows, so that these are copied bit by bit.
    matrix = torch.empty((rows, *old.shape[1:]), dtype=old.dtype)
    matrix[: old.shape[0]] = old
    matrix[torch.tensor(list(extension.ids))] = constituent_mean_rows(old, extension.constituents)
    return matrix


def _write_index(folder: Path, target: Path) -> None:
    """Write the index of several files: the same names, the new total size."""
    index = json.loads((folder / INDEX).read_text())
    if "total_size" in index.get("metadata", {}):
        change = sum(
            (target / name).stat().st_size - (folder / name).stat().st_size
            for name in set(index["weight_map"].values())
        )
        index["metadata"]["total_size"] += change
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _link(origin: Path, target: Path) -> None:
    try:
        # Some volumes have no hard links.
        os.link(origin, target)
    except OSError:
        shutil.copyfile(origin, target)


def main(arguments: list[str]) -> None:
    """Check or extend a model, as the arguments say."""
    action, folder, argument = arguments
    # The caller shows the last line of standard error as the reason of a failure.
    warnings.simplefilter("ignore")
    try:
        if action == "check":
            check_model(Path(folder), int(argument))
        else:
            grow_model(Path(folder), Path(argument))
    except GrowError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
