"""Composes models of others: merges adapters, averages, interpolates with an origin (`ModelReference` has the order).

All arithmetic is in fp32 on the CPU: bf16 has 8 bits of mantissa, and the change by a LoRA or by a fraction of a short
run is often smaller than the last one. Plain folders are read one tensor after the other, so there is one fp32 copy of
the model and one more tensor; a member with adapters is loaded as a whole, which makes two copies and never more.

Means and interpolations are taken over parameters (Wortsman et al. 2022, "Model soups" and "Robust fine-tuning of
zero-shot models", WiSE-FT). Buffers and everything that is not floating point stay the first model's; tied weights are
one parameter and stay tied.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from dapt_contract.layout import EXTENDED_MODEL
from dapt_contract.stages.common import Member, ModelReference, Precision
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.stored_models.model_folder import check_adapter_folder, check_model_folder
from dapt_trainer.modeling.stored_models.weight_files import INDEX, SINGLE_FILE, weight_map

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SHOWN_NAMES = 3
Tensors = Callable[[str], torch.Tensor]
"""Returns a parameter by its name, in fp32 on the CPU."""


def compose_model(work: Path, reference: ModelReference, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a recipe, on the CPU; its weights are rounded to `dtype` once, at the end.

    Raises:
        InputError: a folder is missing or must not be loaded, or the parts are not of one architecture.
    """
    if reference.is_plain:
        return load_folder(work, reference.weights, dtype)
    model = mean_of(work, reference)
    if reference.interpolation != 1.0:
        interpolate(model, work, reference, into=model)
    for adapter in reference.tuned:
        model = _merged(model, work / adapter)
    return _rounded(model, dtype)


class SharedMeans:
    """Loads the models of several recipes one after the other; at most two copies are in memory.

    Consecutive recipes that differ only in interpolation and origin load and average their members once.

    Args:
        work: root of the work volume.
        precision: of the models.
        device: where they are put; the mean itself stays on the CPU, in fp32.
    """

    def __init__(self, work: Path, *, precision: Precision, device: str) -> None:
        self._work = work
        self._precision = precision
        self._dtype = DTYPES[precision]
        self._device = device
        self._loaded: tuple[object, PreTrainedModel, PreTrainedModel] | None = None
        """Key of the mean, the mean itself, and the model that is returned."""

    def load(self, reference: ModelReference) -> PreTrainedModel:
        """Return the recipe's model in evaluation mode; it is valid until the next call, which may change its weights.

        Raises:
            InputError: as `compose_model`.
        """
        key = mean_key(reference)
        if reference.tuned or self._loaded is None or self._loaded[0] != key:
            # Freed before the next is loaded: at most two copies are in memory. Models hold themselves in circles, so
            # only the garbage collector frees them.
            self._loaded = None
            gc.collect()
        if reference.tuned:
            return load_model(self._work, reference, precision=self._precision, device=self._device)
        if self._loaded is None:
            mean = mean_of(self._work, reference)
            model = _rounded(copy_model(mean), self._dtype).to(device=self._device).eval()
            self._loaded = (key, mean, model)
        _, mean, model = self._loaded
        interpolate(mean, self._work, reference, into=model)
        return model


def mean_key(reference: ModelReference) -> object:
    """Return a key that is equal for recipes of the same mean."""
    return (reference.weights, reference.adapters, reference.averaged_with, reference.tuned)


def copy_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with weights of its own."""
    return copy.deepcopy(model)


def _rounded(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the parameters to `dtype`, one after the other; not the buffers: rotary frequencies stay fp32."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def mean_of(work: Path, reference: ModelReference) -> PreTrainedModel:
    """Return the recipe up to its mean: `weights` with `adapters`, averaged with the further members; fp32.

    Raises:
        InputError: as `compose_model`.
    """
    model = _load_member(work, Member(weights=reference.weights, adapters=reference.adapters))
    for member in reference.averaged_with:
        tensor_of = _tensors_of_member(work, member, model, reference.weights)
        for name, parameter in _parameters(model):
            parameter.add_(tensor_of(name))
        del tensor_of
        gc.collect()  # models hold themselves in circles: a copy would outlive the next one's load
    if reference.averaged_with:
        for _, parameter in _parameters(model):
            parameter.div_(1 + len(reference.averaged_with))
    return model


def interpolate(
    model: PreTrainedModel, work: Path, reference: ModelReference, *, into: PreTrainedModel
) -> None:
    """Write origin + a (model - origin) into the parameters of `into`, in their own precision and on their device.

    Args:
        model: the result of `mean_of`, in fp32 on the CPU.
        work: root of the work volume.
        reference: for the origin and the share a.
        into: `model` itself, or a model of the same shapes that may be on an accelerator.

    Raises:
        InputError: the origin is missing or has other shapes.
    """
    share = reference.interpolation
    targets = dict(_parameters(into))
    tensor_of = None if share == 1.0 else tensors_of_folder(work, reference.origin, model, reference.weights)
    for name, parameter in _parameters(model):
        if tensor_of is None:
            targets[name].copy_(parameter)
            continue
        origin, target = tensor_of(name), targets[name]
        # In place where the target can hold fp32 sums: no further tensor of the model's largest matrix.
        is_exact = (target.dtype, target.device) == (origin.dtype, origin.device)
        difference = torch.sub(parameter, origin, out=target if is_exact else None)
        # In this form a parameter that training left alone keeps its exact value; (1 - a) origin + a model would round
        # it.
        between = difference.mul_(share).add_(origin)
        if not is_exact:
            target.copy_(between)


def _parameters(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Return what is averaged: floating-point parameters, tied ones once, detached from autograd."""
    return [(name, value.data) for name, value in model.named_parameters() if value.is_floating_point()]


def load_folder(
    work: Path, weights: str, dtype: torch.dtype, *, distributed_config: DistributedConfig | None = None
) -> PreTrainedModel:
    """Return the model of a plain folder, on the CPU.

    Args:
        work: root of the work volume.
        weights: the folder.
        dtype: of the weights.
        distributed_config: how transformers divides it over ranks (`modeling.spread_model`); None: it is whole.

    Raises:
        InputError: as `check_model_folder`; or the files hold other tensors than the architecture has.
    """
    transformers_logging.disable_progress_bar()  # a pod's log is not a terminal
    folder = work / weights
    check_model_folder(folder)
    # No code and no pickles of a model's folder are ever run: a folder may come from anybody.
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=False,
        attn_implementation=None,  # whatever the folder says: the stage chooses
        use_safetensors=True,
        weights_only=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, with their names
        distributed_config=distributed_config,
    )
    _require_all_tensors(model, loaded, folder)
    return model


def _require_all_tensors(
    model: PreTrainedModel, loaded: Mapping[str, Iterable[str | tuple[str, object, object]]], folder: Path
) -> None:
    """Refuse a model of which transformers has made up a tensor or dropped one: each load would give another model.

    Prepare has compared the base model already; this covers every other folder too.

    Raises:
        InputError: names the first tensors.
    """
    differences = {
        "missing": loaded["missing_keys"],
        "of another shape": loaded["mismatched_keys"],
        "unknown to the architecture": loaded["unexpected_keys"],
    }
    parts = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, keys in differences.items()
        # A mismatched tensor is listed with both of its shapes.
        if (names := sorted(key if isinstance(key, str) else key[0] for key in keys))
    ]
    if parts:
        raise InputError(
            f"{folder}: its tensors are not those of {type(model).__name__}: {'; '.join(parts)}; correct config.json, "
            "or use a complete checkpoint"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")


def _load_member(work: Path, member: Member) -> PreTrainedModel:
    model = load_folder(work, member.weights, torch.float32)
    for adapter in member.adapters:
        model = _merged(model, work / adapter)
    return model


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: no adapter there (adapter_model.safetensors is missing)")
    check_adapter_folder(adapter)
    # Peft's loader of models never asks for code of a repository, so it has no such switch.
    merged = PeftModel.from_pretrained(model, adapter, is_trainable=False).merge_and_unload()
    return merged.requires_grad_(True)  # PEFT froze it; a stage may train all of what an attempt starts from


def _tensors_of_member(work: Path, member: Member, target: PreTrainedModel, target_name: str) -> Tensors:
    if not member.adapters:
        return tensors_of_folder(work, member.weights, target, target_name)
    return _tensors_of_model(_load_member(work, member), member.weights, target, target_name)


def _tensors_of_model(
    model: PreTrainedModel, weights: str, target: PreTrainedModel, target_name: str
) -> Tensors:
    tensors = dict(_parameters(model))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _require_same_shapes(target, shapes, target_name, weights)
    return tensors.__getitem__


def tensors_of_folder(work: Path, weights: str, target: PreTrainedModel, target_name: str) -> Tensors:
    """Return a reader of a plain folder's tensors, which loads one at a time.

    Args:
        work: root of the work volume.
        weights: the folder.
        target: model with which the tensors will be combined.
        target_name: of that model, for messages.

    Raises:
        InputError: the models cannot be combined, or as `check_model_folder`.
    """
    folder = work / weights
    check_model_folder(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    is_tied = bool(config.tie_word_embeddings)
    if is_tied != bool(target.config.tie_word_embeddings):
        phrases = {True: "ties its head to its embedding", False: "has a head of its own"}
        raise InputError(
            f"{target_name} {phrases[not is_tied]} and {weights} {phrases[is_tied]}: such models cannot be combined"
        )
    file_of = _file_of_each_tensor(folder)
    names = {name for name, _ in _parameters(target)}
    # Where files name tensors in another way than the model (mixtures of experts), only loading it whole converts them.
    if file_of is None or not names <= set(file_of) <= set(target.state_dict()):
        model = load_folder(work, weights, torch.float32)
        return _tensors_of_model(model, weights, target, target_name)
    files = {path: safe_open(path, framework="pt") for path in set(file_of.values())}
    # From the headers, before any value is read.
    shapes = {name: tuple(files[file_of[name]].get_slice(name).get_shape()) for name in names}
    _require_same_shapes(target, shapes, target_name, weights)
    return lambda name: files[file_of[name]].get_tensor(name).to(torch.float32)


def _file_of_each_tensor(folder: Path) -> dict[str, Path] | None:
    """Return the file of each tensor by name; None where the folder is not laid out as transformers does."""
    if (folder / SINGLE_FILE).is_file():
        with safe_open(folder / SINGLE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE_FILE)
    # `check_model_folder` has read the index already: its names are those of files in the folder.
    return (
        {name: folder / file for name, file in weight_map(folder).items()}
        if (folder / INDEX).is_file()
        else None
    )


def _require_same_shapes(
    target: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], target_name: str, name: str
) -> None:
    """Refuse to combine models of different shapes.

    Raises:
        InputError: names both vocabularies when they differ, else the first parameter that does.
    """
    expected = {parameter: tuple(value.shape) for parameter, value in _parameters(target)}
    embedding = _name_of_embedding(target)
    if shapes.get(embedding, expected[embedding])[0] != expected[embedding][0]:
        raise InputError(
            f"{target_name} has a vocabulary of {expected[embedding][0]:,} tokens and {name} one of "
            f"{shapes[embedding][0]:,}: models of different vocabularies cannot be combined; where the tokenizer was "
            f"extended, all of them, the origin included, come from {EXTENDED_MODEL}"
        )
    for parameter in sorted(expected.keys() | shapes.keys()):
        if expected.get(parameter) != shapes.get(parameter):
            raise InputError(
                f"{target_name} and {name} are not of one architecture: {parameter} is "
                f"{_shape_text(expected.get(parameter))} in the first and {_shape_text(shapes.get(parameter))} in the "
                "second"
            )


def _name_of_embedding(model: PreTrainedModel) -> str:
    weight = model.get_input_embeddings().weight
    return next(str(name) for name, value in model.named_parameters() if value is weight)


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(str(size) for size in shape)


def load_model(
    work: Path, reference: ModelReference, *, precision: Precision, device: str = "cpu"
) -> PreTrainedModel:
    """Return the referenced model in evaluation mode.

    Args:
        work: root of the work volume.
        reference: the recipe.
        precision: of the returned weights.
        device: where they are put.

    Raises:
        InputError: as `compose_model`.
    """
    return compose_model(work, reference, dtype=DTYPES[precision]).to(device=device).eval()
