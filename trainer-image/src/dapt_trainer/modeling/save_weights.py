"""Saves the weights of a checkpoint or result as safetensors: an adapter, or a whole model with its tokenizer.

All ranks write. The list of tensors is cut into files by size alone, so that the files are the same for any number of
ranks, and each file belongs to one rank: that rank copies or gathers its tensors, one at a time, and no other rank
keeps them.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter
from transformers.core_model_loading import revert_weight_conversion

from dapt_contract.checkpoint import FileEntry
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.loading.sharding import gathered, is_sharded
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.staged_files import StagedFiles, host_copy

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SHARD_BYTES = 4 * 2**30
"""Largest safetensors file of a published model."""
FILE_BYTES = 2**30
"""Size of one safetensors file of a checkpoint: small enough that many ranks share the files of a large model."""
_LAYER = re.compile(r"(?:^|\.)\d+\.")
_NAMES: TypeAdapter[dict[int, list[str]]] = TypeAdapter(dict[int, list[str]])
_ONE_PROCESS = Ranks(0, 0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class _Part:
    """Holds the parameters of one file by name."""

    tensors: dict[str, torch.Tensor]
    size_bytes: int


def save_weights(
    model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, folder: Path
) -> tuple[FileEntry, ...]:
    """Write what `stage_weights` stages from a single process, and return the files.

    Raises:
        OSError: the disk is full.
    """
    with tempfile.TemporaryDirectory() as scratch:
        staged = StagedFiles(Path(scratch))
        stage_weights(model, tokenizer, staged, _ONE_PROCESS)
        return staged.write(folder)


def stage_weights(
    model: PreTrainedModel | PeftModel,
    tokenizer: Tokenizer,
    staged: StagedFiles,
    ranks: Ranks,
    *,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Stage what a `ModelReference` can name: a PEFT adapter folder, or a model folder with its tokenizer.

    All ranks call it, and each stages its share; under ZeRO stage 3 they all contribute to each weight.

    Args:
        model: to save, without DeepSpeed's wrapper.
        tokenizer: saved in the same folder as a whole model.
        staged: gets this rank's files.
        ranks: that train the model.
        file_bytes: size of one safetensors file.
    """
    # Imported here: measuring stages load this module for the size of its files, and PEFT takes a while.
    from peft import PeftModel

    if isinstance(model, PeftModel):
        _stage_adapter(model, staged, is_writer=ranks.is_first)
        return
    parts = list(_parts_of(model, file_bytes))
    own: dict[int, list[str]] = {}
    sizes = 0
    for number, part in enumerate(parts):
        is_own = number % ranks.world_size == ranks.rank
        tensors = _copies(part.tensors, keep=is_own, sharded=is_sharded(model))
        if is_own:
            # As the files of the model that was read name and lay out the tensors (mixtures of experts differ).
            stored = revert_weight_conversion(model, tensors)
            own[number] = sorted(stored)
            staged.add_tensors(
                _file_name(number, len(parts)), {name: tensor.contiguous() for name, tensor in stored.items()}
            )
        sizes += part.size_bytes
    names = [name for found in ranks.gather(own, _NAMES) for name in found.items()]
    if not ranks.is_first:
        return
    with staged.capturing() as folder:
        if len(parts) > 1:
            file_of = {name: _file_name(number, len(parts)) for number, held in names for name in held}
            index = {"metadata": {"total_size": sizes}, "weight_map": file_of}
            (folder / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=2, sort_keys=True) + "\n"
            )
        _write_configuration(model, folder)
        tokenizer.save_pretrained(folder)


def _file_name(number: int, count: int) -> str:
    """Return the name that `from_pretrained` looks for."""
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_configuration(model: PreTrainedModel, folder: Path) -> None:
    """Write what `save_pretrained` would write into the configuration; readers choose class and type by it."""
    config = copy.deepcopy(model.config)
    config.use_cache = True  # training switches it off; generation needs it
    config.architectures = [type(model).__name__]
    config.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _parts_of(model: PreTrainedModel, file_bytes: int) -> Iterator[_Part]:
    """Cut the model's tensors into files of about equal size; tensors of one layer stay together.

    A layer's tensors are what a conversion to the layout of the files combines.
    """
    held: dict[str, torch.Tensor] = {}
    held_bytes = 0
    for group in _layers_of(model):
        group_bytes = sum(_num_bytes(tensor) for tensor in group.values())
        if held and held_bytes + group_bytes > file_bytes:
            yield _Part(held, held_bytes)
            held, held_bytes = {}, 0
        held |= group
        held_bytes += group_bytes
    yield _Part(held, held_bytes)


def _layers_of(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of one layer after the other; one that is in no layer comes alone."""
    before, group = "", dict[str, torch.Tensor]()
    for name, tensor in _tensors_of(model):
        match = _LAYER.search(name)
        layer = name[: match.end()] if match else name
        if group and layer != before:
            yield group
            group = {}
        before = layer
        group[name] = tensor
    if group:
        yield group


def _tensors_of(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a model's files hold: parameters and persistent buffers, tied ones once, by their first name."""
    ignored = set(model._keys_to_ignore_on_save or ())
    parameters = {id(parameter) for parameter in model.parameters()}
    known: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in known or name in ignored:
            continue
        if id(tensor) in parameters:
            known.add(id(tensor))
        yield name, tensor


def _num_bytes(tensor: torch.Tensor) -> int:
    # Under ZeRO stage 3 the parameter itself is empty.
    return int(getattr(tensor, "ds_numel", tensor.numel())) * tensor.element_size()


def _copies(tensors: dict[str, torch.Tensor], *, keep: bool, sharded: bool) -> dict[str, torch.Tensor]:
    """Return copies in host memory, of whole tensors; none on a rank that does not keep them."""
    copies: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not (keep or sharded):
            continue
        # One at a time: the accelerator never holds two whole tensors for a save.
        with gathered(tensor):
            if keep:
                copies[name] = host_copy(tensor)
                if sharded and tensor.is_cuda:
                    # DeepSpeed frees the whole tensor at the end of the block, on another stream.
                    torch.cuda.current_stream().synchronize()
    return copies


def _stage_adapter(model: PeftModel, staged: StagedFiles, *, is_writer: bool) -> None:
    """Stage the files of `PeftModel.save_pretrained`, without its model card and its requests to the hub."""
    whole = None
    if is_sharded(model):
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        whole = _copies(trained, keep=is_writer, sharded=True)
    if not is_writer:
        return
    settings = copy.copy(model.peft_config["default"])
    settings.inference_mode = True  # as `PeftModel.save_pretrained` does
    # The file is part of the adapter's digest: no path of this machine, and no order that changes with each process.
    settings.base_model_name_or_path = None
    if isinstance(settings.target_modules, set):
        settings.target_modules = sorted(settings.target_modules)
    with staged.capturing() as folder:
        settings.save_pretrained(folder)
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, state_dict=whole, save_embedding_layers=False)
    staged.add_tensors(
        "adapter_model.safetensors", {name: host_copy(tensor) for name, tensor in state.items()}
    )
