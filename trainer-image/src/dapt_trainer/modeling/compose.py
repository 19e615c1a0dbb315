"""Models made of others: adapters merged, a mean taken, brought towards an origin (`ModelReference` has the order).

All arithmetic is in fp32 on the CPU: bf16 has 8 bits of mantissa, and what a LoRA or a share of a short run changes is
often smaller than its last one. Plain folders are read one tensor after the other, so there is one fp32 copy of the
model and one tensor more; a member with adapters is loaded beside it, which makes two copies and never more.

A mean of models and a line between two of them are taken over parameters (Wortsman et al. 2022, "Model soups" and
"Robust fine-tuning of zero-shot models", WiSE-FT). Buffers and whatever is not floating point stay the first model's;
tied weights are one parameter and stay tied.
"""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dapt_contract.layout import EXTENDED_MODEL
from dapt_contract.stages.common import Member, ModelReference
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.model_folder import Precision, check_model_folder

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
Tensors = Callable[[str], torch.Tensor]
"""A parameter by its name, in fp32 on the CPU."""


def follow(work: Path, reference: ModelReference, *, dtype: torch.dtype) -> Any:
    """The model of a recipe, on the CPU; its weights are rounded to `dtype` once, at the end.

    Raises:
        InputError: a folder is missing or must not be loaded, or its parts do not fit together.
    """
    if reference.is_plain:
        return _loaded(work, reference.weights, dtype)
    model = mean_of(work, reference)
    if reference.interpolation != 1.0:
        interpolate(model, work, reference, into=model)
    for adapter in reference.tuned:
        model = _merged(model, work / adapter)
    return _rounded(model, dtype)


class SharedMeans:
    """Models of recipes, one after the other; the next replaces the last, so at most two copies are in memory.

    Recipes that differ by their share and origin alone, and follow one another, load and average their models once.

    Args:
        work: root of the work volume.
        precision: of the models.
        device: where they are put; the mean itself stays on the CPU, in fp32.
    """

    def __init__(self, work: Path, *, precision: Precision, device: str) -> None:
        self._work = work
        self._precision: Precision = precision
        self._dtype = DTYPES[precision]
        self._device = device
        self._key: object = None
        self._mean: Any = None
        self._model: Any = None

    def load(self, reference: ModelReference) -> Any:
        """The recipe's model in evaluation mode. It is good until the next call, which may change its weights.

        Raises:
            InputError: see `follow`.
        """
        if reference.tuned:
            self._key = self._mean = self._model = None
            gc.collect()
            return load_model(self._work, reference, precision=self._precision, device=self._device)
        if mean_key(reference) != self._key:
            self._mean = self._model = None
            gc.collect()
            self._mean = mean_of(self._work, reference)
            self._model = _rounded(_copied(self._mean), self._dtype).to(device=self._device).eval()
            self._key = mean_key(reference)
        interpolate(self._mean, self._work, reference, into=self._model)
        return self._model


def mean_key(reference: ModelReference) -> object:
    """Equal for recipes of the same mean."""
    return (reference.weights, reference.adapters, reference.averaged_with, reference.tuned)


def _copied(model: Any) -> Any:
    return copy.deepcopy(model)


def _rounded(model: Any, dtype: torch.dtype) -> Any:
    """The model with its parameters in `dtype`, one after the other; not its buffers: rotary frequencies stay fp32."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def mean_of(work: Path, reference: ModelReference) -> Any:
    """The recipe up to its mean: `weights` with `adapters`, averaged with the further members; fp32.

    Raises:
        InputError: see `follow`.
    """
    model = _member(work, Member(weights=reference.weights, adapters=reference.adapters))
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


def interpolate(model: Any, work: Path, reference: ModelReference, *, into: Any) -> None:
    """Write origin + a (model - origin) into the parameters of `into`, at their own precision and place.

    Args:
        model: what `mean_of` returned, in fp32 on the CPU.
        work: root of the work volume.
        reference: for the origin and the share a.
        into: `model` itself, or a model of the same shapes that may lie on an accelerator.

    Raises:
        InputError: the origin is missing, or its shapes are others.
    """
    share = reference.interpolation
    targets = dict(_parameters(into))
    tensor_of = None if share == 1.0 else tensors_of_folder(work, reference.origin, model, reference.weights)
    for name, parameter in _parameters(model):
        if tensor_of is None:
            targets[name].copy_(parameter)
            continue
        origin, target = tensor_of(name), targets[name]
        exact = target if (target.dtype, target.device) == (origin.dtype, origin.device) else None
        between = torch.sub(parameter, origin, out=exact).mul_(share).add_(origin)
        if exact is None:
            target.copy_(between)


def _parameters(model: Any) -> list[tuple[str, torch.Tensor]]:
    """What is averaged: floating-point parameters, tied ones once, without their gradients' history."""
    return [(name, value.data) for name, value in model.named_parameters() if value.is_floating_point()]


def _loaded(work: Path, weights: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a pod's log is no terminal
    folder = work / weights
    check_model_folder(folder)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )


def _member(work: Path, member: Member) -> Any:
    model = _loaded(work, member.weights, torch.float32)
    for adapter in member.adapters:
        model = _merged(model, work / adapter)
    return model


def _merged(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: no adapter there (adapter_model.safetensors is missing)")
    merged = PeftModel.from_pretrained(model, adapter, is_trainable=False).merge_and_unload()
    return merged.requires_grad_(True)  # PEFT froze it; a stage may train all of what an attempt starts from


def _tensors_of_member(work: Path, member: Member, like: Any, name_of_like: str) -> Tensors:
    if not member.adapters:
        return tensors_of_folder(work, member.weights, like, name_of_like)
    return _tensors_of_model(_member(work, member), member.weights, like, name_of_like)


def _tensors_of_model(model: Any, weights: str, like: Any, name_of_like: str) -> Tensors:
    found = dict(_parameters(model))
    _require_same_shapes(
        like, {name: tuple(value.shape) for name, value in found.items()}, name_of_like, weights
    )
    return found.__getitem__


def tensors_of_folder(work: Path, weights: str, like: Any, name_of_like: str) -> Tensors:
    """Read a plain folder tensor by tensor; where its files name them in another way than the model, load it whole."""
    from safetensors import safe_open
    from transformers import AutoConfig

    folder = work / weights
    check_model_folder(folder)
    tied = bool(AutoConfig.from_pretrained(folder, local_files_only=True).tie_word_embeddings)
    if tied != bool(like.config.tie_word_embeddings):
        words = {True: "ties its head to its embedding", False: "has a head of its own"}
        raise InputError(
            f"{name_of_like} {words[not tied]} and {weights} {words[tied]}: such models cannot be combined"
        )
    place = _places(folder)
    wanted = {name for name, _ in _parameters(like)}
    if place is None or not wanted <= set(place) <= set(like.state_dict()):
        return _tensors_of_model(_loaded(work, weights, torch.float32), weights, like, name_of_like)
    files: dict[Path, Any] = {path: safe_open(path, framework="pt") for path in set(place.values())}
    shapes = {name: tuple(files[place[name]].get_slice(name).get_shape()) for name in wanted}
    _require_same_shapes(like, shapes, name_of_like, weights)
    return lambda name: files[place[name]].get_tensor(name).to(torch.float32)


def _places(folder: Path) -> dict[str, Path] | None:
    """File of each tensor; None where the folder is not laid out as transformers does."""
    from safetensors import safe_open

    if (folder / _INDEX).is_file():
        weight_map = json.loads((folder / _INDEX).read_text())["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / _SINGLE).is_file():
        with safe_open(folder / _SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / _SINGLE)
    return None


def _require_same_shapes(like: Any, found: Mapping[str, tuple[int, ...]], one: str, other: str) -> None:
    """Refuse to combine what is not the same model.

    Raises:
        InputError: names both vocabularies when they differ, else the first parameter that does.
    """
    wanted = {name: tuple(value.shape) for name, value in _parameters(like)}
    embedding = _name_of_embedding(like)
    if found.get(embedding, wanted[embedding])[0] != wanted[embedding][0]:
        raise InputError(
            f"{one} has a vocabulary of {wanted[embedding][0]:,} tokens and {other} one of {found[embedding][0]:,}: "
            f"models of different vocabularies cannot be combined; where the tokenizer grew, all of them, the origin "
            f"included, come from {EXTENDED_MODEL}"
        )
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{one} and {other} are not of one architecture: {name} is "
                f"{_words(wanted.get(name))} in the first and {_words(found.get(name))} in the second"
            )


def _name_of_embedding(model: Any) -> str:
    weight = model.get_input_embeddings().weight
    return next(str(name) for name, value in model.named_parameters() if value is weight)


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(str(size) for size in shape)


def load_model(work: Path, reference: ModelReference, *, precision: Precision, device: str = "cpu") -> Any:
    """The referenced model in evaluation mode; `modeling/compose.py` follows the reference.

    Args:
        work: root of the work volume.
        reference: the recipe.
        precision: of the returned weights.
        device: where they are put.

    Raises:
        InputError: a folder is missing, has no safetensors, or wants remote code; or parts that do not fit together.
    """

    return follow(work, reference, dtype=DTYPES[precision]).to(device=device).eval()
