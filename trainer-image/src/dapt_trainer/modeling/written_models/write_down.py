"""Writes the model of a recipe down as an ordinary model folder: safetensors shards in, shards out, in one pass.

All arithmetic is in fp32 on the CPU: bf16 has 8 bits of mantissa, and the change by a LoRA or by a fraction of a short
run is often smaller than the last one. Each weight is rounded once, at the end, to the format in which the base model
stores it. Memory holds three fp32 copies of the weight at hand and nothing else; the ranks share the files of the
result among them. Where adapters change the experts of a mixture, which files store one by one, only the model's class
can write them: rank 0 then holds the model once.

Means and interpolations are taken over parameters (Wortsman et al. 2022, "Model soups" and "Robust fine-tuning of
zero-shot models", WiSE-FT). Buffers and everything that is not floating point stay the first model's; tied weights are
one parameter and stay tied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError

from dapt_contract.base import JsonObject
from dapt_contract.envelope import fsync_folder
from dapt_contract.inputs.json_files import read_json_object
from dapt_contract.sentences import shortened
from dapt_contract.stages.common import Member, ModelReference
from dapt_contract.untrusted.folders import copy_folder, paths_below, remove_folder
from dapt_trainer.digests import SIDE_FILES, digest_of_weights, is_loaded, sha256_of_file
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InfrastructureError, InputError
from dapt_trainer.modeling.save_weights import SHARD_BYTES
from dapt_trainer.modeling.stored_models.stored_types import StoredTypes, read_stored_types
from dapt_trainer.modeling.stored_models.weight_files import INDEX, SINGLE_FILE
from dapt_trainer.modeling.written_models.adapters import StoredAdapter, open_adapter
from dapt_trainer.modeling.written_models.shard_files import PlannedTensor, into_shards, write_shard
from dapt_trainer.modeling.written_models.tensor_folders import (
    LoadedFolder,
    TensorFolder,
    TensorSource,
    require_combinable,
    types_of,
    weight_names,
)

PARTIAL: Final = ".partial"
"""Suffix of a folder that is not complete."""
_CONFIG: Final = "config.json"
_TEMPLATES: Final = "additional_chat_templates"
_DTYPE_FIELDS: Final = ("dtype", "torch_dtype")
_DIGESTS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])
_WRITTEN: TypeAdapter[tuple[dict[str, str], str]] = TypeAdapter(tuple[dict[str, str], str])
_ONE_RANK: Final = Ranks(0, 0, 1, torch.device("cpu"))


class _OverflowedError(Exception):
    """A weight is larger than fp16 can hold."""


@dataclass(frozen=True)
class WrittenModel:
    """Names a model that was written down."""

    reference: ModelReference
    """Plain."""
    weights_digest: str
    """`digests.weights_digest` of the folder, computed while it was written."""


@dataclass(frozen=True)
class WrittenWeights:
    """Describes files of weights that were written."""

    sha256_by_name: Mapping[str, str]
    dtype: torch.dtype
    """Of most weights: bf16 instead of fp16 where training has made some that fp16 cannot hold."""


def write_down(
    work: Path,
    reference: ModelReference,
    folder: Path,
    *,
    heartbeat: Callable[[], None],
    ranks: Ranks = _ONE_RANK,
    shard_bytes: int = SHARD_BYTES,
) -> WrittenModel:
    """Write the model of a recipe into a folder; all ranks call it, and the folder is complete when it returns.

    The folder appears by a rename, when everything in it is on disk.

    Args:
        work: root of the work volume.
        reference: the recipe.
        folder: to write, below `work`; what lies there is replaced.
        heartbeat: called at least once for each block that is written.
        ranks: that share the writing.
        shard_bytes: size of a file.

    Raises:
        InputError: a part is missing or must not be loaded, or the parts are not of one architecture.
        InfrastructureError: the volume is full or gone.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    try:
        if ranks.is_first:
            remove_folder(partial)
            remove_folder(folder)
            partial.mkdir(parents=True)
        ranks.barrier()
        written = write_weights(
            work, reference, partial, heartbeat=heartbeat, ranks=ranks, shard_bytes=shard_bytes
        )
        digest = ranks.from_first(
            lambda: _complete(work / reference.weights, partial, folder, written), TypeAdapter(str)
        )
    except (OSError, SafetensorError) as error:
        if ranks.is_first:
            remove_folder(partial)
        raise InfrastructureError(
            f"{folder}: the model could not be written: {shortened(' '.join(str(error).split()), 200)}; enlarge the "
            "volume, and the next run writes it again"
        ) from error
    plain = ModelReference(weights=folder.relative_to(work).as_posix(), origin=reference.origin)
    return WrittenModel(plain, digest)


def write_weights(
    work: Path,
    reference: ModelReference,
    folder: Path,
    *,
    heartbeat: Callable[[], None],
    ranks: Ranks = _ONE_RANK,
    shard_bytes: int = SHARD_BYTES,
) -> WrittenWeights:
    """Write the files of weights alone, and their index; arguments and errors as of `write_down`."""
    recipe = _Recipe(work, reference)
    stored = read_stored_types(work / reference.origin)
    if recipe.needs_its_class:
        return _written_by_class(recipe, stored, folder, heartbeat, ranks, shard_bytes)
    main = stored.main
    while True:
        types = {name: main if dtype == stored.main else dtype for name, dtype in recipe.origin_types.items()}
        shards = into_shards(recipe.plan(types, main), shard_bytes)
        files = _file_names(len(shards))
        own: dict[str, str] = {}
        overflowed = 0.0
        try:
            for file, shard in list(zip(files, shards, strict=True))[ranks.rank :: ranks.world_size]:
                own[file] = write_shard(folder / file, shard, recipe.value, heartbeat)
        except _OverflowedError:
            overflowed = 1.0
        # All ranks decide alike: of a model in one format no file may be in another.
        if not ranks.maximum(overflowed):
            break
        main = torch.bfloat16
    digests = {file: digest for part in ranks.gather(own, _DIGESTS) for file, digest in part.items()}
    if ranks.is_first and len(files) > 1:
        _write_index(folder, files, shards)
    return WrittenWeights(digests, main)


class _Recipe:
    """Opens the parts of a recipe and computes one weight of its model at a time."""

    def __init__(self, work: Path, reference: ModelReference) -> None:
        self._share = reference.interpolation
        parts = (
            Member(weights=reference.weights, adapters=reference.adapters),
            *reference.averaged_with,
        )
        names = dict.fromkeys((*(part.weights for part in parts), reference.origin))
        # Each folder once, however often the recipe names it.
        sources: dict[str, TensorSource] = {name: TensorFolder(work, name) for name in names}
        self.origin_types = types_of(sources[reference.origin], read_stored_types(work / reference.origin))
        self.needs_its_class = not self._can_read(work, reference, parts, sources)
        """Whether weights that are combined or changed are not those of the files: adapters of a mixture's experts."""
        if self.needs_its_class:
            sources = {name: LoadedFolder(work, name) for name in names}
        self.first = sources[reference.weights]
        self._origin = sources[reference.origin]
        skeleton = self.first.skeleton
        self._members = [
            (sources[part.weights], [open_adapter(work / adapter, skeleton) for adapter in part.adapters])
            for part in parts
        ]
        self._tuned = [open_adapter(work / adapter, skeleton) for adapter in reference.tuned]
        compared = [source for source, _ in self._members[1:]]
        if self._share != 1.0:
            compared.append(self._origin)
        require_combinable(self.first, compared)
        self._require_complete()
        self._name_of = {tensor.stored_name: name for name, tensor in self.first.tensors.items()}

    def _can_read(
        self,
        work: Path,
        reference: ModelReference,
        parts: Iterable[Member],
        sources: Mapping[str, TensorSource],
    ) -> bool:
        """Return whether the files name every weight alike that the recipe combines or changes."""
        first = sources[reference.weights]
        if all(name in weight_names(first) for name, _ in first.skeleton.named_parameters()):
            return True
        adapters = {*(adapter for part in parts for adapter in part.adapters), *reference.tuned}
        changed = {
            name for adapter in adapters for name in open_adapter(work / adapter, first.skeleton).changes
        }
        combined = [sources[part.weights] for part in parts]
        if self._share != 1.0:
            combined.append(sources[reference.origin])
        return changed <= weight_names(first) and all(
            weight_names(source) == weight_names(first) for source in combined
        )

    def _require_complete(self) -> None:
        """Refuse weights of which a part is missing, unless the class makes parameters of several stored tensors."""
        expected = {
            name for name, value in self.first.skeleton.named_parameters() if value.is_floating_point()
        }
        missing = sorted(expected - weight_names(self.first))
        if missing and weight_names(self.first) <= expected:
            raise InputError(
                f"{self.first.name}: its tensors are not those of {type(self.first.skeleton).__name__}: "
                f"{len(missing)} missing ({missing[0]}); correct config.json, or use a complete checkpoint"
            )

    def plan(self, types: Mapping[str, torch.dtype], main: torch.dtype) -> list[PlannedTensor]:
        """Return the tensors to write, by their names in the first member's files and in their order."""
        return [
            PlannedTensor(
                tensor.stored_name, tensor.shape, types.get(name, main) if tensor.is_weight else tensor.dtype
            )
            for name, tensor in self.first.tensors.items()
        ]

    def value(self, planned: PlannedTensor) -> torch.Tensor:
        """Return one tensor of the result, rounded to its format.

        Raises:
            _OverflowedError: it does not fit fp16.
        """
        name = self._name_of[planned.name]
        if not self.first.tensors[name].is_weight:
            return self.first.stored(name)
        weight = self.weight(name)
        if planned.dtype == torch.float16 and not bool(
            (weight.abs() <= torch.finfo(torch.float16).max).all()
        ):
            raise _OverflowedError
        return weight.to(planned.dtype)

    def weight(self, name: str) -> torch.Tensor:
        """Return one weight of the result, in fp32."""
        (source, adapters), *others = self._members
        weight = _merged(source.weight(name), name, adapters)
        for other, other_adapters in others:
            weight.add_(_merged(other.weight(name), name, other_adapters))
        if others:
            weight.div_(len(self._members))
        if self._share != 1.0:
            origin = self._origin.weight(name)
            # In this form a weight that training left alone keeps its exact value; (1 - a) origin + a model would round
            # it.
            weight.sub_(origin).mul_(self._share).add_(origin)
        return _merged(weight, name, self._tuned)


def _written_by_class(
    recipe: _Recipe,
    stored: StoredTypes,
    folder: Path,
    heartbeat: Callable[[], None],
    ranks: Ranks,
    shard_bytes: int,
) -> WrittenWeights:
    """Compute the weights in the loaded model, and let its class write them as it stores them; rank 0 alone.

    It holds the model once, in the base model's format.
    """

    def write() -> tuple[dict[str, str], str]:
        model = recipe.first.skeleton
        main = stored.main
        limit = torch.finfo(torch.float16).max
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            # In place: of this weight no other needs the old value.
            parameter.data = recipe.weight(name)
            if stored.main != torch.float16:
                parameter.data = parameter.data.to(recipe.origin_types.get(name, main))
            elif not bool((parameter.data.abs() <= limit).all()):
                main = torch.bfloat16
            heartbeat()
        if stored.main == torch.float16:
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(main)
        model.save_pretrained(folder, max_shard_size=shard_bytes)
        for path in folder.iterdir():
            if path.suffix != ".safetensors" and path.name != INDEX:
                path.unlink()
        digests = {
            path.name: sha256_of_file(path, heartbeat) for path in sorted(folder.glob("*.safetensors"))
        }
        return digests, str(main).removeprefix("torch.")

    digests, main = ranks.from_first(write, _WRITTEN)
    return WrittenWeights(digests, getattr(torch, main))


def _merged(weight: torch.Tensor, name: str, adapters: Iterable[StoredAdapter]) -> torch.Tensor:
    for adapter in adapters:
        weight = adapter.merge_into(name, weight)
    return weight


def _file_names(count: int) -> list[str]:
    """Return the names that `from_pretrained` looks for."""
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(folder: Path, files: list[str], shards: list[list[PlannedTensor]]) -> None:
    file_of = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
    total_bytes = sum(tensor.num_bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _complete(source: Path, partial: Path, folder: Path, written: WrittenWeights) -> str:
    """Add configuration, tokenizer and templates of the first member, rename, and return the folder's digest."""
    for name in SIDE_FILES:
        if name not in (INDEX, _CONFIG) and (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    if (source / _TEMPLATES).is_dir():
        copy_folder(source / _TEMPLATES, partial / _TEMPLATES)
    _write_config(source / _CONFIG, partial / _CONFIG, str(written.dtype).removeprefix("torch."))
    digests = dict(written.sha256_by_name)
    for path in [path for path in paths_below(partial) if path.is_file()]:
        name = path.relative_to(partial).as_posix()
        if is_loaded(name) and name not in digests:
            digests[name] = sha256_of_file(path)
    for path in reversed(paths_below(partial)):
        fsync_folder(path)  # opens files too: the weights are on disk already, this is for the small ones
    fsync_folder(partial)
    # After the content is on disk, or a power cut could leave a complete name on incomplete files.
    partial.rename(folder)
    fsync_folder(folder.parent)
    return digest_of_weights(digests)


def _write_config(source: Path, target: Path, dtype: str) -> None:
    """Copy the configuration; where it names another number format than the weights have, with the right one."""
    config: JsonObject = read_json_object(source)
    named = {name: dtype for name in _DTYPE_FIELDS if config.get(name) not in (None, dtype)}
    if not named:
        shutil.copyfile(source, target)
        return
    target.write_text(json.dumps(config | named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
